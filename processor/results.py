"""The result files of a run. Only this module reads and writes them.

- ``metrics.jsonl``, by train.py: losses and evaluations, one :class:`Record` per line
- ``metrics.json``, by test.py: the tables of an evaluation and what produced them, :class:`Results`
- ``queries.csv``, by test.py: the rank of each query's first match, :func:`write_queries`
"""
import csv
import glob
import json
import logging
import os
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from datasets.registry import published_split_note
from model.clip_weights import file_stem
from processor.provenance import evaluated_split, split_counts, split_sha256
from utils.csv_files import read_csv, write_csv
from utils.errors import UserError, unknown_name_error
from utils.iotools import atomic_write, parse_json, read_json
from utils.measures import RANK1, find_measure, has_all_metrics
from utils.queries import QueryResults
from utils.weight_files import compute_sha256

logger = logging.getLogger('Pedestal.test')

# Titles of tables, which are also keys of metrics.json.
ONE_BY_ONE = 'the same, embedded one by one'
RERANKED = 'the same, '                 # before the title of the settings of re-ranking (utils/rerank_options.py)
QUERY_COLUMNS = ('how', 'task', 'pid', 'first_rank', 'AP', 'INP', 'query')


# -- metrics.jsonl -----------------------------------------------------------------------------------------------------

class Record(NamedTuple):
    """A line of ``metrics.jsonl``: ``{"kind": ..., "epoch": ..., "step": ..., **values}``.

    Attributes:
        kind: ``train`` or ``epoch``, the means of losses up to a step or of an epoch; ``evaluation``, or
            ``evaluation/<dataset>`` for datasets that do not select the best epoch.
        epoch: the epoch, from 1.
        step: the number of training steps of the run so far.
        values: ``{name: number or text}``. An evaluation has its metrics in percent, and ``split``.
    """
    kind: str
    epoch: int
    step: int
    values: dict

    @classmethod
    def parse(cls, line):
        """Parse a line; None if another program wrote it or it is incomplete."""
        try:
            content = parse_json(line)
        except ValueError:
            return None
        if not isinstance(content, dict):
            return None
        kind, epoch, step = (content.pop(name, None) for name in ('kind', 'epoch', 'step'))
        is_valid = isinstance(kind, str) and type(epoch) is type(step) is int
        return cls(kind, epoch, step, content) if is_valid else None

    @property
    def line(self):
        return json.dumps({'kind': self.kind, 'epoch': self.epoch, 'step': self.step, **self.values})

    @property
    def metrics(self):
        """The numbers among the values."""
        return {name: value for name, value in self.values.items() if isinstance(value, (int, float))}

    @property
    def tagged_metrics(self):
        """The metrics with names such as ``train/loss``, as loggers get them."""
        return {f'{self.kind}/{name}': value for name, value in self.metrics.items()}

    @property
    def is_evaluation(self):
        return self.kind.startswith('evaluation')


def metrics_log_path(folder):
    return os.path.join(folder, 'metrics.jsonl')


def read_metrics_log(folder):
    """Read the records of a run's ``metrics.jsonl``, in order, without damaged lines; an empty list without a file."""
    try:
        with open(metrics_log_path(folder), 'rb') as file:
            return [record for record in map(Record.parse, file) if record is not None]
    except OSError:
        return []


def read_evaluations(folder, dataset=''):
    """Read the evaluations in a run's ``metrics.jsonl``.

    Args:
        folder: the run's folder.
        dataset: one of :func:`further_datasets`; by default the dataset that selects the best epoch.

    Returns:
        The latest :class:`Record` of each evaluated epoch, sorted by epoch; empty if another program wrote the folder.
        All have the :class:`~utils.measures.Measure` of the last one, also if an older version wrote R1 as its key.
    """
    kind = f'evaluation/{dataset}' if dataset else 'evaluation'
    by_epoch = {record.epoch: record for record in read_metrics_log(folder) if record.kind == kind and record.metrics}
    evaluations = [by_epoch[epoch] for epoch in sorted(by_epoch)]
    measure = find_measure(evaluations[-1].metrics) if evaluations else None
    return [record if measure.key in record.metrics else rename_r1(record, measure)
            for record in evaluations if measure.value_in(record.metrics) is not None]


def rename_r1(record, measure):
    """Return a :class:`Record` whose R1 has the key of a measure."""
    return record._replace(values={measure.key if name == RANK1.key else name: value
                                   for name, value in record.values.items()})


