"""The examples in docstrings run as they stand."""
import doctest
import importlib
import os

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOMS = ('utils', 'datasets', 'model', 'solver', 'processor', 'run_scripts')
# What a user works from ends in an example.
PUBLIC = [
    'datasets.bases.tokenize',
    'datasets.masking.descriptive_positions',
    'datasets.masking.mask_tokens',
    'model.objectives.cmpm',
    'model.objectives.cmt',
    'model.objectives.detail',
    'model.objectives.identity',
    'model.objectives.itc',
    'model.objectives.sdm',
    'model.objectives.tal',
    'model.objectives.tri',
    'utils.errors.suggest_name',
    'utils.iotools.atomic_write',
    'utils.retrieval_metrics.rank',
    'utils.top_k.top_k',
    'utils.ranking.rank_embeddings',
    'utils.options.get_args',
    'utils.seeding.derive_seed',
    'utils.simple_tokenizer.SimpleTokenizer.encode',
    'utils.simple_tokenizer.SimpleTokenizer.decode',
]


def modules_with_examples():
    for room in ROOMS:
        for place, _, names in os.walk(os.path.join(ROOT, room)):
            for name in sorted(names):
                path = os.path.join(place, name)
                if name.endswith('.py'):
                    with open(path, encoding='utf-8') as file:
                        if '>>> ' in file.read():
                            yield (
                                os.path.relpath(path, ROOT)[: -len('.py')]
                                .replace(os.sep, '.')
                                .removesuffix('.__init__')
                            )


@pytest.mark.parametrize('module', list(modules_with_examples()))
def test_examples_run(module, tmp_path, monkeypatch):
    module = importlib.import_module(module)
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


@pytest.mark.parametrize('name', PUBLIC)
def test_what_users_work_from_has_an_example(name):
    room, file, *attributes = name.split('.')
    thing = importlib.import_module(f'{room}.{file}')
    for attribute in attributes:
        thing = getattr(thing, attribute)
    assert doctest.DocTestParser().get_examples(thing.__doc__)
