"""Load CLIP's pretrained weights and fit them to a resolution.

A source is what ``--pretrain_choice`` takes: an OpenAI name (``ViT-B/16``), a path (OpenAI's TorchScript archive, a
state dict or ``.safetensors``; names as OpenAI, open_clip or Hugging Face write them), or ``scratch:<shape>`` for
random weights. ``model/activation.py`` finds the activation.
"""
import http.client
import logging
import os
import re
import socket
import warnings
import zipfile
from dataclasses import MISSING, fields

import torch
import torch.nn.functional as F

from model.clip_model import CLIP, ClipShape
from utils.checkpoint import find_mismatches
from utils.errors import UserError, abbreviate, unknown_name_error
from utils.safe_yaml import load_yaml
from utils.temporary import temporary_sibling
from utils.weight_files import check_archive, check_weights, compute_sha256, read_torch_file
from utils.weight_names import to_own_names

log = logging.getLogger('Pedestal.weights')

DOWNLOAD_TIMEOUT = 30   # seconds that a server may send nothing
OPENAI_URL = 'https://openaipublic.azureedge.net/clip/models'
OPENAI_SHA256 = {       # published as a part of each file's URL
    'RN50': 'afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762',
    'RN101': '8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599',
    'RN50x4': '7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd',
    'RN50x16': '52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa',
    'RN50x64': 'be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c',
    'ViT-B/32': '40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af',
    'ViT-B/16': '5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f',
    'ViT-L/14': 'b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836',
    'ViT-L/14@336px': '3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02',
}
SHAPES_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'configs', 'clip')
KEPT_POSITIONS = 20     # text positions that Long-CLIP does not stretch
WEIGHT_FILES = ('.pt', '.pth', '.bin', '.ckpt', '.safetensors')


def build_clip(pretrain_choice, img_size, stride_size, text_length=77, trust_archive=False, download_root=None,
               text_positions='first', activation='quick_gelu'):
    """Build a pretrained :class:`CLIP`.

    Args:
        pretrain_choice: the source of the weights.
        img_size: (height, width) in pixels; the position table is resized to it.
        stride_size: pixels between patches.
        text_length: number of tokens of a caption.
        trust_archive: whether to run a TorchScript archive that has none of OpenAI's checksums.
        download_root: the folder of OpenAI's files; None is ``~/.cache/clip``.
        text_positions: 'first' takes the first text positions, 'interpolated' resizes all (:func:`fit_text_positions`),
            'stretched' resizes those after the first 20 (:func:`stretch_text_positions`).
        activation: 'quick_gelu' or 'gelu'.

    Raises:
        UserError: the source is missing or broken, carries code, or holds other parameters than those of a CLIP.
    """
    path = weights_file(pretrain_choice, download_root)
    if path is None:
        return CLIP(shape_named(pretrain_choice), img_size, stride_size, text_length, activation)
    state, fitted, scale = read_weights(path, trust_archive or pretrain_choice in OPENAI_SHA256)
    with torch.device('meta'):      # without random weights, because all are replaced
        clip = CLIP(shape_of(state, path), img_size, stride_size, text_length, activation)
    positions = len(state[image_table(clip)]) - 1, len(state['positional_embedding'])
    fit_tables(state, clip, fitted, path, text_positions)
    check_entries(state, clip, path)
    clip.load_state_dict(state, assign=True)
    clip.pretrained_scale = scale
    resized = text_positions != 'first' and text_length != positions[1]
    words = f'{positions[1]} text positions {text_positions} to {text_length}' if resized else \
        f'the first {text_length} of {positions[1]} text positions'
    log.info('encoders from %s: %d image positions fitted to %dx%d, %s', path, positions[0], *clip.grid, words)
    return clip


def weights_file(pretrain_choice, download_root=None):
    """Return the path of a source's file, which is downloaded if OpenAI's is missing; None for random weights."""
    if pretrain_choice.startswith('scratch:'):
        return None
    if pretrain_choice in OPENAI_SHA256:
        return openai_file(pretrain_choice, download_root)
    return existing_path(pretrain_choice)


