"""The report of test.py: tables of metrics, the independence check, and result files with their provenance."""
import hashlib
import json
import logging
import os
import platform
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torchvision

from datasets.joined import first_dataset_name
from datasets.registry import published_split_note
from datasets.sampler import SplitSampler
from datasets.synthpedes import baseline_similarities, is_synthetic
from datasets.workers import Loader
from model import build_model
from model.clip_weights import OPENAI_SHA256, file_stem, shape_named
from processor.evaluation import Evaluator, compute_rankings
from processor.history import format_summary, further_datasets, read_evaluations, summarize_evaluations
from processor.independence import check_independence
from processor.recognition import find_attribute_head, format_attribute_table, recognize_attributes
from processor.reranker import rerank, validate_rerank
from utils import comm
from utils.checkpoint import read_checkpoint
from utils.comm import pick_device
from utils.errors import UserError
from utils.iotools import atomic_write, read_json
from utils.metrics import retrieval_metrics, compute_metrics, format_table
from utils.options import as_dict, replace_options
from utils.queries import QueryResults, write_queries
from utils.seeding import seed_all
from utils.statistics import bootstrap_interval
from utils.tables import METRICS
from utils.weight_files import compute_sha256

logger = logging.getLogger('Pedestal.test')

# Titles of tables, which are also keys of metrics.json.
ONE_BY_ONE = 'the same, embedded one by one'
RERANKED = "the same, each caption's "   # before '<n> best re-ranked'


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
        provenance: what produced the results (:func:`collect_provenance`).
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

    @property
    def is_independent(self):
        """Whether each embedding depends on its own sample only."""
        return self.independence.is_independent

    @property
    def text(self):
        tables = [f'{title}\n{format_table(results, self.intervals[title])}' for title, results in self.tables.items()]
        if self.baselines:
            tables.append('baselines without training: color words of the caption against the colors of ...\n'
                          f'{format_table(self.baselines)}')
        return '\n'.join([*tables, str(self.independence), *self.lines])


# -- loading -----------------------------------------------------------------------------------------------------------

def load_trained(args, num_classes):
    """Load the model of ``args.checkpoint``, else a pretrained CLIP. Log the notes on the options, once.

    Returns:
        ``(model on its device, rest of the checkpoint)``.
    """
    for note in args.config.notes:
        logger.info('note: %s', note)
    if args.checkpoint is None:
        return load_untrained(args)
    checkpoint = read_checkpoint(args.checkpoint, with_sha256=True)
    classifier = checkpoint['model'].get('classifier.weight')
    if classifier is not None:  # it has the identities of the training set, not those of the tested one
        num_classes = len(classifier)
    model = build_model(args, num_classes, checkpoint.pop('model'))
    return model.to(pick_device(args.device)), checkpoint


def load_untrained(args):
    """Load the CLIP of ``args.pretrain_choice``: ``(model on its device, {'sha256': checksum of its file})``."""
    stride = args.stride_size or shape_named(args.pretrain_choice, args.trust_archive).vision_patch_size or 16
    seed_all(args.seed)   # for scratch:<shape>, whose weights are random
    model = build_model(replace_options(args, training=True, stride_size=stride), 1)
    path = os.path.expanduser(args.pretrain_choice)
    checksum = compute_sha256(path) if os.path.isfile(path) else OPENAI_SHA256.get(args.pretrain_choice)
    return model.to(pick_device(args.device)), {'sha256': checksum}


# -- evaluation --------------------------------------------------------------------------------------------------------

