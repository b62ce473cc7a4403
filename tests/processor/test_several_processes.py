"""Several processes compute the same as one: the rows of each batch are sharded across them."""
import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import StochasticDepth

from datasets.sampler import shard_slice
from model.heads.sdm import SDM
from model.queue import EmbeddingQueue, IdentityQueue
from processor.clean_pairs import CleanPairs
from processor.build import build_step
from processor.pair_states import PairStates
from tests.model.test_aptm import batch as aptm_batch
from tests.model.test_aptm import tiny as aptm_model
from tests.model.test_documented_hooks import registered_examples
from tests.model.test_rasa import MARS
from tests.model.test_rasa import batch as albef_batch
from tests.model.test_rasa import tiny as albef_model
from tests.support import golden_archive, golden_json, small_batch, small_model
from utils import comm
from utils.errors import UserError
from utils.batch_shard import is_shared_field, sync_batch_shards
from utils.seeding import seed_all

RATE = 1e-3


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


def samples(backbone, size, seed):
    """Build a batch.

    It has two images of one person, captions with different numbers of masked words and attributes, images without a
    label, and prompts that each process masks differently.
    """
    generator, rank = torch.Generator().manual_seed(seed), comm.get_rank()
    if backbone == 'aptm':
        batch = {**aptm_batch(size), 'attribute_labels': torch.randint(-1, 2, (size, 2), generator=generator)}
        batch.update({name: value[:4] for name, value in batch.items() if name.startswith('prompt_')})
        batch['prompt_mlm_labels'][0, :rank] = -100
    elif backbone == 'albef':
        batch = albef_batch(size, seed)
    else:
        batch = small_batch(size, seed)
        batch['mlm_labels'][0, 3:6] = batch['caption_ids'][0, 3:6]
        batch['attributes_mask'][2], batch['attributes_mask'][4, 4:] = 0, 0
        batch['clean'] = torch.randint(0, 2, (size,), generator=generator).float()
    batch['pids'] %= 6
    batch['pids'][4] = batch['pids'][1]
    dtype = torch.get_default_dtype()
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}


def model_of(archive, loss_names, backbone='clip', **settings):
    """Build a model without dropout, because each process draws dropout for its own rows."""
    builders = {'aptm': aptm_model, 'albef': albef_model, 'clip': functools.partial(small_model, archive)}
    model = builders[backbone](loss_names, **settings)
    for part in model.modules():
        if isinstance(part, (torch.nn.Dropout, StochasticDepth)):
            part.p = 0.0
        if isinstance(getattr(part, 'dropout', None), float):
            part.dropout = 0.0
    return model.to(torch.get_default_dtype()).train()


