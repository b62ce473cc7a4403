"""The evaluation of a run and its report: tables of metrics, the independence check, and provenance."""
import os
import sys
from dataclasses import dataclass, field

import torch

from datasets.registry import published_split_note
from datasets.synthpedes import baseline_similarities, is_synthetic
from processor.evaluation import compute_rankings, embed_split
from processor.history import format_summary, summarize_evaluations
from processor.independence import check_independence, reorder
from processor.provenance import (
    collect_provenance, count_distractors, describe_selection, sample_names, selection_dataset, split_counts)
from processor.recognition import find_attribute_head, format_attribute_table, recognize_attributes
from processor.reranker import rerank, validate_rerank
from processor.results import (
    ONE_BY_ONE, RERANKED, Results, find_results, further_datasets, read_evaluations, result_path, save_results)
from processor.runs import load_run
from utils import comm
from utils.errors import UserError
from utils.options import replace_options
from utils.queries import QueryResults
from utils.rerank_options import read_rerank_settings
from utils.retrieval_metrics import compute_metrics, format_table, retrieval_metrics
from utils.statistics import bootstrap_interval
from utils.weight_files import compute_sha256


@dataclass
class Report:
    """The results of an evaluation.

    Attributes:
        tables: ``{title: {task: metrics}}``.
        intervals: ``{title: {task: {metric: 95% interval}}}``.
        queries: ``{(method, task): QueryResults}``, where the method is a short form of the title.
        baselines: ``{name: metrics}`` of methods without training.
        independence: the :class:`~processor.independence.Independence` of the embeddings.
        lines: sentences below the tables.
        provenance: what produced the results (:func:`processor.provenance.collect_provenance`).
        training: the evaluations during training (:func:`processor.history.summarize_evaluations`).
        attributes: metrics of attribute recognition, in percent.
    """
    tables: dict = field(default_factory=dict)
    intervals: dict = field(default_factory=dict)
    queries: dict = field(default_factory=dict)
    baselines: dict = field(default_factory=dict)
    independence: object = None
    lines: list = field(default_factory=list)
    provenance: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    attributes: dict = field(default_factory=dict)

    def add_table(self, title, method, rankings, samples):
        """Add a table.

        Args:
            title: the title of the table.
            method: a short form of the title, for queries.csv.
            rankings: ``{task: Ranking}``.
            samples: the ``(pids, names, order)`` of captions and of images, as
                :meth:`utils.queries.QueryResults.from_ranking` takes them.
        """
        self.tables[title] = {task: retrieval_metrics(ranking) for task, ranking in rankings.items()}
        self.intervals[title] = {}
        captions, images = samples
        for task, ranking in rankings.items():
            queries = QueryResults.from_ranking(ranking, *(images if task == 'i2t' else captions))
            self.queries[method, task] = queries
            if len(set(queries.pids.tolist())) > 1:
                self.intervals[title][task] = {metric: bootstrap_interval(queries.metric_values(metric), queries.pids)
                                               for metric in ('R1', 'mAP')}

    def add_attributes(self, model, img_loader, image_embeddings=None):
        """Add the metrics of attribute recognition (:func:`processor.recognition.recognize_attributes`)."""
        self.attributes = recognize_attributes(model, img_loader, image_embeddings)
        method = 'by their prompts' if find_attribute_head(model) is None else 'without prompts'
        self.lines.append(f'attributes of {len(img_loader.dataset)} images, recognized {method}\n'
                          f'{format_attribute_table(self.attributes)}')

    def add_training(self, args):
        """Add the evaluations during training: on the tested dataset, else on the one that selected the best epoch."""
        folder = os.path.dirname(args.checkpoint)
        is_further = args.dataset_name in further_datasets(folder)
        self.training = summarize_evaluations(read_evaluations(folder, args.dataset_name if is_further else ''))
        if self.training:
            dataset = args.dataset_name if is_further else selection_dataset(args)
            self.lines.append(format_summary(self.training, dataset))

    def add_provenance(self, args, run):
        """Add the provenance, and a warning if the test split is not the published one."""
        self.provenance = collect_provenance(args, run)
        note = published_split_note(args.dataset_name, split_counts(self.provenance), args.split)
        if note:
            self.lines.append(f'{note}; compare with no published figure')
        elif args.split != 'test':
            self.lines.append(f'these are results on the {args.split} split: compare with no published figure')

    @property
    def is_independent(self):
        """Whether each embedding depends on its own sample only."""
        return self.independence.is_independent

    @property
    def results(self):
        """The :class:`~processor.results.Results` that metrics.json stores."""
        independence = {'holds': self.is_independent, **vars(self.independence)}
        return Results(self.tables, self.intervals, self.baselines, independence, self.training, self.attributes,
                       self.provenance)

    @property
    def text(self):
        tables = [f'{title}\n{format_table(results, self.intervals[title])}' for title, results in self.tables.items()]
        if self.baselines:
            tables.append('baselines without training: color words of the caption against the colors of ...\n'
                          f'{format_table(self.baselines)}')
        return '\n'.join([*tables, str(self.independence), *self.lines])


