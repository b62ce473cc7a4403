"""What test.py reports: the table, how far it can be trusted, and a file that says what produced it."""
import argparse
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
from processor.evaluation import Evaluator, rankings
from processor.history import best_last_mean, further_datasets, in_words, read_evaluations
from processor.independence import check_independence
from processor.recognition import as_table, recognise, recogniser
from processor.second_stage import refuse_rerank, rerank
from utils import comm
from utils.checkpoint import read_checkpoint, sha256_of
from utils.comm import pick_device
from utils.errors import UserError
from utils.iotools import atomic_write, read_json
from utils.metrics import retrieval_metrics, summary, table
from utils.options import as_dict
from utils.queries import Queries, write_queries
from utils.seeding import seed_all
from utils.statistics import interval
from utils.tables import METRICS

logger = logging.getLogger('Pedestal.test')

ONE_BY_ONE = 'the same, embedded one by one'
RERANKED = "the same, each caption's "   # <n> best re-ranked


@dataclass
class Report:
    """An evaluation: ``tables`` is {how the samples were embedded: {task: summary}}, ``intervals`` of the same form holds 95%
    intervals, ``queries`` is {(how in short, task): what each query reaches}, ``baselines`` {name: summary} of methods that learn
    nothing, and ``training`` the run's best, last and mean of its last evaluations."""
    tables: dict = field(default_factory=dict)
    intervals: dict = field(default_factory=dict)
    queries: dict = field(default_factory=dict)
    baselines: dict = field(default_factory=dict)
    independence: object = None
    lines: list = field(default_factory=list)
    produced_by: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    attributes: dict = field(default_factory=dict)   # how well attributes are recognised, in percent

    def add(self, title, how, found, asked):
        """Add a table of ``{task: Ranking}``, under its ``title`` and in short ``how``. ``asked``: the (pids, names, order) of captions
        and of images, as :meth:`utils.queries.Queries.of` takes them."""
        self.tables[title] = {task: retrieval_metrics(ranking) for task, ranking in found.items()}
        self.intervals[title] = {}
        captions, images = asked
        for task, ranking in found.items():
            queries = self.queries[how, task] = Queries.of(ranking, *(images if task == 'i2t' else captions))
            if len(set(queries.pids.tolist())) > 1:
                self.intervals[title][task] = {metric: interval(queries.reaches(metric), queries.pids) for metric in ('R1', 'mAP')}

    def recognise(self, model, img_loader, images=None):
        """Add how well attributes are recognised (:func:`processor.recognition.recognise`)."""
        self.attributes = recognise(model, img_loader, images)
        how = 'by their prompts' if recogniser(model) is None else 'without prompts'
        self.lines.append(f'attributes of {len(img_loader.dataset)} images, recognised {how}\n{as_table(self.attributes)}')

    @property
    def independent(self):
        return self.independence.holds

    @property
    def text(self):
        tables = [f'{how}\n{table(results, self.intervals[how])}' for how, results in self.tables.items()]
        if self.baselines:
            tables.append(f'without learning: colour words against the colours of ...\n{table(self.baselines)}')
        return '\n'.join([*tables, str(self.independence), *self.lines])


def load_trained(args, num_classes):
    """(the trained model on its device, the rest of its checkpoint) of ``args.checkpoint``; without one, of the
    pretrained CLIP. Logs the notes on its options, once."""
    while args.notes:
        logger.info('note: %s', args.notes.pop(0))
    if args.checkpoint is None:
        return load_untrained(args)
    checkpoint = read_checkpoint(args.checkpoint, hashed=True)
    classifier = checkpoint['model'].get('classifier.weight')
    if classifier is not None:  # over the identities that it was trained on, whatever it is tested on
        num_classes = len(classifier)
    model = build_model(args, num_classes, checkpoint.pop('model'))
    return model.to(pick_device(args.device)), checkpoint


def load_untrained(args):
    """(the CLIP of ``args.pretrain_choice`` on its device, what is known of its file)."""
    if args.stride_size is None:
        args.stride_size = shape_named(args.pretrain_choice, args.trust_archive).vision_patch_size or 16
    seed_all(args.seed)   # of random weights
    started = argparse.Namespace(**{**vars(args), 'training': True})
    model = build_model(started, 1)
    args.activation = started.activation
    path = os.path.expanduser(args.pretrain_choice)
    checksum = sha256_of(path) if os.path.isfile(path) else OPENAI_SHA256.get(args.pretrain_choice)
    return model.to(pick_device(args.device)), {'sha256': checksum}