def evaluate(args, model, img_loader, txt_loader, checkpoint):
    """Embed and rank the test split, and check that each embedding depends on its own sample only.

    If the check fails, or with ``args.one_by_one``, also rank the embeddings of shuffled batches and of batches of one
    sample. The difference between these tables is due to the neighbors in the batch.

    All ranks call this function together and share the embedding. The main process does the rest.

    Args:
        args: the options of test.py.
        model: a :class:`~model.build.RetrievalModel`.
        img_loader: a loader of the split's images.
        txt_loader: a loader of the split's captions.
        checkpoint: the checkpoint without the weights.

    Returns:
        A :class:`Report`, on all ranks.
    """
    args = replace_options(args, **model.backbone.resolved_options)
    report, rerank_count = Report(), args.rerank
    if getattr(img_loader.dataset, 'evaluates_attributes', False):
        return evaluate_attributes(args, model, img_loader, txt_loader, checkpoint)
    if rerank_count:
        validate_rerank(model, rerank_count, len(img_loader.dataset))
    names = sample_names(args, img_loader.dataset, txt_loader.dataset)
    embeddings = qfeats, gfeats, qids, gids = embed_split(model, img_loader, txt_loader)
    title = f'{args.dataset_name} test: {len(qids)} captions, {len(gids)} images'
    report.add_table(title, 'as loaded', rank_on_main_process(args, model, *embeddings), zip((qids, gids), names))
    report.independence = comm.run_on_main_process(
        lambda: check_independence(model, img_loader, txt_loader, (qfeats, gfeats)))
    if rerank_count:
        ranking, dependence = rerank(model, (img_loader, txt_loader), embeddings, rerank_count, args.rerank_score)
        report.independence.second_stage = dependence
        suffix = ' as released, scaled over the whole split' if args.rerank_score == 'released' else ''
        report.add_table(f'{RERANKED}{rerank_count} best re-ranked{suffix}', f're-ranked {rerank_count}{suffix}',
                         {'t2i': ranking}, [(qids, names[0]), (gids, names[1])])
    if args.one_by_one or not report.is_independent:
        for again, method, settings in ((f'the same, shuffled (seed {args.seed})', 'shuffled', {'shuffle': True}),
                                        (ONE_BY_ONE, 'one by one', {'batch_size': 1})):
            loaders = [reorder(loader, args.seed, **settings) for loader in (img_loader, txt_loader)]
            embeddings = embed_split(model, *loaders)
            orders = [getattr(loader.sampler, 'order', None) for loader in reversed(loaders)]
            report.add_table(again, method, rank_on_main_process(args, model, *embeddings),
                             zip(embeddings[2:], names, orders))
    if getattr(img_loader.dataset, 'attributes', None) is not None:
        report.add_attributes(model, img_loader, gfeats)
    ties = report.tables[title]['t2i']['ties']
    if ties:
        report.lines.append(f'ties decide the ranking of {ties} captions: equal similarities keep the gallery order')
    report.lines.append(describe_selection(args, checkpoint))
    if args.checkpoint:
        report.training, dataset = training_summary(args)
        if report.training:
            report.lines.append(format_summary(report.training, dataset))
    return add_provenance(report, args, checkpoint, img_loader.dataset, txt_loader.dataset, names)


def evaluate_attributes(args, model, img_loader, txt_loader, checkpoint):
    """Return the :class:`Report` of a dataset that evaluates attribute recognition instead of retrieval."""
    if args.rerank:
        raise UserError(f'--rerank orders images for captions, and {args.dataset_name} has none: leave --rerank out')
    report, names = Report(), sample_names(args, img_loader.dataset, txt_loader.dataset)
    report.add_attributes(model, img_loader)
    report.independence = comm.run_on_main_process(lambda: check_independence(model, img_loader, txt_loader))
    report.lines.append(describe_selection(args, checkpoint))
    return add_provenance(report, args, checkpoint, img_loader.dataset, txt_loader.dataset, names)


def rank_on_main_process(args, model, *embeddings):
    return comm.run_on_main_process(lambda: compute_rankings(*embeddings, args.i2t, model.embedding_parts))


def embed_split(model, img_loader, txt_loader):
    """Return ``(qfeats [Q, D], gfeats [G, D], qids [Q], gids [G])``."""
    return Evaluator(img_loader, txt_loader)._compute_embedding(model)


class ShuffledSampler(SplitSampler):
    """Sample a split in random order.

    Attributes:
        order: the order of the latest iteration.
    """

    def __init__(self, count, generator):
        super().__init__(count)
        self.generator = generator

    def samples(self):
        self.order = torch.randperm(self.count, generator=self.generator).tolist()
        return self.order


def reorder(loader, seed, shuffle=False, **settings):
    """Return a loader of the same samples that is shuffled, or has other settings such as ``batch_size``."""
    generator, count = torch.Generator().manual_seed(seed), len(loader.dataset)
    return Loader(loader.dataset, **{
        'batch_size': loader.batch_size, 'num_workers': loader.num_workers, 'pin_memory': loader.pin_memory,
        'worker_init_fn': loader.worker_init_fn, 'generator': generator,
        'sampler': ShuffledSampler(count, generator) if shuffle else SplitSampler(count), **settings})


