"""--micro_batch: the gradient of the whole batch, computed in micro batches."""
import pytest
import torch

from model.build import total_loss
from model.head_registry import registry
from model.heads import Head, RefinesEmbedding, TrainsInMicroBatches
from processor.build import build_step
from tests.support import compute_gradients, golden_archive, golden_json, small_batch, small_model
from utils.errors import UserError


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def whole_batch_gradients(model, batch):
    model.zero_grad()
    results = model(batch)
    total_loss(results).backward()
    return results, gradients(model)


def micro_batch_gradients(model, batch, size):
    return compute_gradients(model, batch, size), gradients(model)


def assert_same(one, other):
    (results, grads), (expected_results, expected_grads) = one, other
    assert list(results) == list(expected_results) and grads.keys() == expected_grads.keys()
    for name, value in expected_results.items():
        torch.testing.assert_close(results[name], value.detach(), rtol=1e-5, atol=1e-6, msg=name)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()) + 1e-8, msg=name)


def uneven(batch):
    """A batch whose captions have different numbers of masked words, and two images of one person."""
    batch['mlm_labels'][0, 3:6] = batch['caption_ids'][0, 3:6]
    batch['pids'][4] = batch['pids'][1]
    return batch


@pytest.mark.parametrize('masking', ['clean', 'inplace'])
@pytest.mark.parametrize('size', [1, 2, 4])
def test_irra_gradient_is_the_whole_batchs(archive, size, masking):
    model, batch = small_model(archive, 'sdm+mlm+id', caption_masking=masking), uneven(small_batch())
    if masking == 'inplace':
        batch['caption_ids'] = batch.pop('mlm_ids')
    assert_same(micro_batch_gradients(model, batch, size), whole_batch_gradients(model, batch))


@pytest.mark.parametrize('loss_names', ['itc', 'cmpm', 'cmt+id', 'tri+sdm', 'mlm'])
def test_every_loss_that_compares_samples(archive, loss_names):
    model, batch = small_model(archive, loss_names), uneven(small_batch())
    assert_same(micro_batch_gradients(model, batch, 4), whole_batch_gradients(model, batch))


@pytest.mark.parametrize('tuning, loss_names', [('up-person', 'sdm'), ('dm-adapter', 'sdm+aux')])
def test_a_tunings_gradient_is_the_whole_batchs(archive, tuning, loss_names):
    """DM-Adapter's balance loss is a product of two means over the batch."""
    model, batch = small_model(archive, loss_names, tuning=tuning, grad_checkpoint=True), uneven(small_batch())
    assert_same(micro_batch_gradients(model, batch, 4), whole_batch_gradients(model, batch))


def test_the_gradient_differs_if_losses_compare_micro_batches_only(archive):
    model, batch = small_model(archive, 'sdm'), uneven(small_batch())
    _, expected = whole_batch_gradients(model, batch)
    model.zero_grad()
    for start in (0, 2, 4):
        (total_loss(model({name: value[start:start + 2] for name, value in batch.items()})) / 3).backward()
    assert any(not torch.allclose(grad, expected[name], rtol=0.1) for name, grad in gradients(model).items())


def test_restoration_is_weighted_like_a_whole_batch(archive, monkeypatch):
    from model.heads.sen import MAE
    model, batch = small_model(archive, 'sdm+mae+tri'), uneven(small_batch())
    head = next(head for head in model.heads if isinstance(head, MAE))
    order = torch.arange(head.token_count)
    order[1:] = order[1:].flip(0)
    monkeypatch.setattr(MAE, 'sample_order', lambda self, images: order.repeat(len(images), 1))
    assert_same(micro_batch_gradients(model, batch, 4), whole_batch_gradients(model, batch))


def test_captions_masked_by_attention(archive):
    """AGM chooses the words before the batch is split."""
    model = small_model(archive, 'sdm+mlm+cmt', mlm_masking='attention', caption_masking='inplace')
    batch = uneven(small_batch())
    del batch['mlm_ids'], batch['mlm_labels']
    torch.manual_seed(5)
    expected = whole_batch_gradients(model, batch)
    torch.manual_seed(5)
    assert_same(micro_batch_gradients(model, batch, 4), expected)


