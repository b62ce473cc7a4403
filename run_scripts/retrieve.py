"""A picture of a model's retrievals: ``python run_scripts/retrieve.py --config_file <run>/configs.yaml --out figure.png``.

Each row is a caption with the gallery images ranked first, and above each its cosine similarity; green frames are the right person,
red ones are not. With ``--caption "a woman in a red coat"`` the query is yours, and frames are grey. The images' files are printed with
their similarities.
"""
import torch

from run_scripts import start
import pedestal
from utils.iotools import read_image
from utils.options import build_test_parser, count, parse_test_options
from utils.pictures import check_picture, pyplot, save_picture, wrap_text
from utils.terminal import one_line

GREEN, RED, GREY = '#2ca02c', '#d62728', '#7f7f7f'


def main(argv=None):
    parser = build_test_parser('retrieve.py', __doc__)
    parser.add_argument('--out', default='retrieval.png', help='the picture to write')
    parser.add_argument('--captions', type=count, default=6, help='how many captions of the test split, spread over it')
    parser.add_argument('--caption', action='append', help='a caption of your own; may be given several times')
    parser.add_argument('--top', type=count, default=10, help='images a caption')
    args = parse_test_options(parser, argv)
    check_picture(args.out)
    people = pedestal.People(args)
    queries = [(caption, None) for caption in args.caption] if args.caption else split_queries(people.split, args.captions)
    rows = retrieved(people, queries, args.top)
    print(in_words(rows))
    save_picture(draw(rows), args.out)
    print(f'wrote {args.out}')


def split_queries(split, number):
    """[(caption, pid)], spread evenly over the split."""
    captions, pids = split.captions, split.run.captions.dataset.caption_pids
    chosen = torch.linspace(0, len(captions) - 1, min(number, len(captions))).long().tolist()
    return [(captions[i], int(pids[i])) for i in chosen]


def retrieved(people, queries, top):
    """[(caption, pid or None, [(image path, pid, similarity)])]: the ``top`` gallery images for each query, the best first."""
    found = people.split.search(people.encode_captions([caption for caption, _ in queries]), top)
    return [(caption, pid, best) for (caption, pid), best in zip(queries, found)]


def in_words(rows):
    """A line for each caption, and one for each of its images: similarity, whether it is the right person, file."""
    lines = []
    for caption, pid, images in rows:
        lines.append(one_line(caption))
        for path, image_pid, score in images:
            lines.append(f"  {score:.4f}  {'' if pid is None else 'right  ' if image_pid == pid else 'wrong  '}{one_line(path)}")
    return '\n'.join(lines)


def draw(rows):
    """Rows of (caption, pid or None, [(image path, pid, similarity)]) as a figure."""
    columns = max(len(images) for _, _, images in rows)
    first = read_image(rows[0][2][0][0])
    text_width, height = 2.9, first.height / first.width + 0.25         # in widths of an image
    figure, axes = pyplot().subplots(len(rows), columns + 1, figsize=(text_width + 1.06 * columns, height * len(rows)), squeeze=False,
                                     width_ratios=[text_width] + [1] * columns)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=1 - 0.15 / (height * len(rows)), wspace=0.06, hspace=0.15 / height)
    for row, (caption, pid, images) in zip(axes, rows):
        row[0].text(0, 0.5, wrap_text(caption, 36), va='center', ha='left', fontsize=9, transform=row[0].transAxes,
                    parse_math=False)
        for axis in row:
            axis.axis('off')
        for axis, (path, image_pid, score) in zip(row[1:], images):
            axis.imshow(read_image(path))
            axis.set_title(f'{score:.3f}', fontsize=7, pad=2)
            colour = GREY if pid is None else GREEN if image_pid == pid else RED
            axis.add_patch(pyplot().Rectangle((0, 0), 1, 1, transform=axis.transAxes, fill=False, edgecolor=colour, linewidth=4))
    return figure


if __name__ == '__main__':
    start(main)
