"""AGM's attention-guided masking: probabilities and draws against plain loops, and its use in a model."""
import math

import pytest
import torch

from model import build_model
from model.build import total_loss
from model.heads.agm import attention_to_content, mask_attended_tokens, masking_probabilities
from tests.support import golden_archive, golden_json, options
from utils.options import get_args

MASK, START, END = 509, 510, 511


def captions(lengths, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in zip(ids, lengths):
        row[0], row[length + 1] = START, END
        row[1:length + 1] = torch.randint(1, MASK, (length,), generator=generator)
    return ids


def attention_maps(batch, width, seed=1):
    maps = torch.randn(batch, width, width, generator=torch.Generator().manual_seed(seed)) / 2
    return maps.masked_fill(torch.ones(width, width).triu(1).bool(), float('-inf')).softmax(-1)


def plain_probabilities(ids, attention):
    """AGM's formula for one caption."""
    end = ids.index(END)
    content = [position for position in range(len(ids)) if 0 < ids[position] < MASK]
    exponents = {position: math.exp(attention[end][position] / 0.02) for position in content}
    return [0.1 + 0.9 * 0.95 * exponents[position] / sum(exponents.values()) if position in content else 0.0
            for position in range(len(ids))]


def test_probabilities_follow_the_formula():
    ids = captions([5, 17, 1, 9])
    attention = attention_maps(4, 20)
    probabilities = masking_probabilities(attention_to_content(ids, attention, MASK))
    for row, caption, caption_map in zip(probabilities, ids.tolist(), attention.double().tolist()):
        assert row.tolist() == pytest.approx(plain_probabilities(caption, caption_map), rel=1e-4, abs=1e-7)


def test_a_caption_without_content_is_not_masked():
    ids = captions([0, 3])
    torch.manual_seed(0)
    masked, labels = mask_attended_tokens(ids, attention_maps(2, 20), MASK)
    assert torch.equal(masked[0], ids[0]) and not labels[0].any() and labels[1].any()


def test_draws_follow_the_probabilities_and_the_rates():
    ids = captions([8]).expand(20000, -1)
    attention = attention_maps(1, 20).expand(20000, -1, -1)
    torch.manual_seed(0)
    masked, labels = mask_attended_tokens(ids, attention, MASK, 0.7, 0.2)
    selected = labels > 0
    probabilities = torch.tensor(plain_probabilities(ids[0].tolist(), attention[0].double().tolist()))
    none = (1 - probabilities).prod()                        # then the most attended token is selected
    expected = probabilities.clone()
    expected[probabilities.argmax()] += none
    assert torch.allclose(selected.float().mean(0), expected.float(), atol=0.012)
    assert selected.any(dim=1).all()
    assert torch.equal(labels[selected], ids[selected]) and torch.equal(masked[~selected], ids[~selected])
    forced = none / expected.sum()                           # this fraction always becomes the mask token
    replaced = masked[selected]
    assert (replaced == MASK).float().mean().item() == pytest.approx(float(0.7 + 0.3 * forced), abs=0.012)
    assert (replaced == labels[selected]).float().mean().item() == pytest.approx(float(0.2 * (1 - forced)), abs=0.012)
    assert replaced.min() >= 1 and replaced.max() == MASK    # never start, end or padding
    assert len(replaced.unique()) > 400


def test_at_least_the_most_attended_token_is_masked(monkeypatch):
    ids = captions([6])
    attention = attention_maps(1, 20)
    monkeypatch.setattr(torch, 'rand', lambda *shape, **_: torch.full(shape[0], 0.999))
    masked, labels = mask_attended_tokens(ids, attention, MASK)
    position = int(attention[0, 7, 1:7].argmax()) + 1
    assert labels.nonzero().tolist() == [[0, position]] and masked[0, position] == MASK
    attention[:] = 1 / 20                                    # all equal: only one token is masked
    assert (mask_attended_tokens(ids, attention, MASK)[1] > 0).sum() == 1


def test_rates_of_one(monkeypatch):
    ids, attention = captions([12]), attention_maps(1, 20)
    monkeypatch.setattr(torch, 'rand', lambda *shape, **_: torch.zeros(shape[0]))
    assert ((mask_attended_tokens(ids, attention, MASK, 1.0, 0.0)[0] == MASK).sum()) == 12
    assert torch.equal(mask_attended_tokens(ids, attention, MASK, 0.0, 1.0)[0], ids)


# -- In a model

@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('agm_tiny'), tmp_path_factory.mktemp('agm') / 'clip.pt')


