"""Learning rates by optimizer step: APTM's two schedules."""
from torch.optim.lr_scheduler import LRScheduler

from utils.errors import UserError, unknown

SCHEDULES = ('step_linear', 'step_stairs')
WARM_SHARE = 0.1                            # of the steps, where 'step_stairs' warms up
STAIRS = ((7, 0.2), (4, 0.5))               # from so many warm-ups on, so much of the rate


class StepSchedule(LRScheduler):
    """Steps once an optimizer step. With s steps done of T in all and W of warm-up, the base rate is multiplied by s / W while s < W; then

    ``step_linear``: by (T - s) / (T - W); ``step_stairs`` (W = int(0.1 T)): by 1, by 0.5 from 4 W on, and by 0.2 from 7 W on.

    The first step of a warm-up is one of no length, as released.
    """

    def __init__(self, optimizer, total_steps, mode='step_linear', warmup_steps=0, last_epoch=-1):
        if mode not in SCHEDULES:
            raise unknown('--lrscheduler', mode, SCHEDULES)
        self.mode, self.total_steps = mode, max(int(total_steps), 1)
        self.warmup_steps = int(WARM_SHARE * self.total_steps) if mode == 'step_stairs' else warmup_steps
        if mode == 'step_linear' and self.warmup_steps >= self.total_steps:
            raise UserError(f'--warmup_steps {warmup_steps} must be below the {total_steps} steps of the whole training')
        super().__init__(optimizer, last_epoch)

    def factor(self, steps):
        """What the base rate is multiplied by once ``steps`` steps are done."""
        if steps < self.warmup_steps:
            return steps / self.warmup_steps
        if self.mode == 'step_linear':
            return max(self.total_steps - steps, 0) / (self.total_steps - self.warmup_steps)
        return next((factor for warmups, factor in STAIRS if steps >= warmups * self.warmup_steps), 1.0) if self.warmup_steps else 1.0

    def get_lr(self):
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def state_dict(self):
        """How many steps are done; the schedule itself is the options'."""
        return {'last_epoch': self.last_epoch}

    def load_state_dict(self, state_dict):
        """Go on after the steps that are done."""
        self.last_epoch = state_dict['last_epoch']
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr):
            group['lr'] = lr
