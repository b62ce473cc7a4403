"""Heads: training objectives, one per class, selected by name in ``--loss_names``.

To add a method, add a file with a :class:`Head` to this folder; no other file changes. ``docs/adding_a_method.md``
explains a complete example. Importing this package does not import PyTorch (:mod:`utils.declarations`).
"""
import functools
import importlib
import pkgutil
import sys

from model.heads.mixins import (  # noqa: F401
    AddsEmbedding, BarPanels, DrawsAttentionMaps, EnabledByOptions, HasPairLosses, HasReferenceNames, HasReport,
    HasSchedule, HasTrainingOnlyParts, HeadReport, ImageTable, PredictsAttributes, PreparesOnHost, RefinesEmbedding,
    ScoresPairs, SelectsCleanPairs, TrainsInMicroBatches, TransformsBatch, UsesAllGather,
)
from utils import options
from utils.declarations import ImportNeededError, is_pytorch_loaded, load_plugin
from utils.errors import UserError, suggest_name
from utils.help_pages import Topic, first_sentence, own_docstring

EXPORTED = dict.fromkeys(('Head', 'head_error_context', 'describe_head'), 'model.heads.head')


def __getattr__(name):
    """Import what needs PyTorch on first use: ``from model.heads import Head``."""
    if name in EXPORTED:
        return getattr(importlib.import_module(EXPORTED[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def head_base():
    """Return :class:`Head`, or its declaration before PyTorch is imported."""
    return load_plugin('model.heads.head').Head


def reference_loss_names():
    """Loss names of reference implementations that mean something else here.

    Returns:
        {loss name: what to write instead}, of every file's ``REFERENCE_LOSS_NAMES``.
    """
    modules = dict.fromkeys(load_plugin(head.__module__) for head in head_classes())
    return {name: advice for module in modules for name, advice in getattr(module, 'REFERENCE_LOSS_NAMES', {}).items()}


# Losses of IRRA's forks that fail in the reference implementation; see docs/options.md.
REFUSED = {
    'fuse': "the loss 'fuse' never worked: SEN's reference implementation fails with it, and the results of SEN's "
            'paper do not use it; remove it from --loss_names',
    'mim': "the loss 'mim' never worked: AGM's reference implementation fails with it, and AGM's results do not use "
           'it; remove it from --loss_names',
}
IMPORT_ERRORS = {}      # {name of a file in this folder: why it is skipped}
NAME_CONFLICTS = {}     # {loss name that several files define: error message}
BACKBONE_HEADS = {}     # {backbone: {loss name: Head class}} of heads that support one backbone only


def load_head_modules():
    """Load the modules of this folder. A module that raises is skipped and reported once."""
    modules = []
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg):
        try:
            modules.append(load_plugin(f'{__name__}.{name}'))
        except (Exception, SystemExit) as error:  # a user's file can raise anything
            skip_file(name, error)
    return modules


def skip_file(file, error):
    """Report a broken file once. The losses of all other files still work.

    Raises:
        ImportNeededError: if only the declarations were read (:mod:`utils.declarations`). The file itself may be
            correct.
    """
    if not is_pytorch_loaded():
        raise ImportNeededError(f'{file}: {error}') from error
    if file not in IMPORT_ERRORS:
        kind = '' if isinstance(error, UserError) else f'{type(error).__name__}: '
        IMPORT_ERRORS[file] = ' '.join(f'{kind}{error}'.split())
        print(f'model/heads/{file}.py is skipped, and its losses are unknown: {IMPORT_ERRORS[file]}',
              file=sys.stderr, flush=True)


def registry():
    """All heads that support any backbone; fills ``BACKBONE_HEADS`` with the others.

    Returns:
        {loss name: Head class}. Before PyTorch is imported, classes are declarations
        (:func:`~utils.declarations.load_declarations`).
    """
    return collect_heads(is_pytorch_loaded())


@functools.lru_cache(maxsize=1)
def collect_heads(imported):
    """Compute :func:`registry` once for declarations, and again after PyTorch is imported."""
    heads, parser = {}, options.build_core_parser()
    BACKBONE_HEADS.clear()
    for module in load_head_modules():
        try:
            check_aliases(module)
            heads.update(collect_module_heads(module, heads, parser))
        except (Exception, SystemExit) as error:
            skip_file(module.__name__.rsplit('.', 1)[1], error)
    return heads


registry.cache_clear = collect_heads.cache_clear


def collect_module_heads(module, known_heads, parser):
    """Collect the heads of one file that support any backbone; adds the others to ``BACKBONE_HEADS``.

    Args:
        module: the file's module.
        known_heads: {loss name: Head class} of the files before it.
        parser: parser with the options of the files before it; the file's options are added.

    Returns:
        {loss name: Head class}.

    Raises:
        Exception: the file conflicts with others, for example by adding an option that exists.
    """
    heads, file_parser, base = {}, options.Parser(prog=module.__name__), head_base()
    for head in vars(module).values():
        if not (isinstance(head, type) and issubclass(head, base) and head.names) or head.__module__ != module.__name__:
            continue    # no head, or imported from another file
        by_name = BACKBONE_HEADS.setdefault(head.backbone, {}) if head.backbone else heads
        check_names(head, by_name if head.backbone else {**known_heads, **heads})
        by_name.update(dict.fromkeys(head.names, head))
        head.add_options(file_parser.add_argument_group(head.__name__))
        head.add_options(parser.add_argument_group(head.__name__))
    file_parser.format_help()     # fails now if a help text has a stray %
    return heads


def check_names(head, known_heads):
    """Raise UserError if a head's names are invalid or belong to one of the known heads."""
    names = head.names
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise UserError(f"{head.__name__}.names must be a tuple of texts, such as names = ('pull',)")
    for name in names:
        if not name or set(name) & set('+ '):
            raise UserError(f"{head.__name__} cannot have the name '{name}': --loss_names joins names with + and "
                            'ignores spaces; use a name without them')
        if name in known_heads and known_heads[name] is not head:
            NAME_CONFLICTS[name] = (f"the loss name '{name}' is defined by both {known_heads[name].__module__} and "
                                    f'{head.__module__}; rename one of them')
            raise UserError(NAME_CONFLICTS[name])


def check_aliases(module):
    """Raise UserError if a file's ``ALIASES`` are not {name: losses joined by +}."""
    by_name = getattr(module, 'ALIASES', {})
    if not isinstance(by_name, dict) or not all(isinstance(text, str) for pair in by_name.items() for text in pair):
        raise UserError("ALIASES must be a dict of texts, such as {'amm': 'mlm+attribute'}")


@functools.lru_cache(maxsize=None)
def aliases():
    """All files' ``ALIASES``: {name: the losses that it stands for, joined by +}."""
    modules = dict.fromkeys(load_plugin(head.__module__) for head in head_classes())
    return {name: losses for module in modules for name, losses in getattr(module, 'ALIASES', {}).items()}


def head_classes():
    """All Head classes in a fixed order: those with loss names, then those that only options enable."""
    named = list(dict.fromkeys([*registry().values(),
                                *(head for heads in BACKBONE_HEADS.values() for head in heads.values())]))
    modules, base = dict.fromkeys(load_plugin(head.__module__) for head in named), head_base()
    classes = [(module, value) for module in modules for value in vars(module).values()
               if isinstance(value, type) and issubclass(value, base)]
    return named + [head for module, head in classes if head.__module__ == module.__name__
                    and not head.names and issubclass(head, EnabledByOptions)]


def heads_with_report():
    """The Head classes that have a report for test.py."""
    return [head for head in head_classes() if issubclass(head, HasReport)]


def add_report_flags(parser):
    """Add the report flags of all heads, whether a run uses the head or not, and the options of their reports."""
    for head in heads_with_report():
        parser.add_argument(f'--{head.report_flag}', nargs='?', const=True, default=False, metavar='FIGURE',
                            help=f'{head.report_help}; FIGURE is the file of the figure (default: '
                                 f'{head.report_flag}.png next to the checkpoint)')
        head.add_report_options(parser)


def heads_for_backbone(backbone):
    """The heads that support a backbone: {loss name: Head class}."""
    return {**registry(), **BACKBONE_HEADS.get(backbone, {})}


def active_heads(args):
    """The Head classes that ``args`` select: those of ``--loss_names`` in its order, then those that options enable."""
    named = parse_loss_names(args.loss_names, args.backbone)
    return named + [head for head in head_classes()
                    if head not in named and head.backbone in ('', args.backbone)
                    and issubclass(head, EnabledByOptions) and head.is_enabled(args)]


def parse_loss_names(loss_names, backbone='clip'):
    """Parse ``--loss_names``.

    A loss that an alias stands for may be named next to the alias; it counts once.

    Args:
        loss_names: names joined by +, such as ``'sdm+mlm+id'``.
        backbone: the name of the backbone.

    Returns:
        The Head classes, in the same order.

    Raises:
        UserError: a name is unknown or repeated.
    """
    heads, seen, supported = [], set(), heads_for_backbone(backbone)
    known = {**supported, **aliases()}
    names = str(loss_names).replace(' ', '').split('+')
    reference_name = next((name for name in names if name in reference_loss_names()), None)
    if reference_name:
        raise UserError(f"--loss_names '{loss_names}' {reference_loss_names()[reference_name]}")
    for name in names:
        if name in REFUSED or name in NAME_CONFLICTS:
            raise UserError(REFUSED.get(name) or NAME_CONFLICTS[name])
        other_backbones = [other for other, by_name in BACKBONE_HEADS.items() if name in by_name]
        if name not in known and other_backbones:
            raise UserError(f"unknown loss '{name}' for --backbone {backbone}: it needs --backbone "
                            f"{' or '.join(other_backbones)}; remove it from --loss_names, or change --backbone")
        if name not in known:
            raise UserError(f"unknown loss '{name}' in --loss_names '{loss_names}'{suggest_name(name, known)}")
        if name in seen:
            raise UserError(f"the loss '{name}' is named twice in --loss_names '{loss_names}'; remove one")
        seen.add(name)
        for loss in aliases().get(name, name).split('+'):
            if loss not in supported:
                raise UserError(f"the loss '{name}' stands for '{aliases()[name]}', and '{loss}' is unknown for "
                                f'--backbone {backbone}')
            heads.append(supported[loss])
    return list(dict.fromkeys(heads))


def option_group_title(head):
    """The title of a head's options in ``--help all``."""
    names = f"loss {', '.join(head.names)}" if head.names else head.__name__
    return f'{names}: {first_sentence(head)}' if first_sentence(head) else names


def options_read_by(heads, parser):
    """The names of the options that any of the heads adds or shares."""
    added = {name for name, readers in parser.readers.items() if any(head in readers for head in heads)}
    return frozenset(added.union(*(head.shared_options for head in heads)))


class HeadOptions(options.OptionProvider):
    """Options, defaults and checks of the heads."""

    def add_options(self, parser):
        for head in head_classes():
            before = set(parser.actions())
            head.add_options(parser.add_argument_group(option_group_title(head)))
            for name in set(parser.actions()) - before:
                parser.readers[name] = [head]
        for head in head_classes():
            for name in head.shared_options:
                if name in parser.readers:
                    parser.readers[name].append(head)
        by_loss = {}      # {loss: its heads, one per backbone}
        for head in head_classes():
            for name in head.names:
                by_loss.setdefault(name, []).append(head)
        by_alias = {alias: [head for name in losses.split('+') for head in by_loss.get(name, ())]
                    for alias, losses in aliases().items()}
        by_name = {**by_loss, **by_alias}
        parser.catalogs['losses for --loss_names, joined by +'] = {
            name: first_sentence(heads[0]) if name in by_loss else f'short for {aliases()[name]}'
            for name, heads in by_name.items()}
        parser.completions['loss_names'] = list(by_name)
        for name, heads in by_name.items():
            text = '\n\n'.join(map(own_docstring, heads))
            parser.topics[name] = Topic('loss', text, options_read_by(heads, parser))

    def active_readers(self, args):
        return active_heads(args)

    def validate_options(self, args):
        heads = active_heads(args)
        for head in head_classes():
            head.validate_options(args, head in heads)

    def batch_fields(self, args):
        return {field for head in active_heads(args) for field in head.get_fields(args)}

    def method_key(self, args):
        """The losses as a set, without looking them up: a loss whose file is broken is included."""
        names = str(args.loss_names).replace(' ', '').split('+')
        return {loss for name in names for loss in aliases().get(name, name).split('+')}

    def loss_names(self):
        """All names that ``--loss_names`` accepts, for any backbone."""
        return {*registry(), *aliases(), *(name for by_name in BACKBONE_HEADS.values() for name in by_name)}

    def log_notes(self, args):
        named = parse_loss_names(args.loss_names, args.backbone)
        return [f"the head '{head.names[0]}' is part of the model because its options are given, although --loss_names "
                'does not name it' for head in active_heads(args) if head.names and head not in named]


options.register_options(__name__, HeadOptions())
