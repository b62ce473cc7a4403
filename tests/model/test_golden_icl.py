"""ICL's training with second captions against the reference implementation: embeddings, losses and gradients."""
import pytest
import torch

from model.build import total_loss
from model.heads.icl import SecondCaptions
from tests.support import golden_batch, golden_files, golden_model

RELATIVE = 1e-5
of_files = pytest.mark.parametrize('file', golden_files('icl_*', excluded=('icl_thi_*',)))


def reference(file, tmp_path, loss_names='tal+tse+aug'):
    """(model in eval mode, batch, vectors, description)."""
    model, vectors, description = golden_model(file, tmp_path, loss_names=loss_names)
    batch = golden_batch(vectors)
    names = {'label_hat': 'clean', 'rcaption_ids': 'second_caption_ids'}
    return model, {names.get(name, name): value for name, value in batch.items()}, vectors, description


def assert_close(ours, official, what=None):
    assert float((ours.detach() - official).norm()) <= RELATIVE * float(official.norm()) + 1e-7, what


@of_files
@torch.no_grad()
def test_second_captions_have_both_embeddings(file, tmp_path):
    model, batch, vectors, _ = reference(file, tmp_path)
    encoded = model.encode(batch)
    second = encoded.embed_text_all(batch['second_caption_ids'])
    for name, embedding, official in (('BGE', 'embedding', 'bge'), ('TSE', 'tse', 'tse')):
        assert_close(second[name], vectors[f'out/augmented_{embedding}'], name)
        assert_close(encoded.image_embeddings[name], vectors[f'out/image_{embedding}'], name)
        text, image = (torch.nn.functional.normalize(rows, dim=1)
                       for rows in (second[name], encoded.image_embeddings[name]))
        assert_close(text @ image.t(), vectors[f'out/similarity_{official}_aug'], name)


@of_files
def test_pairs_are_divided_by_captions_alone(file, tmp_path):
    model, batch, vectors, _ = reference(file, tmp_path)
    losses = {}
    for head in model.heads:
        losses.update(head.pair_losses(model.encode(batch), batch) if hasattr(head, 'pair_losses') else {})
    assert set(losses) == {'tal', 'tse tal'}
    assert_close(losses['tal'], vectors['out/division/bge'])
    assert_close(losses['tse tal'], vectors['out/division/tse'])


@of_files
def test_losses_and_gradients_of_each_epoch(file, tmp_path):
    model, batch, vectors, description = reference(file, tmp_path)
    head, = (head for head in model.heads if isinstance(head, SecondCaptions))
    names = {'tal_loss': 'bge_loss', 'tse_loss': 'tse_loss', 'aug_loss': 'bge_aug_loss',
             'tse_aug_loss': 'tse_aug_loss'}
    for number, epoch in enumerate(description['epochs']):
        head.before_step(epoch, 1, 10)
        model.zero_grad()
        results, prefix = model(batch), f'epoch{epoch}/' if number else ''
        for name, official in names.items():
            assert_close(results[name], vectors[f'out/{prefix}{official}'], (epoch, name))
        total_loss(results).backward()
        assert_close(total_loss(results), vectors[f'out/{prefix}total'], epoch)
        for name, parameter in model.named_parameters():
            norm = 0.0 if parameter.grad is None else float(parameter.grad.double().norm())
            official = float(vectors[f'grad/{prefix}{name}'])
            assert norm == pytest.approx(official, rel=RELATIVE, abs=1e-6), (epoch, name)


@of_files
def test_without_aug_it_is_rde(file, tmp_path):
    model, batch, vectors, _ = reference(file, tmp_path, 'tal+tse')
    results = model(batch)
    assert_close(results['tal_loss'], vectors['out/without_aug/bge_loss'])
    assert_close(results['tse_loss'], vectors['out/without_aug/tse_loss'])
    assert_close(total_loss(results), vectors['out/without_aug/total'])
