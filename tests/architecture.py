"""Check the structure of the code: imports between modules, defaults of options, and lengths of signatures.

    python -m tests.architecture             # prints the broken rules; exit status 1 if there are any
    python -m tests.architecture --graph     # prints what each module imports

The rules:

    - imports form no circle;
    - a package imports only from packages below it; modules at paths of IRRA's scripts are above them, and so is the
      list of plug-ins;
    - a tool of run_scripts does not import another tool;
    - losses of model.objectives import only PyTorch, so that a reader can copy one;
    - getattr(args, name, default) is not used, because options have one place for defaults;
    - a function has at most 8 arguments.

An import counts wherever it is: at the top of a file, inside a function, by ``importlib.import_module('a.b')``, or by
a string with the name of a module, which other code may import later. A package that loads all files of its own folder
as plug-ins (``pkgutil.iter_modules``) does not count, because it knows none of their names.
"""
import argparse
import ast
import functools
import os
import sys
from collections import defaultdict
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MAX_ARGUMENTS = 8
# {package or module at the top of the repository: those that it may import}
ALLOWED_IMPORTS = {'utils': set(), 'model': {'utils'}, 'datasets': {'utils'}, 'solver': {'utils', 'model'}}
ALLOWED_IMPORTS['processor'] = {'utils', 'model', 'datasets', 'solver'}
ALLOWED_IMPORTS.update(dict.fromkeys(('pedestal', 'train', 'test'), {'processor', *ALLOWED_IMPORTS['processor']}))
ALLOWED_IMPORTS['run_scripts'] = set(ALLOWED_IMPORTS)
ENTRY_POINTS = {'pedestal', 'train', 'test', 'run_scripts'}
IRRA_PATHS = {'utils.metrics'}     # modules above the packages, at paths that IRRA's scripts import
PLUGIN_LIST = 'utils.plugins'      # the only module of utils that may name modules of other packages
OBJECTIVES, OBJECTIVE_IMPORTS = 'model.objectives', {'torch', 'functools', 'math'}
IMPORTERS = {'import_module', '__import__', 'load_plugin', 'load_declarations', 'find_spec'}


@dataclass(frozen=True)
class Import:
    """An import of one module of the repository by another.

    Attributes:
        source, target: dotted names of modules.
        kind: 'at the top', 'in a function' or 'by a string'.
    """
    source: str
    target: str
    kind: str

    def __str__(self):
        return f'{self.source} imports {self.target} {self.kind}'


class Code:
    """The parsed modules of a repository.

    Args:
        root: the repository's folder. Only the packages and modules in :data:`ALLOWED_IMPORTS` are read.

    Attributes:
        trees: ``{dotted name: ast.Module}``. A file ``a/b.py`` next to a package ``a/b`` is named ``a.b (file)``.
    """

    def __init__(self, root):
        self.trees = {}
        for name in ALLOWED_IMPORTS:
            paths = [os.path.join(folder, file) for folder, _, files in os.walk(os.path.join(root, name))
                     for file in files if file.endswith('.py')]
            for path in sorted(paths) or [os.path.join(root, f'{name}.py')]:
                if os.path.exists(path):
                    with open(path, encoding='utf-8') as file:
                        self.trees[module_name(root, path)] = ast.parse(file.read(), path)

    @functools.cached_property
    def imports(self):
        """Every :class:`Import`, sorted, each once."""
        found = {imported for name, tree in self.trees.items() for imported in self.imports_of(name, tree)}
        return sorted(found, key=str)

    def imports_of(self, source, tree):
        """Yield each :class:`Import` of a module."""
        skipped_strings = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names, kind = imported_names(node), 'at the top' if node in tree.body else 'in a function'
            elif isinstance(node, ast.Call) and called_name(node) in IMPORTERS:
                names, kind = [arg.value for arg in node.args if is_text(arg)], 'by a string'
            elif is_text(node) and node not in skipped_strings and self.may_be_imported(node.value, source):
                names, kind = [node.value], 'by a string'
            else:
                continue
            for target in filter(None, map(self.containing_module, names)):
                if target != source:
                    yield Import(source, target, kind)

    def may_be_imported(self, text, source):
        """Whether a text names a module. Names without a dot are mostly other words, such as the split 'test'."""
        is_own_package = source.startswith(f'{text}.')
        return '.' in text and text in self.trees and not is_own_package and source != PLUGIN_LIST

    def containing_module(self, name):
        """Return the module that a dotted name is or belongs to; None if it is not in the repository."""
        while name not in self.trees and '.' in name:
            name = name.rpartition('.')[0]
        return name if name in self.trees else None


