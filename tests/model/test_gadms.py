"""GA-DMS's masking and saliency against the reference vectors, against plain computations, and in a model."""
import math

import pytest
import torch
import torch.nn.functional as F

from model.build import total_loss
from model.clip_model import CLIP, ClipShape
from model.heads.gadms import (SALIENCY_BLOCKS, encode_with_single_heads, end_similarity, hidden_chances,
                               mask_drawn_tokens, mask_tokens, mlm_chances, scale_to_unit, token_saliency,
                               word_importance)
from processor.build import build_step
from processor.pair_states import PairStates
from tests.support import (golden, golden_archive, golden_batch, golden_files, golden_json, golden_model, options,
                           small_batch, small_model)
from utils.batch_shard import WHOLE_BATCH
from utils.errors import UserError
from utils.options import get_args

RELATIVE = 1e-5
MASK, START, END = 509, 510, 511


def assert_close(ours, official, what=None):
    difference = (ours.detach() - official).norm()
    assert difference <= RELATIVE * official.norm() + 1e-7, (what, float(difference / official.norm()))


# -- Masking

@pytest.mark.parametrize('name', golden_files('gadms_masking_*'))
@pytest.mark.parametrize('copy, chances_of', [('mlm', mlm_chances), ('noise', hidden_chances)])
def test_chances_and_masks_are_those_of_the_reference(name, copy, chances_of):
    vectors, description = golden(name)
    chances = chances_of(vectors['in/saliency'])
    torch.testing.assert_close(chances, vectors[f'out/{copy}_chance'], rtol=1e-5, atol=1e-9)
    masked, labels = mask_drawn_tokens(vectors['in/caption_ids'], chances, vectors[f'in/{copy}_draw'],
                                       vectors[f'in/{copy}_replacement'], description['mask'])
    assert torch.equal(masked, vectors[f'out/{copy}_ids']) and torch.equal(labels, vectors[f'out/{copy}_labels'])


@pytest.mark.parametrize('saliency, mlm, hidden', [(0.0, 0.036, 0.176), (0.1, 0.15, 0.1), (1.0, 0.3, 3e-9)])
def test_salient_words_are_predicted_and_others_hidden(saliency, mlm, hidden):
    saliency = torch.tensor([[saliency]])
    assert mlm_chances(saliency).item() == pytest.approx(mlm, rel=0.02)
    assert hidden_chances(saliency).item() == pytest.approx(hidden, rel=0.02)


def test_draws_follow_the_chances_and_the_rates():
    ids = torch.tensor([[START, 7, 8, 9, END, 0]]).expand(20000, -1)
    chances = torch.tensor([0.5, 0.3, 0.1, 0.6, 0.5, 0.5])
    torch.manual_seed(0)
    masked, labels = mask_tokens(chances.expand(20000, -1), ids, MASK, 0.7, 0.2)
    selected = labels > 0
    none = (1 - 0.3) * (1 - 0.1) * (1 - 0.6)      # then the first word is masked
    assert torch.allclose(selected.float().mean(0), torch.tensor([0, 0.3 + none, 0.1, 0.6, 0, 0]), atol=0.012)
    replaced = masked[:, 2:4][selected[:, 2:4]]
    assert (replaced == MASK).float().mean().item() == pytest.approx(0.7, abs=0.012)
    assert (replaced == labels[:, 2:4][selected[:, 2:4]]).float().mean().item() == pytest.approx(0.2, abs=0.012)
    assert replaced.min() >= 1 and replaced.max() == MASK and len(replaced.unique()) > 300
    assert torch.equal(masked[~selected], ids[~selected])


def test_a_caption_without_words_is_not_masked():
    ids = torch.tensor([[START, END, 0], [START, 4, END]])
    masked, labels = mask_drawn_tokens(ids, torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 5), MASK)
    assert masked.tolist() == [[START, END, 0], [START, MASK, END]] and labels.tolist() == [[0, 0, 0], [0, 4, 0]]


# -- Saliency

@pytest.fixture(scope='module', params=golden_files('gadms_*', excluded=('gadms_masking_*',)))
def reference(request, tmp_path_factory):
    model, vectors, description = golden_model(request.param, tmp_path_factory.mktemp('gadms'))
    return model.train(), golden_batch(vectors), vectors, description