def empty_clip(shape, img_size, stride_size, text_length=77, activation='quick_gelu'):
    """Build a :class:`CLIP` with random weights, for a checkpoint that is loaded next."""
    return CLIP(shape, img_size, stride_size, text_length, activation)


def clip_without_values(pretrain_choice, weights, source, *sizes):
    """Build a :class:`CLIP` without values, for the weights of a run that are loaded next.

    It draws no random numbers, like :func:`build_clip` for a file.

    Args:
        pretrain_choice: the source of the run's pretrained weights.
        weights: the run's state dict.
        source: its file, for error messages.
        sizes: the further arguments of :func:`empty_clip`.

    Raises:
        UserError: the shape follows from ``weights`` and they do not fit it.
    """
    state = {name[len('base_model.'):]: value for name, value in weights.items() if name.startswith('base_model.')}
    is_named = pretrain_choice in OPENAI_SHA256
    with torch.device('meta'):
        clip = CLIP(shape_named(pretrain_choice) if is_named else shape_of(state, source), *sizes)
    # Position tables depend on --img_size and --text_length. The code that loads the weights compares them.
    mismatches = [] if is_named else find_mismatches(clip.state_dict(), state)
    mismatches = [text for text in mismatches if 'positional_embedding' not in text]
    if mismatches:
        raise UserError(f'{source} does not hold the parameters of a CLIP that Pedestal knows (of another size or '
                        f'type: {abbreviate(mismatches)})')
    return clip.to_empty(device='cpu')


def shape_named(pretrain_choice, trust_archive=False):
    """Return the :class:`ClipShape` of a source, without downloading or building anything."""
    if pretrain_choice in OPENAI_SHA256:
        return read_shape(file_stem(pretrain_choice))
    if pretrain_choice.startswith('scratch:'):
        return read_shape(file_stem(pretrain_choice[len('scratch:'):]))
    path = existing_path(pretrain_choice)
    return shape_of(read_state_dict(path, trust_archive), path)


def file_stem(name):
    return name.replace('/', '-').replace('@', '-')


def read_shape(name):
    """Read the shape in ``configs/clip/<name>.yaml``."""
    known = [os.path.splitext(file)[0] for file in os.listdir(SHAPES_FOLDER) if file.endswith('.yaml')]
    if name not in known:
        raise unknown_name_error('CLIP shape', name, known)
    path = os.path.join(SHAPES_FOLDER, name + '.yaml')
    keys = [field.name for field in fields(ClipShape)]
    entries = load_yaml(path)
    if not isinstance(entries, dict):
        raise UserError(f'{path} holds no shape: it needs lines like "embed_dim: 512"')
    for key, value in entries.items():
        if key not in keys:
            raise unknown_name_error(f'key in {path}', key, keys)
        if not isinstance(value, (int, list, type(None))):
            raise UserError(f'{path}: {key} is {value!r} and must be a whole number')
    lacking = [field.name for field in fields(ClipShape) if field.default is MISSING and field.name not in entries]
    if lacking:
        raise UserError(f'{path} lacks {", ".join(lacking)}')
    return ClipShape(**entries)


def existing_path(pretrain_choice):
    path = os.path.expanduser(pretrain_choice)
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        raise UserError(f'--pretrain_choice {pretrain_choice} is a folder; name the file with the weights in it')
    if path.endswith(WEIGHT_FILES) or os.path.isdir(os.path.dirname(path)):
        raise UserError(f'--pretrain_choice: there is no file {pretrain_choice}')
    raise unknown_name_error('--pretrain_choice', pretrain_choice, [*OPENAI_SHA256, 'a path', 'scratch:<shape>'])


# -- OpenAI's files ----------------------------------------------------------------------------------------------------

