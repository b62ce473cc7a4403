"""Reports that heads make of a trained model (:meth:`model.heads.Head.report`): found by their flags, written beside the checkpoint."""
import json
import logging

from model.heads import heads_with_report
from utils.errors import UserError
from utils.iotools import atomic_write
from utils.pictures import save_picture

logger = logging.getLogger('Pedestal.test')


def heads_asked(args, model):
    """The model's heads whose reports ``args`` ask for. Raises UserError where the model has no such head: before anything is
    evaluated."""
    return [head_with_report(model, cls) for cls in heads_with_report() if getattr(args, cls.report_flag)]


def head_with_report(model, cls):
    """The head of the class in the model. Raises UserError where there is none, or none that can make its report."""
    for head in model.heads:
        if isinstance(head, cls) and head.has_report():
            return head
    raise UserError(f'--{cls.report_flag}: this run has no {cls.report_needs}')


def write_report(head, split, path):
    """Make a head's report of a :class:`processor.runs.Split`, write ``<path>.json`` and ``<path>.png``, and return its text. Files
    that cannot be written are a line in the log."""
    report = head.report(split)
    try:
        with atomic_write(f'{path}.json') as file:
            json.dump(report.content, file, indent=1)
        save_picture(report.draw(), f'{path}.png', dpi=100)
    except UserError as error:
        logger.warning('the report of --%s is not saved: %s', head.report_flag, error)
    return report.text
