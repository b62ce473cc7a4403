"""The table of losses and backbones, made by the code."""
import os

import pytest

from model.backbones import registry
from model.backbones.__main__ import runs, table
from model.head_registry import heads_for_backbone
from tests.support import options
from utils.errors import UserError

DOCS = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'docs')


def test_the_docs_have_the_table_of_the_code():
    with open(os.path.join(DOCS, 'backbones.md'), encoding='utf-8') as file:
        assert table() in file.read(), 'python -m model.backbones prints the table for docs/backbones.md'


@pytest.mark.parametrize('name', ['sdm', 'itc', 'id', 'cmpm', 'cmt', 'mlm'])
def test_these_run_on_both(name):
    assert all(runs(heads_for_backbone(backbone)[name], registry()[backbone]) for backbone in ('clip', 'aptm'))


def test_an_unknown_backbone():
    with pytest.raises(UserError, match="unknown --backbone 'clipp'; did you mean clip"):
        options(backbone='clipp')
