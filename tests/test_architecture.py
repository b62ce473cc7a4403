"""The structure of the code, and the program that checks it."""
import pytest

from tests import architecture
from tests.architecture import ROOT, Code, find_violations, main


@pytest.fixture(scope='module')
def code():
    """The repository's code, which takes seconds to parse."""
    return Code(ROOT)


@pytest.fixture
def parsed_once(code, monkeypatch):
    """The program reads ``code``."""
    monkeypatch.setattr(architecture, 'Code', lambda root: code if root == ROOT else Code(root))


@pytest.fixture(scope='module')
def violations(code):
    return set(find_violations(code))


def test_the_code_breaks_no_rule(violations):
    assert not violations


@pytest.fixture
def write_code(tmp_path):
    """A function that writes ``{file: content}`` below a package for each layer, and returns the parsed code."""
    def write(files):
        sound = {'utils/errors.py': 'class UserError(Exception):\n    """As in \'processor.loop\'."""\n',
                 'model/heads.py': 'import torch\nfrom utils.errors import UserError\n',
                 'datasets/build.py': 'from utils import errors\n', 'solver/build.py': 'import model.heads\n',
                 'processor/loop.py': 'from solver.build import build\nfrom datasets import build\n',
                 'train.py': 'def main():\n    from processor.loop import loop\n',
                 'pedestal.py': 'import processor.loop\n',
                 'run_scripts/page.py': 'import pedestal\nimport train\nif __name__ == "__main__":\n    print()\n'}
        for name, content in {**sound, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return Code(str(tmp_path))
    return write


def test_sound_code_breaks_no_rule(write_code):
    assert find_violations(write_code({})) == []


@pytest.mark.parametrize('files, expected', [
    pytest.param({'utils/a.py': 'import utils.b\n', 'utils/b.py': 'from utils.c import x\n',
                  'utils/c.py': 'from utils import a\n'}, ['circle: utils.a -> utils.b -> utils.c -> utils.a'],
                 id='a circle'),
    pytest.param({'utils/a.py': 'import utils.b\n', 'utils/b.py': 'def f():\n    import utils.a\n'},
                 ['circle: utils.a -> utils.b -> utils.a'], id='a circle with a lazy import'),
    pytest.param({'utils/a.py': 'import utils.b\n', 'utils/b.py': 'importlib.import_module("utils.a")\n'},
                 ['circle: utils.a -> utils.b -> utils.a'], id='a circle by importlib'),
    pytest.param({'utils/__init__.py': 'import utils.b\n', 'utils/b.py': 'X = __import__("utils")\n'},
                 ['circle: utils -> utils.b -> utils'], id='a circle with the package'),
    pytest.param({'utils/a.py': 'import utils.b\n', 'utils/b.py': 'LATER = {"name": "utils.a"}\n'},
                 ['circle: utils.a -> utils.b -> utils.a'], id='a circle by a string'),
    pytest.param({'utils/plugins.py': 'MODULES = ("model.heads", "processor.loop")\n'}, [], id='the list of plug-ins'),
    pytest.param({'utils/a.py': 'from model import heads\n'},
                 ['upwards: utils.a imports model.heads at the top'], id='upwards'),
    pytest.param({'model/b.py': 'def f():\n    import datasets.build\n'},
                 ['upwards: model.b imports datasets.build in a function'], id='sideways in a function'),
    pytest.param({'datasets/b.py': 'provider("model.heads")\n'},
                 ['upwards: datasets.b imports model.heads by a string'], id='sideways by a string'),
    pytest.param({'utils/metrics.py': 'import processor.loop\n', 'processor/a.py': 'from utils.metrics import rank\n'},
                 ['upwards: processor.a imports utils.metrics at the top'], id="a path of IRRA's by our own code"),
    pytest.param({'utils/metrics.py': 'import processor.loop\n', 'pedestal.py': 'from utils.metrics import rank\n'}, [],
                 id="a path of IRRA's by an entry point"),
    pytest.param({'pedestal.py': 'import train\n'}, ['upwards: pedestal imports train at the top'],
                 id='a program by the library'),
    pytest.param({'utils/a.py': 'from .errors import UserError\n'},
                 ['relative: utils.a has an import with leading dots; write it in full'], id='leading dots'),
    pytest.param({'run_scripts/leak.py': 'def f():\n    from run_scripts.page import draw\n'},
                 ['tool: run_scripts.leak imports run_scripts.page in a function'], id='a tool as a library'),
    pytest.param({'model/objectives.py': 'import math, numpy\nfrom torch.nn import functional\n'},
                 ['objectives: model.objectives imports numpy'], id='an objective'),
    pytest.param({'model/objectives/sdm.py': 'from model.objectives.itc import itc\nimport utils.errors\n',
                  'model/objectives/itc.py': ''},
                 ['objectives: model.objectives.sdm imports utils.errors'], id='a package of objectives'),
    pytest.param({'solver/a.py': 'def f(self, x):\n    return getattr(self.args, "lr", 1) + getattr(x, "lr", 1)\n'},
                 ["default: solver.a has getattr(self.args, 'lr', 1)"], id='a default of an option'),
    pytest.param({'solver/a.py': 'def f(self, a, b, c, d, /, e, f, *rest, g, h=1, **more):\n    pass\n'}, [],
                 id='8 arguments'),
    pytest.param({'solver/a.py': 'def f(self, a, b, c, d, /, e, f, *, g, h, i=1):\n    pass\n'},
                 ['arguments: solver.a.f has 9'], id='9 arguments')])
def test_a_defect_is_reported(write_code, files, expected):
    assert find_violations(write_code(files)) == expected


def test_the_program_prints_what_its_function_returns(violations, parsed_once, capsys):
    status, output = main([]), capsys.readouterr().out.splitlines()
    assert status == bool(violations) and violations <= set(output)


def test_the_graph_has_imports_of_each_kind(parsed_once, capsys):
    assert main(['--graph']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'train imports utils.launcher at the top' in lines
    assert 'train imports processor.training_run in a function' in lines
    assert 'datasets imports datasets.build by a string' in lines
