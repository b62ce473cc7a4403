"""Heads with parts that only training needs."""


class HasTrainingOnlyParts:
    """A head with parts that follow the training without gradients, such as a momentum encoder or a queue.

    ``last.pth`` has these parts, and a resumed run continues with them. ``best.pth`` and the parameter count exclude
    them. Put a buffer into a module that the head owns, so that it is saved under the name of that module.

    Attributes:
        training_only_parts: attribute names of the parts.
    """

    training_only_parts = ()

    def after_weights_loaded(self, model):
        """Called after a new run loads its weights (pretrained or ``--init_from``), for example to copy them.

        A resumed run does not call it: it restores the head's parts from the checkpoint.
        """

    def after_step(self, model):
        """Called after each optimizer step, to update the parts."""
