"""Optimizations of speed and memory do not change the results of a training step."""
import shutil

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from model import build_model
from model.build import total_loss
from model.heads.a2te import exponential_race
from processor.build import build_step
from run_scripts.benchmark.memory import saved_bytes
from solver import build_optimizer
from solver.build import parameter_settings
from tests.support import compute_gradients, golden_archive, golden_json, options, small_batch, small_model

aten = torch.ops.aten
# Operations for which the host waits for a GPU: they read a value, have a shape that depends on values, or copy numbers
# from the host (lift_fresh).
HOST_READS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim,
              aten.is_nonzero, aten.equal, aten.multinomial, aten.repeat_interleave, aten.bincount, aten.lift_fresh}


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


@pytest.fixture(scope='module')
def one_block_archive(archive, tmp_path_factory):
    """The encoders of ``archive`` with only the first of two blocks each. Each block is compiled for itself."""
    path = tmp_path_factory.mktemp('archive') / 'one_block.pt'
    weights = torch.load(archive, weights_only=True)
    torch.save({name: weight for name, weight in weights.items() if 'resblocks.1.' not in name}, path)
    return str(path)


class NumberAssignments(TorchFunctionMode):
    """Is ``active`` while a number is assigned to a part of a tensor, as in ``x[0] = 1``."""
    active = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.active = function is torch.Tensor.__setitem__ and not isinstance(args[2], torch.Tensor)
        try:
            return function(*args, **(kwargs or {}))
        finally:
            self.active = False


class HostReads(TorchDispatchMode):
    """Collects the operations for which the host would wait for a GPU.

    ``x[0] = 1`` lets a GPU fill ``x[0]`` without waiting. On a CPU, PyTorch 2.14 first creates a tensor of the number
    with ``lift_fresh``, as in ``torch.tensor(1)``. Such a tensor without dimensions does not count.
    """

    def __init__(self):
        super().__init__()
        self.operations, self.assignments = [], NumberAssignments()

    def __enter__(self):
        self.assignments.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.assignments.__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.overloadpacket is aten.lift_fresh and self.assignments.active and args[0].ndim == 0:
            return operation(*args, **(kwargs or {}))
        by_mask = operation.overloadpacket in (aten.index, aten.index_put_, aten._index_put_impl_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if operation.overloadpacket in HOST_READS or by_mask:
            self.operations.append(str(operation))
        return operation(*args, **(kwargs or {}))


def new_step(archive, loss_names, **changes):
    model = small_model(archive, loss_names, **changes).train()
    args = options(loss_names=loss_names, text_length=20, **changes)
    return build_step(model, build_optimizer(args, model), args.micro_batch)


@pytest.mark.parametrize('loss_names, micro_batch', [
    ('sdm+mlm+id', None), ('sdm+mlm+id', 2), ('sdm+mlm+id+cmt+itc+cmpm', None), ('sdm+mae+id+tri', None),
    ('sdm+mae+id+tri', 2), ('sdm+itc+aux', None), ('sdm+id+detail', None)])
def test_no_step_reads_from_the_device(archive, loss_names, micro_batch, monkeypatch):
    step, batch = new_step(archive, loss_names, micro_batch=micro_batch), small_batch()
    step(batch)     # the first step initializes the optimizer state
    # Before a batch is on the device, the host may read it.
    for name in ('trim_padding', 'prepare_on_host'):
        monkeypatch.setattr(step.model, name, without_recording(getattr(step.model, name)))
    with HostReads() as reads:
        step(batch)
    assert reads.operations == []


def without_recording(function):
    """Wrap a function so that :class:`HostReads` does not see its operations."""
    def call(*args):
        with _disable_current_modes():
            return function(*args)
    return call


def test_host_reads_are_found():
    labels = torch.tensor([0, 3])
    for read in (lambda: labels.nonzero(), lambda: labels[labels > 0], lambda: labels.sum().item(),
                 lambda: bool(labels.any()), lambda: torch.tensor([1.0]), lambda: torch.tensor(1.0),
                 lambda: labels.new_tensor([1]), lambda: labels[[0, 1]], lambda: labels.__setitem__([0, 1], 5),
                 lambda: labels.__setitem__(0, torch.tensor(5)),
                 lambda: labels.__setitem__(0, labels[1].item()),
                 lambda: labels.__setitem__(labels > -1, labels.clone())):
        with HostReads() as reads:
            read()
        assert reads.operations


def test_a_number_assigned_is_no_host_read():
    labels = torch.tensor([0, 3, 4])
    with HostReads() as reads:
        labels[0] = 7
        labels[1:] = 8
    assert reads.operations == [] and labels.tolist() == [7, 8, 8]


@pytest.mark.parametrize(
    'read', [lambda loss: loss.item(), lambda loss: float(loss > 0), lambda loss: loss.new_tensor(1.0)])
def test_a_read_in_a_head_is_found(archive, read):
    step, batch = new_step(archive, 'sdm'), small_batch()
    head, = step.model.heads
    forward = head.forward
    head.forward = lambda encoded, fields: {name: loss * read(loss) for name, loss in forward(encoded, fields).items()}
    with HostReads() as reads:
        step(batch)
    assert reads.operations


def test_draws_without_a_host_read_are_the_same():
    torch.manual_seed(0)
    chances = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).repeat(20000, 1)
    drawn = exponential_race(chances).bincount(minlength=4) / len(chances)
    torch.testing.assert_close(drawn, chances[0], atol=0.015, rtol=0)
    assert drawn[3] == 0


