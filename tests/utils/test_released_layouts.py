"""Checkpoints of all methods in the layouts of their reference implementations.

Pedestal loads them, and its own checkpoints hold all entries that the reference implementations read.
"""
import os
import re
from dataclasses import dataclass, field
from collections.abc import Callable

import numpy as np
import pytest
import torch
from easydict import EasyDict

from model import build_model
from processor.runs import load_trained
from tests.model import test_golden_aptm, test_golden_mars
from tests.support import golden_json, golden_options, golden_weight, options, small_archive
from utils.checkpoint import load_weights, read_checkpoint, reference_state_dict, write_checkpoint

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAIRS = 40      # that FMFA's classifier counts
SMALL = dict(img_size=(64, 32), text_length=77, cmt_depth=1)
# Entries that the reference implementations write next to the weights.
TRAINING = {'optimizer': {'state': {}, 'param_groups': [{'lr': np.float64(1e-5), 'params': [0]}]}}
IRRAS = {**TRAINING, 'epoch': 7, 'scheduler': {'last_epoch': 7, 'milestones': (20, 50)}}


@dataclass
class Layout:
    """A checkpoint of a reference implementation, and the options of Pedestal's run of the method.

    ``keys``: {name: shape} of the file. ``ours``: the function from a name in the file to Pedestal's name, None for an
    unused entry. ``written``: {name: shape} that Pedestal's checkpoint must hold for the reference implementation, if
    it differs from ``keys``.
    """
    keys: Callable
    args: Callable
    beside: dict = field(default_factory=lambda: IRRAS)
    ours: Callable = staticmethod(lambda name: None if name.startswith('base_model_m.') else name)
    written: Callable = None


def golden_keys(name):
    return {key: tuple(shape) for key, (shape, _) in golden_json(name)['official_keys'].items()}


def golden_layout(name, loss_names=None, beside=IRRAS):
    losses = {'loss_names': loss_names} if loss_names else {}
    return Layout(lambda: golden_keys(name), lambda folder: golden_options(name, folder, **losses), beside)


def small_options(folder, **changes):
    return options(pretrain_choice=small_archive(folder / 'clip.pt'), vocab_size=49408, amp='off',
                   **{**SMALL, **changes})


def small_keys():
    """Return {name: shape} of a small CLIP, by OpenAI's names."""
    width, side, vocabulary = 64, 4 * 2, 49408
    block = {'attn.in_proj_weight': (3 * width, width), 'attn.in_proj_bias': (3 * width,),
             'attn.out_proj.weight': (width, width), 'attn.out_proj.bias': (width,), 'ln_1.weight': (width,),
             'ln_1.bias': (width,), 'mlp.c_fc.weight': (4 * width, width), 'mlp.c_fc.bias': (4 * width,),
             'mlp.c_proj.weight': (width, 4 * width), 'mlp.c_proj.bias': (width,),
             'ln_2.weight': (width,), 'ln_2.bias': (width,)}
    norms = [f'{name}.{kind}' for name in ('visual.ln_pre', 'visual.ln_post', 'ln_final')
             for kind in ('weight', 'bias')]
    return {'positional_embedding': (77, width), 'text_projection': (width, width), 'visual.class_embedding': (width,),
            'visual.positional_embedding': (1 + side, width), 'visual.proj': (width, width),
            'visual.conv1.weight': (width, 3, 16, 16), 'token_embedding.weight': (vocabulary, width),
            **dict.fromkeys(norms, (width,)),
            **{f'{side}transformer.resblocks.0.{name}': shape
               for side in ('', 'visual.') for name, shape in block.items()}}


def fmfa_keys(classes):
    """Return IRRA's names; the classifier of the published file counts pairs."""
    return {**{f'base_model.{name}': shape for name, shape in small_keys().items()}, 'classifier.weight': (classes, 64),
            'classifier.bias': (classes,)}


def tbps_keys():
    """Return the names that the reference eval.py reads: the text encoder has its own prefix."""
    encoders = {name if name.startswith('visual.') else f'encode_text.{name}': shape
                for name, shape in small_keys().items()}
    return {**encoders, 'logit_scale': (), 'simclr_mlp.0.weight': (128, 64), 'simclr_mlp.0.bias': (128,),
            'simclr_mlp.2.weight': (64, 128), 'simclr_mlp.2.bias': (64,)}


def tbps_name(name):
    if name.startswith('encode_text.'):
        return 'base_model.' + name.removeprefix('encode_text.')
    return f'base_model.{name}' if name.startswith('visual.') else name


