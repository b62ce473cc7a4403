import errno
import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageCms, ImageOps

import pedestal
from datasets import image_cache
from processor.image_index import ImageIndex
from utils.errors import UserError
from utils.images import SkippedFiles, describe_unknown_format, find_images, is_image_file
from utils.iotools import read_image, walk_folders

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RNG = np.random.default_rng(1)
GREY, COLOR = RNG.integers(0, 256, (6, 4), np.uint8), RNG.integers(0, 256, (6, 4, 3), np.uint8)
GREY_RGB = np.repeat(GREY[..., None], 3, axis=2)


def saved(image, path, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return str(path)


def pixels(path, notes=None):
    image = read_image(path, notes)
    assert image.mode == 'RGB' and type(image) is Image.Image
    return np.asarray(image)


def png(depth, kind, rows, *chunks):
    """Write a PNG file. ``rows`` is [H, ...] of big-endian numbers, ``kind`` PNG's color type."""
    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))
    header = struct.pack('>IIBBBBB', rows.shape[1], rows.shape[0], depth, kind, 0, 0, 0)
    data = zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))
    parts = [(b'IHDR', header), *chunks, (b'IDAT', data), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


def tiff(data, width, height, bits, photometric):
    """Write an uncompressed gray TIFF."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height),
            (279, len(data))]
    return (b'II*\0' + struct.pack('<I', 8 + len(data)) + data + struct.pack('<H', len(tags))
            + b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags) + bytes(4))


def wide_profile(gamma=1.8):
    """Build an ICC profile with wide primaries (ROMM's) and a gamma, described as 'Wide'."""
    def numbers(*values):
        return b'XYZ \0\0\0\0' + struct.pack('>3i', *(round(value * 65536) for value in values))
    curve = b'curv\0\0\0\0' + struct.pack('>IH', 1, round(gamma * 256)) + b'\0\0'
    text = b'desc\0\0\0\0' + struct.pack('>I', 5) + b'Wide\0' + bytes(78)
    tags = {b'desc': text + bytes(-len(text) % 4), b'cprt': b'text\0\0\0\0no\0\0', b'wtpt': numbers(0.9642, 1, 0.8249),
            b'rXYZ': numbers(0.7977, 0.2880, 0), b'gXYZ': numbers(0.1352, 0.7119, 0),
            b'bXYZ': numbers(0.0313, 0.0001, 0.8249),
            b'rTRC': curve, b'gTRC': curve, b'bTRC': curve}
    start, table, body = 132 + 12 * len(tags), b'', b''
    for name, content in tags.items():
        table += name + struct.pack('>II', start + len(body), len(content))
        body += content
    content = struct.pack('>I', len(tags)) + table + body
    head = struct.pack('>I4sI4s4s4s', 128 + len(content), b'\0\0\0\0', 0x02100000, b'mntr', b'RGB ', b'XYZ ')
    head += bytes(12) + b'acsp' + bytes(28) + struct.pack('>3i', 63190, 65536, 54061)
    return head.ljust(128, b'\0') + content


# -- ordinary files ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.bmp', 'a.webp'])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'P'])
def test_ordinary_photos_are_read_bit_by_bit_as_pillow_decodes_them(tmp_path, name, mode):
    if mode == 'P' and name in ('a.jpg', 'a.webp'):
        pytest.skip('has no palettes')
    path, notes = saved(Image.fromarray(COLOR).convert(mode), tmp_path / name), []
    assert (pixels(path, notes) == np.asarray(Image.open(path).convert('RGB'))).all() and not notes


def test_a_photo_that_says_it_is_srgb_keeps_its_pixels(tmp_path):
    profile, notes = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes(), []
    assert (pixels(saved(COLOR, tmp_path / 'a.png', icc_profile=profile), notes) == COLOR).all()
    assert (pixels(saved(COLOR, tmp_path / 'b.png', icc_profile=b'damaged' * 40), notes) == COLOR).all()
    (tmp_path / 'c.png').write_bytes(png(8, 2, COLOR, (b'gAMA', struct.pack('>I', 45455))))
    assert (pixels(tmp_path / 'c.png', notes) == COLOR).all() and not notes


# -- range -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
@pytest.mark.parametrize('factor', [256, 257])
def test_16_bit_greys_are_those_of_8_bits(tmp_path, name, factor):
    notes = []
    assert (pixels(saved(GREY.astype(np.uint16) * factor, tmp_path / name), notes) == GREY_RGB).all()
    assert notes == ['16 bits a pixel are reduced to 8']


def test_16_bit_colors_and_portable_greymaps(tmp_path):
    (tmp_path / 'a.png').write_bytes(png(16, 2, COLOR.astype('>u2') * 257))
    assert (pixels(tmp_path / 'a.png') == COLOR).all()
    (tmp_path / 'a.pgm').write_bytes(b'P5 4 6 65535\n' + (GREY.astype('>u2') * 257).tobytes())
    assert (pixels(tmp_path / 'a.pgm') == GREY_RGB).all()


def test_greys_of_a_tiff_whose_white_is_0_or_4095(tmp_path):
    (tmp_path / 'a.tif').write_bytes(tiff((65535 - GREY.astype('<u2') * 257).tobytes(), 4, 6, 16, 0))
    assert (pixels(tmp_path / 'a.tif') == GREY_RGB).all()
    pairs = (GREY.reshape(-1, 2).astype(int) << 4)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255],
                      1).astype(np.uint8)
    (tmp_path / 'b.tif').write_bytes(tiff(packed.tobytes(), 4, 6, 12, 1))
    assert (pixels(tmp_path / 'b.tif') == GREY_RGB).all()


