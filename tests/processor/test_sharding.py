"""--shard: parameters and optimizer state are sharded across ranks, and results stay the same."""
import pytest
import torch

from datasets.sampler import shard_slice
from model import build
from model.heads import HasTrainingOnlyParts
from model.heads.sdm import SDM
from processor.sharding import supports_cpu_sharding
from processor.build import build_step
from solver import build_lr_scheduler, build_optimizer
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


class Run:
    """A model, its optimizer and their checkpoints; ``resumed`` is the checkpoint to continue from."""

    def __init__(self, archive, settings, folder, shard, resumed=None, micro_batch=None):
        args = options(lr=1e-3, **settings)
        self.model = small_model(archive, **settings).train()
        self.optimizer = build_optimizer(args, self.model)
        scheduler = build_lr_scheduler(args, self.optimizer)
        self.checkpoints = Checkpointer(self.model, self.optimizer, scheduler, str(folder), comm.is_main_process())
        if resumed:
            self.checkpoints.resume(str(resumed))
        self.step = build_step(self.model, self.optimizer, micro_batch, shard)

    def train(self, numbers):
        """Train steps and return the results of each."""
        results = []
        for number in numbers:
            batch, local = small_batch(seed=number), shard_slice(6, comm.get_rank(), comm.get_world_size())
            shard, rows = sync_batch_shards({name: value[local] for name, value in batch.items()})
            seed_all(number)
            results.append({name: value.item() for name, value in self.step(rows, shard).items()})
        return results

    def embed(self):
        """Embed rank + 1 images: inside ``unsharded``, ranks may make different calls."""
        images = small_batch()['images'][:comm.get_rank() + 1]
        with self.step.unsharded(), torch.no_grad():
            return self.model.encode_image(images)

    def save(self):
        self.checkpoints.save('last', training_state=True, epoch=1, step=0)


def train_and_save(archive, settings, folder, shard):
    """Train, save, and train one more step: (results, embeddings, results of the last step, local counts)."""
    run = Run(archive, settings, folder, shard)
    results = run.train(range(3))
    run.save()
    return results, run.embed(), run.train([3]), count_local(run)


def count_local(run):
    """Count the numbers on this rank: (of the parameters, of the optimizer state)."""
    def count(values):
        return sum(getattr(value, '_local_tensor', value).numel() for value in values)
    moments = (value for state in run.optimizer.state.values() for value in state.values())
    return count(run.model.parameters()), count(moments)


def resume(archive, settings, folder, shard, resumed):
    return Run(archive, settings, folder, shard, resumed).train([3])


def assert_close(results, expected):
    for values, expected_values in zip(results, expected, strict=True):
        assert values == pytest.approx(expected_values, rel=1e-5, abs=1e-6)


RECIPES = {'irra': IRRA,
           'agm': {'loss_names': 'sdm+mlm+cmt+id', 'mlm_masking': 'attention', 'caption_masking': 'inplace'},
           'sen': {'loss_names': 'sdm+mae+id+tri', 'grad_checkpoint': True},
           'a temperature': {'loss_names': 'ritc+citc+id'},
           'up-person': {'loss_names': 'sdm', 'tuning': 'up-person', 'prefix_length': 2, 'rank': 3},
           'dm-adapter': {'loss_names': 'sdm+aux', 'tuning': 'dm-adapter', 'grad_checkpoint': True},
           'lora': {'loss_names': 'sdm', 'tuning': 'lora', 'lora_targets': ('q', 'out', 'mlp')},
           'frozen parts': {'loss_names': 'sdm+mlm+id', 'freeze': ('visual.*', 'mlm_head.*')},
           'prefix': {'loss_names': 'sdm', 'tuning': 'prefix', 'prefix_length': 4}}


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_sharded_run_equals_that_of_one_process(processes, archive, tmp_path, recipe):
    settings = RECIPES[recipe]
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
    run = train_and_save(archive, settings, tmp_path / 'one', False)
    expected, embeddings, expected_last, (parameters, state) = run
    ranks = processes.run(train_and_save, archive, settings, tmp_path / 'two', True)
    for rank, (results, rank_embeddings, last, (local_parameters, local_state)) in enumerate(ranks):
        assert_close(results, expected)
        assert_close(last, expected_last)
        torch.testing.assert_close(rank_embeddings[:1], embeddings[:1], rtol=1e-5, atol=1e-5)
        assert len(rank_embeddings) == rank + 1
        assert local_parameters < 0.6 * parameters and local_state < 0.6 * state
    one, two = (torch.load(tmp_path / name / 'last.pth') for name in ('one', 'two'))
    assert list(one['model']) == list(two['model'])
    assert one['optimizer']['param_groups'] == two['optimizer']['param_groups']
    for name, weight in one['model'].items():
        assert type(two['model'][name]) is torch.Tensor
        torch.testing.assert_close(two['model'][name], weight, rtol=1e-5, atol=1e-5)
    for number, moments in one['optimizer']['state'].items():
        torch.testing.assert_close(two['optimizer']['state'][number], moments, rtol=1e-3, atol=1e-5)
    # The file can be resumed with --shard, by two processes without it, and by one process.
    last_path = tmp_path / 'two' / 'last.pth'
    for results in (*processes.run(resume, archive, settings, tmp_path, True, last_path),
                    *processes.run(resume, archive, settings, tmp_path, False, last_path),
                    resume(archive, settings, tmp_path, False, last_path)):
        assert_close(results, expected_last)


class Momentum(HasTrainingOnlyParts, SDM):
    pass


def error_messages(archive):
    """The errors with micro batches, with fp16 and with a head that changes parameters."""
    messages = []
    for change in ({'micro_batch': 2}, {'amp': 'fp16'}, {'head': Momentum}):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as error:
            if 'amp' in change:
                patch.setattr(precision, 'amp_dtype', lambda amp, device: torch.float16)
            if 'head' in change:
                patch.setattr(build, 'active_heads', lambda args: [Momentum])
            Run(archive, {'loss_names': 'sdm'}, '', True, micro_batch=change.get('micro_batch'))
        messages.append(str(error.value))
    return messages


def test_unsupported_options(processes, archive):
    for micro_batch, half, momentum in processes.run(error_messages, archive):
        assert '--shard cannot be combined with --micro_batch' in micro_batch and '--grad_checkpoint' in micro_batch
        assert 'give --amp bf16 or off' in half
        assert "--shard does not support the loss 'sdm', which changes parameters after a step" in momentum
