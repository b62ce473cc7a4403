"""Where APTM's encoders start from: Swin-B's ImageNet-22k weights and BERT-base's, fitted to another resolution and to other names."""
import glob
import os

import torch

from model.clip_weights import load_safetensors
from utils.checkpoint import read_torch_file, some
from utils.errors import UserError
from utils.iotools import read_json
from utils.weight_names import to_own_names

SWIN_FILE = 'swin_base_patch4_window7_224_22k.pth'
SWIN_URL = f'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/{SWIN_FILE}'
BERT_NAME = 'bert-base-uncased'
BERT_FILES = ('model.safetensors', 'pytorch_model.bin')
RATIOS, CLOSE = (1.01, 1.5), 1e-6       # where the ratio of a progression is searched, and how closely


# -- where the files are --------------------------------------------------------------------------------------------------

def swin_file():
    """The path of Swin-B's ImageNet-22k weights in torch hub's folder."""
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', SWIN_FILE)
    if not os.path.isfile(path):
        raise UserError(f"there are no weights of Swin-B at {path}: put {SWIN_URL} there, or give --pretrain_choice a "
                        "checkpoint of APTM's, both files as <Swin file>+<BERT folder>, or scratch:aptm-base for random weights")
    return path


def bert_folder():
    """The folder of ``bert-base-uncased`` in Hugging Face's cache, with its vocabulary."""
    home = os.environ.get('HF_HUB_CACHE') or os.path.join(
        os.environ.get('HF_HOME') or os.path.join(os.path.expanduser('~'), '.cache', 'huggingface'), 'hub')
    for name in (BERT_NAME, f'google-bert--{BERT_NAME}'):
        for folder in sorted(glob.glob(os.path.join(glob.escape(home), f'models--{name}', 'snapshots', '*'))):
            if os.path.isfile(os.path.join(folder, 'vocab.txt')):
                return folder
    raise UserError(f"there is no {BERT_NAME} with its vocab.txt in Hugging Face's cache {home}: huggingface-cli download "
                    f'{BERT_NAME} brings it, or name a vocabulary by --vocab_file')


def bert_file(path):
    """The weights of a BERT: the file itself, or the one in a folder."""
    if os.path.isfile(path):
        return path
    found = [os.path.join(path, name) for name in BERT_FILES if os.path.isfile(os.path.join(path, name))]
    if not found:
        raise UserError(f'{path} holds no weights of a BERT ({" or ".join(BERT_FILES)})')
    return found[0]


def refuse_other_activation(path):
    """Raise UserError if the config.json next to BERT's weights names another activation than BERT's own."""
    file = os.path.join(os.path.dirname(path), 'config.json')
    found = read_json(file).get('hidden_act', 'gelu') if os.path.isfile(file) else 'gelu'
    if found != 'gelu':
        raise UserError(f"{file}: hidden_act is {found!r}, and APTM's text encoder has 'gelu': choose another BERT")


def read_weights(path):
    """The tensors of a file: of safetensors, or saved by PyTorch, bare or under ``model`` or ``state_dict``."""
    if path.endswith('.safetensors'):
        return load_safetensors(path)
    entries = read_torch_file(path)
    for key in ('state_dict', 'model'):
        if isinstance(entries, dict) and isinstance(entries.get(key), dict):
            entries = entries[key]
    tensors = {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)} if isinstance(entries, dict) else {}
    if not tensors:
        raise UserError(f'{path} holds no weights')
    return to_own_names(tensors, path)


# -- names ------------------------------------------------------------------------------------------------------------------

def from_swin(state):
    """Swin's released weights under APTM's names; its classifier and what follows from the shape are left out."""
    return {f'vision_encoder.{name}': value for name, value in state.items()
            if not name.startswith('head.') and not name.endswith(('relative_position_index', 'attn_mask'))}


def from_bert(state):
    """Hugging Face's weights of a BERT under APTM's names, older spellings (gamma, beta) as well; the pooler and the prediction of the next
    sentence are left out."""
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
    """Whether an entry of a state dict holds no weight: its numbers follow from the model's shape."""
    return name.endswith(('relative_position_index', 'attn_mask', 'position_ids'))


def is_tied(name):
    """Whether an entry of a state dict is the second name of another one."""
    return name.startswith('text_encoder.cls.predictions.decoder.')


# -- fitting ------------------------------------------------------------------------------------------------------------------

def progression(count, ratio):
    """1, 1 + q, 1 + q + q^2, ...: ``count`` places on one side of the middle."""
    places, step = [], 1.0
    for power in range(count):
        places.append(step)
        step += ratio ** (power + 1)
    return places


def ratio_to_reach(count, reach):
    """The ratio q with 1 + q + ... + q^(count - 1) = ``reach``, within [1.01, 1.5]."""
    low, high = RATIOS
    while high - low > CLOSE:
        middle = (low + high) / 2
        if sum(middle ** power for power in range(count)) > reach:
            high = middle
        else:
            low = middle
    return low


def fit_position_table(table, side):
    """A table of relative positions [s*s, heads] for another ``side``: [side*side, heads].

    As in BEiT and APTM: the known positions are laid out at distances that grow by a constant ratio from the middle, and a cubic spline
    through them is read at whole numbers.
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
    wanted = np.arange(side) - side // 2
    columns = [RectBivariateSpline(places, places, column.double().view(known, known).numpy())(wanted, wanted).reshape(-1)
               for column in table.float().t()]
    return torch.from_numpy(np.stack(columns, axis=1)).to(table.dtype)


def fit_tables(state, expected):
    """Fit the position tables in ``state`` to the sides of the model's, whose state dict is ``expected``, in place. Returns how many."""
    fitted = 0
    for name, value in expected.items():
        if name.endswith('relative_position_bias_table') and name in state and state[name].shape != value.shape:
            if state[name].dim() == 2 and state[name].shape[1] == value.shape[1]:
                state[name] = fit_position_table(state[name], round(len(value) ** 0.5))
                fitted += 1
    return fitted


def load_encoders(module, state, source, may_lack=lambda name: False):
    """Load ``state`` into the encoders that ``module`` holds, strictly but for what ``may_lack`` names; UserError says what doesn't fit."""
    expected = module.state_dict()
    fit_tables(state, expected)
    missing = [name for name in expected if name not in state and not (follows_from_shape(name) or is_tied(name) or may_lack(name))]
    unexpected = [name for name in state if name not in expected]
    other = [f'{name} {list(state[name].shape)} for {list(expected[name].shape)}' for name in expected
             if name in state and state[name].shape != expected[name].shape and not follows_from_shape(name)]
    found = [f'{what}: {some(names)}' for what, names in
             (('missing', missing), ('unexpected', unexpected), ('of another size', other)) if names]
    if found:
        raise UserError(f"{source} does not hold the parameters of APTM's encoders ({'; '.join(found)})")
    module.load_state_dict({name: value for name, value in state.items() if not follows_from_shape(name)}, strict=False)
