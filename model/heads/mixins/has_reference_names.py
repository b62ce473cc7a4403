"""Heads whose checkpoints must load in a reference implementation with other names."""


class HasReferenceNames:
    """A head whose method's reference implementation names parameters differently, or stores some of them twice.

    Attributes:
        reference_names: {prefix of a parameter's name: prefix in the reference implementation}.
        reference_copies: {prefix: prefix of the original} of entries that checkpoints hold twice, because the
            reference implementation reads both.
    """

    reference_names = {}
    reference_copies = {}
