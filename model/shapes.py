"""Sizes of encoders, by name in ``configs/<family>`` or read off a state dict."""
import os
from dataclasses import MISSING, fields, replace

from utils.errors import UserError, unknown_name_error
from utils.safe_yaml import read_yaml

CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'configs')
BERT_LAYER = 'text_encoder.bert.encoder.layer.'     # prefix of the parameters of BERT's layers


def read_shape(name, shape_class, family, title):
    """Read the shape in ``configs/<family>/<name>.yaml``.

    Args:
        name: the name of the shape.
        shape_class: the dataclass of the family's shapes.
        family: the folder.
        title: the family's name for error messages.

    Raises:
        UserError: there is no such shape, or its file lacks a size or has an unknown one.
    """
    folder = os.path.join(CONFIGS, family)
    known = [os.path.splitext(file)[0] for file in os.listdir(folder) if file.endswith('.yaml')]
    if name not in known:
        raise unknown_name_error(f'{title} shape', name, known)
    path = os.path.join(folder, f'{name}.yaml')
    entries = read_yaml(path)
    names = {field.name for field in fields(shape_class)}
    lacking = [field.name for field in fields(shape_class) if field.default is MISSING and field.name not in entries]
    if lacking or set(entries) - names:
        raise UserError(f'{path} must hold exactly {", ".join(sorted(names))}')
    return shape_class(**entries)


def with_positions(shape, text_length):
    """Return the shape with positions for captions of ``text_length`` tokens."""
    return replace(shape, positions=max(shape.positions, text_length))


def count_layers(state, prefix):
    """Count the layers in a state dict: the different numbers after ``prefix`` in its names.

    Raises:
        KeyError: there are none.
    """
    numbers = {name[len(prefix):].split('.')[0] for name in state if name.startswith(prefix)}
    if not numbers:
        raise KeyError(prefix + '*')
    return len(numbers)


def count_text_only_layers(state):
    """Count the layers of BERT without cross-attention in a state dict."""
    return sum(f'{BERT_LAYER}{number}.crossattention.self.key.weight' not in state
               for number in range(count_layers(state, BERT_LAYER)))


def bert_sizes(state):
    """Return the sizes of the BERT in a state dict, and ``embed_dim``. Its heads are 64 wide, as in every BERT.

    Raises:
        KeyError, IndexError, ValueError: the state dict has no such BERT.
    """
    words = state['text_encoder.bert.embeddings.word_embeddings.weight']
    return dict(vocab_size=len(words), text_width=words.shape[1], text_layers=count_layers(state, BERT_LAYER),
                text_heads=words.shape[1] // 64, mlp_width=len(state[f'{BERT_LAYER}0.intermediate.dense.bias']),
                positions=len(state['text_encoder.bert.embeddings.position_embeddings.weight']),
                embed_dim=len(state['vision_proj.bias']))