def further_datasets(folder):
    """List the evaluated datasets of a run, without the one that selects the best epoch."""
    kinds = dict.fromkeys(record.kind for record in read_metrics_log(folder))
    return [kind.removeprefix('evaluation/') for kind in kinds if kind.startswith('evaluation/')]


def append_record(folder, record):
    """Append a :class:`Record` to ``metrics.jsonl``.

    Raises:
        UserError: the file cannot be written.
    """
    path = metrics_log_path(folder)
    try:
        with open(path, 'a', encoding='utf-8') as file:
            file.write(f'{record.line}\n')
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from None


def discard_records_after(folder, step, pending_evaluation):
    """Remove the records after a checkpoint from ``metrics.jsonl``, so that a resumed run writes each once.

    Args:
        folder: the run's folder.
        step: the number of training steps before the checkpoint.
        pending_evaluation: the epoch that the run evaluates again; None if there is none.

    Returns:
        The number of removed lines that this module did not write. A line that a kill cut off does not count.

    Raises:
        UserError: metrics.jsonl is not a file, or it cannot be written.
    """
    path, lines, foreign_count = metrics_log_path(folder), [], 0
    if not os.path.exists(path):
        return 0
    if not os.path.isfile(path):
        raise UserError(f'{path} is not a file, but the run writes its metrics there; move it away')
    with open(path, 'rb') as file:
        for line in file:
            record = Record.parse(line)
            if record is None:
                foreign_count += line.endswith(b'\n')
            elif record.step <= step and not (record.is_evaluation and record.epoch == pending_evaluation):
                lines.append(line)
    with atomic_write(path, 'wb') as file:
        file.writelines(lines)
    return foreign_count


# -- metrics.json ------------------------------------------------------------------------------------------------------

@dataclass
class Results:
    """The content of ``metrics.json``. Older files lack some keys, which are empty then.

    Attributes:
        tables: ``{title: {task: metrics}}`` in percent (key ``results``). The first table is of the embeddings as
            loaded. Attribute recognition has none.
        intervals: ``{title: {task: {metric: 95% interval}}}``.
        baselines: ``{name: metrics}`` of methods without training.
        independence: ``holds``, whether each embedding depends on its own sample only, and the attributes of an
            :class:`~processor.independence.Independence`.
        training: the evaluations during training (:func:`processor.history.summarize_evaluations`).
        attributes: metrics of attribute recognition in percent.
        provenance: what produced the results (key ``produced_by``; :func:`processor.provenance.collect_provenance`).
        queries: the name (``file``) and the checksum (``sha256``) of queries.csv.
    """
    tables: dict = field(default_factory=dict)
    intervals: dict = field(default_factory=dict)
    baselines: dict = field(default_factory=dict)
    independence: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    attributes: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    queries: dict = field(default_factory=dict)

    @property
    def dataset(self):
        return self.provenance.get('dataset')

    @property
    def is_independent(self):
        """Whether each embedding depends on its own sample only."""
        return self.independence.get('holds') is True

    @property
    def metrics(self):
        """The metrics of the test as loaded: of text-to-image retrieval, else of attribute recognition."""
        return next((tasks.get('t2i', {}) for tasks in self.tables.values()), self.attributes)

    def metric_intervals(self, title=None):
        """The intervals of text-to-image retrieval in a table, by default the first; {} if not computed."""
        return self.intervals.get(title or next(iter(self.tables), None), {}).get('t2i', {})

    @property
    def one_by_one(self):
        """The metrics of text-to-image retrieval with embeddings of batches of one sample; {} if not computed."""
        return self.tables.get(ONE_BY_ONE, {}).get('t2i', {})

    @property
    def is_complete(self):
        """Whether each table has all metrics, and whether there is one without dependence on the batch."""
        if not self.tables:
            return has_all_metrics(self.attributes)
        return (all(has_all_metrics(tasks.get('t2i')) for tasks in self.tables.values())
                and (self.is_independent or ONE_BY_ONE in self.tables))

    @property
    def split_note(self):
        """A warning if the test split is not the published one; else ``''``."""
        return published_split_note(self.dataset, split_counts(self.provenance), evaluated_split(self.provenance))


# {key in metrics.json: attribute of Results}
RESULT_KEYS = {'results': 'tables', 'intervals': 'intervals', 'baselines': 'baselines', 'independence': 'independence',
               'training': 'training', 'attributes': 'attributes', 'produced_by': 'provenance', 'queries': 'queries'}


