"""ruff passes with the settings of pyproject.toml."""
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_ruff():
    command = [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise', '.']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
