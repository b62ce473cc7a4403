"""Helpers of several tests: options of small models, and reference vectors from the reference implementations."""
import argparse
import contextlib
import fnmatch
import json
import os
import re
import zlib

import numpy as np
import pytest
import torch

from utils import simple_tokenizer
from utils.options import build_parser, complete
from utils.run_config import build_run_config

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HANG_TIMEOUT = 600      # seconds after which a program counts as hung; long, because other programs may use all cores
OWN = os.path.join(os.path.dirname(__file__), 'golden')
# PEDESTAL_GOLDEN=<folder> pytest tests -k golden: tests against the vectors of another folder
GOLDEN = os.environ.get('PEDESTAL_GOLDEN') or OWN


def options(**changes):
    """Return the default options with some changed, as get_args returns them."""
    return complete(argparse.Namespace(**changes))


def evaluation_options(trained_on, **changes):
    """Return :func:`options` of a run on the dataset ``trained_on``, as parse_test_options returns them."""
    args = options(**{**changes, 'training': False})
    args.config = build_run_config(args, trained_on=trained_on)
    return args


def golden_names(pattern, excluded=()):
    """List the reference files whose names, without endings, match ``pattern`` and no pattern in ``excluded``."""
    names = {os.path.splitext(file)[0] for file in os.listdir(GOLDEN) if file.endswith(('.npz', '.json'))}
    return sorted(name for name in fnmatch.filter(names, pattern)
                  if not any(fnmatch.fnmatch(name, other) for other in excluded))


def golden_files(pattern, excluded=()):
    """Return :func:`golden_names` as parameters of a test, with ids that ``-k golden`` selects."""
    return [pytest.param(name, id=f'golden-{name}') for name in golden_names(pattern, excluded)]


def golden_cases(pattern, key):
    """Return parameters (name, case) of a test: each ``<case>`` in the files with an entry ``<case>/<key>``."""
    return [pytest.param(name, entry[:-len(key) - 1], id=f'golden-{name}-{entry[:-len(key) - 1]}')
            for name in golden_names(pattern) for entry in golden(name)[0] if entry.endswith(f'/{key}')]


def golden_path(name):
    """Return the path of a reference file, in ``PEDESTAL_GOLDEN`` or else in tests/golden."""
    path = os.path.join(GOLDEN, name)
    return path if os.path.exists(path) else os.path.join(OWN, name)


def golden(name):
    """Read ``(vectors, description)`` of a reference, with tensors instead of arrays."""
    with np.load(golden_path(f'{name}.npz')) as vectors:
        vectors = {key: torch.from_numpy(value) for key, value in vectors.items()}
    return vectors, golden_json(name)


def golden_json(name):
    path = golden_path(f'{name}.json')
    if not os.path.exists(path):
        return None
    with open(path, encoding='utf-8') as file:
        return json.load(file)


LEARNED_FACTORS = '.scale', '.scale_1', '.scale_2'      # UP-Person's parameters without dimensions
TUNING_PARTS = re.compile(r'adapter_ln_|\.scale_[12]$|\.ln_3\.|_param$|\.feed_forward\.|v2i_proj')     # not CLIP's


def golden_weight(name, shape):
    """Return the weight that the reference vectors were computed with, from a parameter's name and shape.

    See tests/golden/README.md.
    """
    noise = np.random.RandomState(zlib.crc32(name.encode()) & 0xffffffff).standard_normal(shape)
    if name.endswith('scale_to_grad'):
        value = 10 + noise
    elif name.endswith('bias'):
        value = 0.02 * noise
    elif name.endswith('weight') and len(shape) == 1 or name.endswith(LEARNED_FACTORS):
        value = 1 + 0.1 * noise
    elif name.endswith('.alpha'):
        value = np.full(shape, 0.3)
    else:
        value = 0.05 * noise
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def golden_archive(description, path):
    """Write the pretrained CLIP of a reference model, under CLIP's own names, and return ``path``."""
    config = description['config']
    bare = {name[len('base_model.'):]: tuple(shape) for name, (shape, _) in description['official_keys'].items()
            if name.startswith('base_model.') and not TUNING_PARTS.search(name)}
    side = config['pretrain_res'] // config['patch']
    bare['visual.positional_embedding'] = (side * side + 1, config['vision_width'])
    torch.save({name: golden_weight(name, shape) for name, shape in bare.items()}, path)
    return str(path)


def golden_options(name, tmp_path, **changes):
    """Return the options of a reference model."""
    description = golden_json(name)
    config = description['config']
    known = build_parser().defaults_in_code
    settings = {key: value for key, value in description['args'].items() if key in known}
    settings.update(loss_names=changes.get('loss_names') or description['loss_names'], amp='off',
                    text_length=config['text_length'], img_size=tuple(config['img_size']), stride_size=config['stride'],
                    pretrain_choice=golden_archive(description, tmp_path / 'clip.pt'))
    settings.update(changes)
    return options(**settings)


