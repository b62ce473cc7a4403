"""Print and draw the images that a search finds, for the tools that search a test split or a folder of photos."""
from utils.errors import UserError
from utils.figures import import_pyplot, wrap_text
from utils.iotools import read_image
from utils.terminal import escape_line

GREEN, RED, GRAY = '#2ca02c', '#d62728', '#7f7f7f'


def sample_queries(split, number):
    """Choose captions of a split at even distances: ``[(caption, pid), ...]``."""
    import torch    # the tools print their help without it
    captions, pids = split.captions, split.run.captions.dataset.caption_pids
    indices = torch.linspace(0, len(captions) - 1, min(number, len(captions))).long().tolist()
    return [(captions[i], int(pids[i])) for i in indices]


def describe_order(settings):
    """Say which method of re-ranking ordered the images (:mod:`utils.rerank_options`)."""
    return f'order: {settings.title}; the numbers are cosine similarities'


def format_results(rows):
    """Format a line for each caption, and one for each of its images: similarity, whether the person is right, file.

    Args:
        rows: ``[(caption, pid or None, [(image path, pid, similarity), ...]), ...]`` with the best image first. The
            verdict is left out if the caption has no pid.
    """
    lines = []
    for caption, pid, images in rows:
        lines.append(escape_line(caption))
        for path, image_pid, score in images:
            verdict = '' if pid is None else 'right  ' if image_pid == pid else 'wrong  '
            lines.append(f'  {score:.4f}  {verdict}{escape_line(path)}')
    return '\n'.join(lines)


def draw_results(rows):
    """Draw the rows of :func:`format_results` as a figure, a row for each caption."""
    columns = max(len(images) for _, _, images in rows)
    first = read_image(rows[0][2][0][0])
    text_width, height = 2.9, first.height / first.width + 0.25         # in widths of an image
    figure, axes = import_pyplot().subplots(
        len(rows), columns + 1, figsize=(text_width + 1.06 * columns, height * len(rows)), squeeze=False,
        width_ratios=[text_width] + [1] * columns)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=1 - 0.15 / (height * len(rows)), wspace=0.06,
                           hspace=0.15 / height)
    for row, (caption, pid, images) in zip(axes, rows):
        row[0].text(0, 0.5, wrap_text(caption, 36), va='center', ha='left', fontsize=9, transform=row[0].transAxes,
                    parse_math=False)
        for axis in row:
            axis.axis('off')
        for axis, (path, image_pid, score) in zip(row[1:], images):
            axis.imshow(read_image(path))
            axis.set_title(f'{score:.3f}', fontsize=7, pad=2)
            color = GRAY if pid is None else GREEN if image_pid == pid else RED
            axis.add_patch(import_pyplot().Rectangle((0, 0), 1, 1, transform=axis.transAxes, fill=False,
                                                     edgecolor=color, linewidth=4))
    return figure


def report_skipped(photos):
    """Print which photos of a :class:`~processor.image_index.ImageIndex` the search skips.

    Raises:
        UserError: no photo can be read.
    """
    for reason in list(photos.broken.values())[:10]:
        print(f'skipped: {escape_line(reason)}')
    if len(photos.broken) > 10:
        print(f'and {len(photos.broken) - 10} more; {photos.entries_path} lists all')
    for line in photos.skipped:
        print(f'skipped: {escape_line(line)}')
    if photos.other_keys:
        others = len(photos.other_keys)
        models = 'model' if others == 1 else 'models'
        print(f'{photos.index_dir} also holds embeddings of {others} other {models}, which are not used')
    if not photos.paths:
        raise UserError(f'--images {photos.folder}: none of the {len(photos.broken)} photos can be read')
