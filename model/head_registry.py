"""The heads of the files in ``model/heads``: found by name, checked, and reported if a file is broken.

Before PyTorch is imported, the classes are declarations (:func:`~utils.declarations.load_declarations`).
"""
import functools
import pkgutil
import sys

from model import heads as heads_package
from model.heads.mixins import EnabledByOptions
from utils import options
from utils.declarations import ImportNeededError, is_pytorch_loaded, load_plugin
from utils.errors import UserError

IMPORT_ERRORS = {}      # {name of a file in model/heads: why it is skipped}; a file is reported once in a process
NAME_CONFLICTS = {}     # {loss name that several files define: error message}


def head_base():
    """Return :class:`~model.heads.Head`, or its declaration before PyTorch is imported."""
    return load_plugin('model.heads.head').Head


def registry():
    """Return {loss name: Head class} of the heads that support any backbone."""
    return heads_by_backbone()['']


def heads_by_backbone():
    """Return {backbone: {loss name: Head class}} of all heads; those for '' support any backbone."""
    return collect_heads(is_pytorch_loaded())[0]


def head_modules():
    """Return the modules of ``model/heads``, without those that are skipped."""
    return collect_heads(is_pytorch_loaded())[1]


@functools.lru_cache(maxsize=1)
def collect_heads(imported):
    """Compute :func:`heads_by_backbone` and :func:`head_modules`, for declarations and after PyTorch is imported."""
    heads, modules, parser = {'': {}}, [], options.build_core_parser()
    NAME_CONFLICTS.clear()
    for module in load_head_modules():
        try:
            check_aliases(module)
            for backbone, by_name in collect_module_heads(module, heads, parser).items():
                heads.setdefault(backbone, {}).update(by_name)
            modules.append(module)
        except (Exception, SystemExit) as error:
            skip_file(module.__name__.rsplit('.', 1)[1], error)
    return heads, modules


registry.cache_clear = collect_heads.cache_clear


def heads_for_backbone(backbone):
    """The heads that support a backbone: {loss name: Head class}."""
    return {**registry(), **heads_by_backbone().get(backbone, {})}


def head_classes():
    """All Head classes in a fixed order: those with loss names, then those that only options enable."""
    named = dict.fromkeys(head for heads in heads_by_backbone().values() for head in heads.values())
    return list(add_heads_without_names(tuple(named), tuple(head_modules())))


@functools.lru_cache(maxsize=4)     # reading a run's options asks for the heads a hundred times
def add_heads_without_names(named, modules):
    """Add to the heads with loss names those that only options enable, from the files of all."""
    modules, base = dict.fromkeys([*modules_of(named), *modules]), head_base()
    classes = [(module, value) for module in modules for value in vars(module).values()
               if isinstance(value, type) and issubclass(value, base)]
    return (*named, *(head for module, head in classes if head.__module__ == module.__name__
                      and not head.names and issubclass(head, EnabledByOptions)))


@functools.lru_cache(maxsize=4)
def modules_of(heads):
    """The modules that define a tuple of heads, each once."""
    return list(dict.fromkeys(load_plugin(head.__module__) for head in heads))


@functools.lru_cache(maxsize=None)
def aliases():
    """All files' ``ALIASES``: {name: the losses that it stands for, joined by +}."""
    return merge_tables('ALIASES')


def reference_loss_names():
    """Loss names of reference implementations that mean something else here.

    Returns:
        {loss name: what to write instead}, of every file's ``REFERENCE_LOSS_NAMES``.
    """
    return merge_tables('REFERENCE_LOSS_NAMES')


def merge_tables(constant):
    """Merge the dicts of this name in all files of heads."""
    return {key: value for module in modules_of(tuple(head_classes()))
            for key, value in getattr(module, constant, {}).items()}


def load_head_modules():
    """Load the modules of ``model/heads``. A module that raises is skipped and reported once."""
    modules = []
    for name in sorted(module.name for module in pkgutil.iter_modules(heads_package.__path__) if not module.ispkg):
        try:
            modules.append(load_plugin(f'{heads_package.__name__}.{name}'))
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


def collect_module_heads(module, known_heads, parser):
    """Collect the heads of one file.

    Args:
        module: the file's module.
        known_heads: {backbone: {loss name: Head class}} of the files before it.
        parser: parser with the options of the files before it; the file's options are added.

    Returns:
        {backbone: {loss name: Head class}}.

    Raises:
        Exception: the file conflicts with others, for example by adding an option that exists.
    """
    heads, file_parser, base = {}, options.Parser(prog=module.__name__), head_base()
    for head in vars(module).values():
        if not (isinstance(head, type) and issubclass(head, base) and head.names) or head.__module__ != module.__name__:
            continue    # no head, or imported from another file
        by_name = heads.setdefault(head.backbone, {})
        check_names(head, {**known_heads.get(head.backbone, {}), **by_name})
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
