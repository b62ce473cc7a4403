"""Parse the identities of annotations, which are numbers or names."""
import json
import re
import unicodedata

JUNK = '-1'     # the identity of images that show nobody in Market-1501 and its successors


def canonical_identity(identity):
    r"""Normalize an identity: Unicode form, case, white space, and zeros around an integer do not distinguish people.

    >>> [canonical_identity(identity) for identity in (7, '7.0', '007', ' \uff17', 'Ann ')]
    ['7', '7', '7', '7', 'ann']
    """
    text = str(identity)
    if not text.isascii():
        visible = (letter for letter in unicodedata.normalize('NFKC', text) if unicodedata.category(letter) != 'Cf')
        text = ''.join(str(unicodedata.decimal(letter, letter)) for letter in visible)
    text = ' '.join(text.casefold().split())
    number = re.fullmatch(r'([+-]?)0*(\d+)(?:\.0*)?', text)
    return number[1].strip('+') + number[2] if number else text


def number_identities(identities):
    """Number identities: ``{identity as text: number}``.

    If all identities are integers, they keep their numbers. Otherwise all are numbered in alphabetical order. Two
    texts never get the same number.
    """
    texts = {str(identity) for identity in identities}
    if all(re.fullmatch(r'\d{1,9}', text) for text in texts) and len({int(text) for text in texts}) == len(texts):
        return {text: int(text) for text in texts}
    return {text: number for number, text in enumerate(sorted(texts))}


def spelling_variants(identities):
    """Describe each group of identities that differ only in spelling, such as 7 and 7.0.

    >>> spelling_variants(['7', 'Ann', '7.0'])
    ['the identities "7" and "7.0" differ in spelling only and count as 2 people: spell each person one way']
    """
    groups = {}
    for identity in dict.fromkeys((type(identity), identity) for identity in identities):
        groups.setdefault(canonical_identity(identity[1]), []).append(identity[1])
    return [describe_variants(group) for group in groups.values() if len(group) > 1]


def describe_variants(group):
    people = len({str(identity) for identity in group})
    count = 'as one person' if people == 1 else f'as {people} people: spell each person one way'
    written = ' and '.join(json.dumps(identity, ensure_ascii=False) for identity in group)
    return f'the identities {written} differ in spelling only and count {count}'
