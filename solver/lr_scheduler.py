"""Learning rate schedules: IRRA's by epoch, with warm-up, and those of TBPS-CLIP and APTM by step."""
import functools
import math
from bisect import bisect_right

from torch.optim.lr_scheduler import LRScheduler

from utils.errors import UserError, unknown_name_error

SCHEDULES = ('step', 'exp', 'poly', 'cosine', 'linear', 'step_cosine', 'step_linear', 'step_stairs')
WARMUPS = ('linear', 'constant')


class WarmupSchedule(LRScheduler):
    """Learning rates by epoch: a warm-up, then a schedule.

    The formulas use

    - i: the number of finished epochs
    - W: ``warmup_epochs``; T: ``total_epochs``; r = (i - W) / (T - W)
    - f: ``warmup_factor``; target: ``target_lr``
    - base: the learning rate of a parameter group without schedule

    During the warm-up (i < W) the learning rate is

    - ``linear``: base (f (1 - i/W) + i/W)
    - ``constant``: base f

    After the warm-up it is

    - ``step``: base gamma^(number of milestones <= i)
    - ``exp``: base power^r
    - ``poly``: target + (base - target) power^(1 - r), which increases, as in IRRA's code
    - ``linear``: base (1 - r)
    - ``cosine``: target + (base - target) (1 + cos(pi r)) / 2
    """

    def __init__(self, optimizer, milestones=(20, 50), gamma=0.1, warmup_factor=0.1, warmup_epochs=5,
                 warmup_method='linear', total_epochs=60, target_lr=0.0, power=0.9, mode='cosine', last_epoch=-1):
        if mode not in SCHEDULES:
            raise unknown_name_error('--lrscheduler', mode, SCHEDULES)
        if warmup_method not in WARMUPS:
            raise unknown_name_error('--warmup_method', warmup_method, WARMUPS)
        if mode == 'step' and list(milestones) != sorted(milestones):
            raise UserError(f'--milestones must be in increasing order, but they are {list(milestones)}')
        self.milestones, self.gamma, self.mode = list(milestones), gamma, mode
        self.warmup_factor, self.warmup_epochs, self.warmup_method = warmup_factor, warmup_epochs, warmup_method
        self.total_epochs, self.target_lr, self.power = total_epochs, target_lr, power
        super().__init__(optimizer, last_epoch)

    def before_step(self, epoch, step, steps):
        """Do nothing: the learning rates change with the epoch."""

    def get_lr(self):
        return [self.compute_lr(self.last_epoch, base) for base in self.base_lrs]

    def compute_lr(self, epochs, base):
        """Return the learning rate after a number of finished epochs, for a group's base learning rate."""
        i, warmup = epochs, self.warmup_epochs
        if i < warmup:
            if self.warmup_method == 'constant':
                return base * self.warmup_factor
            return base * (self.warmup_factor * (1 - i / warmup) + i / warmup)
        if self.mode == 'step':
            return base * self.gamma ** bisect_right(self.milestones, i)
        r = (i - warmup) / (self.total_epochs - warmup) if self.total_epochs > warmup else 1.0
        if self.mode == 'exp':
            return base * self.power ** r
        if self.mode == 'linear':
            return base * (1 - r)
        if self.mode == 'poly':
            return self.target_lr + (base - self.target_lr) * self.power ** (1 - r)
        return self.target_lr + (base - self.target_lr) * (1 + math.cos(math.pi * r)) / 2

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

    An epoch has S steps. The other letters are those of :class:`WarmupSchedule`, with n = (T - W) S steps after the
    warm-up. The learning rate is

    - at step k = 0, 1, ... of the warm-up: base (f + (1 - f) k / (W S - 1))
    - at step i = 0, ..., n - 1 after it: target + (base - target) (1 + cos(pi i / n)) / 2

    Attributes:
        position: the number of finished steps, and the number of steps of an epoch.
    """

    def __init__(self, optimizer, *settings, **named_settings):
        self.position = 0, 1
        super().__init__(optimizer, *settings, **named_settings)
        if self.warmup_method != 'linear':
            raise UserError(f"--lrscheduler {self.mode} needs --warmup_method linear, but it is '{self.warmup_method}'")

    def before_step(self, epoch, step, steps):
        """Set the learning rates of a step.

        Args:
            epoch: the epoch, from 1.
            step: the step in the epoch, from 1.
            steps: the number of steps of the epoch.
        """
        self.position = (epoch - 1) * steps + step - 1, steps
        self.apply()

    def compute_lr(self, epochs, base):
        done, steps = self.position
        warmup, total = round(self.warmup_epochs * steps), round(self.total_epochs * steps)
        if done < warmup:
            return base * (self.warmup_factor + (1 - self.warmup_factor) * done / max(warmup - 1, 1))
        r = (done - warmup) / max(total - warmup, 1)
        return self.target_lr + (base - self.target_lr) * (1 + math.cos(math.pi * r)) / 2


WARMUP_FRACTION = 0.1                       # of all steps, for 'step_stairs'
STAIRS = ((7, 0.2), (4, 0.5))               # (number of warm-ups, factor of the learning rate after them)


class AptmSchedule(StepSchedule):
    """APTM's learning rates by step (Yang et al., ACM MM 2023), which decay linearly to 0.

    s steps are finished, of T in all, and the first W are the warm-up. During the warm-up, the base learning rate is
    multiplied by s / W, so the first step has a learning rate of 0, as in APTM's code. After the warm-up

    - ``step_linear`` (W = ``warmup_steps``) multiplies it by (T - s) / (T - W);
    - ``step_stairs`` (W = int(0.1 T)) multiplies it by the same and by 1, by 0.5 from step 4 W, by 0.2 from step 7 W.
    """

    def __init__(self, optimizer, *settings, warmup_steps=0, **named_settings):
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, *settings, **named_settings)

    def before_step(self, epoch, step, steps):
        total = self.total_epochs * steps
        if self.mode == 'step_linear' and self.warmup_steps >= total:
            raise UserError(f'--warmup_steps {self.warmup_steps} must be below the {total} steps of the whole training')
        super().before_step(epoch, step, steps)

    def compute_lr(self, epochs, base):
        done, steps = self.position
        total = self.total_epochs * steps
        warmup = int(WARMUP_FRACTION * total) if self.mode == 'step_stairs' else self.warmup_steps
        if done < warmup:
            return base * done / warmup
        stair = 1.0
        if self.mode == 'step_stairs':
            stair = next((factor for warmups, factor in STAIRS if warmup and done >= warmups * warmup), 1.0)
        return base * stair * max(total - done, 0) / max(total - warmup, 1)


def build_lr_scheduler(args, optimizer):
    """Build the learning rate schedule of the options, at the first epoch."""
    schedule = StepSchedule if args.lrscheduler == 'step_cosine' else WarmupSchedule
    if args.lrscheduler in ('step_linear', 'step_stairs'):
        schedule = functools.partial(AptmSchedule, warmup_steps=args.warmup_steps)
    return schedule(optimizer, args.milestones, args.gamma, args.warmup_factor, args.warmup_epochs, args.warmup_method,
                    args.num_epoch, args.target_lr, args.power, args.lrscheduler)
