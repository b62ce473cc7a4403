"""run_scripts/demo.py: what a sentence finds, and what is refused."""
import glob
import os
import sys

import pytest

import pedestal
from run_scripts import demo
from utils.errors import UserError
from utils.options import build_test_parser, parse_test_options


@pytest.fixture
def args(trained):
    parser = build_test_parser('', '')
    parser.add_argument('--images')
    return parse_test_options(parser, ['--config_file', trained])


def test_the_test_split_is_searched_without_a_folder(args, opened):
    people = pedestal.People(args)
    found = demo.find_in(people, args)('a woman in a red coat', 3)
    paths = list(dict.fromkeys(opened.images.dataset.img_paths))
    assert [path for path, _ in found] == [path for path, _ in people.search('a woman in a red coat', paths, top=3)]


def test_a_folder_is_searched_as_search_does(args, opened, tmp_path):
    for number, path in enumerate(opened.images.dataset.img_paths[:4]):
        os.symlink(path, tmp_path / f'{number}.jpg')
    people, args.images = pedestal.People(args), str(tmp_path)
    assert demo.find_in(people, args)('a man', 3) == people.search('a man', str(tmp_path), top=3)
    assert len(glob.glob(f'{tmp_path}/*.jpg')) == 4


def test_the_page_answers(opened, monkeypatch):
    gradio = pytest.importorskip('gradio', reason='Gradio is not installed: pip install gradio')
    path = opened.images.dataset.img_paths[0]
    page = demo.build(gradio, lambda text, top: [(path, 0.5)] * top, top=2)
    answer = next(function.fn for function in page.fns.values() if function.api_name == 'find')
    (image, caption), again = answer('a man')
    assert caption == f'0.500  {os.path.basename(path)}' and image.size and again[1] == caption

    warned = []
    monkeypatch.setattr(gradio, 'Warning', warned.append)
    page = demo.build(gradio, lambda text, top: [(path, 0.5)], 1, lambda text: f'{text} is cut')
    assert next(iter(page.fns.values())).fn('a man') and warned == ['a man is cut']

    def refuse(text, top):
        raise UserError('a caption is empty; describe somebody')
    page = demo.build(gradio, refuse, top=2)
    with pytest.raises(gradio.Error, match='describe somebody'):
        next(iter(page.fns.values())).fn('')


def test_without_gradio_it_is_one_sentence(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(UserError, match='the demo needs Gradio: pip install gradio'):
        demo.main(['--config_file', trained])
