"""Write one HTML page about a run, or about two runs side by side.

    python -m run_scripts.page RUN --out page.html
    python -m run_scripts.page RUN RUN_B --out page.html

The page shows the curves of losses and Rank-1, the table of metrics with intervals, and each caption of the test split
with the images that the model ranks first. Captions with the worst ranks come first, and a search box filters them by
words. A table lists the words whose captions are missed more often, or less often, than all others. For two runs the
page shows both rankings and can filter the captions on which they differ. With --rerank the images are ordered again,
and the table has a row for it. The page is a single file that opens in a browser without a server or a network.
"""
import base64
import io
import json
import os
import sys

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from utils.errors import UserError, run_program
from utils.figures import to_label, import_pyplot, write_figure
from utils.iotools import atomic_write, read_image
from utils.measures import find_measure
from utils.option_types import positive_int
from utils.options import Parser
from utils.rerank_options import add_rerank_options, read_rerank_settings

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'page.html')
THUMBNAIL_SIZE = 40, 96   # largest width and height in pixels; 20,000 thumbnails take about 20 MB


def main(argv=None):
    args = build_page_parser().parse(sys.argv[1:] if argv is None else argv)
    settings = read_rerank_settings(args)
    if len(args.runs) > 2:
        raise UserError(f'a page shows one run or two, not {len(args.runs)}; use run_scripts.compare for more')
    folder = os.path.dirname(args.out) or '.'
    if not os.path.isdir(folder) or os.path.isdir(args.out):
        raise UserError(f'--out {args.out}: the page cannot be written; name a file in an existing folder')
    runs = [RunResults(run, args, settings) for run in args.runs]
    refuse_different_splits(runs)
    write_page(args.out, page_content(runs))
    print(f'wrote {args.out}: {len(runs[0].captions)} captions, {os.path.getsize(args.out) / 1e6:.1f} MB')


def build_page_parser():
    parser = Parser(prog='page.py', description=__doc__, usage='%(prog)s RUN [RUN] [--<option> VALUE ...]')
    parser.add_argument('runs', nargs='+', metavar='RUN',
                        help='folder, configs.yaml or name of a run, such as CUHK-PEDES/irra; one or two')
    parser.add_argument('--out', default='page.html', help='file of the page')
    parser.add_argument('--top', type=positive_int, default=8, help='number of images per caption')
    parser.add_argument('--dataset_name', help="dataset to test on (default: the run's own)")
    parser.add_argument('--root_dir', help="folder with the datasets' folders (default: as in configs.yaml)")
    parser.add_argument('--base_weights', metavar='FILE',
                        help='file of the pretrained weights that runs with --tuning need (default: the file that each '
                             'run started from)')
    parser.add_argument('--device', help='auto, cpu, mps, cuda or cuda:<n> (default: as in configs.yaml)')
    add_rerank_options(parser, '--rerank', "method that orders each caption's images again")
    parser.run_options = {'runs'}
    return parser


def refuse_different_splits(runs):
    if any(run.split != runs[0].split for run in runs):
        names = ' and '.join(run.name for run in runs)
        raise UserError(f'{names} are not tested on the same captions and images; '
                        'name one dataset for both with --dataset_name')


def write_page(path, content):
    with open(TEMPLATE, encoding='utf-8') as file:
        page = file.read()
    with atomic_write(path) as file:
        file.write(page.replace('"DATA"', script_json(content)))


def script_json(data):
    """JSON for a <script> element. It has no ``<``, so no text in it can end the element, as ``</script>`` would."""
    return json.dumps(data).replace('<', '\\u003c')


