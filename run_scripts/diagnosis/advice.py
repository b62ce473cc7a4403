"""Advice from measurements: the batch that fits, options that save memory, and the reading of images."""
import math

from datasets.image_cache import format_bytes

RESERVE = 0.05      # fraction of the memory that stays free, because allocators leave gaps


def fit_memory(rows):
    """Fit the memory of steps: ``(bytes of a batch of 0, bytes per sample)``; None if it does not grow.

    Args:
        rows: ``[{'batch', 'peak_bytes'}]``; the smallest and the largest batch count.

    Example:
        >>> fit_memory([{'batch': 2, 'peak_bytes': 300}, {'batch': 4, 'peak_bytes': 400}])
        (200.0, 50.0)
    """
    rows = [row for row in rows if 'peak_bytes' in row]
    if len(rows) < 2 or rows[-1]['peak_bytes'] <= rows[0]['peak_bytes']:
        return None
    first, last = rows[0], rows[-1]
    per_sample = (last['peak_bytes'] - first['peak_bytes']) / (last['batch'] - first['batch'])
    return first['peak_bytes'] - per_sample * first['batch'], per_sample


def largest_batch(fit, memory):
    """The largest batch that fits into a memory; 0 if none does."""
    fixed, per_sample = fit
    return max(int((memory * (1 - RESERVE) - fixed) // per_sample), 0)


def advise_on_memory(fit, memory, batch_size, checkpointed=None, micro_batch_unsupported=''):
    """Advise on batch size, ``--micro_batch`` and ``--grad_checkpoint``.

    Args:
        fit: what :func:`fit_memory` returns.
        memory: the bytes that the run can use.
        batch_size: that of the run.
        checkpointed: the bytes of the batch with ``--grad_checkpoint``, as
            :mod:`run_scripts.benchmark.simulated_step` counts them; None if unknown.
        micro_batch_unsupported: why the losses refuse ``--micro_batch``; '' if they support it.

    Returns:
        Sentences.

    Example:
        >>> print(*advise_on_memory((1e9, 1e8), 16e9, 64), sep='\\n')
        batch 64 takes about 7.4 GB of 16.0 GB; the largest batch that fits is about 142
    """
    if fit is None:
        return []
    needed, largest = fit[0] + fit[1] * batch_size, largest_batch(fit, memory)
    if largest >= batch_size:
        return [f'batch {batch_size} takes about {format_bytes(needed)} of {format_bytes(memory)}; the largest batch '
                f'that fits is about {largest}']
    advice = [f'batch {batch_size} needs about {format_bytes(needed)}, and {format_bytes(memory)} are there']
    if checkpointed and checkpointed < memory * (1 - RESERVE):
        advice.append(f'add --grad_checkpoint: the batch then takes about {format_bytes(checkpointed)} (counted)')
    elif checkpointed:
        advice.append(f'--grad_checkpoint alone is not enough: {format_bytes(checkpointed)} (counted)')
    if largest and not micro_batch_unsupported:
        advice.append(f'or add --micro_batch {2 ** int(math.log2(largest))}, which keeps the batch of {batch_size} for '
                      'the losses')
    elif largest:
        advice.append(f'or train with --batch_size {largest}, which changes the results (--micro_batch does not: '
                      f'{micro_batch_unsupported})')
    else:
        advice.append('the weights, gradients and optimizer alone do not fit: train with --tuning lora, or with '
                      '--shard on several GPUs')
    return advice


def advise_on_reading(estimate, cores):
    """Advise on workers and ``--image_cache``.

    Args:
        estimate: a :class:`~processor.estimates.RunEstimate`.
        cores: the number of cores.

    Returns:
        Sentences.
    """
    if not estimate.sample_seconds:
        return []
    needed = math.ceil(estimate.sample_seconds * estimate.batch_size / estimate.step_seconds)
    rates = (f'a step takes {estimate.batch_size / estimate.step_seconds:.3g} images/s, and one process reads '
             f'{1 / estimate.sample_seconds:.3g} images/s')
    if estimate.workers >= needed:
        return [f'{rates}: {estimate.workers} workers are enough (at least {needed})']
    if needed <= cores:
        return [f'{rates}: set --num_workers {needed} or more']
    return [f'{rates}: {needed} workers would be needed on {cores} cores; add --image_cache, which decodes each image '
            'only once']


def advise_on_precision(rows):
    """Advise on ``--amp`` on a CPU: bf16 if it was faster."""
    seconds = {row['precision']: row['seconds'] for row in rows if 'seconds' in row}
    if {'float32', 'bf16'} != seconds.keys() or seconds['bf16'] > 0.9 * seconds['float32']:
        return []
    return [f"--amp bf16 is faster on this CPU: {seconds['bf16']:.2f} s instead of {seconds['float32']:.2f} s a step"]
