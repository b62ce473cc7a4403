"""Keep the imports of the installed package inside it, so that its names hide no other package's.

Pedestal's files import each other by the names that they have in the repository: ``from utils.errors import
UserError``, ``import datasets.build``. In the installed package these modules are ``pedestal.utils.errors`` and
``pedestal.datasets.build``. A loader gives each of them its own ``__import__``, which adds ``pedestal.`` to Pedestal's
names. It acts on import statements of Pedestal's files only. Hugging Face's ``datasets`` stays what it is everywhere
else. ``importlib.import_module`` is not translated: :func:`utils.plugins.qualify` completes its names.
"""
import builtins
import sys
from importlib.machinery import PathFinder, SourceFileLoader

# This module is imported before the finder is installed. It needs none, because it imports nothing.
from pedestal.utils.plugins import TOP_LEVEL_NAMES

PACKAGE = __name__.rpartition('.')[0]
LIBRARY = f'{PACKAGE}.pedestal'     # pedestal.py of the repository
MODULES = frozenset(TOP_LEVEL_NAMES)


def import_from_package(name, globals=None, locals=None, fromlist=(), level=0):
    """The ``__import__`` of Pedestal's modules: add the package's name to those of Pedestal's modules."""
    top_level_name = name.split('.')[0]
    if level or top_level_name not in MODULES:
        return builtins.__import__(name, globals, locals, fromlist, level)
    module = builtins.__import__(f'{PACKAGE}.{name}', globals, locals, fromlist)
    return module if fromlist else sys.modules[f'{PACKAGE}.{top_level_name}']   # `import model.build` binds model


BUILTINS = {**vars(builtins), '__import__': import_from_package}


class IsolatedLoader(SourceFileLoader):
    """Loads a module whose import statements call :func:`import_from_package`."""

    def exec_module(self, module):
        self.execute(vars(module))

    def execute(self, namespace):
        """Execute the module's code in a namespace. Its functions import in the same way later."""
        namespace['__builtins__'] = BUILTINS
        exec(super().get_code(self.name), namespace)

    def get_code(self, fullname):
        """Return what ``python -m`` executes instead of calling :meth:`exec_module`."""
        return compile('__loader__.execute(globals())', self.path, 'exec')


class IsolatedFinder:
    """Finds Pedestal's modules below the package, and gives them an :class:`IsolatedLoader`."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        package, _, name = fullname.partition('.')
        if package != PACKAGE or fullname != LIBRARY and name.split('.')[0] not in MODULES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = IsolatedLoader(spec.loader.name, spec.loader.path)
        return spec


def install_finder():
    """Let Python find Pedestal's modules by :class:`IsolatedFinder`."""
    sys.meta_path.insert(0, IsolatedFinder)
