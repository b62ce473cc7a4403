"""Heads that options can enable without ``--loss_names``."""


class EnabledByOptions:
    """A head that options of its own enable, also if ``--loss_names`` does not name it, such as RDE's ``--ccd``."""

    @staticmethod
    def is_enabled(args):
        """Whether the options enable the head."""
        raise NotImplementedError
