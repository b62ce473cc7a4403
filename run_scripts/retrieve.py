"""Draw the images that a model retrieves for captions.

    python -m run_scripts.retrieve --config_file <run>/configs.yaml --out figure.png
    python -m run_scripts.retrieve --config_file <run>/configs.yaml --caption "a man in a red coat"

Each row is a caption with the gallery images that the model ranks first, the best on the left. Each image has its
cosine similarity above it. A green frame is the right person and a red frame is a wrong one. Frames are gray if the
caption is your own. The tool also prints the files of the images with their similarities.
"""
from run_scripts import start
from utils.declarations import retry_with_pytorch
from utils.figures import check_figure_path, import_pyplot, save_figure, wrap_text
from utils.iotools import read_image
from utils.options import build_test_parser, positive_int, parse_test_options
from utils.terminal import escape_line

GREEN, RED, GRAY = '#2ca02c', '#d62728', '#7f7f7f'


def main(argv=None):
    args = read_options(argv)
    check_figure_path(args.out)
    import pedestal
    people = pedestal.People(args)
    if args.caption:
        queries = [(caption, None) for caption in args.caption]
    else:
        queries = sample_queries(people.split, args.captions)
    rows = retrieve(people, queries, args.top)
    print(format_results(rows))
    save_figure(draw_results(rows), args.out)
    print(f'wrote {args.out}')


@retry_with_pytorch
def read_options(argv):
    parser = build_test_parser('retrieve.py', __doc__)
    parser.add_argument('--out', default='retrieval.png', help='file of the figure (.png, .pdf or .svg)')
    parser.add_argument('--captions', type=positive_int, default=6,
                        help='number of captions from the test split, at even distances')
    parser.add_argument('--caption', action='append', help='caption of your own; repeat the option for several')
    parser.add_argument('--top', type=positive_int, default=10, help='number of images per caption')
    return parse_test_options(parser, argv)


def sample_queries(split, number):
    """``[(caption, pid), ...]``: captions of a split at even distances."""
    import torch
    captions, pids = split.captions, split.run.captions.dataset.caption_pids
    indices = torch.linspace(0, len(captions) - 1, min(number, len(captions))).long().tolist()
    return [(captions[i], int(pids[i])) for i in indices]


def retrieve(people, queries, top):
    """Search the test split.

    Args:
        people: the :class:`pedestal.People` of a run.
        queries: ``[(caption, pid or None), ...]``.
        top: the number of images per caption.

    Returns:
        ``[(caption, pid or None, [(image path, pid, similarity), ...]), ...]`` with the best image first.
    """
    results = people.split.search(people.encode_captions([caption for caption, _ in queries]), top)
    return [(caption, pid, images) for (caption, pid), images in zip(queries, results)]


def format_results(rows):
    """A line for each caption, and one for each of its images: similarity, whether it is the right person, file."""
    lines = []
    for caption, pid, images in rows:
        lines.append(escape_line(caption))
        for path, image_pid, score in images:
            verdict = '' if pid is None else 'right  ' if image_pid == pid else 'wrong  '
            lines.append(f'  {score:.4f}  {verdict}{escape_line(path)}')
    return '\n'.join(lines)


def draw_results(rows):
    """A figure of the rows that :func:`retrieve` returns."""
    columns = max(len(images) for _, _, images in rows)
    first = read_image(rows[0][2][0][0])
    text_width, height = 2.9, first.height / first.width + 0.25         # in widths of an image
    figure, axes = import_pyplot().subplots(
        len(rows), columns + 1, figsize=(text_width + 1.06 * columns, height * len(rows)), squeeze=False,
        width_ratios=[text_width] + [1] * columns)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=1 - 0.15 / (height * len(rows)), wspace=0.06,
                           hspace=0.15 / height)
    for row, (caption, pid, images) in zip(axes, rows):
        row[0].text(0, 0.5, wrap_text(caption, 36), va='center', ha='left', fontsize=9, transform=row[0].transAxes,
                    parse_math=False)
        for axis in row:
            axis.axis('off')
        for axis, (path, image_pid, score) in zip(row[1:], images):
            axis.imshow(read_image(path))
            axis.set_title(f'{score:.3f}', fontsize=7, pad=2)
            color = GRAY if pid is None else GREEN if image_pid == pid else RED
            axis.add_patch(import_pyplot().Rectangle((0, 0), 1, 1, transform=axis.transAxes, fill=False,
                                                     edgecolor=color, linewidth=4))
    return figure


if __name__ == '__main__':
    start(main)
