"""The helpers of tests: reference vectors of each kind or of another folder, falling losses, the small vocabulary."""
import os
import shutil
import subprocess
import sys

import pytest
import torch

from tests.support import OWN, assert_falls, golden_names, options, small_vocabulary, vocabulary_size
from utils.options import get_args
from utils.simple_tokenizer import default_tokenizer

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


def test_a_loss_must_fall_below_its_bound():
    assert_falls(torch.tensor([4.0, 5.0, 1.9]), 0.5)
    assert_falls(torch.tensor([4.0, 2.1]), 0.5, offset=0.2)
    for losses in ([4.0, 2.1], [4.0, float('nan')]):
        with pytest.raises(AssertionError, match='every tenth loss'):
            assert_falls(torch.tensor(losses), 0.5)


def test_the_small_vocabulary_is_that_of_the_block_alone():
    words = 'a woman in a red coat and a blue shirt'
    expected = default_tokenizer().encode(words)
    with small_vocabulary():
        tokenizer = default_tokenizer()
        assert tokenizer.encode(words) == expected and max(tokenizer.decoder) + 1 == vocabulary_size() == 7514
        assert [tokenizer.mask_id, tokenizer.start_id, tokenizer.end_id] == [7511, 7512, 7513]
    assert max(default_tokenizer().decoder) + 1 == vocabulary_size() == 49408
