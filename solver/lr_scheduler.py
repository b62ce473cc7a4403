"""Learning rate schedules: IRRA's and ALBEF's by epoch, and those of TBPS-CLIP and APTM by step."""
import math
from bisect import bisect_right
from dataclasses import dataclass

from torch.optim.lr_scheduler import LRScheduler

from utils.errors import UserError, unknown_name_error
from utils.options import complete

SCHEDULES = ('step', 'exp', 'poly', 'cosine', 'linear', 'epoch_cosine', 'step_cosine', 'step_linear', 'step_stairs')
WARMUPS = ('linear', 'constant')
WARMUP_FRACTION = 0.1               # of all steps, for 'step_stairs'
STAIRS = ((7, 0.2), (4, 0.5))       # for 'step_stairs': (number of warm-ups, factor of the learning rate after them)


@dataclass(frozen=True)
class ScheduleSettings:
    """The settings of a schedule; :class:`WarmupSchedule` has the formulas that use them.

    Attributes:
        mode: one of :data:`SCHEDULES`.
        total_epochs: the number of epochs of the training.
        warmup_epochs: the number of warm-up epochs.
        warmup_steps: the number of warm-up steps, for ``step_linear`` and ``epoch_cosine``.
        warmup_lr: learning rate of all parameters in the warm-up steps, for ``epoch_cosine``.
        warmup_method: one of :data:`WARMUPS`.
        warmup_factor: factor on the learning rate at the start of the warm-up epochs.
        milestones: epochs after which ``gamma`` multiplies the learning rate, for ``step``.
        gamma: factor on the learning rate at each milestone.
        target_lr: learning rate at the end, for ``poly`` and the cosines.
        power: base of the exponential, for ``exp`` and ``poly``.
    """
    mode: str = 'cosine'
    total_epochs: int = 60
    warmup_epochs: int = 5
    warmup_steps: int = 0
    warmup_lr: float = 1e-5
    warmup_method: str = 'linear'
    warmup_factor: float = 0.1
    milestones: tuple = (20, 50)
    gamma: float = 0.1
    target_lr: float = 0.0
    power: float = 0.9

    def __post_init__(self):
        if self.mode not in SCHEDULES:
            raise unknown_name_error('--lrscheduler', self.mode, SCHEDULES)
        if self.warmup_method not in WARMUPS:
            raise unknown_name_error('--warmup_method', self.warmup_method, WARMUPS)
        if self.mode == 'step' and list(self.milestones) != sorted(self.milestones):
            raise UserError(f'--milestones must be in increasing order, but they are {list(self.milestones)}')
        if self.mode.startswith('step_') and self.warmup_method != 'linear':
            raise UserError(f"--lrscheduler {self.mode} needs --warmup_method linear, but it is '{self.warmup_method}'")


class WarmupSchedule(LRScheduler):
    """Learning rates by epoch, as in IRRA: a warm-up, then one of the schedules that :meth:`compute_lr` lists."""

    def __init__(self, optimizer, settings):
        self.settings = settings
        super().__init__(optimizer)

    def before_step(self, epoch, step, steps):
        """Do nothing: the learning rates change with the epoch."""

    def compute_lr(self, base):
        """Return the current learning rate of a parameter group, given its learning rate without schedule."""
        s, epoch, warmup = self.settings, self.last_epoch, self.settings.warmup_epochs   # epoch: how many are finished
        if epoch < warmup:
            if s.warmup_method == 'constant':
                return base * s.warmup_factor
            return base * (s.warmup_factor * (1 - epoch / warmup) + epoch / warmup)
        if s.mode == 'step':
            return base * s.gamma ** bisect_right(s.milestones, epoch)
        r = (epoch - warmup) / (s.total_epochs - warmup) if s.total_epochs > warmup else 1.0
        if s.mode == 'exp':
            return base * s.power ** r
        if s.mode == 'linear':
            return base * (1 - r)
        if s.mode == 'poly':    # increases, as in IRRA's code
            return s.target_lr + (base - s.target_lr) * s.power ** (1 - r)
        return s.target_lr + (base - s.target_lr) * (1 + math.cos(math.pi * r)) / 2

    def get_lr(self):
        return [self.compute_lr(base) for base in self.base_lrs]

    def apply(self):
        """Set the current learning rates of the optimizer's parameter groups."""
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr):
            group['lr'] = lr

    def state_dict(self):
        """Return the number of finished epochs. The options define the schedule itself."""
        return {'last_epoch': self.last_epoch}

    def load_state_dict(self, state_dict):
        """Continue after the finished epochs. Other entries, as in published checkpoints, are ignored."""
        self.last_epoch = state_dict['last_epoch']
        self.apply()


