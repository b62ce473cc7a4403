"""Find people in a folder of photos by a description.

    python -m run_scripts.search --config_file <run>/configs.yaml --images photos \\
        --caption "a red coat"

The first search embeds all photos and stores the embeddings in <photos>/.pedestal. Later searches embed only new
photos. An interrupted search continues from its last stored photo. The tool names photos that cannot be read and skips
them. The search is exact. With --faiss it is approximate, and the tool prints its recall. With --rerank the photos are
ordered again; the printed numbers remain cosine similarities.
"""
import json
import os
import sys
import time

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from processor.search_results import describe_order, draw_results, format_results, report_skipped
from utils.declarations import retry_with_pytorch
from utils.errors import UserError, run_program
from utils.figures import check_figure_path, save_figure
from utils.iotools import atomic_write
from utils.option_types import positive_int
from utils.options import REPORT_OPTIONS, SPLIT_OPTIONS, build_test_parser, parse_test_options
from utils.rerank_options import read_rerank_settings


def main(argv=None):
    args = read_options(argv)
    if args.out and not args.out.endswith('.json'):
        check_figure_path(args.out)
    import pedestal
    from processor.image_index import import_faiss
    if args.faiss:
        import_faiss()   # an error here comes before hours of embedding
    people, settings = pedestal.People(args), read_rerank_settings(args)
    queries = people.encode_captions(args.caption)
    photos = people.index_images(args.images, args.index)
    report_skipped(photos)
    search = photos.search_approximately if args.faiss else photos.search
    if settings:
        reranked_search = people.build_reranked_search(photos, settings)
    start_time = time.perf_counter()
    results = reranked_search(args.caption, args.top) if settings else search(queries, args.top)
    seconds = time.perf_counter() - start_time
    rows = [(caption, None, [(path, None, score) for path, score in images])
            for caption, images in zip(args.caption, results)]
    print(format_results(rows))
    print(f'{len(photos.paths)} photos, {seconds / len(results):.3f} s per description')
    if settings:
        print(describe_order(settings))
    if args.faiss:
        recall = 100 * compute_recall(results, photos.search(queries, args.top))
        print(f'FAISS finds {recall:.1f}% of the {args.top} best photos')
    if args.out:
        write_results(args.out, rows)
        print(f'wrote {args.out}')


@retry_with_pytorch
def read_options(argv):
    parser = build_test_parser('search.py', __doc__, (*REPORT_OPTIONS, *SPLIT_OPTIONS, 'output_dir'))
    parser.add_argument('--images', required=True, help='folder with the photos')
    parser.add_argument('--caption', action='append', required=True,
                        help='description of a person; repeat the option for several')
    parser.add_argument('--top', type=positive_int, default=10, help='number of photos per description')
    parser.add_argument('--index', help='folder of the embeddings (default: <images>/.pedestal)')
    parser.add_argument('--out', help='file to write: a figure (.png, .pdf) or a list (.json)')
    parser.add_argument('--faiss', action='store_true',
                        help='approximate search in a FAISS index, for millions of photos')
    args = parse_test_options(parser, argv)
    if args.faiss and args.rerank:
        raise UserError('--rerank needs an exact search, and --faiss searches approximately: leave one of them out')
    return args


def compute_recall(results, exact_results):
    """The fraction of the exact results that an approximate search finds."""
    pairs = [({path for path, _ in approximate}, {path for path, _ in exact})
             for approximate, exact in zip(results, exact_results)]
    return sum(len(approximate & exact) for approximate, exact in pairs) / sum(len(exact) for _, exact in pairs)


def write_results(path, rows):
    """Write the rows of :func:`~processor.search_results.format_results` as JSON or as a figure."""
    if not path.endswith('.json'):
        save_figure(draw_results(rows), path)
        return
    content = [{'caption': caption, 'photos': [{'path': photo, 'score': score} for photo, _, score in images]}
               for caption, _, images in rows]
    with atomic_write(path) as file:
        json.dump(content, file, indent=1)


if __name__ == '__main__':
    run_program(main)
