"""What SEN restores: ``python run_scripts/restoration.py --config_file <run>/configs.yaml --out restoration.png``.

Each row is an image of the test split: the original, what the model sees of it (a few patches in grey), what it restores
from them with the image's own caption, and with another person's. Seen patches are shown as they were seen. The mean
squared errors of the hidden patches are printed: where captions guide the restoration, the own does better.
``test.py --restoration`` makes the same report beside the checkpoint.
"""
from run_scripts import start
from model.heads import active_heads
from model.heads.sen import MAE
from processor.head_reports import head_with_report
from processor.runs import Split, open_run
from utils.errors import UserError
from utils.options import build_test_parser, count, parse_test_options
from utils.pictures import check_picture, save_picture


def main(argv=None):
    parser = build_test_parser('restoration.py', __doc__)
    parser.add_argument('--out', default='restoration.png', help='the picture to write')
    parser.add_argument('--images', type=count, default=6, help='how many images of the test split, spread over it')
    args = parse_test_options(parser, argv)
    if MAE not in active_heads(args):
        raise UserError(f"{args.config_file} is of a run without the loss 'mae' (--loss_names {args.loss_names}): it cannot "
                        'restore images')
    check_picture(args.out)
    run = open_run(args)
    report = head_with_report(run.model, MAE).report(Split(args, run), args.images)
    save_picture(report.draw(), args.out)
    print(report.text)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    start(main)
