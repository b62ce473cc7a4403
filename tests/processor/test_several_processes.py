"""N processes compute what one computes: the same whole batch, its rows spread over them."""
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import StochasticDepth

from datasets.sampler import share_of
from model.heads.sdm import SDM
from processor.division import Division
from processor.step import Step, is_shared
from tests.model.test_aptm import batch as aptm_batch
from tests.model.test_aptm import tiny as aptm_model
from tests.model.test_documented_hooks import beside_the_heads
from tests.several import Processes
from tests.support import double_precision, golden_archive, golden_json, small_batch, small_model
from utils import comm
from utils.errors import UserError
from utils.peers import meet
from utils.seeding import seed_all

RATE = 1e-3


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


@pytest.fixture(scope='module', params=[2])
def processes(request):
    started = Processes(request.param)
    yield started
    started.close()


def samples(backbone, size, seed):
    """Two images of one person, captions with different numbers of masked words and of attributes, images without a label; and prompts,
    masked otherwise by each process."""
    generator, rank = torch.Generator().manual_seed(seed), comm.get_rank()
    if backbone == 'aptm':
        batch = {**aptm_batch(size), 'attribute_labels': torch.randint(-1, 2, (size, 2), generator=generator)}
        batch.update({name: value[:4] for name, value in batch.items() if name.startswith('prompt_')})
        batch['prompt_mlm_labels'][0, :rank] = -100
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
    """Without dropout, which each process draws for its own rows."""
    model = aptm_model(loss_names, **settings) if backbone == 'aptm' else small_model(archive, loss_names, **settings)
    for part in model.modules():
        if isinstance(part, (torch.nn.Dropout, StochasticDepth)):
            part.p = 0.0
        if isinstance(getattr(part, 'dropout', None), float):
            part.dropout = 0.0
    return model.to(torch.get_default_dtype()).train()


def train(archive, settings, sizes=(6,), micro_batch=None):
    """:func:`train_in_default_precision` in float64."""
    with double_precision():
        return train_in_default_precision(archive, settings, sizes, micro_batch)