def test_saliency_and_all_on_the_way_to_it(reference):
    model, batch, vectors, _ = reference
    clip, ids = model.base_model, batch['caption_ids']
    image = model.encode_image(batch['images']).detach()
    rows, ends = torch.arange(len(ids)), ids.argmax(dim=1)
    traces, tokens = encode_with_single_heads(clip, ids)
    dense_text = tokens[rows, ends]
    assert_close(dense_text, vectors['out/dense_text'])
    cosine = F.normalize(image, dim=1) @ F.normalize(dense_text, dim=1).t()
    assert_close(cosine, vectors['out/cosine'])
    gradients = torch.autograd.grad(cosine.diag().sum(), [trace.attended for trace in traces])
    for number, (trace, gradient) in enumerate(zip(traces, gradients, strict=True)):
        assert_close(gradient[rows, ends], vectors['out/gradient_end'][number], number)
        assert_close(trace.attention[rows, ends], vectors['out/attention_end'][number], number)
        assert_close(end_similarity(trace, rows, ends), vectors['out/similarity_qk'][number], number)
        importance = word_importance(trace, gradient[rows, ends], rows, ends)
        assert_close(importance, vectors['out/importance'][number], number)
    assert len(traces) == min(SALIENCY_BLOCKS, len(clip.transformer.resblocks))
    saliency = token_saliency(clip, image, ids)
    assert_close(scale_to_unit(saliency, saliency), vectors['out/saliency'])


def test_losses_and_gradients_of_the_masked_copies(reference):
    model, batch, vectors, description = reference
    batch['caption_ids'] = batch.pop('noise_ids')
    model.zero_grad()
    results = model(batch)
    total_loss(results).backward()
    assert_close(model.encode_text(batch['caption_ids']), vectors['out/noise_embedding'])
    for name in ('sdm_loss', 'mlm_loss', 'mlm_acc'):
        assert results[name].item() == pytest.approx(vectors[f'out/{name}'].item(), rel=RELATIVE), name
    assert total_loss(results).item() == pytest.approx(vectors['out/total'].item(), rel=RELATIVE)
    parameters = dict(model.named_parameters())
    norms = {name[len('grad/'):]: float(value) for name, value in vectors.items() if name.startswith('grad/')}
    assert norms
    # The reference's sdm computes in float32 at a scale of 50. Its rounding is up to 7e-6 of a gradient, and a CPU with
    # PyTorch 2.6 adds 3e-6.
    for name, norm in norms.items():
        assert parameters[name].grad.double().norm().item() == pytest.approx(norm, rel=2e-5, abs=1e-7), name


def plain_saliency(clip, image, ids):
    """GA-DMS's saliency of one caption, position by position in Python: a list of floats."""
    length, width, end = len(ids), clip.positional_embedding.shape[1], int(ids.argmax())
    blocks = clip.transformer.resblocks
    x = (clip.token_embedding(ids) + clip.positional_embedding[:length])[None]
    for block in blocks[:-8]:
        x, _ = block(x, causal=True)
    x, kept = x[0], []
    for block in blocks[-8:]:
        q, k, v = (block.ln_1(x) @ block.attn.in_proj_weight.t() + block.attn.in_proj_bias).split(width, dim=1)
        rows = []
        for position in range(length):
            scores = torch.stack([q[position] @ k[other] for other in range(position + 1)]) / math.sqrt(width)
            rows.append(F.pad(scores.softmax(dim=0), (0, length - position - 1)))
        attention = torch.stack(rows)
        attended = attention @ v
        kept.append((q, k, v, attention, attended))
        x = x + block.attn.out_proj(attended)
        x = x + block.mlp.c_proj(block.mlp.gelu(block.mlp.c_fc(block.ln_2(x))))
    similarity = F.cosine_similarity(image, clip.ln_final(x)[end] @ clip.text_projection, dim=0)
    gradients = torch.autograd.grad(similarity, [attended for *_, attended in kept])
    saliency = [0.0] * length
    for (q, k, v, attention, _), gradient in zip(kept, gradients):
        smooth_q, smooth_k = plain_smoothing(q), plain_smoothing(k)
        cosine = [F.cosine_similarity(smooth_q[end], key, dim=0).item() for key in smooth_k]
        scaled = [(value - min(cosine)) / (max(cosine) - min(cosine) + 1e-8) for value in cosine]
        importance = [scaled[position] * (gradient[end] @ v[position]).item() for position in range(length)]
        for position in range(1, end):
            saliency[position] += importance[position] * attention[end, position].item() / (sum(importance) + 1e-8)
    return [max(value, 0.0) for value in saliency]


