"""A package imports only from packages below it."""
import ast
import os

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGES = {'utils', 'model', 'datasets', 'solver', 'processor', 'run_scripts', 'train', 'test', 'pedestal'}
# {package: the packages that it may import}
ALLOWED_IMPORTS = {
    'utils': set(),
    'model': {'utils'},
    'datasets': {'utils'},
    'solver': {'utils', 'model'},
    'processor': {'utils', 'model', 'datasets', 'solver'},
}


def list_imports(path):
    """The full names of the modules that a file imports, also inside of functions."""
    with open(path, encoding='utf-8') as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: write imports in full, without leading dots'
            yield node.module


def list_files(package):
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(os.path.join(ROOT, package))
             for name in names if name.endswith('.py')]
    assert paths, package
    return sorted(paths)


@pytest.mark.parametrize('package', ALLOWED_IMPORTS)
def test_a_package_imports_only_from_packages_below_it(package):
    forbidden = PACKAGES - ALLOWED_IMPORTS[package] - {package}
    wrong = [f'{os.path.relpath(path, ROOT)} imports {name}' for path in list_files(package)
             for name in list_imports(path) if name.split('.')[0] in forbidden]
    assert not wrong


def test_the_library_imports_only_from_packages_below_it():
    names = {name.split('.')[0] for name in list_imports(os.path.join(ROOT, 'pedestal.py'))}
    assert names & PACKAGES <= {'processor', *ALLOWED_IMPORTS['processor']}


def test_objectives_import_only_torch():
    names = {name for path in list_files('model/objectives') for name in list_imports(path)
             if not name.startswith('model.objectives.')}
    assert names <= {'torch', 'torch.nn.functional', 'functools', 'math'}
