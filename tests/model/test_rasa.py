"""The backbone albef, and the losses of RaSa and MARS, against plain re-computations."""
import functools
import math

import pytest
import torch
import torch.nn.functional as F

from model import build_model, objectives
from model.backbones.albef import Albef, read_shape, shape_of
from model.build import RetrievalModel, total_loss
from model.heads.rasa import draw_tokens, replace_tokens
from model.vit import resize_pos_embed
from processor.sharding import supports_cpu_sharding, validate_sharding
from processor.step import Step
from solver.build import parameter_groups
from tests.support import assert_falls, golden_files, golden_json, options
from utils.checkpoint import Checkpointer, init_from_checkpoint, load_weights
from utils.errors import UserError

RASA, MARS = 'cl+pitm+mlm+prd+mrtd', 'cl+pitm+mlm+prd+mrtd+mae+attribute'
WORDS, START, MASK = 200, 2, 4


def tiny(loss_names=MARS, **changes):
    torch.manual_seed(0)
    settings = dict(backbone='albef', pretrain_choice='scratch:albef-tiny', loss_names=loss_names, img_size=(48, 32),
                    text_length=14, moco_queue=7, softlabel_ratio=0.4, mask_ratio=0.75, attribute_weight=2.0,
                    full_ca='mae' in loss_names)
    return build_model(options(**{**settings, **changes}), 6)


def batch(size=6, seed=0, length=14):
    """Build a batch with two images of one person, a replaced caption, and captions without attributes."""
    generator = torch.Generator().manual_seed(seed)

    def captions():
        ids = torch.zeros(size, length, dtype=torch.long)
        for row in ids:
            count = int(torch.randint(6, length, (1,), generator=generator))
            row[0], row[1:count] = START, torch.randint(5, WORDS, (count - 1,), generator=generator)
        return ids
    first, second = captions(), captions()
    replaced = (torch.arange(size) % 3 == 1).long()
    groups = torch.zeros(size, length, dtype=torch.long)
    groups[::2, 1:3], groups[::4, 4:6] = 1, 2
    is_masked = (torch.rand(first.shape, generator=generator) < 0.3) & (first > START)
    pids = torch.arange(size)
    pids[-1] = pids[0]
    images = torch.randn(size, 3, 1, 1, generator=generator) + 0.1 * torch.randn(size, 3, 48, 32, generator=generator)
    return {'pids': pids, 'image_ids': torch.arange(size), 'images': images,
            'second_images': images + 0.1 * torch.randn(images.shape, generator=generator),
            'caption_ids': torch.where(replaced[:, None] == 1, second, first), 'own_caption_ids': first,
            'replaced': replaced, 'attributes_mask': groups, 'own_mlm_ids': first.masked_fill(is_masked, MASK),
            'own_mlm_labels': first.masked_fill(~is_masked, -100),
            'own_mrtd_ids': first.masked_fill(is_masked.flip(0) & (first > START), MASK)}


def make_step(model, lr=1e-3):
    return Step(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr))


