"""``python -m datasets.synthpedes``: make a dataset of procedural pedestrians, or look at one."""
import signal
import sys

from datasets.synthpedes.baselines import baseline_scores
from datasets.synthpedes.contact_sheet import save_contact_sheet
from datasets.synthpedes.writing import DIFFICULTY_OPTIONS, formats, generate, validate_settings
from utils.errors import UserError, run_program
from utils.parser import Parser


def _parser():
    parser = Parser(prog='synthpedes', description='Write a dataset of procedural pedestrians, or inspect one.',
                    usage='%(prog)s --out FOLDER --ids N [--<option> VALUE ...]')
    parser.add_argument('--out', help='root folder of datasets; the dataset goes to <out>/<format>')
    parser.add_argument('--ids', type=int, help='number of identities in all splits together')
    parser.add_argument('--images_per_id', type=int, default=4, help='number of images per identity (default: 4)')
    parser.add_argument('--captions_per_image', type=int,
                        help='number of captions per image (default: 1 for ICFG-PEDES, else 2)')
    parser.add_argument('--size', type=int, nargs=2, default=(384, 128), metavar=('H', 'W'),
                        help='height and width of the images in pixels (default: 384 128)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all random numbers (default: 0)')
    parser.add_argument('--format', default='synthpedes',
                        help=f'dataset whose format is written: {", ".join(formats())} (default: synthpedes)')
    parser.add_argument('--val_ids', type=int,
                        help='number of identities in the val split (default: a tenth; ICFG-PEDES: none)')
    parser.add_argument('--test_ids', type=int, help='number of identities in the test split (default: a fifth)')
    parser.add_argument('--second_captions', action='store_true',
                        help='write a second caption of each caption, for the loss aug (ICL)')
    parser.add_argument('--workers', type=int,
                        help='number of processes, without effect on the result (default: the number of cores)')
    parser.add_argument('--overwrite', action='store_true',
                        help='replace a dataset that synthpedes wrote with other settings')
    for name, (default, low, high, what) in DIFFICULTY_OPTIONS.items():
        parser.add_argument(f'--{name}', type=type(default), default=default,
                            help=f'{what}, from {low} to {high} (default: {default})')
    parser.add_argument('--contact_sheet', metavar='FILE',
                        help='only draw a figure of a few identities, with a caption under each image')
    parser.add_argument('--baselines', metavar='FOLDER',
                        help="only evaluate baselines without learning, on a dataset's folder")
    parser.add_argument('--split', default='test', help='split for --baselines (default: test)')
    parser.add_argument('--galleries', type=int, default=5,
                        help='number of disjoint galleries for --baselines; results are their mean (default: 5)')
    parser.add_argument('--ids_per_gallery', type=int, default=100,
                        help='number of identities in each gallery for --baselines (default: 100)')
    return parser


def _print_baselines(args):
    scores = baseline_scores(args.baselines, args.split, args.galleries, args.ids_per_gallery, args.seed)
    print(f'{args.baselines}, {args.split}: mean of {args.galleries} galleries of {args.ids_per_gallery} identities, '
          'text to image')
    print(f'{"baseline":<16}' + ''.join(f'{k:>8}' for k in ('R1', 'R5', 'R10', 'mAP')))
    for name, score in scores.items():
        print(f'{name:<16}' + ''.join(f'{score[k]:8.2f}' for k in ('R1', 'R5', 'R10', 'mAP')))


def _terminate(signum, frame):
    raise KeyboardInterrupt


def main(argv=None):
    args = _parser().parse(sys.argv[1:] if argv is None else argv)
    previous = signal.signal(signal.SIGTERM, _terminate)  # cleans up as Ctrl-C does
    try:
        _run(args)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _run(args):
    if args.baselines:
        _print_baselines(args)
        return
    names = 'images_per_id', 'captions_per_image', 'size', 'seed', 'format', 'second_captions', *DIFFICULTY_OPTIONS
    settings = {name: getattr(args, name) for name in names}
    if args.contact_sheet:
        save_contact_sheet(args.contact_sheet, validate_settings(60 if args.ids is None else args.ids, **settings))
        return
    if args.out is None or args.ids is None:
        raise UserError('--out and --ids are needed (or --baselines, or --contact_sheet)')
    folder = generate(args.out, args.ids, workers=args.workers, overwrite=args.overwrite, val_ids=args.val_ids,
                      test_ids=args.test_ids, **settings)
    print(f'synthpedes: {folder}')


if __name__ == '__main__':
    run_program(main)
