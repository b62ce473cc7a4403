"""The benchmark's parts: which ways each compares, and a row for each of them."""
import sys
import tempfile

from run_scripts.benchmark import machine, switches
from run_scripts.benchmark.child import in_child
from run_scripts.benchmark.encoding import measure_encoding
from run_scripts.benchmark.memory import count_memory
from run_scripts.benchmark.processes import counts, measure_processes
from run_scripts.benchmark.profiling import measure_profile
from run_scripts.benchmark.ranking import DIMENSIONS, measure_ranking
from run_scripts.benchmark.reading import make_dataset, measure_reading
from run_scripts.benchmark.released_way import BYTES_A_PAIR
from run_scripts.benchmark.step import measure_step
from run_scripts.benchmark.workload import Way

RELEASED = 'released way'


def say(line):
    print(line, file=sys.stderr, flush=True)


def ways_to_train(setting):
    pieces = max(1, setting.batch_size // 4)
    ways = [
        Way('ours'),
        Way('ours, images from the cache', cached=True),
        Way('ours, --compile', ('--compile',)),
        Way('ours, --grad_checkpoint', ('--grad_checkpoint',)),
        Way(f'ours, --micro_batch {pieces}', ('--micro_batch', str(pieces))),
        Way('ours, scores at all positions', switch=switches.score_all_positions),
        Way('ours, two text passes', switch=switches.pass_twice),
        Way('ours, attention by explicit maps', switch=switches.attend_by_maps),
        Way('ours, a group a parameter, not fused', switch=switches.group_each_parameter),
        Way('ours, activations kept', switch=switches.keep_activations),
        Way('ours, activations kept, QuickGELU as a product', switch=switches.multiply_sigmoid),
        Way('ours, chosen words found on the GPU', switch=switches.look_nothing_up, gpu_only=True),
        Way('ours, read and synchronised each step', switch=switches.read_each_step, gpu_only=True),
        Way('ours, --amp off', ('--amp', 'off'), gpu_only=True),
        *([Way('ours, --amp bf16', ('--amp', 'bf16'))] if not setting.on_gpu and machine.cpu_has_bf16() else []),
        Way(RELEASED, released=True)]
    return [way for way in ways if (setting.on_gpu or not way.gpu_only) and not (setting.quick and '--compile' in way.flags)]


def step_rows(setting):
    for way in ways_to_train(setting):
        say(f'step: {way.name}')
        yield {'way': way.name, **in_child(measure_step, way, setting)}


def memory_rows(setting):
    ways = [Way('ours'), Way('ours, activations kept', switch=switches.keep_activations),
            Way('ours, --grad_checkpoint', ('--grad_checkpoint',)), Way('ours, --micro_batch 16', ('--micro_batch', '16')),
            Way(RELEASED, released=True)]
    for way in ways:
        say(f'memory: {way.name}')
        yield {'way': way.name, **in_child(count_memory, way, setting)}


def profile_rows(setting):
    say('profile: ours')
    result = in_child(measure_profile, setting)
    if 'error' in result:
        yield {'table': 'parts', 'group': 'ours', **result}
    for table in ('parts', 'operators'):
        yield from ({'table': table, **row} for row in result.get(table, ()))


def process_rows(setting):
    for count in counts(setting):
        for together in (True, False)[:count]:
            way = 'one batch' if together else 'each its rows alone'
            say(f'processes: {count}, {way}')
            yield {'way': way, **in_child(measure_processes, count, together, setting)}


def data_rows(setting):
    kinds = {'JPEG files': 'jpeg', 'image cache': 'cache', 'image cache, finished on the device': 'finished', RELEASED: 'released'}
    with tempfile.TemporaryDirectory() as root:
        say(f'data: drawing {4 * (setting.ids + 1)} images')
        made = in_child(make_dataset, root, setting.ids)
        for way, kind in kinds.items():
            say(f'data: {way}')
            yield {'way': way, **(made if 'error' in made else in_child(measure_reading, kind, root, setting))}


def encode_rows(setting):
    full = {'ours, --amp off': '--amp off'} if setting.on_gpu else {}
    kinds = {'images': {'ours': 'ours', 'ours, images from the cache': 'cache', **full, RELEASED: 'released'},
             'captions': {'ours': 'ours', "ours, in the annotation's order": 'order', 'ours, all 77 positions': 'whole', **full,
                          RELEASED: 'released'}}
    for side, ways in kinds.items():
        for way, kind in ways.items():
            say(f'encode: {side}, {way}')
            yield {'group': side, 'way': way, **in_child(measure_encoding, side, kind, setting)}


RANKERS = {   # way: (name, bytes that it takes for each query and image)
    'ours': ('ours', 0), 'ours, all similarities at once': ('matrix', 4), RELEASED: ('released', BYTES_A_PAIR)}


def rank_rows(setting):
    for name, *sizes in setting.rankings:
        ours = {}
        for way, (kind, bytes_a_pair) in RANKERS.items():
            say(f'rank: {name}, {way}')
            found = rank_if_it_fits(kind, bytes_a_pair, sizes, setting)
            ours = ours or found
            yield {'group': name, 'way': way, 'queries': sizes[0], 'gallery': sizes[1], **found, **disagreement(ours, found, sizes[0])}


def rank_if_it_fits(kind, bytes_a_pair, sizes, setting):
    queries, gallery, _ = sizes
    needed = bytes_a_pair * queries * gallery + 4 * DIMENSIONS * (queries + gallery)   # and the embeddings
    return {'does_not_fit': needed} if needed > machine.free_memory() else in_child(measure_ranking, kind, sizes, setting)


def disagreement(ours, other, queries):
    """``{'error': ...}`` where both have metrics and these differ by more than the rounding of similarities explains."""
    if 'metrics' not in ours or 'metrics' not in other:
        return {}
    allowed = {'R1': 200 / queries, 'mAP': 0.005, 'mINP': 0.005}    # which may change the first place of two queries
    if all(abs(ours['metrics'][name] - other['metrics'][name]) <= most for name, most in allowed.items()):
        return {}
    return {'error': f"all ways must rank alike, and this found {other['metrics']}, ours {ours['metrics']}"}


PARTS = {'step': step_rows, 'memory': memory_rows, 'profile': profile_rows, 'processes': process_rows,
         'data': data_rows, 'encode': encode_rows, 'rank': rank_rows}
