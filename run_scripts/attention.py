"""Where a model looks: ``python -m run_scripts.attention --config_file <run>/configs.yaml --caption "a red coat" --image photo.jpg``.

Shows on the photo: the attention of the embedding's token in the last block; what heads read, such as PHP's parts and A2TE's details,
with the words that they weigh most; what hiding a piece of the photo takes away from the similarity, which holds for every model,
whatever its heads make of the embedding; and for each word the patches that it looks at in the cross encoder or, of a run without one,
the patches whose tokens are like the word's. Behind each word is what leaving it out takes away.

``--noise`` shows instead how retrieval on the test split changes as noise is added to its images (deviations of 0 to 1 of a pixel's range).
"""
import torch

from run_scripts import start
import pedestal
from run_scripts.retrieve import draw, split_queries
from processor.evaluation import rankings
from utils.errors import UserError
from utils.iotools import read_image
from utils.metrics import retrieval_metrics
from utils.option_types import fraction
from utils.options import build_test_parser, parse_test_options
from utils.pictures import check_picture, pyplot, save_picture, wrap_text

COLUMNS = 8   # of the figure


def main(argv=None):
    parser = build_test_parser('attention.py', __doc__)
    parser.add_argument('--caption', help='a description')
    parser.add_argument('--image', help='a photo')
    parser.add_argument('--noise', type=fraction, nargs='+', metavar='DEVIATION', help='0 0.1 0.2: retrieval on the test split with noise')
    parser.add_argument('--out', default='attention.png', help='the picture to write')
    args = parse_test_options(parser, argv)
    check_picture(args.out)
    if args.noise is None and not (args.caption and args.image):
        raise UserError('--caption and --image say whose attention is drawn; --noise 0 0.1 0.2 shows retrieval with noise')
    figure = with_noise(args) if args.noise is not None else attention(args)
    save_picture(figure, args.out, dpi=110)
    print(f'wrote {args.out}')


# -- attention -------------------------------------------------------------------------------------------------------------

def attention(args):
    photo, found = read_image(args.image), pedestal.People(args).look(args.image, args.caption)
    panels = [('', None), *found.maps, *((f'{word} ({loss:+.3f})', rows) for word, rows, loss in found.words)]
    return grid(photo, panels, f'{args.caption}\nsimilarity {found.similarity:.3f}')


def grid(photo, panels, title):
    """Each panel's map over the photo."""
    rows = -(-len(panels) // COLUMNS)
    shape = photo.height / photo.width
    size = 1.4 * COLUMNS, rows * (1.4 * shape + 0.3) + 0.5
    figure, axes = pyplot().subplots(rows, COLUMNS, figsize=size, squeeze=False, layout='constrained')
    figure.suptitle(title, fontsize=9, parse_math=False)
    for axis in axes.flat:
        axis.axis('off')
    for axis, (name, values) in zip(axes.flat, panels):
        axis.imshow(photo, extent=(0, 1, 0, 1), aspect=shape)
        axis.set_title(wrap_text(name, 24), fontsize=7, parse_math=False)
        if values is not None:
            axis.imshow(values.numpy(), extent=(0, 1, 0, 1), aspect=shape, cmap='inferno', alpha=0.6, interpolation='nearest')
    return figure


# -- noise -----------------------------------------------------------------------------------------------------------------

def with_noise(args):
    """A row of images for each deviation, found in a gallery with so much noise; prints Rank-1 and mAP."""
    people, rows = pedestal.People(args), []
    split = people.split
    (caption, pid), = [(args.caption, None)] if args.caption else split_queries(split, 1)
    one, (queries, q_pids) = people.encode_captions([caption]), split.queries
    for deviation in args.noise:
        gallery = split.embed_images(noisy(people.model, deviation, args.seed, split.pixels))
        found = retrieval_metrics(rankings(queries, gallery[0], q_pids, gallery[1])['t2i'])
        told = f"noise {deviation:g}: Rank-1 {found['R1']:.2f}, mAP {found['mAP']:.2f}"
        print(told)
        rows.append((f'{told}. {caption}', pid, *split.search(one, 8, gallery)))
    return draw(rows)


def noisy(model, deviation, seed, pixels):
    """``model.encode_image`` of images to which Gaussian noise is added, the same for every deviation but for its size."""
    generator = torch.Generator().manual_seed(seed)

    def encode(images):
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        noise = noise / torch.tensor(pixels.std, device=images.device).view(3, 1, 1)
        return model.encode_image(images + deviation * noise)
    return encode


if __name__ == '__main__':
    start(main)
