"""Easy data augmentation of captions (Wei and Zou, EMNLP 2019), as APTM uses it: one of four operations per caption.

Synonyms come from nltk's WordNet. If either is not installed, only the two operations without synonyms are used, and
the log says so once.
"""
import functools
import logging
import re

log = logging.getLogger('Pedestal.dataset')

CHANGED_FRACTION = 0.1  # of the words: replaced, inserted, swapped; also each word's probability to be deleted
MAX_TRIES = 10          # to find a word that has synonyms

STOP_WORDS = frozenset('''
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it
    its itself they them their theirs themselves what which who whom this that these those am is are was were be been
    being have has had having do does did doing a an the and but if or because as until while of at by for with about
    against between into through during before after above below to from up down in out on off over under again further
    then once here there when where why how all any both each few more most other some such no nor not only own same so
    than too very s t can will just don should now'''.split())


def augment_caption(caption, rng, synonyms=None):
    """Change a caption by one random operation: replace words, insert synonyms, swap words or delete words.

    Args:
        caption: the text.
        rng: a ``random.Random``.
        synonyms: a function from a word to a list of synonyms, or None to use no synonyms.

    >>> import random
    >>> augment_caption("A man's red, red shirt", random.Random(3))
    'a shirt red red mans'
    """
    words = keep_letters(caption).split()
    if not words:
        return caption
    count = max(1, int(CHANGED_FRACTION * len(words)))
    operations = [swap_words, delete_words]
    if synonyms is not None:
        operations = [functools.partial(replace_words, synonyms=synonyms),
                      functools.partial(insert_words, synonyms=synonyms)] + operations
    return ' '.join(rng.choice(operations)(words, count, rng))


def keep_letters(caption):
    """Convert to lower case, remove apostrophes, and replace all but letters by spaces."""
    return re.sub(r'[^a-z]+', ' ', re.sub("['\u2019]", '', caption.lower())).strip()


def replace_words(words, count, rng, synonyms):
    """Replace ``count`` different words, at every occurrence, by a synonym each. Stop words are never replaced."""
    candidates = list(dict.fromkeys(word for word in words if word not in STOP_WORDS))
    rng.shuffle(candidates)
    for candidate in candidates:
        choices = synonyms(candidate)
        if choices:
            synonym = rng.choice(choices)
            words = [synonym if word == candidate else word for word in words]
            count -= 1
            if not count:
                break
    return words


def insert_words(words, count, rng, synonyms):
    """Insert ``count`` synonyms of random words at random positions."""
    words = list(words)
    for _ in range(count):
        for _ in range(MAX_TRIES):
            choices = synonyms(rng.choice(words))
            if choices:
                words.insert(rng.randrange(len(words)), rng.choice(choices))
                break
    return words


def swap_words(words, count, rng):
    """Swap two random words ``count`` times."""
    words = list(words)
    for _ in range(count if len(words) > 1 else 0):
        first, second = rng.sample(range(len(words)), 2)
        words[first], words[second] = words[second], words[first]
    return words


def delete_words(words, count, rng):
    """Delete each word with probability ``CHANGED_FRACTION``. At least one word stays."""
    remaining = [word for word in words if rng.random() >= CHANGED_FRACTION]
    return remaining or [rng.choice(words)]


@functools.lru_cache(maxsize=None)
def load_synonyms():
    """Load WordNet: a function from a word to its sorted synonyms. None, with one warning, if it is not installed."""
    try:
        from nltk.corpus import wordnet as corpus
        corpus.ensure_loaded()
    except (ImportError, LookupError):
        log.warning('WordNet is not installed: the augmented captions of eda only swap and delete words, without '
                    'synonyms (pip install nltk, then python -m nltk.downloader wordnet)')
        return None

    @functools.lru_cache(maxsize=None)
    def synonyms(word):
        lemmas = {lemma.name() for synset in corpus.synsets(word) for lemma in synset.lemmas()}
        return sorted({keep_letters(lemma.replace('_', ' ').replace('-', ' ')) for lemma in lemmas} - {word, ''})
    return synonyms
