"""The activation that a CLIP was trained with. No tensor holds it, so it is read from the files next to the weights."""
import logging
import os

from utils.errors import UserError
from utils.iotools import read_json
from utils.safe_yaml import read_yaml

log = logging.getLogger('Pedestal.weights')

ACTIVATIONS = ('quick_gelu', 'gelu')
DEFAULT = 'quick_gelu'    # the activation of OpenAI's CLIPs


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
        activation = read(file) if os.path.isfile(file) else None
        if activation is not None and activation not in ACTIVATIONS:
            raise UserError(
                f"{file}: the activation of {os.path.basename(path)} is {activation!r}, and CLIP's encoders have "
                f"{' or '.join(ACTIVATIONS)} here: choose other weights, or the nearest one by --activation")
        if activation is not None:
            return activation, file
    return None, None


def read_run(file):
    activation = read_yaml(file).get('activation')
    return None if activation == 'auto' else activation


def read_open_clip(file):
    model = first_mapping(read_description(file), 'model_cfg')
    if model is None:
        return None
    return 'quick_gelu' if model.get('quick_gelu') is True else 'gelu'


def read_hugging_face(file):
    """Read transformers' format, which has an activation for each encoder, by default quick_gelu."""
    content = read_description(file)
    towers = [first_mapping(content, f'{side}_config', f'{side}_config_dict') for side in ('text', 'vision')]
    if None in towers:      # not a CLIP
        return None
    text, vision = (tower.get('hidden_act', DEFAULT) for tower in towers)
    return text if text == vision else f'{text} and {vision}'


READERS = {'configs.yaml': read_run, 'open_clip_config.json': read_open_clip, 'config.json': read_hugging_face}


def first_mapping(content, *names):
    """Return the mapping under the first of ``names`` that has one; None if there is none."""
    values = [content.get(name) for name in names] if isinstance(content, dict) else []
    return next((part for part in values if isinstance(part, dict)), None)


def read_description(file):
    try:
        return read_json(file)
    except UserError as error:
        raise UserError(f'{error}; it can say which activation the weights next to it have: repair or remove it, or '
                        'give --activation quick_gelu or gelu') from None


def resolve_activation(args):
    """Return ``'quick_gelu'`` or ``'gelu'`` for ``args.activation``, and log which one it is and why."""
    source, is_resumed = args.config.model.weights, args.training and args.resume
    found, file = read_activation(source) if args.activation == 'auto' or is_resumed else (None, None)
    activation = found or DEFAULT if args.activation == 'auto' else args.activation
    if args.activation == 'auto':
        reason = f'{file} says so' if found else f'assumed: {explain_assumption(source)}'
    elif is_resumed and activation != (found or DEFAULT):
        raise UserError(f'--activation {activation}: the run of {source} has {found or DEFAULT}; leave the '
                        'option out, or start a new run with --init_from')
    else:
        reason = 'the option activation says so'
    log.info('activation of the encoders: %s (%s)', activation, reason)
    return activation


def explain_assumption(source):
    if source.startswith('scratch:'):
        return 'the weights are random'
    if not os.path.isfile(os.path.expanduser(source)):
        return "OpenAI's CLIPs have it"
    return (f"OpenAI's CLIPs have it, and neither {' nor '.join(READERS)} next to {source} says otherwise; "
            "weights that were trained with GELU, as most of open_clip's were, need --activation gelu")
