"""A2TE's two losses against vectors of the reference implementation, and against plain loops."""
import math

import pytest
import torch
from torch import nn

from model import build_model, objectives
from model.build import total_loss
from model.head_registry import aliases
from model.heads import a2te
from model.loss_names import parse_loss_names
from solver.build import parameter_settings
from tests.support import golden, golden_batch, golden_cases, golden_files, golden_json, golden_model, options
from utils.checkpoint import load_weights
from utils.errors import UserError

RELATIVE = 1e-5


@pytest.fixture(scope='module', params=golden_files('a2te_*'))
def reference(request, tmp_path_factory):
    model, vectors, description = golden_model(request.param, tmp_path_factory.mktemp('a2te'), freeze_conv1=True)
    draws = []

    def drawn(weights, count, **_):
        draws.append(weights)
        return vectors['in/text_negative_index'][:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'multinomial', drawn)
        results = model(golden_batch(vectors))
    total_loss(results).backward()
    return model, vectors, description, results, draws


# -- Vectors of the reference implementation

def test_state_dict_has_the_official_names_and_shapes(reference):
    model, _, description, *_ = reference
    official = {name: shape for name, (shape, _) in description['official_keys'].items()
                if not name.startswith('base_model_m.')}
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == official


def test_embeddings(reference):
    model, vectors, *_ = reference
    batch = golden_batch(vectors)
    with torch.no_grad():
        for ours, official in ((model.encode_image(batch['images']), vectors['out/image_embedding']),
                               (model.encode_text(batch['caption_ids']), vectors['out/text_embedding'])):
            assert (ours - official).norm() <= RELATIVE * official.norm()


def test_losses_and_read_outs(reference):
    _, vectors, _, results, _ = reference
    official = {name[len('out/'):]: float(value) for name, value in vectors.items()
                if name.startswith('out/') and not name.endswith(('embedding', 'total'))}
    ours = {name: float(value.detach()) for name, value in results.items()}
    assert ours == pytest.approx(official, rel=RELATIVE, abs=1e-7)
    assert total_loss(results).item() == pytest.approx(float(vectors['out/total']), rel=RELATIVE)


def test_gradients(reference):
    model, vectors, *_ = reference
    official = {name[len('grad/'):]: float(value) for name, value in vectors.items()
                if name.startswith('grad/') and not name.startswith('grad/base_model_m.')}
    parameters = dict(model.named_parameters())
    assert len(official) > 10
    for name, value in official.items():
        grad = parameters[name].grad
        assert (0.0 if grad is None else float(grad.norm())) == pytest.approx(value, rel=RELATIVE, abs=1e-7), name
    assert parameters['base_model.visual.conv1.weight'].grad is None


def test_negatives_are_drawn_once_by_the_embeddings_inner_products(reference):
    _, vectors, _, _, draws = reference
    assert len(draws) == 1
    scores = vectors['out/image_embedding'].double() @ vectors['out/text_embedding'].double().t()
    for row, (weights, score) in enumerate(zip(draws[0].tolist(), scores.tolist())):
        exponents = [0.0 if column == row else math.exp(value - max(score)) for column, value in enumerate(score)]
        expected = [value / sum(exponents) for value in exponents]
        assert [w / sum(weights) for w in weights] == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize('file, case', golden_cases('objectives*', 'detail'))
def test_detail_loss_is_that_of_the_reference(file, case):
    vectors, _ = golden(file)
    image, text = (vectors[f'{case}/{side}'].clone().requires_grad_() for side in ('image', 'text'))
    loss = objectives.detail(image, text, vectors[f'{case}/pids'], tau=100.0)
    loss.backward()
    assert loss.item() == pytest.approx(vectors[f'{case}/detail'].item(), rel=RELATIVE, abs=1e-6)
    for ours, side in ((image.grad, 'image'), (text.grad, 'text')):
        official = vectors[f'{case}/detail/grad_{side}']
        assert (ours - official).norm() <= RELATIVE * official.norm() + 1e-6


