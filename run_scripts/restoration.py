"""Draw the images that a SEN model restores.

    python -m run_scripts.restoration --config_file <run>/configs.yaml --out restoration.png

Each row is an image of the test split, in four columns: the original, the few patches that the model sees (the others
are gray), its restoration with the image's own caption, and its restoration with another person's caption. The tool
prints the mean squared errors of the hidden patches. If captions guide the restoration, the error with the own caption
is lower. ``test.py --restoration`` writes the same report next to the checkpoint.
"""
import os
import sys

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from utils.declarations import retry_with_pytorch
from utils.errors import UserError, run_program
from utils.figures import check_figure_path, save_figure
from utils.option_types import positive_int
from utils.options import build_test_parser, parse_test_options


def main(argv=None):
    args = read_options(argv)
    from model.heads import active_heads
    from model.heads.sen import MAE
    from processor.head_reports import get_reporting_head
    from processor.runs import Split, load_run
    if MAE not in active_heads(args):
        raise UserError(f"{args.config_file}: this run has --loss_names {args.loss_names}, and only a run with the "
                        "loss 'mae' restores images")
    check_figure_path(args.out)
    run = load_run(args)
    report = get_reporting_head(run.model, MAE).report(Split(args, run), args.images)
    save_figure(report.draw(), args.out)
    print(report.text)
    print(f'wrote {args.out}')


@retry_with_pytorch
def read_options(argv):
    parser = build_test_parser('restoration.py', __doc__)
    parser.add_argument('--out', default='restoration.png', help='file of the figure (.png, .pdf or .svg)')
    parser.add_argument('--images', type=positive_int, default=6,
                        help='number of images from the test split, at even distances')
    return parse_test_options(parser, argv)


if __name__ == '__main__':
    run_program(main)
