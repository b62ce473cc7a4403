"""Conversion of image files to 8-bit sRGB, by what they say of range, frames, transparency, colors and orientation.

:func:`utils.iotools.read_image` is the only reader of image files. This module holds its rules, and finds images in
folders. The rules:

- 16 bits per channel are reduced to the upper 8 bits.
- Transparent pixels are composited on white.
- An embedded ICC profile, or a gamma in a PNG, is converted to sRGB, unless it is nearly sRGB.
- An EXIF orientation is applied.
- Floating-point numbers, 32-bit integers, CIELAB and several frames are refused, because the file does not say which
  pixels are meant.

The pixels of an ordinary 8-bit photo are unchanged.
"""
import collections
import contextlib
import functools
import io
import os

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from utils.errors import abbreviate, is_out_of_files

READER_VERSION = 2   # version of the rules; caches of pixels and embeddings from another version are not used

# Pillow's formats that are no photos: EPS starts Ghostscript, WMF calls Windows to draw, and the others hold
# measurements or cannot be decoded.
NON_PHOTO_FORMATS = {'EPS', 'WMF', 'BUFR', 'GRIB', 'HDF5', 'MPEG', 'FITS', 'MCIDAS', 'SPIDER'}
COMMON_FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'PPM')    # tried first: Pillow needs 0.1 s to import the others
# Formats that the first bytes identify, whatever the file name is.
MAGIC_BYTES_FORMATS = ('JPEG', 'MPO', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'AVIF', 'HEIF', 'JPEG2000')
FIRST_FRAME_FORMATS = {'MPO', 'PSD'}    # further frames are previews, depth or layers of the first

UNKNOWN_RANGE = 'it holds {}, and nothing in it says which value is white: save it with 8 or 16 bits a channel'
REFUSED_MODES = {'F': UNKNOWN_RANGE.format('floating-point numbers'),
                 'I': UNKNOWN_RANGE.format('signed or 32-bit integers'),
                 'LAB': 'it holds CIELAB colors: save it as sRGB'}
ALPHA_MODES = {'LA', 'La', 'PA', 'RGBA', 'RGBa'}
GRAY_MODES = {'1', 'L', 'LA', 'La', 'I', 'I;16', 'I;16L', 'I;16B', 'I;16N'}
ORIENTATION_TAG = 0x0112          # of EXIF
TRANSPOSES = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
              5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
              8: Image.Transpose.ROTATE_90}
ORIENTATION_KEYS = {'exif', 'xmp', 'XML:com.adobe.xmp', 'Raw profile type exif'}     # of Image.info
TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262
SRGB_TOLERANCE = 3            # levels of 255: profiles that are called sRGB differ by one or two


# -- formats -----------------------------------------------------------------------------------------------------------

@functools.lru_cache(maxsize=None)
def get_image_formats():
    """Return Pillow's names of the formats that are read."""
    register_heif()
    Image.init()
    return tuple(name for name in Image.ID if name not in NON_PHOTO_FORMATS)


def register_heif():
    """Let Pillow read HEIC, the format of iPhones, if pillow-heif is installed."""
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


@functools.lru_cache(maxsize=None)
def get_image_endings():
    """Return the file endings of the formats that are read, in lower case."""
    formats = set(get_image_formats())
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats) | {'.mpo'}


@contextlib.contextmanager
def open_image(path):
    """Open a ``PIL.Image`` without decoding it.

    Pillow gets an open file. Given a name, it would map raw pixels into memory and rotate TIFFs wrongly (Pillow 13).
    """
    Image.preinit()      # imports the common formats; Pillow would import all, because formats are given
    with open(path, 'rb') as file:
        try:
            image = Image.open(file, formats=COMMON_FORMATS)
        except UnidentifiedImageError:
            image = Image.open(file, formats=get_image_formats())
        with image:
            yield image


def is_image_file(path):
    """Whether a file is an image by its ending or its first bytes."""
    if os.path.splitext(path)[1].lower() in get_image_endings():
        return True
    if not os.path.isfile(path):     # opening a pipe would wait
        return False
    try:
        with open_image(path) as image:
            return image.format in MAGIC_BYTES_FORMATS
    except Exception as error:  # damaged headers make PIL raise nearly anything
        if is_out_of_files(error):
            raise
        return False


