"""Heads and shared parts that only training needs."""


class HasTrainingOnlyParts:
    """A head with parts that follow the training without gradients, such as a momentum encoder or a queue.

    ``last.pth`` has these parts, and a resumed run continues with them. ``best.pth`` and the parameter count exclude
    them. A module of ``model.shared`` can be of this class also; its hooks are called once, however many heads share
    it. :mod:`model.momentum` and :mod:`model.queue` have such modules.

    Attributes:
        training_only_parts: attribute names of the parts, modules or buffers.
    """

    training_only_parts = ()

    def after_weights_loaded(self, model):
        """Called after a new run loads its weights (pretrained or ``--init_from``), for example to copy them.

        A resumed run does not call it: it restores the head's parts from the checkpoint.
        """

    def before_forward(self, model):
        """Called before the forward pass, to update the parts.

        With ``--micro_batch`` it is called once per step, and with ``--accumulate`` once per update of the parameters.
        """

    def after_step(self, model):
        """Called after each update of the parameters by the optimizer, to update the parts."""