# -- load, evaluate, save ----------------------------------------------------------------------------------------------

def evaluate_and_save(args, run=None):
    """Load a run, evaluate it on a test split, and write the result files next to the checkpoint.

    All ranks call this function together. The main process writes.

    Args:
        args: the options of test.py.
        run: the :class:`~processor.runs.TrainedRun` of the options, if it is loaded already.

    Returns:
        A :class:`Report`. Its ``baselines`` are on the main process only.
    """
    run = load_run(args) if run is None else run
    report = evaluate(args, run)

    def save():
        report.baselines = compute_baselines(args, run.images.dataset, run.captions.dataset)
        save_results(args, report.results, report.queries)
    comm.run_on_main_process(save)
    return report


def find_or_compute_results(args, with_intervals=False):
    """Read the results of a checkpoint on a test split from its metrics.json; evaluate it if they are not there.

    Args:
        args: the options of test.py.
        with_intervals: whether to evaluate again if an older version wrote the file, without 95% intervals.

    Returns:
        A complete :class:`~processor.results.Results`.
    """
    results = find_results(result_path(args, 'metrics.json'), compute_sha256(args.checkpoint))
    if results and results.dataset == args.dataset_name:
        if not with_intervals or results.intervals.keys() == results.tables.keys():
            return results
    print(f'evaluating {args.checkpoint} on {args.dataset_name}', file=sys.stderr)
    return evaluate_and_save(args).results


# -- evaluation --------------------------------------------------------------------------------------------------------

