"""Evaluate retrieval in small galleries.

    python -m run_scripts.galleries --config_file <run>/configs.yaml --galleries 5 \\
        --ids_per_gallery 100

The tool splits the test identities into galleries, ranks each gallery separately, and prints the mean and the standard
deviation of the metrics. Without these two options there are five galleries of 100 identities, or smaller and fewer
ones if the test split has fewer identities. On synthetic pedestrians it also prints two baselines without learning,
which compare color words with the colors of the images.
"""
import os
import statistics
import sys

from prettytable import PrettyTable

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from utils.declarations import retry_with_pytorch
from utils.errors import UserError, run_program
from utils.option_types import non_negative_int, positive_int
from utils.options import REPORT_OPTIONS, RERANK_OPTIONS, build_test_parser, parse_test_options
from utils.tables import METRICS


def main(argv=None):
    args = read_options(argv)
    import torch
    from datasets.synthpedes import baseline_similarities, sample_galleries, is_synthetic
    from processor.runs import load_run
    run = load_run(args)
    images, captions = run.images.dataset, run.captions.dataset
    identities = set(map(int, captions.caption_pids))
    count, size = gallery_counts(args.galleries, args.ids_per_gallery, len(identities))
    if len(identities) < count * size:
        raise UserError(f'--galleries {count} --ids_per_gallery {size} need {count * size} identities, and the '
                        f'{args.split} split of {args.dataset_name} has {len(identities)}; lower one of them')
    q_pids, g_pids = torch.as_tensor(captions.caption_pids), torch.as_tensor(images.image_pids)
    rankers = {'model': rank_by_model(run)}
    if is_synthetic(os.path.join(args.root_dir, args.dataset_name)):
        for name, similarity in baseline_similarities(captions.captions, images.img_paths).items():
            rankers[f'color words, {name}'] = rank_by_similarity(torch.as_tensor(similarity), q_pids, g_pids)
    groups = sample_galleries(sorted(identities), count, size, args.gallery_seed)
    print(f'{count} galleries of {size} identities, mean (standard deviation); chance: Rank-1 {100 / size:.1f}')
    print(format_table({name: rank_galleries(rank, q_pids, g_pids, groups) for name, rank in rankers.items()}))


@retry_with_pytorch
def read_options(argv):
    parser = build_test_parser('galleries.py', __doc__, (*RERANK_OPTIONS, *REPORT_OPTIONS, 'distractors', 'output_dir'))
    parser.add_argument('--galleries', type=positive_int,
                        help='number of galleries (default: 5, or fewer if the split has too few identities)')
    parser.add_argument('--ids_per_gallery', type=positive_int,
                        help='number of identities in each gallery (default: 100, or fewer for a small split)')
    parser.add_argument('--gallery_seed', type=non_negative_int, default=0,
                        help='random seed of the split into galleries')
    return parse_test_options(parser, argv)


def gallery_counts(galleries, ids_per_gallery, available):
    """The number of galleries and of identities in each: the given ones, or what a split has enough identities for.

    Example:
        >>> gallery_counts(None, None, 1000), gallery_counts(None, None, 200), gallery_counts(None, None, 6)
        ((5, 100), (5, 40), (3, 2))
        >>> gallery_counts(3, None, 12), gallery_counts(None, 100, 250), gallery_counts(9, 9, 3)
        ((3, 4), (2, 100), (9, 9))
    """
    size = ids_per_gallery or min(100, max(2, available // (galleries or 5)))
    return galleries or min(5, max(1, available // size)), size


def rank_by_model(run):
    """A function of two masks, of queries [Q] and of gallery images [G], that returns the model's metrics for them."""
    from processor.evaluation import embed, evaluate_embeddings
    qfeats, qids = embed(run.model, run.captions, 'text')
    gfeats, gids = embed(run.model, run.images, 'image')
    return lambda queries, gallery: evaluate_embeddings(
        qfeats[queries], gfeats[gallery], qids[queries], gids[gallery])['t2i']


def rank_by_similarity(similarity, q_pids, g_pids):
    """As :func:`rank_by_model`, from similarities [Q, G]."""
    from utils.retrieval_metrics import compute_metrics
    return lambda queries, gallery: compute_metrics(similarity[queries][:, gallery], q_pids[queries], g_pids[gallery])


def rank_galleries(rank, q_pids, g_pids, groups):
    """The metrics of each group of identities, ranked separately."""
    import torch
    groups = [torch.as_tensor(list(group)) for group in groups]
    return [rank(torch.isin(q_pids, group), torch.isin(g_pids, group)) for group in groups]


def format_table(results):
    """A table of ``{name: [metrics of each gallery]}``."""
    table = PrettyTable(['', *METRICS])
    for name, rows in results.items():
        columns = [[row[metric] for row in rows] for metric in METRICS]
        cells = [f'{statistics.mean(column):.2f} ({statistics.pstdev(column):.2f})' for column in columns]
        table.add_row([name, *cells])
    return table.get_string()


if __name__ == '__main__':
    run_program(main)
