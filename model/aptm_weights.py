"""Pretrained weights of APTM's encoders: Swin-B (ImageNet-22k) and BERT-base, resized and renamed."""
import glob
import os

import torch

from model.clip_weights import load_safetensors
from utils.weight_files import read_torch_file
from utils.errors import UserError, abbreviate
from utils.iotools import read_json
from utils.weight_names import to_own_names

SWIN_FILE = 'swin_base_patch4_window7_224_22k.pth'
SWIN_URL = f'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/{SWIN_FILE}'
BERT_NAME = 'bert-base-uncased'
BERT_FILES = ('model.safetensors', 'pytorch_model.bin')
RATIOS, CLOSE = (1.01, 1.5), 1e-6       # range and precision of the search for the ratio of a progression


# -- where the files are -----------------------------------------------------------------------------------------------

def swin_file():
    """Return the path of Swin-B's ImageNet-22k weights in torch hub's folder."""
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', SWIN_FILE)
    if not os.path.isfile(path):
        raise UserError(f'there are no weights of Swin-B at {path}: put {SWIN_URL} there, or give --pretrain_choice a '
                        "checkpoint of APTM's, both files as <Swin file>+<BERT folder>, or scratch:aptm-base for "
                        'random weights')
    return path


def bert_folder():
    """Return the folder of ``bert-base-uncased`` with its vocabulary in Hugging Face's cache."""
    home = os.environ.get('HF_HUB_CACHE') or os.path.join(
        os.environ.get('HF_HOME') or os.path.join(os.path.expanduser('~'), '.cache', 'huggingface'), 'hub')
    for name in (BERT_NAME, f'google-bert--{BERT_NAME}'):
        for folder in sorted(glob.glob(os.path.join(glob.escape(home), f'models--{name}', 'snapshots', '*'))):
            if os.path.isfile(os.path.join(folder, 'vocab.txt')):
                return folder
    raise UserError(f"there is no {BERT_NAME} with its vocab.txt in Hugging Face's cache {home}: download it with "
                    f'huggingface-cli download {BERT_NAME}, or give a vocabulary with --vocab_file')


def bert_file(path):
    """Return the file with the weights of a BERT: ``path`` itself, or the file in that folder."""
    if os.path.isfile(path):
        return path
    files = [os.path.join(path, name) for name in BERT_FILES if os.path.isfile(os.path.join(path, name))]
    if not files:
        raise UserError(f'{path} holds no weights of a BERT ({" or ".join(BERT_FILES)})')
    return files[0]


def refuse_other_activation(path):
    """Raise UserError if the config.json next to BERT's weights names another activation than BERT's own."""
    file = os.path.join(os.path.dirname(path), 'config.json')
    activation = read_json(file).get('hidden_act', 'gelu') if os.path.isfile(file) else 'gelu'
    if activation != 'gelu':
        raise UserError(f"{file}: hidden_act is {activation!r}, and this text encoder has 'gelu': choose another BERT")


def read_weights(path):
    """Read the tensors of a .safetensors or PyTorch file, also under the key ``model`` or ``state_dict``."""
    if path.endswith('.safetensors'):
        return load_safetensors(path)
    entries = read_torch_file(path)
    for key in ('state_dict', 'model'):
        if isinstance(entries, dict) and isinstance(entries.get(key), dict):
            entries = entries[key]
    entries = entries if isinstance(entries, dict) else {}
    tensors = {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f'{path} holds no weights')
    return to_own_names(tensors, path)


# -- names -------------------------------------------------------------------------------------------------------------

def from_swin(state):
    """Rename Swin's released weights to APTM's names, without the classifier and what follows from the shape."""
    return {f'vision_encoder.{name}': value for name, value in state.items()
            if not name.startswith('head.') and not name.endswith(('relative_position_index', 'attn_mask'))}


