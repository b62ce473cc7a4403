"""Draw the images that a model retrieves for captions.

    python -m run_scripts.retrieve --config_file <run>/configs.yaml --out figure.png
    python -m run_scripts.retrieve --config_file <run>/configs.yaml --caption "a man in a red coat"

Each row is a caption with the gallery images that the model ranks first, the best on the left. Each image has its
cosine similarity above it. A green frame is the right person and a red frame is a wrong one. Frames are gray if the
caption is your own. The tool also prints the files of the images with their similarities. With --rerank the images are
ordered again.
"""
import os
import sys

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from processor.search_results import describe_order, draw_results, format_results, sample_queries
from utils.declarations import retry_with_pytorch
from utils.errors import run_program
from utils.figures import check_figure_path, save_figure
from utils.option_types import positive_int
from utils.options import REPORT_OPTIONS, build_test_parser, parse_test_options
from utils.rerank_options import read_rerank_settings


def main(argv=None):
    args = read_options(argv)
    check_figure_path(args.out)
    import pedestal
    people = pedestal.People(args)
    if args.caption:
        queries = [(caption, None) for caption in args.caption]
    else:
        queries = sample_queries(people.split, args.captions)
    settings = read_rerank_settings(args)
    rows = retrieve(people, queries, args.top, settings)
    print(format_results(rows))
    if settings:
        print(describe_order(settings))
    save_figure(draw_results(rows), args.out)
    print(f'wrote {args.out}')


@retry_with_pytorch
def read_options(argv):
    parser = build_test_parser('retrieve.py', __doc__, (*REPORT_OPTIONS, 'output_dir'))
    parser.add_argument('--out', default='retrieval.png', help='file of the figure (.png, .pdf or .svg)')
    parser.add_argument('--captions', type=positive_int, default=6,
                        help='number of captions from the test split, at even distances')
    parser.add_argument('--caption', action='append', help='caption of your own; repeat the option for several')
    parser.add_argument('--top', type=positive_int, default=10, help='number of images per caption')
    return parse_test_options(parser, argv)


def retrieve(people, queries, top, settings=None):
    """Search the test split.

    Args:
        people: the :class:`pedestal.People` of a run.
        queries: ``[(caption, pid or None), ...]``.
        top: the number of images per caption.
        settings: the settings of re-ranking (:mod:`utils.rerank_options`); None: none.

    Returns:
        ``[(caption, pid or None, [(image path, pid, similarity), ...]), ...]`` with the best image first.
    """
    captions, split = [caption for caption, _ in queries], people.split
    if settings is None:
        results = split.search(people.encode_captions(captions), top)
    else:
        pids = dict(zip(split.paths, split.gallery[1].tolist()))
        results = [[(path, pids[path], score) for path, score in images]
                   for images in people.build_reranked_search(split, settings)(captions, top)]
    return [(caption, pid, images) for (caption, pid), images in zip(queries, results)]


if __name__ == '__main__':
    run_program(main)
