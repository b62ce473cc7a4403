"""Easy data augmentation of captions (Wei and Zou, EMNLP 2019), as APTM uses it: each caption is changed by one of four operations.

Synonyms are WordNet's, by nltk. Where either isn't installed, the two operations that need none are left, and the log says so once.
"""
import functools
import logging
import re

log = logging.getLogger('Pedestal.dataset')

SHARE = 0.1             # of the words: replaced, inserted, swapped; and each word's chance to be deleted
TRIES = 10              # to find a word that has synonyms

STOP_WORDS = frozenset('''
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its itself they
    them their theirs themselves what which who whom this that these those am is are was were be been being have has had having do does
    did doing a an the and but if or because as until while of at by for with about against between into through during before after
    above below to from up down in out on off over under again further then once here there when where why how all any both each few
    more most other some such no nor not only own same so than too very s t can will just don should now'''.split())


def augment_caption(caption, rng, synonyms=None):
    """A caption changed by one operation that ``rng`` (a ``random.Random``) draws: synonyms for some words, synonyms added, words
    swapped, or words left out. ``synonyms``: a function from a word to a list of others, or None where there is none.

    >>> import random
    >>> augment_caption("A man's red, red shirt", random.Random(3))
    'a shirt red red mans'
    """
    words = keep_letters(caption).split()
    if not words:
        return caption
    count = max(1, int(SHARE * len(words)))
    operations = [swap_words, delete_words]
    if synonyms is not None:
        operations = [functools.partial(replace_words, synonyms=synonyms), functools.partial(insert_words, synonyms=synonyms)] + operations
    return ' '.join(rng.choice(operations)(words, count, rng))


def keep_letters(caption):
    """Lower case, without apostrophes, and spaces for whatever is no letter."""
    return re.sub(r'[^a-z]+', ' ', re.sub("['\u2019]", '', caption.lower())).strip()


def replace_words(words, count, rng, synonyms):
    """Every occurrence of ``count`` different words that are no stop words, by one of their synonyms each."""
    candidates = list(dict.fromkeys(word for word in words if word not in STOP_WORDS))
    rng.shuffle(candidates)
    for word in candidates:
        others = synonyms(word)
        if others:
            other = rng.choice(others)
            words = [other if known == word else known for known in words]
            count -= 1
            if not count:
                break
    return words


def insert_words(words, count, rng, synonyms):
    """``count`` synonyms of any of the words, anywhere."""
    words = list(words)
    for _ in range(count):
        for _ in range(TRIES):
            others = synonyms(rng.choice(words))
            if others:
                words.insert(rng.randrange(len(words)), rng.choice(others))
                break
    return words


def swap_words(words, count, rng):
    """``count`` times two of the words change places."""
    words = list(words)
    for _ in range(count if len(words) > 1 else 0):
        a, b = rng.sample(range(len(words)), 2)
        words[a], words[b] = words[b], words[a]
    return words


def delete_words(words, count, rng):
    """Each word is left out with the chance ``SHARE``, but one stays."""
    kept = [word for word in words if rng.random() >= SHARE]
    return kept or [rng.choice(words)]


@functools.lru_cache(maxsize=None)
def load_synonyms():
    """A function from a word to WordNet's synonyms of it, sorted; None, said once, where nltk or WordNet isn't installed."""
    try:
        from nltk.corpus import wordnet as corpus
        corpus.ensure_loaded()
    except (ImportError, LookupError):
        log.warning('the second captions of eda have no synonyms, only words swapped and left out: WordNet is not installed '
                    '(pip install nltk, then python -m nltk.downloader wordnet)')
        return None

    @functools.lru_cache(maxsize=None)
    def synonyms(word):
        lemmas = {lemma.name() for synset in corpus.synsets(word) for lemma in synset.lemmas()}
        return sorted({keep_letters(lemma.replace('_', ' ').replace('-', ' ')) for lemma in lemmas} - {word, ''})
    return synonyms
