"""``--logger wandb``: Weights & Biases."""
import os
import secrets

from processor.loggers import MetricsLogger


class WandbLogger(MetricsLogger):
    """A run of Weights & Biases, in the project of WANDB_PROJECT, else pedestal.

    Its own environment variables apply, such as WANDB_MODE=offline and WANDB_ENTITY. Files go to ``wandb`` in the
    run's folder.
    """

    name = 'wandb'
    package = 'wandb'
    records = 'the metrics of Weights & Biases'

    def __init__(self, folder, options, step=0, history=()):
        super().__init__(folder, options, step, history)
        import wandb
        known_id = self.read_run_id()
        run_id = known_id or secrets.token_hex(8)
        self.write_run_id(run_id)
        self.run = wandb.init(id=run_id, resume='allow', dir=folder, name=self.run_name,
                              project=os.environ.get('WANDB_PROJECT', 'pedestal'))
        self.run.config.update(options, allow_val_change=True)
        # A step axis of its own: wandb's axis refuses an evaluation that follows the latest training step.
        self.run.define_metric('step')
        self.run.define_metric('*', step_metric='step')
        if not known_id:
            self.log_history(history)

    def log(self, metrics, step, epoch):
        self.run.log({'step': step, 'epoch': epoch, **metrics})

    def close(self):
        self.run.finish()