def openai_file(name, download_root=None):
    """Return the path of OpenAI's archive ``name``, after downloading it if needed and comparing its checksum."""
    folder = os.path.expanduser(download_root or '~/.cache/clip')
    path = os.path.join(folder, file_stem(name) + '.pt')
    if os.path.isfile(path):
        if compute_sha256(path) == OPENAI_SHA256[name]:
            return path
        log.warning('%s has a wrong checksum (an interrupted download?) and is downloaded again', path)
    url = f'{OPENAI_URL}/{OPENAI_SHA256[name]}/{file_stem(name)}.pt'
    try:
        os.makedirs(folder, exist_ok=True)
        with temporary_sibling(path) as part:
            download(url, part, OPENAI_SHA256[name])
            os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f'cannot download the weights of {name} ({error}): put {os.path.basename(path)} from {url} (sha256 '
            f'{OPENAI_SHA256[name]}) into {folder}, or give --pretrain_choice the path of a weights file you have, '
            f'or scratch:{file_stem(name)} for random weights') from None
    return path


def download(url, path, checksum):
    """Download a file with a progress bar.

    A server that sends nothing is an error; PyTorch alone would wait forever.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        torch.hub.download_url_to_file(url, path, hash_prefix=checksum)
    except RuntimeError:
        raise OSError('the downloaded file has a wrong checksum') from None
    finally:
        socket.setdefaulttimeout(before)


# -- reading files -----------------------------------------------------------------------------------------------------

def read_state_dict(path, trust_archive=False):
    """Read the weights of a file, with OpenAI's names, floating-point entries in float32, on the CPU.

    A checkpoint of a whole retrieval model gives its encoders' weights (``base_model.*``).

    Raises:
        UserError: the file is missing or broken or carries code. A TorchScript archive is read if it is one of OpenAI's
            or if ``trust_archive`` is true.
    """
    return read_weights(path, trust_archive)[0]


def read_weights(path, trust_archive):
    """Read a file of weights.

    Returns:
        The weights; whether a retrieval model was trained from them, so that the position table is fitted already; the
        logarithm of the scale that they were trained with, or None.
    """
    if not os.path.isfile(path):
        raise UserError(f'there is no file {path}')
    try:
        entries = load_entries(path, trust_archive)
    except (UserError, MemoryError):
        raise
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from None
    except Exception:       # unpickling arbitrary bytes raises nearly anything
        raise UserError(f'{path} is truncated or no file of weights') from None
    state = tensors_in(entries, path)
    state = to_own_names(state, path)
    scale = state.get('logit_scale', state.get('base_model.logit_scale'))
    fitted = any(name.startswith('base_model.') for name in state)
    if fitted:      # without the parameters of heads
        state = {name[len('base_model.'):]: value for name, value in state.items() if name.startswith('base_model.')}
    scale = float(scale) if scale is not None and scale.numel() == 1 else None
    return {name: in_float32(value) for name, value in openai_names(state).items()}, fitted, scale


def in_float32(value):
    """Copy a tensor to float32. The copy shares no memory with other entries, because the model trains it."""
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return value.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def load_entries(path, trust_archive):
    """Read a file of any of the three formats."""
    if path.endswith('.safetensors'):
        return load_safetensors(path)
    if is_torchscript(path):
        return load_torchscript(path, trust_archive)
    return read_torch_file(path)


def is_torchscript(path):
    """Whether a file is a zip archive with a ``code/`` folder; those of torch.save have none."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any('/code/' in name for name in archive.namelist())


def load_torchscript(path, trust_archive):
    if not trust_archive and compute_sha256(path) not in OPENAI_SHA256.values():
        raise UserError(f"{path} is a TorchScript archive, which can carry code, and none of OpenAI's known files; "
                        'if you trust where it comes from, load it with --trust_archive')
    with open(path, 'rb') as file:
        check_archive(file, path)
    with warnings.catch_warnings():     # PyTorch deprecates TorchScript; OpenAI's files stay what they are
        warnings.simplefilter('ignore', FutureWarning)
        warnings.simplefilter('ignore', DeprecationWarning)
        return torch.jit.load(path, map_location='cpu').state_dict()


