"""Which activation a CLIP's weights were trained with: no tensor says it, so the files next to the weights are read."""
import logging
import os

from utils.errors import UserError
from utils.iotools import read_json
from utils.safe_yaml import read_yaml

log = logging.getLogger('Pedestal.weights')

ACTIVATIONS = ('quick_gelu', 'gelu')
USUAL = 'quick_gelu'    # of OpenAI's CLIPs, and so of the released codebases


def read_activation(path):
    """Look for the activation of the weights in ``path`` in the files next to it.

    These are a run's ``configs.yaml``, open_clip's ``open_clip_config.json`` and Hugging Face's ``config.json``.

    Returns:
        (``'quick_gelu'`` or ``'gelu'``, the file that says so); (None, None) if no file does.

    Raises:
        UserError: such a file is broken, or names an activation that CLIP's encoders do not have here.
    """
    folder = os.path.dirname(os.path.abspath(os.path.expanduser(path)))
    for name, read in READERS.items():
        file = os.path.join(folder, name)
        found = read(file) if os.path.isfile(file) else None
        if found is not None and found not in ACTIVATIONS:
            raise UserError(
                f"{file}: the activation of {os.path.basename(path)} is {found!r}, and CLIP's encoders have "
                f"{' or '.join(ACTIVATIONS)} here: choose other weights, or the nearest one by --activation")
        if found is not None:
            return found, file
    return None, None


def of_run(file):
    found = read_yaml(file).get('activation')
    return None if found == 'auto' else found


def of_open_clip(file):
    model = part_of(read_description(file), 'model_cfg')
    if model is None:
        return None
    return 'quick_gelu' if model.get('quick_gelu') is True else 'gelu'


def of_hugging_face(file):
    """transformers' CLIP has an activation for each encoder, by default quick_gelu."""
    content = read_description(file)
    towers = [part_of(content, f'{side}_config', f'{side}_config_dict') for side in ('text', 'vision')]
    if None in towers:      # of something else
        return None
    found = [tower.get('hidden_act', USUAL) for tower in towers]
    return found[0] if found[0] == found[1] else ' and '.join(map(str, found))


READERS = {'configs.yaml': of_run, 'open_clip_config.json': of_open_clip, 'config.json': of_hugging_face}


def part_of(content, *names):
    """The mapping under the first of ``names`` that has one; None if there is none."""
    found = [content.get(name) for name in names] if isinstance(content, dict) else []
    return next((part for part in found if isinstance(part, dict)), None)


def read_description(file):
    try:
        return read_json(file)
    except UserError as error:
        raise UserError(f'{error}; it can say which activation the weights next to it have: repair or remove it, or '
                        'give --activation quick_gelu or gelu') from None


def settle_activation(args):
    """Replace ``args.activation`` by ``'quick_gelu'`` or ``'gelu'``, and log which one it is and why."""
    source = source_of_weights(args)
    found, file = read_activation(source) if args.activation == 'auto' or is_resumed(args) else (None, None)
    if args.activation == 'auto':
        args.activation = found or USUAL
        reason = f'{file} says so' if found else f'assumed: {why_assumed(source)}'
    elif is_resumed(args) and args.activation != (found or USUAL):
        raise UserError(f'--activation {args.activation}: the run of {source} has {found or USUAL}; leave the option out, '
                        'or start a new run with --init_from')
    else:
        reason = 'the option activation says so'
    log.info('activation of the encoders: %s (%s)', args.activation, reason)


def source_of_weights(args):
    """The file, or the name, that the encoders' weights come from."""
    if not args.training:
        return vars(args).get('checkpoint') or args.pretrain_choice
    return args.resume_ckpt_file if args.resume else args.init_from or args.pretrain_choice


def is_resumed(args):
    return args.training and args.resume


def why_assumed(source):
    if source.startswith('scratch:'):
        return 'the weights are random'
    if not os.path.isfile(os.path.expanduser(source)):
        return "OpenAI's CLIPs have it"
    return (f"OpenAI's CLIPs have it, and neither {' nor '.join(READERS)} next to {source} says otherwise; "
            "weights that were trained with GELU, as most of open_clip's were, need --activation gelu")