@contextlib.contextmanager
def double_precision():
    """Make new tensors float64 by default, and also those of ``Tensor.float``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, 'float', torch.Tensor.double)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def train(archive, settings, sizes=(6,), micro_batch=None):
    """Call :func:`train_in_default_precision` in float64."""
    with double_precision():
        return train_in_default_precision(archive, settings, sizes, micro_batch)


def train_in_default_precision(archive, settings, sizes=(6,), micro_batch=None, rate=RATE, eps=1e-3, last_bit=False):
    """Train on batches of ``sizes``, which are sharded across the processes.

    Args:
        archive: the pretrained CLIP.
        settings: options of the model.
        sizes: global size of each batch.
        micro_batch: see ``--micro_batch``.
        rate, eps: of AdamW.
        last_bit: whether to change the last bit of each pixel, up or down.

    Returns:
        ``(results of each step, gradients of the first step, weights after the last)``
    """
    model = model_of(archive, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, eps=eps)
    step, results, gradients = build_step(model, optimizer, micro_batch), [], None
    for number, size in enumerate(sizes):
        batch = samples(settings.get('backbone'), max(size, 6), seed=number)
        if last_bit:
            batch['images'] *= 1 + 1.2e-7 * torch.randn(batch['images'].shape).sign()
        own = shard_slice(size, comm.get_rank(), comm.get_world_size())
        rows = {name: value if is_shared_field(name) else value[:size][own] for name, value in batch.items()}
        shard, rows = sync_batch_shards(rows if own.start < own.stop else {})
        seed_all(number)
        results.append({name: value.item() for name, value in step(rows, shard).items()})
        gradients = gradients or {name: parameter.grad.clone() for name, parameter in model.named_parameters()
                                  if parameter.grad is not None}
    return results, gradients, model.state_dict()


# Several processes add the same numbers in another order, so results differ by rounding. Float32 allows no tight bound:
# the last bit of the pixels changes gradients by 2e-6 (CLIP) to 4e-5 (APTM) of their norm, and so does another CPU. In
# float64 the largest difference of all recipes is 2e-12 (a batch norm cancels the gradient of a bias), else 2e-14.
ROUNDING = 1e-10


def assert_same(several, one):
    expected_results, gradients, weights = one
    assert all(value.dtype == torch.float64 for value in gradients.values())
    for results, several_gradients, several_weights in several:
        assert list(results[0]) == list(expected_results[0]) and several_gradients.keys() == gradients.keys()
        for values, expected in zip(results, expected_results, strict=True):
            assert values == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
        for name, gradient in gradients.items():
            difference = (several_gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-4)
            assert difference < ROUNDING, (name, float(difference))
        for name, weight in weights.items():
            torch.testing.assert_close(several_weights[name], weight, rtol=ROUNDING, atol=ROUNDING, msg=name)
    for name, weight in several[0][2].items():     # bit by bit between the processes
        assert all(torch.equal(weight, other[2][name]) for other in several[1:]), name


RECIPES = {
    'irra': {'loss_names': 'sdm+mlm+id'},
    'agm': {'loss_names': 'sdm+mlm+cmt+id', 'mlm_masking': 'attention', 'caption_masking': 'inplace'},
    'sen': {'loss_names': 'sdm+mae+id+tri'},
    'words selected in the step': {'loss_names': 'sdm+mlm', 'mlm_masking': 'attention', 'caption_masking': 'clean'},
    'a2te': {'loss_names': 'sdm+id+amm+detail', 'detail_loss_weight': 0.1},
    'php': {'loss_names': 'sdm+itc+aux', 'moe_layers': 2, 'num_experts': 4, 'moe_heads': 2, 'cnum': 3},
    'aptm': {'loss_names': 'itc+itm+mlm+eda+attr', 'backbone': 'aptm'},
    'aptm, by the image alone': {'loss_names': 'itc+img_cls', 'backbone': 'aptm', 'img_cls_attributes': 2},
    'mars': {'loss_names': MARS, 'backbone': 'albef'},
    'rde': {'loss_names': 'tal+infonce+tse'},
    'icl': {'loss_names': 'tal+tse+aug'},
    'icl, without another embedding': {'loss_names': 'aug'},
    'conquer': {'loss_names': 'tal+tse+ccl+rematch', 'ccd': True, 'rematch_cost': 'learned'},
    'fmfa': {'loss_names': 'a-sdm+mlm+id+efa'},
    'tbps-clip': {'loss_names': 'nitc+ritc+citc+ss', 'mvs_image': True},
    'gadms': {'loss_names': 'sdm+mlm', 'mlm_masking': 'saliency'},
    'moco': {'loss_names': 'sdm+moco', 'temperature': 0.1, 'moco_queue': 9},
    'up-person': {'loss_names': 'sdm+id', 'tuning': 'up-person', 'prefix_length': 2, 'rank': 3},
    'dm-adapter': {'loss_names': 'sdm+aux', 'tuning': 'dm-adapter', 'num_experts': 3},
    'lora': {'loss_names': 'sdm', 'tuning': 'lora', 'lora_targets': ('q', 'out', 'mlp')},
    'frozen parts': {'loss_names': 'sdm+mlm+id', 'freeze': ('visual.*', 'mlm_head.*')},
    'every comparison': {'loss_names': 'itc+cmpm+cmt+tri+sdm+id'}}


@pytest.mark.parametrize('recipe', RECIPES)
def test_the_same_losses_gradients_and_weights(processes, archive, recipe):
    one = train(archive, RECIPES[recipe], (6, 7, 6))
    assert_same(processes.run(train, archive, RECIPES[recipe], (6, 7, 6)), one)


@pytest.mark.parametrize('recipe', ['irra', 'a2te', 'aptm', 'mars', 'tbps-clip', 'moco', 'dm-adapter', 'icl'])
def test_a_batch_with_fewer_rows_than_processes(processes, archive, recipe):
    one = train(archive, RECIPES[recipe], (6, 1, 6))
    assert_same(processes.run(train, archive, RECIPES[recipe], (6, 1, 6)), one)


def test_processes_with_dropout_draw_the_same_random_numbers_for_the_global_batch(processes):
    """Dropout is drawn for 4 and 3 local rows. On a GPU, a larger draw leaves the generator in another state."""
    one, other = processes.run(negatives_and_prompts)
    assert len(one) > 10 and one == other


def negatives_and_prompts():
    model, drawn = aptm_model('itm+mlm+eda+attr').train(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, 'dropout',
                      lambda x, p, training=True, inplace=False: x * (torch.rand(x.shape) > p) / (1 - p))
        for name in ('multinomial', 'randperm'):
            patch.setattr(torch, name, recording(getattr(torch, name), drawn))
        batch, own = samples('aptm', 7, 0), shard_slice(7, comm.get_rank(), comm.get_world_size())
        shard, rows = sync_batch_shards({name: value if is_shared_field(name) else value[own]
                                         for name, value in batch.items()})
        seed_all(1)
        build_step(model, torch.optim.AdamW(model.parameters()))(rows, shard)
    return drawn


def recording(function, into):
    def recorded(*inputs, **settings):
        value = function(*inputs, **settings)
        into.extend(value.flatten().tolist())
        return value
    return recorded


def test_all_processes_select_the_same_clean_pairs_as_one(processes, archive):
    clean, losses = select_clean_pairs(archive)
    assert 0 < clean.sum() < 13 and set(losses) == {'tal', 'tse tal'}
    for several_clean, several_losses in processes.run(select_clean_pairs, archive):
        assert torch.equal(several_clean, clean)
        for name, values in losses.items():
            torch.testing.assert_close(several_losses[name], values, rtol=1e-5, atol=1e-6)


def select_clean_pairs(archive):
    """Return the weights of thirteen pairs, and their losses."""
    model = small_model(archive, 'tal+tse', ccd=True)
    rows = [shard_slice(size, comm.get_rank(), comm.get_world_size()) for size in (6, 6, 1)]
    batches = [{**small_batch(6, number), 'index': torch.arange(6) + 6 * number} for number in range(3)]
    batches = Batches({name: value[own] for name, value in batch.items()} for batch, own in zip(batches, rows))
    clean_pairs = CleanPairs(model, batches, seed=3)
    clean_pairs.select(1, 1)
    return clean_pairs.weights, clean_pairs.compute_losses(1, 1, lambda: None)


def test_values_of_pairs_are_those_of_one_process(processes, archive):
    one = train_with_pair_values(archive)
    assert one.shape == (13, 20) and (one[:, 1:] != 0.85).any(dim=1).all()
    saved, nothing = processes.run(train_with_pair_values, archive)
    torch.testing.assert_close(saved, one, rtol=2e-3, atol=1e-6)     # one step of float16
    assert nothing is None


def train_with_pair_values(archive):
    """Train on thirteen pairs for two epochs, between which the values are saved and loaded. Return the values."""
    with double_precision():
        model = model_of(archive, 'sdm+mlm', mlm_masking='saliency')
        step = build_step(model, torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-3))
        states = PairStates(model, 13)
        for number, first in enumerate((0, 6, 12, 0, 6, 12)):
            size = min(6, 13 - first)
            batch = {**samples('clip', 6, first), 'index': torch.arange(6) + first}
            own = shard_slice(size, comm.get_rank(), comm.get_world_size())
            shard, batch = sync_batch_shards({name: value[:size][own] for name, value in batch.items()}
                                             if own.start < own.stop else {})
            seed_all(number)
            batch = states.add_values(batch, shard)
            step(batch, shard)
            states.store(batch, model.pair_values, shard)
            if number == 2:
                saved = comm.broadcast_object(states.state_dict())
                states = PairStates(model, 13)
                states.load_state_dict(saved)
        return states.state_dict()['saliency']


class Batches(list):
    batch_sampler, dataset = None, range(13)


REFUSED = [
    ('sdm', {'php_parts': 'efp', 'php_attention': 'batch'},
     "the loss 'aux': with --php_attention batch its embeddings depend on each other"),
    ('tal+tse', {'tse_mode': 'train'},
     "the loss 'tse': with --tse_mode train it normalizes tokens over the whole batch")]


@pytest.mark.parametrize('loss_names, settings, sentence', REFUSED, ids=['php', 'rde'])
def test_a_head_that_several_processes_cannot_train_is_an_error(archive, monkeypatch, loss_names, settings, sentence):
    monkeypatch.setattr('model.build.get_world_size', lambda: 2)
    with pytest.raises(UserError, match=f'^training with several processes cannot split a batch for {sentence}'):
        small_model(archive, loss_names, **settings)


def test_a_head_that_reads_images_of_other_processes_is_an_error(processes, archive):
    for message in processes.run(read_all_images, archive):
        assert message.startswith("model/heads/sdm.py: SDM reads batch['images'], but each of several processes holds "
                                  'only its own rows')


def read_all_images(archive):
    model, own = small_model(archive, 'sdm').train(), shard_slice(6, comm.get_rank(), comm.get_world_size())
    shard, rows = sync_batch_shards({name: value[own] for name, value in small_batch().items()})
    def forward(self, encoded, batch):
        return {'sdm_loss': (encoded.image.mean() - batch['images'].mean()).square()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SDM, 'forward', forward)
        with pytest.raises(UserError) as error:
            build_step(model, torch.optim.AdamW(model.parameters()))(rows, shard)
    return str(error.value)


@pytest.mark.parametrize('name', ['averages', 'views', 'filip', 'trusted'])
def test_documented_heads_that_gather(processes, archive, tmp_path, name):
    one = train_documented(archive, tmp_path, name)
    assert_same(processes.run(train_documented, archive, tmp_path, name), one)


def train_documented(archive, folder, name):
    own = folder / str(comm.get_rank()) if comm.get_world_size() > 1 else folder / 'one'
    own.mkdir()
    with registered_examples(own):
        return train(archive, {'loss_names': f'sdm+{name}', 'temperature': 0.1}, (6, 5))


@pytest.mark.parametrize('recipe', ['irra', 'dm-adapter', 'frozen parts'])
def test_micro_batches_on_each_process(processes, archive, recipe):
    one = train(archive, RECIPES[recipe], (6, 5))
    assert_same(processes.run(train, archive, RECIPES[recipe], (6, 5), 2), one)


def test_queues_hold_the_rows_of_all_processes(processes):
    one = fill_queues()
    for several in processes.run(fill_queues):
        assert all(torch.equal(value, several[name]) for name, value in one.items())


def fill_queues():
    torch.manual_seed(0)
    embeddings, identities = EmbeddingQueue(size=8, width=3), IdentityQueue(size=8, width=3)
    for size in (5, 1, 6):
        rows, own = torch.randn(size, 3), shard_slice(size, comm.get_rank(), comm.get_world_size())
        shard, local = sync_batch_shards({'pids': torch.arange(size)[own], 'rows': rows[own]} if own.start < own.stop
                                         else {})
        embeddings.append(local['rows'], -local['rows'], shard)
        identities.append(local['rows'], -local['rows'], local['pids'], shard)
    return {**embeddings.state_dict(), **identities.state_dict()}


def test_the_loss_of_local_rows_only_differs(processes, archive):
    expected, *_ = train(archive, {'loss_names': 'sdm'}, (6,))
    for results in processes.run(train_on_local_rows, archive):
        assert abs(results[0]['sdm_loss'] - expected[0]['sdm_loss']) > 1e-2


def train_on_local_rows(archive):
    model = small_model(archive, 'sdm').train()
    batch, own = samples('clip', 6, 0), shard_slice(6, comm.get_rank(), comm.get_world_size())
    step = build_step(model, torch.optim.AdamW(model.parameters()))
    step.runner = lambda compute, is_last=False: compute()
    return [{name: value.item() for name, value in step({name: value[own] for name, value in batch.items()}).items()}]
