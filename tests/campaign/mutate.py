"""Corruptions of values, bytes, files, JSON documents and checkpoints.

Each function gets a ``random.Random``, makes one change, and describes it.
"""
import csv
import io
import json
import os

import torch
from PIL import Image, ImageCms

NUMBERS = ['0', '-1', '-0.0', '1', '2', '3', '1.5', '1e3', '1e-320', '1e400', 'nan', 'inf', '-inf', str(2 ** 31),
           str(2 ** 63), '9' * 30, '99999999999', '0x10', '1_0', '\u0663', '', ' ', '+', '7 7', '1,5', 'true', 'null',
           '[]']
TEXTS = ['', ' ', '.', '..', '../../x', 'a/b', '/dev/null', '/dev/null/x', '/proc/nowhere', '~', '-', '--', '\n', '\t',
         'a\nb', '\x1b[31m', '\u200b', '\u202e', '\ud800', '\udcff', '\U0001f6b6', 'x' * 300, 'x' * 20000, '%s', '{}',
         '$HOME', "'", '"', '*', 'NUL', 'None', '\u00e9', 'e\u0301']
VALUES = [None, True, False, 0, -1, 1, 2 ** 31, 2 ** 63, 2 ** 70, 1.5, float('nan'), float('inf'), -1e308, [], {}, [[]],
          {'a': 1}, [None], [1, 'a'], *TEXTS, '\x00', 'word ' * 5000, '<|endoftext|> a <|mask|>', 'x' * 1000000]
REPLACEMENTS = ['a pipe', 'a folder', 'a link to nothing', 'a link to itself', 'a link to /dev/zero',
                'a link to /dev/null', 'nothing']


def corrupt_bytes(rng, content):
    """Change bytes: ``(bytes, description)``."""
    kind, position = rng.randrange(7), rng.randrange(max(len(content), 1))
    if kind == 0:
        return content[:position], f'cut after {position} bytes'
    if kind == 1:
        content, count = bytearray(content), rng.choice([1, 1, 1, 4, 64])
        positions = [rng.randrange(len(content)) for _ in range(count)]
        for position in positions:
            content[position] ^= 1 << rng.randrange(8)
        return bytes(content), f'{count} bits flipped, the first in byte {positions[0]}'
    if kind == 2:
        inserted = rng.randbytes(rng.choice([1, 16, 4096]))
        return content[:position] + inserted + content[position:], f'random bytes inserted at {position}'
    if kind == 3:
        return content[:position] + bytes(rng.choice([1, 16, 4096])) + content[position + 4096:], f'zeros at {position}'
    if kind == 4:
        starts = [b'', b'\0', b'\xff\xfe', b'\n', b'text', b'\x1f\x8b', b'PK\x03\x04', b'\xef\xbb\xbf']
        return rng.choice(starts), 'other content'
    if kind == 5:
        return content + content[position:], f'the part from {position} on twice'
    return rng.randbytes(rng.choice([1, 100, 10000])), 'random bytes'


def flip_bits(rng, path):
    """Flip one bit of a file, or a few."""
    with open(path, 'rb') as file:
        content = bytearray(file.read())
    positions = [rng.randrange(len(content)) for _ in range(rng.choice([1, 1, 4]))]
    for position in positions:
        content[position] ^= 1 << rng.randrange(8)
    write(path, bytes(content))
    return f'{len(positions)} bits flipped, the first in byte {positions[0]}'


def replace_file(rng, path):
    """Replace a file by something that is no regular file."""
    kind = rng.choice(REPLACEMENTS)
    os.remove(path)
    if kind == 'a pipe':
        os.mkfifo(path)
    elif kind == 'a folder':
        os.mkdir(path)
    elif kind.startswith('a link'):
        targets = {'nothing': 'nowhere', 'itself': os.path.basename(path)}
        os.symlink(targets.get(kind[len('a link to '):], kind.split()[-1]), path)
    return f'{kind} in its place'


def write(path, content):
    """Replace the file at ``path``, because other cases may share it."""
    if os.path.lexists(path):
        os.remove(path)
    with open(path, 'wb') as file:
        file.write(content)


def corrupt_file(rng, path):
    """Change the bytes of a file, or replace it."""
    if rng.random() < 0.2:
        return replace_file(rng, path)
    with open(path, 'rb') as file:
        content, what = corrupt_bytes(rng, file.read())
    write(path, content)
    return what


