"""APTM's masking of captions for BERT: whole words and short runs of them (X-VLM, ICML 2022, after SpanBERT)."""
MASKED_FRACTION, MAX_POSITIONS = 0.25, 10    # of a caption's positions; at most that many
RUN_PROBABILITY, MAX_RUN_LENGTH = 0.2, 3     # a run has 2 to MAX_RUN_LENGTH tokens, other draws have one
MASK_PROBABILITY, RANDOM_PROBABILITY = 0.8, 0.1   # a selected token becomes the mask or any token; the rest stay
NO_LABEL = -100


def mask_whole_words(ids, rng, mask_id, continuation_ids, vocab_size):
    """Mask a caption's tokens by whole words.

    As in APTM's reference implementation, padding counts as words: all positions but the first can be drawn.

    Args:
        ids: token ids, the start token first, padded.
        rng: a ``random.Random``, the only source of randomness.
        mask_id: the id of the mask token.
        continuation_ids: the set of ids that continue a word (WordPiece's ``##...``).
        vocab_size: the number of token ids.

    Returns:
        ``(masked ids, positions, labels)``: lists of ints. The first is as long as ``ids``. The others have
        ``MAX_POSITIONS`` entries in the order in which they were drawn; unused entries are position 0 with the label
        -100, which the loss ignores.

    >>> import random
    >>> mask_whole_words([101, 7, 8, 9], random.Random(0), 103, {8}, 300)[1][:2]
    [1, 0]
    """
    count = min(MAX_POSITIONS, max(1, round(MASKED_FRACTION * len(ids))))
    positions = draw_positions(ids, rng, count, continuation_ids)
    masked_ids = list(ids)
    for position in positions:
        draw = rng.random()
        if draw < MASK_PROBABILITY:
            masked_ids[position] = mask_id
        elif draw < MASK_PROBABILITY + RANDOM_PROBABILITY:
            masked_ids[position] = rng.randrange(vocab_size)
    unused = MAX_POSITIONS - len(positions)
    labels = [ids[position] for position in positions]
    return masked_ids, positions + [0] * unused, labels + [NO_LABEL] * unused


def draw_positions(ids, rng, count, continuation_ids):
    """Draw ``count`` positions of ``ids``, never the first, by whole words. Only the last word can be cut."""
    order = list(range(1, len(ids)))
    rng.shuffle(order)
    drawn = {}                                  # a dict keeps the order, so the draws are the same on every machine
    for position in order:
        if len(drawn) >= count:
            break
        if position not in drawn:
            run = rng.randint(2, MAX_RUN_LENGTH) if rng.random() < RUN_PROBABILITY else 1
            drawn.update(dict.fromkeys(range(*widen_to_words(ids, position, position + run, continuation_ids))))
    positions = list(drawn)
    if len(positions) > count:
        rng.shuffle(positions)
    return positions[:count]


def widen_to_words(ids, start, end, continuation_ids):
    """Widen the run [start, end) to whole words, within positions 1 to ``len(ids)``."""
    end = min(end, len(ids))
    while start > 1 and ids[start] in continuation_ids:
        start -= 1
    while end < len(ids) and ids[end] in continuation_ids:
        end += 1
    return start, end