def module_name(root, path):
    name = os.path.relpath(path, root).removesuffix('.py').replace(os.sep, '.').removesuffix('.__init__')
    is_shadowed = os.path.basename(path) != '__init__.py' and os.path.isdir(path.removesuffix('.py'))
    return f'{name} (file)' if is_shadowed else name


def imported_names(node):
    """List the dotted names of an import statement. :func:`find_relative_imports` rejects relative ones."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f'{node.module}.{alias.name}' for alias in node.names]


def called_name(call):
    """Return the last part of a called function's name."""
    return getattr(call.func, 'attr', getattr(call.func, 'id', ''))


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def docstrings(tree):
    """Return the string nodes that are docstrings or other statements without effect."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


# -- the rules -------------------------------------------------------------------------------------------------------
# Each function yields a sentence for each place that breaks its rule.

def find_circles(code):
    """The shortest circle of each group of modules that import each other."""
    targets = defaultdict(set)
    for imported in code.imports:
        targets[imported.source].add(imported.target)
    remaining = sorted(code.trees)
    while remaining:
        after = reachable(remaining[0], targets)
        group = [name for name in remaining if name in after and remaining[0] in reachable(name, targets)]
        if group:
            circles = (shortest_circle(name, targets) for name in group)
            yield f'circle: {" -> ".join(min(circles, key=len))}'
        remaining = [name for name in remaining[1:] if name not in group]


def reachable(start, targets):
    """Return the modules that ``start`` imports, directly or not."""
    found, new = set(), set(targets[start])
    while new:
        found |= new
        new = {target for name in new for target in targets[name]} - found
    return found


def shortest_circle(start, targets):
    """Return the names on a shortest path from a module back to itself; None if there is none."""
    paths, seen = [[start]], set()
    for path in paths:
        for name in sorted(targets[path[-1]] - seen):
            if name == start:
                return [*path, start]
            seen.add(name)
            paths.append([*path, name])
    return None


def find_upward_imports(code):
    for imported in code.imports:
        source, target = imported.source.split('.')[0], imported.target.split('.')[0]
        allowed = ALLOWED_IMPORTS['pedestal'] if imported.source in IRRA_PATHS else {source, *ALLOWED_IMPORTS[source]}
        if target not in allowed or imported.target in IRRA_PATHS and source not in ENTRY_POINTS:
            yield f'upwards: {imported}'


def find_relative_imports(code):
    for name, tree in code.trees.items():
        if any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)):
            yield f'relative: {name} has an import with leading dots; write it in full'


def find_tools_as_libraries(code):
    """Imports of a tool: a file directly in run_scripts that runs as a program."""
    tools = {name for name, tree in code.trees.items() if name.count('.') == 1 and name.startswith('run_scripts.')
             and any(isinstance(node, ast.If) and '__main__' in ast.unparse(node.test) for node in tree.body)}
    for imported in code.imports:
        if imported.target in tools:
            yield f'tool: {imported}'


def find_imports_of_objectives(code):
    for name, tree in code.trees.items():
        if name == OBJECTIVES or name.startswith(f'{OBJECTIVES}.'):
            statements = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
            for imported in dict.fromkeys(imported for node in statements for imported in imported_names(node)):
                if imported.split('.')[0] not in OBJECTIVE_IMPORTS and not imported.startswith(OBJECTIVES):
                    yield f'objectives: {name} imports {imported}'


def find_option_defaults(code):
    """Calls of getattr with a default on ``args`` or on an attribute of this name."""
    for name, tree in code.trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and called_name(node) == 'getattr' and len(node.args) == 3:
                if ast.unparse(node.args[0]).split('.')[-1] == 'args':
                    yield f'default: {name} has {ast.unparse(node)}'


def find_long_signatures(code):
    for name, tree in code.trees.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = sum(argument.arg not in ('self', 'cls') for argument in arguments)
                if count > MAX_ARGUMENTS:
                    yield f'arguments: {name}.{node.name} has {count}'


RULES = (find_circles, find_upward_imports, find_relative_imports, find_tools_as_libraries, find_imports_of_objectives,
         find_option_defaults, find_long_signatures)


def find_violations(code):
    """List a sentence for each place that breaks a rule, each once."""
    return list(dict.fromkeys(sentence for rule in RULES for sentence in rule(code)))


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m tests.architecture', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--graph', action='store_true', help='print what each module imports')
    args = parser.parse_args(argv)
    code = Code(ROOT)
    if args.graph:
        print(*code.imports, sep='\n')
        return 0
    violations = find_violations(code)
    print(*violations, f'{len(code.trees)} modules, {len(code.imports)} imports between them, '
          f'{len(violations)} broken rules', sep='\n')
    return 1 if violations else 0


if __name__ == '__main__':
    sys.exit(main())
