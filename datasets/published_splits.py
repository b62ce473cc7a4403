"""Is a split the published one? A figure of another split compares with no published figure.

Each dataset's class holds the counts of its paper, ``published``; this is where counts are compared with them.
"""
KINDS = ('identities', 'images', 'captions')


def differing_counts(counts, known):
    """``[(kind, count, known count)]`` of the kinds whose counts differ. None, in either, is not compared.

    >>> differing_counts((200, 8, 2000), (200, 1000, 2000))
    [('images', 8, 1000)]
    """
    return [(kind, count, other) for kind, count, other in zip(KINDS, counts, known or (None,) * 3)
            if None not in (count, other) and count != other]


def split_note(dataset, split, counts):
    """A sentence if ``counts`` are not those of the published split; '' if they are, or if nothing is published.

    Args:
        dataset: a :class:`datasets.bases.BaseDataset`.
        split: train, val or test.
        counts: (identities, images, captions); None is not compared.

    >>> class Small: name, published, evaluates_attributes = 'RSTPReid', {'test': (200, 1000, 2000)}, False
    >>> split_note(Small, 'test', (4, 8, 16))
    'not the published test split of RSTPReid: 4 identities (published: 200), 8 images (1000), 16 captions (2000)'
    """
    if dataset.evaluates_attributes:        # its captions are prompts of attributes
        counts = (*counts[:2], None)
    differing = differing_counts(counts, dataset.published.get(split))
    if not differing:
        return ''
    texts = [f"{count} {kind} ({'published: ' * (place == 0)}{known})" for place, (kind, count, known) in enumerate(differing)]
    return f"not the published {split} split of {dataset.name}: {', '.join(texts)}"