def evaluate(args, model, img_loader, txt_loader, checkpoint):
    """Embed the test split (captions by length where that is exact), rank it, and check that no embedding depends on its
    neighbours. Where one does, or with ``args.one_by_one``, rank the embeddings of shuffled batches and of batches of one, too: what
    the table loses there came from the neighbours.

    Several processes call it together: they embed, and match pairs, by turns, the first one does the rest, and all have the report."""
    report, count = Report(), getattr(args, 'rerank', None)
    if getattr(img_loader.dataset, 'evaluates_attributes', False):
        return recognition_alone(args, model, img_loader, txt_loader, checkpoint)
    if count:
        refuse_rerank(model, count, len(img_loader.dataset))
    names = names_of(args, img_loader.dataset, txt_loader.dataset)
    qfeats, gfeats, qids, gids = embed_split(model, img_loader, txt_loader)
    first = f'{args.dataset_name} test: {len(qids)} captions, {len(gids)} images'
    report.add(first, 'as loaded', ranked(args, model, qfeats, gfeats, qids, gids), zip((qids, gids), names))
    report.independence = comm.run_on_main_process(lambda: check_independence(model, img_loader, txt_loader, (qfeats, gfeats)))
    if count:
        second, report.independence.second_stage = rerank(model, (img_loader, txt_loader), (qfeats, gfeats, qids, gids), count,
                                                          args.rerank_score)
        over = ' as released, scaled over the whole split' if args.rerank_score == 'released' else ''
        report.add(f'{RERANKED}{count} best re-ranked{over}', f're-ranked {count}{over}', {'t2i': second},
                   [(qids, names[0]), (gids, names[1])])
    if args.one_by_one or not report.independent:
        for again, how, settings in ((f'the same, shuffled (seed {args.seed})', 'shuffled', {'shuffle': True}),
                                     (ONE_BY_ONE, 'one by one', {'batch_size': 1})):
            loaders = [reordered(loader, args.seed, **settings) for loader in (img_loader, txt_loader)]
            embeddings = embed_split(model, *loaders)
            orders = [getattr(loader.sampler, 'order', None) for loader in reversed(loaders)]
            report.add(again, how, ranked(args, model, *embeddings), zip(embeddings[2:], names, orders))
    if getattr(img_loader.dataset, 'attributes', None) is not None:
        report.recognise(model, img_loader, gfeats)
    ties = report.tables[first]['t2i']['ties']
    if ties:
        report.lines.append(f'ties decide the ranking of {ties} captions; equal similarities are ranked in gallery order')
    report.lines.append(how_chosen(args, checkpoint))
    if args.checkpoint:
        report.training, dataset = course(args)
        report.lines += [in_words(report.training, dataset)] * bool(report.training)
    return add_provenance(report, args, checkpoint, img_loader.dataset, txt_loader.dataset, names)


def add_provenance(report, args, checkpoint, *datasets_and_names):
    """``report`` with what produced it, and with a line if its test split is not the published one."""
    report.produced_by = produced_by(args, checkpoint, *datasets_and_names)
    note = published_split_note(args.dataset_name, counts_in(report.produced_by))
    report.lines += [f'{note}; compare with no published figure'] * bool(note)
    return report


def ranked(args, model, *embeddings):
    return comm.run_on_main_process(lambda: rankings(*embeddings, args.i2t, model.parts))


def recognition_alone(args, model, img_loader, txt_loader, checkpoint):
    """The :class:`Report` of a dataset whose attributes are to be recognised."""
    if getattr(args, 'rerank', None):
        raise UserError(f'--rerank orders images for captions, and {args.dataset_name} has none: leave it out')
    report, names = Report(), names_of(args, img_loader.dataset, txt_loader.dataset)
    report.recognise(model, img_loader)
    report.independence = comm.run_on_main_process(lambda: check_independence(model, img_loader, txt_loader))
    report.lines.append(how_chosen(args, checkpoint))
    return add_provenance(report, args, checkpoint, img_loader.dataset, txt_loader.dataset, names)


def names_of(args, images, captions):
    """(what captions are called: their text, what images are called: their file in the dataset's folder)."""
    folder = os.path.join(args.root_dir, args.dataset_name)
    paths = getattr(images, 'img_paths', None) or map(str, range(len(images)))
    return (list(getattr(captions, 'captions', None) or map(str, range(len(captions)))),
            [os.path.relpath(path, folder) if os.path.isabs(path) == os.path.isabs(folder) else path for path in paths])