class StepSchedule(WarmupSchedule):
    """Learning rates by step: a linear warm-up, then a cosine, as in TBPS-CLIP (Cao et al., AAAI 2024).

    The last step of the warm-up has the full learning rate, and so has the first step after it.

    Attributes:
        finished_steps: the number of finished steps of the run.
        steps: the number of steps of an epoch.
    """

    def __init__(self, optimizer, settings):
        self.finished_steps, self.steps = 0, 1
        super().__init__(optimizer, settings)

    def before_step(self, epoch, step, steps):
        """Set the learning rates of a step.

        Args:
            epoch: the epoch, from 1.
            step: the step in the epoch, from 1.
            steps: the number of steps of the epoch.
        """
        self.finished_steps, self.steps = (epoch - 1) * steps + step - 1, steps
        self.apply()

    def compute_lr(self, base):
        s, step = self.settings, self.finished_steps
        warmup, total = round(s.warmup_epochs * self.steps), round(s.total_epochs * self.steps)
        if step < warmup:
            return base * (s.warmup_factor + (1 - s.warmup_factor) * step / max(warmup - 1, 1))
        r = (step - warmup) / max(total - warmup, 1)
        return s.target_lr + (base - s.target_lr) * (1 + math.cos(math.pi * r)) / 2


class AptmSchedule(StepSchedule):
    """APTM's learning rates by step (Yang et al., ACM MM 2023): a linear warm-up from 0, then a linear decay to 0.

    ``step_linear`` warms up for ``warmup_steps``, ``step_stairs`` for a tenth of all steps, with :data:`STAIRS`.
    """

    def before_step(self, epoch, step, steps):
        warmup, total = self.settings.warmup_steps, self.settings.total_epochs * steps
        if self.settings.mode == 'step_linear' and warmup >= total:
            raise UserError(f'--warmup_steps {warmup} must be below the {total} steps of the whole training')
        super().before_step(epoch, step, steps)

    def compute_lr(self, base):
        s, step, total, stair = self.settings, self.finished_steps, self.settings.total_epochs * self.steps, 1.0
        warmup = int(WARMUP_FRACTION * total) if s.mode == 'step_stairs' else s.warmup_steps
        if step < warmup:
            return base * step / warmup
        if s.mode == 'step_stairs':
            stair = next((factor for warmups, factor in STAIRS if warmup and step >= warmups * warmup), 1.0)
        return base * stair * max(total - step, 0) / max(total - warmup, 1)


class AlbefSchedule(WarmupSchedule):
    """ALBEF's learning rates (Li et al., NeurIPS 2021): a cosine by epoch, after a warm-up in the first epoch's steps.

    In the first ``warmup_steps`` steps, all parameters have the learning rate ``warmup_lr``.
    """

    finished_steps = 0

    def before_step(self, epoch, step, steps):
        """Set the learning rates of a step; epoch and step count from 1."""
        self.finished_steps = (epoch - 1) * steps + step - 1
        self.apply()

    def compute_lr(self, base):
        s, epoch = self.settings, self.last_epoch
        if epoch == 0 and self.finished_steps < s.warmup_steps:
            return s.warmup_lr
        return s.target_lr + (base - s.target_lr) * (1 + math.cos(math.pi * epoch / s.total_epochs)) / 2


def build_lr_scheduler(args, optimizer):
    """Build the learning rate schedule of the options, at the first epoch."""
    args = complete(args)
    settings = ScheduleSettings(args.lrscheduler, args.num_epoch, args.warmup_epochs, args.warmup_steps,
                                args.warmup_lr, args.warmup_method, args.warmup_factor, tuple(args.milestones),
                                args.gamma, args.target_lr, args.power)
    schedules = {'epoch_cosine': AlbefSchedule, 'step_cosine': StepSchedule, 'step_linear': AptmSchedule,
                 'step_stairs': AptmSchedule}
    return schedules.get(args.lrscheduler, WarmupSchedule)(optimizer, settings)
