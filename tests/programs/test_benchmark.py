"""The benchmark: the reference gives equal results, and a switch takes out one optimization and changes no result."""
import functools
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from datasets import build_dataloader
from datasets.device_augmentation import augment_on_device
from model import build_model
from model.build import RetrievalModel, total_loss
from model.clip_model import SiLULinear
from model.clip_weights import shape_named
from processor.evaluation import embed
from run_scripts.benchmark import __main__ as program
from run_scripts.benchmark import (
    encoding, machine, memory, peers, processes, profiling, ranking, reference, report, rows, step, switches)
from run_scripts.benchmark.child import measure_in_child
from run_scripts.benchmark.ranking import synthetic_embeddings
from run_scripts.benchmark.rows import REFERENCE, find_disagreement, training_variants
from run_scripts.benchmark.settings import PART_NAMES, QUICK, Variant
from run_scripts.benchmark.workload import (
    TrainingSteps, build_reference_model, build_training_model, recipe_options, synthetic_batches)
from tests.support import compute_gradients
from utils.errors import UserError
from utils.machine import core_count, peak_bytes

SMALL = replace(QUICK, batch_size=3, batches=1, repeats=2, images=3, captions=5, ids=3,
                rankings=(('small', 20, 30, 5),))


def measure_here(measure, *arguments):
    """Measure in this process, if the process is not what is tested: each further one takes a second to start."""
    try:
        return measure(*arguments)
    except UserError as error:
        return {'error': str(error)}


@pytest.fixture(scope='module', autouse=True)
def programs_with_small_vocabulary():
    """Replace the fixture of all programs: captions have real lengths only with all of CLIP's tokens."""


@pytest.fixture(scope='module')
def batch():
    """A batch of the reference implementation; Pedestal does not read its mlm_ids."""
    only, = synthetic_batches(SMALL, Variant(REFERENCE, is_reference=True))
    return only


def without_mlm_ids(batch):
    return {name: value for name, value in batch.items() if name != 'mlm_ids'}


def is_close(a, b, tolerance=1e-4):
    """Whether the largest difference is small, relative to the largest value."""
    return (a - b).abs().max() <= tolerance * b.abs().max() + 1e-9


# -- the reference implementation gives our results ------------------------------------------------------------------

def test_same_losses_and_gradients(batch):
    trainer = TrainingSteps(recipe_options(SMALL))
    results = compute_gradients(trainer.model, without_mlm_ids(batch))
    released = reference.ReferenceIRRA(trainer.args, trainer.model).train()
    released_results = released(batch)
    total_loss(released_results).backward()
    assert set(released_results) == set(results) - {'temperature'}
    for name, value in released_results.items():
        assert value.item() == pytest.approx(results[name].item(), rel=1e-4), name
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    for name, parameter in released.named_parameters():
        assert is_close(parameter.grad, gradients.pop(name)), name
    assert not gradients


def test_same_weights_after_steps(batch):
    trainer, args = TrainingSteps(recipe_options(SMALL)), recipe_options(SMALL)
    released = reference.ReferenceTrainer(args, build_reference_model(args).train())
    before = trainer.model.classifier.weight.clone()
    for _ in range(2):
        trainer(without_mlm_ids(batch))
        loss = released.train_step(batch)
    assert loss == pytest.approx(trainer.latest['loss'], rel=1e-4)
    changed = dict(trainer.model.named_parameters())
    assert not torch.equal(changed['classifier.weight'], before)
    for name, parameter in released.model.named_parameters():
        assert is_close(parameter, changed[name], 1e-3), name


def test_half_weights_are_those_of_matrices_and_compute_nearly_the_same(batch):
    args, batch = recipe_options(SMALL), {name: value[:1] for name, value in batch.items()}
    expected = build_reference_model(args)
    half = build_reference_model(args).convert_weights_to_half()
    stored = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    assert all('ln_' in name or 'embedding' in name or name == 'mlm_head.ln.weight' or name == 'mlm_head.ln.bias'
               for name in stored)
    assert {'base_model.visual.ln_pre.weight', 'base_model.token_embedding.weight'} <= stored
    results = half(batch)
    assert all(value.dtype == torch.float32 for value in results.values())
    total_loss(results).backward()
    assert half.classifier.weight.grad.dtype == torch.float16
    for name, value in expected(batch).items():
        if name.endswith('_loss'):
            assert results[name].item() == pytest.approx(value.item(), rel=2e-2), name