def evaluate(args, run):
    """Embed and rank the test split, and check that each embedding depends on its own sample only.

    If the check fails, or with ``args.one_by_one``, also rank the embeddings of shuffled batches and of batches of one
    sample. The difference between these tables is due to the neighbors in the batch.

    All ranks call this function together and share the embedding. The main process does the rest.

    Args:
        args: the options of test.py.
        run: a :class:`~processor.runs.TrainedRun`.

    Returns:
        A :class:`Report`, on all ranks.
    """
    args = replace_options(args, **run.model.backbone.resolved_options)
    if getattr(run.images.dataset, 'evaluates_attributes', False):
        return evaluate_attributes(args, run)
    distractors = count_distractors(run.images.dataset)
    if args.i2t and distractors:
        remedy = 'leave out --i2t' + ' or --distractors' * bool(args.distractors)
        raise UserError(f'--i2t ranks captions for each image, and a distractor has none: {remedy}')
    report, settings = Report(), read_rerank_settings(args)
    if settings:
        validate_rerank(run.model, settings, len(run.images.dataset), len(run.captions.dataset))
    names = sample_names(args, run.images.dataset, run.captions.dataset)

    embeddings = qfeats, gfeats, qids, gids = embed_split(run.model, run.images, run.captions)
    title = (f'{args.dataset_name} {args.split}: {len(qids)} captions, {len(gids)} images'
             + f', {distractors} of them distractors' * bool(distractors))
    report.add_table(title, 'as loaded', rank_on_main_process(args, run.model, embeddings), zip((qids, gids), names))
    report.independence = comm.run_on_main_process(
        lambda: check_independence(run.model, run.images, run.captions, (qfeats, gfeats)))
    if settings:
        add_reranked_table(report, settings, run, embeddings, names)
    if args.one_by_one or not report.is_independent:
        add_reordered_table(report, args, run, f'the same, shuffled (seed {args.seed})', 'shuffled', shuffle=True)
        add_reordered_table(report, args, run, ONE_BY_ONE, 'one by one', batch_size=1)
    if getattr(run.images.dataset, 'attributes', None) is not None:
        report.add_attributes(run.model, run.images, gfeats)

    ties = report.tables[title]['t2i']['ties']
    if ties:
        report.lines.append(f'ties decide the ranking of {ties} captions: equal similarities keep the gallery order')
    report.lines.append(describe_selection(args, run.checkpoint))
    if args.checkpoint:
        report.add_training(args)
    report.add_provenance(args, run)
    return report


def evaluate_attributes(args, run):
    """Return the :class:`Report` of a dataset that evaluates attribute recognition instead of retrieval."""
    if args.rerank:
        raise UserError(f'--rerank orders images for captions, and {args.dataset_name} has none: leave --rerank out')
    report = Report()
    report.add_attributes(run.model, run.images)
    report.independence = comm.run_on_main_process(lambda: check_independence(run.model, run.images, run.captions))
    report.lines.append(describe_selection(args, run.checkpoint))
    report.add_provenance(args, run)
    return report


def rank_on_main_process(args, model, embeddings):
    """Rank ``(qfeats, gfeats, qids, gids)`` on the main process: ``{task: Ranking}`` on all ranks."""
    return comm.run_on_main_process(lambda: compute_rankings(*embeddings, args.i2t, model.embedding_parts))


def add_reranked_table(report, settings, run, embeddings, names):
    """Add the table of ``--rerank``, and how far its scores depend on the batch."""
    ranking, report.independence.second_stage = rerank(run.model, (run.images, run.captions), embeddings, settings)
    report.add_table(f'{RERANKED}{settings.title}', settings.method, {'t2i': ranking}, zip(embeddings[2:], names))
    if settings.uses_other_queries:
        report.lines.append(f'{settings.method} uses other queries of the test set: a search with one caption ranks '
                            'otherwise')


def add_reordered_table(report, args, run, title, method, **settings):
    """Add the table of the same samples in other batches (:func:`processor.independence.reorder`)."""
    loaders = images, captions = [reorder(loader, args.seed, **settings) for loader in (run.images, run.captions)]
    embeddings = embed_split(run.model, *loaders)
    names = sample_names(args, images.dataset, captions.dataset)
    orders = [getattr(loader.sampler, 'order', None) for loader in (captions, images)]
    report.add_table(title, method, rank_on_main_process(args, run.model, embeddings),
                     zip(embeddings[2:], names, orders))


def compute_baselines(args, images, captions):
    """Compute ``{name: metrics}`` of the color baselines on synthetic pedestrians; ``{}`` on other datasets.

    A baseline compares the color words of a caption with the colors of an image, without training.

    Args:
        args: the options of test.py.
        images: an object with ``img_paths`` and ``image_pids``.
        captions: an object with ``captions`` and ``caption_pids``.
    """
    if not is_synthetic(os.path.join(args.root_dir, args.dataset_name)):
        return {}
    similarities = baseline_similarities(captions.captions, images.img_paths)
    return {name: compute_metrics(torch.as_tensor(similarity), captions.caption_pids, images.image_pids)
            for name, similarity in similarities.items()}
