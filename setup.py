"""The files of the wheel, and its requirements from requirements*.txt. Everything else is in pyproject.toml.

The wheel holds one top-level package, ``pedestal``, with the packages of the repository inside. The files stay where
they are: package/pedestal/isolation.py says how they import each other there.
"""
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

MODULES = 'pedestal', 'train', 'test'       # files at the top of the repository
PACKAGES = 'datasets', 'model', 'processor', 'run_scripts', 'solver', 'utils'
DATA = {'configs': ['*.yaml', '*/*.yaml'], 'data': ['*.gz']}     # {folder without code: patterns of its files}


class BuildModules(build_py):
    """Adds the modules at the top of the repository to the package."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return modules + [(package, name, f'{name}.py') for name in MODULES] if package == 'pedestal' else modules


def read_requirements(name):
    """Read the requirements of a file, with those of files that it includes."""
    requirements = []
    with open(name, encoding='utf-8') as file:
        for line in filter(None, (line.split('#')[0].strip() for line in file)):
            requirements += read_requirements(line[2:].strip()) if line.startswith('-r') else [line]
    return requirements


subpackages = find_packages(include=[f'{name}*' for name in PACKAGES])
base = read_requirements('requirements.txt')
setup(
    cmdclass={'build_py': BuildModules},
    packages=['pedestal', *(f'pedestal.{name}' for name in [*subpackages, *DATA])],
    package_dir={'pedestal': 'package/pedestal', **{f'pedestal.{name}': name for name in [*PACKAGES, *DATA]}},
    package_data={f'pedestal.{name}': patterns
                  for name, patterns in {**dict.fromkeys(subpackages, ['*.yaml', '*.html']), **DATA}.items()},
    include_package_data=False,
    install_requires=base,
    extras_require={
        'openclip': ['open_clip_torch', 'transformers'],
        'bert': ['scipy', 'tokenizers'],
        'demo': ['gradio'],
        'export': ['onnx', 'onnxruntime', 'onnxscript', 'tokenizers', 'transformers'],
        'search': ['faiss-cpu'],
        'loggers': ['mlflow', 'wandb'],
        'complete': ['argcomplete'],
        **{name: [line for line in read_requirements(f'requirements-{name}.txt') if line not in base]
           for name in ('docs', 'test')}},
)
