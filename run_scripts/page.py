"""A run's page, one HTML file that opens by double click: ``python -m run_scripts.page RUN [RUN_B] --out page.html``.

Curves of losses and Rank-1, the table with intervals, and each caption of the test split with the images that are ranked first, the
worst misses first, to be filtered by words. Of two runs it shows both rankings, and the captions where they differ. It needs no server and
no network.
"""
import base64
import io
import json
import os
import sys

import torch.nn.functional as F

from run_scripts import start
import pedestal
from datasets.registry import published_split_note
from processor.evaluation import rankings
from processor.history import further_datasets, read_evaluations, read_journal
from processor.report import Report, how_chosen, reranked
from utils.errors import UserError
from utils.iotools import atomic_write, read_image
from utils.metrics import table
from utils.nearest import nearest
from utils.options import Parser, count
from utils.pictures import as_label, pyplot, save_figure

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'page.html')
THUMBNAIL = 40, 96   # width and height at most: 20,000 of them take about 20 MB


def main(argv=None):
    args = build_page_parser().parse(sys.argv[1:] if argv is None else argv)
    if len(args.runs) > 2:
        raise UserError(f'a page shows one run or two, not {len(args.runs)}: run_scripts.compare takes more')
    folder = os.path.dirname(args.out) or '.'
    if not os.path.isdir(folder) or os.path.isdir(args.out):
        raise UserError(f'cannot write {args.out}: name a file in a folder that is there')
    shown = [Shown(run, args) for run in args.runs]
    refuse_other_splits(shown)
    write(args.out, content(shown))
    print(f'wrote {args.out}: {len(shown[0].captions)} captions, {os.path.getsize(args.out) / 1e6:.1f} MB')


