"""A page in the browser where a sentence finds people: ``python -m run_scripts.demo --config_file <run>/configs.yaml --images photos``.

Without ``--images`` it finds them among the images of the run's test split. It listens on this machine alone unless ``--host`` says
otherwise, and sends nothing anywhere. It needs Gradio: ``pip install gradio``.
"""
import os

from run_scripts import start
import pedestal
from run_scripts.search import tell
from utils.errors import UserError
from utils.iotools import read_image
from utils.options import build_test_parser, count, parse_test_options, up_to


def main(argv=None):
    parser = build_test_parser('demo.py', __doc__)
    parser.add_argument('--images', help="a folder with photos; by default the run's test split")
    parser.add_argument('--top', type=count, default=10, help='images a sentence')
    parser.add_argument('--port', type=up_to(65535), default=7860, help='of this machine')
    parser.add_argument('--host', default='127.0.0.1', help='the address to listen at; 0.0.0.0 lets other machines in')
    args = parse_test_options(parser, argv)
    gradio = import_gradio()
    people = pedestal.People(args)
    page = build(gradio, find_in(people, args), args.top, people.describe_truncation)
    try:
        page.launch(server_name=args.host, server_port=args.port, share=False, quiet=True, prevent_thread_lock=True)
    except OSError as error:   # Gradio's own words name its variables
        raise UserError(f'cannot listen at {args.host}, port {args.port}: it is taken, or no address of this machine; try another '
                        '--port') from error
    print(f'open http://{args.host}:{args.port} in a browser; Ctrl-C ends it', flush=True)
    page.block_thread()


def import_gradio():
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')   # it would report to its makers
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
            images = [(read_image(path), f'{score:.3f}  {os.path.basename(path)}') for path, score in find(text, top)]
            if warning := describe_truncation(text):
                gradio.Warning(warning)
            return images
        except UserError as error:
            raise gradio.Error(str(error)) from None

    with gradio.Blocks(title='Pedestal', analytics_enabled=False) as page:
        gradio.Markdown('# Whom are you looking for?')
        text = gradio.Textbox(label='Description', placeholder='a woman in a red coat with a black backpack', autofocus=True)
        button = gradio.Button('Find', variant='primary')
        found = gradio.Gallery(show_label=False, columns=5, object_fit='contain', height='auto')
        button.click(answer, text, found, api_name='find')
        text.submit(answer, text, found, api_name=False)
    return page


if __name__ == '__main__':
    start(main)
