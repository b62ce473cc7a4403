"""The methods of re-ranking and their options: ``--rerank`` of test.py and the tools, ``--val_rerank`` of train.py."""
import argparse
import re
from dataclasses import dataclass

from utils.errors import UserError
from utils.option_types import Effect, fraction, non_negative_float, positive_int, shorten

K_RECIPROCAL, QUERY_EXPANSION = 'k-reciprocal', 'query-expansion'
RERANK_SCORES = ('caption', 'released', 'itm', 'sum')
NEIGHBORS = ('gallery', 'split')


@dataclass(frozen=True)
class PairScores:
    """Score each caption's ``count`` best images again, pair by pair, with an image-text matching head.

    Attributes:
        count: the number of images per caption.
        score: how both rankings are combined (:func:`utils.reranking.combine_scores`).
    """
    count: int
    score: str = 'caption'

    @property
    def title(self):
        suffix = {'caption': '', 'released': ' as released, scaled over the whole split', 'itm': ' by itm alone',
                  'sum': ' by the sum of itm and cosine similarity'}
        return f"each caption's {self.count} best re-ranked{suffix[self.score]}"

    @property
    def method(self):
        """A short form of the title, for queries.csv."""
        return 're-ranked ' + self.title.removeprefix("each caption's ").replace(' best re-ranked', '')

    @property
    def uses_other_queries(self):
        """Whether a caption's ranking depends on other captions."""
        return self.score == 'released'

    def check_sizes(self, images, captions, flag='--rerank'):
        """Raise UserError unless a split has enough images and captions for the settings."""
        if not 1 <= self.count <= images:
            raise UserError(f'{flag} {self.count}: the gallery holds {images} images; give a number from 1 to {images}')


@dataclass(frozen=True)
class KReciprocal:
    """Re-rank by k-reciprocal neighbors (Zhong et al., CVPR 2017; :mod:`utils.k_reciprocal`).

    Attributes:
        k1: the number of nearest neighbors.
        k2: the number of nearest samples, itself included, whose vectors are averaged (local query expansion).
        original_weight: the weight of the original distance, from 0 to 1 (the paper's lambda).
        neighbors: 'gallery': neighbors are images, so that a caption's ranking depends on no other caption; 'split':
            neighbors are images and captions, as in the paper.
    """
    k1: int = 20
    k2: int = 6
    original_weight: float = 0.3
    neighbors: str = 'gallery'

    @property
    def title(self):
        values = f'k1 {self.k1}, k2 {self.k2}, lambda {self.original_weight:g}'
        suffix = ', uses other queries of the test set' if self.uses_other_queries else ''
        return f're-ranked by {K_RECIPROCAL} neighbors ({values}){suffix}'

    @property
    def method(self):
        """A short form of the title, for queries.csv."""
        return f're-ranked {K_RECIPROCAL}' + (' with other queries' if self.uses_other_queries else '')

    @property
    def uses_other_queries(self):
        """Whether a caption's ranking depends on other captions."""
        return self.neighbors == 'split'

    def check_sizes(self, images, captions, flag='--rerank'):
        """Raise UserError unless a split has enough images and captions for the settings."""
        samples = images + captions if self.uses_other_queries else images
        content = f'{images} images' + (f' and {captions} captions' if self.uses_other_queries else '')
        for name, value, largest in (('k1', self.k1, samples - 1), ('k2', self.k2, samples)):
            if value > largest:
                raise UserError(f'{flag} {K_RECIPROCAL} finds neighbors among {content}, which are too few for '
                                f'--rerank_{name} {value}: ' + (f'give a number from 1 to {largest}' if largest > 0 else
                                                                'it needs at least 2'))


@dataclass(frozen=True)
class QueryExpansion:
    """Search again with the mean of a caption's embedding and those of its best images.

    Attributes:
        images: the number of images.
        alpha: the exponent of the cosine similarity that weights an image (alpha-QE: Radenovic et al., TPAMI 2018); 0:
            all have the weight 1 (AQE: Chum et al., ICCV 2007).
    """
    images: int = 5
    alpha: float = 3.0

    uses_other_queries = False

    @property
    def title(self):
        return f're-ranked by query expansion ({self.images} images, alpha {self.alpha:g})'

    @property
    def method(self):
        """A short form of the title, for queries.csv."""
        return f're-ranked {QUERY_EXPANSION}'

    def check_sizes(self, images, captions, flag='--rerank'):
        """Raise UserError unless a split has enough images and captions for the settings."""
        if self.images > images:
            raise UserError(f'--expansion_images {self.images}: the gallery holds {images} images; give a number from '
                            f'1 to {images}')


def rerank_method(text):
    """An argparse type: a number of images, or the name of a method.

    >>> rerank_method('128'), rerank_method('k-reciprocal')
    (128, 'k-reciprocal')
    """
    if re.fullmatch(r'[-+]?[\d.]+', text):
        return positive_int(text)
    if text not in (K_RECIPROCAL, QUERY_EXPANSION):
        raise argparse.ArgumentTypeError(f"'{shorten(text)}' must be a number of images above 0, {K_RECIPROCAL} or "
                                         f'{QUERY_EXPANSION}')
    return text


