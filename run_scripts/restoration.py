"""What SEN restores: ``python run_scripts/restoration.py --config_file <run>/configs.yaml --out restoration.png``.

Each row is an image of the test split: the original, what the model sees of it (a few patches in grey), what it restores
from them with the image's own caption, and with another person's. Seen patches are shown as they were seen. The mean
squared errors of the hidden patches are printed: where captions guide the restoration, the own does better.
"""
import os
import sys
import textwrap

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import matplotlib  # noqa: E402

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

from datasets.bases import default_tokenizer, tokenize  # noqa: E402
from datasets.build import build_dataset  # noqa: E402
from datasets.transforms import MEAN, STD, build_transforms  # noqa: E402
from model import objectives  # noqa: E402
from model.heads import active_heads  # noqa: E402
from model.heads.sen import MAE, grey, patches, unpatch  # noqa: E402
from processor.report import load_trained  # noqa: E402
from utils.errors import UserError, run  # noqa: E402
from utils.figures import save_figure  # noqa: E402
from utils.iotools import read_image  # noqa: E402
from utils.options import build_test_parser, count, parse_test_options  # noqa: E402

COLUMNS = ('original', 'seen', 'own caption', 'wrong caption')


def main(argv=None):
    parser = build_test_parser('restoration.py', __doc__)
    parser.add_argument('--out', default='restoration.png', help='the picture to write')
    parser.add_argument('--images', type=count, default=6, help='how many images of the test split, spread over it')
    args = parse_test_options(parser, argv)
    if MAE not in active_heads(args):
        raise UserError(f"{args.config_file} is of a run without the loss 'mae' (--loss_names {args.loss_names}): it cannot "
                        'restore images')
    dataset = build_dataset(args.dataset_name, args.root_dir, splits=('test',))
    chosen = spread(dataset.test_annos, args.images)
    captions = [entry['captions'][0] for entry in chosen]
    wrong = [other_persons_caption(entry, dataset.test_annos) for entry in chosen]
    model, _ = load_trained(args, len(dataset.train_id_container))
    transform = build_transforms(args.img_size, is_train=False)
    images = torch.stack([transform(read_image(dataset.path(entry))) for entry in chosen])
    views, errors = restorations(model.eval(), images, [captions, wrong], args)
    draw(views, captions, wrong, args.out)
    print(f"mean squared error of hidden patches: {errors[0]:.4f} with the image's own caption, "
          f'{errors[1]:.4f} with a wrong one')
    print(f'wrote {args.out}')


def spread(entries, number):
    """``number`` of the entries, evenly over all."""
    if not entries:
        raise UserError('the test split has no entries: there is nothing to restore')
    places = torch.linspace(0, len(entries) - 1, min(number, len(entries))).long().tolist()
    return [entries[place] for place in places]


def other_persons_caption(entry, entries):
    """The first caption, behind the entry and then from the start, of another identity."""
    start = entries.index(entry)
    for other in entries[start:] + entries[:start]:
        if other['id'] != entry['id']:
            return other['captions'][0]
    raise UserError('the test split has one identity only: there is no wrong caption to restore with')


@torch.no_grad()
def restorations(model, images, captions, args):
    """The pictures of ``COLUMNS`` [K, 4, 3, H, W] in colours from 0 to 1, and for each of the lists in ``captions`` the
    error that the loss would see. Every list gets the same patches, drawn with ``args.seed``."""
    head = next(head for head in model.heads if isinstance(head, MAE))
    device, grid, size = next(model.parameters()).device, model.base_model.grid, head.patch_size
    images = images.to(device)
    torch.manual_seed(args.seed)
    order = head.draw_order(images)
    hidden = (order.argsort(dim=1)[:, 1:] >= head.keep).float()                         # [K, N-1]
    hidden = unpatch(hidden[..., None].expand(-1, -1, 3 * size * size), size, grid)     # [K, 3, H, W]
    views, errors = [images, grey(images) * (1 - hidden)], []
    for texts in captions:
        ids = torch.stack([tokenize(text, default_tokenizer(), args.text_length) for text in texts]).to(device)
        with model.autocast():
            restored = head.restore(model.base_model, images, model.base_model.encode_text(ids)[0], order).float()
        errors.append(objectives.restoration(restored, patches(images, size), head.scored(order)).item())
        views.append(torch.where(hidden > 0, unpatch(restored, size, grid), grey(images)))
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    return (torch.stack(views, dim=1) * std + mean).clamp(0, 1).cpu(), errors


def draw(views, captions, wrong, path):
    """Rows of own caption, pictures [K, 4, 3, H, W], wrong caption as a figure at ``path``."""
    rows, columns = views.shape[:2]
    figure, axes = plt.subplots(rows, columns + 2, figsize=(6 + 1.3 * columns, 2.9 * rows + 0.3), squeeze=False,
                                width_ratios=[2.4] + [1] * columns + [2.4])
    for row, pictures, own, other in zip(axes, views, captions, wrong):
        for axis, text in ((row[0], own), (row[-1], other)):
            axis.text(0.02, 0.5, textwrap.fill(text, 34), va='center', ha='left', fontsize=8, transform=axis.transAxes,
                      parse_math=False)
        for axis in row:
            axis.axis('off')
        for axis, picture in zip(row[1:-1], pictures):
            axis.imshow(picture.permute(1, 2, 0).numpy())
    for axis, title in zip(axes[0], ('', *COLUMNS, '')):
        axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    save_figure(figure, path)
    plt.close(figure)


if __name__ == '__main__':
    run(main)
