"""The result of each query of an evaluation, in a file next to ``metrics.json``.

``pandas.read_csv('<run>/queries.csv')`` reads it. The file is plain CSV with one row per query. Its columns:

    how         how the samples were embedded: as loaded, shuffled, one by one; or re-ranked <n>: as loaded, with the n
                best images re-ranked
    task        t2i: captions search for images; i2t: images search for captions; <part>-t2i: t2i by one part of the
                embedding
    pid         the query's identity
    first_rank  rank of its first match, from 1
    AP, INP     average precision and inverse negative penalty in percent: their means are mAP and mINP of the table
    query       the caption, or the image's file; with a quote mark ' in front if a spreadsheet would run it
                (utils.csv_files)
"""
import csv
from dataclasses import dataclass

import numpy as np
import torch

from utils.csv_files import read_csv, write_csv
from utils.errors import UserError
from utils.iotools import atomic_write
from utils.retrieval_metrics import average_precision, inverse_negative_penalty

COLUMNS = ('how', 'task', 'pid', 'first_rank', 'AP', 'INP', 'query')


@dataclass
class QueryResults:
    """The results of Q queries, in the order of the split."""
    pids: np.ndarray         # [Q] identities
    first_rank: np.ndarray   # [Q] from 1
    AP: np.ndarray           # [Q] percent
    INP: np.ndarray          # [Q] percent
    names: list              # Q captions or image files

    @classmethod
    def from_ranking(cls, ranking, pids, names, order=None):
        """Compute the results of a :class:`utils.ranking.Ranking`.

        Args:
            ranking: the ranking of Q queries.
            pids: [Q] identities of the queries.
            names: Q captions or image files, in the order of the split.
            order: [Q] number in the split of each query; None if the queries have the order of the split.
        """
        inverse = slice(None) if order is None else np.argsort(order)
        columns = (torch.as_tensor(pids), ranking.first + 1, average_precision(ranking) * 100,
                   inverse_negative_penalty(ranking) * 100)
        return cls(*(column.numpy()[inverse] for column in columns), list(names))

    def metric_values(self, metric):
        """Return values [Q] in percent whose mean is the metric: R<k>, mAP or mINP."""
        if metric in ('mAP', 'mINP'):
            return getattr(self, metric.removeprefix('m'))
        return 100.0 * (self.first_rank <= int(metric.removeprefix('R')))


def write_queries(path, rankings):
    """Write ``{(how, task): QueryResults}``.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path) as file:
        write_csv(file, [COLUMNS])
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
            if tuple(next(rows, ())) != COLUMNS:
                raise UserError(f"{path} holds no queries' results: its columns must be {','.join(COLUMNS)}")
            for how, task, *row in rows:
                rankings.setdefault((how, task), []).append(row)
        return {key: parse_rows(rows) for key, rows in rankings.items()}
    except FileNotFoundError:
        raise UserError(f'no file {path}') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
    except (ValueError, csv.Error) as error:   # truncated, or edited
        raise UserError(f'{path} is damaged ({error}); run test.py again') from None


def parse_rows(rows):
    """Build the :class:`QueryResults` of rows of texts."""
    pids, first_rank, AP, INP, names = zip(*rows, strict=True)
    return QueryResults(np.array(pids, int), np.array(first_rank, int), np.array(AP, float), np.array(INP, float),
                        list(names))
