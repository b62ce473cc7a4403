"""What the documents name is there."""
import glob
import os
import re

import pytest
import yaml
from torch.distributed.run import get_args_parser as torchruns_parser

from datasets.synthpedes.writing import DIFFICULTY_OPTIONS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOCUMENTS = sorted(os.path.relpath(path, ROOT) for pattern in ('*.md', 'docs/*.md') for path in glob.glob(os.path.join(ROOT, pattern)))
FOLDERS = r'(?:run_scripts|tests|docs|configs|model|datasets|utils|processor|solver)'


def text_of(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        return file.read()


@pytest.mark.parametrize('name', DOCUMENTS)
def test_links_lead_somewhere(name):
    links = [link.split('#')[0] for link in re.findall(r'\]\(([^)\s]+)\)', text_of(name)) if not link.startswith(('http', '#'))]
    folder = os.path.dirname(os.path.join(ROOT, name))
    assert not [link for link in links if not os.path.exists(os.path.join(folder, link))]


@pytest.mark.parametrize('name', DOCUMENTS)
def test_files_and_programs_are_there(name):
    text = text_of(name)
    paths = {path for path in re.findall(rf'(?<![\w/<.-]){FOLDERS}/[\w/.-]+\.(?:py|sh|md|yaml|bib)\b', text) if path not in MADE_BY_READERS}
    modules = {module.replace('.', '/') for module in re.findall(r'python -m ([\w.]+)', text) if re.match(FOLDERS, module)}
    assert not [path for path in paths if not os.path.exists(os.path.join(ROOT, path))]
    assert not [module for module in modules
                if not any(os.path.exists(os.path.join(ROOT, module + end)) for end in ('.py', '/__main__.py'))]


@pytest.mark.parametrize('name', DOCUMENTS)
def test_flags_are_there(name):
    declared = {flag for path in glob.glob(os.path.join(ROOT, '**', '*.py'), recursive=True) for flag in FLAG.findall(text_of(path))}
    declared |= set(FLAG.findall(' '.join(re.findall(r'```python.*?```', text_of(name), flags=re.DOTALL))))
    declared |= TORCHRUNS if 'torchrun' in text_of(name) else set()
    declared |= {f'--{knob}' for knob in DIFFICULTY_OPTIONS} if 'datasets.synthpedes' in text_of(name) else set()
    told = {flag.replace('--no-', '--') for flag in re.findall(r'(?<![\w-])--[a-zA-Z][\w-]*', text_of(name))}
    assert not told - declared


TORCHRUNS = {flag for action in torchruns_parser()._actions for flag in action.option_strings}
FLAG = re.compile(r"'(--[a-zA-Z][\w-]*)'")
MADE_BY_READERS = {'model/heads/pull.py'}    # the README's example


def test_the_glossary_has_each_word_once_in_order():
    words = re.findall(r'^\| ([^|]+?) \|', text_of('docs/glossary.md'), flags=re.MULTILINE)[2:]
    assert words == sorted(set(words), key=str.lower) and len(words) > 20


def test_papers_have_a_title_a_year_and_a_key_of_their_own():
    entries = re.findall(r'^@\w+\{([\w-]+),\n(.*?)^\}', text_of('docs/methods.bib'), flags=re.MULTILINE | re.DOTALL)
    assert text_of('docs/methods.bib').count('\n@') == len(entries) == len({key for key, _ in entries})
    for key, entry in entries:
        fields = dict(re.findall(r'^  (\w+)\s+= \{(.*)\},$', entry, flags=re.MULTILINE))
        assert fields['title'] and re.fullmatch(r'20\d\d', fields['year']) and ('author' in fields or 'note' in fields), key


def test_the_citation_has_what_the_format_asks_for():
    citation = yaml.safe_load(text_of('CITATION.cff'))
    assert citation['cff-version'] == '1.2.0' and {'title', 'message', 'authors'} <= set(citation) and citation['license'] == 'MIT'
