"""Names in state dicts: prefixes that wrappers add, and names of other codebases."""
import logging

logger = logging.getLogger('Pedestal.checkpoint')

# Parts of names that torch.compile, FSDP and activation checkpointing insert for each wrapped module.
WRAPPERS = ('_orig_mod.', '_fsdp_wrapped_module.', '_checkpoint_wrapped_module.')
# Prefixes of the layouts of Pedestal, OpenAI, open_clip, Hugging Face, TBPS-CLIP, APTM, ALBEF, BERT and Swin.
KNOWN_PREFIXES = ('base_model.', 'visual.', 'transformer.resblocks.', 'text.', 'text_model.', 'vision_model.',
                  'encode_text.', 'vision_encoder.', 'visual_encoder.', 'text_encoder.', 'bert.', 'embeddings.',
                  'patch_embed.')
# TBPS-CLIP's text encoder has CLIP's names after its own prefix.
TBPS_NAMES = {'encode_text.': 'base_model.', 'visual.': 'base_model.visual.'}
# SEN's names of modules that all other codebases name as IRRA does.
SEN_NAMES = {'cross_attn_mlm.': 'cross_attn.', 'cross_modal_transformer_mlm.': 'cross_modal_transformer.'}


def strip_prefixes(weights, fits, source=''):
    """Strip the prefixes that wrappers and training code add to all names of a state dict, and log it.

    Args:
        weights: a state dict.
        fits: ``fits(names)`` says whether names are known. The shortest prefix that makes it true is stripped. If there
            is none, the names stay.
        source: the file, for the log.
    """
    unwrapped = {strip_wrappers(name): value for name, value in weights.items()}
    prefix = common_prefix(list(unwrapped), fits)
    dropped = [prefix] * bool(prefix) + [part for part in WRAPPERS if any(part in name for name in weights)]
    if not dropped or len(unwrapped) < len(weights):    # if two names become one, no wrapper made them
        return weights
    logger.info("%s: dropped '%s' from its entries' names", source or 'weights', "' and '".join(dropped))
    return {name[len(prefix):]: value for name, value in unwrapped.items()}


def common_prefix(names, fits):
    """Find the shortest common prefix without which the names fit; '' if there is none.

    Example:
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
    """Whether a name begins with a prefix of a layout that Pedestal reads."""
    return any(name.startswith(KNOWN_PREFIXES) for name in names)


def to_own_names(weights, source='', fits=is_known):
    """Rename the entries of a state dict as Pedestal does: strip prefixes, and replace TBPS-CLIP's and SEN's names."""
    weights = strip_prefixes(weights, fits, source)
    weights = {name.removeprefix('module.'): value for name, value in weights.items()}
    if any(name.startswith('encode_text.') for name in weights):
        weights = replace_prefixes(weights, TBPS_NAMES)
    return replace_prefixes(weights, SEN_NAMES)


def replace_prefixes(weights, names):
    """Replace the prefixes of the names in a state dict.

    Args:
        weights: the state dict.
        names: ``{prefix: its replacement}``; the first that fits is replaced.

    Example:
        >>> replace_prefixes({'visual.proj': 1, 'logit_scale': 2}, {'visual.': 'base_model.visual.'})
        {'base_model.visual.proj': 1, 'logit_scale': 2}
    """
    return {next((new + name[len(old):] for old, new in names.items() if name.startswith(old)), name): value
            for name, value in weights.items()}
