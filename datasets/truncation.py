"""Warn about captions that are longer than the text length and therefore are truncated."""
import logging
import os

logger = logging.getLogger('Pedestal.dataset')

MAX_QUOTED_CHARACTERS = 60


def find_truncated(captions, tokens, tokenizer):
    """Find captions of more than L tokens by their ``tokens`` [S, L]: ``[(index, number of tokens)]``."""
    length = tokens.shape[1]
    may_be_truncated = tokenizer.lengths(tokens) >= length - 1     # some tokenizers do not count the end token
    indices = may_be_truncated.nonzero().flatten().tolist()
    counts = ((index, len(encode_fully(captions[index], tokenizer))) for index in indices)
    return [(index, count) for index, count in counts if count > length]


def encode_fully(caption, tokenizer):
    """Encode a caption to all its token ids, start and end included."""
    return tokenizer.add_special_tokens(tokenizer.encode(caption), None)


def describe_truncation(captions, tokens, tokenizer, kind='captions'):
    """Describe the captions that are truncated, with an example and the remedy; '' if there are none.

    Args:
        captions: S texts.
        tokens: their ids, [S, L].
        tokenizer: the tokenizer that produced the ids.
        kind: the name of the captions in the sentence: 'training captions', 'queries'.

    Example:
        >>> from datasets.text import tokenize
        >>> from utils.simple_tokenizer import SimpleTokenizer
        >>> tokenizer, caption = SimpleTokenizer(), 'red coat'
        >>> print(describe_truncation([caption], tokenize(caption, tokenizer, 3)[None], tokenizer).split(';')[0])
        1 of 1 captions have more than 3 tokens (--text_length) and lose their ends: 'red coat' (4 tokens) loses 'coat'
    """
    truncated = find_truncated(captions, tokens, tokenizer)
    if not truncated:
        return ''
    index, count = truncated[0]
    caption, length, longest = captions[index], tokens.shape[1], max(count for _, count in truncated)
    lost = lost_text(caption, length, tokenizer)
    return (f'{len(truncated)} of {len(captions)} {kind} have more than {length} tokens (--text_length) and lose their '
            f"ends: '{abbreviate(caption)}' ({count} tokens) loses '{abbreviate(lost)}'; write shorter ones, or train "
            f"with --text_length {longest} (OpenAI's CLIP also needs --text_positions interpolated above 77)")


def lost_text(caption, length, tokenizer):
    """The text of a caption's tokens that do not fit into ``length`` tokens."""
    ids = tokenizer.encode(caption)
    truncated, full = tokenizer.add_special_tokens(ids, length), tokenizer.add_special_tokens(ids, None)
    common = len(os.path.commonprefix([truncated, full]))
    return tokenizer.decode([token for token in full[common:] if token != tokenizer.end_id]).strip()


def abbreviate(text):
    text = ' '.join(text.split())
    return text if len(text) <= MAX_QUOTED_CHARACTERS else f'{text[:MAX_QUOTED_CHARACTERS]}...'


def warn_of_truncation(*arguments):
    """Log :func:`describe_truncation`."""
    if sentence := describe_truncation(*arguments):
        logger.warning('%s', sentence)
