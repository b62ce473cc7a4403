"""The vocabulary of a BERT: where it is, or from which captions it is made."""
import os

from model.aptm_weights import bert_folder
from utils.errors import UserError
from utils.wordpiece import make_vocabulary, read_vocabulary

VOCABULARY = 'vocab.txt'     # next to a run's configs.yaml, if it was built from the captions


def find_tokenizer(args, captions, read_shape):
    """Return BERT's tokenizer.

    Its vocabulary is, in this order: ``--vocab_file``, the one in the run's folder, the one next to the weights, one
    built from the training captions for a ``scratch:`` shape, or that of bert-base-uncased. A new run keeps a copy,
    except of the last one.

    Args:
        args: the options.
        captions: a function that returns the training captions, or None.
        read_shape: a function from the name of a shape to the shape.

    Raises:
        UserError: there is no vocabulary.
    """
    if args.vocab_file:
        return read_vocabulary(os.path.expanduser(args.vocab_file))
    sources = '' if args.training else args.checkpoint, args.init_from, args.pretrain_choice
    files = [file for file in sources if file and os.path.isfile(os.path.expanduser(file))]
    folders = [args.output_dir, *(os.path.dirname(os.path.expanduser(file)) for file in files)]
    for path in (os.path.join(folder, VOCABULARY) for folder in folders):
        if os.path.isfile(path):
            vocabulary = read_vocabulary(path)
            if captions is not None and path != os.path.join(args.output_dir, VOCABULARY):
                vocabulary.save(os.path.join(args.output_dir, VOCABULARY))
            return vocabulary
    if args.pretrain_choice.startswith('scratch:') and captions is not None:
        made = make_vocabulary(captions(), read_shape(args.pretrain_choice[len('scratch:'):]).vocab_size)
        made.save(os.path.join(args.output_dir, VOCABULARY))
        return made
    if args.pretrain_choice.startswith('scratch:'):
        candidates = ' nor '.join(os.path.join(folder, VOCABULARY) for folder in folders)
        raise UserError(f'there is no vocabulary: neither {candidates} is there; give the one that the run was '
                        'trained with by --vocab_file')
    return read_vocabulary(bert_folder())


def refuse_larger_vocabulary(backbone, args):
    """Raise UserError if the vocabulary is larger than the model's."""
    try:
        words = backbone.tokenizer(args).vocab_size
    except UserError:      # there is none: the code that reads captions reports it
        return
    if words > backbone.vocab_size:
        raise UserError(f'the vocabulary has {words:,} word pieces, and the model {backbone.vocab_size:,}: give the '
                        'vocabulary that its weights were trained with by --vocab_file')
