"""A picture of a model's retrievals: ``python run_scripts/retrieve.py --config_file <run>/configs.yaml --out figure.png``.

Each row is a caption with the gallery images ranked first; green frames are the right person, red ones are not. With
``--caption "a woman in a red coat"`` the query is yours, and frames are grey.
"""
import os
import sys
import textwrap

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import matplotlib  # noqa: E402

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from datasets import build_dataloader  # noqa: E402
from datasets.bases import tokenize  # noqa: E402
from processor.report import load_trained  # noqa: E402
from utils.errors import UserError, run  # noqa: E402
from utils.figures import save_figure  # noqa: E402
from utils.iotools import read_image  # noqa: E402
from utils.metrics import embed  # noqa: E402
from utils.options import parse_test_options, build_test_parser  # noqa: E402
from utils.simple_tokenizer import SimpleTokenizer  # noqa: E402

GREEN, RED, GREY = '#2ca02c', '#d62728', '#7f7f7f'


def main(argv=None):
    parser = build_test_parser('retrieve.py', __doc__)
    parser.add_argument('--out', default='retrieval.png', help='the picture to write')
    parser.add_argument('--captions', type=int, default=6, help='how many captions of the test split, spread over it')
    parser.add_argument('--caption', action='append', help='a caption of your own; may be given several times')
    parser.add_argument('--top', type=int, default=10, help='images a caption')
    args = parse_test_options(parser, argv)
    img_loader, txt_loader, num_classes = build_dataloader(args)
    model, _ = load_trained(args, num_classes)
    gallery, g_pids = embed(model.encode_image, img_loader, model)
    queries = own_queries(args.caption, args) if args.caption else split_queries(txt_loader.dataset, args.captions)
    device = next(model.parameters()).device
    with torch.no_grad():
        embeddings = torch.cat([model.encode_text(ids[None].to(device)).cpu() for _, _, ids in queries])
    similarity = F.normalize(embeddings, dim=1) @ F.normalize(gallery, dim=1).t()      # [Q, G]
    ranked = similarity.topk(min(args.top, len(g_pids)), dim=1).indices
    rows = [(caption, pid, [(img_loader.dataset.img_paths[i], int(g_pids[i])) for i in best.tolist()])
            for (caption, pid, _), best in zip(queries, ranked)]
    draw(rows, args.out)
    print(f'wrote {args.out}')


def split_queries(dataset, count):
    """[(caption, pid, ids)], spread evenly over the split."""
    chosen = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long().tolist()
    return [(dataset.captions[i], int(dataset.caption_pids[i]), dataset[i][1]) for i in chosen]


def own_queries(captions, args):
    tokenizer = SimpleTokenizer()
    if not all(caption.strip() for caption in captions):
        raise UserError('--caption is empty; describe somebody')
    return [(caption, None, tokenize(caption, tokenizer, text_length=args.text_length)) for caption in captions]


def draw(rows, path):
    """Rows of (caption, pid or None, [(image path, pid)]) as a figure at ``path``."""
    columns = max(len(images) for _, _, images in rows)
    first = read_image(rows[0][2][0][0])
    text_width, height = 2.9, first.height / first.width + 0.1          # in widths of an image
    figure, axes = plt.subplots(len(rows), columns + 1, figsize=(text_width + 1.06 * columns, height * len(rows)), squeeze=False,
                                width_ratios=[text_width] + [1] * columns)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=0.995, wspace=0.06, hspace=0.06)
    for row, (caption, pid, images) in zip(axes, rows):
        row[0].text(0, 0.5, textwrap.fill(caption, 36), va='center', ha='left', fontsize=9, transform=row[0].transAxes, parse_math=False)
        for axis in row:
            axis.axis('off')
        for axis, (image, image_pid) in zip(row[1:], images):
            axis.imshow(read_image(image))
            colour = GREY if pid is None else GREEN if image_pid == pid else RED
            axis.add_patch(plt.Rectangle((0, 0), 1, 1, transform=axis.transAxes, fill=False, edgecolor=colour, linewidth=4))
    save_figure(figure, path)
    plt.close(figure)


if __name__ == '__main__':
    run(main)
