"""No logger."""
from processor.loggers import MetricsLogger


class NoLogger(MetricsLogger):
    """Only ``metrics.jsonl``, which every run writes."""

    name = 'none'

    def log(self, metrics, step, epoch):
        pass
