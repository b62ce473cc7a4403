"""Names in state dicts: what wrappers add to them, and the released codebases' names for what has another name here."""
import logging

logger = logging.getLogger('Pedestal.checkpoint')

# Parts of names that torch.compile, FSDP and activation checkpointing put in, wherever a wrapped module is.
WRAPPERS = ('_orig_mod.', '_fsdp_wrapped_module.', '_checkpoint_wrapped_module.')
# First parts of names that readers know: ours, OpenAI's, open_clip's, Hugging Face's, TBPS-CLIP's, APTM's, BERT's, Swin's.
KNOWN = ('base_model.', 'visual.', 'transformer.resblocks.', 'text.', 'text_model.', 'vision_model.', 'encode_text.',
         'vision_encoder.', 'text_encoder.', 'bert.', 'embeddings.', 'patch_embed.')
# TBPS-CLIP's text encoder has CLIP's bare names after one of its own.
TBPS_NAMES = {'encode_text.': 'base_model.', 'visual.': 'base_model.visual.'}
# Names of SEN's code for what every other codebase calls by IRRA's.
SEN_NAMES = {'cross_attn_mlm.': 'cross_attn.', 'cross_modal_transformer_mlm.': 'cross_modal_transformer.'}


def without_prefixes(weights, fits, source=''):
    """Strip what wrappers and training code put before all names of a state dict, and say so in the log.

    Args:
        weights: a state dict.
        fits: ``fits(names)`` says whether names can be read. The shortest prefix that makes it true is stripped; if
            there is none, the names stay.
        source: the file that the log names.
    """
    unwrapped = {strip_wrappers(name): value for name, value in weights.items()}
    prefix = common_prefix(list(unwrapped), fits)
    dropped = [prefix] * bool(prefix) + [part for part in WRAPPERS if any(part in name for name in weights)]
    if not dropped or len(unwrapped) < len(weights):    # two names that became one were no wrapper's
        return weights
    logger.info("%s: dropped '%s' from its entries' names", source or 'weights', "' and '".join(dropped))
    return {name[len(prefix):]: value for name, value in unwrapped.items()}


def common_prefix(names, fits):
    """The shortest prefix of all names without which they fit; '' if there is none.

    >>> common_prefix(['module.model.visual.proj', 'module.model.text_projection'], is_known)
    'module.model.'
    """
    prefix = ''
    while names and not fits(names):
        part = names[0].partition('.')[0] + '.'
        if not all(name.startswith(part) and name != part for name in names):
            return ''
        prefix, names = prefix + part, [name[len(part):] for name in names]
    return prefix


def strip_wrappers(name):
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, '')
    return name


def is_known(names):
    """Whether some of the names begin as a layout does that Pedestal reads."""
    return any(name.startswith(KNOWN) for name in names)


def to_own_names(weights, source='', fits=is_known):
    """A state dict by the names that Pedestal reads: without prefixes, and with TBPS-CLIP's and SEN's names replaced."""
    weights = without_prefixes(weights, fits, source)
    weights = {name.removeprefix('module.'): value for name, value in weights.items()}
    if any(name.startswith('encode_text.') for name in weights):
        weights = replace_prefixes(weights, TBPS_NAMES)
    return replace_prefixes(weights, SEN_NAMES)


def replace_prefixes(weights, names):
    """A state dict whose names begin as ``names`` (``{prefix: its replacement}``, the first that fits) says.

    >>> replace_prefixes({'visual.proj': 1, 'logit_scale': 2}, {'visual.': 'base_model.visual.'})
    {'base_model.visual.proj': 1, 'logit_scale': 2}
    """
    return {next((new + name[len(old):] for old, new in names.items() if name.startswith(old)), name): value
            for name, value in weights.items()}
