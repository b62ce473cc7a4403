"""Training without a tuning."""
from model.tunings import Tuning


class NoTuning(Tuning):
    """Training of all parameters."""

    name = 'none'
    backbones = ()

    @staticmethod
    def is_trainable(name):
        return True
