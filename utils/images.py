"""What a file says of its pixels (range, frames, transparency, color space, orientation), brought to 8-bit sRGB.

:func:`utils.iotools.read_image` is the only reader of image files; this module holds its rules, and finds
images in folders:

- 16 bits a channel: the upper 8 bits.
- Transparency: the photo lies on white.
- An embedded ICC profile, or a gamma in a PNG: converted to sRGB, unless it is as good as sRGB.
- An EXIF orientation: the photo stands upright.
- Floating-point numbers, 32-bit integers, CIELAB and several frames: refused, because the file doesn't say which
  pixels are meant.

An ordinary 8-bit photo keeps its pixels bit by bit.
"""
import collections
import contextlib
import functools
import io
import os

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

READER_VERSION = 2   # of the rules: pixels and embeddings that another version made are not used from a cache

# Pillow's formats that are no photos: EPS starts Ghostscript, WMF asks Windows to draw, and the others hold
# measurements or cannot be decoded.
NO_PHOTOS = {'EPS', 'WMF', 'BUFR', 'GRIB', 'HDF5', 'MPEG', 'FITS', 'MCIDAS', 'SPIDER'}
COMMON = ('JPEG', 'PNG', 'BMP', 'GIF', 'PPM')    # tried first: importing the others takes Pillow 0.1 s
# Formats that their first bytes identify, whatever the file is called.
MARKED = ('JPEG', 'MPO', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'AVIF', 'HEIF', 'JPEG2000')
ONE_PHOTO = {'MPO', 'PSD'}    # their further frames are previews, depth or layers of the first

NO_RANGE = 'it holds {}, and nothing in it says which value is white: save it with 8 or 16 bits a channel'
REFUSED_MODES = {'F': NO_RANGE.format('floating-point numbers'), 'I': NO_RANGE.format('signed or 32-bit integers'),
                 'LAB': 'it holds CIELAB colors: save it as sRGB'}
ALPHA = {'LA', 'La', 'PA', 'RGBA', 'RGBa'}
GREY = {'1', 'L', 'LA', 'La', 'I', 'I;16', 'I;16L', 'I;16B', 'I;16N'}
ORIENTATION = 0x0112          # EXIF's tag
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}
METADATA = {'exif', 'xmp', 'XML:com.adobe.xmp', 'Raw profile type exif'}     # keys of Image.info with an orientation
TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262
AS_GOOD_AS_SRGB = 3           # levels of 255 by which a color may differ: profiles called sRGB differ by one or two


# -- formats -----------------------------------------------------------------------------------------------------------

@functools.lru_cache(maxsize=None)
def get_image_formats():
    """Pillow's names of the formats that are read."""
    register_heif()
    Image.init()
    return tuple(name for name in Image.ID if name not in NO_PHOTOS)


def register_heif():
    """Teach Pillow to read HEIC, the format of iPhones, if pillow-heif is installed."""
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


@functools.lru_cache(maxsize=None)
def get_image_endings():
    """The endings of the formats that are read, lower case."""
    formats = set(get_image_formats())
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats) | {'.mpo'}


@contextlib.contextmanager
def open_image(path):
    """``with open_image(path) as image:`` opens a ``PIL.Image``, not decoded yet.

    Pillow gets an open file. Given a name, it maps raw pixels into memory and turns TIFFs wrongly (Pillow 13).
    """
    Image.preinit()      # of the common formats; Pillow would import all, because formats are given
    with open(path, 'rb') as file:
        try:
            image = Image.open(file, formats=COMMON)
        except UnidentifiedImageError:
            image = Image.open(file, formats=get_image_formats())
        with image:
            yield image


def is_image_file(path):
    """Whether a file is taken for an image: by its ending, or by its first bytes."""
    if os.path.splitext(path)[1].lower() in get_image_endings():
        return True
    if not os.path.isfile(path):     # a pipe would be waited for
        return False
    try:
        with open_image(path) as image:
            return image.format in MARKED
    except Exception:  # damaged headers make PIL raise nearly anything
        return False


