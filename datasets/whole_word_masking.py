"""APTM's masking of captions for BERT: whole words and short runs of them (X-VLM, ICML 2022, after SpanBERT)."""
CHOSEN, MOST = 0.25, 10          # the share of a caption's places, and the most of them
RUNS, LONGEST = 0.2, 3           # how often a run of 2 to LONGEST tokens is taken
MASKED, RANDOM = 0.8, 0.1        # become the mask, any token; the others stay
NO_LABEL = -100


def mask_whole_words(ids, rng, mask_id, continues, vocab_size):
    """``(masked ids, places, labels)`` of a caption: lists of ints, the first as long as ``ids``, the others ``MOST`` long.

    As in the released training, padding counts as words: the places are drawn from all of ``ids`` but the first. ``places`` are in the
    order in which they were drawn, and filled up with place 0 and the label -100, which the loss leaves out.

    Args:
        ids: token ids, the start first, padded.
        rng: a ``random.Random``, the only source of what is drawn.
        continues: set of the ids that continue a word (WordPiece's ``##...``).

    >>> import random
    >>> mask_whole_words([101, 7, 8, 9], random.Random(0), 103, {8}, 300)[1][:2]
    [1, 0]
    """
    count = min(MOST, max(1, round(CHOSEN * len(ids))))
    places = draw_positions(ids, rng, count, continues)
    masked = list(ids)
    for place in places:
        draw = rng.random()
        if draw < MASKED:
            masked[place] = mask_id
        elif draw < MASKED + RANDOM:
            masked[place] = rng.randrange(vocab_size)
    rest = MOST - len(places)
    return masked, places + [0] * rest, [ids[place] for place in places] + [NO_LABEL] * rest


def draw_positions(ids, rng, count, continues):
    """``count`` places of ``ids`` but the first, in whole words, unless the last of them is cut to the count."""
    order = list(range(1, len(ids)))
    rng.shuffle(order)
    taken = {}                                  # a dict keeps the order, and so the draw, the same on every machine
    for place in order:
        if len(taken) >= count:
            break
        if place not in taken:
            run = rng.randint(2, LONGEST) if rng.random() < RUNS else 1
            taken.update(dict.fromkeys(range(*widen_to_words(ids, place, place + run, continues))))
    places = list(taken)
    if len(places) > count:
        rng.shuffle(places)
    return places[:count]


def widen_to_words(ids, start, end, continues):
    """The run [start, end) widened to whole words, without the first place and what lies behind the last."""
    end = min(end, len(ids))
    while start > 1 and ids[start] in continues:
        start -= 1
    while end < len(ids) and ids[end] in continues:
        end += 1
    return start, end
