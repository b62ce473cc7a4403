"""--shard: each process holds a part of the parameters and of the optimizer's state, and nothing else changes."""
import pytest
import torch

from datasets.sampler import shard_slice
from model import build
from model.heads.sdm import SDM
from processor.sharding import supports_cpu_sharding
from processor.step import Step
from solver import build_lr_scheduler, build_optimizer
from tests.several import Processes
from tests.support import golden_archive, golden_json, options, small_batch, small_model
from utils import comm, precision
from utils.checkpoint import Checkpointer
from utils.errors import UserError
from utils.batch_shard import sync_batch_shards
from utils.seeding import seed_all

pytestmark = pytest.mark.skipif(not supports_cpu_sharding(), reason="this PyTorch's FSDP2 needs GPUs")

IRRA = {'loss_names': 'sdm+mlm+id'}


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


@pytest.fixture(scope='module')
def processes():
    started = Processes(2)
    yield started
    started.close()


class Run:
    """A model, its optimizer and the checkpoints that they write; ``resumed`` goes on from one."""

    def __init__(self, archive, settings, folder, shard, resumed=None, micro_batch=None):
        args = options(lr=1e-3, **settings)
        self.model = small_model(archive, **settings).train()
        self.optimizer = build_optimizer(args, self.model)
        self.checkpoints = Checkpointer(self.model, self.optimizer, build_lr_scheduler(args, self.optimizer), str(folder), comm.is_main_process())
        if resumed:
            self.checkpoints.resume(str(resumed))
        self.step = Step(self.model, self.optimizer, micro_batch, shard)

    def learn(self, numbers):
        """Each step's results."""
        told = []
        for number in numbers:
            batch, own = small_batch(seed=number), shard_slice(6, comm.get_rank(), comm.get_world_size())
            shard, rows = sync_batch_shards({name: value[own] for name, value in batch.items()})
            seed_all(number)
            told.append({name: value.item() for name, value in self.step(rows, shard).items()})
        return told

    def embedded(self):
        """Embeddings of as many images as the process is counted: between steps each may call the model as it likes."""
        images = small_batch()['images'][:comm.get_rank() + 1]
        with self.step.whole(), torch.no_grad():
            return self.model.encode_image(images)

    def save(self):
        self.checkpoints.save('last', training_state=True, epoch=1, step=0)


def trained(archive, settings, folder, shard):
    """What a run of some steps tells, saves, and goes on with."""
    run = Run(archive, settings, folder, shard)
    told = run.learn(range(3))
    run.save()
    return told, run.embedded(), run.learn([3]), held(run)


def held(run):
    """How many numbers this process holds of the parameters and of the optimizer's state."""
    def own(values):
        return sum(getattr(value, '_local_tensor', value).numel() for value in values)
    return own(run.model.parameters()), own(value for state in run.optimizer.state.values() for value in state.values())


def gone_on(archive, settings, folder, shard, resumed):
    return Run(archive, settings, folder, shard, resumed).learn([3])


def assert_close(found, expected):
    for values, others in zip(found, expected, strict=True):
        assert values == pytest.approx(others, rel=1e-5, abs=1e-6)


RECIPES = {'irra': IRRA, 'agm': {'loss_names': 'sdm+mlm+cmt+id', 'mlm_masking': 'attention', 'caption_masking': 'inplace'},
           'sen': {'loss_names': 'sdm+mae+id+tri', 'grad_checkpoint': True},
           'a temperature': {'loss_names': 'ritc+citc+id'}}


@pytest.mark.parametrize('recipe', RECIPES)
def test_the_run_of_one_process_in_one_file(processes, archive, tmp_path, recipe):
    settings = RECIPES[recipe]
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
    told, embedded, after, (parameters, state) = trained(archive, settings, tmp_path / 'one', False)
    for rank, (found, own, found_after, held_here) in enumerate(processes.each(trained, archive, settings, tmp_path / 'two', True)):
        assert_close(found, told)
        assert_close(found_after, after)
        torch.testing.assert_close(own[:1], embedded[:1], rtol=1e-5, atol=1e-5)
        assert len(own) == rank + 1
        assert held_here[0] < 0.6 * parameters and held_here[1] < 0.6 * state
    one, two = (torch.load(tmp_path / name / 'last.pth') for name in ('one', 'two'))
    assert list(one['model']) == list(two['model']) and one['optimizer']['param_groups'] == two['optimizer']['param_groups']
    for name, weight in one['model'].items():
        assert type(two['model'][name]) is torch.Tensor
        torch.testing.assert_close(two['model'][name], weight, rtol=1e-5, atol=1e-5)
    for number, moments in one['optimizer']['state'].items():
        torch.testing.assert_close(two['optimizer']['state'][number], moments, rtol=1e-3, atol=1e-5)
    # and it goes on from that file: divided, with whole parameters on each, and alone
    for found in (*processes.each(gone_on, archive, settings, tmp_path, True, tmp_path / 'two' / 'last.pth'),
                  *processes.each(gone_on, archive, settings, tmp_path, False, tmp_path / 'two' / 'last.pth'),
                  gone_on(archive, settings, tmp_path, False, tmp_path / 'two' / 'last.pth')):
        assert_close(found, after)


class Momentum(SDM):
    def after_step(self, model):
        pass


def refusals(archive):
    """What is said to pieces, to fp16 and to a head that changes parameters."""
    told = []
    for change in ({'micro_batch': 2}, {'amp': 'fp16'}, {'head': Momentum}):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as error:
            if 'amp' in change:
                patch.setattr(precision, 'amp_dtype', lambda amp, device: torch.float16)
            if 'head' in change:
                patch.setattr(build, 'active_heads', lambda args: [Momentum])
            Run(archive, {'loss_names': 'sdm'}, '', True, micro_batch=change.get('micro_batch'))
        told.append(str(error.value))
    return told


def test_refused(processes, archive):
    for pieces, half, momentum in processes.each(refusals, archive):
        assert '--grad_checkpoint saves memory' in pieces and 'give --amp bf16 or off' in half
        assert "the loss 'sdm' changes some there" in momentum
