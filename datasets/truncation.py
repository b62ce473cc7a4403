"""Captions that are longer than the text length, and therefore lose their ends."""
import logging
import os

logger = logging.getLogger('Pedestal.dataset')

SHOWN = 60    # characters of a caption that are quoted


def find_truncated(captions, tokens, tokenizer):
    """Find captions of more than L tokens by their ``tokens`` [S, L]: ``[(index, how many tokens it has)]``."""
    length = tokens.shape[1]
    full = tokenizer.lengths(tokens) >= length - 1     # some tokenizers do not count the end
    counts = ((index, len(encode_fully(captions[index], tokenizer))) for index in full.nonzero().flatten().tolist())
    return [(index, count) for index, count in counts if count > length]


def encode_fully(caption, tokenizer):
    """All token ids of a caption, start and end included."""
    return tokenizer.framed(tokenizer.encode(caption), None)


def describe_truncation(captions, tokens, tokenizer, kind='captions'):
    """A sentence on the captions that lose their ends, with an example and the remedy; '' if there are none.

    Args:
        captions: texts, S of them.
        tokens: their ids, [S, L].
        kind: what the captions are called: 'training captions', 'queries'.

    Example:
        >>> from datasets.bases import tokenize
        >>> from utils.simple_tokenizer import SimpleTokenizer
        >>> tokenizer, caption = SimpleTokenizer(), 'a red coat'
        >>> print(describe_truncation([caption], tokenize(caption, tokenizer, 4)[None], tokenizer).split(';')[0])
        1 of 1 captions have more than 4 tokens (--text_length) and lose their ends: 'a red coat' (5 tokens) loses 'coat'
    """
    found = find_truncated(captions, tokens, tokenizer)
    if not found:
        return ''
    index, count = found[0]
    caption, length, longest = captions[index], tokens.shape[1], max(count for _, count in found)
    lost = lost_text(caption, length, tokenizer)
    return (f'{len(found)} of {len(captions)} {kind} have more than {length} tokens (--text_length) and lose their ends: '
            f"'{abbreviate(caption)}' ({count} tokens) loses '{abbreviate(lost)}'; write shorter ones, or train with "
            f"--text_length {longest} (OpenAI's CLIP also needs --text_positions interpolated above 77)")


def lost_text(caption, length, tokenizer):
    """The text of the tokens of a caption that do not fit into ``length`` tokens."""
    ids = tokenizer.encode(caption)
    kept, whole = tokenizer.framed(ids, length), tokenizer.framed(ids, None)
    read = len(os.path.commonprefix([kept, whole]))
    return tokenizer.decode([number for number in whole[read:] if number != tokenizer.end]).strip()


def abbreviate(text):
    text = ' '.join(text.split())
    return text if len(text) <= SHOWN else f'{text[:SHOWN]}...'


def warn_of_truncation(*arguments):
    """Log :func:`describe_truncation`."""
    if sentence := describe_truncation(*arguments):
        logger.warning('%s', sentence)