def train_in_default_precision(archive, settings, sizes=(6,), micro_batch=None, rate=RATE, eps=1e-3, last_bit=False):
    """Steps with batches of ``sizes``, of which each process has its share: each step's results, the first step's gradients and the
    weights behind the last. ``last_bit``: of each pixel another one, up or down."""
    model = model_of(archive, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, eps=eps)
    step, told, gradients = Step(model, optimizer, micro_batch), [], None
    for number, size in enumerate(sizes):
        batch = samples(settings.get('backbone'), max(size, 6), seed=number)
        if last_bit:
            batch['images'] *= 1 + 1.2e-7 * torch.randn(batch['images'].shape).sign()
        own = share_of(size, comm.get_rank(), comm.get_world_size())
        rows = {name: value if is_shared(name) else value[:size][own] for name, value in batch.items()}
        peers, rows = meet(rows if own.start < own.stop else {})
        seed_all(number)
        told.append({name: value.item() for name, value in step(rows, peers).items()})
        gradients = gradients or {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    return told, gradients, model.state_dict()


# Several processes add the same numbers in another order, so results differ by rounding. In float32 that is no sharp bound: the last bit
# of the pixels moves gradients by 2e-6 (CLIP) to 4e-5 (APTM) of their norm, and another CPU moves them again. In float64 the largest
# difference of all recipes is 2e-12, where a batch norm cancels a bias's gradient, and 2e-14 elsewhere.
ROUNDING = 1e-10


def assert_same(several, one):
    told, gradients, weights = one
    assert all(value.dtype == torch.float64 for value in gradients.values())
    for found, found_gradients, found_weights in several:
        assert list(found[0]) == list(told[0]) and found_gradients.keys() == gradients.keys()
        for values, expected in zip(found, told, strict=True):
            assert values == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
        for name, gradient in gradients.items():
            difference = (found_gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-4)
            assert difference < ROUNDING, (name, float(difference))
        for name, weight in weights.items():
            torch.testing.assert_close(found_weights[name], weight, rtol=ROUNDING, atol=ROUNDING, msg=name)
    for name, weight in several[0][2].items():     # to the last bit among themselves
        assert all(torch.equal(weight, other[2][name]) for other in several[1:]), name


RECIPES = {
    'irra': {'loss_names': 'sdm+mlm+id'},
    'agm': {'loss_names': 'sdm+mlm+cmt+id', 'mlm_masking': 'attention', 'caption_masking': 'inplace'},
    'sen': {'loss_names': 'sdm+mae+id+tri'},
    'words chosen in the step': {'loss_names': 'sdm+mlm', 'mlm_masking': 'attention', 'caption_masking': 'clean'},
    'a2te': {'loss_names': 'sdm+id+amm+detail', 'detail_loss_weight': 0.1},
    'php': {'loss_names': 'sdm+itc+aux', 'moe_layers': 2, 'num_experts': 4, 'moe_heads': 2, 'cnum': 3},
    'aptm': {'loss_names': 'itc+itm+mlm+eda+attr', 'backbone': 'aptm'},
    'aptm, by the image alone': {'loss_names': 'itc+img_cls', 'backbone': 'aptm', 'img_cls_attributes': 2},
    'rde': {'loss_names': 'tal+infonce+tse'},
    'fmfa': {'loss_names': 'a-sdm+mlm+id+efa'},
    'tbps-clip': {'loss_names': 'nitc+ritc+citc+ss', 'mvs_image': True},
    'every comparison': {'loss_names': 'itc+cmpm+cmt+tri+sdm+id'}}


@pytest.mark.parametrize('recipe', RECIPES)
def test_the_same_losses_gradients_and_weights(processes, archive, recipe):
    one = train(archive, RECIPES[recipe], (6, 7, 6))
    assert_same(processes.each(train, archive, RECIPES[recipe], (6, 7, 6)), one)


@pytest.mark.parametrize('recipe', ['irra', 'a2te', 'aptm', 'tbps-clip'])
def test_a_batch_with_fewer_rows_than_processes(processes, archive, recipe):
    one = train(archive, RECIPES[recipe], (6, 1, 6))
    assert_same(processes.each(train, archive, RECIPES[recipe], (6, 1, 6)), one)


def test_with_dropout_too_processes_draw_alike_what_they_share(processes):
    """Dropout is drawn for a process's own rows, of which there are 4 and 3; on a GPU a larger draw leaves the generator elsewhere."""
    one, other = processes.each(negatives_and_prompts)
    assert len(one) > 10 and one == other


def negatives_and_prompts():
    model, drawn = aptm_model('itm+mlm+eda+attr').train(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, 'dropout', lambda x, p, training=True, inplace=False: x * (torch.rand(x.shape) > p) / (1 - p))
        for name in ('multinomial', 'randperm'):
            patch.setattr(torch, name, recording(getattr(torch, name), drawn))
        batch, own = samples('aptm', 7, 0), share_of(7, comm.get_rank(), comm.get_world_size())
        peers, rows = meet({name: value if is_shared(name) else value[own] for name, value in batch.items()})
        seed_all(1)
        Step(model, torch.optim.AdamW(model.parameters()))(rows, peers)
    return drawn


def recording(function, into):
    def recorded(*inputs, **settings):
        value = function(*inputs, **settings)
        into.extend(value.flatten().tolist())
        return value
    return recorded


def test_all_processes_divide_the_pairs_as_one_does(processes, archive):
    clean, losses = divided(archive)
    assert 0 < clean.sum() < 13 and set(losses) == {'tal', 'tse tal'}
    for found_clean, found_losses in processes.each(divided, archive):
        assert torch.equal(found_clean, clean)
        for name, values in losses.items():
            torch.testing.assert_close(found_losses[name], values, rtol=1e-5, atol=1e-6)


def divided(archive):
    """What counts as clean of thirteen pairs, and their losses."""
    model = small_model(archive, 'tal+tse', ccd=True)
    rows = [share_of(size, comm.get_rank(), comm.get_world_size()) for size in (6, 6, 1)]
    batches = Batches({name: value[own] for name, value in {**small_batch(6, number), 'index': torch.arange(6) + 6 * number}.items()}
                      for number, own in enumerate(rows))
    division = Division(model, batches, seed=3)
    division.begin(1, 1)
    return division.clean, division.all_pairs(1, 1, lambda: None)


class Batches(list):
    batch_sampler, dataset = None, range(13)


REFUSED = [
    ('sdm', {'php_parts': 'efp', 'php_attention': 'batch'},
     "the loss 'aux': with --php_attention batch its embeddings depend on each other"),
    ('tal+tse', {'tse_mode': 'train'}, "the loss 'tse': with --tse_mode train it normalises its tokens over the whole batch")]


@pytest.mark.parametrize('loss_names, settings, sentence', REFUSED, ids=['php', 'rde'])
def test_what_several_processes_cannot_train_says_so(archive, monkeypatch, loss_names, settings, sentence):
    monkeypatch.setattr('model.build.get_world_size', lambda: 2)
    with pytest.raises(UserError, match=f'^training with several processes cannot split a batch for {sentence}'):
        small_model(archive, loss_names, **settings)


def test_a_head_that_reads_images_of_others_is_told_how(processes, archive):
    for told in processes.each(read_all_images, archive):
        assert told.startswith("model/heads/sdm.py: SDM reads batch['images'], and each of several processes has its rows alone")


def read_all_images(archive):
    model, own = small_model(archive, 'sdm').train(), share_of(6, comm.get_rank(), comm.get_world_size())
    peers, rows = meet({name: value[own] for name, value in small_batch().items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SDM, 'forward', lambda self, encoded, batch: {'sdm_loss': (encoded.image.mean() - batch['images'].mean()).square()})
        with pytest.raises(UserError) as told:
            Step(model, torch.optim.AdamW(model.parameters()))(rows, peers)
    return str(told.value)


@pytest.mark.parametrize('name', ['averages', 'moco', 'views', 'filip'])
def test_documented_heads_that_gather(processes, archive, tmp_path, name):
    one = train_documented(archive, tmp_path, name)
    assert_same(processes.each(train_documented, archive, tmp_path, name), one)


def train_documented(archive, folder, name):
    own = folder / str(comm.get_rank()) if comm.get_world_size() > 1 else folder / 'one'
    own.mkdir()
    with beside_the_heads(own):
        return train(archive, {'loss_names': f'sdm+{name}', 'temperature': 0.1, 'moco_queue': 3}, (6, 5))


def test_pieces_on_each_process(processes, archive):
    one = train(archive, RECIPES['irra'], (6, 5))
    assert_same(processes.each(train, archive, RECIPES['irra'], (6, 5), 2), one)


def test_it_would_differ_if_each_process_saw_its_own_rows_alone(processes, archive):
    told, *_ = train(archive, {'loss_names': 'sdm'}, (6,))
    for part in processes.each(train_apart, archive):
        assert abs(part[0]['sdm_loss'] - told[0]['sdm_loss']) > 1e-2


def train_apart(archive):
    model = small_model(archive, 'sdm').train()
    batch, own = samples('clip', 6, 0), share_of(6, comm.get_rank(), comm.get_world_size())
    step = Step(model, torch.optim.AdamW(model.parameters()))
    step.passes = lambda compute, learns=False, last=False: compute()
    return [{name: value.item() for name, value in step({name: value[own] for name, value in batch.items()}).items()}]