@pytest.fixture(scope='module', params=[RASA, MARS], ids=['rasa', 'mars'])
def trained(request):
    """A model after one step, with draws that depend on nothing, and its results on another batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'multinomial', lambda weights, _: weights.argmax(dim=1, keepdim=True))
        patch.setattr(torch, 'rand', lambda size, **_: torch.linspace(0.95, 0.02, math.prod(size)).view(size))
        model = tiny(request.param, pitm_loss_weight=0.7, mlm_loss_weight=1.3, prd_loss_weight=0.4)
        make_step(model, 1e-2)(batch(seed=1))
        model.eval()
        with torch.no_grad():
            return model, batch(), model(batch()), request.param


def joint(model, ids, mask, images, momentum=False):
    """All layers of BERT one after the other, without the shared code of TextEncoder."""
    text, vision = ((model.text_encoder_m, model.visual_encoder_m) if momentum
                    else (model.text_encoder, model.visual_encoder))
    x, hidden, tokens = text.bert.embeddings(ids), (1.0 - mask[:, None, None].float()) * -10000.0, vision(images)
    for layer in text.bert.encoder.layer:
        x = layer.attention(x, x, hidden)
        if hasattr(layer, 'crossattention'):
            x = layer.crossattention(x, tokens)
        x = layer.output(layer.intermediate(x), x)
    return x


def embeddings(model, images, ids, end=''):
    vision, text = getattr(model, f'visual_encoder{end}'), getattr(model, f'text_encoder{end}')
    image = getattr(model, f'vision_proj{end}')(vision(images)[:, 0])
    text = getattr(model, f'text_proj{end}')(text.encode(ids, (ids != 0).long())[:, 0])
    return F.normalize(image, dim=1), F.normalize(text, dim=1)


@torch.no_grad()
def plain_losses(model, samples):
    """Compute all losses in plain loops, without weights."""
    ids, first, pids = samples['caption_ids'], samples['own_caption_ids'], samples['pids'].tolist()
    mask, first_mask, size, images = ids != 0, first != 0, len(ids), samples['images']
    tau, alpha = model.temp, 0.4
    online, momentum = embeddings(model, images, ids), embeddings(model, samples['second_images'], ids, '_m')
    keys = [torch.cat([rows, queue.t()]) for rows, queue in zip(momentum, (model.image_queue, model.text_queue))]
    key_pids = pids + model.idx_queue[0].tolist()

    def table(row, soft_row, columns):
        total = 0
        for number in range(size):
            positives = torch.tensor([float(pid == pids[number]) for pid in key_pids])
            soft = torch.softmax(columns @ soft_row[number] / tau, dim=0)
            target = alpha * soft + (1 - alpha) * positives / positives.sum()
            scores = columns @ row[number] / tau
            total -= (target * (scores - scores.logsumexp(dim=0))).sum()
        return total / size
    losses = {'cl': sum(table(online[i], momentum[i], keys[j]) for i in (0, 1) for j in (0, 1)) / 4}

    def most_similar(row, columns):
        scores = [[float(a @ b) if pid != other else -9.0 for b, other in zip(columns, pids)]
                  for a, pid in zip(row, pids)]
        return [max(range(size), key=line.__getitem__) for line in scores]
    drawn_images, drawn_texts = most_similar(online[1], momentum[0]), most_similar(online[0], momentum[1])
    pairs = [(i, i, 1) for i in range(size)] + [(i, drawn_images[i], 0) for i in range(size)]
    pairs += [(drawn_texts[i], i, 0) for i in range(size)]
    tokens = [joint(model, ids[text:text + 1], mask[text:text + 1], images[image:image + 1])[0]
              for text, image, _ in pairs]

    def entropy(layer, token, label):
        return -torch.log_softmax(layer(token), dim=-1)[label]
    losses['pitm'] = sum(entropy(model.itm_head, x[0], label) for x, (*_, label) in zip(tokens, pairs)) / len(pairs)
    losses['prd'] = sum(entropy(model.prd_head, x[0], label) for x, label in zip(tokens, samples['replaced'])) / size

    by_caption = []
    for x, (text, _, label) in zip(tokens, pairs):
        groups = samples['attributes_mask'][text]
        means = [x[groups == number].mean(dim=0) for number in range(1, int(groups.max()) + 1)]
        if means:
            by_caption.append(sum(entropy(model.itm_head, mean, label) for mean in means) / len(means))
    losses['attribute'] = sum(by_caption) / len(by_caption)

    predict, predict_m = (model.text_encoder.predict, model.text_encoder_m.predict)
    scores = predict(joint(model, samples['own_mlm_ids'], first_mask, images))
    soft = predict_m(joint(model, samples['own_mlm_ids'], first_mask, samples['second_images'], True))
    over_sequence, terms = torch.log_softmax(scores, dim=1), []
    for row, position in (samples['own_mlm_labels'] != -100).nonzero().tolist():
        word = first[row, position]
        hard = -torch.log_softmax(scores[row, position], dim=0)[word]
        distilled = -(torch.softmax(soft[row, position], dim=0) * over_sequence[row, position]).sum()
        terms.append((1 - alpha) * hard + alpha * distilled)
    losses['mlm'] = sum(terms) / len(terms)

    scores = predict_m(joint(model, samples['own_mrtd_ids'], first_mask, samples['second_images'], True))
    uniform = torch.linspace(0.95, 0.02, first.numel()).view(first.shape)
    drawn, labels = first.clone(), {}
    for row, position in first_mask.nonzero().tolist():
        sums = scores[row, position].softmax(dim=0).cumsum(dim=0)
        word = int((sums <= uniform[row, position] * sums[-1]).sum())
        if position:
            drawn[row, position] = word
            if word not in (0, START):
                labels[row, position] = int(word != first[row, position])
    x = joint(model, drawn, first_mask, images)
    losses['mrtd'] = sum(entropy(model.mrtd_head, x[place], label) for place, label in labels.items()) / len(labels)
    return losses


def test_losses_equal_plain_loops(trained):
    model, samples, results, loss_names = trained
    weights = {'cl': 0.5, 'pitm': 0.7, 'mlm': 1.3, 'prd': 0.4, 'mrtd': 0.5, 'attribute': 2.0}
    expected = plain_losses(model, samples)
    for name in set(loss_names.split('+')) - {'mae'}:
        assert results[f'{name}_loss'].item() == pytest.approx(weights[name] * float(expected[name]), rel=2e-5), name
    assert all(torch.isfinite(value) for value in results.values())
    layers = model.text_encoder.bert.encoder.layer
    assert [hasattr(layer, 'crossattention') for layer in layers] == [loss_names == MARS] * 2 + [True] * 2


def test_restoration_equals_a_plain_loop(trained):
    model, samples, results, loss_names = trained
    if loss_names == RASA:
        assert 'mae_loss' not in results
        return
    vit, errors, patch_count, kept_count = model.visual_encoder, [], 6, 1
    noise = torch.linspace(0.95, 0.02, len(samples['pids']) * patch_count).view(-1, patch_count)
    with torch.no_grad():
        for image, ids, row in zip(samples['images'], samples['caption_ids'], noise):
            kept = sorted(row.tolist().index(value) for value in sorted(row.tolist())[:kept_count])
            x = vit.patch_embed(image[None])[0] + vit.pos_embed[0, 1:]
            x = torch.cat([vit.cls_token[0] + vit.pos_embed[0, :1], x[kept]])[None]
            for block in vit.blocks:
                x = block(x)
            tokens, full = vit.norm(x)[0], model.mask_token[0].repeat(1 + patch_count, 1)
            full[0], full[[1 + number for number in kept]] = tokens[0], tokens[1:]
            x = (full + model.visual_decoder_pos_embed[:1 + patch_count])[None]
            text = model.text_encoder.encode(ids[None], (ids != 0).long()[None])
            for block in model.visual_decoder.blocks:
                x = x + block.attn1(block.norm1(x), block.norm1(x))
                x = x + block.attn2(block.norm2(x), text)
                values, gates = block.ff.net[0].l(block.norm3(x)).chunk(2, dim=-1)
                x = x + block.ff.net[2](values * F.gelu(gates))
            restored = model.decoder_pred(x)[0, 1:]
            for number in set(range(patch_count)) - set(kept):
                top, left = 16 * (number // 2), 16 * (number % 2)
                pixels = image[:, top:top + 16, left:left + 16].permute(1, 2, 0).flatten()
                errors.append((restored[number] - pixels).square().mean())
    assert results['mae_loss'].item() == pytest.approx(float(sum(errors) / len(errors)), rel=1e-5)


@pytest.mark.parametrize('loss_names', ['pitm', 'mlm', 'prd', 'mrtd', 'mae', 'attribute', MARS + '+id'])
def test_a_loss_falls_on_a_fixed_batch(loss_names, monkeypatch):
    monkeypatch.setattr(torch, 'multinomial', lambda weights, _: weights.argmax(dim=1, keepdim=True))
    monkeypatch.setattr(torch, 'rand', lambda size, **_: torch.linspace(0.95, 0.02, math.prod(size)).view(size))
    # A soft target has a loss above 0, and mlm's soft part a normalization over positions, so that it has no minimum.
    model, samples = tiny(loss_names, softlabel_ratio=0.0, moco_momentum=1.0, full_ca=True).train(), batch(4)
    step = make_step(model, lr=3e-4 if loss_names == 'pitm' else 1e-3)      # pitm needs half as many steps with it
    results = (step(samples) for _ in range(120))
    assert_falls((total_loss(values) - values.get('cl_loss', 0) for values in results), 0.3)


def test_a_batch_of_one_identity_has_pairs_only():
    results = tiny()({**batch(), 'pids': torch.zeros(6, dtype=torch.long)})
    assert all(torch.isfinite(value) for value in results.values())


def test_captions_without_attributes_do_not_count():
    samples = {**batch(), 'attributes_mask': torch.zeros(6, 14, dtype=torch.long)}
    assert tiny('attribute')(samples)['attribute_loss'] == 0


def test_negatives_are_of_other_identities_by_the_softmax():
    logits, pids = torch.tensor([[5., 1., 2.], [0., 9., 0.], [1., 1., 1.]]), torch.tensor([1, 2, 1])
    expected = [[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]]
    assert objectives.negative_probabilities(logits, pids).tolist() == expected


def test_negatives_are_random_in_the_first_epochs(monkeypatch):
    """Then each other identity of the batch is equally probable, however similar the samples are."""
    model, samples, tables = tiny('pitm+attribute', random_negative_epochs=2), batch(), []
    draw = torch.multinomial
    monkeypatch.setattr(torch, 'multinomial', lambda table, count: tables.append(table) or draw(table, count))
    for epoch in (2, 3):
        for head in model.heads:
            head.before_step(epoch, 1, 9)
        model(samples)
    pids = samples['pids']
    is_other = (pids[:, None] != pids).float()
    uniform = is_other / is_other.sum(dim=1, keepdim=True)
    assert len(tables) == 4 and all(torch.allclose(table, uniform) for table in tables[:2])
    assert not any(torch.allclose(table, uniform) for table in tables[2:])


def test_replaced_tokens_and_their_labels():
    ids = torch.tensor([[START, 7, 8, 9, 0, 0]])
    drawn = torch.tensor([[50, 7, START, 0, 60, 61]])
    replaced, labels = replace_tokens(ids, (ids != 0).long(), drawn)
    assert replaced.tolist() == [[START, 7, START, 0, 0, 0]] and labels.tolist() == [[-100, 0, -100, -100, -100, -100]]
    replaced, labels = replace_tokens(ids, (ids != 0).long(), torch.tensor([[1, 7, 9, 9, 9, 9]]))
    assert labels.tolist() == [[-100, 0, 1, 0, -100, -100]]


def test_tokens_are_drawn_by_their_probabilities():
    torch.manual_seed(0)
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2])
    drawn = draw_tokens(probabilities.log().expand(1, 20000, -1), torch.rand(1, 20000)).flatten()
    counts = torch.bincount(drawn, minlength=5) / 20000
    assert counts[0] == counts[2] == 0 and (counts - probabilities).abs().max() < 0.012
    assert draw_tokens(torch.zeros(1, 1, 4), torch.tensor([[1.0]])).item() == 3


def test_soft_targets_begin_in_the_first_epoch():
    model = tiny()
    heads = [head for head in model.heads if head.names[0] in ('cl', 'mlm')]
    for epoch, step, expected in ((1, 1, 0.0), (1, 6, 0.2), (1, 10, 0.36), (2, 1, 0.4)):
        for head in heads:
            head.before_step(epoch, step, 10)
            assert head.alpha == pytest.approx(expected)


def test_the_momentum_encoder_follows_before_the_forward_pass_and_the_queue_after_the_step():
    model = tiny(RASA, moco_momentum=0.75)
    step = make_step(model)
    step(batch(seed=1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step(batch())
    for name, value in model.named_parameters():
        if '_m.' in name:
            expected = 0.75 * before[name] + 0.25 * before[name.replace('_m.', '.', 1)]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    assert model.queue_ptr.item() == 12 % 7
    assert sorted(model.idx_queue[0].tolist()) == sorted([0] + batch()['pids'].tolist())


def test_losses_share_the_passes(monkeypatch):
    """Eight passes of BERT (three of them momentum) and three of the ViT, as in the reference implementation."""
    model, passes = tiny(), []
    for name in ('visual_encoder', 'visual_encoder_m'):
        getattr(model, name).register_forward_hook(lambda *_, name=name: passes.append(name))
    for name in ('text_encoder', 'text_encoder_m'):
        bert = getattr(model, name).bert
        bert.embeddings.register_forward_hook(lambda *_, name=name: passes.append(name))
    model(batch())
    counts = {name: passes.count(name) for name in passes}
    assert counts == {'visual_encoder': 2, 'visual_encoder_m': 1, 'text_encoder': 5, 'text_encoder_m': 3}


@pytest.mark.parametrize('loss_names', MARS.split('+'))
def test_a_loss_alone_equals_the_loss_among_others(loss_names):
    """A loss does not depend on the others but by random numbers, which are drawn alike here."""
    everything, alone = tiny(MARS), tiny(loss_names, full_ca=True)
    weights = everything.state_dict()
    alone.load_state_dict({name: weights[name] for name in alone.state_dict()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'multinomial', lambda rows, _: rows.argmax(dim=1, keepdim=True))
        patch.setattr(torch, 'rand', lambda size, **_: torch.linspace(0.95, 0.02, math.prod(size)).view(size))
        results, expected = alone(batch())[f'{loss_names}_loss'], everything(batch())[f'{loss_names}_loss']
    torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-6)


# -- Memory, several forms of training -------------------------------------------------------------------------------

def test_grad_checkpoint_changes_nothing():
    results = []
    for switch in (False, True):
        model = tiny(grad_checkpoint=switch).train()
        torch.manual_seed(1)
        loss = total_loss(model(batch()))
        loss.backward()
        results.append((loss.item(), *(p.grad.norm().item() for p in model.parameters() if p.grad is not None)))
    assert model.visual_decoder.grad_checkpoint and not model.text_encoder_m.grad_checkpoint
    assert results[0] == pytest.approx(results[1], rel=1e-4, abs=1e-7)


def test_a_resumed_run_continues_to_the_last_bit(tmp_path):
    def run(model, seeds):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        checkpointer = Checkpointer(model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
                                    save_dir=str(tmp_path), save_to_disk=True)
        if seeds[0]:
            checkpointer.resume(str(tmp_path / 'last.pth'))
        step = Step(model.train(), optimizer)
        for seed in seeds:
            torch.manual_seed(seed)
            step(batch(seed=seed))
        checkpointer.save('last', training_state=True, epoch=1, step=1)
        checkpointer.save('best', epoch=1)
        return model
    uninterrupted = run(tiny(), [0, 1, 2]).state_dict()
    run(tiny(), [0, 1])
    resumed = run(tiny(), [2])
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, uninterrupted[name]), name
    last, best = (torch.load(tmp_path / f'{name}.pth')['model'] for name in ('last', 'best'))
    removed = {name for name in last if name not in best}
    assert removed == resumed.training_only
    assert {name.split('.')[0] for name in removed} == {
        'visual_encoder_m', 'vision_proj_m', 'text_encoder_m', 'text_proj_m', 'image_queue', 'text_queue', 'idx_queue',
        'queue_ptr'}
    load_weights(tiny(), best)


@pytest.mark.skipif(not supports_cpu_sharding(), reason="this PyTorch's FSDP2 needs GPUs")
def test_several_processes_cannot_shard_its_parameters():
    with pytest.raises(UserError, match="--shard does not support the loss 'cl', which changes parameters"):
        validate_sharding(tiny())


def test_half_precision_stays_close(monkeypatch):
    monkeypatch.setattr(torch, 'multinomial', lambda weights, _: weights.argmax(dim=1, keepdim=True))
    losses = []
    for amp in ('off', 'bf16'):
        model = tiny(amp=amp).eval()
        torch.manual_seed(1)
        losses.append([value.item() for name, value in model(batch()).items() if name.endswith('_loss')])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


# -- The backbone and its weights --------------------------------------------------------------------------------------

@functools.lru_cache
def published_model(full_ca):
    args = options(backbone='albef', loss_names=MARS if full_ca else RASA, img_size=(384, 384), moco_queue=65536,
                   lr=1e-5, lr_factor=10.0, weight_decay=0.02)
    with torch.device('meta'):
        return args, RetrievalModel(args, 1, Albef(read_shape('albef-base'), (384, 384), full_ca))


@pytest.mark.parametrize('name', golden_files('official_mars_*'))
def test_the_published_size_has_the_official_names_shapes_and_rates(name):
    description, (args, model) = golden_json(name), published_model(True)
    entries = {name: [list(value.shape), str(value.dtype).removeprefix('torch.')]
               for name, value in model.state_dict().items()}
    assert entries == description['state_dict']
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = {names[id(parameter)]: [group['lr'], group['weight_decay']]
                for group in parameter_groups(args, model) for parameter in group['params']}
    expected = description['lr_and_decay']
    assert settings.keys() == expected.keys()
    assert all(settings[name] == pytest.approx(rates, rel=1e-9) for name, rates in expected.items())
    assert sum(map(torch.numel, model.parameters())) == description['num_parameters']
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == description['num_trainable']


def test_rasa_has_cross_attention_in_the_upper_layers():
    state = published_model(False)[1].state_dict()
    fusing = [name for name in state if name.startswith('text_encoder.') and '.crossattention.' in name]
    layers = {int(name.split('.')[4]) for name in fusing}
    assert layers == set(range(6, 12)) and 'mask_token' not in state


@pytest.mark.parametrize('full_ca', [False, True])
def test_a_shape_is_read_off_its_weights(full_ca):
    assert shape_of(published_model(full_ca)[1].state_dict()) == read_shape('albef-base')


def test_position_tables_are_resized():
    table = torch.randn(1, 1 + 16, 8)
    assert torch.equal(resize_pos_embed(table, (4, 4)), table)
    resized = resize_pos_embed(table, (6, 3))
    expected = F.interpolate(table[:, 1:].view(1, 4, 4, 8).permute(0, 3, 1, 2), (6, 3), mode='bicubic')
    torch.testing.assert_close(resized[0, 1:], expected[0].flatten(1).t())
    assert torch.equal(resized[:, 0], table[:, 0]) and resized.shape == (1, 19, 8)


def test_training_starts_from_albefs_checkpoint(tmp_path, caplog):
    """Its encoders, momentum encoder, temperature and matching head; not the queue of another size."""
    source = tiny(RASA + '+id', img_size=(64, 64), moco_queue=9)
    with torch.no_grad():
        for value in source.state_dict().values():
            value.add_(torch.randn(value.shape).mul(0.1).to(value.dtype))
    state = {name: value for name, value in source.state_dict().items() if name != 'idx_queue'}
    path = str(tmp_path / 'ALBEF.pth')
    torch.save({'model': state}, path)
    caplog.set_level('INFO')
    started = tiny(MARS, pretrain_choice=path)
    own = started.state_dict()
    for name in ('text_encoder.bert.encoder.layer.2.crossattention.self.key.weight', 'temp', 'itm_head.weight',
                 'text_encoder_m.bert.embeddings.word_embeddings.weight', 'vision_proj_m.weight'):
        assert torch.equal(own[name], state[name]), name
    for name in ('visual_encoder.pos_embed', 'visual_encoder_m.pos_embed'):
        assert torch.equal(own[name], resize_pos_embed(state[name], (3, 2)))
    new = 'bert.encoder.layer.0.crossattention.self.key.weight'
    assert torch.equal(own[f'text_encoder_m.{new}'], own[f'text_encoder.{new}'])
    assert started.image_queue.shape[1] == 7 and 'skipped: image_queue, text_queue' in caplog.text

    init_from_checkpoint(started, save_best(tiny(MARS), tmp_path))      # has no momentum encoder
    assert torch.equal(started.vision_proj_m.weight, started.vision_proj.weight)


def save_best(model, folder):
    Checkpointer(model, save_dir=str(folder), save_to_disk=True).save('best', epoch=1)
    return str(folder / 'best.pth')


def test_a_released_checkpoint_gives_its_options(tmp_path):
    for loss_names, full_ca in ((RASA, False), (MARS, True)):
        state = tiny(loss_names).state_dict()
        released = Albef.published_options(state)
        assert released == {'loss_names': loss_names, 'full_ca': full_ca, 'moco_queue': 7, 'amp': 'off',
                            'pretrain_choice': 'albef-base', 'preparation': 'albef', 'img_size': (384, 384),
                            'text_length': 75}
        args = options(**{**released, 'backbone': 'albef', 'training': False, 'img_size': (48, 32)})
        model = build_model(args, 1, state)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('change, message', [
    (dict(loss_names='cl+detail'), "the loss 'detail' reads image attention and ALBEF's encoders give no attention"),
    (dict(loss_names='cl+itm'), "unknown loss 'itm' for --backbone albef: it needs --backbone aptm"),
    (dict(img_size=(50, 32)), '--img_size 50 32: height and width of the images must be multiples of 16'),
    (dict(pretrain_choice='scratch:albef-tinny'), 'unknown ALBEF shape .*did you mean albef-tiny'),
    (dict(pretrain_choice='no/such.pth'), 'there is no file no/such.pth; the backbone albef takes a checkpoint'),
    (dict(pretrain_choice='albef-base'), 'there are no weights of ALBEF at .*ALBEF.pth: put https://'),
    (dict(pretrain_choice='mars.pth', full_ca=False), 'mars.pth has cross-attention in all layers of BERT, and'),
    (dict(pretrain_choice='lacking.pth'), "does not hold the parameters of ALBEF's encoders .missing: text"),
    (dict(freeze_conv1=True), '--freeze_conv1 is for CLIP'),
    (dict(caption_masking='inplace'), '--caption_masking inplace .* CLIP'),
    (dict(micro_batch=2), "--micro_batch cannot split a batch for the loss 'cl': ALBEF's losses share passes"),
])
def test_bad_input_is_one_sentence(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    if change.get('pretrain_choice', '').endswith('s.pth'):
        torch.save({'model': tiny(MARS).state_dict()}, 'mars.pth')
    if change.get('pretrain_choice') == 'lacking.pth':
        state = tiny(RASA).state_dict()
        torch.save({'model': {name: value for name, value in state.items() if 'text_proj' not in name}}, 'lacking.pth')
    with pytest.raises(UserError, match=message):
        tiny(**change)
