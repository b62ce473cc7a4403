"""``--freeze``: parameters that do not train, selected by their names."""
from fnmatch import fnmatchcase

from torch.nn.modules.batchnorm import _BatchNorm

from utils.errors import UserError, suggest_name

ENCODER_PREFIX = 'base_model.'      # of CLIP's names in checkpoints; a pattern may omit it


def freeze_parameters(model, patterns):
    """Freeze the parameters of a model whose names match a pattern, and find the batch norms to freeze.

    A frozen parameter has no gradient, no optimizer state and no weight decay. A batch norm whose ``running_mean``
    matches is frozen as well: it normalizes by its running statistics, which do not change.

    Args:
        model: a :class:`~model.build.RetrievalModel` with all its heads.
        patterns: patterns of :mod:`fnmatch` for whole names as in checkpoints. ``base_model.`` may be omitted.

    Returns:
        ``({names of parameters that would train without the patterns}, (batch norms to keep in eval mode, ...))``

    Raises:
        UserError: a pattern matches no parameter.

    Example:
        >>> model.frozen_names, model.frozen_norms = freeze_parameters(model, ['visual.*'])    # doctest: +SKIP
    """
    training_only = model.training_only     # such as a momentum encoder, which no optimizer trains
    parameters = {name: value for name, value in model.named_parameters() if name not in training_only}
    for pattern in patterns:
        if not any(matches(name, pattern) for name in parameters):
            raise UserError(f"--freeze '{pattern}' matches no parameter{suggest_pattern(pattern, parameters)}")
    frozen = {name for name, value in parameters.items() if value.requires_grad and matches_any(name, patterns)}
    for name in frozen:
        parameters[name].requires_grad_(False)
    norms = tuple(module for name, module in model.named_modules() if isinstance(module, _BatchNorm)
                  and matches_any(f'{name}.running_mean', patterns) and f'{name}.running_mean' not in training_only)
    return frozen, norms


def matches(name, pattern):
    """Whether a pattern matches a parameter's name.

    >>> matches('base_model.visual.proj', 'visual.*'), matches('base_model.visual.proj', 'base_model.visual.proj')
    (True, True)
    >>> matches('cross_modal_transformer.resblocks.0.ln_1.bias', 'transformer.*')
    False
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name.removeprefix(ENCODER_PREFIX), pattern)


def matches_any(name, patterns):
    return any(matches(name, pattern) for pattern in patterns)


def suggest_pattern(pattern, names):
    """The end of the error for a pattern without a match: the nearest pattern of a part, or the model's parts.

    >>> suggest_pattern('visul.*', ['base_model.visual.proj', 'base_model.ln_final.bias'])
    '; did you mean visual.*?'
    >>> suggest_pattern('image', ['base_model.visual.proj', 'classifier.bias'])
    '; the model has base_model.*, classifier.*, visual.*'
    """
    parts, first_parts = set(names), set()
    for name in names:
        for short_name in {name, name.removeprefix(ENCODER_PREFIX)}:
            words = short_name.split('.')
            prefixes = ['.'.join(words[:count]) + '.*' for count in range(1, len(words))] or [short_name]
            parts.update(prefixes)
            first_parts.add(prefixes[0])
    suggestion = suggest_name(pattern, parts)
    is_near = suggestion.startswith('; did you mean')
    return suggestion if is_near else f"; the model has {', '.join(sorted(first_parts))}"
