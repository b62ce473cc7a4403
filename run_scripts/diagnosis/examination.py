"""All checks and measurements of the doctor, in order; each is printed when it is known."""
import sys

import torch

from datasets.image_cache import format_bytes
from model.clip_weights import OPENAI_SHA256
from processor.estimates import RunEstimate
from processor.progress import format_duration
from run_scripts.benchmark.child import measure_in_child
from run_scripts.benchmark.machine import dtype_name
from run_scripts.benchmark.recipe_cost import random_weights_choice
from run_scripts.benchmark.simulated_step import count_step_memory
from run_scripts.diagnosis.advice import (advise_on_memory, advise_on_precision, advise_on_reading, fit_memory,
                                          largest_batch)
from run_scripts.diagnosis.check import FAILED, OK, WARNING, Check, run_check
from run_scripts.diagnosis.environment import check_disk, check_environment, existing_parent, read_environment
from run_scripts.diagnosis.inputs import check_data, check_weights, openai_path
from run_scripts.diagnosis.report import format_check
from run_scripts.diagnosis.step import compare_precisions, measure_growth, measure_reading
from utils.comm import pick_device
from utils.errors import UserError
from utils.machine import core_count
from utils.options import as_dict
from utils.precision import amp_dtype

CPU_SIZES = 2, 4        # of the measured batches; a step of the recipe's batch would take minutes on a CPU
UNKNOWN_IDENTITIES = 1000
PIXEL_BYTES = 4         # float32