def plain_smoothing(x):
    """Average each position of [L, W] with pair means that are resized linearly to L positions."""
    length = len(x)
    pairs = [x[start:start + 2].mean(dim=0) for start in range(0, length, 2)]
    smoothed = []
    for position in range(length):
        source = min(max((position + 0.5) * len(pairs) / length - 0.5, 0), len(pairs) - 1)
        low = int(source)
        high, weight = min(low + 1, len(pairs) - 1), source - low
        smoothed.append((x[position] + (1 - weight) * pairs[low] + weight * pairs[high]) / 2)
    return smoothed


@pytest.mark.parametrize('blocks, length', [(1, 5), (3, 9), (9, 8)])
def test_saliency_in_other_shapes(blocks, length):
    torch.manual_seed(blocks)
    clip = CLIP(ClipShape(embed_dim=32, image_resolution=32, vision_layers=1, vision_width=64, vision_patch_size=16,
                          text_length=length, vocab_size=40, text_width=64, text_layers=blocks), (32, 32), 16, length)
    clip = clip.double()
    ids = torch.tensor([[38, 3, 0, 8, 39, *[0] * (length - 5)], [38, 5, 39, *[0] * (length - 3)]])
    image = torch.randn(2, 32, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:      # in float64, because the saliency is ill-conditioned
        patch.setattr(torch.Tensor, 'float', torch.Tensor.double)
        expected = torch.tensor([plain_saliency(clip, *row) for row in zip(image, ids)], dtype=torch.float64)
        saliency = token_saliency(clip, image, ids)
    torch.testing.assert_close(saliency.double(), expected, rtol=1e-5, atol=1e-7)
    assert expected.max() > 0 and not saliency[1, 2:].any() and not saliency[:, 0].any()


def test_saliency_is_scaled_by_the_extremes_of_the_global_batch():
    saliency = torch.tensor([[0.0, 1.0], [4.0, 2.0]])
    assert scale_to_unit(saliency, saliency).tolist() == [[0.0, 0.25], [1.0, 0.5]]
    assert scale_to_unit(saliency[:1], saliency).tolist() == [[0.0, 0.25]]
    assert not scale_to_unit(torch.ones(2, 2), torch.ones(2, 2)).any()


# -- In a model

@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


def saliency_model(archive, loss_names='sdm+mlm', **changes):
    return small_model(archive, loss_names, mlm_masking='saliency', **changes)


def whole_captions(**changes):
    batch = small_batch()
    return {**{name: value for name, value in batch.items() if name not in ('mlm_ids', 'mlm_labels')}, **changes}


def test_losses_read_the_masked_copies_and_the_saliency_trains_nothing(archive):
    model = saliency_model(archive)
    saliency = torch.rand(6, 20, generator=torch.Generator().manual_seed(2))
    batch = whole_captions(saliency=saliency)
    torch.manual_seed(5)
    mlm_ids, labels = mask_tokens(mlm_chances(saliency), batch['caption_ids'], MASK)
    hidden_ids, _ = mask_tokens(hidden_chances(saliency), batch['caption_ids'], MASK)
    assert not torch.equal(mlm_ids, hidden_ids)
    torch.manual_seed(5)
    results = model(batch)
    total_loss(results).backward()
    other = small_model(archive, 'sdm+mlm')
    expected = other({**batch, 'caption_ids': hidden_ids, 'mlm_ids': mlm_ids, 'mlm_labels': labels})
    total_loss(expected).backward()
    assert {name: value.item() for name, value in results.items()} == {
        name: value.item() for name, value in expected.items()}
    gradients = {name: parameter.grad for name, parameter in other.named_parameters()}
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in model.named_parameters())
    image = model.encode_image(batch['images']).detach()
    expected = token_saliency(model.base_model, image, batch['caption_ids'])
    assert torch.equal(model.pair_values['saliency'], scale_to_unit(expected, expected))


