"""A small campaign of hostile cases, the same each time: ``python -m tests.campaign --minutes N`` is the long one."""
from tests.campaign.__main__ import main
from tests.several import run_forked
from tests.support import HANG_TIMEOUT


def test_every_case_ends_by_itself_with_success_or_a_sentence(tmp_path):
    status, output, errors = run_forked(
        main, ['--cases', '80', '--seed', '0', '--seconds', str(HANG_TIMEOUT)], tmp_path, 'campaign')
    assert status == 0, output + errors
    assert '80 cases' in output