def small_model(archive, loss_names='sdm+mlm+id+cmt', **changes):
    torch.manual_seed(0)
    settings = dict(loss_names=loss_names, pretrain_choice=archive, img_size=(96, 32), text_length=20, vocab_size=512,
                    cmt_depth=1, mlm_masking='attention')
    return build_model(options(**{**settings, **changes}), 6)


def small_batch():
    torch.manual_seed(1)
    ids = captions([7, 12, 4, 16])
    return {'pids': torch.arange(4), 'image_ids': torch.arange(4), 'images': torch.randn(4, 3, 96, 32),
            'caption_ids': ids}


def record_text_passes(model):
    """A list that gets (ids, whether gradients are enabled) of each later text pass."""
    passes = []
    model.base_model.token_embedding.register_forward_hook(
        lambda _, inputs, __: passes.append((inputs[0], torch.is_grad_enabled())))
    return passes


def expected_masking(model, batch):
    """The masked ids and labels that the model draws with seed 5."""
    with torch.no_grad():
        _, attention = model.base_model.encode_text(batch['caption_ids'], need_map=True)
    torch.manual_seed(5)
    return mask_attended_tokens(batch['caption_ids'], attention, MASK)


def assert_same_results(results, expected):
    expected = {name: value.item() for name, value in expected.items()}
    assert {name: value.item() for name, value in results.items()} == pytest.approx(expected, rel=1e-5)


def test_clean_masks_a_copy_by_the_attention_of_the_unmasked_pass(archive):
    model, batch = small_model(archive), small_batch()
    masked, labels = expected_masking(model, batch)
    passes = record_text_passes(model)
    torch.manual_seed(5)
    results = model(batch)
    assert len(passes) == 2 and all(has_grad for _, has_grad in passes)
    assert torch.equal(passes[0][0], batch['caption_ids']) and torch.equal(passes[1][0], masked)
    # Random masking would compute the same from this copy.
    other = small_model(archive, mlm_masking='random')
    assert_same_results(results, other({**batch, 'mlm_ids': masked, 'mlm_labels': labels}))


def test_attention_that_another_head_reads_is_not_computed_twice(archive):
    model, batch = small_model(archive, 'sdm+mlm'), small_batch()
    model.needs = model.needs | {'image_attention', 'text_attention'}
    passes = record_text_passes(model)
    model(batch)
    assert len(passes) == 2    # unmasked and masked, as with random masking


@pytest.mark.parametrize('loss_names', ['sdm+mlm+id+cmt', 'sdm+id'])
def test_inplace_masks_for_every_loss(archive, loss_names):
    model, batch = small_model(archive, loss_names, caption_masking='inplace'), small_batch()
    masked, labels = expected_masking(model, batch)
    passes = record_text_passes(model)
    torch.manual_seed(5)
    results = model(batch)
    assert [has_grad for _, has_grad in passes] == [False, True]
    assert torch.equal(passes[0][0], batch['caption_ids']) and torch.equal(passes[1][0], masked)
    other = small_model(archive, loss_names, mlm_masking='random', caption_masking='inplace')
    assert_same_results(results, other({**batch, 'caption_ids': masked, 'mlm_labels': labels}))


@pytest.mark.parametrize('masking', ['clean', 'inplace'])
def test_the_text_encoder_gets_gradients_in_half_precision(archive, masking):
    """The pass without gradient must not leave its casts of the weights in autocast's cache."""
    model, batch = small_model(archive, 'sdm+mlm', caption_masking=masking, amp='bf16'), small_batch()
    total_loss(model(batch)).backward()
    assert model.base_model.transformer.resblocks[0].mlp.c_fc.weight.grad.norm() > 0
    assert model.base_model.text_projection.grad.norm() > 0


def test_the_seed_decides_the_draw(archive):
    model, batch = small_model(archive).eval(), small_batch()

    def loss(seed):
        torch.manual_seed(seed)
        return model(batch)['mlm_loss'].item()
    assert loss(1) == loss(1) != loss(2)


def test_evaluation_embeds_unmasked_captions(archive):
    model, batch = small_model(archive, caption_masking='inplace'), small_batch()
    other = small_model(archive, mlm_masking='random')
    assert torch.equal(model.encode_text(batch['caption_ids']), other.encode_text(batch['caption_ids']))


def test_the_command(archive):
    args = get_args(['--name', 'agm', '--MLM', '--loss_names', 'sdm+mlm+id+cmt', '--mlm_masking', 'attention'])
    assert (args.caption_masking, args.mlm_masking) == ('inplace', 'attention')