@pytest.mark.parametrize('name', golden_files('official_a2te_*'))
def test_published_checkpoint_loads_both_ways_and_learns_at_the_published_rates(name):
    official = golden_json(name)
    args = options(loss_names=official['loss_names'], training=False)
    model = build_model(args, official['num_classes'])
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in official['state_dict'].items()
                    if not name.startswith('base_model_m.')}
    published = {name: torch.full(shape, 0.5 if dtype != 'int64' else 5, dtype=getattr(torch, dtype))
                 for name, (shape, dtype) in official['state_dict'].items()}
    load_weights(model, published)
    assert all((value == (0.5 if value.is_floating_point() else 5)).all() for value in model.state_dict().values())
    for name, _ in model.named_parameters():
        assert parameter_settings(name, args) == pytest.approx(tuple(official['optimizer_groups'][name])), name


# -- Plain loops

def plain_attribute_loss(tokens, groups, matches, head):
    """One caption and one group at a time: [B, L, D], [B, L], [B]."""
    losses = []
    for rows, numbers, match in zip(tokens, groups.tolist(), matches):
        rows = rows / rows.norm(dim=0, keepdim=True)      # over the caption's positions
        caption_losses = []
        for group in sorted(set(numbers) - {0}):
            mean = torch.stack([row for row, number in zip(rows, numbers) if number == group]).mean(0)
            caption_losses.append(nn.functional.cross_entropy(head(mean)[None], torch.tensor([match])))
        if caption_losses:
            losses.append(sum(caption_losses) / len(caption_losses))
    return sum(losses) / len(losses)


def example_groups():
    groups = torch.zeros(4, 20, dtype=torch.long)
    groups[0, [2, 3]] = 1
    groups[0, [5, 6, 8]] = 2
    groups[2, [1, 2]], groups[2, [3, 4]], groups[2, [5, 7]] = 1, 2, 3
    groups[3, [17, 18]] = 1
    return groups                                          # caption 1 has no group


def encoded_batch(model, batch):
    with torch.no_grad():
        return model.encode(batch)


@pytest.fixture
def small(tmp_path):
    """A function that builds A2TE's model and a batch of 4 captions, of which the last has no word."""
    def build(seed=0, batch=4, **changes):
        torch.manual_seed(seed)
        model, vectors, _ = golden_model('a2te_tiny512', tmp_path, **changes)
        captions = torch.zeros(4, 20, dtype=torch.long)
        for row, length in zip(captions, (18, 6, 3, 0)):
            row[0], row[1 + length] = 510, 511
            row[1:1 + length] = torch.randint(1, 509, (length,))
        fields = {'pids': torch.tensor([0, 1, 1, 2]), 'images': torch.randn(4, 3, 96, 32), 'caption_ids': captions,
                  'attributes_mask': example_groups()}
        return model, {name: value[:batch] for name, value in fields.items()}
    return build


