"""The evaluation of a run on one dataset, for test.py."""
from processor.breakdown import read_requested_lexicon, write_breakdowns
from processor.head_reports import check_requested_reports, requested_heads, write_report
from processor.report import evaluate_and_save
from processor.results import result_path
from processor.runs import Split, load_run
from utils import comm
from utils.errors import UserError

EXIT_DEPENDENT = 3  # exit status if embeddings depend on their neighbors in the batch


def evaluate_dataset(args):
    """Evaluate a run on one dataset and return the exit status, the same on all ranks."""
    check_requested_reports(args)
    lexicon = read_requested_lexicon(args)
    run = load_run(args)
    heads = requested_heads(args, run.model)
    if args.by and getattr(run.images.dataset, 'evaluates_attributes', False):
        raise UserError(f'--by groups captions, and {args.dataset_name} has none: leave --by out')
    report = evaluate_and_save(args, run)
    comm.run_on_main_process(lambda: print_reports(report, args, run, heads))
    comm.run_on_main_process(lambda: print_breakdowns(report, args, lexicon))
    return 0 if report.is_independent else EXIT_DEPENDENT


def print_reports(report, args, run, heads):
    """Print the report, and write and print the reports of some heads."""
    print(report.text)
    for head in heads:
        figure = getattr(args, head.report_flag)
        print(write_report(head, Split(args, run), result_path(args, head.report_flag),
                           figure if isinstance(figure, str) else None))


def print_breakdowns(report, args, lexicon):
    """Print and write the results of ``--by``, of the last ranking: the re-ranked one if there is one."""
    if args.by:
        how, task = [key for key in report.queries if key[1] == 't2i'][-1]
        print(write_breakdowns(args, report.queries[how, task], lexicon, f'{args.dataset_name} {args.split}, {how}',
                               lambda name: result_path(args, name)))
