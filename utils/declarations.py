"""Read the declarations of plug-in files without importing PyTorch, so that a wrong flag is reported within a second.

A head, a backbone or a dataset is one file that imports PyTorch. Its options, checks and class attributes do not need
PyTorch. :func:`load_declarations` executes only these parts: constants, functions, class attributes, static methods and
class methods. Imports of other libraries become :class:`Unavailable`. Code that uses one of them raises
:class:`ImportNeededError`. The caller then imports PyTorch and the files themselves.
"""
import ast
import functools
import importlib
import importlib.machinery
import os
import pkgutil
import sys
import types

from utils.plugins import LIGHT_PLUGIN_MODULES, PLUGIN_PACKAGES, qualify

# Packages and modules that take little time to import, in addition to Python's standard library.
LIGHT_MODULES = ('utils.declarations', 'utils.errors', 'utils.option_types', 'utils.options', 'utils.recipes',
                 'utils.safe_yaml', 'yaml', *LIGHT_PLUGIN_MODULES)


class ImportNeededError(Exception):
    """A declaration uses a library that is not imported."""


def is_pytorch_loaded():
    """Whether PyTorch is imported. Plug-in files are then imported as usual, because they take little more time."""
    return 'torch' in sys.modules


def load_plugin(name):
    """Return the module ``name``: imported if PyTorch is, else its declarations."""
    return import_plugin(name) if is_pytorch_loaded() else load_declarations(name)


def import_plugin(name):
    """Import a module of Pedestal by its name in the repository, such as 'model.heads.head'."""
    return importlib.import_module(qualify(name))


def lazy_attributes(module, exported):
    """Return the ``__getattr__`` of a package that imports on first use what needs PyTorch.

    Args:
        module: the package's ``__name__``.
        exported: ``{name: module that defines it}``.

    Example:
        >>> __getattr__ = lazy_attributes('model.heads', {'Head': 'model.heads.head'})
        >>> __getattr__('Head').__name__
        'Head'
    """
    def import_attribute(name):
        if name in exported:
            return getattr(import_plugin(exported[name]), name)
        raise AttributeError(f'module {module!r} has no attribute {name!r}')
    return import_attribute


class PluginRegistry:
    """The classes of a package whose files are plug-ins. Calling it returns ``{name: class}``.

    Before PyTorch is imported, the classes are declarations (:func:`load_declarations`). They are collected once, and
    once more after PyTorch is imported.

    Args:
        package: the name of the package, such as 'model.tunings'.
        base: the full name of the base class, such as 'model.tunings.tuning.Tuning'.
    """

    def __init__(self, package, base):
        self.package = package
        self.base_module, _, self.base_name = base.rpartition('.')
        self.classes = {}       # {whether PyTorch was imported: {name: class}}

    def __call__(self):
        is_imported = is_pytorch_loaded()
        if is_imported not in self.classes:
            base = getattr(load_plugin(self.base_module), self.base_name)
            path = import_plugin(self.package).__path__
            self.classes = {is_imported: find_named_classes(self.package, path, base)}
        return self.classes[is_imported]

    def cache_clear(self):
        """Forget the classes, so that the next call finds new files."""
        self.classes = {}


def find_named_classes(package, path, base):
    """Return ``{name: class}`` of the subclasses of ``base`` that have a ``name``, in all files of a package.

    Args:
        package: the name of the package, such as 'model.tunings'.
        path: its ``__path__``.
        base: the base class, or its declaration before PyTorch is imported.
    """
    classes = {}
    for info in sorted(pkgutil.iter_modules(path), key=lambda info: info.name):
        for cls in vars(load_plugin(f'{package}.{info.name}')).values():
            if isinstance(cls, type) and issubclass(cls, base) and cls.name:
                classes[cls.name] = cls
    return classes


def retry_with_pytorch(read_options):
    """Decorate a function that reads options: if a declaration needs PyTorch, import PyTorch and call it again."""
    @functools.wraps(read_options)
    def read_options_with_retry(*args):
        try:
            return read_options(*args)
        except ImportNeededError:
            importlib.import_module('torch')
            return read_options(*args)
    return read_options_with_retry


class Unavailable:
    """Stands for a name whose import :func:`load_declarations` skips. Its attributes are unavailable as well."""

    def __init__(self, name):
        self.__dict__['_name'] = name

    def __getattr__(self, attribute):
        if attribute.startswith('__'):
            raise AttributeError(attribute)
        return Unavailable(f'{self._name}.{attribute}')

    def __call__(self, *args, **kwargs):
        raise ImportNeededError(self._name)

    __iter__ = __bool__ = __len__ = __eq__ = __float__ = __int__ = __index__ = __str__ = __format__ = __call__
    __getitem__ = __contains__ = __add__ = __radd__ = __mul__ = __truediv__ = __rtruediv__ = __or__ = __ror__ = __call__
    __mro_entries__ = __call__
    __hash__ = None