def load_safetensors(path):
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f'reading {path} needs the safetensors library: pip install safetensors') from None
    log.info('%s has a format without checksums: damaged numbers cannot be detected', path)
    return load_file(path)


def tensors_in(entries, path):
    """Return the state dict in the content of a file: the content itself, or its ``state_dict`` or ``model``."""
    for key in ('state_dict', 'model'):
        if isinstance(entries, dict) and isinstance(entries.get(key), dict):
            entries = entries[key]
    check_weights(entries, path)
    return entries


# -- naming dialects ---------------------------------------------------------------------------------------------------

DROPPED = re.compile(
    r'(logit_scale|logit_bias|input_resolution|context_length|vocab_size|(.*\.)?attn_mask|(.*\.)?position_ids)$')

HUGGING_FACE = [(re.compile(pattern), openai) for pattern, openai in (
    (r'text_model\.embeddings\.token_embedding\.', 'token_embedding.'),
    (r'text_model\.embeddings\.position_embedding\.weight', 'positional_embedding'),
    (r'text_model\.final_layer_norm\.', 'ln_final.'),
    (r'text_model\.encoder\.layers\.', 'transformer.resblocks.'),
    (r'text_projection\.weight', 'text_projection'),
    (r'vision_model\.embeddings\.class_embedding', 'visual.class_embedding'),
    (r'vision_model\.embeddings\.patch_embedding\.', 'visual.conv1.'),
    (r'vision_model\.embeddings\.position_embedding\.weight', 'visual.positional_embedding'),
    (r'vision_model\.pre_laye?rnorm\.', 'visual.ln_pre.'),     # spelt pre_layrnorm there
    (r'vision_model\.post_layernorm\.', 'visual.ln_post.'),
    (r'vision_model\.encoder\.layers\.', 'visual.transformer.resblocks.'),
    (r'visual_projection\.weight', 'visual.proj'),
)]
HUGGING_FACE_BLOCK = (('.layer_norm1.', '.ln_1.'), ('.layer_norm2.', '.ln_2.'), ('.mlp.fc1.', '.mlp.c_fc.'),
                      ('.mlp.fc2.', '.mlp.c_proj.'), ('.self_attn.out_proj.', '.attn.out_proj.'))


def openai_names(state):
    """Rename weights to OpenAI's names, without entries that are no weights (``logit_scale``, sizes, position ids)."""
    state = {name: value for name, value in state.items() if not DROPPED.match(name)}
    if any(name.startswith(('text_model.', 'vision_model.')) for name in state):
        return from_hugging_face(state)
    state = {name.removeprefix('text.'): value for name, value in state.items()}    # open_clip's CustomTextCLIP
    return merge_long_positions(state)


def merge_long_positions(state):
    """Return Long-CLIP's weights (Zhang et al., ECCV 2024) with one table of text positions.

    Its files hold two tables [248, D]. The first ``KEPT_POSITIONS`` places are read from ``positional_embedding``, the
    others from ``positional_embedding_res``. Other weights are returned as they are.
    """
    first, others = state.get('positional_embedding'), state.get('positional_embedding_res')
    if first is None or others is None or first.shape != others.shape:
        return state
    merged = torch.cat([first[:KEPT_POSITIONS], others[KEPT_POSITIONS:]])
    return {**{name: value for name, value in state.items() if name != 'positional_embedding_res'},
            'positional_embedding': merged}


def from_hugging_face(state):
    state = fuse_projections(state)
    renamed = {}
    for name, value in state.items():
        if name in ('text_projection.weight', 'visual_projection.weight'):
            value = value.T.contiguous()    # from a Linear layer to a matrix
        for pattern, openai in HUGGING_FACE:
            name = pattern.sub(openai, name, count=1) if pattern.match(name) else name
        for theirs, openai in HUGGING_FACE_BLOCK:
            name = name.replace(theirs, openai)
        renamed[name] = value
    return renamed