METHODS = {K_RECIPROCAL: KReciprocal, QUERY_EXPANSION: QueryExpansion}
# {flag: (the method that reads it, its attribute, type or choices, help text)}
SETTINGS = {
    '--rerank_score': (
        PairScores, 'score', RERANK_SCORES,
        'scores that order the images of {flag} K; caption: those of pairs, scaled within each caption, and the '
        'cosine; released: the same, scaled over the whole test split (APTM); itm: those of pairs alone (RaSa, MARS); '
        'sum: log-odds of itm or pitm + cosine / learned temperature'),
    '--rerank_k1': (KReciprocal, 'k1', positive_int,
                    'number of nearest neighbors, for {flag} k-reciprocal (Zhong et al.: 20)'),
    '--rerank_k2': (KReciprocal, 'k2', positive_int,
                    'number of nearest samples whose vectors are averaged, the sample itself included, for {flag} '
                    'k-reciprocal; 1: no average (Zhong et al.: 6)'),
    '--rerank_lambda': (KReciprocal, 'original_weight', fraction,
                        'weight of the original distance, for {flag} k-reciprocal (Zhong et al.: 0.3)'),
    '--rerank_neighbors': (
        KReciprocal, 'neighbors', NEIGHBORS,
        'samples that can be neighbors, for {flag} k-reciprocal; gallery: images, so that no ranking depends on '
        'another caption; split: images and captions, which uses other queries of the test set (Zhong et al.)'),
    '--expansion_images': (QueryExpansion, 'images', positive_int,
                           "number of a caption's best images that are added to it, for {flag} query-expansion"),
    '--expansion_alpha': (
        QueryExpansion, 'alpha', non_negative_float,
        'exponent of the cosine similarity that weights an image, for {flag} query-expansion; 0: equal weights '
        '(Radenovic et al.: 3)')}


def add_rerank_options(group, flag, help_text, effect=Effect.RESULT):
    """Add an option that selects a method of re-ranking, and the options of the methods, to a group of a parser.

    Args:
        group: an argparse group.
        flag: the option, such as ``'--rerank'``.
        help_text: the noun phrase before the methods.
        effect: the effect of the options.
    """
    group.add_argument(flag, type=rerank_method, default=None, metavar='METHOD', effect=effect, help=(
        f"{help_text}; a number K: each caption's K best images are scored again, pair by pair, by an image-text "
        f'matching head (loss itm); {K_RECIPROCAL}: by common neighbors; {QUERY_EXPANSION}: with the best images added '
        'to the query (default: none)'))
    for name, (reader, attribute, kind, text) in SETTINGS.items():
        settings = {'choices': kind} if isinstance(kind, tuple) else {'type': kind}
        group.add_argument(name, default=getattr(reader, attribute), effect=effect, help=text.format(flag=flag),
                           **settings)


def read_rerank_settings(args, flag='--rerank'):
    """Read the settings of re-ranking from options.

    Args:
        args: an object with the options of :func:`add_rerank_options` as attributes.
        flag: the option that selects the method.

    Returns:
        :class:`PairScores`, :class:`KReciprocal` or :class:`QueryExpansion`; None without re-ranking.

    Raises:
        UserError: an option of another method is given.

    Example:
        >>> from utils.parser import Parser
        >>> parser = Parser()
        >>> add_rerank_options(parser, '--rerank', 'method')
        >>> read_rerank_settings(parser.parse(['--rerank', 'query-expansion', '--expansion_images', '3']))
        QueryExpansion(images=3, alpha=3.0)
    """
    method = getattr(args, flag[2:])
    selected = None if method is None else METHODS.get(method, PairScores)
    values = {}
    for name, (reader, attribute, *_) in SETTINGS.items():
        value = getattr(args, name[2:])
        if reader is selected:
            values[attribute] = value
        # --rerank_score without --rerank was always accepted.
        elif value != getattr(reader, attribute) and (selected or flag != '--rerank' or reader is not PairScores):
            needed = 'K' if reader is PairScores else next(key for key in METHODS if METHODS[key] is reader)
            given = f'{flag} is {method}' if selected else f'{flag} is not given'
            raise UserError(f'{name} is only read with {flag} {needed}, and {given}: remove {name}, or give {flag} '
                            f'{needed}')
    if selected is None:
        return None
    return PairScores(method, **values) if selected is PairScores else selected(**values)


def as_rerank_settings(rerank):
    """Convert a number of images or a method's name to its settings with default values; others are returned.

    >>> as_rerank_settings('k-reciprocal')
    KReciprocal(k1=20, k2=6, original_weight=0.3, neighbors='gallery')
    """
    if not isinstance(rerank, (int, str)):
        return rerank
    try:
        method = rerank_method(str(rerank))
    except argparse.ArgumentTypeError as error:
        raise UserError(f'rerank: {error}') from None
    return PairScores(method) if isinstance(method, int) else METHODS[method]()
