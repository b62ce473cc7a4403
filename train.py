"""Train a text-to-image person retrieval model: ``python train.py --help``."""
# PYTHON_ARGCOMPLETE_OK (the tab key completes options; see README.md)
import signal

from utils.launcher import is_launched_by_torchrun, watch_launcher

if __name__ == '__main__':  # until run_program: Ctrl-C while PyTorch loads ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    watch_launcher()        # exit also if torchrun is killed while PyTorch loads

from datasets.registry import dataset_class
from utils.declarations import retry_with_pytorch
from utils.errors import UserError, run_program
from utils.options import get_args


def main(argv=None):
    # A wrong flag is reported before PyTorch is imported. Several processes connect first, so that only one reports it.
    args = None if is_launched_by_torchrun() else read_options(argv)
    from processor.dry_run import do_dry_run
    from processor.training_run import run_training
    from utils import comm
    with comm.process_group():
        args = args or read_options(argv)
        do_dry_run(args) if args.dry_run else run_training(args)


@retry_with_pytorch
def read_options(argv):
    """Parse and validate the options of the run. Raises :class:`~utils.errors.UserError`."""
    args = get_args(argv)
    if not args.training:
        raise UserError('train.py does not support --test; use: python test.py --config_file <run folder>/configs.yaml')
    for name in filter(None, (args.dataset_name, args.eval_dataset)):
        dataset_class(name)     # raise for an unknown name before the run's folder is made
    return args


if __name__ == '__main__':
    run_program(main)