def build_page_parser():
    parser = Parser(prog='page.py', description=__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN', help="a run's folder, or its configs.yaml")
    parser.add_argument('--out', default='page.html', help='the file to write')
    parser.add_argument('--top', type=count, default=8, help='images a caption')
    parser.add_argument('--dataset_name', help='another dataset than the run was trained on')
    parser.add_argument('--root_dir', help="the folder with the datasets' folders")
    parser.add_argument('--device', help='auto, cpu, mps, cuda or cuda:<n>')
    return parser


def refuse_other_splits(shown):
    if any(run.split != shown[0].split for run in shown):
        raise UserError(f'{" and ".join(run.name for run in shown)} are not tested on the same captions and images: name a dataset for '
                        'both with --dataset_name')


def write(path, data):
    with open(TEMPLATE, encoding='utf-8') as file:
        page = file.read()
    with atomic_write(path) as file:
        file.write(page.replace('"DATA"', as_script(data)))


def as_script(data):
    """JSON for a <script> element. HTML knows several ways out of one, and all begin with ``<``: ``</script>``, ``<!--<script>``."""
    return json.dumps(data).replace('<', '\\u003c')


class Shown:
    """What a page shows of a run."""

    def __init__(self, run, given):
        self.name = os.path.basename(os.path.normpath(run if os.path.isdir(run) else os.path.dirname(os.path.abspath(run))))
        args = pedestal.options_of(run, dataset_name=given.dataset_name, root_dir=given.root_dir, device=given.device)
        people = pedestal.People(args)
        self.captions, self.paths = list(people.split.captions), people.split.paths
        (gallery, self.g_pids), (queries, self.q_pids) = people.split.gallery, people.split.queries
        report, asked = Report(), (self.q_pids, self.captions)
        report.add(self.name, 'as loaded', rankings(queries, gallery, self.q_pids, self.g_pids, parts=people.model.parts), (asked, asked))
        rows, intervals = reranked(people.split)
        rows, intervals = {**report.tables[self.name], **rows}, {**report.intervals[self.name], **intervals}
        counts = len(set(self.g_pids.tolist())), len(self.paths), len(self.captions)
        lines = [table(rows, intervals), how_chosen(args, people.checkpoint), published_split_note(args.dataset_name, counts)]
        self.table = '\n'.join(filter(None, lines))
        self.ranks = report.queries['as loaded', 't2i'].first_rank.tolist()
        self.rows = best(F.normalize(queries, dim=1), F.normalize(gallery, dim=1), self.q_pids, self.g_pids, given.top)
        self.history = os.path.dirname(args.checkpoint)

    @property
    def split(self):
        return self.captions, self.q_pids.tolist(), list(map(os.path.basename, self.paths)), self.g_pids.tolist()


def best(queries, gallery, q_pids, g_pids, top):
    """For each caption ``(its top images, their similarities, the right image that comes first, its similarity)``."""
    rows = []
    for some, pids in zip(queries.split(1024), q_pids.split(1024)):
        scores, images = nearest(some, gallery, top)                                              # [1024, top] each
        of_right, right = (some @ gallery.t()).masked_fill(pids[:, None] != g_pids, float('-inf')).max(dim=1)
        rows += zip(images.tolist(), scores.tolist(), right.tolist(), of_right.tolist())
    return rows


def content(shown):
    """All that the page's script reads."""
    first = shown[0]
    used = sorted({image for run in shown for images, _, right, _ in run.rows for image in (*images, right)})
    place = {image: number for number, image in enumerate(used)}

    def plain(images, scores, right, score):
        return [place[image] for image in images], [round(one, 3) for one in scores], place[right], round(score, 3)
    runs = [{'name': run.name, 'table': run.table, 'ranks': run.ranks, 'rows': [plain(*row) for row in run.rows]} for run in shown]
    return {'runs': runs,
            'curves': curves(shown), 'captions': first.captions, 'pids': first.q_pids.tolist(),
            'images': [[thumbnail(first.paths[image]), int(first.g_pids[image]), os.path.basename(first.paths[image])] for image in used]}


def curves(shown):
    """A picture of losses and Rank-1 by epoch, as SVG in base64; '' where no run has a metrics.jsonl."""
    plt = pyplot()
    figure, (losses, found) = plt.subplots(1, 2, figsize=(11, 2.8), layout='constrained')
    epochs = [[entry for entry in read_journal(run.history) if entry['kind'] == 'epoch'] for run in shown]
    names = sorted({name for of_run in epochs for entry in of_run for name in entry if name == 'loss' or name.endswith('_loss')})
    for number, (run, of_run) in enumerate(zip(shown, epochs)):
        for style, name in zip(('-', '--', ':', '-.') * len(names), names):
            drawn(losses, [(entry['epoch'], entry[name]) for entry in of_run if name in entry], style, number, f'{run.name} {name}')
        for style, dataset in zip(('o-', 's--', 'd:', '^-.') * 9, ['', *further_datasets(run.history)]):
            evaluations = read_evaluations(run.history, dataset)
            drawn(found, [(one['epoch'], one['R1']) for one in evaluations if 'R1' in one], style, number, f'{run.name} {dataset}'.strip())
    if not (losses.lines or found.lines):
        plt.close(figure)
        return ''
    for axis, title in ((losses, 'losses'), (found, 'Rank-1 while training, percent')):
        axis.set(title=title, xlabel='epoch')
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis.lines:
            axis.legend(fontsize=6, loc='upper left', bbox_to_anchor=(1, 1), frameon=False)
    file = io.BytesIO()
    save_figure(figure, file, format='svg')
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


def drawn(axis, points, style, colour, label):
    if points:
        axis.plot(*zip(*points), style, color=f'C{colour}', label=as_label(label), linewidth=1, markersize=4)


def thumbnail(path):
    """A small JPEG in base64."""
    image, file = read_image(path), io.BytesIO()
    image.thumbnail(THUMBNAIL)
    image.save(file, 'JPEG', quality=70)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == '__main__':
    start(main)
