"""The evaluation of a run on one dataset, as test.py makes it."""
from processor.head_reports import heads_asked, write_report
from processor.report import baselines, beside_checkpoint, evaluate, save_results
from processor.runs import Split, open_run
from utils import comm

DEPENDENT = 3  # exit status where embeddings depend on their neighbours in the batch


def test_on(args):
    """Evaluate on one dataset; returns the exit status, the same on all processes."""
    opened = open_run(args)
    asked = heads_asked(args, opened.model)
    report = evaluate(args, opened.model, opened.images, opened.captions, opened.checkpoint)
    comm.run_on_main_process(lambda: tell(report, args, opened, asked))
    return 0 if report.independent else DEPENDENT


def tell(report, args, opened, asked):
    """Save and print the report, and those of the heads that are ``asked`` for one."""
    report.baselines = baselines(args, opened.images.dataset, opened.captions.dataset)
    save_results(report, args)
    print(report.text)
    for head in asked:
        print(write_report(head, Split(args, opened), beside_checkpoint(args, head.report_flag)))