def test_dropout_in_the_embedding_is_drawn_once(archive):
    """CRFM has dropout: both passes must use the same random numbers, else their embeddings differ."""
    model, batch = small_model(archive, 'sdm', php_parts='crfm').train(), small_batch()
    masks = []
    model.safl.feed[3].register_forward_hook(lambda module, inputs, output: masks.append((output == 0).float()))
    torch.manual_seed(3)
    compute_gradients(model, batch, 2)
    first, second = masks[:6], masks[6:]     # three micro batches, images and captions of each
    assert len(first) == len(second) == 6 and all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[2])   # micro batches differ


def test_the_scalers_factor_is_applied_once(archive):
    model, batch = small_model(archive, 'sdm+mlm+id'), uneven(small_batch())
    step = build_step(model, torch.optim.SGD(model.parameters(), lr=0.0), 2)
    step.scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)    # its step divides the gradients by the scale
    results = step(batch)
    assert_same((results, gradients(model)), whole_batch_gradients(model, batch))


def test_a_micro_batch_without_masked_words(archive):
    model, batch = small_model(archive, 'sdm+mlm'), small_batch()
    batch['mlm_labels'][5] = 0
    assert_same(micro_batch_gradients(model, batch, 5), whole_batch_gradients(model, batch))


def test_activations_of_one_micro_batch_at_a_time(archive):
    model, batch = small_model(archive, 'sdm+mlm+id'), small_batch()
    sizes = []
    model.base_model.visual.register_forward_hook(
        lambda module, inputs, output: sizes.append((len(inputs[0]), torch.is_grad_enabled())))
    compute_gradients(model, batch, 4)
    assert sizes == [(4, False), (2, False), (4, True), (2, True)]


def test_a_head_that_refines_embeddings_must_say_that_it_can_be_split(archive, monkeypatch):
    class Refiner(RefinesEmbedding, Head):
        names = ('refiner',)

        def __init__(self, args, model):
            super().__init__()

        def refine(self, embedding, tokens, extras):
            extras['n'] = tokens.square().mean()
            return embedding

        def forward(self, encoded, batch):
            return {'refiner_loss': encoded.image_extras['n']}
    monkeypatch.setitem(registry(), 'refiner', Refiner)
    with pytest.raises(UserError, match="'refiner': it refines embeddings"):
        small_model(archive, 'sdm+refiner', micro_batch=2)


@pytest.mark.parametrize('loss_names, changes, reason', [
    ('sdm+attribute', {}, "the loss 'attribute': it draws a caption of the whole batch for each image"),
    ('sdm+detail', {}, "the loss 'detail': it normalizes its details over the whole batch"),
    ('sdm+aux', {}, "the loss 'aux': it balances the experts' load"),
    ('sdm', {'php_parts': 'efp', 'php_attention': 'batch'}, 'embeddings depend on each other'),
    ('sdm+mlm', {'mlm_masking': 'attention'}, '--caption_masking inplace')])
def test_what_cannot_be_split_says_so(archive, loss_names, changes, reason):
    with pytest.raises(UserError, match=f'--micro_batch cannot split a batch.*{reason}.*--grad_checkpoint'):
        small_model(archive, loss_names, micro_batch=2, **changes)
    small_model(archive, loss_names, **changes)


def test_a_resnet_cannot_be_split():
    from model import build_model
    from tests.support import options
    with pytest.raises(UserError, match='--micro_batch cannot split a batch for a ResNet'):
        build_model(options(loss_names='sdm', pretrain_choice='scratch:RN50', micro_batch=2, img_size=(64, 32)), 5)


def test_a_head_that_reads_tokens_must_say_how_it_adds_up(archive, monkeypatch):
    class Reader(Head):
        names, needs = ('reader',), ('text_tokens',)

        def __init__(self, args, model):
            super().__init__()

        def forward(self, encoded, batch):
            return {'reader_loss': encoded.text_tokens.square().mean()}
    monkeypatch.setitem(registry(), 'reader', Reader)
    with pytest.raises(UserError, match="'reader': it reads tokens and is not a TrainsInMicroBatches head"):
        small_model(archive, 'sdm+reader', micro_batch=2)

    class SplitReader(TrainsInMicroBatches, Reader):
        pass
    monkeypatch.setitem(registry(), 'reader', SplitReader)
    model = small_model(archive, 'sdm+reader', micro_batch=2)
    assert_same(micro_batch_gradients(model, small_batch(), 4), whole_batch_gradients(model, small_batch()))
