"""Heads: one training objective each, one file each, chosen by name in ``--loss_names``.

Adding a method is adding a file here with a :class:`Head` in it; it is found by itself. ``docs/adding_a_method.md``
walks through a complete one. Importing this package does not import PyTorch (:mod:`utils.declarations`).
"""
import functools
import importlib
import pkgutil
import sys

from utils import options
from utils.declarations import NeedsImport, is_pytorch_loaded, load_plugin
from utils.errors import UserError, nearest
from utils.help_pages import Topic, first_sentence, own_docstring

EXPORTED = dict.fromkeys(('Head', 'HeadReport', 'head_error_context', 'describe_head'), 'model.heads.head')


def __getattr__(name):
    """``from model.heads import Head``: the class and its helpers, which need PyTorch."""
    if name in EXPORTED:
        return getattr(importlib.import_module(EXPORTED[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def head_base():
    """:class:`Head`, or its declaration before PyTorch is imported."""
    return load_plugin('model.heads.head').Head


def reference_loss_names():
    """{loss name of a released command line: (what it is here, the file's words on it)} of every file's ``RELEASED``."""
    modules = dict.fromkeys(load_plugin(head.__module__) for head in head_classes())
    return {name: meaning for module in modules for name, meaning in getattr(module, 'RELEASED', {}).items()}


# The released code of these forks cannot run; options.md.
REFUSED = {
    'fuse': "the loss 'fuse' never worked: SEN's released code crashes on it and its paper's results do not use it; leave it out",
    'mim': "the loss 'mim' never worked: AGM's released code crashes on it and its results do not use it; leave it out",
}


def files():
    """The modules of this folder. One that cannot be imported is left out, and named once."""
    modules = []
    for name in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        try:
            modules.append(load_plugin(f'{__name__}.{name}'))
        except (Exception, SystemExit) as error:  # whatever a file that somebody is writing may raise
            leave_out(name, error)
    return modules


IMPORT_ERRORS = {}   # file -> why
NAME_CONFLICTS = {}    # loss name that several files claim -> the sentence that refuses it


def leave_out(file, error):
    """Name a file that is broken, once. Everything else works without it; only its losses are missing. A file whose declarations raise
    may be sound: :class:`~utils.declarations.NeedsImport` asks for the file itself."""
    if not is_pytorch_loaded():
        raise NeedsImport(f'{file}: {error}') from error
    if file not in IMPORT_ERRORS:
        kind = '' if isinstance(error, UserError) else f'{type(error).__name__}: '
        IMPORT_ERRORS[file] = ' '.join(f'{kind}{error}'.split())
        print(f'model/heads/{file}.py is left out, and its losses with it: {IMPORT_ERRORS[file]}', file=sys.stderr, flush=True)


OWN = {}        # {backbone: {loss name: Head class}} of heads that are made for one


def registry():
    """{loss name: Head class} of every sound file in this folder, for any backbone; fills ``OWN`` with the others. Before PyTorch is
    imported, classes are declarations (:func:`~utils.declarations.declare`)."""
    return collect_heads(is_pytorch_loaded())


@functools.lru_cache(maxsize=1)
def collect_heads(imported):
    """:func:`registry`, once for declarations and once more after PyTorch is imported."""
    heads, parser = {}, options.own_parser()
    OWN.clear()
    for module in files():
        try:
            check_aliases(module)
            heads.update(heads_of(module, heads, parser))
        except (Exception, SystemExit) as error:
            leave_out(module.__name__.rsplit('.', 1)[1], error)
    return heads


registry.cache_clear = collect_heads.cache_clear


def heads_of(module, others, parser):
    """{loss name: Head class} of one file, without those in ``OWN``. What would disturb the heads of the ``others``, such as an option
    that is in ``parser`` already, raises."""
    heads, alone, base = {}, options.Parser(prog=module.__name__), head_base()
    for head in vars(module).values():
        if not (isinstance(head, type) and issubclass(head, base) and head.names) or head.__module__ != module.__name__:
            continue    # no head, or imported from its own file
        own = OWN.setdefault(head.backbone, {}) if head.backbone else heads
        check_names(head, own if head.backbone else {**others, **heads})
        own.update(dict.fromkeys(head.names, head))
        head.add_options(alone.add_argument_group(head.__name__))
        head.add_options(parser.add_argument_group(head.__name__))
    alone.format_help()     # a stray % in a help text would show up when somebody asks for help
    return heads


def check_names(head, others):
    if not isinstance(head.names, (tuple, list)) or not all(isinstance(name, str) and name.isprintable() for name in head.names):
        raise UserError(f"{head.__name__}.names must be a tuple of texts, such as names = ('pull',)")
    for name in head.names:
        if not name or set(name) & set('+ '):
            raise UserError(f"{head.__name__} cannot be called '{name}': --loss_names joins names with + and ignores blanks")
        if name in others and others[name] is not head:
            NAME_CONFLICTS[name] = f"the loss name '{name}' is claimed by both {others[name].__module__} and {head.__module__}; rename one"
            raise UserError(NAME_CONFLICTS[name])


def check_aliases(module):
    of_file = getattr(module, 'ALIASES', {})
    if not isinstance(of_file, dict) or not all(isinstance(text, str) for pair in of_file.items() for text in pair):
        raise UserError("ALIASES must be a dict of texts, such as {'amm': 'mlm+attribute'}")


@functools.lru_cache(maxsize=None)
def aliases():
    """{name: the losses that it stands for, joined by +} of every file's ``ALIASES``."""
    modules = dict.fromkeys(load_plugin(head.__module__) for head in head_classes())
    return {name: losses for module in modules for name, losses in getattr(module, 'ALIASES', {}).items()}


def head_classes():
    """Every head, each once, in a fixed order: those with a loss, and then those beside them that options alone ask for (``is_enabled``)."""
    everywhere = registry().values()
    named = list(dict.fromkeys([*everywhere, *(head for own in OWN.values() for head in own.values())]))
    modules, base = dict.fromkeys(load_plugin(head.__module__) for head in named), head_base()
    return named + [head for module in modules for head in vars(module).values() if isinstance(head, type) and issubclass(head, base)
                    and head.__module__ == module.__name__ and not head.names and head.is_enabled is not base.is_enabled]


def heads_with_report():
    """The heads that have a report for test.py."""
    return [head for head in head_classes() if head.report_flag]


def add_report_flags(parser):
    """A flag for every head that has a report, whether a run uses the head or not."""
    for head in heads_with_report():
        parser.add_argument(f'--{head.report_flag}', action='store_true', help=head.report_help)


def heads_for_backbone(backbone):
    """{loss name: Head class} on a backbone."""
    everywhere = registry()
    return {**everywhere, **OWN.get(backbone, {})}


def active_heads(args):
    """The Head classes that ``args`` ask for: those of ``--loss_names`` in its order, then those wanted by other options."""
    backbone = getattr(args, 'backbone', 'clip')
    named = parse_loss_names(args.loss_names, backbone)
    return named + [head for head in head_classes() if head not in named and head.backbone in ('', backbone) and head.is_enabled(args)]


def parse_loss_names(loss_names, backbone='clip'):
    """``'sdm+mlm+id'`` -> its Head classes on a backbone, in that order. Unknown and repeated names raise :class:`UserError`; a loss that
    an alias stands for may be named beside it and counts once."""
    heads, seen, here = [], set(), heads_for_backbone(backbone)
    known = {**here, **aliases()}
    split = str(loss_names).replace(' ', '').split('+')
    released = next((name for name in split if name in reference_loss_names()), None)
    if released:
        raise UserError(f"--loss_names '{loss_names}' {reference_loss_names()[released]}")
    for name in split:
        if name in REFUSED or name in NAME_CONFLICTS:
            raise UserError(REFUSED.get(name) or NAME_CONFLICTS[name])
        elsewhere = [other for other, own in OWN.items() if name in own]
        if name not in known and elsewhere:
            raise UserError(f"unknown loss '{name}' here: the loss '{name}' runs on the backbone {' or '.join(elsewhere)} alone, "
                            f'and --backbone is {backbone}; leave it out of --loss_names, or choose the other backbone')
        if name not in known:
            raise UserError(f"unknown loss '{name}' in --loss_names '{loss_names}'{nearest(name, known)}")
        if name in seen:
            raise UserError(f"the loss '{name}' is named twice in --loss_names '{loss_names}'")
        seen.add(name)
        for loss in aliases().get(name, name).split('+'):
            if loss not in here:
                raise UserError(f"the loss '{name}' stands for '{aliases()[name]}', and '{loss}' is missing")
            heads.append(here[loss])
    return list(dict.fromkeys(heads))


def title_of(head):
    """The title of a head's options in ``--help all``."""
    names = f"loss {', '.join(head.names)}" if head.names else head.__name__
    return f'{names}: {first_sentence(head)}' if first_sentence(head) else names


def options_read_by(heads, parser):
    """The options that some of the heads add or read."""
    added = {name for name, readers in parser.readers.items() if any(head in readers for head in heads)}
    return frozenset(added.union(*(head.shared_options for head in heads)))


class HeadOptions(options.Room):
    """What the heads bring to the options."""

    def add_options(self, parser):
        for head in head_classes():
            before = set(parser.actions())
            head.add_options(parser.add_argument_group(title_of(head)))
            for name in set(parser.actions()) - before:
                parser.readers[name] = [head]
        for head in head_classes():
            for name in head.shared_options:
                if name in parser.readers:
                    parser.readers[name].append(head)
        named = {}      # {loss: its heads}: one for each backbone, if there are several
        for head in head_classes():
            for name in head.names:
                named.setdefault(name, []).append(head)
        everything = {**named, **{alias: [head for name in losses.split('+') for head in named.get(name, ())]
                                  for alias, losses in aliases().items()}}
        parser.catalogs['losses for --loss_names, joined by +'] = {
            name: first_sentence(heads[0]) if name in named else f'stands for {aliases()[name]}' for name, heads in everything.items()}
        parser.completions['loss_names'] = list(everything)
        for name, heads in everything.items():
            parser.topics[name] = Topic('loss', ' '.join(map(own_docstring, heads)), options_read_by(heads, parser))

    def active(self, args):
        return active_heads(args)

    def validate_options(self, args):
        heads = active_heads(args)
        for head in head_classes():
            head.validate_options(args, head in heads)
        args.batch_fields = tuple(sorted({field for head in heads for field in head.get_fields(args)}))

    def method(self, args):
        """The losses, whatever their order, also where a file with one of them is broken."""
        names = str(args.loss_names).replace(' ', '').split('+')
        return {loss for name in names for loss in aliases().get(name, name).split('+')}

    def loss_names(self):
        """All names that ``--loss_names`` takes, on any backbone."""
        return {*registry(), *aliases(), *(name for own in OWN.values() for name in own)}

    def notes(self, args):
        named = parse_loss_names(args.loss_names, getattr(args, 'backbone', 'clip'))
        return [f"'{head.names[0]}' is not among the losses and shapes the model all the same, by its options"
                for head in active_heads(args) if head.names and head not in named]


options.register(__name__, HeadOptions())
