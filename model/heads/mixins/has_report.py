"""Heads with an analysis of the trained model."""
from collections.abc import Callable
from typing import NamedTuple


class HeadReport(NamedTuple):
    """The result of :meth:`HasReport.report`.

    Attributes:
        text: what test.py prints.
        content: the content of ``<report_flag>.json``.
        draw: function without arguments that returns the matplotlib figure for ``<report_flag>.png``.
    """
    text: str
    content: dict
    draw: Callable


class HasReport:
    """A head with a report, which a flag of test.py asks for.

    Attributes:
        report_flag: the flag, without dashes.
        report_help: help text of the flag.
        report_needs: what a run lacks if it has no report, for the error '<flag>: this run has no <report_needs>'.
    """

    report_flag = ''
    report_help = ''
    report_needs = ''

    def has_report(self):
        """Whether the head, as it was built, supports :meth:`report`."""
        return True

    def report(self, split):
        """Analyze the trained model. test.py prints the result and writes it next to the checkpoint.

        Args:
            split: a test split. ``split.embed_images()`` and ``split.embed_captions()`` pass one side through the
                model. ``split.entries`` are its annotated images; ``split.load_images(entries)`` and
                ``split.tokenize(captions)`` turn them into inputs.

        Returns:
            A :class:`HeadReport`.
        """
        raise NotImplementedError
