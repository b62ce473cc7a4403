"""Pictures that the tools draw."""
from utils.errors import UserError


def save_figure(figure, path, dpi=80):
    """Write a matplotlib figure to ``path``, in the format of its ending. A folder that cannot be written or an unknown ending
    raises :class:`UserError`."""
    try:
        figure.savefig(path, dpi=dpi)
    except (OSError, ValueError) as error:
        raise UserError(f'cannot write the picture {path}: {getattr(error, "strerror", None) or error}') from None
