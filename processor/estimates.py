"""Estimates of a whole training run from a few measured steps."""
import itertools
import time
from dataclasses import dataclass

MAX_SAMPLES = 256   # to read for an estimate


@dataclass(frozen=True)
class RunEstimate:
    """The time of a run, from measurements.

    Attributes:
        step_seconds: seconds of a training step, after the first one.
        sample_seconds: seconds that one process needs to read a training sample; 0 if unknown.
        batch_size: samples that this process reads per step.
        workers: its processes that read samples; 0: it reads them itself between two steps.
        steps: steps of an epoch.
        evaluation_seconds: seconds of a whole evaluation.
        epochs, eval_period: as the options.
        selection_seconds: seconds before each epoch, if a head selects clean pairs.

    Example:
        >>> estimate = RunEstimate(step_seconds=0.5, sample_seconds=0.02, batch_size=64, workers=4, steps=1000,
        ...                        evaluation_seconds=60, epochs=10, eval_period=2)
        >>> estimate.epoch_seconds, estimate.run_seconds
        (500.0, 5300.0)
    """
    step_seconds: float
    sample_seconds: float
    batch_size: int
    workers: int
    steps: int
    evaluation_seconds: float
    epochs: int
    eval_period: int
    selection_seconds: float = 0.0

    @property
    def loading_seconds(self):
        """Seconds to read a batch with all workers."""
        return self.sample_seconds * self.batch_size / max(self.workers, 1)

    @property
    def waits_for_data(self):
        """Whether reading a batch takes longer than a step."""
        return self.loading_seconds > self.step_seconds

    @property
    def batch_seconds(self):
        """Seconds of a step, with the time in which it waits for its batch."""
        if not self.workers:
            return self.step_seconds + self.loading_seconds
        return max(self.step_seconds, self.loading_seconds)

    @property
    def epoch_seconds(self):
        """Seconds of an epoch, without its evaluation."""
        return self.steps * self.batch_seconds + self.selection_seconds

    @property
    def run_seconds(self):
        """Seconds of all epochs and evaluations."""
        evaluations = -(-self.epochs // self.eval_period)
        return self.epochs * self.epoch_seconds + evaluations * self.evaluation_seconds


def measure_sample_seconds(loader, patience=2.0):
    """Measure the seconds that one process needs to read a training sample.

    Args:
        loader: a loader of training batches.
        patience: the seconds after which no further sample is read.
    """
    samples = itertools.islice(itertools.chain.from_iterable(loader.batch_sampler), MAX_SAMPLES)
    start, count = time.perf_counter(), 0
    for sample in samples:
        loader.dataset[sample]
        count += 1
        if time.perf_counter() - start > patience:
            break
    return (time.perf_counter() - start) / max(count, 1)