def describe_unknown_format(path):
    """Return the error for a file that Pillow does not read as an image."""
    try:
        with open(path, 'rb') as file:
            start = file.read(16)
    except OSError as error:
        if is_out_of_files(error):
            raise
        start = b''
    if start[4:12] in (b'ftypheic', b'ftypheix', b'ftypmif1', b'ftyphevc', b'ftypmsf1'):
        return (f'{path} is a HEIC photo, which Pillow alone does not read: pip install pillow-heif, '
                'or convert it to JPEG')
    if start.startswith((b'%!PS', b'\xc5\xd0\xd3\xc6')):
        return f'{path} is not an image but PostScript, which would have to be executed: convert it to JPEG or PNG'
    return f'{path} is not an image'


# -- folders -----------------------------------------------------------------------------------------------------------

def find_images(folder):
    """Find the image files below a folder. Links are followed, but no folder is entered twice.

    Args:
        folder: the folder to search.

    Returns:
        (paths, :class:`SkippedFiles`). Hidden files are skipped. Other files in hidden folders are not counted.
    """
    paths, skipped, entered = [], SkippedFiles(), set()
    for subfolder, children, names in os.walk(folder, followlinks=True, onerror=skipped.add_folder):
        if os.path.realpath(subfolder) in entered:
            children.clear()
            continue
        entered.add(os.path.realpath(subfolder))
        is_hidden = f'{os.sep}.' in subfolder[len(folder):]
        for name in sorted(names):
            path = os.path.join(subfolder, name)
            if name.startswith('.'):
                skipped.hidden += [path] if os.path.splitext(name)[1].lower() in get_image_endings() else []
            elif is_image_file(path):
                paths.append(path)
            elif not is_hidden:
                skipped.others.append(path)
    return paths, skipped


class SkippedFiles:
    """The files that :func:`find_images` skips.

    Attributes:
        folders: sentences about folders that cannot be listed.
        hidden: paths of hidden image files.
        others: paths of files that Pillow does not read as images.
    """

    def __init__(self, folders=(), hidden=(), others=()):
        self.folders, self.hidden, self.others = list(folders), list(hidden), list(others)

    def add_folder(self, error):
        if is_out_of_files(error):
            raise error
        self.folders.append(f'{error.filename} cannot be read: {error.strerror or error}')

    def summary(self, limit=3):
        """Count and name the skipped files: a list of sentences with at most ``limit`` names each."""
        lines = []
        if self.folders:
            lines.append(f'{format_count(len(self.folders), "folder")} that cannot be listed '
                         f'({abbreviate(self.folders, limit)})')
        if self.hidden:
            lines.append(f'{format_count(len(self.hidden), "hidden image file")} ({abbreviate(self.hidden, limit)})')
        if self.others:
            endings = collections.Counter(os.path.splitext(path)[1].lower() or 'no ending' for path in self.others)
            heic = '; pip install pillow-heif reads HEIC' if endings.keys() & {'.heic', '.heif'} else ''
            kinds = abbreviate([f'{count} {ending}' for ending, count in endings.most_common()], 2 * limit)
            lines.append(f'{format_count(len(self.others), "file")} that Pillow does not read as an image ({kinds}; '
                         f'{abbreviate(self.others, limit)}{heic})')
        return lines


def format_count(count, noun):
    """Format a number and a noun, such as '1 file' or '1,200 files'."""
    return f'{count:,} {noun}{"s" * (count > 1)}'


# -- pixels ------------------------------------------------------------------------------------------------------------

def to_rgb(image, notes=None):
    """Convert a ``PIL.Image`` to 8-bit sRGB by the rules of this module.

    Args:
        image: an image that is opened lazily or is in memory.
        notes: a list to which a phrase is added for each conversion. An ordinary photo adds none.

    Returns:
        A new ``PIL.Image`` in mode RGB, which does not keep the file open.

    Raises:
        ValueError: the image does not say what its pixels mean.
    """
    notes = [] if notes is None else notes
    if getattr(image, 'is_animated', False) and image.format not in FIRST_FRAME_FORMATS:
        raise ValueError(f'it holds {image.n_frames} frames: save the one that you mean as a file of its own')
    image.load()
    pixels = reduce_to_8_bits(image, notes)
    pixels = flatten_alpha(pixels, notes)
    pixels = convert_to_srgb(pixels, image, notes)
    return apply_orientation(pixels, image, notes)