def baselines(args, images, captions):
    """{name: summary} of what colour words against colours reach without learning, on synthetic pedestrians; else empty. ``images``
    and ``captions`` are datasets, or hold the same attributes."""
    if not is_synthetic(os.path.join(args.root_dir, args.dataset_name)):
        return {}
    similarities = baseline_similarities(captions.captions, images.img_paths)
    return {name: summary(torch.as_tensor(similarity), captions.caption_pids, images.image_pids)
            for name, similarity in similarities.items()}


def embed_split(model, img_loader, txt_loader):
    """``(qfeats [Q, D], gfeats [G, D], qids [Q], gids [G])``"""
    return Evaluator(img_loader, txt_loader)._compute_embedding(model)


class Shuffled(SplitSampler):
    """In random order, which it remembers."""

    def __init__(self, count, generator):
        super().__init__(count)
        self.generator = generator

    def samples(self):
        self.order = torch.randperm(self.count, generator=self.generator).tolist()
        return self.order


def reordered(loader, seed, shuffle=False, **settings):
    """A loader of the same samples, shuffled by ``seed`` or in other batches."""
    generator, count = torch.Generator().manual_seed(seed), len(loader.dataset)
    return Loader(loader.dataset, **{
        'batch_size': loader.batch_size, 'num_workers': loader.num_workers, 'pin_memory': loader.pin_memory,
        'worker_init_fn': loader.worker_init_fn, 'generator': generator,
        'sampler': Shuffled(count, generator) if shuffle else SplitSampler(count), **settings})


def chosen_by(args, checkpoint):
    """The split whose Rank-1 chose the checkpoint's epoch; None for one that nothing chose (last.pth, epoch_<n>.pth)."""
    return None if 'step' in checkpoint or not args.checkpoint else checkpoint.get('val_dataset', args.val_dataset)


def age(args, checkpoint):
    """How long a checkpoint was trained, in words; last.pth holds the epoch to go on with."""
    if args.checkpoint is None:
        return 'not at all'
    if 'step' not in checkpoint:
        return f"epoch {checkpoint.get('epoch', 'unknown')}"
    steps = f" and {checkpoint['step']} steps" if checkpoint['step'] else ''
    return f"epoch {checkpoint['epoch'] - 1}{steps}"


def chooser(args):
    """The dataset whose split chose the best epoch."""
    return getattr(args, 'eval_dataset', '') or first_dataset_name(args.trained_on)


def course(args):
    """(:func:`processor.history.best_last_mean` of the run's training on the dataset that is tested or, where it was not evaluated on that
    one, on the dataset that chose the best epoch; that dataset)"""
    folder = os.path.dirname(args.checkpoint)
    further = args.dataset_name in further_datasets(folder)
    return best_last_mean(read_evaluations(folder, args.dataset_name if further else '')), args.dataset_name if further else chooser(args)


def how_chosen(args, checkpoint):
    """Which checkpoint this is, and which split chose it."""
    if args.checkpoint is None:
        return f'{args.pretrain_choice}: before any training'
    split = chosen_by(args, checkpoint)
    if split is None:
        return f'{args.checkpoint}: {age(args, checkpoint)}, chosen by no split'
    warning = ', the split it is tested on' if split == 'test' and chooser(args) == args.dataset_name else ''
    return f'{args.checkpoint}: {age(args, checkpoint)}, chosen by the {split} split of {chooser(args)}{warning}'


def produced_by(args, checkpoint, images, captions, names):
    """Everything that a figure hangs on."""
    return {
        'options': as_dict(args), 'checkpoint': os.path.abspath(args.checkpoint) if args.checkpoint else args.pretrain_choice,
        'checkpoint_sha256': checkpoint.get('sha256'),
        'trained_for': age(args, checkpoint), 'chosen_by_split': chosen_by(args, checkpoint),
        'noise': checkpoint.get('noise'), 'trained_on': args.trained_on,
        'dataset': args.dataset_name, 'images': len(images), 'captions': len(captions),
        'identities': len(set(map(int, images.image_pids))), 'split_sha256': split_sha256(images, captions, names), 'seed': args.seed,
        'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'torchvision': torchvision.__version__},
        'machine': torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()}