def test_in_the_first_epoch_the_first_word_is_hidden_and_nothing_else(archive):
    model, batch = saliency_model(archive), whole_captions()
    hidden = model.transform_batch(batch)['caption_ids']
    assert (hidden[:, 1] == MASK).all()
    assert torch.equal(hidden[:, 2:], batch['caption_ids'][:, 2:]) and (hidden[:, 0] == START).all()


def test_saliency_is_computed_in_float32_under_autocast(archive):
    exact, half = (saliency_model(archive, amp=amp) for amp in ('off', 'bf16'))
    batch, image = whole_captions(), torch.randn(6, 128)
    values = []
    for model in (exact, half):
        with model.autocast():
            encoded = model.encode(model.transform_batch(batch))
            encoded.image = image
            values.append(model.update_pair_values(encoded, {**batch, 'whole_caption_ids': batch['caption_ids']}))
    assert torch.equal(values[0]['saliency'], values[1]['saliency'])


@pytest.mark.parametrize('loss_names', ['sdm+mlm', 'sdm+mlm+id+itc+tal+tse+efa+cmt'])
def test_a_batch_is_learned_while_its_masks_follow_the_saliency(archive, loss_names):
    model, batch = saliency_model(archive, loss_names, temperature=0.1).train(), whole_captions()
    states = PairStates(model, 6)
    step, history = build_step(model, torch.optim.Adam(model.parameters(), lr=1e-3)), []
    for _ in range(40):
        filled = states.add_values(batch, WHOLE_BATCH)
        results = step(filled)
        states.store(filled, model.pair_values, WHOLE_BATCH)
        history.append(float(total_loss(results) - results.get('efa_loss', 0)))
    assert sum(history[-5:]) / 5 < 0.2 * history[0], history[::10]
    saliency = states.state_dict()['saliency']
    assert saliency.max() == 1 and not (saliency == 0.85).any() and saliency.dtype == torch.float16


@pytest.mark.parametrize('changes, sentence', [
    ({'caption_masking': 'inplace'}, '--caption_masking inplace, because it masks a copy of the caption'),
    ({'caption_filter': 0.2}, '--caption_filter 0.2, because the saliency belongs to the positions'),
    ({'txt_aug': True}, '--txt_aug, because the saliency belongs to the positions'),
    ({'tuning': 'up-person'}, '--tuning up-person, because the saliency is defined for text blocks without additions'),
    ({'text_dropout': 0.1}, '--text_dropout 0.1, because the saliency is defined without'),
    ({'micro_batch': 4}, '--micro_batch 4, because it compares the saliency of all captions'),
    ({'shard': True}, '--shard, because it reads the parameters')])
def test_options_that_exclude_the_saliency(changes, sentence):
    with pytest.raises(UserError, match=f'--mlm_masking saliency excludes {sentence}.*: leave out one of them$'):
        options(loss_names='sdm+mlm', mlm_masking='saliency', **changes)
    options(loss_names='sdm+mlm', mlm_masking='random', **changes)


def test_a_backbone_with_other_text_blocks_is_an_error(archive):
    model = small_model(archive, 'sdm')
    other = torch.nn.Module()
    other.backbone, other.text_width = type('Other', (), {'name': 'other', 'encoder': torch.nn.Module()}), 4
    from model.heads.gadms import SaliencyMasking
    with pytest.raises(UserError, match='reads the text blocks of --backbone clip, and the backbone other has others'):
        SaliencyMasking(options(mlm_masking='saliency'), other)
    SaliencyMasking(options(mlm_masking='saliency'), model)


def test_the_recipes_train_every_parameter_at_one_rate():
    for recipe in ('gadms', 'gadms-webperson'):
        args = get_args(['--config_file', f'configs/{recipe}.yaml'])
        assert (args.lr, args.lr_rules, args.weight_decay) == (1e-5, 'flat', 4e-5)