def sample_names(args, images, captions):
    """Return the names of the samples: ``(texts of the captions, image files relative to the dataset's folder)``."""
    folder = os.path.join(args.root_dir, args.dataset_name)
    paths = getattr(images, 'img_paths', None) or map(str, range(len(images)))
    return (list(getattr(captions, 'captions', None) or map(str, range(len(captions)))),
            [os.path.relpath(path, folder) if os.path.isabs(path) == os.path.isabs(folder) else path for path in paths])


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


# -- how the checkpoint was selected -----------------------------------------------------------------------------------

def selection_split(args, checkpoint):
    """Return the split whose evaluations selected the checkpoint; None for last.pth and epoch_<n>.pth."""
    is_training_state = 'step' in checkpoint
    if is_training_state or not args.checkpoint:
        return None
    return checkpoint.get('val_dataset', args.val_dataset)


def selection_dataset(args):
    """Return the dataset whose split selected the best epoch."""
    return args.eval_dataset or first_dataset_name(args.config.data.trained_on)


def checkpoint_epoch(args, checkpoint):
    """Describe how long a checkpoint was trained. The ``epoch`` of last.pth is the next one."""
    if args.checkpoint is None:
        return 'not at all'
    if 'step' not in checkpoint:
        return f"epoch {checkpoint.get('epoch', 'unknown')}"
    steps = f" and {checkpoint['step']} steps" if checkpoint['step'] else ''
    return f"epoch {checkpoint['epoch'] - 1}{steps}"


def training_summary(args):
    """Summarize the evaluations during training on the tested dataset, else on the one that selected the best epoch.

    Returns:
        ``(result of summarize_evaluations, dataset)``.
    """
    folder = os.path.dirname(args.checkpoint)
    if args.dataset_name in further_datasets(folder):
        return summarize_evaluations(read_evaluations(folder, args.dataset_name)), args.dataset_name
    return summarize_evaluations(read_evaluations(folder)), selection_dataset(args)


def describe_selection(args, checkpoint):
    """Name the checkpoint and the split that selected it."""
    if args.checkpoint is None:
        return f'{args.pretrain_choice}: before any training'
    split, epoch = selection_split(args, checkpoint), checkpoint_epoch(args, checkpoint)
    if split is None:
        return f'{args.checkpoint}: {epoch}, chosen by no split'
    dataset = selection_dataset(args)
    warning = ', the split it is tested on' if split == 'test' and dataset == args.dataset_name else ''
    return f'{args.checkpoint}: {epoch}, chosen by the {split} split of {dataset}{warning}'


# -- provenance --------------------------------------------------------------------------------------------------------

def add_provenance(report, args, checkpoint, images, captions, names):
    """Add the provenance to a report, and a warning if the test split is not the published one."""
    report.provenance = collect_provenance(args, checkpoint, images, captions, names)
    note = published_split_note(args.dataset_name, split_counts(report.provenance))
    if note:
        report.lines.append(f'{note}; compare with no published figure')
    return report


def collect_provenance(args, checkpoint, images, captions, names):
    """Collect what a result depends on: ``produced_by`` in metrics.json."""
    versions = {'python': platform.python_version(), 'torch': torch.__version__, 'torchvision': torchvision.__version__}
    has_gpu = torch.cuda.is_available()
    return {
        'options': as_dict(args),
        'checkpoint': os.path.abspath(args.checkpoint) if args.checkpoint else args.pretrain_choice,
        'checkpoint_sha256': checkpoint.get('sha256'),
        'trained_for': checkpoint_epoch(args, checkpoint),
        'chosen_by_split': selection_split(args, checkpoint),
        'noise': checkpoint.get('noise'),
        'trained_on': args.config.data.trained_on,
        'dataset': args.dataset_name,
        'images': len(images),
        'captions': len(captions),
        'identities': len(set(map(int, images.image_pids))),
        'split_sha256': split_sha256(images, captions, names),
        'seed': args.seed,
        'versions': versions,
        'machine': torch.cuda.get_device_name() if has_gpu else platform.processor() or platform.machine()}


def split_counts(provenance):
    """Return (identities, images, captions) of a test split; None for each that an older results file lacks."""
    counts = (provenance.get(kind) for kind in ('identities', 'images', 'captions'))
    return tuple(count if isinstance(count, int) else None for count in counts)


def split_sha256(images, captions, names):
    """Compute the checksum of a test split: of all captions and images, in order, with their identities."""
    sides = zip((captions.caption_pids, images.image_pids), names)
    content = json.dumps([[[int(pid), name] for pid, name in zip(pids, side_names)] for pids, side_names in sides])
    return hashlib.sha256(content.encode()).hexdigest()


