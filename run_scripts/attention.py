"""Draw which parts of a photo and which words of a caption a model uses.

    python -m run_scripts.attention --config_file <run>/configs.yaml --image photo.jpg \\
        --caption "a red coat"
    python -m run_scripts.attention --config_file <run>/configs.yaml --noise 0 0.1 0.2

The figure shows these maps over the photo:

    - the attention of the class token in the last block of the image encoder;
    - the attention of heads, such as PHP's parts and A2TE's details, with the words that they
      weigh most;
    - the loss of similarity if a square of the photo is hidden, which works for every model;
    - for each word, its attention over the patches in the cross encoder. If the model has no
      cross encoder, the map shows the cosine similarity of the word's token and each patch. The
      number after a word is the loss of similarity if the caption does not have the word.

With --noise the figure shows retrieval on the test split instead, with Gaussian noise added to the images. The unit of
its standard deviation is the range of a pixel: 0 is no noise, 1 is the difference between black and white.
"""
import os
import sys

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from processor.search_results import draw_results, sample_queries
from utils.declarations import retry_with_pytorch
from utils.errors import UserError, run_program
from utils.figures import check_figure_path, import_pyplot, save_figure, wrap_text
from utils.iotools import read_image
from utils.option_types import fraction
from utils.options import REPORT_OPTIONS, RERANK_OPTIONS, build_test_parser, parse_test_options

COLUMNS = 8   # panels in a row of the figure


def main(argv=None):
    args = read_options(argv)
    check_figure_path(args.out)
    if args.noise is not None and args.image:
        raise UserError('--noise draws retrieval on the test split and does not read --image: remove one of them')
    if args.noise is None and not (args.caption and args.image):
        raise UserError('--caption and --image are both required to draw attention; '
                        '--noise 0 0.1 0.2 draws retrieval with noise instead')
    figure = draw_noise(args) if args.noise is not None else draw_attention(args)
    save_figure(figure, args.out, dpi=110)
    print(f'wrote {args.out}')


@retry_with_pytorch
def read_options(argv):
    parser = build_test_parser('attention.py', __doc__, (*RERANK_OPTIONS, *REPORT_OPTIONS, 'output_dir'))
    parser.add_argument('--caption', help='description of a person')
    parser.add_argument('--image', help='file of a photo')
    parser.add_argument('--noise', type=fraction, nargs='+', metavar='STD',
                        help='standard deviations of the noise, 0 to 1: draw retrieval with noise')
    parser.add_argument('--out', default='attention.png', help='file of the figure (.png, .pdf or .svg)')
    return parse_test_options(parser, argv)


# -- attention -------------------------------------------------------------------------------------------------------

def draw_attention(args):
    import pedestal
    photo, result = read_image(args.image), pedestal.People(args).explain(args.image, args.caption)
    word_panels = [(f'{word} ({loss:+.3f})', weights) for word, weights, loss in result.words]
    return draw_panels(photo, [('', None), *result.maps, *word_panels],
                       f'{args.caption}\nsimilarity {result.similarity:.3f}')


def draw_panels(photo, panels, title):
    """A figure of maps over a photo.

    Args:
        photo: the ``PIL.Image``.
        panels: ``[(title, [rows, cols] or None), ...]``; None is the photo without a map.
        title: the title of the figure.
    """
    rows = -(-len(panels) // COLUMNS)
    aspect = photo.height / photo.width
    size = 1.4 * COLUMNS, rows * (1.4 * aspect + 0.3) + 0.5
    figure, axes = import_pyplot().subplots(rows, COLUMNS, figsize=size, squeeze=False, layout='constrained')
    figure.suptitle(title, fontsize=9, parse_math=False)
    for axis in axes.flat:
        axis.axis('off')
    for axis, (name, weights) in zip(axes.flat, panels):
        axis.imshow(photo, extent=(0, 1, 0, 1), aspect=aspect)
        axis.set_title(wrap_text(name, 24), fontsize=7, parse_math=False)
        if weights is not None:
            axis.imshow(weights.numpy(), extent=(0, 1, 0, 1), aspect=aspect, cmap='inferno', alpha=0.6,
                        interpolation='nearest')
    return figure


# -- noise -----------------------------------------------------------------------------------------------------------

def draw_noise(args):
    """A figure with a row of retrieved images for each amount of noise. Prints Rank-1 and mAP of each."""
    import pedestal
    from processor.evaluation import compute_rankings
    from utils.retrieval_metrics import retrieval_metrics
    people, rows = pedestal.People(args), []
    split = people.split
    (caption, pid), = [(args.caption, None)] if args.caption else sample_queries(split, 1)
    query, (queries, q_pids) = people.encode_captions([caption]), split.queries
    for std in args.noise:
        gallery = split.embed_images(encode_with_noise(people.model, std, args.seed, split.image_stats))
        metrics = retrieval_metrics(compute_rankings(queries, gallery[0], q_pids, gallery[1])['t2i'])
        summary = f"noise {std:g}: Rank-1 {metrics['R1']:.2f}, mAP {metrics['mAP']:.2f}"
        print(summary)
        rows.append((f'{summary}. {caption}', pid, *split.search(query, 8, gallery)))
    return draw_results(rows)


def encode_with_noise(model, std, seed, image_stats):
    """``model.encode_image`` of images with Gaussian noise. Each ``std`` scales the same noise."""
    import torch
    generator = torch.Generator().manual_seed(seed)

    def encode(images):
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        noise = noise / torch.tensor(image_stats.std, device=images.device).view(3, 1, 1)
        return model.encode_image(images + std * noise)
    return encode


if __name__ == '__main__':
    run_program(main)
