"""Documents name existing files, programs and flags, and no page of docs/ is long."""
import glob
import os
import re

import pytest
import yaml
from torch.distributed.run import get_args_parser as torchruns_parser

from datasets.synthpedes.writing import DIFFICULTY_OPTIONS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOCUMENTS = sorted(os.path.relpath(path, ROOT) for pattern in ('*.md', 'docs/*.md')
                   for path in glob.glob(os.path.join(ROOT, pattern)))
LONGEST_PAGE = 200     # lines
FOLDERS = r'(?:run_scripts|tests|docs|configs|model|datasets|utils|processor|solver)'


def read_document(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        return file.read()


@pytest.mark.parametrize('name', DOCUMENTS)
def test_links_lead_somewhere(name):
    links = [link.split('#')[0] for link in re.findall(r'\]\(([^)\s]+)\)', read_document(name))
             if not link.startswith(('http', '#'))]
    folder = os.path.dirname(os.path.join(ROOT, name))
    assert not [link for link in links if not os.path.exists(os.path.join(folder, link))]


@pytest.mark.parametrize('name', DOCUMENTS)
def test_files_and_programs_are_there(name):
    text = read_document(name)
    paths = set(re.findall(rf'(?<![\w/<.-]){FOLDERS}/[\w/.-]+\.(?:py|sh|md|yaml|bib)\b', text)) - MADE_BY_READERS
    modules = {module.replace('.', '/') for module in re.findall(r'python -m ([\w.]+)', text)
               if re.match(FOLDERS, module)}
    assert not [path for path in paths if not os.path.exists(os.path.join(ROOT, path))]
    assert not [module for module in modules
                if not any(os.path.exists(os.path.join(ROOT, module + end)) for end in ('.py', '/__main__.py'))]


@pytest.mark.parametrize('name', DOCUMENTS)
def test_flags_are_there(name):
    declared = {flag for path in glob.glob(os.path.join(ROOT, '**', '*.py'), recursive=True)
                for flag in FLAG.findall(read_document(path))}
    declared |= set(FLAG.findall(' '.join(re.findall(r'```python.*?```', read_document(name), flags=re.DOTALL))))
    declared |= TORCHRUNS if 'torchrun' in read_document(name) else set()
    declared |= DOCKERS if 'docker' in read_document(name) else set()
    declared |= {f'--{knob}' for knob in DIFFICULTY_OPTIONS} if 'datasets.synthpedes' in read_document(name) else set()
    written = re.findall(r'(?<![\w-])--[a-zA-Z][\w-]*', read_document(name))
    named = {flag if flag in declared else flag.replace('--no-', '--') for flag in written}
    assert not named - declared


TORCHRUNS = {flag for action in torchruns_parser()._actions for flag in action.option_strings}
DOCKERS = {'--build-arg', '--gpus', '--include', '--isolation', '--shm-size', '--user', '--variant'}    # and buildah's
FLAG = re.compile(r"'(--[a-zA-Z][\w-]*)'")
# The examples of README.md, docs/adding_a_tuning.md and docs/training_tools.md.
MADE_BY_READERS = {'model/heads/pull.py', 'model/tunings/ia3.py', 'model/tunings/bitfit.py',
                   'processor/loggers/latest.py'}


@pytest.mark.parametrize('name', [name for name in DOCUMENTS if name.startswith('docs')])
def test_no_page_is_long(name):
    assert len(read_document(name).splitlines()) <= LONGEST_PAGE


def test_the_glossary_has_each_word_once_in_order():
    words = re.findall(r'^\| ([^|]+?) \|', read_document('docs/glossary.md'), flags=re.MULTILINE)[2:]
    assert words == sorted(set(words), key=str.lower) and len(words) > 20


def test_papers_have_a_title_a_year_and_a_key_of_their_own():
    text = read_document('docs/methods.bib')
    entries = re.findall(r'^@\w+\{([\w-]+),\n(.*?)^\}', text, flags=re.MULTILINE | re.DOTALL)
    assert text.count('\n@') == len(entries) == len({key for key, _ in entries})
    for key, entry in entries:
        fields = dict(re.findall(r'^  (\w+)\s+= \{(.*)\},$', entry, flags=re.MULTILINE))
        assert fields['title'] and re.fullmatch(r'20\d\d', fields['year']), key
        assert 'author' in fields or 'note' in fields, key


def test_the_citation_has_what_the_format_asks_for():
    citation = yaml.safe_load(read_document('CITATION.cff'))
    assert citation['cff-version'] == '1.2.0' and citation['license'] == 'MIT'
    assert {'title', 'message', 'authors'} <= set(citation)
