"""Results by attribute or by word of the caption: ``test.py --by attributes words``.

A row holds the captions that mention a word: their Rank-1 and mAP with 95% intervals, the differences to all other
captions, and p of each difference. Holm's procedure corrects p for the number of words that are tested.
"""
import logging
import textwrap
from dataclasses import dataclass

import numpy as np

from datasets.eda import STOP_WORDS
from datasets.lexicon import DEFAULT_LEXICON, is_punctuation, read_lexicon, split_tokens
from utils.csv_files import write_csv
from utils.errors import UserError
from utils.figures import import_pyplot, save_figure, to_label
from utils.group_statistics import (
    MIN_IDENTITIES, bootstrap_groups, compare_groups, count_identities, permutation_p_values)
from utils.iotools import atomic_write
from utils.measures import RANK1
from utils.statistics import bootstrap_interval, holm_correction
from utils.tables import format_text

LABELS = {RANK1.key: RANK1.label, 'mAP': 'mAP'}
LEVEL = 0.05     # of the corrected p: at or below it, captions differ from all others
logger = logging.getLogger('Pedestal.test')

COUNTS = ('category', 'word', 'captions', 'identities')
TESTS = ('', '_difference', '_p', '_p_holm')
INTERVALS = ('_low', '_high', '_difference_low', '_difference_high')
WIDTH = 120      # columns of the table on the screen


@dataclass
class Breakdown:
    """Results by groups of captions, each of the captions that mention a word.

    Attributes:
        overall: ``{metric: (value, low, high)}`` of all captions, in percent.
        rows: a dict for each tested word: :data:`COUNTS`, and ``<metric><suffix>`` for each metric of ``overall`` and
            each suffix of the table. The hardest word (of a category) is first.
        untested: a dict of :data:`COUNTS` for each word of too few identities.
        identities: the number of identities of all captions.
    """
    overall: dict
    rows: list
    untested: list
    identities: int
    kind = ''                # 'attributes' or 'words'
    metrics = (RANK1.key,)
    suffixes = TESTS

    @property
    def significant(self):
        """The rows whose Rank-1 differs from that of all other captions."""
        return self.select_significant(RANK1.key)

    def select_significant(self, metric):
        """Return the rows whose metric differs from that of all other captions."""
        return [row for row in self.rows if row[f'{metric}_p_holm'] <= LEVEL]

    @property
    def shown_rows(self):
        """The rows on the screen."""
        return self.significant

    @property
    def summary(self):
        """How many words are tested, and how many of them differ from all other captions, as lines."""
        needed = f'captions of {MIN_IDENTITIES} people that mention it, and of {MIN_IDENTITIES} that do not'
        if not self.rows and not self.untested and self.kind == 'attributes':
            return 'no caption has a word of the lexicon: give one for the language of the captions with --lexicon'
        if not self.rows:
            return f'no word is tested: a word needs {needed}, and the captions are of {self.identities} people'
        counts = ', '.join(f'{len(self.select_significant(metric)) or "none"} in {LABELS[metric]}'
                           for metric in self.metrics)
        return (f'{len(self.rows)} {self.kind} are tested, each with {needed}\n'
                f'different from all other captions (p after Holm <= {LEVEL}): {counts}')

    @property
    def text(self):
        """The table and the summary, for the screen."""
        table = [format_text(self.heading, self.header, [self.format_row(row) for row in self.shown_rows])]
        return '\n'.join([*table * bool(self.shown_rows), self.summary])

    @property
    def heading(self):
        overall = ', '.join(f'{LABELS[metric]} {format_interval(*values)}' for metric, values in self.overall.items())
        return (f'by {self.kind} of the caption, in percent; all captions: {overall}\n'
                'n: captions; diff: difference to all other captions; p: its probability by chance, after Holm')

    @property
    def header(self):
        return ['word', 'n', 'R1', 'diff', 'p']

    def format_row(self, row):
        """Return the cells of a row on the screen."""
        return [row['word'], str(row['captions']), f"{row['R1']:.1f}", *format_test(row, 'R1')]

    def write_csv(self, path):
        """Write all rows, also those of words that are not tested. Raises :class:`~utils.errors.UserError`."""
        columns = [*COUNTS, *(metric + suffix for metric in self.metrics for suffix in self.suffixes)]
        with atomic_write(path) as file:
            write_csv(file, [columns])
            write_csv(file, ([round_cell(row.get(column, '')) for column in columns]
                             for row in (*self.rows, *self.untested)))


class WordBreakdown(Breakdown):
    """Rank-1 by the words, and the phrases of two words, of the captions."""
    kind = 'words'