def describe_unknown_format(path):
    """The sentence for a file that Pillow doesn't read as an image."""
    try:
        with open(path, 'rb') as file:
            start = file.read(16)
    except OSError:
        start = b''
    if start[4:12] in (b'ftypheic', b'ftypheix', b'ftypmif1', b'ftyphevc', b'ftypmsf1'):
        return (f'{path} is a HEIC photo, which Pillow alone does not read: pip install pillow-heif, '
                'or convert it to JPEG')
    if start.startswith((b'%!PS', b'\xc5\xd0\xd3\xc6')):
        return f'{path} is not an image but PostScript, which would have to be executed: convert it to JPEG or PNG'
    return f'{path} is not an image'


# -- folders -----------------------------------------------------------------------------------------------------------

def find_images(folder):
    """Find the image files below a folder. Follows links, but enters no folder twice.

    Args:
        folder: where to begin.

    Returns:
        (paths, :class:`SkippedFiles`). Hidden files are skipped. Other files in hidden folders are not counted.
    """
    paths, skipped, entered = [], SkippedFiles(), set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=skipped.add_folder):
        if os.path.realpath(place) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(place))
        is_hidden = f'{os.sep}.' in place[len(folder):]
        for name in sorted(names):
            path = os.path.join(place, name)
            if name.startswith('.'):
                skipped.hidden += [path] if os.path.splitext(name)[1].lower() in get_image_endings() else []
            elif is_image_file(path):
                paths.append(path)
            elif not is_hidden:
                skipped.others.append(path)
    return paths, skipped


class SkippedFiles:
    """What :func:`find_images` skips.

    Attributes:
        folders: sentences on folders that cannot be listed.
        hidden: paths of hidden image files.
        others: paths of files that Pillow doesn't read as images.
    """

    def __init__(self, folders=(), hidden=(), others=()):
        self.folders, self.hidden, self.others = list(folders), list(hidden), list(others)

    def add_folder(self, error):
        self.folders.append(f'{error.filename} cannot be read: {error.strerror or error}')

    def summary(self, most=3):
        """Count and name what was skipped: a list of sentences, at most ``most`` names each."""
        lines = []
        if self.folders:
            lines.append(f'{format_count(len(self.folders), "folder")} that cannot be listed ({join_first(self.folders, most)})')
        if self.hidden:
            lines.append(f'{format_count(len(self.hidden), "hidden image file")} ({join_first(self.hidden, most)})')
        if self.others:
            endings = collections.Counter(os.path.splitext(path)[1].lower() or 'no ending' for path in self.others)
            heic = '; pip install pillow-heif reads HEIC' if endings.keys() & {'.heic', '.heif'} else ''
            kinds = join_first([f'{count} {ending}' for ending, count in endings.most_common()], 2 * most)
            lines.append(f'{format_count(len(self.others), "file")} that Pillow does not read as an image ({kinds}; '
                         f'{join_first(self.others, most)}{heic})')
        return lines


def format_count(count, noun):
    return f'{count:,} {noun}{"s" * (count > 1)}'


def join_first(lines, most):
    return ', '.join(lines[:most]) + (f' and {len(lines) - most:,} more' if len(lines) > most else '')


# -- pixels ------------------------------------------------------------------------------------------------------------

def to_rgb(image, notes=None):
    """Bring a ``PIL.Image`` to 8-bit sRGB as this module says.

    Args:
        image: opened lazily or in memory.
        notes: a list that takes what had to be converted, a phrase each; an ordinary photo adds none.

    Returns:
        A new ``PIL.Image`` in mode RGB, which doesn't hold the file open.

    Raises:
        ValueError: the image doesn't say what its pixels mean.
    """
    notes = [] if notes is None else notes
    if getattr(image, 'is_animated', False) and image.format not in ONE_PHOTO:
        raise ValueError(f'it holds {image.n_frames} frames: save the one that you mean as a file of its own')
    image.load()
    pixels = reduce_to_8_bits(image, notes)
    pixels = flatten_alpha(pixels, notes)
    pixels = convert_to_srgb(pixels, image, notes)
    return apply_orientation(pixels, image, notes)


