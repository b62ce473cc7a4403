"""Reports of heads about a trained model (:class:`model.heads.HasReport`), requested by flags of test.py."""
import json
import logging

from model.heads import heads_with_report
from processor.head_figures import draw_figure
from utils.errors import UserError
from utils.figures import save_figure
from utils.iotools import atomic_write

logger = logging.getLogger('Pedestal.test')


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
    raise UserError(f'--{cls.report_flag}: this run has no {cls.report_needs}')


def write_report(head, split, path):
    """Create a head's report and write ``<path>.json`` and ``<path>.png``. A warning is logged if writing fails.

    Args:
        head: a head with a report.
        split: the :class:`processor.runs.Split` to report on.
        path: the path of the files, without extension.

    Returns:
        The report as text.
    """
    report = head.report(split)
    try:
        with atomic_write(f'{path}.json') as file:
            json.dump(report.content, file, indent=1)
        save_figure(draw_figure(report.figure), f'{path}.png', dpi=100)
    except UserError as error:
        logger.warning('the report of --%s is not saved: %s', head.report_flag, error)
    return report.text