LAYOUTS = {
    'IRRA': golden_layout('irra_tiny'), 'AGM': golden_layout('agm_tiny'), 'A2TE': golden_layout('a2te_tiny512'),
    'SEN': golden_layout('sen_tiny'), 'PHP': golden_layout('php_tiny'),
    'RDE': golden_layout('rde_tiny', 'tal+tse', {**IRRAS, 'num_epoch': 60, 'iteration': 900}),
    'FMFA': Layout(lambda: {f'module.{name}': shape for name, shape in fmfa_keys(PAIRS).items()},
                   lambda folder: small_options(folder, loss_names='a-sdm+id+efa'),
                   ours=lambda name: name.removeprefix('module.'), written=lambda: fmfa_keys(6)),
    'TBPS-CLIP': Layout(tbps_keys, lambda folder: small_options(folder, loss_names='nitc+ritc+citc+ss', mvs_image=True),
                        {**TRAINING, 'config': EasyDict(model={'softlabel_ratio': 0.5})}, tbps_name),
    'APTM': Layout(lambda: golden_keys('aptm_tiny'), None, {'config': {'embed_dim': 40, 'optimizer': {'lr': 1e-4}}}),
    'MARS': Layout(lambda: golden_keys('mars_tiny'), None, TRAINING, written=lambda: {
        name: shape for name, shape in golden_keys('mars_tiny').items()
        if not name.split('.')[0].endswith(('_m', '_queue', '_ptr'))})}
# Models whose shape is in no file.
REFERENCE_MODELS = {
    'APTM': lambda: test_golden_aptm.reference_model(golden_json('aptm_tiny'), 'itc+itm+mlm+eda'),
    'MARS': lambda: test_golden_mars.reference_model(golden_json('mars_tiny'))}


def new_model(method, folder):
    """Build the model of a method, as training does."""
    if method in REFERENCE_MODELS:
        return REFERENCE_MODELS[method]()
    return build_model(LAYOUTS[method].args(folder), 6)


def values(method, keys):
    """Make weights that differ from each other, and whole numbers for integer buffers."""
    model = new_model(method, values.folder)
    if method in REFERENCE_MODELS:    # the state dict names some weights twice, and holds buffers
        assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == keys
        return model.state_dict()
    integers = {name for name, value in model.state_dict().items() if not value.is_floating_point()}
    named = LAYOUTS[method].ours
    return {name: torch.full(shape, 3) if named(name) in integers else golden_weight(name, tuple(shape))
            for name, shape in keys.items()}


@pytest.fixture(autouse=True)
def own_folder(tmp_path):
    values.folder = tmp_path


def opened(method, path, folder):
    """Load a checkpoint as test.py does."""
    if method in REFERENCE_MODELS:
        model = new_model(method, folder)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        load_weights(model, read_checkpoint(path)['model'], path)
        return model
    args = LAYOUTS[method].args(folder)
    return load_trained(options(**{**vars(args), 'training': False, 'checkpoint': path, 'device': 'cpu'}), 6)[0]


def as_the_released_code_loads(names, weights):
    """Match the entries as IRRA's loader does, by the ends of names: {name in the reference model: entry}."""
    return {name: max((entry for entry in weights if name.endswith(entry)), key=len, default=None) for name in names}


@pytest.mark.parametrize('method', LAYOUTS)
def test_a_released_checkpoint_opens(method, tmp_path):
    layout, path = LAYOUTS[method], str(tmp_path / 'released.pth')
    released = values(method, layout.keys())
    torch.save({'model': released, **layout.beside}, path)
    own = opened(method, path, tmp_path).state_dict()
    read = {layout.ours(name): value for name, value in released.items() if layout.ours(name)}
    assert own.keys() == read.keys()
    for name, value in own.items():
        assert torch.equal(value, read[name]), name


@pytest.mark.parametrize('method', LAYOUTS)
def test_ours_in_the_released_layout_and_back(method, tmp_path):
    layout, path = LAYOUTS[method], str(tmp_path / 'ours.pth')
    model = new_model(method, tmp_path)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(golden_weight(f'ours {name}', tuple(value.shape)))
    write_checkpoint({'model': reference_state_dict(model), 'epoch': 3}, path)
    written = torch.load(path, weights_only=True)['model']
    expected = (layout.written or layout.keys)()
    assert {name: tuple(value.shape) for name, value in written.items()} == expected
    assert as_the_released_code_loads(expected, written) == {name: name for name in expected}
    for name, value in written.items():
        assert torch.equal(value, model.state_dict()[layout.ours(name)
                                                     or name.replace('base_model_m.', 'base_model.')]), name
    again = opened(method, path, tmp_path).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items()
               if name not in model.training_only)


@pytest.mark.parametrize('name', ['irra', 'a2te', 'sen', 'php'])     # RDE's is in test_golden_rde.py
def test_ours_at_the_published_size_holds_the_official_names_and_shapes(name):
    official = golden_json(f'official_{name}_vitb16')
    known = vars(options())
    settings = {key: value for key, value in official['settings'].items() if key in known}
    with torch.device('meta'):
        model = build_model(options(**{**settings, 'loss_names': official['loss_names'], 'training': False}),
                            official['num_classes'])
    written = {key: list(value.shape) for key, value in reference_state_dict(model).items()}
    assert written == {key: shape for key, (shape, _) in official['state_dict'].items()}


def test_every_method_of_the_table_is_tested_here():
    with open(os.path.join(ROOT, 'docs', 'checkpoints.md'), encoding='utf-8') as file:
        table = file.read().split('## Published checkpoints, method by method')[1].split('\n## ')[0]
    rows = re.findall(r'^\| ([A-Z][^|]*) \|', table, re.MULTILINE)
    assert {method for row in rows for method in row.split(', ')} == set(LAYOUTS)
