"""``--ema``: an exponential moving average of the weights, which is evaluated and saved as ``best.pth``."""
import contextlib

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from utils.checkpoint import is_sharded
from utils.errors import UserError


class WeightAverage:
    """The exponential moving average of a model's trained parameters, updated after each step of its optimizer.

    After an update, average = decay * average + (1 - decay) * parameter. The average starts as the initial weights.
    Ranks have equal parameters, so they have equal averages.

    Args:
        model: the model on its device.
        optimizer: the optimizer of its parameters.
        decay: the weight of the previous average, from 0 to below 1; None: there is no average.

    Raises:
        UserError: the parameters are sharded.
    """

    def __init__(self, model, optimizer, decay=None):
        self.parameters, self.values = {}, {}
        if decay is None:
            return
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if any(map(is_sharded, self.parameters.values())):
            raise UserError('--ema cannot be combined with --shard: leave out one of them')
        self.values = {name: value.detach().clone() for name, value in self.parameters.items()}
        self._move_towards = get_ema_multi_avg_fn(decay)
        optimizer.register_step_post_hook(self.update)

    @torch.no_grad()
    def update(self, *_):
        """Move the average towards the current parameters. The arguments are those of an optimizer's hook."""
        self._move_towards(list(self.values.values()), list(self.parameters.values()), None)

    @contextlib.contextmanager
    def applied(self):
        """Give the model the averaged weights inside the ``with`` block. Without an average, do nothing."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self):
        for name, parameter in self.parameters.items():
            current = parameter.clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(current)

    def state_dict(self):
        """Return the entries of ``last.pth``: ``{'ema': {name: tensor}}``, or {} without an average."""
        return {'ema': self.values} if self.values else {}

    def load(self, entries):
        """Continue from the entries of a ``last.pth``, or from the current weights if it has no average.

        Raises:
            UserError: the average has other names, shapes or types than the parameters, or is not finite.
        """
        if not self.values or 'ema' not in entries:
            self.values.update({name: value.detach().clone() for name, value in self.parameters.items()})
            return
        stored = entries['ema']
        if not isinstance(stored, dict) or stored.keys() != self.values.keys():
            raise UserError('ema: the names in the checkpoint are not those of the trained parameters: resume from '
                            'the last.pth of the same run')
        for name, value in self.values.items():
            other = stored[name]
            if not isinstance(other, torch.Tensor) or other.shape != value.shape or other.dtype != value.dtype \
                    or not other.isfinite().all():
                raise UserError(f'ema: {name} in the checkpoint must be a finite {value.dtype} tensor of shape '
                                f'{list(value.shape)}: resume from the last.pth of the same run')
            value.copy_(other)
