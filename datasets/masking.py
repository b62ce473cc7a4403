"""Masking of captions for masked language modelling, and SEN's filtering of them."""
from datasets.attributes import ADJECTIVE, NOUN, PRONOUN

CHOSEN = 0.15                            # of the content tokens (Devlin et al., NAACL 2019)
CHOSEN_NAMING, CHOSEN_REST = 0.30, 0.05  # of nouns and adjectives, and of all others (SEN)


def mask_tokens(ids, rng, mask_id, masked_rate=0.8, unchanged_rate=0.1, chances=None):
    """Choose 15% of a caption's content tokens and hide them: ``(masked ids, labels)``, lists as long as ``ids``.

    Content tokens are those between start and end: ids from 1 to ``mask_id - 1`` (0 pads; start and end lie above the
    mask). Of the chosen ones the share ``masked_rate`` becomes ``mask_id``, ``unchanged_rate`` stays as it is, and the
    others become a random content id. Where chance chooses none, the first content token becomes the mask.

    Args:
        ids: a list of token ids.
        rng: a ``random.Random``; nothing else decides the result.
        chances: of each token to be chosen, instead of the 15% (:func:`noun_mask_probabilities`).

    Returns:
        The masked ids, and the labels: the original id where a token was chosen, else 0.

    >>> import random
    >>> ids = [49406, 320, 736, 7356, 49407, 0, 0]     # start, 'a red coat', end, padding
    >>> mask_tokens(ids, random.Random(0), mask_id=49405)
    ([49406, 49405, 736, 7356, 49407, 0, 0], [0, 320, 0, 0, 0, 0, 0])
    >>> mask_tokens(ids, random.Random(0), mask_id=49405, masked_rate=1.0, unchanged_rate=0.0, chances=[0.9] * 7)
    ([49406, 49405, 49405, 49405, 49407, 0, 0], [0, 320, 736, 7356, 0, 0, 0])
    """
    ids, labels = list(ids), [0] * len(ids)
    chances = chances or [CHOSEN] * len(ids)
    content = [place for place, token in enumerate(ids) if 0 < token < mask_id]
    for place in content:
        if rng.random() < chances[place]:
            labels[place] = ids[place]
            ids[place] = replace_token(ids[place], rng, mask_id, masked_rate, unchanged_rate)
    if content and not any(labels):
        labels[content[0]], ids[content[0]] = ids[content[0]], mask_id
    return ids, labels


def replace_token(token, rng, mask_id, masked_rate, unchanged_rate):
    """What stands in a chosen token's place."""
    draw = rng.random()
    if draw < masked_rate:
        return mask_id
    if draw < masked_rate + unchanged_rate:
        return token
    return rng.randrange(1, mask_id)


def noun_mask_probabilities(parts):
    """The chance of each token to be chosen with ``--mlm_masking noun``, from its word's part of speech.

    >>> noun_mask_probabilities([0, ADJECTIVE, NOUN])
    [0.05, 0.3, 0.3]
    """
    return [CHOSEN_NAMING if part in (NOUN, ADJECTIVE) else CHOSEN_REST for part in parts]


def descriptive_positions(ids, parts, mask_id):
    """The places of a caption that ``--caption_filter`` keeps, in order: start, end, and the tokens of nouns, adjectives
    and pronouns. A caption without any of these keeps all its tokens.

    Args:
        ids: a list of token ids, zeros behind its end.
        parts: of each, its word's part of speech (:func:`datasets.attributes.annotate`).

    >>> ids = [49406, 320, 736, 7356, 49407, 0]     # start, 'a red coat', end, padding
    >>> descriptive_positions(ids, [0, 0, ADJECTIVE, NOUN, 0, 0], mask_id=49405)
    [0, 2, 3, 4]
    """
    ends = [place for place, token in enumerate(ids) if token > mask_id]   # start and end: the id 0 pads, but it is a word, too
    whole = range(ends[-1] + 1 if ends else len(ids))
    named = [place for place in whole if ids[place] > mask_id or parts[place] in (NOUN, ADJECTIVE, PRONOUN)]
    return named if any(ids[place] < mask_id for place in named) else list(whole)