def fuse_projections(state):
    """Stack ``...self_attn.{q,k,v}_proj.{weight,bias}`` to ``...attn.in_proj_{weight,bias}``."""
    fused = {}
    for name, value in state.items():
        match = re.fullmatch(r'(.*\.)self_attn\.([qkv])_proj\.(weight|bias)', name)
        parts = match and [f'{match[1]}self_attn.{part}_proj.{match[3]}' for part in 'qkv']
        if not match or not all(part in state for part in parts):   # an incomplete one is reported by its name
            fused[name] = value
        elif match[2] == 'q':
            fused[f'{match[1]}attn.in_proj_{match[3]}'] = torch.cat([state[part] for part in parts])
    return fused


# -- shapes and fitting ------------------------------------------------------------------------------------------------

# {width: heads} of published CLIPs whose image transformer has heads wider than 64 (open_clip's ViT-H, ViT-g, ViT-bigG)
WIDE_HEADS = {1280: 16, 1408: 16, 1664: 16}


def shape_of(state, source='the state dict'):
    """Return the :class:`ClipShape` of a state dict with OpenAI's names.

    No tensor holds the number of heads. Heads are 64 wide, except in a few published models (``WIDE_HEADS``).
    ``source`` is the name of the weights in error messages.
    """
    try:
        if any(0 in value.shape for value in state.values()):
            raise ValueError
        text = dict(
            embed_dim=state['text_projection'].shape[1], text_length=state['positional_embedding'].shape[0],
            vocab_size=state['token_embedding.weight'].shape[0], text_width=state['ln_final.weight'].shape[0],
            text_layers=count_blocks(state, 'transformer.resblocks.'))
        vision = resnet_shape(state) if 'visual.layer1.0.conv1.weight' in state else vit_shape(state)
    except KeyError as error:
        raise UserError(f'{source} is no CLIP that Pedestal knows: it lacks {error.args[0]}') from None
    except (IndexError, ValueError):
        raise UserError(f'{source} is no CLIP that Pedestal knows: its tensors have other dimensions') from None
    return ClipShape(**text, **vision)


def vit_shape(state):
    width, _, _, patch = state['visual.conv1.weight'].shape
    side = square_side(state['visual.positional_embedding'])
    return dict(image_resolution=side and side * patch,
                vision_layers=count_blocks(state, 'visual.transformer.resblocks.'),
                vision_width=width, vision_patch_size=patch, vision_heads=WIDE_HEADS.get(width))


def resnet_shape(state):
    side = square_side(state['visual.attnpool.positional_embedding'])
    stages = tuple(count_blocks(state, f'visual.layer{i}.') for i in range(1, 5))
    return dict(image_resolution=side and side * 32, vision_layers=stages,
                vision_width=state['visual.layer1.0.conv1.weight'].shape[0], vision_patch_size=None)


def count_blocks(state, prefix):
    """Count the different numbers after ``prefix`` in the names."""
    numbers = {name[len(prefix):].split('.')[0] for name in state if name.startswith(prefix)}
    if not numbers:
        raise KeyError(prefix + '*')
    return len(numbers)


def square_side(table):
    """Return the side of the square grid of a position table [1 + N, D]; None if N is no square number."""
    rows, _ = table.shape
    places = rows - 1
    side = round(places ** 0.5)
    return side if side * side == places else None


def fit_positions(table, new_grid, old_grid=None):
    """Resize a position table bilinearly (corners not aligned); the class position stays.

    Args:
        table: [1 + rows*cols, D].
        new_grid: (rows, cols).
        old_grid: (rows, cols) of the table; None is a square.

    Raises:
        UserError: the table is not square and ``old_grid`` is None.
    """
    if old_grid is None:
        side = square_side(table)
        if side is None:
            raise UserError(f'the position table has {table.shape[0] - 1} places, which make no square grid: it '
                            'belongs to a model trained at another --img_size or --stride_size')
        old_grid = side, side
    if tuple(old_grid) == tuple(new_grid):
        return table
    places = table[1:].T.unflatten(1, tuple(old_grid)).unsqueeze(0)                         # [1, D, rows, cols]
    places = F.interpolate(places, size=tuple(new_grid), mode='bilinear', align_corners=False)
    return torch.cat([table[:1], places[0].flatten(1).T])