@pytest.mark.parametrize('dtype, sentence',
                         [(np.float32, 'floating-point numbers'), (np.int32, 'signed or 32-bit integers')])
def test_pixels_without_a_range_are_refused(tmp_path, dtype, sentence):
    path = saved(GREY.astype(dtype), tmp_path / 'a.tif')
    with pytest.raises(UserError, match=f'^image {path} cannot be read: it holds {sentence}, .*: '
                       'save it with 8 or 16 bits a channel$'):
        read_image(path)


# -- frames ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['a.gif', 'a.png', 'a.webp', 'a.tif'])
def test_several_frames_are_refused(tmp_path, name):
    path = saved(COLOR, tmp_path / name, save_all=True, append_images=[Image.fromarray(255 - COLOR)])
    with pytest.raises(UserError, match=f'^image {path} cannot be read: it holds 2 frames: save the one that you mean'):
        read_image(path)


def test_a_photo_with_a_preview_is_its_first_frame(tmp_path):
    path = saved(COLOR, tmp_path / 'a.jpg', format='MPO', save_all=True, append_images=[Image.fromarray(255 - COLOR)])
    assert (pixels(path) == np.asarray(Image.open(path).convert('RGB'))).all()


# -- orientation -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.webp'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_photos_stand_upright(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, notes = saved(COLOR, tmp_path / name, exif=exif), []
    read = pixels(path, notes)
    assert (read == np.asarray(ImageOps.exif_transpose(Image.open(path)).convert('RGB'))).all()
    assert read.shape == ((4, 6, 3) if orientation > 4 else (6, 4, 3))
    assert notes == ([] if orientation == 1 else [f'EXIF orientation {orientation} is applied'])


@pytest.mark.parametrize('image', [COLOR, GREY, GREY.astype(np.uint16) * 257])
@pytest.mark.parametrize('compression', ['raw', 'tiff_lzw'])
def test_tiffs_stand_upright(tmp_path, image, compression):
    path = saved(image, tmp_path / 'a.tif', tiffinfo={0x0112: 6}, compression=compression)
    assert (pixels(path) == np.rot90(COLOR if image is COLOR else GREY_RGB, -1)).all()


def test_a_damaged_exif_block_turns_nothing(tmp_path):
    path = saved(COLOR, tmp_path / 'a.png', exif=b'Exif\0\0II*\0\xff\xff\xff\xff')
    assert (pixels(path) == COLOR).all()


# -- transparency ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['a.png', 'a.webp', 'a.tif'])
def test_colors_under_full_transparency_do_not_come_back(tmp_path, name):
    alpha, notes = np.where(GREY > 128, 255, 0).astype(np.uint8), []
    path = saved(np.dstack([COLOR, alpha]), tmp_path / name,
                 **({'lossless': True, 'exact': True} if name == 'a.webp' else {}))
    assert (pixels(path, notes) == np.where(alpha[..., None], COLOR, 255)).all()
    assert notes == ['transparent pixels are composited on white']


def test_half_transparent_greys_and_opaque_colors(tmp_path):
    mixed = pixels(saved(np.dstack([GREY * 0, GREY]), tmp_path / 'a.png')).astype(int)
    assert np.abs(mixed - (255 - GREY_RGB.astype(int))).max() <= 1
    notes = []
    assert (pixels(saved(np.dstack([COLOR, GREY * 0 + 255]), tmp_path / 'b.png'), notes) == COLOR).all() and not notes


@pytest.mark.parametrize('name', ['a.png', 'a.gif'])
def test_a_transparent_color_of_a_palette(tmp_path, name):
    image = Image.fromarray(COLOR).quantize(8)
    path = saved(image, tmp_path / name, transparency=3)
    shown = np.asarray(image) == 3
    assert shown.any() and (pixels(path)[shown] == 255).all()
    assert (pixels(path)[~shown] == np.asarray(image.convert('RGB'))[~shown]).all()


