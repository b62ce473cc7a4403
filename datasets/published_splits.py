"""Compare the size of a split with the published one.

Results on another split are not comparable with published results. Each dataset's class holds the counts of its paper
in ``published``.
"""
KINDS = ('identities', 'images', 'captions')


def differing_counts(counts, known):
    """``[(kind, count, known count)]`` of the kinds whose counts differ. A count of None is not compared.

    >>> differing_counts((200, 8, 2000), (200, 1000, 2000))
    [('images', 8, 1000)]
    """
    return [(kind, count, known_count) for kind, count, known_count in zip(KINDS, counts, known or (None,) * 3)
            if None not in (count, known_count) and count != known_count]


def split_note(dataset, split, counts):
    """Describe how ``counts`` differ from the published split; '' if they are equal or nothing is published.

    Args:
        dataset: a :class:`datasets.annotation.BaseDataset`.
        split: train, val or test.
        counts: (identities, images, captions). None is not compared.

    >>> class Small: name, published, evaluates_attributes = 'RSTPReid', {'test': (200, 1000, 2000)}, False
    >>> split_note(Small, 'test', (4, 8, 16))
    'not the published test split of RSTPReid: 4 identities (published: 200), 8 images (1000), 16 captions (2000)'
    """
    if dataset.evaluates_attributes:        # captions are prompts of attributes
        counts = (*counts[:2], None)
    differing = differing_counts(counts, dataset.published.get(split))
    if not differing:
        return ''
    texts = [f"{count} {kind} ({'published: ' * (number == 0)}{known})"
             for number, (kind, count, known) in enumerate(differing)]
    return f"not the published {split} split of {dataset.name}: {', '.join(texts)}"
