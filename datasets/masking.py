"""Mask captions for masked language modeling, and filter captions as SEN does."""
from datasets.attributes import ADJECTIVE, NOUN, PRONOUN

MASK_PROBABILITY = 0.15          # of a content token (Devlin et al., NAACL 2019)
IGNORE_INDEX = -100              # the label of a word piece that is not selected
NOUN_MASK_PROBABILITY, OTHER_MASK_PROBABILITY = 0.30, 0.05  # of nouns and adjectives, and of other words (SEN)


def mask_tokens(ids, rng, mask_id, masked_rate=0.8, unchanged_rate=0.1, probabilities=None):
    """Select 15% of a caption's content tokens and mask them.

    Content tokens have ids from 1 to ``mask_id - 1``: 0 is padding, and start and end have ids above the mask's. A
    selected token becomes ``mask_id`` with probability ``masked_rate``, keeps its id with probability
    ``unchanged_rate``, and otherwise becomes a random content id. If no token is selected, the first content token
    becomes the mask.

    Args:
        ids: a list of token ids.
        rng: a ``random.Random``, the only source of randomness.
        mask_id: the id of the mask token.
        masked_rate: the probability that a selected token becomes the mask.
        unchanged_rate: the probability that a selected token keeps its id.
        probabilities: each token's probability to be selected, instead of 15% (:func:`noun_mask_probabilities`).

    Returns:
        ``(masked ids, labels)``: lists as long as ``ids``. A label is the original id of a selected token, else 0.

    >>> import random
    >>> ids = [49406, 320, 736, 7356, 49407, 0, 0]     # start, 'a red coat', end, padding
    >>> mask_tokens(ids, random.Random(0), mask_id=49405)
    ([49406, 49405, 736, 7356, 49407, 0, 0], [0, 320, 0, 0, 0, 0, 0])
    >>> mask_tokens(ids, random.Random(0), 49405, masked_rate=1.0, unchanged_rate=0.0, probabilities=[0.9] * 7)
    ([49406, 49405, 49405, 49405, 49407, 0, 0], [0, 320, 736, 7356, 0, 0, 0])
    """
    ids, labels = list(ids), [0] * len(ids)
    probabilities = probabilities or [MASK_PROBABILITY] * len(ids)
    content = [position for position, token in enumerate(ids) if 0 < token < mask_id]
    for position in content:
        if rng.random() < probabilities[position]:
            labels[position] = ids[position]
            ids[position] = draw_masked_token(ids[position], rng, mask_id, masked_rate, unchanged_rate)
    if content and not any(labels):
        labels[content[0]], ids[content[0]] = ids[content[0]], mask_id
    return ids, labels


def mask_bert_tokens(ids, rng, tokenizer, probability):
    """Select pieces of a caption and mask them, as ALBEF does (Li et al., NeurIPS 2021).

    Each piece but start and padding is selected with ``probability``. A selected piece becomes the mask with
    probability 0.8, any piece of the vocabulary with probability 0.1, and stays with probability 0.1.

    Args:
        ids: a list of token ids.
        rng: a ``random.Random``, the only source of randomness.
        tokenizer: the :class:`utils.wordpiece.WordPiece`.
        probability: the probability that a piece is selected.

    Returns:
        ``(masked ids, labels)``: lists as long as ``ids``. A label is the original id of a selected piece, else -100.
        No piece may be selected.
    """
    ids, labels = list(ids), [IGNORE_INDEX] * len(ids)
    for position, token in enumerate(ids):
        if token in (tokenizer.pad_id, tokenizer.start_id) or rng.random() >= probability:
            continue
        labels[position], draw = token, rng.random()
        if draw < 0.8:
            ids[position] = tokenizer.mask_id
        elif draw < 0.9:
            ids[position] = rng.randrange(tokenizer.vocab_size)
    return ids, labels


def draw_masked_token(token, rng, mask_id, masked_rate, unchanged_rate):
    """Draw what replaces a selected token: the mask, the token itself, or a random content id."""
    draw = rng.random()
    if draw < masked_rate:
        return mask_id
    if draw < masked_rate + unchanged_rate:
        return token
    return rng.randrange(1, mask_id)


def noun_mask_probabilities(parts_of_speech):
    """Each token's probability to be selected with ``--mlm_masking noun``.

    >>> noun_mask_probabilities([0, ADJECTIVE, NOUN])
    [0.05, 0.3, 0.3]
    """
    return [NOUN_MASK_PROBABILITY if part in (NOUN, ADJECTIVE) else OTHER_MASK_PROBABILITY for part in parts_of_speech]


def descriptive_positions(ids, parts_of_speech, mask_id):
    """Positions that ``--caption_filter`` keeps: start, end, and the tokens of nouns, adjectives and pronouns.

    A caption without such words keeps all its tokens.

    Args:
        ids: a list of token ids, zeros after its end.
        parts_of_speech: each token's part of speech (:func:`datasets.attributes.annotate`).
        mask_id: the id of the mask token.

    >>> ids = [49406, 320, 736, 7356, 49407, 0]     # start, 'a red coat', end, padding
    >>> descriptive_positions(ids, [0, 0, ADJECTIVE, NOUN, 0, 0], mask_id=49405)
    [0, 2, 3, 4]
    """
    ends = [position for position, token in enumerate(ids) if token > mask_id]   # not by the id 0: it is also a word
    positions = range(ends[-1] + 1 if ends else len(ids))
    descriptive = [position for position in positions
                   if ids[position] > mask_id or parts_of_speech[position] in (NOUN, ADJECTIVE, PRONOUN)]
    return descriptive if any(ids[position] < mask_id for position in descriptive) else list(positions)