def load_declarations(name):
    """Execute the declarations of a module.

    Args:
        name: the module's dotted name, such as 'model.heads.sdm'.

    Returns:
        A module object that is not in ``sys.modules``.

    Raises:
        Exception: the file's own statements raise it, for example a SyntaxError.

    Example:
        >>> load_declarations('model.heads.sdm').SDM.names
        ('sdm',)
    """
    return execute_declarations(qualify(name))


@functools.lru_cache(maxsize=None)
def execute_declarations(name):
    """Execute the declarations of a module with the full name ``name``, once."""
    path = find_source_file(name)
    with open(path, encoding='utf-8') as file:
        tree = ast.parse(file.read(), path)
    module = types.ModuleType(name)
    module.__file__ = path
    for statement in tree.body:
        try:
            execute_statements(select_declarations(statement, vars(module)), vars(module), path)
        except ImportNeededError as error:
            vars(module).update({defined: Unavailable(str(error)) for defined in defined_names(statement)})
    return module


def find_source_file(name):
    """Find the file of a module without importing its packages."""
    package = name.rpartition('.')[0]
    folders = getattr(sys.modules.get(package), '__path__', None)
    if package and not folders:
        folders = [os.path.dirname(find_source_file(package))]
    return importlib.machinery.PathFinder.find_spec(name, folders).origin


def execute_statements(statements, namespace, path):
    """Execute statements of one of Pedestal's own files, as an import does."""
    tree = AnnotationRemover().visit(ast.Module(statements, []))
    exec(compile(ast.fix_missing_locations(tree), path, 'exec', dont_inherit=True), namespace)


class AnnotationRemover(ast.NodeTransformer):
    """Removes annotations, which may need skipped imports. Fields of dataclasses are annotated with ``object``."""

    def visit_AnnAssign(self, node):
        node.annotation = ast.copy_location(ast.Name('object', ast.Load()), node)
        return node

    def visit_FunctionDef(self, node):
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            argument.annotation = None
        node.returns = None
        return node


def select_declarations(statement, namespace):
    """Return the statements to execute for one statement of a file; execute an import at once."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        bind_imports(statement, namespace)
        return []
    if isinstance(statement, ast.ClassDef):
        return [remove_instance_methods(statement, namespace)]
    return [statement]


def bind_imports(statement, namespace):
    """Bind the names of an import: light modules, declarations of Pedestal's files, or :class:`Unavailable`."""
    for alias in statement.names:
        bound_name = alias.asname or alias.name.split('.')[0]
        if isinstance(statement, ast.Import):
            module = import_plugin(alias.name) if is_light(alias.name) else Unavailable(alias.name)
            binds_module = alias.asname or isinstance(module, Unavailable)
            namespace[bound_name] = module if binds_module else sys.modules[qualify(bound_name)]
        elif is_light(statement.module):
            namespace[bound_name] = getattr(import_plugin(statement.module), alias.name)
        else:
            namespace[bound_name] = find_declaration(statement.module, alias.name)


def is_light(module_name):
    """Whether a module takes little time to import."""
    return module_name.split('.')[0] in sys.stdlib_module_names or module_name in LIGHT_MODULES


def find_declaration(module_name, name):
    """Return what ``from module import name`` binds.

    It is what the package has without importing PyTorch, a declaration of another plug-in file, or
    :class:`Unavailable`.
    """
    unavailable = Unavailable(f'{module_name}.{name}')
    if module_name.split('.')[0] not in PLUGIN_PACKAGES:
        return unavailable
    package = import_plugin(module_name) if module_name in PLUGIN_PACKAGES else None
    if name in getattr(package, '__dict__', {}):
        return vars(package)[name]
    defining_module = getattr(package, 'EXPORTED', {}).get(name, module_name)
    return getattr(load_declarations(defining_module), name, unavailable)


def remove_instance_methods(statement, namespace):
    """Remove methods of instances from a class statement, and bases that are not available."""
    statement.bases = [base for base in statement.bases if is_available(base, namespace)]
    statement.body = [part for part in statement.body if is_static(part) or is_plain_attribute(part, namespace)]
    statement.body = statement.body or [ast.Pass()]
    return statement


def is_plain_attribute(part, namespace):
    """Whether a part of a class's body is no method and needs no skipped import."""
    if isinstance(part, ast.FunctionDef):
        return False
    return not isinstance(part, ast.Assign) or is_available(part.value, namespace)


def is_static(part):
    """Whether a part of a class's body is a static method or a class method."""
    decorators = getattr(part, 'decorator_list', ())
    return any(isinstance(node, ast.Name) and node.id in ('staticmethod', 'classmethod') for node in decorators)


def is_available(expression, namespace):
    """Whether an expression needs no skipped import."""
    names = [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]
    return not any(isinstance(namespace.get(name), Unavailable) for name in names)


def defined_names(statement):
    """The names that a top-level statement binds."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
