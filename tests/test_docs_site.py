"""The documentation site builds without a warning."""
import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NEEDED = ('mkdocs', 'material', 'mkdocstrings')


@pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in NEEDED),
                    reason='mkdocs is not installed: pip install -r requirements-docs.txt')
def test_the_site_builds_in_strict_mode(tmp_path):
    build = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path)], cwd=ROOT,
                           capture_output=True, text=True, timeout=600)
    assert build.returncode == 0, build.stderr
    start = (tmp_path / 'index.html').read_text(encoding='utf-8')
    assert 'Pedestal' in start and 'href="evaluation/"' in start      # the README's links lead to pages of the site
    heads = (tmp_path / 'api' / 'heads' / 'index.html').read_text(encoding='utf-8')
    assert 'image_embedding' in heads and ':class:<code>' not in heads