class AttributeBreakdown(Breakdown):
    """Rank-1 and mAP with intervals by the attributes of a lexicon."""
    kind, metrics, suffixes = 'attributes', (RANK1.key, 'mAP'), TESTS + INTERVALS

    @property
    def shown_rows(self):
        return self.rows

    @property
    def text(self):
        counts = {}      # {category: texts}
        for row in self.untested:
            counts.setdefault(row['category'], []).append(f"{row['word']} {row['captions']}")
        untested = '; '.join(f"{category}: {', '.join(texts)}" for category, texts in counts.items())
        line = textwrap.fill(f'not tested, with their captions: {untested}', WIDTH)
        return '\n'.join([super().text, *[line] * bool(counts and self.rows)])

    @property
    def header(self):
        return ['category', 'word', 'n',
                *(f'{metric}{column}' for metric in self.metrics for column in (' [95%]', ' diff', ' p'))]

    def format_row(self, row):
        return [row['category'], row['word'], str(row['captions']),
                *(cell for metric in self.metrics for cell in (
                    format_interval(*(row[metric + suffix] for suffix in ('', '_low', '_high'))),
                    *format_test(row, metric)))]


def format_test(row, metric):
    """Return the cells of a difference and its corrected p."""
    return [f"{row[f'{metric}_difference']:+.1f}", f"{row[f'{metric}_p_holm']:.3f}"]


def format_interval(value, low, high):
    return f'{value:.1f} [{low:.1f}, {high:.1f}]'


def round_cell(value):
    return float(f'{value:.6g}') if isinstance(value, float) else value


# -- groups of captions ------------------------------------------------------------------------------------------------

def break_down_by_attributes(queries, lexicon=None):
    """Compute the :class:`Breakdown` of Rank-1 and mAP by the attributes that a lexicon finds in captions.

    Args:
        queries: :class:`~utils.queries.QueryResults` of text-to-image retrieval.
        lexicon: a :class:`~datasets.lexicon.Lexicon`, by default that of configs/lexicon/english.yaml.

    Example:
        >>> from utils.queries import QueryResults
        >>> pids = np.arange(200)
        >>> captions = [f'a man in a {color} coat' for color in ('red', 'gray') * 100]
        >>> ap = np.where(pids % 2, 50.0, 80.0)
        >>> rows = break_down_by_attributes(QueryResults(pids, np.ones(200), ap, ap, captions)).rows
        >>> [(row['category'], row['word'], row['mAP'], row['mAP_difference']) for row in rows][-2:]
        [('upper color', 'gray', 50.0, -30.0), ('upper color', 'red', 80.0, 30.0)]
    """
    groups = (lexicon or read_lexicon()).group_captions(queries.names)
    breakdown = break_down(AttributeBreakdown, queries, groups)
    categories = list(dict.fromkeys(category for category, _ in groups))
    breakdown.rows.sort(key=lambda row: (categories.index(row['category']), row['R1'], row['mAP']))
    return breakdown


def break_down_by_words(queries):
    """Compute the :class:`Breakdown` of Rank-1 by the words, and the phrases of two words, of the captions.

    Words such as 'the' are skipped. If two words are in the same captions, only the longer is tested.
    """
    captions_of = {}      # {term: indices of the captions}
    for index, caption in enumerate(queries.names):
        for term in list_terms(caption):
            captions_of.setdefault(term, []).append(index)
    by_captions = {}      # {indices of the captions: the longest term}
    for term, indices in sorted(captions_of.items(), key=lambda item: (len(item[0]), item[0])):
        if len(indices) >= MIN_IDENTITIES:      # fewer captions have fewer identities
            by_captions[tuple(indices)] = term
    groups = {('word', term): np.isin(np.arange(len(queries.names)), indices)
              for indices, term in by_captions.items()}
    breakdown = break_down(WordBreakdown, queries, groups)
    breakdown.rows.sort(key=lambda row: (row['R1_difference'], row['word']))
    return breakdown


def list_terms(caption):
    """Return the words of a caption without stop words, and its phrases of two such words, as a set.

    >>> sorted(list_terms('A man in a red coat, and red shoes.'))
    ['coat', 'man', 'red', 'red coat', 'red shoes', 'shoes']
    """
    tokens = split_tokens(caption)
    is_term = [token not in STOP_WORDS and not is_punctuation(token) for token in tokens]
    pairs = zip(tokens, tokens[1:], is_term, is_term[1:])
    return {*(token for token, is_word in zip(tokens, is_term) if is_word),
            *(join_phrase(first, second) for first, second, is_first, is_second in pairs if is_first and is_second)}


def join_phrase(first, second):
    """Join two words as they are written: Chinese and Japanese have no spaces."""
    is_spaced = first.isascii() or second.isascii() or len(first) > 1 or len(second) > 1
    return f'{first} {second}' if is_spaced else first + second