def result_path(args, name):
    """Return the path of a result file in the checkpoint's folder.

    The file name contains the checkpoint's name if it is not best.pth, and the dataset if it is not the one of the
    training: ``metrics_last_RSTPReid.json``. Another split than test and distractors have names of their own also:
    ``metrics_val.json``, ``metrics_distractors.json``. An untrained CLIP has a folder of its own.

    Args:
        args: the options of test.py.
        name: the file's name for best.pth and the dataset of the training, such as ``metrics.json``.
    """
    if args.checkpoint is None:
        weights = args.pretrain_choice
        is_file = os.path.isfile(weights)
        stem = os.path.splitext(os.path.basename(weights))[0] if is_file else file_stem(weights.replace(':', '-'))
        return os.path.join(args.output_dir, args.dataset_name, f'zero-shot_{stem}', with_split(args, name))
    name, extension = os.path.splitext(with_split(args, name))
    stem = os.path.splitext(os.path.basename(args.checkpoint))[0]
    is_other = args.dataset_name != args.config.data.trained_on
    parts = [name] + [stem] * (stem != 'best') + [args.dataset_name] * is_other
    return os.path.join(os.path.dirname(args.checkpoint), '_'.join(parts) + extension)


def with_split(args, name):
    """Return a file's name with the evaluated split, unless it is test, and a mark for distractors."""
    name, extension = os.path.splitext(name)
    parts = [name] + [args.split] * (args.split != 'test') + ['distractors'] * bool(args.distractors)
    return '_'.join(parts) + extension


def save_results(args, results, queries):
    """Write ``metrics.json`` and ``queries.csv`` next to the checkpoint (:func:`result_path`).

    A warning is logged if they cannot be written.

    Args:
        args: the options of test.py.
        results: a :class:`Results` without ``queries``.
        queries: ``{(how, task): QueryResults}``.
    """
    path, queries_path = result_path(args, 'metrics.json'), result_path(args, 'queries.csv')
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        write_queries(queries_path, queries)
        results.queries = {'file': os.path.basename(queries_path), 'sha256': compute_sha256(queries_path)}
        with atomic_write(path) as file:
            json.dump({key: getattr(results, name) for key, name in RESULT_KEYS.items()}, file, indent=1, default=str)
    except (UserError, OSError) as error:
        logger.warning('the results are not saved: %s', error)


def read_results(path):
    """Read the :class:`Results` of a ``metrics.json``.

    Raises:
        UserError: the file is missing or damaged, or another program wrote it.
    """
    content = read_json(path)
    values = {name: content.get(key, {}) for key, name in RESULT_KEYS.items()} if isinstance(content, dict) else {}
    is_valid = values.get('provenance') and all(isinstance(value, dict) for value in values.values())
    tables = [*values['tables'].values(), *values['intervals'].values()] if is_valid else []
    tasks = [task for table in tables if isinstance(table, dict) for task in table.values()]
    if not is_valid or not all(isinstance(value, dict) for value in (*tables, *tasks)):
        raise UserError(f'{path} does not have the results of an evaluation: run test.py again, which writes it')
    return Results(**values)


def find_results(path, checksum):
    """Read the :class:`Results` of a ``metrics.json``; None if it is missing, incomplete or of another checkpoint.

    Args:
        path: the file.
        checksum: the sha256 of the checkpoint.
    """
    try:
        results = read_results(path)
    except UserError:
        return None
    return results if results.provenance.get('checkpoint_sha256') == checksum and results.is_complete else None


def find_other_results(checkpoint, dataset):
    """Find the results of a checkpoint on the test splits of other datasets than ``dataset``, from test.py.

    Returns:
        A :class:`Results` for each ``metrics_<...>.json`` of the checkpoint, sorted by file.
    """
    paths = sorted(glob.glob(os.path.join(glob.escape(os.path.dirname(checkpoint)), 'metrics_*.json')))
    checksum = compute_sha256(checkpoint) if paths else None
    return [results for path in paths if (results := find_results(path, checksum)) and results.dataset != dataset
            and evaluated_split(results.provenance) == 'test' and not results.provenance.get('distractors')]


