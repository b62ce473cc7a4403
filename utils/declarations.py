"""Read what plug-in files declare without importing PyTorch, so that a wrong flag is answered in a fraction of a second.

A head, a backbone or a dataset is one file that imports PyTorch. Its options, checks and class attributes need none of it. :func:`declare`
executes these parts alone: constants, functions, class attributes, static methods and class methods. Imports of other libraries become
:class:`Unavailable`. Code that uses one of them raises :class:`NeedsImport`; the caller imports PyTorch and asks the real files.
"""
import ast
import functools
import importlib
import importlib.machinery
import os
import sys
import types

ALWAYS_IMPORTED = ('utils.declarations', 'utils.errors', 'utils.option_types', 'utils.options', 'utils.recipes', 'utils.safe_yaml', 'yaml')
PLUGIN_PACKAGES = ('model', 'model.heads', 'model.backbones', 'datasets')


class NeedsImport(Exception):
    """A declaration uses a library that is not imported."""


def is_pytorch_loaded():
    """Whether plug-in files are imported as they are, because PyTorch's start-up time is already spent."""
    return 'torch' in sys.modules


def load_plugin(name):
    """The module ``name``: imported if PyTorch is loaded, its declarations otherwise."""
    return importlib.import_module(name) if is_pytorch_loaded() else declare(name)


def retry_with_pytorch(read):
    """Decorate a function that reads options: if a declaration needs PyTorch, import it and read them again."""
    @functools.wraps(read)
    def reading(*inputs):
        try:
            return read(*inputs)
        except NeedsImport:
            importlib.import_module('torch')
            return read(*inputs)
    return reading


class Unavailable:
    """Stands for a name whose import :func:`declare` skips."""

    def __init__(self, name):
        self.__dict__['_name'] = name

    def __getattr__(self, attribute):
        if attribute.startswith('__'):
            raise AttributeError(attribute)
        return Unavailable(f'{self._name}.{attribute}')

    def __call__(self, *inputs, **settings):
        raise NeedsImport(self._name)

    __iter__ = __bool__ = __len__ = __eq__ = __add__ = __radd__ = __mul__ = __truediv__ = __rtruediv__ = __call__
    __getitem__ = __contains__ = __or__ = __ror__ = __format__ = __str__ = __float__ = __int__ = __index__ = __mro_entries__ = __call__
    __hash__ = None


@functools.lru_cache(maxsize=None)
def declare(name):
    """The declarations of the module ``name``, as a module object that is not in ``sys.modules``.

    Raises:
        Exception: whatever the file's own statements raise, such as a SyntaxError.

    Example:
        >>> declare('model.heads.sdm').SDM.names
        ('sdm',)
    """
    path = source_file(name)
    with open(path, encoding='utf-8') as file:
        tree = ast.parse(file.read(), path)
    module = types.ModuleType(name)
    module.__file__ = path
    for statement in tree.body:
        try:
            execute(declared_part(statement, vars(module)), vars(module), path)
        except NeedsImport as missing:
            vars(module).update({defined: Unavailable(str(missing)) for defined in names_defined_by(statement)})
    return module


def source_file(name):
    """The file of a module, found without importing the packages that it is in."""
    package = name.rpartition('.')[0]
    folders = getattr(sys.modules.get(package), '__path__', None) or ([os.path.dirname(source_file(package))] if package else None)
    return importlib.machinery.PathFinder.find_spec(name, folders).origin


def execute(statements, namespace, path):
    """Run statements of one of our own files, as an import would."""
    tree = WithoutAnnotations().visit(ast.Module(statements, []))
    exec(compile(ast.fix_missing_locations(tree), path, 'exec', dont_inherit=True), namespace)


class WithoutAnnotations(ast.NodeTransformer):
    """Removes annotations, because they may name what is not imported. Fields of dataclasses keep a plain one."""

    def visit_AnnAssign(self, node):
        node.annotation = ast.copy_location(ast.Name('object', ast.Load()), node)
        return node

    def visit_FunctionDef(self, node):
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            argument.annotation = None
        node.returns = None
        return node


def declared_part(statement, namespace):
    """The statements to execute for one statement of a file."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        bind_imports(statement, namespace)
        return []
    if isinstance(statement, ast.ClassDef):
        return [class_without_instances(statement, namespace)]
    return [statement]


def bind_imports(statement, namespace):
    """Bind the names of an import: real modules if they are light, declarations of our own files, else :class:`Unavailable`."""
    for alias in statement.names:
        bound = alias.asname or alias.name.split('.')[0]
        if isinstance(statement, ast.Import):
            module = importlib.import_module(alias.name) if is_light(alias.name) else Unavailable(alias.name)
            namespace[bound] = module if alias.asname or isinstance(module, Unavailable) else sys.modules[bound]
        elif is_light(statement.module):
            namespace[bound] = getattr(importlib.import_module(statement.module), alias.name)
        else:
            namespace[bound] = declared_name(statement.module, alias.name)


def is_light(name):
    """Whether a module takes no time to import: Python's own, and those of ours that options need anyway."""
    return name.split('.')[0] in sys.stdlib_module_names or name in ALWAYS_IMPORTED


def declared_name(module, name):
    """What ``from module import name`` binds in a declaration: another plug-in file's declaration, or :class:`Unavailable`."""
    missing = Unavailable(f'{module}.{name}')
    if module.split('.')[0] not in PLUGIN_PACKAGES:
        return missing
    package = importlib.import_module(module) if module in PLUGIN_PACKAGES else None
    return getattr(declare(getattr(package, 'EXPORTED', {}).get(name, module)), name, missing)


def class_without_instances(statement, namespace):
    """A class statement without methods of instances and without bases that are not available."""
    statement.bases = [base for base in statement.bases if is_available(base, namespace)]
    statement.body = [part for part in statement.body if is_called_on_the_class(part) or is_plain(part, namespace)] or [ast.Pass()]
    return statement


def is_plain(part, namespace):
    """Whether a part of a class's body is no method and needs no library that is not imported."""
    return not isinstance(part, ast.FunctionDef) and not (isinstance(part, ast.Assign) and not is_available(part.value, namespace))


def is_called_on_the_class(function):
    marks = getattr(function, 'decorator_list', ())
    return any(isinstance(mark, ast.Name) and mark.id in ('staticmethod', 'classmethod') for mark in marks)


def is_available(expression, namespace):
    """Whether an expression can be evaluated without the libraries that are not imported."""
    names = [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]
    return not any(isinstance(namespace.get(name), Unavailable) for name in names)


def names_defined_by(statement):
    """The names that a statement at the top of a file binds."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