def test_a_transparent_color_of_colors_and_of_16_bit_greys(tmp_path):
    path = saved(COLOR, tmp_path / 'a.png', transparency=tuple(COLOR[2, 1].tolist()))
    assert (pixels(path)[2, 1] == 255).all() and (pixels(path)[3] == COLOR[3]).all()
    grey = GREY.astype('>u2') * 257
    (tmp_path / 'b.png').write_bytes(png(16, 0, grey, (b'tRNS', grey[2, 1].tobytes())))
    assert (pixels(tmp_path / 'b.png') == np.where(GREY_RGB == GREY[2, 1], 255, GREY_RGB)).all()


# -- color spaces ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['a.png', 'a.tif', 'a.webp'])
def test_a_wide_profile_is_converted(tmp_path, name):
    notes, profile = [], wide_profile()
    color = np.array([[[128, 128, 128], [150, 100, 100], [255, 255, 255], [0, 0, 0]]], np.uint8)
    read = pixels(saved(color, tmp_path / name, icc_profile=profile,
                        **({'lossless': True} if name == 'a.webp' else {})), notes)
    expected = ImageCms.profileToProfile(Image.fromarray(color), ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                                         ImageCms.createProfile('sRGB'), outputMode='RGB')
    assert (read == np.asarray(expected)).all() and notes == ['colors are converted from Wide to sRGB']
    grey, red, white, black = read[0].astype(int)
    assert grey.min() == grey.max() == round(255 * (1.055 * (128 / 255) ** (1.8 / 2.4) - 0.055))   # the curve of sRGB
    assert red[0] > 160 and red[1] < 110 and (white == 255).all() and (black == 0).all()