def read_reranked(split):
    """Read the re-ranking results of a :class:`~processor.runs.Split`, which test.py ``--rerank`` wrote.

    Returns:
        ``({row: metrics}, {row: intervals})``; both empty if there are none of this checkpoint and split.
    """
    try:
        results = read_results(result_path(split.args, 'metrics.json'))
    except UserError:
        return {}, {}
    checksum = split_sha256(split.args, split.run.images.dataset, split.run.captions.dataset)
    expected = split.run.checkpoint['sha256'], checksum
    if (results.provenance.get('checkpoint_sha256'), results.provenance.get('split_sha256')) != expected:
        return {}, {}
    rows = {reranked_row(title): title for title, tasks in results.tables.items()
            if title.startswith(RERANKED) and 're-ranked' in title and has_all_metrics(tasks.get('t2i'))}
    return ({row: results.tables[title]['t2i'] for row, title in rows.items()},
            {row: results.intervals[title]['t2i'] for row, title in rows.items()
             if 't2i' in results.intervals.get(title, {})})


def reranked_row(title):
    """The name of a table's row with the metrics of re-ranking, given the title of its own table.

    >>> reranked_row("the same, each caption's 128 best re-ranked")
    't2i, 128 best re-ranked'
    """
    return f't2i, {title.removeprefix(RERANKED)}'.replace("each caption's ", '')


# -- queries.csv -------------------------------------------------------------------------------------------------------

def write_queries(path, rankings):
    """Write ``queries.csv``: plain CSV with one row per query, which ``pandas.read_csv`` reads.

    The columns are:

    - how: how the samples were embedded: as loaded, shuffled, one by one; or re-ranked <method>: as loaded, then
      re-ranked (utils/rerank_options.py)
    - task: t2i: captions search for images; i2t: images search for captions; <part>-t2i: t2i by one part of the
      embedding
    - pid: the query's identity
    - first_rank: the rank of its first match, from 1
    - AP, INP: average precision and inverse negative penalty in percent, whose means are mAP and mINP of the table
    - query: the caption, or the image's file; with a quote mark ' in front if a spreadsheet would run it
      (:mod:`utils.csv_files`)

    Args:
        path: the file.
        rankings: ``{(how, task): QueryResults}``.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path) as file:
        write_csv(file, [QUERY_COLUMNS])
        for (how, task), results in rankings.items():
            columns = (results.pids, results.first_rank, results.AP.round(6), results.INP.round(6))
            rows = zip(*(column.tolist() for column in columns), results.names, strict=True)
            write_csv(file, ((how, task, *row) for row in rows))


def read_queries(path):
    """Read ``{(how, task): QueryResults}`` from a file of :func:`write_queries`.

    Raises:
        UserError: the file is missing, damaged or another one.
    """
    rankings = {}
    try:
        with open(path, encoding='utf-8', newline='') as file:
            rows = read_csv(file)
            if tuple(next(rows, ())) != QUERY_COLUMNS:
                raise UserError(f"{path} holds no queries' results: its columns must be {','.join(QUERY_COLUMNS)}")
            for how, task, *row in rows:
                rankings.setdefault((how, task), []).append(row)
        return {key: parse_rows(rows) for key, rows in rankings.items()}
    except FileNotFoundError:
        raise UserError(f'no file {path}') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
    except (ValueError, csv.Error) as error:   # truncated, or edited
        raise UserError(f'{path} is damaged ({error}); run test.py again') from None


def read_evaluated_queries(path, how='as loaded', task='t2i'):
    """Read the results of an evaluation, and those of each query.

    Args:
        path: a metrics.json; its queries.csv is next to it.
        how, task: the ranking in queries.csv (:func:`write_queries`).

    Returns:
        ``(Results, QueryResults)``.

    Raises:
        UserError: a file is missing, damaged or of another evaluation, or it lacks the ranking.
    """
    results = read_results(path)
    if results.attributes and not results.tables:
        raise UserError(f'{path} has attribute metrics and no results per caption: name runs that retrieve')
    if not {'file', 'sha256'} <= results.queries.keys() or 'split_sha256' not in results.provenance:
        raise UserError(f'{path} has no results per caption: run test.py again, which writes them next to it')
    queries = os.path.join(os.path.dirname(path), results.queries['file'])
    if not os.path.isfile(queries) or compute_sha256(queries) != results.queries['sha256']:
        raise UserError(f'{queries} is missing or belongs to another evaluation than {path}: run test.py again')
    rankings = read_queries(queries)
    if (how, task) not in rankings:
        raise unknown_name_error(f'ranking in {queries}:', f'{how}, {task}', [', '.join(key) for key in rankings])
    return results, rankings[how, task]


def parse_rows(rows):
    """Build the :class:`~utils.queries.QueryResults` of rows of texts."""
    pids, first_rank, AP, INP, names = zip(*rows, strict=True)
    return QueryResults(np.array(pids, int), np.array(first_rank, int), np.array(AP, float), np.array(INP, float),
                        list(names))