def reduce_to_8_bits(image, notes):
    """Reduce 16 bits to the upper 8; they are all that Pillow keeps of 16-bit colors, too."""
    is_16_bit = image.mode.startswith('I;16') or image.mode == 'I' and image.format in ('PNG', 'PPM')   # older Pillows: I
    if not is_16_bit:
        if image.mode in REFUSED_MODES:
            raise ValueError(REFUSED_MODES[image.mode])
        return image
    tags = getattr(image, 'tag_v2', {})
    bits = tags.get(TIFF_BITS, (16,))[0]
    values = np.asarray(image).astype(np.int64)
    grey = Image.fromarray((values >> (bits - 8)).clip(0, 255).astype(np.uint8))
    notes.append(f'{bits} bits a pixel are reduced to 8')
    if tags.get(TIFF_PHOTOMETRIC) == 0:     # white is 0
        grey = ImageOps.invert(grey)
    if isinstance(key := image.info.get('transparency'), int):
        return Image.merge('LA', (grey, Image.fromarray(values != key).convert('L')))
    return grey


def flatten_alpha(image, notes):
    """Lay an image with transparency on white: what a file keeps under full transparency is no part of the photo."""
    if image.mode not in ALPHA and 'transparency' not in image.info:
        return image
    image = image.convert('RGBA')
    if image.getextrema()[3][0] == 255:
        return image.convert('RGB')
    notes.append('transparent pixels are laid on white')
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')


def apply_orientation(pixels, image, notes):
    """Turn and mirror ``pixels`` as the EXIF orientation of ``image`` says, unless the EXIF block is damaged.

    Pillow turns TIFFs itself.
    """
    if image.format != 'TIFF' and not METADATA.isdisjoint(image.info):
        try:
            orientation = image.getexif().get(ORIENTATION)
        except Exception:  # damaged blocks make PIL raise nearly anything
            orientation = None
        if orientation in UPRIGHT:
            notes.append(f'EXIF orientation {orientation} is applied')
            return pixels.transpose(UPRIGHT[orientation])
    return pixels


# -- color spaces ------------------------------------------------------------------------------------------------------

def convert_to_srgb(pixels, image, notes):
    """Convert pixels to mode RGB, from the color space that ``image`` names."""
    profile, gamma = image.info.get('icc_profile'), image.info.get('gamma')
    if profile:
        transform = build_srgb_transform(profile, 'L' if image.mode in GREY else 'CMYK' if pixels.mode == 'CMYK' else 'RGB')
        if transform is not None:
            notes.append(f'colors are converted from {transform.name} to sRGB')
            return ImageCms.applyTransform(pixels.convert(transform.mode), transform.transform)
    elif gamma and 'srgb' not in image.info and abs(1 / (2.2 * gamma) - 1) > 0.05:
        notes.append(f'colors are converted from gamma {gamma:g} to sRGB')
        curve = [round(255 * (value / 255) ** (1 / (2.2 * gamma))) for value in range(256)]
        return pixels.convert('RGB').point(curve * 3)
    if pixels.mode == 'CMYK':
        notes.append('CMYK colors are converted without a profile')
    return pixels.convert('RGB')


class SrgbTransform:
    """LittleCMS's conversion of images in ``mode`` with a profile called ``name`` to sRGB."""

    def __init__(self, profile, mode):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        self.mode, self.name = mode, (source.profile.profile_description or 'a profile without a name').strip()
        self.transform = ImageCms.buildTransform(source, ImageCms.createProfile('sRGB'), mode, 'RGB')

    def changes_colors(self):
        """Whether any of 216 colors, or of 52 greys, comes out visibly different."""
        levels = np.arange(0, 256, 51, dtype=np.uint8)
        colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        greys = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None, :, None], 3, axis=2)
        before = Image.fromarray(np.concatenate([colors, greys], axis=1)).convert(self.mode)
        after = np.asarray(ImageCms.applyTransform(before, self.transform), int)
        return bool(np.abs(after - np.asarray(before.convert('RGB'), int)).max() > AS_GOOD_AS_SRGB)


@functools.lru_cache(maxsize=64)
def build_srgb_transform(profile, mode):
    """The :class:`SrgbTransform` of a profile's bytes.

    None if the profile is as good as sRGB, damaged, or of another kind of pixels.
    """
    try:
        transform = SrgbTransform(profile, mode)
    except (ImageCms.PyCMSError, OSError, ValueError):    # browsers read such a photo as sRGB, too
        return None
    return transform if transform.changes_colors() else None
