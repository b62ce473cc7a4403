"""Learning rates by epoch, with warm-up: IRRA's schedules."""
import functools
import math
from bisect import bisect_right

from torch.optim.lr_scheduler import LRScheduler

from utils.errors import UserError, unknown

SCHEDULES = ('step', 'exp', 'poly', 'cosine', 'linear', 'step_cosine', 'step_linear', 'step_stairs')
WARMUPS = ('linear', 'constant')


class WarmupSchedule(LRScheduler):
    """Steps once an epoch. With i epochs done, W of ``warmup_epochs``, T of ``total_epochs`` and r = (i - W) / (T - W):

    warm-up (i < W): linear ``base (f (1 - i/W) + i/W)`` or constant ``base f``, f the ``warmup_factor``;
    step: ``base gamma^(milestones <= i)``; exp: ``base power^r``; poly: ``target + (base - target) power^(1-r)`` (which
    rises, as released); linear: ``base (1 - r)``; cosine: ``target + (base - target) (1 + cos(pi r)) / 2``.
    """

    def __init__(self, optimizer, milestones=(20, 50), gamma=0.1, warmup_factor=0.1, warmup_epochs=5, warmup_method='linear',
                 total_epochs=60, target_lr=0.0, power=0.9, mode='cosine', last_epoch=-1):
        if mode not in SCHEDULES:
            raise unknown('--lrscheduler', mode, SCHEDULES)
        if warmup_method not in WARMUPS:
            raise unknown('--warmup_method', warmup_method, WARMUPS)
        if mode == 'step' and list(milestones) != sorted(milestones):
            raise UserError(f'--milestones must rise, and are {list(milestones)}')
        self.milestones, self.gamma, self.mode = list(milestones), gamma, mode
        self.warmup_factor, self.warmup_epochs, self.warmup_method = warmup_factor, warmup_epochs, warmup_method
        self.total_epochs, self.target_lr, self.power = total_epochs, target_lr, power
        super().__init__(optimizer, last_epoch)

    def before_step(self, epoch, step, steps):
        """Nothing: rates change with the epoch."""

    def get_lr(self):
        return [self.lr_after(self.last_epoch, base) for base in self.base_lrs]

    def lr_after(self, epochs, base):
        """The learning rate once ``epochs`` epochs are done, for a parameter group that starts from ``base``."""
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
        """Give the optimizer's groups the rates of where the schedule is."""
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr):
            group['lr'] = lr

    def state_dict(self):
        """What has happened; the schedule itself is the options'."""
        return {'last_epoch': self.last_epoch}

    def load_state_dict(self, state_dict):
        """Go on after the epochs that are done. A state that holds more, as published ones do, is read for that alone."""
        self.last_epoch = state_dict['last_epoch']
        self.apply()


class StepSchedule(WarmupSchedule):
    """A cosine that moves with every step, as TBPS-CLIP's (Cao et al., AAAI 2024): :meth:`before_step` says where the run is.

    With W steps an epoch, w warm-up epochs and n = (T - w) W steps behind them: ``base (f + (1 - f) k / (w W - 1))`` at step k of the
    warm-up, then ``target + (base - target) (1 + cos(pi i / n)) / 2`` at step i = 0..n-1.
    """

    def __init__(self, optimizer, *settings, **named):
        self.done = 0, 1   # steps that came before, and steps of an epoch
        super().__init__(optimizer, *settings, **named)
        if self.warmup_method != 'linear':
            raise UserError(f"--lrscheduler step_cosine begins with a linear --warmup_method, which is '{self.warmup_method}'")

    def before_step(self, epoch, step, steps):
        """The rates of step ``step`` (from 1) of ``steps`` in epoch ``epoch`` (from 1), for the optimizer's groups."""
        self.done = (epoch - 1) * steps + step - 1, steps
        self.apply()

    def lr_after(self, epochs, base):
        done, steps = self.done
        warmup, total = round(self.warmup_epochs * steps), round(self.total_epochs * steps)
        if done < warmup:
            return base * (self.warmup_factor + (1 - self.warmup_factor) * done / max(warmup - 1, 1))
        r = (done - warmup) / max(total - warmup, 1)
        return self.target_lr + (base - self.target_lr) * (1 + math.cos(math.pi * r)) / 2


WARM_SHARE = 0.1                            # of the steps, where 'step_stairs' warms up
STAIRS = ((7, 0.2), (4, 0.5))               # from so many warm-ups on, so much of the rate


class AptmSchedule(StepSchedule):
    """APTM's learning rates (Yang et al., ACM MM 2023), which decay linearly to 0.

    With s steps done of T in all and W warm-up steps, the base rate is multiplied by s / W while s < W; after the warm-up

    - ``step_linear`` (W: ``warmup_steps``) multiplies it by (T - s) / (T - W);
    - ``step_stairs`` (W = int(0.1 T)) multiplies it by the same and by a stair: 1, 0.5 from step 4 W on, 0.2 from step 7 W on.

    The first step of a warm-up has a rate of 0, as in the released code.
    """

    def __init__(self, optimizer, *settings, warmup_steps=0, **named):
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, *settings, **named)

    def before_step(self, epoch, step, steps):
        total = self.total_epochs * steps
        if self.mode == 'step_linear' and self.warmup_steps >= total:
            raise UserError(f'--warmup_steps {self.warmup_steps} must be below the {total} steps of the whole training')
        super().before_step(epoch, step, steps)

    def lr_after(self, epochs, base):
        done, steps = self.done
        total = self.total_epochs * steps
        warmup = int(WARM_SHARE * total) if self.mode == 'step_stairs' else self.warmup_steps
        if done < warmup:
            return base * done / warmup
        stair = 1.0
        if self.mode == 'step_stairs':
            stair = next((factor for warmups, factor in STAIRS if warmup and done >= warmups * warmup), 1.0)
        return base * stair * max(total - done, 0) / max(total - warmup, 1)


def build_lr_scheduler(args, optimizer):
    """The schedule that ``args`` name, at the first epoch."""
    schedule = StepSchedule if args.lrscheduler == 'step_cosine' else WarmupSchedule
    if args.lrscheduler in ('step_linear', 'step_stairs'):
        schedule = functools.partial(AptmSchedule, warmup_steps=args.warmup_steps)
    return schedule(optimizer, args.milestones, args.gamma, args.warmup_factor, args.warmup_epochs, args.warmup_method,
                    args.num_epoch, args.target_lr, args.power, args.lrscheduler)