class RunResults:
    """The results of one run that the page shows.

    Attributes:
        captions, paths: the captions and the image files of the test split.
        table: the table of metrics, and how the epoch was selected, as text.
        ranks: for each caption the rank of its first right image, after re-ranking if there is one.
        words: the :class:`~processor.breakdown.Breakdown` by the words of the captions, of the same order.
        rows: for each caption what :func:`top_images` returns.
    """

    def __init__(self, run, page_args, settings=None):
        import pedestal
        import torch.nn.functional as F
        from processor.breakdown import break_down_by_words
        args = pedestal.load_options(run, dataset_name=page_args.dataset_name, root_dir=page_args.root_dir,
                                   device=page_args.device, base_weights=page_args.base_weights)
        self.name = os.path.basename(os.path.dirname(os.path.abspath(args.config_file)))
        people = pedestal.People(args)
        self.captions, self.paths = list(people.split.captions), people.split.paths
        (gallery, self.g_pids), (queries, self.q_pids) = people.split.gallery, people.split.queries
        embeddings = F.normalize(queries, dim=1), F.normalize(gallery, dim=1), self.q_pids, self.g_pids
        reranked, self.rows = (None, top_images(*embeddings, page_args.top)) if settings is None else (
            rerank_split(people, embeddings, settings, page_args.top))
        self.table, results = self.evaluate(people, queries, gallery, settings, reranked)
        self.ranks, self.words = results.first_rank.tolist(), break_down_by_words(results)
        self.folder = os.path.dirname(args.checkpoint)

    def evaluate(self, people, queries, gallery, settings=None, reranked=None):
        """The table of metrics as text, and the :class:`~utils.queries.QueryResults` of the captions."""
        from datasets.registry import published_split_note
        from processor.evaluation import compute_rankings
        from processor.provenance import describe_selection
        from processor.report import Report
        from processor.results import RERANKED, read_reranked, reranked_row
        from processor.search_results import describe_order
        from utils.retrieval_metrics import format_table
        report, names = Report(), (self.q_pids, self.captions)
        ranked = compute_rankings(queries, gallery, self.q_pids, self.g_pids, parts=people.model.embedding_parts)
        report.add_table(self.name, 'as loaded', ranked, (names, names))
        rows, intervals = read_reranked(people.split)
        rows, intervals = {**report.tables[self.name], **rows}, {**report.intervals[self.name], **intervals}
        shown, notes = 'as loaded', []
        if settings:
            title, shown = f'{RERANKED}{settings.title}', settings.method
            report.add_table(title, shown, {'t2i': reranked}, (names, names))
            rows[reranked_row(title)] = report.tables[title]['t2i']
            intervals |= {reranked_row(title): interval for interval in report.intervals[title].values()}
            notes.append(describe_order(settings))
        counts = len(set(self.q_pids.tolist())), len(self.paths), len(self.captions)
        lines = [format_table(rows, intervals), describe_selection(people.args, people.checkpoint),
                 published_split_note(people.args.dataset_name, counts, people.args.split)]
        return '\n'.join(filter(None, [*lines, *notes])), report.queries[shown, 't2i']

    @property
    def split(self):
        """The identity of the test split: captions, image files and their identities."""
        return self.captions, self.q_pids.tolist(), list(map(os.path.basename, self.paths)), self.g_pids.tolist()


def top_images(queries, gallery, q_pids, g_pids, top):
    """Rank the gallery for each query.

    Args:
        queries: embeddings [Q, D] of length 1.
        gallery: embeddings [G, D] of length 1.
        q_pids, g_pids: their identities, [Q] and [G].
        top: the number of images per query.

    Returns:
        For each query ``(its top images, their similarities, its first right image, the similarity of that image)``.
    """
    from utils.top_k import top_k
    rows = []
    for chunk, pids in zip(queries.split(1024), q_pids.split(1024)):
        scores, images = top_k(chunk, gallery, top)                              # [1024, top]
        right_scores = (chunk @ gallery.t()).masked_fill(pids[:, None] != g_pids, float('-inf'))
        best_scores, right_images = right_scores.max(dim=1)                        # [1024]
        rows += zip(images.tolist(), scores.tolist(), right_images.tolist(), best_scores.tolist())
    return rows


def rerank_split(people, embeddings, settings, top):
    """Re-rank a run's test split.

    Args:
        people: the :class:`pedestal.People` of the run.
        embeddings: the first four arguments of :func:`top_images`.
        settings: the settings of re-ranking (:mod:`utils.rerank_options`).
        top: the number of images per query.

    Returns:
        ``(Ranking, rows)``; the rows are as those of :func:`top_images`, with cosine similarities.
    """
    import torch
    from processor import reranker
    from utils.ranking import full_precision, rank_slabs, top_items
    queries, gallery, q_pids, g_pids = embeddings
    run, rows = people.split.run, []
    reranker.validate_rerank(people.model, settings, len(gallery), len(queries))
    make_slabs, _ = reranker.rerank_split(people.model, (run.images, run.captions), embeddings, settings)

    def record_rows(slabs):
        for slab in slabs:
            start = len(rows)
            block, pids = queries[start:start + len(slab)], q_pids[start:start + len(slab)]
            images = torch.from_numpy(top_items(slab.numpy(), top))                             # [q, top]
            right = slab.masked_fill(pids[:, None] != g_pids, float('-inf')).argmax(dim=1)      # [q]
            shown = torch.cat([images, right[:, None]], dim=1)
            scores = (block @ gallery.t()).gather(1, shown)                                     # [q, top + 1]
            rows.extend(zip(images.tolist(), scores[:, :-1].tolist(), right.tolist(), scores[:, -1].tolist()))
            yield slab
    with full_precision():
        return rank_slabs(record_rows(make_slabs()), q_pids, g_pids, 10), rows


