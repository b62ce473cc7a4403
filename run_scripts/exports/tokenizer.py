"""Write a tokenizer's files, for every format of run_scripts/export.py."""
import json
import os

from utils.iotools import atomic_write


def write_tokenizer(tokenizer, folder):
    """Write ``vocab.json`` and ``merges.txt`` of byte-pair encoding, or ``vocab.txt`` of BERT.

    Returns:
        The names of the files; [] for the tokenizer of a library, which comes with the library.
    """
    if hasattr(tokenizer, 'save'):
        tokenizer.save(os.path.join(folder, 'vocab.txt'))
        return ['vocab.txt']
    if not hasattr(tokenizer, 'ranks'):
        return []
    with atomic_write(os.path.join(folder, 'vocab.json')) as file:
        json.dump(tokenizer.encoder, file)
    with atomic_write(os.path.join(folder, 'merges.txt')) as file:
        file.write('#version: 0.2\n' + ''.join(f'{" ".join(merge)}\n' for merge in tokenizer.ranks))
    return ['vocab.json', 'merges.txt']
