"""Paths in messages and files."""
import os

# Copies of --vocab_file in a run's folder: BERT's vocabulary, and the folder of open_clip's tokenizer.
VOCABULARY, TOKENIZER = VOCABULARY_COPIES = 'vocab.txt', 'tokenizer'


def relative_path(path, start=os.curdir):
    """Return a path relative to ``start``, or the absolute path if both are on different drives of Windows.

    Example:
        >>> relative_path('logs/run/best.pth', 'logs')
        'run/best.pth'
    """
    try:
        return os.path.relpath(path, start)
    except ValueError:      # os.path.relpath cannot change the drive
        return os.path.abspath(path)