def golden_model(name, tmp_path, **changes):
    """Return ``(model in eval mode, vectors, description)`` of a reference.

    Position embeddings and buffers keep their values; all other weights are those of :func:`golden_weight`.
    """
    from model import build_model
    vectors, description = golden(name)
    model = build_model(golden_options(name, tmp_path, **changes), description['config']['num_classes'])
    unchanged = ('positional_embedding', 'decoder_pos_embed', 'running_mean', 'running_var', 'num_batches_tracked')
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if not key.endswith(unchanged):
                value.copy_(golden_weight(key, tuple(value.shape)))
    return model.eval(), vectors, description


def golden_batch(vectors):
    return {name[len('in/'):]: value for name, value in vectors.items() if name.startswith('in/')}


TOKENS_BESIDE_MERGES = 514  # the bytes, the bytes that end a word, mask, start and end, without the last merge
SMALL_VOCABULARY = 7514     # enough for captions of synthpedes to fit into 77 tokens


@contextlib.contextmanager
def small_vocabulary(size=SMALL_VOCABULARY):
    """Give CLIP's tokenizer only ``size`` tokens in the block: the bytes, its first merges, mask, start and end.

    In a small model, 9 of 10 weights are the embeddings of CLIP's 49,408 tokens. A training of a few steps spends most
    of its time on them.
    """
    merges = size - TOKENS_BESIDE_MERGES
    if merges == simple_tokenizer.MERGES:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simple_tokenizer, 'MERGES', merges)
        simple_tokenizer.default_tokenizer.cache_clear()
        yield
    simple_tokenizer.default_tokenizer.cache_clear()


def vocabulary_size():
    """Return the number of tokens of CLIP's tokenizer: 49,408, or fewer in :func:`small_vocabulary`."""
    return simple_tokenizer.MERGES + TOKENS_BESIDE_MERGES


def small_archive(path):
    """Write a random CLIP of minimal size with :func:`vocabulary_size` tokens, and return ``path``."""
    from model.clip_model import CLIP, ClipShape
    torch.manual_seed(0)
    shape = ClipShape(embed_dim=64, image_resolution=64, vision_layers=1, vision_width=64, vision_patch_size=16,
                      text_length=77, vocab_size=vocabulary_size(), text_width=64, text_layers=1)
    torch.save(CLIP(shape, (64, 64), 16, 77).state_dict(), path)
    return str(path)


def small_model(archive, loss_names, seed=0, **changes):
    """Build a model of six identities with the encoders of ``archive``, irra_tiny's from :func:`golden_archive`."""
    from model import build_model
    torch.manual_seed(seed)
    settings = dict(loss_names=loss_names, pretrain_choice=archive, img_size=(96, 32), text_length=20, vocab_size=512,
                    cmt_depth=1)
    return build_model(options(**{**settings, **changes}), 6)


def compute_gradients(model, batch, micro_batch=None):
    """Return the results of a training step that changes no parameter. The parameters have the step's gradients."""
    from processor.build import build_step
    return build_step(model, torch.optim.SGD(model.parameters(), lr=0.0), micro_batch)(batch)


def assert_falls(losses, factor, offset=0.0):
    """Assert that a loss falls below ``factor`` of its first value, plus ``offset``.

    Args:
        losses: the losses of as many steps as the loss may take. If they are a generator, the steps after the one
            that reaches the bound are not trained.
        factor, offset: the bound is ``factor * first loss + offset``.
    """
    history = []
    for loss in losses:
        history.append(loss.detach().item())
        if history[-1] < factor * history[0] + offset:
            return
    raise AssertionError(f'every tenth loss: {history[::10]}')


def small_batch(size=6, seed=0):
    """Build a batch for :func:`small_model` with the fields of every head."""
    generator = torch.Generator().manual_seed(seed)
    captions = torch.zeros(size, 20, dtype=torch.long)
    labels = torch.zeros(size, 20, dtype=torch.long)
    for row in captions:
        length = int(torch.randint(5, 17, (1,), generator=generator))
        row[0], row[length + 1] = 510, 511
        row[1:length + 1] = torch.randint(1, 509, (length,), generator=generator)
    attributes = torch.tensor([0, 0, 1, 1, 2, 2] + [0] * 14).repeat(size, 1)
    second_captions = torch.where((captions > 0) & (captions < 509), 509 - captions, captions)     # other words
    masked = captions.clone()
    for row, label in zip(masked, labels):
        label[2], row[2] = row[2].clone(), 509
    # Each image is a color with little noise, so that its restoration is learned in a few steps.
    images = torch.randn(size, 3, 1, 1, generator=generator) + 0.1 * torch.randn(size, 3, 96, 32, generator=generator)
    second = images + 0.1 * torch.randn(size, 3, 96, 32, generator=generator)
    return {'pids': torch.arange(size), 'image_ids': torch.arange(size), 'index': torch.arange(size), 'images': images,
            'second_images': second, 'simclr_images': torch.stack([second, images], dim=1),
            'caption_ids': captions, 'second_caption_ids': second_captions, 'mlm_ids': masked, 'mlm_labels': labels,
            'attributes_mask': attributes}