class Examination:
    """The examination of a machine for a run.

    Args:
        args: the options of train.py.
        words: its command line.

    Attributes:
        checks: the list of :class:`~run_scripts.diagnosis.check.Check` so far.
        measurements: ``{name: result}``.
        advice: sentences.
    """

    def __init__(self, args, words):
        self.args, self.words = args, words
        self.checks, self.measurements, self.advice, self.machine = [], {}, [], {}
        self.counts, self.has_data, self.state_bytes = {}, False, None
        self.device = pick_device(args.device)
        self.precision = amp_dtype(args.amp, self.device) or torch.float32

    @property
    def has_failed(self):
        return any(check.status == FAILED for check in self.checks)

    def run(self):
        """Run all checks. None of them raises."""
        self.check('environment', self.examine_environment)
        self.check('dataset', self.examine_data)
        self.check('weights', check_weights, self.args)
        self.check('step', self.compare_precisions)
        self.check('step memory', self.measure_memory)
        self.check('reading', self.measure_reading)
        self.check('time', self.estimate_run)
        self.check('advice', self.advise)
        counts = {status: sum(check.status == status for check in self.checks) for status in (OK, WARNING, FAILED)}
        print(f'{counts[OK]} checks are ok, {counts[WARNING]} are warnings, {counts[FAILED]} failed')

    def check(self, name, function, *arguments):
        """Add the checks that a function returns, and print them."""
        print(f'checking: {name}', file=sys.stderr, flush=True)
        checks = run_check(name, function, *arguments)
        self.checks += checks
        for check in checks:
            print(format_check(check), flush=True)

    def as_dict(self):
        """The content of the JSON file."""
        options = {name: value for name, value in as_dict(self.args).items() if name not in ('output_dir', 'name')}
        return {'machine': self.machine, 'options': options, 'precision': dtype_name(self.precision),
                'checks': [vars(check) for check in self.checks], 'measurements': self.measurements,
                'advice': self.advice}

    def measure(self, name, function, *arguments):
        """Call a function in a process of its own. Raises :class:`UserError` if it fails."""
        result = measure_in_child(function, *arguments)
        if 'error' in result:
            raise UserError(result['error'])
        self.measurements[name] = result
        return result

    # -- checks ------------------------------------------------------------------------------------------------------

    def examine_environment(self):
        args = self.args
        self.machine = read_environment(self.device, args.output_dir)
        image_bytes = 3 * args.img_size[0] * args.img_size[1] * PIXEL_BYTES
        return check_environment(self.machine, args.num_workers, image_bytes * args.batch_size)

    def examine_data(self):
        checks, self.counts, self.has_data = check_data(self.args)
        self.measurements['counts'] = self.counts
        return checks

    def compare_precisions(self):
        result = self.measure('precisions', compare_precisions, self.step_words(), self.identities, str(self.device))
        for row in result['rows']:
            yield judge_precision(row, self.device, result['random'])

    def measure_memory(self):
        args, on_gpu = self.args, self.device.type == 'cuda'
        sizes = sorted({max(args.batch_size // 4, 2), max(args.batch_size // 2, 4), args.batch_size}
                       ) if on_gpu else CPU_SIZES
        result = self.measure('growth', measure_growth, self.step_words(), self.identities, sizes, str(self.device))
        rows = [row for row in result['rows'] if 'peak_bytes' in row]
        measured = ', '.join(f"batch {row['batch']} {format_bytes(row['peak_bytes'])}" for row in rows)
        free = self.machine['available_memory'], self.machine['memory_limit']       # of the container, if it has one
        fit, memory = fit_memory(rows), result['usable_bytes'] or min(filter(None, free))
        result.update(usable_memory=memory, fixed_bytes=fit and fit[0], sample_bytes=fit and fit[1],
                      largest_batch=fit and largest_batch(fit, memory))
        too_large = [row['batch'] for row in result['rows'] if 'error' in row]
        place = 'tensors on the GPU' if on_gpu else 'the process'
        finding = f'{measured} ({place})'
        if fit:
            finding += f'; {format_bytes(fit[1])} per sample'
        if too_large or fit and result['largest_batch'] < args.batch_size:
            size = min([args.batch_size, *too_large])
            return [Check('step memory', WARNING, f'{finding}; batch {size} does not fit into {format_bytes(memory)}',
                          'see the advice below' if fit else
                          'lower --batch_size, or add --grad_checkpoint or --micro_batch')]
        return [Check('step memory', OK, finding)]

    def measure_reading(self):
        result = self.measure('reading', measure_reading, self.words, self.has_data)
        source = 'the dataset' if self.has_data else 'synthetic images'
        return [Check('reading', OK, f"one process reads {1 / result['sample_seconds']:.3g} images/s of {source}; "
                                    f"{result['workers']} workers")]

    def estimate_run(self):
        estimate, notes = self.build_estimate()
        if estimate is None:
            return [Check('time', WARNING, f'not estimated: {notes}')]
        self.measurements['estimate'] = {**vars(estimate), 'epoch_seconds': estimate.epoch_seconds,
                                         'run_seconds': estimate.run_seconds}
        finding = (f'a step of batch {self.args.batch_size} about {estimate.step_seconds:.3g} s{notes}; an epoch about '
                   f'{format_duration(estimate.epoch_seconds)}, the run of {self.args.num_epoch} epochs about '
                   f'{format_duration(estimate.run_seconds)}')
        parameters = self.measurements['growth']['parameter_bytes']
        trained = self.measurements['growth']['trained_bytes']
        return [Check('time', OK, finding),
                check_disk(self.machine['free_disk'], (parameters, parameters + 2 * trained),
                           existing_parent(self.args.output_dir))]

    # -- what the checks share ---------------------------------------------------------------------------------------

    def step_words(self):
        """The options of a step. Its weights are random if the published ones are missing: nothing is downloaded."""
        choice, weights = self.args.pretrain_choice, [check for check in self.checks if check.name == 'weights']
        if not weights or weights[0].status != OK:
            return [*self.words, '--pretrain_choice', random_weights_choice(choice)]
        is_openai = self.args.backbone == 'clip' and choice in OPENAI_SHA256
        return [*self.words, '--pretrain_choice', openai_path(choice)] if is_openai else self.words

    @property
    def identities(self):
        return self.counts.get('train', (0,))[0] or UNKNOWN_IDENTITIES

    def build_estimate(self):
        """``(estimate, note)``; ``(None, reason)`` if something was not measured."""
        args, growth, reading = self.args, self.measurements.get('growth'), self.measurements.get('reading')
        rows = [row for row in growth['rows'] if 'seconds' in row] if growth else []
        if not rows:
            return None, 'no step was measured'
        last, counts = rows[-1], self.counts.get(args.val_dataset, (0, 0, 0))
        reading = reading or {'sample_seconds': 0.0, 'workers': 0}
        pairs = reading.get('pairs') or self.counts.get('train', (0, 0, 0))[2]
        if not pairs:
            return None, 'the number of training pairs is unknown'
        pairs = min(pairs, args.limit_train or pairs)
        scale = args.batch_size / last['batch']
        note = '' if scale == 1 else f" (scaled from batch {last['batch']})"
        return RunEstimate(
            step_seconds=last['seconds'] * scale, sample_seconds=reading['sample_seconds'],
            batch_size=args.batch_size, workers=reading['workers'],
            steps=reading.get('steps') or -(-pairs // args.batch_size),
            evaluation_seconds=counts[1] * growth['image_seconds'] + counts[2] * growth['caption_seconds'],
            epochs=args.num_epoch, eval_period=args.eval_period,
            selection_seconds=growth['selection_seconds'] * pairs), note

    def count_checkpointed(self):
        """The counted bytes of a step with ``--grad_checkpoint``; None if the batch fits without it."""
        growth, size = self.measurements['growth'], self.args.batch_size
        if not growth['sample_bytes'] or growth['largest_batch'] >= size:
            return None
        amp = {torch.float32: 'off'}.get(self.precision, 'bf16')
        words = [*self.step_words(), '--grad_checkpoint', '--amp', amp]
        return measure_in_child(count_step_memory, words, [size]).get('peak_bytes', {}).get(size)

    def advise(self):
        """Collect the advice and print it. Returns no checks."""
        growth, args = self.measurements.get('growth'), self.args
        if growth and 'sample_bytes' in growth:
            fit = growth['sample_bytes'] and (growth['fixed_bytes'], growth['sample_bytes'])
            self.advice += advise_on_memory(fit, growth['usable_memory'], args.batch_size, self.count_checkpointed(),
                                            growth['micro_batch_unsupported'])
        if 'estimate' in self.measurements:
            self.advice += advise_on_reading(self.build_estimate()[0], core_count())
        if 'precisions' in self.measurements:
            self.advice += advise_on_precision(self.measurements['precisions']['rows'])
        for sentence in self.advice:
            print(format_check(Check('advice', '', sentence)))
        return []


# {precision: largest median of the embeddings' relative differences}, about 30 times the rounding of a number. A single
# embedding can differ more: heads such as tse select tokens, and rounding changes which.
TOLERANCES = {'float32': 1e-4, 'tf32': 2e-2, 'fp16': 2e-2, 'bf16': 1e-1}


def judge_precision(row, device, random_names):
    """The check of one precision."""
    name = f"{device.type} {row['precision']}"
    if 'error' in row:
        return Check(name, WARNING, row['error'])
    parts = [f"embedding {row['embedding']:.1e} (at most {row['largest_embedding']:.1e})"]
    if 'loss' in row:
        parts.append(f"{row['loss_name']} {row['loss']:.1e}")
    if 'gradient' in row:
        parts.append(f"norm of the gradients {row['gradient']:.1e}")
    finding = f"a step and an evaluation batch differ from the CPU's float32 by {', '.join(parts)} (relative)"
    if random_names:
        finding += f"; random numbers decide {', '.join(random_names)}, which are not compared"
    if row['embedding'] > TOLERANCES[row['precision']] or row['embedding'] != row['embedding']:
        return Check(name, FAILED, finding, 'update the driver and PyTorch; attach the file of --out to a report')
    return Check(name, OK, finding)