def test_same_embeddings():
    args = recipe_options(SMALL)
    model, released = build_training_model(args).eval(), build_reference_model(args).eval()
    loaders = {'encode_text': encoding.build_caption_loader(args, SMALL),
               'encode_image': encoding.image_batches(args, SMALL, from_cache=False)}
    for side, loader in loaders.items():
        results = reference.embed(getattr(released, side), [batch for _, batch in loader], 'cpu')
        assert is_close(results, embed(model, loader, side.removeprefix('encode_'))[0])


@pytest.mark.parametrize('kind, by_length, cut', [('ours', True, True), ('order', False, True), ('whole', True, False)])
def test_ways_to_encode_captions(kind, by_length, cut, monkeypatch):
    real, seen = RetrievalModel.encode_text, []
    monkeypatch.setattr(RetrievalModel, 'encode_text', lambda model, ids: seen.append(ids) or real(model, ids))
    encoding.measure_encoding('captions', kind, replace(SMALL, repeats=1, captions=20))   # in four batches
    lengths = (seen[0] > 0).sum(dim=1).tolist()
    assert (lengths == sorted(lengths, reverse=True)) == by_length
    assert seen[0].shape[1] == (-(-max(lengths) // 8) * 8 if cut else 77)


def test_images_of_the_cache_embed_as_the_same_images_in_floats():
    args = recipe_options(SMALL)
    model = build_training_model(args).eval()
    floats, cached = (embed(model, encoding.image_batches(args, SMALL, cached), 'image')[0]
                      for cached in (False, True))
    assert torch.equal(floats, cached)


@pytest.mark.parametrize('sizes', [(40, 30, 7), (10, 200, 20), (7, 5, 5)])
def test_same_figures(sizes):
    embeddings = synthetic_embeddings(*sizes)
    ours, released = ranking.rank_in_blocks(*embeddings), ranking.rank_by_reference(*embeddings)
    assert ranking.rank_matrix(*embeddings) == pytest.approx(ours, abs=1e-4)
    assert ours == pytest.approx(released, abs=1e-3) and 0 < ours['mINP'] <= ours['mAP'] < 100
    assert find_disagreement({'metrics': ours}, {'metrics': released}, sizes[0]) == {}


def test_released_ranking_by_hand():
    cmc, mAP, mINP = reference.rank(torch.tensor([[.9, .1, .5, .3]]), torch.tensor([1]), torch.tensor([0, 0, 1, 1]),
                                    max_rank=3)
    assert cmc.tolist() == [0, 100, 100]
    assert mAP.item() == pytest.approx(100 * (1 / 2 + 2 / 3) / 2) and mINP.item() == pytest.approx(100 * 2 / 3)


def test_released_loader_yields_what_ours_does(data):
    args = recipe_options(SMALL, '--root_dir', data, '--img_size', '64', '32', '--num_workers', '0')
    loader = build_dataloader(args)[0]
    batch = next(iter(loader))
    released = next(iter(reference.build_training_loader(loader.dataset.samples, args.img_size, args.batch_size, 0)))
    del batch['index']      # of the pair, which the released loader does not know
    assert set(released) == set(batch) | {'mlm_ids'}
    assert all(released[name].shape == value.shape and released[name].dtype == value.dtype
               for name, value in batch.items())
    assert torch.equal(released['caption_ids'], released['mlm_ids']) and (released['mlm_labels'] > 0).any(dim=1).all()


# -- every switch takes out one thing and changes no number ----------------------------------------------------------

def run_and_observe(way, batch, monkeypatch):
    """(results of a step, how it was computed)."""
    trainer = TrainingSteps(recipe_options(SMALL, *way.flags))
    if way.switch:
        way.switch(trainer)
    seen = {'text passes': 0, 'kernels of attention': False, 'SiLUs': False, 'activated again': False, 'reads': 0}
    mlm = next(head for head in trainer.model.heads if 'mlm' in head.names)
    encode_text, sdpa, silu = trainer.model.base_model.encode_text, F.scaled_dot_product_attention, F.silu
    read = reference.read_and_synchronize

    def wrap(real, **changes):
        def wrapper(*arguments, **settings):
            seen.update({name: change(*arguments) if callable(change) else seen[name] + change
                         for name, change in changes.items()})
            return real(*arguments, **settings)
        return wrapper
    trainer.model.base_model.encode_text = wrap(encode_text, **{'text passes': 1})
    mlm.forward = wrap(mlm.forward, **{'places known': lambda encoded, batch: 'host_mlm_positions' in batch})
    trainer.model.mlm_head.fc.register_forward_pre_hook(lambda _, inputs: seen.update(scored=inputs[0][..., 0].numel()))
    with monkeypatch.context() as patched:
        patched.setattr(F, 'scaled_dot_product_attention', wrap(sdpa, **{'kernels of attention': lambda *_: True}))
        patched.setattr(F, 'silu', wrap(silu, SiLUs=lambda *_: True))
        patched.setattr(SiLULinear, 'apply', wrap(SiLULinear.apply, **{'activated again': lambda *_: True}))
        patched.setattr(reference, 'read_and_synchronize', wrap(read, reads=1))
        trainer(without_mlm_ids(batch))
    groups = trainer.step.optimizer.param_groups
    seen.update({'groups': len(groups), 'fused': all(group['fused'] for group in groups)})
    return trainer.latest, seen


@pytest.fixture(scope='module')
def usual(batch):
    with pytest.MonkeyPatch.context() as patched:
        return run_and_observe(Variant('ours'), batch, patched)


def parameters():
    return len(list(build_training_model(recipe_options(SMALL)).parameters()))


@pytest.mark.parametrize('switch, changed', [
    (switches.score_all_positions, lambda: {'scored': 3 * 77}),
    (switches.encode_text_twice, lambda: {'text passes': 2}),
    (switches.materialize_attention, lambda: {'kernels of attention': False}),
    (switches.use_group_per_parameter, lambda: {'groups': parameters(), 'fused': False}),
    (switches.save_activations, lambda: {'activated again': False}),
    (switches.multiply_sigmoid, lambda: {'activated again': False, 'SiLUs': False}),
    (switches.find_tokens_on_device, lambda: {'places known': False}),
    (switches.read_each_step, lambda: {'reads': 1}),
])
def test_a_switch_takes_out_one_thing(switch, changed, usual, batch, monkeypatch):
    expected, how = usual
    chosen = int((batch['mlm_labels'] > 0).sum())
    assert how == {'text passes': 1, 'kernels of attention': True, 'SiLUs': True, 'activated again': True, 'reads': 0,
                   'places known': True, 'scored': chosen, 'groups': how['groups'], 'fused': True}
    assert how['groups'] < 10
    results, how_switched = run_and_observe(Variant('', switch=switch), batch, monkeypatch)
    assert how_switched == {**how, **changed()}
    assert results == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('has_bf16', [False, True])
def test_a_cpu_that_multiplies_in_bf16_is_measured_in_it(monkeypatch, has_bf16):
    monkeypatch.setattr(machine, 'cpu_has_bf16', lambda: has_bf16)
    flags = [variant.flags for variant in training_variants(SMALL)]
    assert (('--amp', 'bf16') in flags) is has_bf16
    assert ('--amp', 'bf16') not in [variant.flags for variant in training_variants(replace(SMALL, device='cuda'))]


def test_every_optimisation_has_a_way(batch, monkeypatch):
    monkeypatch.setattr(machine, 'cpu_has_bf16', lambda: False)
    on_gpu, on_cpu, quick = (training_variants(replace(SMALL, device=device, quick=quick)) for device, quick in
                             (('cuda', False), ('cpu', False), ('cpu', True)))
    assert [variant.name for variant in on_gpu][::len(on_gpu) - 1] == ['ours', REFERENCE]
    assert [variant for variant in on_gpu if not variant.gpu_only] == on_cpu
    assert [variant.flags for variant in on_cpu if variant not in quick] == [('--compile',)]
    assert all(sum(map(bool, (variant.flags, variant.switch, variant.is_reference, variant.uses_image_cache))) == 1
               for variant in on_gpu[1:])
    switch_functions = {function for function in vars(switches).values()
                        if getattr(function, '__module__', '') == switches.__name__
                        and list(inspect.signature(function).parameters) == ['training']}
    assert {variant.switch for variant in on_gpu if variant.switch} == switch_functions
    recipe = recipe_options(SMALL)
    for variant in on_cpu:     # each flag is one of train.py's, and changes the option that it names
        changed = {name for name, value in vars(recipe_options(SMALL, *variant.flags)).items()
                   if value != getattr(recipe, name)}
        assert changed == {flag.removeprefix('--') for flag in variant.flags[:1]}


def test_all_ways_train_on_the_same_samples():
    a, b, c = (synthetic_batches(SMALL, variant)[0] for variant in (Variant('ours'), Variant('', uses_image_cache=True),
                                                            Variant('', is_reference=True)))
    assert all(torch.equal(a[name], b[name]) for name in a if name != 'images')
    assert all(torch.equal(a[name], c[name]) for name in a)
    assert torch.equal(augment_on_device(b['images'], b['augmentation_params']), a['images'])
    lengths = (a['caption_ids'] > 0).sum(dim=1)
    assert lengths.min() >= 22 and lengths.max() <= 42


# -- other libraries -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('peer', peers.PEERS, ids=lambda peer: peer.name)
def test_a_peer_trains_our_loss(peer, batch, tmp_path):
    pytest.importorskip(peer.package)
    flags = ['--loss_names', 'itc', '--img_size', '224', '224']     # of the table of positions, which is not resized
    batch = {**without_mlm_ids(batch), 'images': torch.randn(3, 3, 224, 224)}
    steps = peers.PeerSteps(peer, recipe_options(SMALL, *flags))
    weights = {name: value.clone() for name, value in steps.loss.model.state_dict().items()}
    torch.save(weights, tmp_path / 'clip.pt')
    first, later = steps(batch).item(), [steps(batch).item() for _ in range(3)]
    assert later[-1] < first

    temperature = 1 / weights['logit_scale'].exp().item()
    args = recipe_options(SMALL, *flags, '--pretrain_choice', str(tmp_path / 'clip.pt'), '--temperature',
                          str(temperature))
    assert compute_gradients(build_model(args, 3), batch)['itc_loss'].item() == pytest.approx(first, rel=1e-4)


def fake_turn(seconds, setting):
    if seconds < 0:
        raise UserError('too large')
    return lambda: {'seconds': [seconds], 'others': 0.0, 'peak_bytes': 7, 'cpu_seconds': seconds}


def test_peers_take_turns_and_a_missing_package_is_a_row(monkeypatch):
    monkeypatch.setattr(peers, 'PEERS', (peers.Peer('slow', 'json', 'json', None), peers.Peer('bad', 'json', '', None),
                                         peers.Peer('other', 'no_such_package', 'pip-name', None)))
    monkeypatch.setattr(peers, 'list_turns', lambda variants, flags, setting: {
        name: (fake_turn, seconds, setting) for name, seconds in zip(variants, (2.0, 3.0, -1.0))})
    ours, slow, bad, other = peers.measure_peers((), SMALL)
    assert ours['ratio'] == 1 and slow['ratio'] == 1.5 and slow['seconds'] == [3.0, 3.0]
    assert bad == {'way': 'bad', 'error': 'too large'} and report.format_note(other) == (
        'not installed: pip install pip-name')


# -- what is counted -------------------------------------------------------------------------------------------------

def test_flops_are_those_of_a_step(batch):
    trainer = TrainingSteps(recipe_options(SMALL))
    # whose backward computes nothing again
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        compute_gradients(trainer.model, without_mlm_ids(batch))
    assert sum(step.count_step_flops(recipe_options(SMALL),
                                     step.mean_masked_tokens([batch])).values()) == counter.get_total_flops()


def test_parts_add_up_to_the_step():
    results = profiling.measure_profile(SMALL)
    shares = {row['group']: row['share'] for row in results['parts']}
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0
    assert max(shares, key=shares.get) in ('backward', 'image encoder', 'heads and losses')
    costs = [row['share'] for row in results['operators']]
    assert costs == sorted(costs, reverse=True) and 0 < sum(costs) <= 1.0001
    assert {'linear layers, forward', 'linear layers, backward'} <= {row['what'] for row in results['operators']}


def test_a_batch_on_two_processes(monkeypatch):
    # Spawned processes, as those of a user, would import PyTorch again.
    monkeypatch.setattr(torch.multiprocessing, 'spawn', functools.partial(torch.multiprocessing.start_processes,
                                                                          start_method='forkserver'))
    results = processes.measure_processes(2, True, SMALL)
    assert results['processes'] == 2 and results['samples'] == SMALL.batch_size * SMALL.steps
    assert len(results['seconds']) == SMALL.repeats and min(results['seconds']) > 0


def test_repeats_and_the_end_of_patience():
    calls = []
    timing, last = machine.measure_time(lambda: calls.append(1) or len(calls), 'cpu', 4, 60)
    assert len(timing['seconds']) == 4 and last == len(calls) == 5                      # one to warm up
    timing, _ = machine.measure_time(lambda: time.sleep(0.02), 'cpu', 4, 0.01)
    assert len(timing['seconds']) == 1 and timing['seconds'][0] >= 0.02


@pytest.mark.skipif(not os.path.exists('/proc/stat') or core_count() != os.cpu_count(),
                    reason='the system does not say')
def test_who_is_disturbed_is_told():
    with subprocess.Popen([sys.executable, '-c', 'print(1, flush=True)\nwhile True: pass'],
                          stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        timing, _ = machine.measure_time(lambda: time.sleep(0.5), 'cpu', 1, 60)
        other.kill()
    assert timing['others'] * core_count() > 0.4
    assert report.format_note({'others': 0.35}) == 'disturbed: other programs used 35% of the cores'
    assert report.format_note({'others': 0.05}) == ''
    assert report.format_note({'others': 0.35, 'error': 'why'}).endswith('cores; why')


def allocate(size):
    torch.ones(2 ** 20).sum()       # loads what PyTorch loads at its first operation, 19 MB on some processors
    before = peak_bytes()
    torch.ones(size // 4)
    return {'grown': peak_bytes() - before}


def test_memory_is_that_of_the_row_alone():
    assert measure_in_child(allocate, 200_000_000)['grown'] == pytest.approx(200e6, rel=0.1)
    # not that of the row before
    assert measure_in_child(allocate, 50_000_000)['grown'] == pytest.approx(50e6, rel=0.2)


def test_memory_that_is_counted():
    counted = {variant: measure_in_child(memory.count_memory, Variant(variant, flags, switch, released), SMALL)
               for variant, flags, switch, released in [('ours', (), None, False),
                                                    ('kept', (), switches.save_activations, False),
                                                    ('checkpoint', ('--grad_checkpoint',), None, False),
                                                    ('pieces', ('--micro_batch', '16'), None, False),
                                                    (REFERENCE, (), None, True)]}
    parameters = sum(parameter.numel() for parameter in build_training_model(recipe_options(SMALL)).parameters())
    ours = counted['ours']
    assert ours['state_bytes'] == 16 * parameters
    assert 8 * parameters < counted[REFERENCE]['state_bytes'] < 16 * parameters
    for row in counted.values():
        assert row['total_bytes'] == row['state_bytes'] + row['once_bytes'] + row['held'] * row['sample_bytes']
    a_sample = {variant: row['sample_bytes'] for variant, row in counted.items()}
    assert a_sample['checkpoint'] < a_sample['ours'] < a_sample['kept'] < a_sample[REFERENCE]
    assert counted['pieces'] == {**ours, 'held': 16, 'total_bytes': ours['total_bytes'] - 48 * ours['sample_bytes']}
    # Per block: inputs of both LayerNorms in float32; inputs of linear layers, queries, keys, values and the hidden
    # layer in bf16.
    shape = shape_named('scratch:tiny')
    block = (24 * 8 + 1) * shape.vision_width * (2 * 4 + 2 * (1 + 3 + 1 + 1 + 4))
    assert a_sample['ours'] > shape.vision_layers * block


def test_estimate_of_the_released_ranking_is_what_it_takes():
    taken = measure_in_child(ranking.measure_ranking, 'reference', (2000, 3000, 100),
                             replace(SMALL, repeats=1))['peak_bytes']
    assert 2000 * 3000 * reference.RANKING_BYTES_PER_PAIR == pytest.approx(taken, rel=0.25)


# -- rows that fail --------------------------------------------------------------------------------------------------

def refuse():
    raise UserError('a sentence')


def run_out():
    raise RuntimeError('out of memory: tried to allocate 8 EB\nat some place')


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('measure, why', [
    (refuse, 'a sentence'), (run_out, 'RuntimeError: out of memory: tried to allocate 8 EB'),
    (kill_itself, 'ended by SIGKILL, probably because memory ran out')])
def test_what_fails_says_why(measure, why):
    assert measure_in_child(measure) == {'error': why}


def test_ways_that_rank_differently_are_an_error():
    figures = {'R1': 50.0, 'mAP': 40.0, 'mINP': 10.0}
    for name, least in (('R1', 0.21), ('mAP', 0.006), ('mINP', -0.006)):
        other = {'metrics': {**figures, name: figures[name] + least}}
        assert 'the metrics must be equal' in find_disagreement({'metrics': figures}, other, 1000)['error']
    assert find_disagreement({'metrics': figures}, {'metrics': {**figures, 'R1': 50.1}}, 1000) == {}
    assert find_disagreement({'error': 'x'}, {'metrics': figures}, 1000) == {}


@pytest.mark.parametrize('argv, message', [
    (['--quik'], 'unknown flag --quik; did you mean --quick'),
    (['--parts', 'speed'], "invalid choice: 'speed'"),
    (['--parts', 'rank', '--batch_size', '0'], 'must be above 0'),
    (['--device', 'tpu'], 'tpu'),
    (['--device', 'cpu', '--amp', 'fp16'], '--amp fp16 needs a GPU'),
    (['--device', 'cpu', '--json', 'no/such/folder/file.json'], 'cannot write no/such/folder/file.json'),
])
def test_wrong_flags(argv, message, monkeypatch):
    for name in rows.PARTS:
        monkeypatch.setitem(rows.PARTS, name, lambda setting: pytest.fail('something was measured'))
    monkeypatch.setattr(machine, 'matrix_rate', lambda device: {})
    monkeypatch.setattr(program, 'measure_in_child', measure_here)
    with pytest.raises(UserError, match=message):
        program.main(argv)


def test_every_part_can_be_named():
    assert list(rows.PARTS) == PART_NAMES


# -- the whole -------------------------------------------------------------------------------------------------------

def test_quick_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, 'QUICK', SMALL)
    monkeypatch.setattr(program, 'measure_in_child', measure_here)
    monkeypatch.setattr(machine, 'CPU_SIZE', 256)       # products of the large matrices take 10 s of a core
    monkeypatch.setattr(report, 'MAX_OTHER_LOAD', 10)   # other tests may run beside this one
    variants = [Variant('ours'), Variant('ours, twice', switch=switches.encode_text_twice),
            Variant('broken', ('--img_size', '1', '1')), Variant(REFERENCE, is_reference=True)]
    monkeypatch.setattr(rows, 'training_variants', lambda setting: variants)
    monkeypatch.setattr(peers, 'PEERS', ())
    monkeypatch.setattr(rows, 'process_counts', lambda setting: [1])     # each further process takes seconds to start
    monkeypatch.setattr(rows, 'measure_in_child', lambda measure, *arguments: (
        measure_in_child if measure is step.measure_step else measure_here)(measure, *arguments))
    path, markdown = tmp_path / 'found.json', tmp_path / 'found.md'
    # broken
    assert program.main(['--quick', '--device', 'cpu', '--json', str(path), '--markdown', str(markdown),
                         '--repeats', '1']) == 1
    results = json.loads(path.read_text())
    assert results['settings']['quick'] and results['settings']['batch_size'] == 3
    assert results['settings']['repeats'] == 1
    assert {'cpu', 'cores', 'threads', 'memory', 'matrix_rate', 'versions'} <= set(results['machine'])
    assert 'T' in results['date']
    assert set(results['machine']['versions']) == {'python', 'torch', 'torchvision', 'numpy', 'pillow'}

    output = results['rows']
    assert {row['part'] for row in output} == set(rows.PARTS)
    assert [row['way'] for row in output if 'error' in row] == ['broken']
    measured = [row for row in output if 'error' not in row and row['part'] != 'memory']
    assert all(len(row['seconds']) == 1 and row['median'] == row['seconds'][0] > 0 for row in measured)
    steps = {row['way']: row for row in measured if row['part'] == 'step'}
    ours, released = steps['ours'], steps[REFERENCE]
    assert ours['per_second'] == pytest.approx(3 / ours['median'])
    assert ours['speed'] == pytest.approx(released['median'] / ours['median'])
    assert ours['mfu'] == pytest.approx(ours['model_flops'] / ours['median'] / results['machine']['matrix_rate'])
    assert released['speed'] == released['memory'] == 1
    assert ours['memory'] == pytest.approx(ours['peak_bytes'] / released['peak_bytes'])
    reading = {row['way']: row for row in output if row['part'] == 'data'}
    assert reading['JPEG files']['passed_bytes'] > 3.9 * reading['image cache']['passed_bytes'] > 3 * 384 * 128
    ranked = [row for row in output if row['part'] == 'rank']
    assert len(ranked) == 3 and all(row['metrics'] == pytest.approx(ranked[0]['metrics'], abs=1e-3) for row in ranked)

    printed = capsys.readouterr()
    tables = {row.get('table', row['part']) for row in output}
    assert printed.out.count('QUICK, not a realistic run') == len(tables) > len(rows.PARTS)
    # The cell continues on further lines.
    assert '--img_size' in printed.out and '--img_size 1 1 is too small' in markdown.read_text()
    assert 'step: ours, twice' in printed.err and 'Traceback' not in printed.err
    assert '| ours, twice |' in markdown.read_text() and not list(tmp_path.glob('*.tmp'))


def test_what_is_disturbed_is_not_compared():
    results = report.Report(None, None, SMALL)
    variants = [{'way': 'ours', 'median': 1.0, 'others': 0.01}, {'way': 'slow', 'median': 4.0, 'others': 0.5},
            {'way': REFERENCE, 'median': 3.0, 'others': 0.02}]
    results.compare(variants)
    assert [variant.get('speed') for variant in variants] == [3.0, None, 1.0]
    variants = [{'way': 'ours', 'median': 1.0}, {'way': REFERENCE, 'median': 3.0, 'others': 0.5}]
    results.compare(variants)
    assert not any('speed' in variant for variant in variants)


def test_what_does_not_fit_is_not_tried(monkeypatch, tmp_path):
    monkeypatch.setattr(program, 'QUICK', replace(SMALL, rankings=(('huge', 10, 10_000, 100),)))
    monkeypatch.setattr(rows, 'available_memory', lambda: 22_000_000)    # the embeddings take 20.5
    monkeypatch.setattr(machine, 'matrix_rate', lambda device: {'matrix_rate': 1e9, 'matrix_precision': 'float32'})
    for module in (program, rows):
        monkeypatch.setattr(module, 'measure_in_child', measure_here)
    markdown = tmp_path / 'rank.md'
    assert program.main(['--quick', '--parts', 'rank', '--device', 'cpu', '--markdown', str(markdown)]) == 0
    lines = [line for line in markdown.read_text().splitlines() if '| huge ' in line]
    assert ['does not fit (needs 24.2 MB)' in line and '| -' in line for line in lines] == [False, False, True]