# -- result files ------------------------------------------------------------------------------------------------------

def result_path(args, name):
    """Return the path of a result file in the checkpoint's folder, without extension.

    The file name contains the checkpoint's name if it is not best.pth, and the dataset if it is not the one of the
    training. An untrained CLIP has a folder of its own.
    """
    if args.checkpoint is None:
        weights = args.pretrain_choice
        is_file = os.path.isfile(weights)
        stem = os.path.splitext(os.path.basename(weights))[0] if is_file else file_stem(weights.replace(':', '-'))
        return os.path.join(args.output_dir, args.dataset_name, f'zero-shot_{stem}', name)
    stem = os.path.splitext(os.path.basename(args.checkpoint))[0]
    is_other = args.dataset_name != args.config.data.trained_on
    parts = [name] + [stem] * (stem != 'best') + [args.dataset_name] * is_other
    return os.path.join(os.path.dirname(args.checkpoint), '_'.join(parts))


def save_results(report, args):
    """Write ``metrics.json`` and ``queries.csv`` next to the checkpoint (:func:`result_path`).

    A warning is logged if they cannot be written.
    """
    path, queries = f"{result_path(args, 'metrics')}.json", f"{result_path(args, 'queries')}.csv"
    content = {'results': report.tables, 'intervals': report.intervals, 'baselines': report.baselines,
               'independence': {'holds': report.is_independent, **vars(report.independence)},
               'training': report.training, 'attributes': report.attributes, 'produced_by': report.provenance}
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        write_queries(queries, report.queries)
        content['queries'] = {'file': os.path.basename(queries), 'sha256': compute_sha256(queries)}
        with atomic_write(path) as file:
            json.dump(content, file, indent=1, default=str)
    except (UserError, OSError) as error:
        logger.warning('the results are not saved: %s', error)


def read_reranked(split):
    """Read the re-ranking results of a :class:`~processor.runs.Split`, which test.py ``--rerank`` wrote.

    Returns:
        ``({row: metrics}, {row: intervals})``; both empty if there are none.
    """
    try:
        content = read_json(f"{result_path(split.args, 'metrics')}.json")
        provenance = content['produced_by']
        images, captions = split.run.images.dataset, split.run.captions.dataset
        checksum = split_sha256(images, captions, sample_names(split.args, images, captions))
        is_same_checkpoint = provenance['checkpoint_sha256'] == split.run.checkpoint['sha256']
        if provenance['split_sha256'] != checksum or not is_same_checkpoint:
            return {}, {}
        rows = {f't2i, {title.removeprefix(RERANKED)}': title for title in content['results']
                if title.startswith(RERANKED)}
        return ({row: content['results'][title]['t2i'] for row, title in rows.items()},
                {row: content['intervals'][title]['t2i'] for row, title in rows.items()})
    except (UserError, KeyError, TypeError, AttributeError):   # the file is missing or of another version
        return {}, {}


class SavedResults(NamedTuple):
    """The results of a checkpoint in metrics.json.

    Attributes:
        dataset: the tested dataset.
        tables: ``{title: {task: metrics}}``.
        is_independent: whether each embedding depends on its own sample only.
        counts: the :func:`split_counts` of the test split.
    """
    dataset: str
    tables: dict
    is_independent: bool
    counts: tuple

    @property
    def split_note(self):
        """A warning if the test split is not the published one; else ``''``."""
        return published_split_note(self.dataset, self.counts)


def read_results(path, checksum):
    """Read the :class:`SavedResults` of a metrics.json; None if it is incomplete or of another checkpoint."""
    try:
        content = read_json(path)
        provenance, tables = content['produced_by'], content['results']
        is_same_checkpoint = provenance['checkpoint_sha256'] == checksum
        dataset, is_independent = provenance['dataset'], content['independence']['holds']
        has_metrics = all(isinstance(metrics['t2i'][metric], (int, float))
                          for metrics in tables.values() for metric in METRICS)
        counts = split_counts(provenance)
    except (UserError, KeyError, TypeError, AttributeError):  # the file is missing or of another version
        return None
    is_complete = tables and has_metrics and (is_independent or ONE_BY_ONE in tables)
    return SavedResults(dataset, tables, is_independent, counts) if is_same_checkpoint and is_complete else None