def fit_text_positions(table, length):
    """Resize text positions [L, D] linearly to ``length``; the first and the last one stay (TBPS-CLIP).

    Example:
        >>> fit_text_positions(torch.tensor([[0.], [2.], [6.]]), 5).flatten()
        tensor([0., 1., 2., 4., 6.])
    """
    return F.interpolate(table.T[None], size=length, mode='linear', align_corners=True)[0].T.contiguous()


def stretch_text_positions(table, length):
    """Stretch text positions [L, D] as Long-CLIP does (Zhang et al., ECCV 2024), and return the first ``length``.

    The first ``KEPT_POSITIONS`` places stay. Each later one becomes four, interpolated linearly to the next one; the
    last ones continue the last step. 77 places become 248.

    Raises:
        UserError: the stretched table is shorter than ``length``.

    Example:
        >>> stretch_text_positions(torch.arange(22.)[:, None], 27).flatten()[18:]
        tensor([18.0000, 19.0000, 20.0000, 20.2500, 20.5000, 20.7500, 21.0000, 21.2500,
                21.5000])
    """
    kept, rest = table[:KEPT_POSITIONS], table[KEPT_POSITIONS:]
    if len(rest) < 2 or length > len(kept) + 4 * len(rest):
        raise UserError(f'--text_positions stretched: {len(table)} positions become '
                        f'{len(kept) + 4 * len(rest) if len(rest) > 1 else "no more"}, and --text_length is {length}; '
                        'give a smaller --text_length')
    steps = torch.cat([rest[1:] - rest[:-1], rest[-1:] - rest[-2:-1]])                # [R, D]
    quarters = torch.arange(4, dtype=table.dtype)[:, None] / 4
    stretched = (rest[:, None] + quarters * steps[:, None]).flatten(0, 1)             # [R, 4, D] -> [4 R, D]
    return torch.cat([kept, stretched])[:length]


def image_table(clip):
    return 'visual.positional_embedding' if clip.has_image_tokens else 'visual.attnpool.positional_embedding'


def fit_tables(state, clip, fitted, path, text_positions='first'):
    """Resize both position tables of ``state`` to the grid and text length of ``clip``, in place."""
    name = image_table(clip)
    places = clip.grid[0] * clip.grid[1]
    if fitted and len(state[name]) != 1 + places:
        raise UserError(f'{path} is of a model trained with {len(state[name]) - 1} image positions, and --img_size and '
                        f'--stride_size give {clip.grid[0]}x{clip.grid[1]} = {places}: give those it was trained with')
    # A CLIP that was pretrained on pedestrians has their grid, which is not square.
    has_this_grid = fitted or len(state[name]) == 1 + places and square_side(state[name]) is None
    state[name] = fit_positions(state[name], clip.grid, old_grid=clip.grid if has_this_grid else None)
    length = len(state['positional_embedding'])
    fit = {'interpolated': fit_text_positions, 'stretched': stretch_text_positions}.get(text_positions)
    if fit and clip.text_length != length:
        state['positional_embedding'] = fit(state['positional_embedding'], clip.text_length)
        return
    if clip.text_length > length:
        raise UserError(f'--text_length {clip.text_length} is more than the {length} positions that {path} has')
    state['positional_embedding'] = state['positional_embedding'][:clip.text_length].clone()


def check_entries(state, clip, path):
    """Raise UserError unless ``state`` has exactly the parameters of ``clip``."""
    expected = clip.state_dict()
    for name, value in expected.items():
        if name.endswith('num_batches_tracked'):    # older files have no such counters
            state.setdefault(name, torch.zeros_like(value, device='cpu'))
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    other = find_mismatches(expected, state)
    problems = [f'{what}: {abbreviate(names)}' for what, names in
             (('missing', missing), ('unexpected', unexpected), ('of another size or type', other)) if names]
    if problems:
        raise UserError(f'{path} does not hold the parameters of a CLIP that Pedestal knows ({"; ".join(problems)})')