def test_a_wide_profile_of_a_photo_with_transparency(tmp_path):
    path, notes = saved(np.dstack([COLOR, GREY // 200 * 255]), tmp_path / 'a.png', icc_profile=wide_profile()), []
    assert (pixels(path, notes)[GREY < 200] == 255).all() and len(notes) == 2


def test_cmyk(tmp_path):
    image, notes = Image.fromarray(COLOR).convert('CMYK'), []
    assert (pixels(saved(image, tmp_path / 'a.tif'), notes) == COLOR).all()
    assert notes == ['CMYK colors are converted without a profile']


def test_the_gamma_of_a_png(tmp_path):
    (tmp_path / 'a.png').write_bytes(png(8, 2, COLOR, (b'gAMA', struct.pack('>I', 100000))))
    assert (pixels(tmp_path / 'a.png') == np.round(255 * (COLOR / 255) ** (1 / 2.2))).all()
    (tmp_path / 'b.png').write_bytes(png(8, 2, COLOR, (b'gAMA', struct.pack('>I', 100000)), (b'sRGB', b'\0')))
    assert (pixels(tmp_path / 'b.png') == COLOR).all()


# -- one reader --------------------------------------------------------------------------------------------------------

def test_the_library_reads_an_opened_image_as_it_reads_its_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(np.dstack([COLOR, GREY]), tmp_path / 'a.png', exif=exif)
    with Image.open(path) as image:
        assert (np.asarray(pedestal.load_rgb(image)) == pixels(path)).all()
    with pytest.raises(UserError, match='floating-point numbers'):
        pedestal.load_rgb(Image.fromarray(GREY.astype(np.float32)))


def test_postscript_in_a_jpg_starts_nothing(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *args, **kwargs: started.append(args))
    path = tmp_path / 'a.jpg'
    path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n')
    with pytest.raises(UserError, match=f'^{path} is not an image but PostScript'):
        read_image(path)
    assert not started


def test_images_are_opened_at_one_place():
    sources = [os.path.join(place, name) for place, _, names in os.walk(ROOT) for name in names
               if name.endswith('.py') and not re.search(r'[/\\](tests|\.)', place[len(ROOT):])]
    opening = [path for path in sources if 'Image.open(' in open(path, encoding='utf-8').read()]
    example = os.path.join('run_scripts', 'exports', 'onnx_example.py')     # it runs without Pedestal
    assert {os.path.relpath(path, ROOT) for path in opening} == {os.path.join('utils', 'images.py'), example}


def test_a_cache_that_another_reader_made_is_not_used(tmp_path, monkeypatch):
    path = saved(COLOR, tmp_path / 'a.png')
    before = image_cache.cache_key([path], str(tmp_path), (6, 4))
    monkeypatch.setattr(image_cache, 'READER_VERSION', image_cache.READER_VERSION + 1)
    assert image_cache.cache_key([path], str(tmp_path), (6, 4)) != before


# -- folders -----------------------------------------------------------------------------------------------------------

def without_access(monkeypatch, folder):
    """Make a folder that cannot be listed, for any user."""
    scandir = os.scandir

    def refuse(path='.'):
        if os.fspath(path) == str(folder):
            raise PermissionError(13, 'Permission denied', str(folder))
        return scandir(path)
    monkeypatch.setattr(os, 'scandir', refuse)


def test_what_pillow_opens_is_found_and_the_rest_is_named(tmp_path, monkeypatch):
    (tmp_path / 'more' / '.index').mkdir(parents=True)
    for name in ('a.jpg', 'b.JFIF', 'c.jp2', 'd.tga', 'more/e.ppm'):
        saved(COLOR, tmp_path / name, format={'.JFIF': 'JPEG'}.get(os.path.splitext(name)[1]))
    for name in ('more/photo', 'photo.jpg_large'):
        saved(COLOR, tmp_path / name, format='JPEG')
    for name in ('f.mp4', 'g.MP4', 'more/notes.txt', '.hidden.jpg', '.DS_Store', 'more/.index/lines.jsonl', 'h.eps'):
        (tmp_path / name).write_bytes(b'anything')
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'closed').mkdir()
    without_access(monkeypatch, tmp_path / 'closed')
    paths, skipped = find_images(str(tmp_path))
    assert sorted(os.path.relpath(path, tmp_path) for path in paths) == \
        ['a.jpg', 'b.JFIF', 'c.jp2', 'd.tga', 'more/e.ppm', 'more/photo', 'photo.jpg_large']
    folders, hidden, others = skipped.summary()
    assert folders == f'1 folder that cannot be listed ({tmp_path}/closed cannot be read: Permission denied)'
    assert hidden == f'1 hidden image file ({tmp_path}/.hidden.jpg)'
    assert others.startswith('5 files that Pillow does not read as an image (2 .mp4, 1 .eps, 1 no ending, 1 .txt; ')
    assert others.endswith(f'{tmp_path}/h.eps and 2 more)')
    line, = SkippedFiles(others=['a.HEIC']).summary()
    assert line.endswith('(1 .heic; a.HEIC; pip install pillow-heif reads HEIC)')


def test_nothing_skipped_says_nothing(tmp_path):
    saved(COLOR, tmp_path / 'a.jpg')
    assert find_images(str(tmp_path))[1].summary() == SkippedFiles().summary() == []


def test_a_heic_photo_is_named_with_its_remedy(tmp_path):
    (tmp_path / 'a.heic').write_bytes(b'\0\0\0\x18ftypheic' + bytes(100))
    try:
        import pillow_heif  # noqa: F401
        pytest.skip('pillow-heif is installed')
    except ImportError:
        pass
    with pytest.raises(UserError, match='a.heic is a HEIC photo, .*: pip install pillow-heif, or convert it to JPEG$'):
        read_image(tmp_path / 'a.heic')
    assert not is_image_file(tmp_path / 'a.heic')


def test_programs_that_look_for_runs_say_which_folders_they_cannot_list(tmp_path, monkeypatch, caplog):
    (tmp_path / 'closed').mkdir()
    without_access(monkeypatch, tmp_path / 'closed')
    assert [place for place, _, _ in walk_folders(str(tmp_path))] == [str(tmp_path)]
    assert f'skipped: folder {tmp_path}/closed cannot be read: Permission denied' in caplog.text


# -- too many open files ---------------------------------------------------------------------------------------------

@pytest.fixture
def photo(tmp_path):
    path = str(tmp_path / 'photo')      # without an ending, so that its first bytes tell that it is an image
    Image.new('RGB', (4, 8)).save(path, format='PNG')
    read_image(path)                    # imports what Pillow needs
    return path


@pytest.fixture
def no_free_descriptor():
    """Let every further open() of this process fail, until the test ends."""
    resource = pytest.importorskip('resource', reason='needs POSIX limits')
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize('read', [read_image, is_image_file, describe_unknown_format,
                                  lambda path: find_images(os.path.dirname(path)),
                                  lambda path: list(walk_folders(os.path.dirname(path)))],
                         ids=['read_image', 'is_image_file', 'describe_unknown_format', 'find_images', 'walk_folders'])
def test_a_sound_image_is_not_broken_if_too_many_files_are_open(read, photo, no_free_descriptor):
    with pytest.raises(OSError) as caught:
        read(photo)
    assert caught.value.errno == errno.EMFILE


def test_an_index_does_not_skip_an_image_if_too_many_files_are_open(photo):
    def read(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
    folder, model = os.path.dirname(photo), {'sha256': '0'}
    with pytest.raises(OSError) as caught:
        ImageIndex(folder, model, 'key', 2).update(read, None, progress=False)
    assert caught.value.errno == errno.EMFILE
    index = ImageIndex(folder, model, 'key', 2)
    assert index.new_paths == ['photo'] and not index.broken
