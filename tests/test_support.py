"""The reference vectors: each kind is there, and another folder's take their place."""
import os
import shutil
import subprocess
import sys

import pytest

from tests.support import OWN, golden_names, options
from utils.options import get_args

PATTERNS = (
    'irra_*',
    'agm_*',
    'a2te_*',
    'sen_*',
    'php_*',
    'objectives*',
    'metrics*',
    'tokenizer*',
    'lr_schedule*',
    'official_*',
    'rde_tiny*',
    'rde_objectives_*',
    'rde_ccd_*',
    'tbps_objectives_*',
    'fmfa_objectives_*',
    'conquer_objectives_*',
)


@pytest.mark.parametrize('pattern', PATTERNS)
@pytest.mark.skipif('PEDESTAL_GOLDEN' in os.environ, reason='another folder need not hold every kind')
def test_every_kind_has_a_reference_file(pattern):
    assert golden_names(pattern)


def test_another_folders_files_are_found_whatever_they_are_called(tmp_path):
    shutil.copy(os.path.join(OWN, 'lr_schedule.json'), tmp_path / 'lr_schedule_other.json')
    found = subprocess.run(
        [sys.executable, '-m', 'pytest', 'tests/solver', '-k', 'golden', '--collect-only', '-q'],
        text=True,
        capture_output=True,
        cwd=os.path.dirname(os.path.dirname(OWN)),
        env={**os.environ, 'PEDESTAL_GOLDEN': str(tmp_path)},
    )
    assert 'golden-lr_schedule_other-0' in found.stdout and 'golden-lr_schedule-0' not in found.stdout, (
        found.stdout + found.stderr
    )


@pytest.mark.parametrize(
    'changes', [{}, {'loss_names': 'sdm+id+amm', 'MLM': True}, {'loss_names': 'sdm+itc', 'php_parts': 'crfm'}]
)
def test_the_tests_options_are_the_command_lines(changes):
    flags = [
        word for name, value in changes.items() for word in ([f'--{name}'] if value is True else [f'--{name}', value])
    ]
    ours, parsed = vars(options(**changes)), vars(get_args(flags))
    assert ours == parsed
