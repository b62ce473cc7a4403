"""The parts of the benchmark: the variants that each part compares, and a row for each of them."""
import sys
import tempfile

from run_scripts.benchmark import machine, switches
from run_scripts.benchmark.child import measure_in_child
from run_scripts.benchmark.encoding import measure_encoding
from run_scripts.benchmark.memory import count_memory
from run_scripts.benchmark.peers import measure_peers
from run_scripts.benchmark.processes import measure_processes, process_counts
from run_scripts.benchmark.profiling import measure_profile
from run_scripts.benchmark.ranking import DIMENSIONS, measure_ranking
from run_scripts.benchmark.reading import generate_dataset, measure_reading
from run_scripts.benchmark.reference import RANKING_BYTES_PER_PAIR
from run_scripts.benchmark.settings import Variant
from run_scripts.benchmark.step import measure_step
from utils.machine import available_memory

REFERENCE = 'reference implementation'


def print_progress(line):
    print(line, file=sys.stderr, flush=True)


def training_variants(setting):
    """The variants of the part 'step' on the setting's device."""
    micro_batch = max(1, setting.batch_size // 4)
    has_cpu_bf16 = not setting.on_gpu and machine.cpu_has_bf16()
    variants = [
        Variant('ours'),
        Variant('ours, images from the cache', uses_image_cache=True),
        Variant('ours, --compile', ('--compile',)),
        Variant('ours, --grad_checkpoint', ('--grad_checkpoint',)),
        Variant(f'ours, --micro_batch {micro_batch}', ('--micro_batch', str(micro_batch))),
        Variant('ours, scores at all positions', switch=switches.score_all_positions),
        Variant('ours, two text passes', switch=switches.encode_text_twice),
        Variant('ours, attention by explicit maps', switch=switches.materialize_attention),
        Variant('ours, a group a parameter, not fused', switch=switches.use_group_per_parameter),
        Variant('ours, activations kept', switch=switches.save_activations),
        Variant('ours, activations kept, QuickGELU as a product', switch=switches.multiply_sigmoid),
        Variant('ours, chosen words found on the GPU', switch=switches.find_tokens_on_device, gpu_only=True),
        Variant('ours, read and synchronized each step', switch=switches.read_each_step, gpu_only=True),
        Variant('ours, --amp off', ('--amp', 'off'), gpu_only=True),
        *([Variant('ours, --amp bf16', ('--amp', 'bf16'))] if has_cpu_bf16 else []),
        Variant(REFERENCE, is_reference=True)]
    return [variant for variant in variants if (setting.on_gpu or not variant.gpu_only)
            and not (setting.quick and '--compile' in variant.flags)]


def step_rows(setting):
    for variant in training_variants(setting):
        print_progress(f'step: {variant.name}')
        yield {'way': variant.name, **measure_in_child(measure_step, variant, setting)}


def peer_groups(setting):
    """The precisions in which ours and other libraries are compared: {name: options of train.py}."""
    groups = {'float32': ('--amp', 'off')}
    if setting.on_gpu or machine.cpu_has_bf16():
        groups['bf16'] = '--amp', 'bf16'
    if not setting.quick:
        *_, (name, flags) = groups.items()      # the fastest precision
        groups[f'{name}, --compile'] = *flags, '--compile'
    return groups


def peer_rows(setting):
    for name, flags in peer_groups(setting).items():
        print_progress(f'peers: {name}')
        yield from ({'group': name, **row} for row in measure_peers(flags, setting))


def memory_rows(setting):
    variants = [Variant('ours'), Variant('ours, activations kept', switch=switches.save_activations),
                Variant('ours, --grad_checkpoint', ('--grad_checkpoint',)),
                Variant('ours, --micro_batch 16', ('--micro_batch', '16')), Variant(REFERENCE, is_reference=True)]
    for variant in variants:
        print_progress(f'memory: {variant.name}')
        yield {'way': variant.name, **measure_in_child(count_memory, variant, setting)}


def profile_rows(setting):
    print_progress('profile: ours')
    result = measure_in_child(measure_profile, setting)
    if 'error' in result:
        yield {'table': 'parts', 'group': 'ours', **result}
    for table in ('parts', 'operators'):
        yield from ({'table': table, **row} for row in result.get(table, ()))


def process_rows(setting):
    for count in process_counts(setting):
        for is_distributed in (True, False)[:count]:
            name = 'one batch' if is_distributed else 'each its rows alone'
            print_progress(f'processes: {count}, {name}')
            yield {'way': name, **measure_in_child(measure_processes, count, is_distributed, setting)}


def data_rows(setting):
    kinds = {'JPEG files': 'jpeg', 'image cache': 'cache', 'image cache, finished on the device': 'finished',
             REFERENCE: 'reference'}
    with tempfile.TemporaryDirectory() as root:
        print_progress(f'data: drawing {4 * (setting.ids + 1)} images')
        generation = measure_in_child(generate_dataset, root, setting.ids)
        for name, kind in kinds.items():
            print_progress(f'data: {name}')
            row = generation if 'error' in generation else measure_in_child(measure_reading, kind, root, setting)
            yield {'way': name, **row}


def encode_rows(setting):
    full_precision = {'ours, --amp off': '--amp off'} if setting.on_gpu else {}
    kinds = {'images': {'ours': 'ours', 'ours, images from the cache': 'cache', **full_precision,
                        REFERENCE: 'reference'},
             'captions': {'ours': 'ours', "ours, in the annotation's order": 'order',
                          'ours, all 77 positions': 'whole', **full_precision, REFERENCE: 'reference'}}
    for side, variants in kinds.items():
        for name, kind in variants.items():
            print_progress(f'encode: {side}, {name}')
            yield {'group': side, 'way': name, **measure_in_child(measure_encoding, side, kind, setting)}


# {name: (kind, bytes of memory per query and gallery image)}
RANKERS = {'ours': ('ours', 0), 'ours, all similarities at once': ('matrix', 4),
           REFERENCE: ('reference', RANKING_BYTES_PER_PAIR)}


def rank_rows(setting):
    for dataset, *sizes in setting.rankings:
        first_result = {}
        for name, (kind, bytes_per_pair) in RANKERS.items():
            print_progress(f'rank: {dataset}, {name}')
            result = measure_ranking_if_it_fits(kind, bytes_per_pair, sizes, setting)
            first_result = first_result or result
            yield {'group': dataset, 'way': name, 'queries': sizes[0], 'gallery': sizes[1], **result,
                   **find_disagreement(first_result, result, sizes[0])}


def measure_ranking_if_it_fits(kind, bytes_per_pair, sizes, setting):
    """:func:`measure_ranking`, or ``{'does_not_fit': bytes}`` if the memory is too small."""
    queries, gallery, _ = sizes
    needed = bytes_per_pair * queries * gallery + 4 * DIMENSIONS * (queries + gallery)   # matrices and embeddings
    if needed > available_memory():
        return {'does_not_fit': needed}
    return measure_in_child(measure_ranking, kind, sizes, setting)


def find_disagreement(ours, other, queries):
    """``{'error': ...}`` if two results have metrics that differ by more than rounding explains; else {}."""
    if 'metrics' not in ours or 'metrics' not in other:
        return {}
    tolerances = {'R1': 200 / queries, 'mAP': 0.005, 'mINP': 0.005}    # rounding may change two first ranks
    if all(abs(ours['metrics'][name] - other['metrics'][name]) <= tolerance for name, tolerance in tolerances.items()):
        return {}
    return {'error': f"the metrics must be equal, and this variant gives {other['metrics']}, ours {ours['metrics']}"}


PARTS = {'step': step_rows, 'peers': peer_rows, 'memory': memory_rows, 'profile': profile_rows,
         'processes': process_rows, 'data': data_rows, 'encode': encode_rows, 'rank': rank_rows}