def losses_and_gradients(model, batch):
    torch.manual_seed(1)
    model.zero_grad()
    results = model(batch)
    total_loss(results).backward()
    return {name: value.detach() for name, value in results.items()}, clone_gradients(model)


def step_and_gradients(model, batch):
    """Compute the same with a training step."""
    torch.manual_seed(1)
    return compute_gradients(model, batch), clone_gradients(model)


def clone_gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(actual, expected, tolerance=1e-5):
    for actual_values, expected_values in zip(actual, expected):
        assert actual_values.keys() == expected_values.keys()
        for name, value in expected_values.items():
            torch.testing.assert_close(actual_values[name], value, rtol=tolerance,
                                       atol=tolerance * float(value.abs().max()) + 1e-7, msg=name)


RECIPES = ['sdm+mlm+id', 'sdm+mlm+id+cmt', 'sdm+id+amm+detail', 'sdm+mae+id+tri', 'sdm+itc+aux']


@pytest.mark.parametrize('loss_names', RECIPES)
def test_checkpointed_blocks_give_the_same_results(archive, loss_names):
    batch = small_batch()
    reference, checkpointed = (small_model(archive, loss_names, grad_checkpoint=on).train() for on in (False, True))
    checkpointed.load_state_dict(reference.state_dict())
    assert_close(losses_and_gradients(checkpointed, batch), losses_and_gradients(reference, batch))


def test_checkpointed_blocks_need_less_memory(archive):
    batch = small_batch()
    reference, checkpointed = (saved_bytes(small_model(archive, 'sdm+mlm+id', grad_checkpoint=on), batch)
                               for on in (False, True))
    assert checkpointed < reference / 2


def test_scores_at_masked_positions_only(archive):
    model, batch = small_model(archive, 'sdm+mlm'), small_batch()
    shapes = []
    model.mlm_head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    expected = losses_and_gradients(model, batch)
    assert_close(step_and_gradients(model, batch), expected)
    assert shapes == [(6, 512)] * 2
    assert set(model.prepare_on_host(batch)) == {'host_mlm_positions'}


@pytest.mark.parametrize('masking', ['clean', 'inplace'])
def test_words_chosen_by_the_model_are_not_prepared_on_the_host(archive, masking):
    model = small_model(archive, 'sdm+mlm', mlm_masking='attention', caption_masking=masking)
    batch = small_batch()    # with labels, which are not those that will count
    assert_close(step_and_gradients(model, batch), losses_and_gradients(model, batch))


