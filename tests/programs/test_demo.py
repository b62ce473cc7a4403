"""run_scripts/demo.py: what a sentence finds, and what is refused."""
import glob
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading

import numpy as np
import pytest
from PIL import Image

import pedestal
from run_scripts import ROOT, demo
from utils.errors import UserError
from utils.options import build_test_parser, parse_test_options


@pytest.fixture
def args(trained):
    parser = build_test_parser('', '')
    parser.add_argument('--images')
    return parse_test_options(parser, ['--config_file', trained])


def test_the_test_split_is_searched_without_a_folder(args, opened):
    people = pedestal.People(args)
    results = demo.build_search(people, args)('a woman in a red coat', 3)
    paths = list(dict.fromkeys(opened.images.dataset.img_paths))
    assert [path for path, _ in results] == [path for path, _ in people.search('a woman in a red coat', paths, top=3)]


def test_a_folder_is_searched_as_search_does(args, opened, tmp_path):
    for number, path in enumerate(opened.images.dataset.img_paths[:4]):
        os.symlink(path, tmp_path / f'{number}.jpg')
    people, args.images = pedestal.People(args), str(tmp_path)
    assert demo.build_search(people, args)('a man', 3) == people.search('a man', str(tmp_path), top=3)
    assert len(glob.glob(f'{tmp_path}/*.jpg')) == 4


def test_the_page_answers(opened, monkeypatch):
    gradio = pytest.importorskip('gradio', reason='Gradio is not installed: pip install gradio')
    path = opened.images.dataset.img_paths[0]
    page = demo.build_page(gradio, lambda text, top: [(path, 0.5)] * top, top=2)
    answer = next(function.fn for function in page.fns.values() if function.api_name == 'find')
    (image, caption), again = answer('a man')
    assert caption == f'0.500  {os.path.basename(path)}' and image.size and again[1] == caption

    warned = []
    monkeypatch.setattr(gradio, 'Warning', warned.append)
    page = demo.build_page(gradio, lambda text, top: [(path, 0.5)], 1, lambda text: f'{text} is cut')
    assert next(iter(page.fns.values())).fn('a man') and warned == ['a man is cut']

    def refuse(text, top):
        raise UserError('a caption is empty; describe somebody')
    page = demo.build_page(gradio, refuse, top=2)
    with pytest.raises(gradio.Error, match='describe somebody'):
        next(iter(page.fns.values())).fn('')


def test_without_gradio_it_is_one_sentence(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(UserError, match='the demo needs Gradio: pip install gradio'):
        demo.main(['--config_file', trained])


# -- photos ----------------------------------------------------------------------------------------------------------

def test_a_large_or_wide_photo_is_shown_small(tmp_path):
    """WebP, which Gradio would write, ends at 16,383 pixels."""
    for name, size in (('wide', (20_000, 20)), ('large', (2000, 3000)), ('small', (20, 40))):
        Image.new('RGB', size, 'red').save(tmp_path / f'{name}.png')
        image, caption = demo.label_image(str(tmp_path / f'{name}.png'), 0.5)
        assert max(image.size) == min(demo.MAX_SIDE, max(size)) and caption == f'0.500  {name}.png'


def test_a_photo_that_was_damaged_since_the_start_is_grey(tmp_path, opened):
    good, path, gone = opened.images.dataset.img_paths[0], tmp_path / 'a.png', tmp_path / 'gone.png'
    Image.new('RGB', (8, 8), 'red').save(path)
    assert demo.label_image(str(path), 0.5)[0].getpixel((0, 0)) == (255, 0, 0)
    path.write_bytes(path.read_bytes()[:40])
    (grey, caption), (_, missing), (_, expected) = (demo.label_image(str(photo), 0.5) for photo in (path, gone, good))
    assert grey.getpixel((0, 0)) == (211, 211, 211) and caption == '0.500  missing or damaged: a.png'
    assert missing == '0.500  missing or damaged: gone.png' and expected == f'0.500  {os.path.basename(good)}'


def test_a_photo_is_decoded_once_and_again_if_it_changed(tmp_path, monkeypatch):
    path, reads = tmp_path / 'a.png', []
    Image.new('RGB', (8, 8), 'red').save(path)
    read = demo.read_image
    monkeypatch.setattr(demo, 'read_image', lambda path: reads.append(path) or read(path))
    first, again = (demo.label_image(str(path), score)[0] for score in (0.5, 0.4))
    assert first is again and len(reads) == 1
    Image.new('RGB', (9, 9), 'blue').save(path)
    assert demo.label_image(str(path), 0.5)[0].getpixel((0, 0)) == (0, 0, 255) and len(reads) == 2
    assert demo.load_thumbnail.cache_info().maxsize == demo.CACHED_IMAGES


# -- the folder of what is shown, the address and the token ----------------------------------------------------------

def test_what_is_shown_lies_in_a_private_folder_that_is_removed():
    with demo.temporary_folder() as folder:
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        with open(os.path.join(folder, 'photo.jpeg'), 'w') as file:
            file.write('x')
    assert not os.path.exists(folder)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_the_folder_is_removed_at_a_signal(number, tmp_path):
    # nohup, which may run the tests, ignores SIGHUP
    code = (f'import signal, time; from run_scripts import demo; signal.signal({int(number)}, signal.SIG_DFL)\n'
            'with demo.temporary_folder() as folder: print(folder, flush=True); time.sleep(600)')
    with subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, 'TMPDIR': str(tmp_path)}) as process:
        folder = process.stdout.readline().strip()
        assert os.path.isdir(folder)
        process.send_signal(number)
        assert process.wait(120) == 128 + number and os.listdir(tmp_path) == []