def corrupt_json(rng, path):
    """Change one thing in a JSON list of mappings."""
    with open(path) as file:
        document = json.load(file)
    kind, entry = rng.randrange(8), rng.randrange(len(document))
    name, value = rng.choice(sorted(document[entry])), rng.choice(VALUES)
    if kind <= 2:
        document[entry][name] = [value] if name == 'captions' and rng.random() < 0.7 else value
        what = f'{name} of entry {entry} is {shorten(document[entry][name])}'
    elif kind == 3:
        del document[entry][name]
        what = f'entry {entry} has no {name}'
    elif kind == 4:
        document[entry] = value
        what = f'entry {entry} is {shorten(value)}'
    elif kind == 5:
        document, what = value, f'the document is {shorten(value)}'
    elif kind == 6:
        for mapping in document:
            mapping[name] = value
        what = f'{name} of all entries is {shorten(value)}'
    else:
        document.append(document[entry])
        what = f'entry {entry} twice'
    text = json.dumps(document)
    if rng.random() < 0.1:
        depth = rng.choice([100, 5000, 100000])
        text, what = '[' * depth + ']' * depth, f'lists {depth} deep'
    elif rng.random() < 0.1:
        text, what = text.replace('{', '{"split": "train", "split": "test", ', 1), 'a key twice'
    write(path, text.encode('utf-8', 'surrogatepass'))
    return what


# -- tables ------------------------------------------------------------------------------------------------------------

IDENTITIES = ['{}.0', '00{}', ' {}', '{} ', '\uff10{}', '\u200b{}', '-1', '-{}', 'nan', '{}e0', '']
IMAGES = ['./{}', 'imgs/../{}', '/imgs/{}', 'C:\\{}', '\\{}', '../{}', '{} ', '']
CAPTIONS = ["['{}', 'b']", '["{}"]', "['{}' 'b']", '[{}]', '"{}', '{}"', '{}\na,b,c,d', '=1+1', '']


def corrupt_table(rng, rows, path):
    """Change a cell of a table ``[{column: text}]``, or its format, and write it."""
    row, column = rng.choice(rows), rng.choice(sorted(rows[0]))
    patterns = {'id': IDENTITIES, 'image': IMAGES, 'caption': CAPTIONS, 'split': ['Train', ' {}', 'x', '']}[column]
    if rng.random() < 0.8:
        pattern = rng.choice([*patterns, rng.choice(TEXTS)])
        row[column] = pattern.replace('{}', row[column])
    what = f'{column} {shorten(row[column])}'
    delimiter = rng.choice([',', ',', '\t', ';', '|', ':'])
    lines = io.StringIO()
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.DictWriter(lines, list(rows[0]), delimiter=delimiter, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    text = lines.getvalue()
    if rng.random() < 0.3:
        old, new = rng.choice([('"', ''), (delimiter, ''), (delimiter, delimiter * 2), ('a', '"'), ('\r\n', '\r'),
                               ('\r\n', '\n\n'), ('', 'sep=;\n')])
        position = rng.randrange(len(text)) if old else 0
        text = text[:position] + text[position:].replace(old, new, 1)
        what += f', and {shorten(new)} for {shorten(old)} after {position}'
    encoding = rng.choice(['utf-8', 'utf-8', 'utf-8', 'utf-8-sig', 'gb18030', 'utf-16', 'latin-1'])
    write(path, text.encode(encoding, 'replace'))
    return f'{what}, separated by {shorten(delimiter)}, in {encoding}'


def shorten(value, limit=60):
    """Format a value for people, in ASCII."""
    text = ascii(value)
    return text if len(text) <= limit else f'{text[:limit]}... ({len(text)} characters)'


# -- pixels ------------------------------------------------------------------------------------------------------------

IMAGE_MODES = {'1': 'png', 'L': 'png', 'LA': 'png', 'P': 'png', 'RGB': 'jpeg', 'RGBA': 'png', 'CMYK': 'tiff',
               'I;16': 'png', 'I': 'tiff', 'F': 'tiff', 'YCbCr': 'jpeg', 'LAB': 'tiff'}
REFUSED_MODES = {'I', 'F', 'LAB'}


def write_strange_image(rng, path):
    """Replace an image by one of any mode with any metadata: ``(description, whether it must be refused)``."""
    mode, options, what = rng.choice(sorted(IMAGE_MODES)), {}, []
    form = IMAGE_MODES[mode]
    size = rng.choice([(1, 1), (1, 3000), (3000, 1), (32, 64), (32, 64), (32, 64), (12000, 12000)])
    image = Image.new(mode, size)
    if rng.random() < 0.4:
        orientation = rng.choice([*range(10), 65535])
        exif = Image.Exif()
        exif[0x0112] = orientation
        is_intact = rng.random() < 0.7 or form == 'tiff'
        options['exif'] = exif.tobytes() if is_intact else corrupt_bytes(rng, exif.tobytes())[0]
        what.append(f'EXIF orientation {orientation}')
    if rng.random() < 0.4:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(rng.choice(['sRGB', 'LAB', 'XYZ']))).tobytes()
        options['icc_profile'] = profile if rng.random() < 0.5 else corrupt_bytes(rng, profile)[0]
        what.append('a color profile')
    if form == 'png' and mode in ('L', 'P', '1') and rng.random() < 0.5:
        options['transparency'] = 0
        what.append('a transparent color')
    has_frames = form != 'jpeg' and size[0] * size[1] < 10 ** 6 and rng.random() < 0.2
    if has_frames:
        options |= {'save_all': True, 'append_images': [Image.new(mode, size, 1)]}
        what.append('two frames')
    os.remove(path)
    image.save(path, form, **options)
    if rng.random() < 0.1:
        with open(path, 'wb') as file:
            file.write(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n')
        return 'PostScript', True
    must_be_refused = mode in REFUSED_MODES or has_frames or size == (12000, 12000)
    return ', '.join([f'a {form} of {size} in {mode}', *what]), must_be_refused


# -- checkpoints -------------------------------------------------------------------------------------------------------

def _expand(tensor):
    return torch.ones((), dtype=tensor.dtype).expand(tensor.shape)


def _set_first(value):
    def change(tensor):
        tensor = tensor.clone().float()
        tensor.view(-1)[:1] = value
        return tensor
    return change


TENSOR_CHANGES = {
    'transposed': lambda t: t.T.contiguous() if t.ndim == 2 else t[None], 'flat': lambda t: t.reshape(-1),
    'empty': lambda t: t.new_zeros(0), 'one element': lambda t: t.reshape(-1)[:1].clone(),
    'longer': lambda t: torch.cat([t.reshape(-1)] * 2),
    'scalar': lambda t: t.new_zeros(()), 'half': lambda t: t.half(), 'double': lambda t: t.double(),
    'int64': lambda t: t.long(), 'uint8': lambda t: t.to(torch.uint8), 'bool': lambda t: t.bool(),
    'complex': lambda t: t.to(torch.complex64),
    'sparse': lambda t: t.to_sparse(), 'meta': lambda t: t.to('meta'), 'stride 0': _expand,
    'quantized': lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8), 'nan': _set_first(float('nan')),
    'inf': _set_first(float('inf')), 'huge': _set_first(3e38), 'zeros': torch.zeros_like,
    'strided': lambda t: torch.stack([t, t], -1)[..., 0],
    'None': lambda t: None, 'a text': lambda t: 'x', 'a number': lambda t: 1.0, 'a list': lambda t: [1.0],
    'a mapping': lambda t: {'a': t}}