def page_content(runs):
    """The data that the script of the page reads."""
    first = runs[0]
    used = sorted({image for run in runs for images, _, right, _ in run.rows for image in (*images, right)})
    positions = {image: position for position, image in enumerate(used)}

    def renumber(images, scores, right, right_score):
        return ([positions[image] for image in images], [round(score, 3) for score in scores], positions[right],
                round(right_score, 3))
    return {
        'runs': [{'name': run.name, 'table': run.table, 'ranks': run.ranks,
                  'rows': [renumber(*row) for row in run.rows], 'words': word_table(run.words)} for run in runs],
        'curves': draw_curves(runs), 'captions': first.captions, 'pids': first.q_pids.tolist(),
        'images': [[make_thumbnail(first.paths[image]), int(first.g_pids[image]), os.path.basename(first.paths[image])]
                   for image in used]}


def word_table(breakdown):
    """The words whose captions are missed more or less often than all others, as the script of the page reads them."""
    rows = [[row['word'], row['captions'], 100 - row['R1'], 100 - row['R1'] + row['R1_difference'], row['R1_p'],
             row['R1_p_holm']] for row in breakdown.significant]
    return {'summary': breakdown.summary, 'rows': rows}


def draw_curves(runs):
    """A figure of losses and Rank-1 (or mA) by epoch, as SVG in base64; '' if no run has a metrics.jsonl."""
    from processor.results import further_datasets, read_evaluations, read_metrics_log
    plt = import_pyplot()
    figure, (loss_axis, measure_axis) = plt.subplots(1, 2, figsize=(11, 2.8), layout='constrained')
    epochs = [[record for record in read_metrics_log(run.folder) if record.kind == 'epoch'] for run in runs]
    names = sorted({name for records in epochs for record in records for name in record.values
                    if name == 'loss' or name.endswith('_loss')})
    measures = {}
    for number, (run, records) in enumerate(zip(runs, epochs)):
        for style, name in zip(('-', '--', ':', '-.') * len(names), names):
            points = [(record.epoch, record.values[name]) for record in records if name in record.values]
            draw_curve(loss_axis, points, style, number, f'{run.name} {name}')
        for style, dataset in zip(('o-', 's--', 'd:', '^-.') * 9, ['', *further_datasets(run.folder)]):
            evaluations = [(record, find_measure(record.metrics)) for record in read_evaluations(run.folder, dataset)]
            points = [(record.epoch, record.metrics[measure.key]) for record, measure in evaluations]
            draw_curve(measure_axis, points, style, number, f'{run.name} {dataset}'.strip())
            measures.update((measure.label, None) for _, measure in evaluations)
    if not (loss_axis.lines or measure_axis.lines):
        plt.close(figure)
        return ''
    measure_title = f"{' and '.join(measures) or 'Rank-1'} during training, percent"
    for axis, title in ((loss_axis, 'losses'), (measure_axis, measure_title)):
        axis.set(title=title, xlabel='epoch')
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis.lines:
            axis.legend(fontsize=6, loc='upper left', bbox_to_anchor=(1, 1), frameon=False)
    file = io.BytesIO()
    write_figure(figure, file, format='svg')
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


def draw_curve(axis, points, style, color, label):
    if points:
        axis.plot(*zip(*points), style, color=f'C{color}', label=to_label(label), linewidth=1, markersize=4)


def make_thumbnail(path):
    """A small JPEG in base64."""
    image, file = read_image(path), io.BytesIO()
    image.thumbnail(THUMBNAIL_SIZE)
    image.save(file, 'JPEG', quality=70)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == '__main__':
    run_program(main)