def test_the_address_holds_the_token():
    with demo.open_socket('127.0.0.1', 0) as listener:
        port = listener.getsockname()[1]
        assert demo.page_address('127.0.0.1', listener, None) == f'http://127.0.0.1:{port}'
        assert demo.page_address('::1', listener, 'secret_x') == f'http://[::1]:{port}/?token=secret_x'
        assert demo.page_address('0.0.0.0', listener,
                                   'secret_x') == f'http://{socket.gethostname()}:{port}/?token=secret_x'


def test_what_the_command_line_refuses(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', sys)
    for words, sentence in ((['--token', 'short'], 'a token of 5 characters: it must have 8 to 200 letters'),
                            (['--token', 'with space'], 'letters, digits'),
                            (['--host', '203.0.113.1'], 'cannot listen at --host 203.0.113.1 --port')):
        with pytest.raises(UserError, match=sentence):
            demo.main(['--config_file', trained, *words])
    message = 'another program uses the port.*try another --port'
    with demo.open_socket('127.0.0.1', 0) as listener, pytest.raises(UserError, match=message):
        demo.main(['--config_file', trained, '--port', str(listener.getsockname()[1])])


# -- the whole page, with Gradio -------------------------------------------------------------------------------------

@pytest.fixture(params=['127.0.0.1', '0.0.0.0'])
def served(request, tmp_path, monkeypatch):
    """(port, token, photo, folder of what is shown) of a page that finds one photo, in another thread."""
    gradio = pytest.importorskip('gradio', reason='Gradio is not installed: pip install gradio')
    import uvicorn
    folder, token = tempfile.mkdtemp(dir=tmp_path), None if request.param == '127.0.0.1' else 'tokentoken'
    monkeypatch.setenv('GRADIO_TEMP_DIR', folder)
    photo = str(tmp_path / 'a<b>.png')
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 30, 3), dtype=np.uint8)).save(photo)
    args = demo.build_demo_parser().parse(['--host', request.param])
    app = demo.build_app(gradio, demo.build_page(gradio, lambda text, top: [(photo, 0.5)], 1), args, token)
    listener = demo.open_socket('127.0.0.1', 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level='warning', ws='none', timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()[1], token, photo, folder
    server.should_exit = True
    thread.join(60)


def ask(port, method, path, body=None, **headers):
    """(status, body)."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=120)
    connection.request(method, path, body, {name.replace('_', '-'): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, response.read()


def test_a_browser_is_answered_and_others_are_not(served):
    port, token, photo, folder = served
    known = {'Authorization': f'Bearer {token}'} if token else {}
    if token:
        assert ask(port, 'GET', '/')[0] == 401 and ask(port, 'GET', '/config')[0] == 401
    assert ask(port, 'GET', '/', **known)[0] == 200
    assert ask(port, 'GET', '/', Host='evil.com', **known)[0] == 403
    assert ask(port, 'GET', '/config', Origin='http://evil.com', **known)[0] == 403
    for path in ('/gradio_api/upload', '/upload', '/gradio_api/component_server', '/gradio_api/process_recording'):
        assert ask(port, 'POST', path, b'x' * 1000, Content_Type='multipart/form-data; boundary=x', **known)[0] == 405
    status, body = ask(port, 'POST', '/gradio_api/call/find', json.dumps({'data': ['a man']}),
                       Content_Type='application/json', **known)
    assert status == 200
    output = ask(port, 'GET', f"/gradio_api/call/find/{json.loads(body)['event_id']}", **known)[1].decode()
    (results,), = [json.loads(line[len('data: '):]) for line in output.splitlines() if line.startswith('data: [')]
    assert results[0]['caption'] == '0.500  a<b>.png'
    assert results[0]['image']['path'].startswith(os.path.realpath(folder))
    # a JPEG
    assert ask(port, 'GET', f"/gradio_api/file={results[0]['image']['path']}", **known)[1][:2] == b'\xff\xd8'
    # the photo itself is not served
    assert ask(port, 'GET', f'/gradio_api/file={photo}', **known)[0] == 403
