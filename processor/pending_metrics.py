"""Metrics of training steps that wait on the device, because each read of a GPU's numbers waits for the GPU."""
import math

import torch

from utils import comm
from utils.errors import UserError

FLUSH_PERIOD = 20    # steps between reads of the losses on a GPU


class PendingMetrics:
    """Metrics of steps whose results are still on the device.

    Args:
        dataset: the training set, whose image files an error message lists.
        checkpointer: the :class:`~utils.checkpoint.Checkpointer` of the run's folder, for the same message.
    """

    def __init__(self, dataset, checkpointer):
        self.dataset, self.checkpointer, self.steps = dataset, checkpointer, []

    def add(self, position, metrics, count, image_ids):
        """Add the metrics of a step.

        Args:
            position: the epoch and the step in it, from 1.
            metrics: ``{name: scalar tensor}`` on the device.
            count: the number of samples of the global batch.
            image_ids: the images of this rank's rows, integers [b].
        """
        values = torch.stack([value.float() for value in metrics.values()])
        self.steps.append((position, tuple(metrics), values, count, image_ids))

    def flush(self, means):
        """Read the pending metrics from the device and add them to the means of the epoch.

        Args:
            means: the :class:`~processor.progress.RunningMeans` of the epoch.

        Returns:
            The metrics of the latest step; empty if none are pending.

        Raises:
            UserError: one of them is not finite.
        """
        if not self.steps:
            return {}
        numbers = torch.cat([values for _, _, values, _, _ in self.steps]).tolist()   # waits for the device, once
        for position, names, _, count, image_ids in self.steps:
            latest, numbers = dict(zip(names, numbers)), numbers[len(names):]
            if not all(map(math.isfinite, latest.values())):
                self.fail_on_non_finite(position, latest, image_ids)
            means.update(latest, count)
        self.steps = []
        return latest

    def fail_on_non_finite(self, position, metrics, image_ids):
        epoch, step = position
        bad = ', '.join(f'{name} is {value}' for name, value in metrics.items() if not math.isfinite(value))
        images = ', '.join(comm.all_gather_object(list_images(self.dataset, image_ids)))
        raise UserError(f'at epoch {epoch}, step {step}, {bad}: lower --lr, or check the images of the batch '
                        f'({images}); {self.checkpointer.describe_last_checkpoint()}')


def list_images(dataset, image_ids):
    """List the image files of a batch. A dataset of a user's own script may lack ``samples``."""
    paths = {image_id: path for _, image_id, path, _ in getattr(dataset, 'samples', [])}
    return ', '.join(str(paths.get(int(image_id), f'image {int(image_id)}')) for image_id in image_ids)