@pytest.mark.parametrize('optimizer', ['Adam', 'AdamW', 'SGD'])
def test_a_skipped_first_step_leaves_no_trace(archive, optimizer):
    """The scaler of fp16 skips steps whose gradients are infinite, often the first one."""
    model = small_model(archive, 'sdm')
    before = [parameter.detach().clone() for parameter in model.parameters()]
    args = options(loss_names='sdm', optimizer=optimizer, weight_decay=0.0)
    optimizer, scaler = build_optimizer(args, model), torch.amp.GradScaler('cpu')
    for gradient in (float('inf'), 0.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize('optimizer', ['Adam', 'AdamW', 'SGD'])
def test_fused_groups_step_as_one_group_a_parameter(archive, optimizer):
    fused, reference = (small_model(archive, 'sdm+mlm+id') for _ in range(2))
    args = options(loss_names='sdm+mlm+id', optimizer=optimizer, lr=1e-3)
    ours = build_optimizer(args, fused)
    assert len(ours.param_groups) < 10
    assert all(bool(group['fused']) == (optimizer != 'SGD') for group in ours.param_groups)
    groups = [{'params': [parameter], 'lr': lr, 'weight_decay': decay}
              for name, parameter in reference.named_parameters()
              for lr, decay in [parameter_settings(name, args)]]
    settings = {'Adam': {'eps': 1e-3}, 'AdamW': {'eps': 1e-8}, 'SGD': {'momentum': 0.9}}[optimizer]
    reference_optimizer = getattr(torch.optim, optimizer)(groups, foreach=False, fused=False, **settings)
    for _ in range(3):
        for one, other in zip(fused.parameters(), reference.parameters()):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        ours.step()
        reference_optimizer.step()
    for one, other in zip(fused.parameters(), reference.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(shutil.which('g++') is None, reason='needs a C++ compiler')
@pytest.mark.parametrize('grad_checkpoint, tuning, backend', [
    (False, 'none', 'inductor'), (True, 'none', 'inductor'),
    # PyTorch traces forward and backward alike, but generates no machine code, which would take a minute.
    (False, 'up-person', 'aot_eager'), (True, 'dm-adapter', 'aot_eager')])
def test_compiled_blocks_compute_the_same_and_once_for_all_lengths(one_block_archive, grad_checkpoint, tuning,
                                                                   backend, monkeypatch):
    from torch._dynamo.utils import counters
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, 'compile',
                        lambda block, **settings: compile_module(block, backend=backend, **settings))
    torch._dynamo.reset()
    reference = small_model(one_block_archive, 'sdm+id', tuning=tuning).train()
    compiled = small_model(one_block_archive, 'sdm+id', tuning=tuning, compile=True,
                           grad_checkpoint=grad_checkpoint).train()
    assert compiled.state_dict().keys() == reference.state_dict().keys()
    compiled.load_state_dict(reference.state_dict())
    graphs = []
    for length in (8, 16, 12, 20):
        batch = small_batch()
        ids = batch['caption_ids'][:, :length - 1].clamp(max=500)
        batch['caption_ids'] = torch.cat([ids, torch.full((6, 1), 511)], dim=1)
        assert_close(losses_and_gradients(compiled, batch), losses_and_gradients(reference, batch), tolerance=1e-4)
        graphs.append(counters['stats']['unique_graphs'])
    assert graphs[0] == graphs[-1] > 0
    assert counters['stats'].get('unique_graphs') and not counters['graph_break']
    torch._dynamo.reset()


def test_without_a_compiler_one_sentence(archive, monkeypatch):
    from utils.errors import UserError

    def missing(*_, **__):
        raise RuntimeError('no compiler\nat all')
    monkeypatch.setattr(torch, 'compile', missing)
    with pytest.raises(UserError, match=r'--compile: PyTorch cannot compile here \(no compiler\); leave it out'):
        small_model(archive, 'sdm', compile=True)


def test_grad_checkpoint_of_a_resnet():
    """Its image encoder has no transformer blocks, so --grad_checkpoint applies to the text encoder only."""
    settings = dict(loss_names='sdm', pretrain_choice='scratch:RN50', img_size=(64, 32))
    model = build_model(options(grad_checkpoint=True, **settings), 5).train()
    batch = {'pids': torch.arange(3), 'images': torch.randn(3, 3, 64, 32),
             'caption_ids': torch.tensor([[49406, 7, 49407, 0]] * 3)}
    total_loss(model(batch)).backward()
    assert model.base_model.transformer.grad_checkpoint
    assert all(parameter.grad is not None for parameter in model.base_model.transformer.parameters())
