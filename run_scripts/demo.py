"""A page in the browser where a sentence finds people: ``python -m run_scripts.demo --config_file <run>/configs.yaml --images photos``.

Without ``--images`` it finds them among the images of the run's test split. It listens on this machine alone unless ``--host`` says
otherwise; then it asks for a token, which is a part of the address that it prints. It takes no uploads and sends nothing anywhere. It
needs Gradio: ``pip install gradio``.
"""
import argparse
import contextlib
import functools
import html
import os
import re
import secrets
import signal
import socket
import sys
import tempfile

from PIL import Image

from run_scripts import start
import pedestal
from run_scripts.search import tell
from utils.errors import UserError
from utils.iotools import read_image
from utils.options import build_test_parser, count, parse_test_options, up_to
from utils.request_guard import LOCAL_NAMES, RequestGuard, is_loopback, names_of_this_machine

SIDE = 640                  # pixels of a shown image, at most: a photo may have 50 million
THUMBNAILS = 256            # in memory, at most 300 MB
# Gradio's paths for the one function of the page; it has others, which take uploads.
POSTS = re.compile(r'(/gradio_api)?/(queue/join|cancel|reset|(call|call/v2|run|api)/\w+)/?')
CLEAN_EVERY, KEEP = 600, 3600                          # seconds: shown images are removed from the disk


def main(argv=None):
    args = parse_test_options(build_demo_parser(), argv)
    with private_folder() as folder:
        gradio = import_gradio(folder)
        listener = listen(args.host, args.port)
        people = pedestal.People(args)
        page = build(gradio, find_in(people, args), args.top, people.describe_truncation)
        token = args.token or (None if is_loopback(args.host) else secrets.token_urlsafe(24))
        needed = '; the page asks everybody for the token in this address' if token else ''
        print(f'open {format_address(args.host, listener, token)} in a browser; Ctrl-C ends it{needed}', flush=True)
        serve(build_app(gradio, page, args, token), listener)


def build_demo_parser():
    parser = build_test_parser('demo.py', __doc__)
    parser.add_argument('--images', help="a folder with photos; by default the run's test split")
    parser.add_argument('--top', type=count, default=10, help='images a sentence')
    parser.add_argument('--port', type=up_to(65535), default=7860, help='of this machine')
    parser.add_argument('--host', default='127.0.0.1', help='the address to listen at; 0.0.0.0 lets other machines in, with the token')
    parser.add_argument('--token', type=token, help='what a browser must know (default: none on 127.0.0.1, else a random one)')
    parser.add_argument('--allow_host', nargs='+', default=[], metavar='NAME',
                        help='further names of this machine in addresses, such as that of a proxy')
    return parser


def token(text):
    if not re.fullmatch(r'[A-Za-z0-9_-]{8,200}', text):
        raise argparse.ArgumentTypeError(f"a token of {len(text)} characters: give 8 to 200 letters, digits, - or _")
    return text


# -- the page ------------------------------------------------------------------------------------------------------------

def import_gradio(folder=None):
    """Gradio, which keeps the images that it shows in ``folder``."""
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')   # it would report to its makers
    os.environ.update({'GRADIO_RUN_HISTORY': 'False', 'GRADIO_SSR_MODE': 'False'})
    if folder:
        os.environ['GRADIO_TEMP_DIR'] = folder
    try:
        import gradio
    except ImportError:
        raise UserError('the demo needs Gradio: pip install gradio') from None
    return gradio


def find_in(people, args):
    """(sentence, how many) -> [(path, similarity)], over the photos or the test split's images, which are embedded here."""
    if args.images:
        photos = people.photos(args.images)
        tell(photos)
        return lambda text, top: people.search(text, photos, top)
    gallery = people.split.gallery      # embedded before the page is there

    def find(text, top):
        found, = people.split.search(people.encode_captions([text]), top, gallery)
        return [(path, score) for path, _, score in found]
    return find


def build(gradio, find, top, describe_truncation=lambda text: ''):
    """The page: ``find(sentence, how many)`` gives its images, ``describe_truncation(sentence)`` a warning or ''."""
    def answer(text):
        try:
            images = [make_tile(path, score) for path, score in find(text, top)]
            if warning := describe_truncation(text):
                gradio.Warning(html.escape(warning))
            return images
        except UserError as error:
            raise gradio.Error(html.escape(str(error)), print_exception=False) from None

    with gradio.Blocks(title='Pedestal', analytics_enabled=False, delete_cache=(CLEAN_EVERY, KEEP)) as page:
        gradio.Markdown('# Whom are you looking for?')
        text = gradio.Textbox(label='Description', placeholder='a woman in a red coat with a black backpack', autofocus=True)
        button = gradio.Button('Find', variant='primary')
        found = gradio.Gallery(show_label=False, columns=5, object_fit='contain', height='auto', format='jpeg', interactive=False)
        button.click(answer, text, found, api_name='find')
        text.submit(answer, text, found, api_name=False)
    return page


def make_tile(path, score):
    """``(image, caption)`` of a photo that was found. If it cannot be read any more, the image is grey."""
    name = os.path.basename(path)
    try:
        status = os.stat(path)
        return thumbnail(path, status.st_mtime_ns, status.st_size), f'{score:.3f}  {name}'
    except (UserError, OSError):
        return Image.new('RGB', (64, 128), 'lightgrey'), f'{score:.3f}  gone or damaged: {name}'


@functools.lru_cache(THUMBNAILS)
def thumbnail(path, modified, size):
    """A photo of at most ``SIDE`` pixels a side, made once for a file with this time and size."""
    image = read_image(path)
    image.thumbnail((SIDE, SIDE))
    return image


# -- the server ----------------------------------------------------------------------------------------------------------

def build_app(gradio, page, args, token):
    """The page as an ASGI app that answers its own browser pages alone."""
    from fastapi import FastAPI
    app = gradio.mount_gradio_app(FastAPI(docs_url=None, redoc_url=None, openapi_url=None), page, path='/')
    is_open = not is_loopback(args.host)
    hosts = {*LOCAL_NAMES, args.host, *args.allow_host, *(names_of_this_machine() if is_open else ())}
    return RequestGuard(app, hosts, POSTS, token, any_address=is_open)


def serve(app, listener):
    """Answer until Ctrl-C or a signal ends the program."""
    import uvicorn
    server = uvicorn.Server(uvicorn.Config(app, log_level='warning', access_log=False, ws='none', timeout_graceful_shutdown=1))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


@contextlib.contextmanager
def private_folder():
    """A new folder that no other user can read. It is removed at the end, also at SIGTERM and SIGHUP."""
    def leave(number, _):
        sys.exit(128 + number)
    handled = [number for number in (signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM))
              if signal.getsignal(number) is not signal.SIG_IGN]     # nohup means it
    previous = {number: signal.signal(number, leave) for number in dict.fromkeys(handled)}
    try:
        with tempfile.TemporaryDirectory(prefix='pedestal_demo_', ignore_cleanup_errors=True) as folder:
            yield folder
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def listen(host, port):
    """A socket that listens, taken before photos are embedded."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family)
    except (OSError, UnicodeError) as error:
        raise UserError(f'cannot listen at {host}, port {port}: it is taken, or no address of this machine; '
                        'try another --port') from error

def format_address(host, listener, token):
    """What a user opens."""
    name = socket.gethostname() if host in ('0.0.0.0', '::', '') else f'[{host}]' if ':' in host else host
    return f"http://{name}:{listener.getsockname()[1]}{f'/?token={token}' if token else ''}"


if __name__ == '__main__':
    start(main)
