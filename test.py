"""Evaluate a run's best checkpoint, ours or a published one's: ``python test.py --config_file <run>/configs.yaml``."""
import signal

from utils.launcher import watch_launcher

if __name__ == '__main__':  # until run() below takes over: Ctrl-C while PyTorch loads ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    watch_launcher()                # torchrun may be killed while PyTorch loads

from processor.head_reports import add_report_flags, heads_asked, write_report
from processor.report import baselines, beside_checkpoint, evaluate, save_results
from processor.runs import Split, open_run
from utils import comm
from utils.errors import run
from utils.logger import setup_logger
from utils.options import build_test_parser, parse_test_options

DEPENDENT = 3  # exit status where embeddings depend on their neighbours in the batch


def main(argv=None):
    parser = build_test_parser('test.py', __doc__)
    add_report_flags(parser)
    with comm.joined():
        args = parse_test_options(parser, argv)
        setup_logger('Pedestal', save_dir='', if_train=False, distributed_rank=comm.get_rank())
        statuses = []
        for name in (*args.dataset_name.split('+'), *getattr(args, 'further_datasets', ())):
            args.dataset_name = name
            statuses.append(test_on(args))
        return max(statuses)


def test_on(args):
    """Evaluate on one dataset; returns the exit status, the same on all processes."""
    opened = open_run(args)
    asked = heads_asked(args, opened.model)
    report = evaluate(args, opened.model, opened.images, opened.captions, opened.checkpoint)
    comm.by_first(lambda: tell(report, args, opened, asked))
    return 0 if report.independent else DEPENDENT


def tell(report, args, opened, asked):
    """Save and print the report, and those of the heads that are ``asked`` for one."""
    report.baselines = baselines(args, opened.images.dataset, opened.captions.dataset)
    save_results(report, args)
    print(report.text)
    for head in asked:
        print(write_report(head, Split(args, opened), beside_checkpoint(args, head.report_flag)))


if __name__ == '__main__':
    run(main)
