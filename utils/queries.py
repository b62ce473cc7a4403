"""What each query of an evaluation reaches, in a file beside ``metrics.json``: ``pandas.read_csv('<run>/queries.csv')``.

One row a query, in plain CSV: notebooks, R and spreadsheets read it in one line, and no library is needed to write it. Columns:

    how         as loaded, shuffled, one by one: how the samples were embedded; re-ranked <n>: as loaded, and the n best ranked by pairs
    task        t2i: captions look for images; i2t: images for captions; <part>-t2i: by a part of the embedding alone
    pid         the query's identity
    first_rank  the rank of its first match, from 1
    AP, INP     average precision and inverse negative penalty in percent: their means are the table's mAP and mINP
    query       the caption, or the image's file; a quote mark ' before one that a spreadsheet would run (utils.csv_files)
"""
import csv
from dataclasses import dataclass

import numpy as np
import torch

from utils.csv_files import read_csv, write_csv
from utils.errors import UserError
from utils.iotools import atomic_write
from utils.metrics import average_precision, inverse_negative_penalty

COLUMNS = ('how', 'task', 'pid', 'first_rank', 'AP', 'INP', 'query')


@dataclass
class QueryResults:
    """What each of Q queries reaches, in the order of the split."""
    pids: np.ndarray         # [Q] identities
    first_rank: np.ndarray   # [Q] from 1
    AP: np.ndarray           # [Q] percent
    INP: np.ndarray          # [Q] percent
    names: list              # Q captions or image files

    @classmethod
    def of(cls, ranking, pids, names, order=None):
        """What the queries of a :class:`utils.ranking.Ranking` reach, whose identities are ``pids`` [Q]. ``names`` are those of the split;
        ``order`` [Q] says which of the split's samples each query is, by default in their order."""
        back = slice(None) if order is None else np.argsort(order)
        columns = (torch.as_tensor(pids), ranking.first + 1, average_precision(ranking) * 100, inverse_negative_penalty(ranking) * 100)
        return cls(*(column.numpy()[back] for column in columns), list(names))

    def reaches(self, metric):
        """[Q] in percent, whose mean is the metric: R<k>, mAP or mINP."""
        if metric in ('mAP', 'mINP'):
            return getattr(self, metric.removeprefix('m'))
        return 100.0 * (self.first_rank <= int(metric.removeprefix('R')))


def write_queries(path, rankings):
    """Write ``{(how, task): QueryResults}``. A folder that cannot be written raises :class:`UserError`."""
    with atomic_write(path) as file:
        write_csv(file, [COLUMNS])
        for (how, task), one in rankings.items():
            columns = (one.pids, one.first_rank, one.AP.round(6), one.INP.round(6))   # a millionth of a percent is no difference
            rows = zip(*(column.tolist() for column in columns), one.names, strict=True)
            write_csv(file, ((how, task, *row) for row in rows))


def read_queries(path):
    """``{(how, task): QueryResults}`` of a file that :func:`write_queries` wrote. Any other raises :class:`UserError`."""
    rankings = {}
    try:
        with open(path, encoding='utf-8', newline='') as file:
            rows = read_csv(file)
            if tuple(next(rows, ())) != COLUMNS:
                raise UserError(f"{path} holds no queries' results: its columns must be {','.join(COLUMNS)}")
            for how, task, *row in rows:
                rankings.setdefault((how, task), []).append(row)
        return {key: of_rows(rows) for key, rows in rankings.items()}
    except FileNotFoundError:
        raise UserError(f'no file {path}') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
    except (ValueError, csv.Error) as error:   # cut short, or edited
        raise UserError(f"{path} is damaged ({error}); run test.py again") from None


def of_rows(rows):
    pids, first_rank, AP, INP, names = zip(*rows, strict=True)
    return QueryResults(np.array(pids, int), np.array(first_rank, int), np.array(AP, float), np.array(INP, float), list(names))