def test_attribute_loss_of_each_group_and_caption(small):
    model, batch = small(loss_names='attribute', attribute_weight=0.5)
    encoded = encoded_batch(model, batch)
    head, negatives = model.heads[0], torch.tensor([2, 0, 3, 0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'multinomial', lambda *_, **__: negatives[:, None])
        result = head(encoded, batch)
    tokens = torch.cat([head.cross(encoded.text_tokens, encoded.image_tokens),
                        head.cross(encoded.text_tokens[negatives], encoded.image_tokens)])
    groups = batch['attributes_mask']
    plain = plain_attribute_loss(tokens, torch.cat([groups, groups[negatives]]), [1] * 4 + [0] * 4, head.itm_head)
    assert list(result) == ['attr_loss'] and result['attr_loss'].item() == pytest.approx(0.5 * plain.item(), rel=1e-5)


def test_the_loss_is_0_without_attributes(small):
    model, batch = small(loss_names='attribute')
    loss = model({**batch, 'attributes_mask': torch.zeros(4, 20, dtype=torch.long)})['attr_loss']
    loss.backward()
    assert loss.item() == 0 and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_negatives_are_never_the_own_caption_even_at_extreme_scores():
    image = 1000 * torch.eye(5)
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = a2te.sample_similar_captions(image, image)
        assert (drawn != torch.arange(5)).all() and drawn.shape == (5,)
    text = torch.zeros(5, 5)
    text[3] = 50     # the most similar caption for every image
    assert a2te.sample_similar_captions(torch.ones(5, 5), text)[[0, 1, 2, 4]].tolist() == [3] * 4


def test_negatives_of_embeddings_that_are_not_finite():
    image = torch.tensor([[float('nan')], [float('inf')], [1.0]])
    assert (a2te.sample_similar_captions(image, image) != torch.arange(3)).all()


@pytest.mark.parametrize('training', (False, True))
def test_a_batch_of_one(small, training):
    model, batch = small(loss_names='attribute+detail', batch=1)
    results = model.train(training)(batch)
    total_loss(results).backward()
    assert all(torch.isfinite(value) for value in results.values()) and results['attr_loss'] > 0


def test_a_single_detail_in_a_batch_of_one(small):
    model, batch = small(loss_names='detail', batch=1, pool_ratio=0.1)
    assert model.heads[0].patches == model.heads[0].words == 1
    assert torch.isfinite(model.train()(batch)['detail_loss'])


def plain_details(layer, linear, tokens):
    """[n, D] selected tokens -> [1024], one by one."""
    out = []
    for token in tokens:
        token = token / token.norm()
        hidden = layer.mlp.layers[0](token)
        norm = layer.mlp.bns[0]
        hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        out.append(layer.mlp.layers[1](hidden.clamp(min=0)) + linear(token))
    return torch.stack(out).max(dim=0).values


@pytest.mark.parametrize('ratio', (0.1, 0.3, 0.9, 1.0))
def test_details_of_long_short_and_empty_captions(small, ratio):
    model, batch = small(loss_names='detail', pool_ratio=ratio)
    encoded, head = encoded_batch(model, batch), model.heads[0]
    text_layer, image_layer = head.details.texual_emb_layer, head.details.visul_emb_layer
    texts = text_layer(encoded.text_tokens, encoded.text_attention, batch['caption_ids'], head.words)
    images = image_layer(encoded.image_tokens, encoded.image_attention, head.patches)
    for row, words in enumerate((18, 6, 3, 0)):
        end = words + 1
        attention = encoded.text_attention[row, end].tolist()
        selected = sorted(range(1, end), key=lambda position: -attention[position])[:int(18 * ratio)] or [end]
        expected = plain_details(text_layer, text_layer.linear, encoded.text_tokens[row, selected])
        torch.testing.assert_close(texts[row], expected, rtol=1e-4, atol=1e-5)
        attention = encoded.image_attention[row, 0].tolist()
        selected = sorted(range(1, 13), key=lambda position: -attention[position])[:int(12 * ratio)]
        expected = plain_details(image_layer, image_layer.fc, encoded.image_tokens[row, selected])
        torch.testing.assert_close(images[row], expected, rtol=1e-4, atol=1e-5)


def test_selected_words_if_attention_underflows_to_0():
    """Content with attention 0 is selected before padding."""
    ids = torch.tensor([[510, 5, 6, 7, 511, 0, 0, 0]])
    attention = torch.zeros(1, 8, 8)
    attention[0, 4, 2] = 0.5
    positions, is_valid = a2te.most_attended_words(attention, ids, 5)
    assert positions[0, 0] == 2 and sorted(positions[0, :3].tolist()) == [1, 2, 3]
    assert is_valid[0].tolist() == [True, True, True, False, False]
    assert set(positions[0, 3:].tolist()) <= {5, 6, 7}


def test_detail_loss_by_plain_loops():
    torch.manual_seed(3)
    image, text, pids = torch.randn(5, 7), torch.randn(5, 7), [2, 0, 2, 1, 0]
    cosine = nn.functional.cosine_similarity(text[:, None], image[None], dim=-1)
    plain = 0.0
    for scores in (cosine.tolist(), cosine.t().tolist()):
        for row, pid in zip(scores, pids):
            same = [score for score, other in zip(row, pids) if other == pid]
            weights = [math.exp(score / 2) for score in same]
            positive = sum(weight * score for weight, score in zip(weights, same)) / sum(weights)
            negative = max(0.0 if other == pid else score for score, other in zip(row, pids))
            plain += max(0.0, 0.1 + negative - positive)
    assert objectives.detail(image, text, torch.tensor(pids), tau=2.0).item() == pytest.approx(plain, rel=1e-5)


def test_padding_changes_nothing(small):
    """The details are the same without the batch's padding."""
    model, batch = small(loss_names='detail', pool_ratio=0.5)
    batch = {name: value[1:3] for name, value in batch.items()}
    trimmed = {**batch, 'caption_ids': batch['caption_ids'][:, :8]}
    torch.testing.assert_close(model(trimmed)['detail_loss'], model(batch)['detail_loss'], rtol=1e-5, atol=1e-6)


def test_half_precision(small):
    exact, batch = small(loss_names='amm+detail')
    batch = {**batch, 'mlm_labels': batch['caption_ids'] * (batch['attributes_mask'] == 1)}
    half, _ = small(loss_names='amm+detail', amp='bf16')
    losses = []
    for model in (exact, half):
        torch.manual_seed(0)
        losses.append({name: float(value.detach()) for name, value in model(batch).items()})
    assert losses[1] == pytest.approx(losses[0], rel=0.05, abs=0.02)
    total_loss(half.train()(batch)).backward()
    assert all(torch.isfinite(p.grad).all() for p in half.parameters() if p.grad is not None)


def test_attributes_are_learned_with_sdm_against_drawn_negatives(small):
    model, batch = small(loss_names='sdm+attribute', temperature=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(25):
        results = model(batch)
        optimizer.zero_grad()
        total_loss(results).backward()
        optimizer.step()
        losses.append(results['attr_loss'].item())
    assert losses[0] > 0.6 and max(losses[-5:]) < 0.05, losses[::10]


# -- Names and options

@pytest.mark.parametrize('written, means', [
    ('amm', 'mlm+attribute'), ('sdm+mlm+amm+detail', 'sdm+mlm+attribute+detail'), ('attribute+amm', 'attribute+mlm')])
def test_amm_is_mlm_and_attribute(written, means):
    assert 'amm' in aliases()
    assert parse_loss_names(written) == parse_loss_names(means)


@pytest.mark.parametrize('names, message', [
    ('amm+amm', "'amm' is named twice"), ('sdm+am', "unknown loss 'am'.*did you mean amm")])
def test_wrong_names(names, message):
    with pytest.raises(UserError, match=message):
        parse_loss_names(names)


def test_shared_cross_encoder_and_fields(tmp_path):
    model, *_ = golden_model('a2te_tiny512', tmp_path, loss_names='mlm+attribute')
    assert model.heads[0].cross is model.heads[1].cross
    assert set(options(loss_names='amm').config.data.batch_fields) == {'mlm_labels', 'attributes_mask'}
    assert options(loss_names='attribute').config.data.batch_fields == ('attributes_mask',)


@pytest.mark.parametrize('ratio, message', [
    (0.05, 'selects none of the 12 patches'),
    *((ratio, 'above 0 and at most 1') for ratio in (0.0, 1.5, -1, math.nan))])
def test_pool_ratio_out_of_range(tmp_path, ratio, message):
    with pytest.raises(UserError, match=message):
        golden_model('a2te_tiny512', tmp_path, loss_names='detail', pool_ratio=ratio)


def test_pool_ratio_that_selects_no_word(tmp_path):
    with pytest.raises(UserError, match='selects none of the 1 words'):
        golden_model('a2te_tiny512', tmp_path, loss_names='detail', pool_ratio=0.5, text_length=3)


@pytest.mark.parametrize('flags, message', [(['--pool_ratio', '1.2'], 'pool_ratio.*at most 1'),
                                            (['--pool_ratio', '0'], 'pool_ratio.*above 0'),
                                            (['--attribute_weight', '-1'], 'attribute_weight.*at least 0')])
def test_flags_out_of_range(flags, message):
    from utils.options import get_args
    with pytest.raises(UserError, match=message):
        get_args(flags)


@pytest.mark.parametrize('loss', ('attribute', 'detail'))
def test_resnets_have_no_patches(loss):
    with pytest.raises(UserError, match=f"'{loss}' reads image tokens"):
        build_model(options(loss_names=loss, pretrain_choice='scratch:RN50', img_size=(64, 32), training=False), 3)


@pytest.mark.parametrize('dataset, weights', [
    ('CUHK-PEDES', (1.0, 0.1)), ('ICFG-PEDES', (1.0, 0.01)), ('RSTPReid', (0.5, 0.1))])
def test_recipes(dataset, weights):
    from utils.options import get_args
    ending = '' if dataset == 'CUHK-PEDES' else f'-{dataset.lower()}'
    args = get_args(['--config_file', f'configs/a2te{ending}.yaml'])
    assert args.dataset_name == dataset
    assert (args.attribute_weight, args.detail_loss_weight) == weights
    assert (args.temperature, args.alpha, args.pool_ratio) == (0.01, 0.5, 0.3)
    assert args.freeze_conv1 and args.caption_masking == 'inplace'
    assert not args.config.notes
