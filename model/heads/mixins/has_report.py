"""Heads with an analysis of the trained model. ``processor/head_figures.py`` draws the figures."""
from typing import Any, NamedTuple


class BarPanels(NamedTuple):
    """A figure of bars, one panel per title.

    Attributes:
        titles: the titles of the panels.
        series: {label: the heights of its bars in each panel, ``[panels][bars]``}.
        x_label: what the bars are; they are numbered from 0.
        y_label: the unit of the heights.
        reference: ``(label, height)`` of a dotted line.
    """
    titles: list
    series: dict
    x_label: str
    y_label: str
    reference: tuple


class ImageTable(NamedTuple):
    """A figure of images, one row per sample, between two texts.

    Attributes:
        images: [rows, columns, 3, H, W], colors from 0 to 1.
        titles: the titles of the columns.
        left: a text for each row, left of its images.
        right: a text for each row, right of its images.
    """
    images: Any     # a tensor, without importing PyTorch here
    titles: list
    left: list
    right: list


class HeadReport(NamedTuple):
    """The result of :meth:`HasReport.report`.

    Attributes:
        text: what test.py prints.
        content: the content of ``<report_flag>.json``.
        figure: the data of the figure.
    """
    text: str
    content: dict
    figure: BarPanels | ImageTable


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

    @staticmethod
    def add_report_options(parser):
        """Add options of :meth:`report` to test.py; ``report`` reads them from ``split.args``."""

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
