"""Evaluate a trained or published run: ``python test.py --config_file <run folder>/configs.yaml``."""
# PYTHON_ARGCOMPLETE_OK (the tab key completes options; see README.md)
import signal

from utils.launcher import is_launched_by_torchrun, watch_launcher

if __name__ == '__main__':  # until run_program: Ctrl-C while PyTorch loads ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    watch_launcher()        # exit also if torchrun is killed while PyTorch loads

from model.head_options import add_report_flags
from utils.declarations import retry_with_pytorch
from utils.errors import run_program
from utils.options import add_breakdown_options, build_test_parser, parse_test_options, replace_options, with_notes


def main(argv=None):
    args = None if is_launched_by_torchrun() else read_options(argv)
    from processor.test_run import evaluate_dataset
    from utils import comm
    from utils.logger import setup_logger
    with comm.process_group():
        args = args or read_options(argv)
        setup_logger('Pedestal', save_dir='', if_train=False, distributed_rank=comm.get_rank())
        statuses = []
        for name in (*args.dataset_name.split('+'), *args.config.data.further_datasets):
            args = replace_options(args, dataset_name=name)
            statuses.append(evaluate_dataset(args))
            args = with_notes(args, ())     # they are logged once
        return max(statuses)


@retry_with_pytorch
def read_options(argv):
    """Parse and validate the options of the evaluation. Raises :class:`~utils.errors.UserError`."""
    parser = build_test_parser('test.py', __doc__)
    add_breakdown_options(parser)
    add_report_flags(parser.add_argument_group('reports of heads'))
    return parse_test_options(parser, argv)


if __name__ == '__main__':
    run_program(main)
