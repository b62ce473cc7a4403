"""Save a contact sheet: an image with a few pedestrians and their captions."""
from PIL import Image, ImageDraw, ImageFont

from datasets.synthpedes.writing import draw_identity
from utils.errors import UserError

MAX_PIXELS = 200_000_000


def save_contact_sheet(path, settings, identities=8):
    """Save an image with a few identities, two in a row. Each of their images has one of its captions below it."""
    height, width = settings['size']
    cell, text, shown = max(width, 170), 120, settings['images_per_id']
    size = cell * shown * 2 + 20, (height + text) * -(-identities // 2)
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(f'a contact sheet of {size[0]}x{size[1]} pixels is too large: lower --images_per_id or --size')
    sheet = Image.new('RGB', size, 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for index in range(identities):
        _, _, shots = draw_identity(settings, index, 0, identities)
        for number, (image, captions, *_) in enumerate(shots):
            left = (number + index % 2 * shown) * cell + index % 2 * 20
            top = index // 2 * (height + text)
            sheet.paste(image, (left + (cell - width) // 2, top))
            lines = _wrap_text(captions[0], draw, font, cell - 8)
            draw.multiline_text((left + 4, top + height + 3), lines, 'black', font, spacing=1)
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f'cannot write the contact sheet {path}: {error}') from error


def _wrap_text(text, draw, font, width):
    lines = ['']
    for word in text.split():
        longer = f'{lines[-1]} {word}'.strip()
        if draw.textlength(longer, font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return '\n'.join(lines)
