"""Second captions in training: the loss by plain re-computation, its schedule, and what cannot train with it."""
import pytest
import torch

from model.heads.icl import SecondCaptions
from tests.support import compute_gradients, golden_archive, golden_json, options, small_batch, small_model
from utils.errors import UserError


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


def triplet_alignment(image, text, pids, tau, margin):
    """RDE's equation 4 in float64, with loops: one loss per pair."""
    image, text = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (image, text))
    cosine, losses = text @ image.t(), []
    for i in range(len(pids)):
        loss = 0.0
        for row in (cosine[i], cosine[:, i]):
            positives = row[pids == pids[i]]
            weights = (positives / tau).softmax(0).detach()
            negatives = tau * (row[pids != pids[i]] / tau).exp().sum().log()
            loss = loss + torch.relu(margin - (weights * positives).sum() + negatives)
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.parametrize('loss_names', ['aug', 'tal+tse+aug'])
def test_loss_by_plain_computation(archive, loss_names):
    model, batch = small_model(archive, loss_names, tau=0.05, margin=0.2).eval(), small_batch()
    batch['pids'][4], batch['clean'] = batch['pids'][1], torch.tensor([1., 1., 0., 1., 0., 1.])
    results = model(batch)
    images, texts = model.embed_image_all(batch['images']), model.embed_text_all(batch['second_caption_ids'])
    assert set(texts) == ({'BGE', 'TSE'} if 'tse' in loss_names else {'BGE'})
    for name, loss_name in {'BGE': 'aug_loss', 'TSE': 'tse_aug_loss'}.items():
        if name in texts:
            losses = triplet_alignment(images[name], texts[name], batch['pids'], 0.05, 0.2)
            expected = 0.97 * (losses * batch['clean']).sum()
            assert results[loss_name].item() == pytest.approx(expected.item(), rel=1e-4) and expected > 0, name
    assert ('tse_aug_loss' in results) == ('tse' in loss_names)


def test_all_embeddings_are_those_of_the_batch_and_of_evaluation(archive):
    model, batch = small_model(archive, 'tal+tse').eval(), small_batch()
    encoded = model.encode(batch)
    texts = encoded.embed_text_all(batch['caption_ids'])
    assert torch.equal(texts['BGE'], encoded.text) and torch.equal(texts['TSE'], encoded.extra_embeddings['TSE'][1])
    for side, images in encoded.image_embeddings.items():
        assert torch.equal(images, model.embed_image_all(batch['images'])[side])
    normalized = [torch.nn.functional.normalize(value, dim=1) for value in texts.values()]
    assert torch.equal(model.encode_text(batch['caption_ids']), torch.cat(normalized, dim=1))


def test_the_caption_itself_is_trained_as_without_second_captions(archive):
    batch = small_batch()
    with_aug, without = (small_model(archive, names).eval()(batch) for names in ('tal+tse+aug', 'tal+tse'))
    assert all(torch.equal(with_aug[name], value) for name, value in without.items())


@pytest.mark.parametrize('epoch, weight', [(1, 0.97), (2, 0.94), (29, 0.13), (30, 0.1), (31, 0.1), (60, 0.1)])
def test_weight_decreases_with_the_epoch(archive, epoch, weight):
    model, batch = small_model(archive, 'aug').eval(), small_batch()
    first = float(model(batch)['aug_loss'].detach())
    head, = model.heads
    head.before_step(epoch, 1, 10)
    assert float(model(batch)['aug_loss'].detach()) == pytest.approx(first * weight / 0.97, rel=1e-5)


def test_second_captions_have_a_gradient_of_their_own(archive):
    model, batch = small_model(archive, 'aug'), small_batch()
    compute_gradients(model, batch)
    before = model.base_model.token_embedding.weight.grad.clone()
    other = {**batch, 'second_caption_ids': batch['second_caption_ids'].roll(1, dims=0)}
    compute_gradients(model, other)
    assert not torch.allclose(before, model.base_model.token_embedding.weight.grad)
    unread = {**batch, 'caption_ids': batch['caption_ids'].roll(1, dims=0)}
    compute_gradients(model, unread)      # the captions themselves have no part in the loss
    torch.testing.assert_close(before, model.base_model.token_embedding.weight.grad)


def test_micro_batches_are_refused(archive):
    with pytest.raises(UserError, match="--micro_batch cannot split a batch for the loss 'aug': it embeds the second "
                                        'captions of the whole batch'):
        small_model(archive, 'tal+aug', micro_batch=2)
    assert SecondCaptions(options(loss_names='aug'), None).distributed_unsupported() is None