def reduce_to_8_bits(image, notes):
    """Reduce 16 bits to the upper 8, as Pillow itself does with 16-bit colors."""
    # older versions of Pillow use mode I
    is_16_bit = image.mode.startswith('I;16') or image.mode == 'I' and image.format in ('PNG', 'PPM')
    if not is_16_bit:
        if image.mode in REFUSED_MODES:
            raise ValueError(REFUSED_MODES[image.mode])
        return image
    tags = getattr(image, 'tag_v2', {})
    bits = tags.get(TIFF_BITS, (16,))[0]
    values = np.asarray(image).astype(np.int64)
    gray = Image.fromarray((values >> (bits - 8)).clip(0, 255).astype(np.uint8))
    notes.append(f'{bits} bits a pixel are reduced to 8')
    if tags.get(TIFF_PHOTOMETRIC) == 0:     # white is 0
        gray = ImageOps.invert(gray)
    if isinstance(key := image.info.get('transparency'), int):
        return Image.merge('LA', (gray, Image.fromarray(values != key).convert('L')))
    return gray


def flatten_alpha(image, notes):
    """Composite an image with transparency on white, because colors under full transparency are not visible."""
    if image.mode not in ALPHA_MODES and 'transparency' not in image.info:
        return image
    image = image.convert('RGBA')
    if image.getextrema()[3][0] == 255:
        return image.convert('RGB')
    notes.append('transparent pixels are composited on white')
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')


def apply_orientation(pixels, image, notes):
    """Rotate and mirror ``pixels`` by the EXIF orientation of ``image``, unless the EXIF block is damaged.

    Pillow itself rotates TIFFs.
    """
    if image.format != 'TIFF' and not ORIENTATION_KEYS.isdisjoint(image.info):
        try:
            orientation = image.getexif().get(ORIENTATION_TAG)
        except Exception:  # damaged blocks make PIL raise nearly anything
            orientation = None
        if orientation in TRANSPOSES:
            notes.append(f'EXIF orientation {orientation} is applied')
            return pixels.transpose(TRANSPOSES[orientation])
    return pixels


# -- color spaces ------------------------------------------------------------------------------------------------------

def convert_to_srgb(pixels, image, notes):
    """Convert pixels to mode RGB, from the color space that ``image`` declares."""
    profile, gamma = image.info.get('icc_profile'), image.info.get('gamma')
    if profile:
        mode = 'L' if image.mode in GRAY_MODES else 'CMYK' if pixels.mode == 'CMYK' else 'RGB'
        transform = build_srgb_transform(profile, mode)
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
    """A conversion to sRGB by LittleCMS.

    Args:
        profile: bytes of an ICC profile.
        mode: Pillow's mode of the images to convert.
    """

    def __init__(self, profile, mode):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        self.mode, self.name = mode, (source.profile.profile_description or 'a profile without a name').strip()
        self.transform = ImageCms.buildTransform(source, ImageCms.createProfile('sRGB'), mode, 'RGB')

    def changes_colors(self):
        """Whether the conversion visibly changes any of 216 colors or 52 grays."""
        levels = np.arange(0, 256, 51, dtype=np.uint8)
        colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        grays = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None, :, None], 3, axis=2)
        before = Image.fromarray(np.concatenate([colors, grays], axis=1)).convert(self.mode)
        after = np.asarray(ImageCms.applyTransform(before, self.transform), int)
        return bool(np.abs(after - np.asarray(before.convert('RGB'), int)).max() > SRGB_TOLERANCE)


@functools.lru_cache(maxsize=64)
def build_srgb_transform(profile, mode):
    """Build the :class:`SrgbTransform` of a profile's bytes.

    Returns:
        None if the profile is nearly sRGB, damaged, or for another kind of pixels.
    """
    try:
        transform = SrgbTransform(profile, mode)
    except (ImageCms.PyCMSError, OSError, ValueError):    # browsers also read such a photo as sRGB
        return None
    return transform if transform.changes_colors() else None
