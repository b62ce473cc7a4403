"""Retrieval in small galleries: ``python run_scripts/galleries.py --config_file <run>/configs.yaml``.

Splits the test identities into galleries, ranks each gallery on its own and prints the mean and the spread. On synthetic
pedestrians the two baselines that learn nothing (colour words against colours) stand beside it.
"""
import os
import statistics

import torch
from prettytable import PrettyTable

from run_scripts import start
from datasets.synthpedes import baseline_similarities, galleries, is_synthetic
from processor.runs import open_run
from utils.errors import UserError
from processor.evaluation import embed, retrieval_results
from utils.metrics import summary
from utils.options import build_test_parser, count, parse_test_options, whole
from utils.tables import METRICS


def main(argv=None):
    parser = build_test_parser('galleries.py', __doc__)
    parser.add_argument('--galleries', type=count, default=5, help='how many')
    parser.add_argument('--ids_per_gallery', type=count, default=100, help='identities in each')
    parser.add_argument('--gallery_seed', type=whole, default=0, help='which identities come together')
    args = parse_test_options(parser, argv)
    run = open_run(args)
    images, captions = run.images.dataset, run.captions.dataset
    available = len(set(map(int, images.image_pids)))
    if available < args.galleries * args.ids_per_gallery:
        raise UserError(f'{args.galleries} galleries of {args.ids_per_gallery} identities need {args.galleries * args.ids_per_gallery}, '
                        f'and the test split of {args.dataset_name} has {available}')
    q_pids, g_pids = torch.as_tensor(captions.caption_pids), torch.as_tensor(images.image_pids)
    rankings = {'model': by_model(run)}
    if is_synthetic(os.path.join(args.root_dir, args.dataset_name)):
        baselines = baseline_similarities(captions.captions, images.img_paths)
        rankings.update({f'colour words, {name}': by_similarity(torch.as_tensor(value), q_pids, g_pids)
                         for name, value in baselines.items()})
    groups = galleries(sorted(set(g_pids.tolist())), args.galleries, args.ids_per_gallery, args.gallery_seed)
    print(f'{args.galleries} galleries of {args.ids_per_gallery} identities, mean (standard deviation); '
          f'chance: Rank-1 {100 / args.ids_per_gallery:.1f}')
    print(table({name: in_galleries(ranked, q_pids, g_pids, groups) for name, ranked in rankings.items()}))


def by_model(run):
    """The summary of some of the test split's queries [Q] and gallery [G], both chosen by masks, as the model ranks them."""
    qfeats, qids = embed(run.model.encode_text, run.captions, run.model)
    gfeats, gids = embed(run.model.encode_image, run.images, run.model)
    return lambda queries, gallery: retrieval_results(qfeats[queries], gfeats[gallery], qids[queries], gids[gallery])['t2i']


def by_similarity(similarity, q_pids, g_pids):
    """The same by similarities [Q, G]."""
    return lambda queries, gallery: summary(similarity[queries][:, gallery], q_pids[queries], g_pids[gallery])


def in_galleries(ranked, q_pids, g_pids, groups):
    """A summary for each group of identities ranked on its own."""
    groups = [torch.as_tensor(list(group)) for group in groups]
    return [ranked(torch.isin(q_pids, group), torch.isin(g_pids, group)) for group in groups]


def table(results):
    shown = PrettyTable(['', *METRICS])
    for name, rows in results.items():
        columns = [[row[metric] for row in rows] for metric in METRICS]
        shown.add_row([name, *(f'{statistics.mean(column):.2f} ({statistics.pstdev(column):.2f})' for column in columns)])
    return shown.get_string()


if __name__ == '__main__':
    start(main)