def from_bert(state):
    """Rename Hugging Face's weights of a BERT to APTM's names, without pooler and next-sentence prediction.

    Older names of LayerNorm's parameters (gamma, beta) are known.
    """
    renamed = {}
    for name, value in state.items():
        if name.startswith(('bert.pooler.', 'cls.seq_relationship.', 'pooler.')) or name.endswith('position_ids'):
            continue
        for old, new in (('.gamma', '.weight'), ('.beta', '.bias')):
            name = name.removesuffix(old) + new if name.endswith(old) else name
        name = name if name.startswith(('bert.', 'cls.')) else f'bert.{name}'
        renamed[f'text_encoder.{name}'] = value
    return renamed


def follows_from_shape(name):
    """Whether an entry of a state dict is no weight, because its numbers follow from the model's shape."""
    return name.endswith(('relative_position_index', 'attn_mask', 'position_ids'))


def is_tied(name):
    """Whether an entry of a state dict is the second name of another one."""
    return name.startswith('text_encoder.cls.predictions.decoder.')


# -- fitting -----------------------------------------------------------------------------------------------------------

def progression(count, ratio):
    """Return 1, 1 + q, 1 + q + q^2, ...: ``count`` coordinates on one side of the middle."""
    places, step = [], 1.0
    for power in range(count):
        places.append(step)
        step += ratio ** (power + 1)
    return places


def ratio_to_reach(count, reach):
    """Return the ratio q in [1.01, 1.5] with 1 + q + ... + q^(count - 1) = ``reach``."""
    low, high = RATIOS
    while high - low > CLOSE:
        middle = (low + high) / 2
        if sum(middle ** power for power in range(count)) > reach:
            high = middle
        else:
            low = middle
    return low


def fit_position_table(table, side):
    """Resize a table of relative positions: [s*s, heads] -> [side*side, heads].

    As in BEiT and APTM, the distances between known positions grow by a constant ratio from the middle. A cubic spline
    through them is evaluated at integers.
    """
    known = round(len(table) ** 0.5)
    if known == side:
        return table
    try:
        import numpy as np
        from scipy.interpolate import RectBivariateSpline
    except ImportError:
        raise UserError("fitting Swin's weights to another resolution needs SciPy: pip install scipy") from None
    count = known // 2
    right = progression(count, ratio_to_reach(count, side // 2))
    places = [-place for place in reversed(right)] + [0.0] + right                  # of the known positions
    new = np.arange(side) - side // 2
    grids = [column.double().view(known, known).numpy() for column in table.float().t()]
    columns = [RectBivariateSpline(places, places, grid)(new, new).reshape(-1) for grid in grids]
    return torch.from_numpy(np.stack(columns, axis=1)).to(table.dtype)


def fit_tables(state, expected):
    """Resize the position tables in ``state`` to those of the state dict ``expected``, in place; return how many."""
    fitted = 0
    for name, value in expected.items():
        if name.endswith('relative_position_bias_table') and name in state and state[name].shape != value.shape:
            if state[name].dim() == 2 and state[name].shape[1] == value.shape[1]:
                state[name] = fit_position_table(state[name], round(len(value) ** 0.5))
                fitted += 1
    return fitted


def load_encoders(module, state, source, may_lack=lambda name: False, family='APTM'):
    """Load ``state`` into the encoders of ``module``, strictly except for names that ``may_lack`` accepts.

    Args:
        module: the encoders.
        state: the state dict.
        source: the file, for error messages.
        may_lack: a function from a name to whether ``state`` may lack it.
        family: the encoders' family, for error messages.

    Raises:
        UserError: entries are missing, unexpected or of another size.
    """
    expected = module.state_dict()
    fit_tables(state, expected)
    missing = [name for name in expected
               if name not in state and not (follows_from_shape(name) or is_tied(name) or may_lack(name))]
    unexpected = [name for name in state if name not in expected]
    other = [f'{name} {list(state[name].shape)} for {list(expected[name].shape)}' for name in expected
             if name in state and state[name].shape != expected[name].shape and not follows_from_shape(name)]
    problems = [f'{what}: {abbreviate(names)}' for what, names in
             (('missing', missing), ('unexpected', unexpected), ('of another size', other)) if names]
    if problems:
        raise UserError(f"{source} does not hold the parameters of {family}'s encoders ({'; '.join(problems)})")
    module.load_state_dict({name: value for name, value in state.items() if not follows_from_shape(name)}, strict=False)
