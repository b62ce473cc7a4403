"""The base of a tuned run: the file of pretrained weights whose parameters ``--tuning`` freezes.

``best.pth`` of a tuned run holds the trained parameters, and the name and checksum of the base. Code that reads it gets
the frozen parameters from the base (:func:`add_base_weights`).
"""
import logging
import os

from model.backbones import backbone_class
from model.clip_weights import OPENAI_SHA256, is_torchscript
from utils.errors import UserError
from utils.options import replace_options
from utils.weight_files import compute_sha256

logger = logging.getLogger('Pedestal.model')


def describe_tuned_from(args, model, checkpoint=None):
    """Describe what a tuned run starts from, as its checkpoints record it.

    Args:
        args: the options of the run.
        model: its model.
        checkpoint: the checkpoint of ``--resume`` or ``--init_from`` as it is in the file; None if there is none.

    Returns:
        ``{'name': the tuning, 'base': ...}``; None without a tuning. The base is ``{'name': a --pretrain_choice,
        'sha256': the checksum of its file}``. It is None if no file holds the frozen parameters and nothing else: they
        are random, or the run starts from a whole model that was tuned. The run's checkpoints hold them then.
    """
    if args.tuning == 'none':
        return None
    tuned = checkpoint.get('tuning') if checkpoint else None
    if tuned and (args.resume or not tuned['is_whole']):
        base = tuned['base']        # of the tuned run that this run continues
    elif checkpoint and not checkpoint['model'].keys().isdisjoint(model.tuning.parameter_names):
        base = None                 # --init_from names a whole model that was tuned
    else:
        base = describe_base(args)
    return {'name': args.tuning, 'base': base}


def describe_base(args):
    """Return name and checksum of the file of ``--init_from`` or ``--pretrain_choice``; None without such a file."""
    backbone = backbone_class(args)
    path = args.init_from or backbone.weights_file(args)
    if path is None:
        return None
    sha256 = compute_sha256(path)
    if is_torchscript(path) and sha256 not in OPENAI_SHA256.values():
        return None         # reading it again needs --trust_archive, which only the command line can give
    # A name such as ViT-B/16 stays, because its file may be elsewhere on another machine.
    is_path = args.init_from or args.pretrain_choice.endswith(path)
    name = backbone.choice_of_file(args, os.path.abspath(path)) if is_path else args.pretrain_choice
    return {'name': name, 'sha256': sha256}


def add_base_weights(checkpoint, args, source):
    """Add the frozen parameters of the encoders to the checkpoint of a tuned run that lacks them.

    Args:
        checkpoint: the content of a checkpoint. Others than tuned ones are returned unchanged.
        args: the options of the run. ``base_weights`` is another file of the base, or ''.
        source: the file of the checkpoint, for messages.

    Returns:
        The checkpoint with the whole state dict under ``'model'``.

    Raises:
        UserError: the checkpoint was tuned in another way than ``--tuning`` says, or its base is missing or another
            file.
    """
    tuned = checkpoint.get('tuning')
    check_tuning(tuned, args, source)
    if tuned is None or tuned['is_whole']:
        return checkpoint
    backbone, base = backbone_class(args), tuned['base']
    choice = backbone.choice_of_file(args, args.base_weights) if args.base_weights else base['name']
    # The folder of the checkpoint has the description of an open_clip model.
    options = replace_options(args, training=True, resume=False, init_from='', pretrain_choice=choice,
                              output_dir=os.path.dirname(os.path.abspath(source)))
    check_base_file(find_base_file(backbone, options, base, source), base, source)
    frozen = backbone.build(options).state_dict()
    return {**checkpoint, 'model': {**frozen, **checkpoint['model']}, 'tuning': {**tuned, 'is_whole': True}}


def check_tuning(tuned, args, source):
    """Raise :class:`UserError` if a checkpoint was tuned in another way than ``--tuning`` says.

    Args:
        tuned: the entry ``'tuning'`` of the checkpoint; None if it was not tuned, or by a reference implementation.
    """
    if tuned is None or tuned['name'] == args.tuning:
        return
    raise UserError(f"{source} was tuned with --tuning {tuned['name']}, and the options have --tuning {args.tuning}: "
                    f"give --tuning {tuned['name']}, or another checkpoint (python -m run_scripts.export --to full "
                    '--merge writes one without LoRA)')


def find_base_file(backbone, options, base, source):
    """Return the path of the base's file, and say how to name another if it is missing."""
    try:
        return backbone.weights_file(options)
    except UserError as error:
        raise UserError(f'{source} holds a tuning of {base["name"]}, and its file with the sha256 '
                        f'{base["sha256"][:12]}... is missing ({error}): name it with --base_weights') from None


def check_base_file(path, base, source):
    """Raise :class:`UserError` unless the file has the checksum that the tuned checkpoint names."""
    sha256 = compute_sha256(path)
    if sha256 != base['sha256']:
        raise UserError(f'{source} holds a tuning of {base["name"]} with the sha256 {base["sha256"][:12]}..., and '
                        f'{path} has {sha256[:12]}...: name the right file with --base_weights')
    logger.info('base of the tuning: %s', path)
