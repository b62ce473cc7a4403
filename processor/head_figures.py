"""Figures of the heads' reports, drawn from the data that a head returns (:class:`model.heads.HeadReport`)."""
from model.heads import BarPanels, ImageTable
from utils.figures import import_pyplot, wrap_text


def draw_figure(figure):
    """Draw the data of a figure, such as a :class:`~model.heads.BarPanels`. Returns a matplotlib figure."""
    return {BarPanels: draw_bar_panels, ImageTable: draw_image_table}[type(figure)](figure)


def draw_bar_panels(data):
    """Draw a panel of bars for each title."""
    panels, bars = len(data.titles), len(next(iter(data.series.values()))[0])
    columns = min(panels, 4)
    rows = -(-panels // columns)
    size = max(max(3.2, 0.45 * bars) * columns, 4), 2.6 * rows + 0.4
    width = 0.8 / len(data.series)
    figure, axes = import_pyplot().subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
    for number, axis in enumerate(axes.flat):
        if number >= panels:
            axis.axis('off')
            continue
        for index, (label, heights) in enumerate(data.series.items()):
            offset = (index - (len(data.series) - 1) / 2) * width
            axis.bar([bar + offset for bar in range(bars)], heights[number], width=width, label=label)
        label, height = data.reference
        axis.axhline(height, color='grey', linestyle=':', label=label)
        axis.set_xticks(range(bars))
        axis.set_xlabel(data.x_label, fontsize=8)
        axis.set_title(data.titles[number], fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel(data.y_label, fontsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='lower center', ncols=len(labels), fontsize=8)
    figure.tight_layout(rect=(0, 0.12 / rows, 1, 1))
    return figure


def draw_image_table(data):
    """Draw a row of images between two texts, for each row of the table."""
    rows, columns = data.images.shape[:2]
    figure, axes = import_pyplot().subplots(rows, columns + 2, squeeze=False,
                                            figsize=(6 + 1.3 * columns, 2.9 * rows + 0.5),
                                            width_ratios=[2.4] + [1] * columns + [2.4])
    for row, images, left, right in zip(axes, data.images, data.left, data.right):
        for axis, text in ((row[0], left), (row[-1], right)):
            axis.text(0.02, 0.5, wrap_text(text, 34), va='center', ha='left', fontsize=8, transform=axis.transAxes,
                      parse_math=False)
        for axis in row:
            axis.axis('off')
        for axis, image in zip(row[1:-1], images):
            axis.imshow(image.permute(1, 2, 0).numpy())
    for axis, title in zip(axes[0][1:-1], data.titles):
        axis.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    return figure
