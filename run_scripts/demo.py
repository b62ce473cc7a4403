"""Serve a web page that finds people by a description.

    python -m run_scripts.demo --config_file <run>/configs.yaml --images photos

Without --images the page searches the test split of the run. The server listens only on this machine, unless --host
names another address. Then it requires a token, which is a part of the address that the tool prints. The server accepts
no uploads and sends no data to other machines. With --rerank the images are ordered again. It needs Gradio: pip install
gradio.
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

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from utils.declarations import retry_with_pytorch
from utils.errors import UserError, run_program
from utils.iotools import read_image
from utils.option_types import positive_int, positive_int_up_to
from utils.options import REPORT_OPTIONS, build_test_parser, parse_test_options
from utils.rerank_options import read_rerank_settings
from utils.request_guard import LOCAL_NAMES, RequestGuard, is_loopback, get_host_names

MAX_SIDE = 640                       # largest side of a shown image in pixels; a photo may have 50 million pixels
CACHED_IMAGES = 256                  # shown images in memory, at most 300 MB
# Gradio's paths for the one function of the page. Gradio has others, which accept uploads.
POSTS = re.compile(r'(/gradio_api)?/(queue/join|cancel|reset|(call|call/v2|run|api)/\w+)/?')
CLEANUP_PERIOD, MAX_AGE = 600, 3600  # seconds between removals of shown images from the disk, and their largest age


def main(argv=None):
    args = read_options(argv)
    with temporary_folder() as folder:
        gradio = import_gradio(folder)
        listener = open_socket(args.host, args.port)
        import pedestal
        people = pedestal.People(args)
        page = build_page(gradio, build_search(people, args), args.top, people.describe_truncation)
        token = args.token or (None if is_loopback(args.host) else secrets.token_urlsafe(24))
        advice = '; the server requires the token in this address' if token else ''
        address = page_address(args.host, listener, token)
        print(f'open {address} in a browser; Ctrl-C ends the server{advice}', flush=True)
        serve(build_app(gradio, page, args, token), listener)


@retry_with_pytorch
def read_options(argv):
    return parse_test_options(build_demo_parser(), argv)


def build_demo_parser():
    parser = build_test_parser('demo.py', __doc__, (*REPORT_OPTIONS, 'output_dir'))
    parser.add_argument('--images', help="folder with the photos to search (default: the run's test split)")
    parser.add_argument('--top', type=positive_int, default=10, help='number of images per description')
    parser.add_argument('--port', type=positive_int_up_to(65535), default=7860, help='port of this machine')
    parser.add_argument('--host', default='127.0.0.1',
                        help='address to listen on; 0.0.0.0 accepts other machines, with the token')
    parser.add_argument('--token', type=valid_token,
                        help='token that a browser must send (default: none on 127.0.0.1, else a random one)')
    parser.add_argument('--allow_host', nargs='+', default=[], metavar='NAME',
                        help='further names of this machine in addresses, such as the name of a proxy')
    return parser


def valid_token(text):
    """An argparse type: letters that need no escapes in an address."""
    if not re.fullmatch(r'[A-Za-z0-9_-]{8,200}', text):
        raise argparse.ArgumentTypeError(
            f'a token of {len(text)} characters: it must have 8 to 200 letters, digits, - or _')
    return text


# -- the page --------------------------------------------------------------------------------------------------------

def import_gradio(folder=None):
    """Import Gradio and let it store the shown images in ``folder``."""
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')   # Gradio would report to its makers
    os.environ.update({'GRADIO_RUN_HISTORY': 'False', 'GRADIO_SSR_MODE': 'False'})
    if folder:
        os.environ['GRADIO_TEMP_DIR'] = folder
    try:
        import gradio
    except ImportError:
        raise UserError('the demo needs Gradio: pip install gradio') from None
    return gradio


def build_search(people, args):
    """Embed the photos or the test split, and return a function ``(description, top) -> [(path, similarity), ...]``."""
    settings = read_rerank_settings(args)
    if args.images:
        from processor.search_results import report_skipped
        photos = people.index_images(args.images)
        report_skipped(photos)
    else:
        photos = people.split
    if settings:
        find_images = people.build_reranked_search(photos, settings)    # finds neighbors before the page opens
        return lambda text, top: find_images([text], top)[0]
    if args.images:
        return lambda text, top: people.search(text, photos, top)
    gallery = people.split.gallery      # embeds the images before the page opens

    def search(text, top):
        results, = people.split.search(people.encode_captions([text]), top, gallery)
        return [(path, score) for path, _, score in results]
    return search


def build_page(gradio, search, top, describe_truncation=lambda text: ''):
    """Build the Gradio page.

    Args:
        gradio: the module.
        search: a function ``(description, top) -> [(path, similarity), ...]``.
        top: the number of images per description.
        describe_truncation: a function ``description -> warning``; '' if there is nothing to warn of.
    """
    def find_images(text):
        try:
            images = [label_image(path, score) for path, score in search(text, top)]
            if warning := describe_truncation(text):
                gradio.Warning(html.escape(warning))
            return images
        except UserError as error:
            raise gradio.Error(html.escape(str(error)), print_exception=False) from None

    with gradio.Blocks(title='Pedestal', analytics_enabled=False, delete_cache=(CLEANUP_PERIOD, MAX_AGE)) as page:
        gradio.Markdown('# Whom are you looking for?')
        text = gradio.Textbox(label='Description', placeholder='a woman in a red coat with a black backpack',
                              autofocus=True)
        button = gradio.Button('Find', variant='primary')
        results = gradio.Gallery(show_label=False, columns=5, object_fit='contain', height='auto', format='jpeg',
                                 interactive=False)
        button.click(find_images, text, results, api_name='find')
        text.submit(find_images, text, results, api_name=False)
    return page


def label_image(path, score):
    """``(image, caption)`` of a result. If the photo cannot be read any more, a gray image, and the caption says so."""
    from PIL import Image
    name = os.path.basename(path)
    try:
        status = os.stat(path)
        return load_thumbnail(path, status.st_mtime_ns, status.st_size), f'{score:.3f}  {name}'
    except (UserError, OSError):
        return Image.new('RGB', (64, 128), 'lightgrey'), f'{score:.3f}  missing or damaged: {name}'


@functools.lru_cache(CACHED_IMAGES)
def load_thumbnail(path, modified, size):
    """A photo with sides of at most ``MAX_SIDE`` pixels. ``modified`` and ``size`` are keys of the cache only."""
    image = read_image(path)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


# -- the server ------------------------------------------------------------------------------------------------------

def build_app(gradio, page, args, token):
    """The page as an ASGI app that rejects requests of other pages and of unknown hosts."""
    from fastapi import FastAPI
    app = gradio.mount_gradio_app(FastAPI(docs_url=None, redoc_url=None, openapi_url=None), page, path='/')
    is_public = not is_loopback(args.host)
    hosts = {*LOCAL_NAMES, args.host, *args.allow_host, *(get_host_names() if is_public else ())}
    return RequestGuard(app, hosts, POSTS, token, any_address=is_public)


def serve(app, listener):
    """Answer requests until Ctrl-C or a signal ends the program."""
    import uvicorn
    config = uvicorn.Config(app, log_level='warning', access_log=False, ws='none', timeout_graceful_shutdown=1)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def temporary_folder():
    """A new folder that no other user can read. It is removed at the end, also after SIGTERM and SIGHUP."""
    def exit_program(number, _):
        sys.exit(128 + number)
    signals = [number for number in (signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM))
               if signal.getsignal(number) is not signal.SIG_IGN]     # nohup ignores SIGHUP on purpose
    previous = {number: signal.signal(number, exit_program) for number in dict.fromkeys(signals)}
    try:
        with tempfile.TemporaryDirectory(prefix='pedestal_demo_', ignore_cleanup_errors=True) as folder:
            yield folder
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def open_socket(host, port):
    """A listening socket. An error comes before photos are embedded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        raise UserError(f'cannot listen at --host {host} --port {port}: another program uses the port, or the address '
                        'is not of this machine; try another --port') from error


def page_address(host, listener, token):
    """The address that a user opens."""
    name = socket.gethostname() if host in ('0.0.0.0', '::', '') else f'[{host}]' if ':' in host else host
    return f"http://{name}:{listener.getsockname()[1]}{f'/?token={token}' if token else ''}"


if __name__ == '__main__':
    run_program(main)
