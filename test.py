"""Evaluate a run's best checkpoint, ours or a published one's: ``python test.py --config_file <run>/configs.yaml``."""
# PYTHON_ARGCOMPLETE_OK (the tab key completes options; see README.md)
import signal

from utils.launcher import watch_launcher

if __name__ == '__main__':  # until run() below takes over: Ctrl-C while PyTorch loads ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    watch_launcher()                # torchrun may be killed while PyTorch loads

from model.heads import add_report_flags
from utils.declarations import with_declarations
from utils.errors import run
from utils.options import build_test_parser, is_launched_by_torchrun, parse_test_options


def main(argv=None):
    args = None if is_launched_by_torchrun() else read_options(argv)
    from processor.test_run import test_on
    from utils import comm
    from utils.logger import setup_logger
    with comm.process_group():
        args = args or read_options(argv)
        setup_logger('Pedestal', save_dir='', if_train=False, distributed_rank=comm.get_rank())
        statuses = []
        for name in (*args.dataset_name.split('+'), *getattr(args, 'further_datasets', ())):
            args.dataset_name = name
            statuses.append(test_on(args))
        return max(statuses)


@with_declarations
def read_options(argv):
    """The options of the evaluation. Raises :class:`~utils.errors.UserError`."""
    parser = build_test_parser('test.py', __doc__)
    add_report_flags(parser)
    return parse_test_options(parser, argv)


if __name__ == '__main__':
    run(main)