ODD_VALUES = [None, True, -5, 0, 2 ** 70, 1.5, float('nan'), float('inf'), 'x', '', [], [1], {}, {'a': 1}, {1: 2},
              torch.zeros(3), torch.zeros(0)]


def choose_path(rng, content):
    """Choose an entry of nested content, at any depth: ``('epoch',)``, ``('optimizer', 'state', 0, 'exp_avg')``, ..."""
    path = ()
    while isinstance(content, (dict, list)) and content and (not path or rng.random() < 0.8):
        key = rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
        path, content = (*path, key), content[key]
    return path


def get_parent(content, path):
    """Return the mapping or list that holds an entry."""
    for key in path[:-1]:
        content = content[key]
    return content


def corrupt_entry(rng, part, content):
    """Replace one entry of ``content``, chosen in its ``part``, by an odd value."""
    path = choose_path(rng, part)
    value = rng.choice(ODD_VALUES)
    get_parent(content, path)[path[-1]] = value
    return f'{".".join(map(str, path))} is {shorten(value)}'


def corrupt_checkpoint(rng, path):
    """Change one entry of a checkpoint, at any depth."""
    content = torch.load(path, map_location='cpu', weights_only=True)
    keys, kind = choose_path(rng, content), rng.randrange(6)
    parent, key = get_parent(content, keys), keys[-1]
    value, name = parent[key], '.'.join(map(str, keys))
    if kind == 0:
        del parent[key]
        what = f'{name} is missing'
    elif kind <= 3 and isinstance(value, torch.Tensor):
        change = rng.choice(sorted(TENSOR_CHANGES))
        parent[key] = TENSOR_CHANGES[change](value)
        what = f'{name} is {change}'
    elif kind == 4 and isinstance(parent, dict):
        parent[rng.choice(['another', 7, '', 'module.x', None])] = parent.pop(key)
        what = f'{name} has another name'
    else:
        what = corrupt_entry(rng, content, content)
    os.remove(path)
    torch.save(content, path)
    return what
