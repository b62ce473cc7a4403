"""The vocabulary of a BERT: where it is, or from which captions it is made."""
import os

from model.aptm_weights import bert_folder
from utils.errors import UserError
from utils.paths import VOCABULARY
from utils.wordpiece import make_vocabulary, read_vocabulary


def find_tokenizer(args, captions, read_shape):
    """Return BERT's tokenizer.

    Its vocabulary is, in this order: ``--vocab_file``, the one in the run's folder, the one next to the weights, one
    built from the training captions for a ``scratch:`` shape, or that of bert-base-uncased. A new run keeps a copy,
    except of the last one. A resumed run reads its copy instead of ``--vocab_file``, which may have moved or changed;
    :func:`utils.options.parse_test_options` does so for an evaluation.

    Args:
        args: the options.
        captions: a function that returns the training captions, or None.
        read_shape: a function from the name of a shape to the shape.

    Raises:
        UserError: there is no vocabulary.
    """
    sources = '' if args.training else args.checkpoint, args.init_from, args.pretrain_choice
    files = [file for file in sources if file and os.path.isfile(os.path.expanduser(file))]
    folders = [args.output_dir, *(os.path.dirname(os.path.expanduser(file)) for file in files)]
    stored = [path for path in (os.path.join(folder, VOCABULARY) for folder in folders) if os.path.isfile(path)]
    copy = os.path.join(args.output_dir, VOCABULARY)
    uses_copy = args.training and args.resume and copy in stored
    given = os.path.expanduser(args.vocab_file) if args.vocab_file and not uses_copy else None
    if given or stored:
        path = given or stored[0]
        vocabulary = read_vocabulary(path)
        if captions is not None and path != copy:
            vocabulary.save(copy)
        return vocabulary
    if args.pretrain_choice.startswith('scratch:') and captions is not None:
        made = make_vocabulary(captions(), read_shape(args.pretrain_choice[len('scratch:'):]).vocab_size)
        made.save(copy)
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