def break_down(cls, queries, groups):
    """Compute a :class:`Breakdown` by ``{(category, word): bool [Q]}``; ``cls`` is its class."""
    identities = len(set(queries.pids.tolist()))
    groups = {key: group for key, group in groups.items() if group.any()}
    masks = np.stack(list(groups.values())) if groups else np.zeros((0, len(queries.pids)), bool)
    inside, outside = count_identities(masks, queries.pids), count_identities(~masks, queries.pids)
    is_tested = np.minimum(inside, outside) >= MIN_IDENTITIES
    rows = [dict(zip(COUNTS, (*key, int(group.sum()), int(count))))
            for (key, group), count in zip(groups.items(), inside)]
    tested = [row for row, enough in zip(rows, is_tested) if enough]
    untested = [row for row, enough in zip(rows, is_tested) if not enough]
    overall, masks = {}, masks[is_tested]
    for metric in cls.metrics if tested else ():
        values = queries.metric_values(metric).round(6)      # as queries.csv has them
        overall[metric] = (values.mean(), *bootstrap_interval(values, queries.pids))
        p = permutation_p_values(values, masks, queries.pids)
        columns = [*compare_groups(values, masks), p, holm_correction(p)]
        if cls.suffixes != TESTS:
            columns += bootstrap_groups(values, masks, queries.pids)
        for row, *cells in zip(tested, *columns, strict=True):
            row.update({metric + suffix: float(cell) for suffix, cell in zip(cls.suffixes, cells, strict=True)})
    return cls(overall, tested, untested, identities)


# -- test.py and run_scripts.breakdown ---------------------------------------------------------------------------------

def read_requested_lexicon(args):
    """Read the lexicon that the options name; None without ``--by attributes``.

    Raises:
        UserError: the file is no lexicon, or ``--by attributes`` is missing.
    """
    if 'attributes' in args.by:
        return read_lexicon(args.lexicon or DEFAULT_LEXICON)
    if args.lexicon:
        raise UserError(f'--lexicon {args.lexicon} needs --by attributes, whose words it has')
    return None


def write_breakdowns(args, queries, lexicon, how, path):
    """Compute the breakdowns that ``args.by`` names, and write their tables and figures.

    Args:
        args: options with ``by``.
        queries: :class:`~utils.queries.QueryResults` of text-to-image retrieval.
        lexicon: the result of :func:`read_requested_lexicon`.
        how: how the captions were ranked, as in queries.csv.
        path: a function from a file's name to its path.

    Returns:
        The tables and the names of the files as text. A warning is logged if a file cannot be written.
    """
    texts = []
    for kind in dict.fromkeys(args.by):
        breakdown = (break_down_by_attributes(queries, lexicon) if kind == 'attributes'
                     else break_down_by_words(queries))
        texts.append(f'\n{how}\n{breakdown.text}')
        try:
            breakdown.write_csv(path(f'by_{kind}.csv'))
            names = [path(f'by_{kind}.csv')]
            if kind == 'attributes' and breakdown.rows:
                save_figure(draw_breakdown(breakdown), path(f'by_{kind}.png'), dpi=100)
                names.append(path(f'by_{kind}.png'))
            texts.append(f"wrote {' and '.join(names)}")
        except UserError as error:
            logger.warning('the results of --by %s are not saved: %s', kind, error)
    return '\n'.join(texts)


# -- the figure --------------------------------------------------------------------------------------------------------

def draw_breakdown(breakdown):
    """Draw the metrics of each word with their intervals, below a heading for each category."""
    plt = import_pyplot()
    lines = []            # a text for a category's heading, a row for a word
    for row in breakdown.rows:
        if row['category'] not in lines:
            lines.append(row['category'])
        lines.append(row)
    figure, axes = plt.subplots(1, len(breakdown.overall), sharey=True, squeeze=False, layout='constrained',
                                figsize=(3 + 3.2 * len(breakdown.overall), 1.1 + 0.18 * len(lines)))
    for axis, (metric, (value, low, high)) in zip(axes[0], breakdown.overall.items()):
        axis.axvspan(low, high, color='0.9')
        axis.axvline(value, color='0.6', linewidth=1)
        for position, row in enumerate(lines):
            if isinstance(row, dict):
                draw_row(axis, position, row, metric)
        axis.set(title=f'{LABELS[metric]}, percent', ylim=(len(lines) - 0.4, -0.6))
        axis.spines[['top', 'right', 'left']].set_visible(False)
        axis.tick_params(axis='y', length=0)
    labels = [to_label(f"{line['word']} ({line['captions']})" if isinstance(line, dict) else line) for line in lines]
    axes[0][0].set_yticks(range(len(lines)), labels, fontsize=8)
    for label, line in zip(axes[0][0].get_yticklabels(), lines):
        label.set_fontweight('normal' if isinstance(line, dict) else 'bold')
    figure.supxlabel(f'gray: all captions; red diamond: differs from all other captions (p after Holm <= {LEVEL}); '
                     'bars: 95% intervals', fontsize=8)
    return figure


def draw_row(axis, position, row, metric):
    """Draw a point with its interval; a red diamond if the metric differs from that of all other captions."""
    color, marker = ('C3', 'D') if row[f'{metric}_p_holm'] <= LEVEL else ('C0', 'o')
    axis.plot([row[f'{metric}_low'], row[f'{metric}_high']], [position, position], color=color, linewidth=1.2)
    axis.plot(row[metric], position, marker, color=color, markersize=4)
