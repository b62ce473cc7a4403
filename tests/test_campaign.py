"""A small campaign of hostile cases, the same each time: ``python -m tests.campaign --minutes N`` is the long one."""
import os
import subprocess
import sys

from tests.support import HANG_TIMEOUT

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_every_case_ends_by_itself_with_success_or_a_sentence():
    campaign = subprocess.run(
        [sys.executable, '-m', 'tests.campaign', '--cases', '80', '--seed', '0', '--seconds', str(HANG_TIMEOUT)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    assert '80 cases' in campaign.stdout
