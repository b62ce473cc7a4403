"""Reports of heads about a trained model (:class:`model.heads.HasReport`), requested by flags of test.py.

The value of a flag is False, True, or the file of the figure.
"""
import json
import logging

from model.head_options import heads_with_report
from model.loss_names import active_heads
from processor.head_figures import draw_figure
from utils.errors import UserError
from utils.figures import check_figure_path, save_figure
from utils.iotools import atomic_write

logger = logging.getLogger('Pedestal.test')


def check_requested_reports(args):
    """Check the report flags before the run is loaded.

    Raises:
        UserError: the run has no head for a report, or its figure cannot be written.
    """
    for cls in heads_with_report():
        requested = getattr(args, cls.report_flag)
        if requested and not any(issubclass(head, cls) for head in active_heads(args)):
            raise no_report_error(cls)
        if isinstance(requested, str):
            check_figure_path(requested)


def requested_heads(args, model):
    """List the model's heads whose reports the options request.

    Raises:
        UserError: the model has no such head.
    """
    return [get_reporting_head(model, cls) for cls in heads_with_report() if getattr(args, cls.report_flag)]


def get_reporting_head(model, cls):
    """Return the model's head of a class.

    Raises:
        UserError: the model has none, or it cannot create its report.
    """
    for head in model.heads:
        if isinstance(head, cls) and head.has_report():
            return head
    raise no_report_error(cls)


def no_report_error(cls):
    """The error for a run without the head of a report."""
    return UserError(f'--{cls.report_flag}: this run has no {cls.report_needs}')


def write_report(head, split, path, figure_path=None):
    """Create a head's report and write its JSON file and its figure. A warning is logged if writing fails.

    Args:
        head: a head with a report.
        split: the :class:`processor.runs.Split` to report on.
        path: the path of the files, without extension.
        figure_path: the file of the figure; by default ``<path>.png``.

    Returns:
        The report as text.
    """
    report = head.report(split)
    for write in (lambda: write_json(report.content, f'{path}.json'),
                  lambda: save_figure(draw_figure(report.figure), figure_path or f'{path}.png', dpi=100)):
        try:
            write()
        except UserError as error:
            logger.warning('the report of --%s is not saved: %s', head.report_flag, error)
    return report.text


def write_json(content, path):
    with atomic_write(path) as file:
        json.dump(content, file, indent=1)
