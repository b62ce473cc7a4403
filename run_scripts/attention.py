"""Where a model looks: ``python -m run_scripts.attention --config_file <run>/configs.yaml --caption "a red coat" --image photo.jpg``.

Shows on the photo: the attention of the embedding's token in the last block; what hiding a piece of the photo takes away from the
similarity, which holds for every model, whatever its heads make of the embedding; and for each word the patches that it looks at in
the cross encoder or, of a run without one, the patches whose tokens are like the word's. Behind each word is what leaving it out
takes away.

``--noise`` shows instead how retrieval on the test split changes as noise is added to its images (deviations of 0 to 1 of a pixel's range).
"""
import torch
import torch.nn.functional as F

from run_scripts import start
import pedestal
from run_scripts.retrieve import draw, own_queries, split_queries
from processor.evaluation import embed, rankings
from processor.runs import embed_queries, open_run
from utils.errors import UserError
from utils.iotools import read_image
from utils.metrics import retrieval_metrics
from utils.nearest import nearest
from utils.option_types import fraction
from utils.options import build_test_parser, parse_test_options
from utils.pictures import check_picture, pyplot, save_picture

PIECES = 24, 8   # of a photo, hidden one after the other: rows and columns of IRRA's patches
COLUMNS = 8      # of the figure


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
    people = pedestal.People(args)
    photo, image, ids = read_image(args.image), people.read(args.image), people.tokens([args.caption])
    query, own = people.encode_captions([args.caption])[0], people.embed([image])[0]
    similarity = float(own @ query)
    panels = [('', None), *patches(people, image), ('hidden here, it falls by', fall(people, image, query, similarity))]
    for (word, rows), loss in zip(looked_at(people, image, ids), left_out(people, ids, own, similarity)):
        panels.append((f'{word} ({loss:+.3f})', rows))
    return grid(photo, panels, f'{args.caption}\nsimilarity {similarity:.3f}')


@torch.no_grad()
def patches(people, image):
    """[(title, [rows, cols] of the last block's attention)] of the embedding's token; none of a backbone without such a token or map."""
    if 'image_attention' not in people.model.backbone.gives:
        return []
    with people.model.autocast():
        _, attended = people.model.backbone.encode_image(image[None].to(people.device), True)
    return [('the embedding looks at', attended[0, 0, 1:].float().cpu().view(people.model.backbone.encoder.grid))]


def fall(people, image, query, similarity):
    """[rows, cols]: what each piece's hiding, under the mean colour, takes away from the similarity of an image [3, H, W]."""
    height, width = image.shape[1:]
    rows, cols = min(PIECES[0], height), min(PIECES[1], width)
    hidden = image.repeat(rows * cols, 1, 1, 1)                                          # [rows * cols, 3, H, W]
    for number, one in enumerate(hidden):
        row, col = divmod(number, cols)
        one[:, row * height // rows:(row + 1) * height // rows, col * width // cols:(col + 1) * width // cols] = 0
    return (similarity - people.embed(list(hidden)) @ query).view(rows, cols)


@torch.no_grad()
def looked_at(people, image, ids):
    """[(word, [rows, cols])] of a caption's tokens [1, L] between start and end; None instead of a map where tokens cannot be compared."""
    model, backbone = people.model, people.model.backbone
    words = slice(1, int(backbone.lengths(ids)[0]) - (people.tokenizer.end in ids[0].tolist()))
    tokens = [people.tokenizer.decode([number]).strip() for number in ids[0, words].tolist()]
    if not {'image_tokens', 'image_attention', 'text_tokens'} <= backbone.gives:
        return [(token, None) for token in tokens]
    with model.autocast():
        of_image, _ = backbone.encode_image(image[None].to(people.device))
        of_text, _ = backbone.encode_text(ids.to(people.device))
        if hasattr(model, 'cross_attn'):
            _, maps = model.cross_attn(model.ln_pre_t(of_text), *[model.ln_pre_i(of_image)] * 2, need_map=True)      # [1, L, N]
        else:
            maps = F.normalize(of_text.float(), dim=-1) @ F.normalize(of_image.float(), dim=-1).transpose(1, 2)
    return [(token, row[1:].float().cpu().view(backbone.encoder.grid)) for token, row in zip(tokens, maps[0, words])]


def left_out(people, ids, own, similarity):
    """What each token's leaving out takes away from the similarity."""
    length = int(people.model.backbone.lengths(ids)[0])
    last = length - (people.tokenizer.end in ids[0].tolist())
    without = [F.pad(torch.cat([ids[0, :place], ids[0, place + 1:]]), (0, 1), value=people.tokenizer.pad) for place in range(1, last)]
    if len(without) < 2:
        return [0.0] * len(without)
    return (similarity - F.normalize(embed_queries(people.model, torch.stack(without)), dim=1) @ own).tolist()


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
        axis.set_title(name, fontsize=7, parse_math=False)
        if values is not None:
            axis.imshow(values.numpy(), extent=(0, 1, 0, 1), aspect=shape, cmap='inferno', alpha=0.6, interpolation='bilinear')
    return figure


# -- noise -----------------------------------------------------------------------------------------------------------------

def with_noise(args):
    """A row of images for each deviation, found in a gallery with so much noise; prints Rank-1 and mAP."""
    run = open_run(args)
    queries, q_pids = embed(run.model.encode_text, run.captions, run.model)
    (caption, pid, ids), = own_queries([args.caption], args, run.captions.dataset.tokenizer) if args.caption else split_queries(
        run.captions.dataset, 1)
    one, paths, rows = F.normalize(embed_queries(run.model, ids[None]), dim=1), run.images.dataset.img_paths, []
    for deviation in args.noise:
        gallery, g_pids = embed(noisy(run.model, deviation, args.seed), run.images, run.model)
        found = retrieval_metrics(rankings(queries, gallery, q_pids, g_pids)['t2i'])
        told = f"noise {deviation:g}: Rank-1 {found['R1']:.2f}, mAP {found['mAP']:.2f}"
        print(told)
        scores, places = nearest(one, F.normalize(gallery, dim=1), 8)
        best = [(paths[place], int(g_pids[place]), score) for place, score in zip(places[0].tolist(), scores[0].tolist())]
        rows.append((f'{told}. {caption}', pid, best))
    return draw(rows)


def noisy(model, deviation, seed):
    """``model.encode_image`` of images to which Gaussian noise is added, the same for every deviation but for its size."""
    generator = torch.Generator().manual_seed(seed)

    def encode(images):
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        return model.encode_image(images + deviation * noise / torch.tensor(model.pixels.std, device=images.device).view(3, 1, 1))
    return encode


if __name__ == '__main__':
    start(main)