def counts_in(produced_by):
    """(identities, images, captions) of the test split that a results file is of; None for what an older file does not say."""
    counts = (produced_by.get(kind) for kind in ('identities', 'images', 'captions'))
    return tuple(count if isinstance(count, int) else None for count in counts)


def split_sha256(images, captions, names):
    """What tells a test split from others: of all captions and images, in order, with their identities."""
    sides = zip((captions.caption_pids, images.image_pids), names)
    content = json.dumps([[[int(pid), name] for pid, name in zip(pids, called)] for pids, called in sides])
    return hashlib.sha256(content.encode()).hexdigest()


def beside_checkpoint(args, name):
    """Where a result goes, without extension: the checkpoint's folder; the name says which checkpoint if it isn't best.pth, and
    which dataset if it is another one than it was trained on. For a CLIP before training a folder as if it were a run."""
    if args.checkpoint is None:
        weights = args.pretrain_choice
        weights = os.path.splitext(os.path.basename(weights))[0] if os.path.isfile(weights) else file_stem(weights.replace(':', '-'))
        return os.path.join(args.output_dir, args.dataset_name, f'zero-shot_{weights}', name)
    stem = os.path.splitext(os.path.basename(args.checkpoint))[0]
    parts = [name] + [stem] * (stem != 'best') + [args.dataset_name] * (args.dataset_name != args.trained_on)
    return os.path.join(os.path.dirname(args.checkpoint), '_'.join(parts))


def save_results(report, args):
    """``metrics.json`` and ``queries.csv`` beside the checkpoint (``metrics_<dataset>.json``, ``queries_<dataset>.csv`` for another
    dataset than it was trained on)."""
    path, queries = f"{beside_checkpoint(args, 'metrics')}.json", f"{beside_checkpoint(args, 'queries')}.csv"
    content = {'results': report.tables, 'intervals': report.intervals, 'baselines': report.baselines,
               'independence': {'holds': report.independent, **vars(report.independence)}, 'training': report.training,
               'attributes': report.attributes,
               'produced_by': report.produced_by}
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        write_queries(queries, report.queries)
        content['queries'] = {'file': os.path.basename(queries), 'sha256': sha256_of(queries)}
        with atomic_write(path) as file:
            json.dump(content, file, indent=1, default=str)
    except (UserError, OSError) as error:
        logger.warning('the results are not saved: %s', error)


def reranked(split):
    """({row: summary}, {row: intervals}) of the second stage, as test.py ``--rerank`` found it for this checkpoint and this
    :class:`~processor.runs.Split`; both empty where it did not."""
    try:
        content = read_json(f"{beside_checkpoint(split.args, 'metrics')}.json")
        made = content['produced_by']
        images, captions = split.run.images.dataset, split.run.captions.dataset
        same = made['split_sha256'] == split_sha256(images, captions, names_of(split.args, images, captions))
        if not same or made['checkpoint_sha256'] != split.run.checkpoint['sha256']:
            return {}, {}
        rows = {f't2i, {title.removeprefix(RERANKED)}': title for title in content['results'] if title.startswith(RERANKED)}
        return ({row: content['results'][title]['t2i'] for row, title in rows.items()},
                {row: content['intervals'][title]['t2i'] for row, title in rows.items()})
    except (UserError, KeyError, TypeError, AttributeError):   # there is none, or it is of another program
        return {}, {}


class SavedResults(NamedTuple):
    """What a metrics.json says of a checkpoint: ``tables`` is {how: {task: summary}}, ``counts`` are the test split's."""
    dataset: str
    tables: dict
    independent: bool
    counts: tuple

    @property
    def split_note(self):
        """'' if the test split is the published one, or nothing is published."""
        return published_split_note(self.dataset, self.counts)


def read_results(path, checksum):
    """The :class:`SavedResults` that :func:`save_results` wrote; None if it is not whole or of another checkpoint."""
    try:
        content = read_json(path)
        of_this = content['produced_by']['checkpoint_sha256'] == checksum
        dataset, tables, independent = content['produced_by']['dataset'], content['results'], content['independence']['holds']
        whole = all(isinstance(table['t2i'][metric], (int, float)) for table in tables.values() for metric in METRICS)
        counts = counts_in(content['produced_by'])
    except (UserError, KeyError, TypeError, AttributeError):  # there is none, or it is of another time or program
        return None
    complete = of_this and tables and whole and (independent or ONE_BY_ONE in tables)
    return SavedResults(dataset, tables, independent, counts) if complete else None
