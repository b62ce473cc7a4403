"""Masking of captions for masked language modelling."""
CHOSEN = 0.15   # of the content tokens (Devlin et al., NAACL 2019)


def mask_tokens(ids, rng, mask_id, masked_rate=0.8, unchanged_rate=0.1):
    """Choose 15% of a caption's content tokens and hide them: ``(masked ids, labels)``, lists as long as ``ids``.

    Content tokens are those between start and end: ids from 1 to ``mask_id - 1`` (0 pads; start and end lie above the mask). Of
    the chosen ones the share ``masked_rate`` becomes ``mask_id``, ``unchanged_rate`` stays as it is, and the others become a
    random content id. Where chance chooses none, the first content token becomes the mask.

    Args:
        ids: a list of token ids.
        rng: a ``random.Random``; nothing else decides the result.

    Returns:
        The masked ids, and the labels: the original id where a token was chosen, else 0.
    """
    ids, labels = list(ids), [0] * len(ids)
    content = [place for place, token in enumerate(ids) if 0 < token < mask_id]
    for place in content:
        if rng.random() < CHOSEN:
            labels[place] = ids[place]
            ids[place] = hidden(ids[place], rng, mask_id, masked_rate, unchanged_rate)
    if content and not any(labels):
        labels[content[0]], ids[content[0]] = ids[content[0]], mask_id
    return ids, labels


def hidden(token, rng, mask_id, masked_rate, unchanged_rate):
    """What stands in a chosen token's place."""
    draw = rng.random()
    if draw < masked_rate:
        return mask_id
    if draw < masked_rate + unchanged_rate:
        return token
    return rng.randrange(1, mask_id)
