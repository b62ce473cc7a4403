"""Every source and naming dialect of pretrained weights, how they are fitted, and what bad files get."""
import builtins
import hashlib
import os
import socket
import pickle
import warnings

import pytest
import torch
from torch import nn

from model import clip_weights
from model.clip_model import CLIP, ClipShape
from model.clip_weights import (OPENAI_SHA256, build_clip, empty_clip, fit_positions, read_state_dict, shape_named,
                                shape_of)
from utils.errors import UserError

SHAPE = ClipShape(embed_dim=32, image_resolution=64, vision_layers=2, vision_width=64, vision_patch_size=16,
                  text_length=20, vocab_size=100, text_width=128, text_layers=3)
RESNET = ClipShape(embed_dim=32, image_resolution=64, vision_layers=(1, 2, 1, 1), vision_width=4,
                   vision_patch_size=None, text_length=20, vocab_size=100, text_width=64, text_layers=1)
BIG = 64, 64     # the pretrained grid: 4x4, or 2x2 of the ResNet


@pytest.fixture(scope='module')
def weights():
    """A pretrained ViT under OpenAI's names."""
    torch.manual_seed(0)
    return dict(CLIP(SHAPE, BIG, 16, 20).state_dict())


@pytest.fixture
def saved(tmp_path):
    """A function that saves entries with torch.save and returns the path."""
    def save(entries, name='clip.pt'):
        torch.save(entries, tmp_path / name)
        return str(tmp_path / name)
    return save


def same(state, expected):
    return list(state) == list(expected) and all(torch.equal(state[name], expected[name]) for name in expected)


def refused(choice, **settings):
    """The sentence that a source is refused with."""
    with pytest.raises(UserError) as caught:
        build_clip(choice, BIG, 16, 20, **settings)
    message = str(caught.value)
    assert '\n' not in message
    return message


# ----------------------------------------------------------------------------------------------------------- dialects

def hugging_face(weights):
    """The names of transformers' CLIPModel."""
    block = {'ln_1': 'layer_norm1', 'ln_2': 'layer_norm2', 'mlp.c_fc': 'mlp.fc1', 'mlp.c_proj': 'mlp.fc2',
             'attn.out_proj': 'self_attn.out_proj'}
    whole = {'positional_embedding': 'text_model.embeddings.position_embedding.weight',
             'token_embedding.weight': 'text_model.embeddings.token_embedding.weight',
             'ln_final.weight': 'text_model.final_layer_norm.weight',
             'ln_final.bias': 'text_model.final_layer_norm.bias',
             'visual.class_embedding': 'vision_model.embeddings.class_embedding',
             'visual.positional_embedding': 'vision_model.embeddings.position_embedding.weight',
             'visual.conv1.weight': 'vision_model.embeddings.patch_embedding.weight',
             'visual.ln_pre.weight': 'vision_model.pre_layrnorm.weight',
             'visual.ln_pre.bias': 'vision_model.pre_layrnorm.bias',
             'visual.ln_post.weight': 'vision_model.post_layernorm.weight',
             'visual.ln_post.bias': 'vision_model.post_layernorm.bias'}
    named = {'logit_scale': torch.tensor(4.6), 'text_model.embeddings.position_ids': torch.arange(20)[None],
             'vision_model.embeddings.position_ids': torch.arange(17)[None]}
    for name, value in weights.items():
        if name in whole:
            named[whole[name]] = value
        elif name in ('text_projection', 'visual.proj'):
            named[('text' if name == 'text_projection' else 'visual') + '_projection.weight'] = value.T
        else:
            tower, rest = name.split('transformer.resblocks.')
            number, part = rest.split('.', 1)
            prefix = f'{"vision" if tower else "text"}_model.encoder.layers.{number}.'
            if 'in_proj' in part:
                for letter, third in zip('qkv', value.chunk(3)):
                    named[f'{prefix}self_attn.{letter}_proj.{part.split("_")[-1]}'] = third
            else:
                part, kind = part.rsplit('.', 1)
                named[f'{prefix}{block[part]}.{kind}'] = value
    return named


def open_clip(weights):
    """The names of open_clip's CustomTextCLIP; its CLIP has OpenAI's and ``logit_scale``."""
    return {'logit_scale': torch.tensor(4.6), 'logit_bias': torch.tensor(0.),
            **{name if name.startswith('visual.') else f'text.{name}': value for name, value in weights.items()}}


def openai_extras(weights):
    return {'input_resolution': torch.tensor(64), 'context_length': torch.tensor(20), 'vocab_size': torch.tensor(100),
            'logit_scale': torch.tensor(4.6), **weights}


def trained(weights):
    """A retrieval model's checkpoint."""
    return {**{f'base_model.{name}': value for name, value in weights.items()}, 'classifier.weight': torch.zeros(6, 32),
            'base_model_m.ln_final.weight': torch.zeros(128), 'logit_scale': torch.tensor(1.)}


def parallel(weights):
    return {f'module.{name}': value for name, value in weights.items()}


@pytest.mark.parametrize('dialect', [
    dict, openai_extras, open_clip, hugging_face, parallel, trained,
    lambda weights: parallel(trained(weights)), lambda weights: parallel(open_clip(weights))])
@pytest.mark.parametrize('wrapped', [lambda state: state, lambda state: {'state_dict': state, 'epoch': 3},
                                     lambda state: {'model': state, 'optimizer': {'lr': 0.1}}])
def test_naming_dialects(weights, saved, dialect, wrapped):
    path = saved(wrapped(dialect(weights)))
    state = read_state_dict(path)
    assert same({name: state[name] for name in weights}, weights) and len(state) == len(weights)
    assert same(build_clip(path, BIG, 16, 20).state_dict(), weights)
    assert shape_named(path) == SHAPE


@pytest.mark.parametrize('dialect', [dict, open_clip])
def test_resnet(saved, dialect):
    torch.manual_seed(0)
    weights = dict(CLIP(RESNET, BIG, 16, 20).state_dict())
    path = saved(dialect(weights))
    assert shape_named(path) == RESNET
    assert same(build_clip(path, BIG, 16, 20).state_dict(), weights)
    fitted = build_clip(path, (96, 32), 16, 20)
    table = weights['visual.attnpool.positional_embedding']
    assert torch.equal(fitted.visual.attnpool.positional_embedding, fit_positions(table, (3, 1)))
    counted = {name: value for name, value in weights.items() if not name.endswith('num_batches_tracked')}
    assert same(build_clip(saved(counted), BIG, 16, 20).state_dict(), weights)


def test_half_precision_weights_become_float32(weights, saved):
    state = build_clip(saved({name: value.half() for name, value in weights.items()}), BIG, 16, 20).state_dict()
    assert same(state, {name: value.half().float() for name, value in weights.items()})


def test_weights_that_were_saved_as_parameters_can_be_trained(weights, saved):
    clip = build_clip(saved({name: nn.Parameter(value.half()) for name, value in weights.items()}), (96, 32), 16, 20)
    clip.encode_image(torch.randn(1, 3, 96, 32))[0].sum().backward()
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in clip.parameters())
    assert clip.visual.positional_embedding.grad is not None


@pytest.mark.parametrize('dialect', [dict, hugging_face])
def test_safetensors(weights, tmp_path, dialect):
    save_file = pytest.importorskip('safetensors.torch').save_file
    path = str(tmp_path / 'clip.safetensors')
    save_file({name: value.contiguous() for name, value in dialect(weights).items()}, path)
    assert same(build_clip(path, BIG, 16, 20).state_dict(), weights)
    content = (tmp_path / 'clip.safetensors').read_bytes()
    (tmp_path / 'clip.safetensors').write_bytes(content[:len(content) // 2])
    assert refused(path) == f'{path} is truncated or no file of weights'
    (tmp_path / 'configs.yaml').write_text('training: true')
    assert 'is a config and no file of weights: give a checkpoint' in refused(str(tmp_path / 'configs.yaml'))


def test_safetensors_library_missing(tmp_path, monkeypatch):
    def without(name, *rest):
        if name.startswith('safetensors'):
            raise ImportError
        return imported(name, *rest)
    imported = builtins.__import__
    monkeypatch.setattr(builtins, '__import__', without)
    (tmp_path / 'clip.safetensors').write_bytes(b'x')
    assert 'pip install safetensors' in refused(str(tmp_path / 'clip.safetensors'))


# -------------------------------------------------------------------------------------------------------- TorchScript

class Archived(nn.Module):
    """What OpenAI's archives hold: the model's parameters, and three sizes as buffers."""

    def __init__(self, clip):
        super().__init__()
        for name, part in clip.named_children():
            setattr(self, name, part)
        self.positional_embedding, self.text_projection = clip.positional_embedding, clip.text_projection
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        for name in ('input_resolution', 'context_length', 'vocab_size'):
            self.register_buffer(name, torch.tensor(64))

    def forward(self, ids):
        return self.token_embedding(ids) + self.positional_embedding


@pytest.fixture(scope='module')
def archive(weights, tmp_path_factory):
    clip = empty_clip(SHAPE, BIG, 16, 20)
    clip.load_state_dict(weights)
    path = tmp_path_factory.mktemp('archive') / 'ViT-tiny.pt'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')     # newer PyTorch deprecates TorchScript
        torch.jit.save(torch.jit.trace(Archived(clip.half()), torch.zeros(1, 20, dtype=torch.long)), str(path))
    return path


def test_archive_is_refused_unless_trusted(weights, archive, monkeypatch):
    assert '--trust_archive' in refused(str(archive))
    expected = {name: value.half().float() for name, value in weights.items()}
    assert same(build_clip(str(archive), BIG, 16, 20, trust_archive=True).state_dict(), expected)
    assert shape_named(str(archive), trust_archive=True) == SHAPE
    with pytest.raises(UserError, match='--trust_archive'):
        shape_named(str(archive))
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(OPENAI_SHA256, 'ViT-B/16', checksum)
    assert same(build_clip(str(archive), BIG, 16, 20).state_dict(), expected)


def test_truncated_archive(archive, tmp_path):
    content = archive.read_bytes()
    for i, broken in enumerate([content[:len(content) // 2], content[:2000] + bytes(20000) + content[22000:]]):
        path = tmp_path / f'{i}.pt'
        path.write_bytes(broken)
        said = 'is damaged: its part ViT-tiny/data/0' if i else 'is truncated or no file of weights'
        assert refused(str(path), trust_archive=True).startswith(f'{path} {said}')


# ----------------------------------------------------------------------------------------------------- OpenAI's files

@pytest.fixture
def server(archive, tmp_path, monkeypatch):
    """A folder with one file, ViT-B/16, in place of OpenAI's server."""
    content = archive.read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(OPENAI_SHA256, 'ViT-B/16', checksum)
    monkeypatch.setattr(clip_weights, 'OPENAI_URL', (tmp_path / 'server').as_uri())
    file = tmp_path / 'server' / checksum / 'ViT-B-16.pt'
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def test_download_is_kept(server, tmp_path):
    cache = str(tmp_path / 'cache')
    assert build_clip('ViT-B/16', BIG, 16, 20, download_root=cache).embed_dim == 32
    assert os.listdir(cache) == ['ViT-B-16.pt']
    server.unlink()
    assert build_clip('ViT-B/16', BIG, 16, 20, download_root=cache).embed_dim == 32


def test_cached_file_with_a_wrong_checksum_is_downloaded_again(server, tmp_path, caplog):
    cached = tmp_path / 'cache' / 'ViT-B-16.pt'
    cached.parent.mkdir()
    cached.write_bytes(b'half of it')
    assert build_clip('ViT-B/16', BIG, 16, 20, download_root=str(cached.parent)).embed_dim == 32
    assert cached.read_bytes() == server.read_bytes()
    assert 'wrong checksum' in caplog.text


def test_download_with_a_wrong_checksum(server, tmp_path):
    server.write_bytes(b'something else')
    assert 'the downloaded file has a wrong checksum' in refused('ViT-B/16', download_root=str(tmp_path / 'cache'))
    assert os.listdir(tmp_path / 'cache') == []


def test_without_network_the_message_says_which_file_to_put_where(server, tmp_path):
    server.unlink()
    message = refused('ViT-B/16', download_root=str(tmp_path / 'cache'))
    for part in ('ViT-B-16.pt', str(tmp_path / 'cache'), server.as_uri(), OPENAI_SHA256['ViT-B/16'],
                 'scratch:ViT-B-16'):
        assert part in message
    assert os.listdir(tmp_path / 'cache') == []


def test_a_server_that_stays_silent_is_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(clip_weights, 'DOWNLOAD_TIMEOUT', 0.2)
    with socket.create_server(('127.0.0.1', 0)) as silent:
        monkeypatch.setattr(clip_weights, 'OPENAI_URL', f'http://127.0.0.1:{silent.getsockname()[1]}')
        assert 'timed out' in refused('ViT-B/16', download_root=str(tmp_path / 'cache'))
    assert os.listdir(tmp_path / 'cache') == [] and socket.getdefaulttimeout() is None


def test_cache_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / 'cache').write_bytes(b'')
    assert 'cannot download the weights of ViT-B/16' in refused('ViT-B/16', download_root=str(tmp_path / 'cache'))


# -------------------------------------------------------------------------------------------------------------- names

@pytest.mark.parametrize('choice, answer', [
    ('ViT-B/61', 'did you mean ViT-B/16?'), ('RN500', 'did you mean RN50?'),
    ('ViT-L/14@336', 'did you mean ViT-L/14@336px?'), ('scratch:tniy', 'did you mean tiny?'),
    ('scratch:', "unknown CLIP shape ''"), ('something', 'scratch:<shape>'),
    ('nowhere/clip.pt', 'there is no file nowhere/clip.pt')])
def test_unknown_names(choice, answer):
    assert answer in refused(choice)
    with pytest.raises(UserError):
        shape_named(choice)


def test_a_folder_is_no_file(tmp_path):
    assert 'is a folder' in refused(str(tmp_path))
    with pytest.raises(UserError, match='there is no file'):
        read_state_dict(str(tmp_path / 'clip.pt'))


def test_scratch_takes_any_size():
    clip = build_clip('scratch:tiny', (96, 48), 12, text_length=90)
    assert clip.grid == (7, 3) and clip.positional_embedding.shape[0] == 90
    assert clip.encode_text(torch.zeros(1, 90, dtype=torch.long))[0].shape == (1, 90, clip.embed_dim)


@pytest.mark.parametrize('name', [*OPENAI_SHA256, 'scratch:tiny', 'scratch:ViT-B/16', 'scratch:ViT-L-14-336px'])
def test_every_shape_file_makes_the_model_it_says(name):
    shape = shape_named(name)
    with torch.device('meta'):
        clip = CLIP(shape, (shape.image_resolution,) * 2, shape.vision_patch_size or 16)
    assert shape_of(clip.state_dict()) == shape


@pytest.mark.parametrize('content, answer', [
    ('embed_dim: [', 'is not YAML'), ('embed_dims: 4', 'did you mean embed_dim?'),
    ('embed_dim: 4', 'lacks image_resolution'), ('embed_dim: much', 'must be a whole number'),
    ('- 4', 'holds no shape'), ('', 'holds no shape')])
def test_broken_shape_file(tmp_path, monkeypatch, content, answer):
    monkeypatch.setattr(clip_weights, 'SHAPES_FOLDER', str(tmp_path))
    (tmp_path / 'mine.yaml').write_text(content)
    assert answer in refused('scratch:mine')


# ------------------------------------------------------------------------------------------------------------ fitting

def resized(table, old, new):
    """Bilinear resizing, corners not aligned, one place after another."""
    places = table[1:].reshape(*old, -1)
    out = [table[0]]
    for i in range(new[0]):
        for j in range(new[1]):
            y = min(max((i + 0.5) * old[0] / new[0] - 0.5, 0), old[0] - 1)
            x = min(max((j + 0.5) * old[1] / new[1] - 0.5, 0), old[1] - 1)
            top, left = int(y), int(x)
            bottom, right, dy, dx = min(top + 1, old[0] - 1), min(left + 1, old[1] - 1), y - top, x - left
            out.append((1 - dy) * ((1 - dx) * places[top, left] + dx * places[top, right])
                       + dy * ((1 - dx) * places[bottom, left] + dx * places[bottom, right]))
    return torch.stack(out)


@pytest.mark.parametrize('new', [(6, 2), (3, 3), (24, 8), (4, 5)])
def test_fit_positions(new):
    torch.manual_seed(0)
    table = torch.randn(17, 8)
    assert torch.allclose(fit_positions(table, new), resized(table, (4, 4), new), atol=1e-6)
    assert torch.allclose(fit_positions(table, new, old_grid=(8, 2)), resized(table, (8, 2), new), atol=1e-6)


def test_fit_positions_to_the_same_grid_changes_nothing():
    table = torch.randn(17, 8)
    assert torch.equal(fit_positions(table, (4, 4)), table)
    assert torch.equal(fit_positions(table, [8, 2], old_grid=(8, 2)), table)
    assert not torch.equal(fit_positions(table, (8, 2)), table)     # as many places, another grid
    with pytest.raises(UserError, match='12 places, which make no square grid'):
        fit_positions(torch.randn(13, 8), (6, 2))


def test_tables_are_fitted(weights, saved):
    clip = build_clip(saved(weights), (96, 40), 12, text_length=9)
    assert clip.grid == (7, 3)
    expected = resized(weights['visual.positional_embedding'], (4, 4), (7, 3))
    assert torch.allclose(clip.visual.positional_embedding, expected, atol=1e-6)
    assert torch.equal(clip.positional_embedding, weights['positional_embedding'][:9])
    with pytest.raises(UserError, match='--text_length 21 is more than the 20 positions'):
        build_clip(saved(weights), BIG, 16, text_length=21)


@pytest.mark.parametrize('length', [9, 26])
def test_text_positions_interpolated(weights, saved, length):
    """Linearly between neighbours, with the first and the last position kept; also to more than there are."""
    table = weights['positional_embedding']
    clip = build_clip(saved(weights), BIG, 16, length, text_positions='interpolated')
    places = torch.arange(length) * 19 / (length - 1)
    low, share = places.long().clamp(max=18), (places - places.long().clamp(max=18))[:, None]
    assert torch.allclose(clip.positional_embedding, table[low] * (1 - share) + table[low + 1] * share, atol=1e-6)
    assert torch.equal(clip.positional_embedding[[0, -1]], table[[0, -1]])
    assert torch.equal(
        build_clip(saved(weights), BIG, 16, 20, text_positions='interpolated').positional_embedding, table
    )


def test_long_clips_two_tables_of_text_positions(weights, saved):
    """The first 20 places of one table, and the others of the other, also if captions are shorter."""
    first, others = torch.randn(2, 248, weights['positional_embedding'].shape[1])
    path = saved({**weights, 'positional_embedding': first, 'positional_embedding_res': others})
    expected = torch.cat([first[:20], others[20:]])
    for length in (248, 77, 12):
        clip = build_clip(path, BIG, 16, length)
        assert torch.equal(clip.positional_embedding, expected[:length]) and clip.text_length == length
    with pytest.raises(UserError, match='--text_length 249 is more than the 248 positions'):
        build_clip(path, BIG, 16, 249)


def test_text_positions_stretched_as_in_long_clip(weights, saved):
    """77 places become 248: the first 20 stay, four for each other one; the last ones continue the last step."""
    table = torch.randn(77, weights['positional_embedding'].shape[1])
    path = saved({**weights, 'positional_embedding': table})
    long = build_clip(path, BIG, 16, 248, text_positions='stretched').positional_embedding
    assert torch.equal(long[:20], table[:20]) and torch.equal(long[20::4], table[20:])
    between = [(4 - part) / 4 * table[20:-1] + part / 4 * table[21:] for part in (1, 2, 3)]
    for part, expected in enumerate(between, 1):
        assert torch.allclose(long[20 + part:-4:4], expected, atol=1e-6)
        assert torch.allclose(long[-4 + part], table[-1] + part / 4 * (table[-1] - table[-2]), atol=1e-6)
    assert torch.equal(build_clip(path, BIG, 16, 77, text_positions='stretched').positional_embedding, table)
    assert torch.equal(build_clip(path, BIG, 16, 100, text_positions='stretched').positional_embedding, long[:100])
    with pytest.raises(UserError, match='77 positions become 248, and --text_length is 249'):
        build_clip(path, BIG, 16, 249, text_positions='stretched')


def test_tbps_clips_checkpoint_is_a_start(weights, saved):
    """Its text encoder has the prefix ``encode_text.``, and its temperature is next to both encoders."""
    released = {name if name.startswith('visual.') else f'encode_text.{name}': value for name, value in weights.items()}
    clip = build_clip(
        saved({'model': {**released, 'logit_scale': torch.tensor(4.5), 'simclr_mlp.0.bias': torch.zeros(128)}}),
        BIG,
        16,
        20,
    )
    assert same(clip.state_dict(), weights) and clip.pretrained_scale == 4.5


def test_a_trained_models_table_stays(weights, saved):
    """8x2 places of a trained model are as many as a square has, and are none."""
    path = saved(trained(weights))
    clip = build_clip(path, (128, 32), 16, 20)
    assert torch.equal(clip.visual.positional_embedding, weights['visual.positional_embedding'])
    with pytest.raises(UserError, match='trained with 16 image positions.*6x2 = 12'):
        build_clip(path, (96, 32), 16, 20)


def test_shape_of_a_trained_model(weights, saved):
    clip = build_clip(saved(weights), (96, 32), 16, 9)
    shape = shape_of(clip.state_dict())
    assert (shape.image_resolution, shape.text_length) == (None, 9)
    filled = empty_clip(shape, (96, 32), 16, 9)
    filled.load_state_dict(clip.state_dict())
    assert same(filled.state_dict(), clip.state_dict())


def test_wide_heads_of_published_models():
    shape = ClipShape(1024, 224, 1, 1280, 14, 77, 100, 1024, 1, vision_heads=16)     # ViT-H/14's widths: heads of 80
    with torch.device('meta'):
        assert shape_of(CLIP(shape, (224, 224), 14).state_dict()) == shape


# ---------------------------------------------------------------------------------------------------------- bad files

@pytest.mark.parametrize('dialect', [dict, hugging_face])
def test_missing_unexpected_and_misshapen_entries_are_named(weights, saved, dialect):
    state = dialect(weights)
    state.update({f'adapter.{i}.weight': torch.zeros(1) for i in range(7)})
    for name in list(state):
        if '.1.' in name and 'bias' in name and ('c_fc' in name or 'fc1' in name):
            del state[name]
    name = 'visual.ln_post.bias' if dialect is dict else 'vision_model.post_layernorm.bias'
    state[name] = torch.zeros(3)
    message = refused(saved(state))
    assert 'missing: visual.transformer.resblocks.1.mlp.c_fc.bias, transformer.resblocks.1.mlp.c_fc.bias;' in message
    assert 'unexpected: adapter.0.weight, ' in message and 'adapter.4.weight and 2 more;' in message
    assert 'of another size or type: visual.ln_post.bias: [3] for [64]' in message


def test_a_third_of_a_projection_is_reported(weights, saved):
    state = hugging_face(weights)
    del state['text_model.encoder.layers.0.self_attn.k_proj.bias']
    assert 'missing: transformer.resblocks.0.attn.in_proj_bias' in refused(saved(state))


@pytest.mark.parametrize('entries, answer', [
    ({'fc.weight': torch.ones(2)}, 'it lacks text_projection'), ({}, 'it lacks text_projection'),
    ([torch.ones(2)], 'holds no state dict'), (torch.ones(2), 'holds no state dict'),
    ({1: torch.ones(2)}, 'holds no state dict'),
    ({'fc.weight': torch.ones(2), 'epoch': 3}, 'no weights: epoch')])
def test_files_without_a_clip(saved, entries, answer):
    path = saved(entries)
    message = refused(path)
    assert answer in message and path in message


def test_weights_of_odd_dimensions(weights, saved):
    assert 'other dimensions' in refused(saved({**weights, 'text_projection': torch.ones(2)}))
    assert 'other dimensions' in refused(saved({**weights, 'visual.conv1.weight': torch.ones(2)}))
    assert 'other dimensions' in refused(saved({**weights, 'visual.positional_embedding': torch.ones(17)}))
    assert 'lacks visual.transformer.resblocks.*' in refused(saved(
        {name: value for name, value in weights.items() if not name.startswith('visual.transformer')}))
    assert 'heads of 64' in refused(saved({**weights, 'ln_final.weight': torch.ones(100)}))


@pytest.mark.parametrize('zipped', [True, False])
def test_truncated_and_corrupt_files(weights, tmp_path, zipped):
    path = tmp_path / 'clip.pt'
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    assert same(build_clip(str(path), BIG, 16, 20).state_dict(), weights)
    damaged = content[:100] + bytes(200) + content[300:]
    for broken in (content[:len(content) // 2], content[:100], content[:-30], damaged, b'', b'<html>404</html>'):
        path.write_bytes(broken)
        said = (
            'is damaged: its part clip/data.pkl'
            if zipped and broken == damaged
            else 'is truncated or no file of weights'
        )
        assert refused(str(path)).startswith(f'{path} {said}')


class Code:
    def __reduce__(self):
        return os.mkdir, ('carried_code_ran',)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('zipped', [True, False])
def test_code_is_not_run(weights, tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    for carrier in ({**weights, 'code': Code()}, {'state_dict': weights, 'more': [Code()]}):
        torch.save(carrier, 'clip.pt', _use_new_zipfile_serialization=zipped)
        assert 'can carry code' in refused('clip.pt')
    (tmp_path / 'clip.pt').write_bytes(pickle.dumps(Code()))
    assert 'clip.pt' in refused('clip.pt')
    assert not (tmp_path / 'carried_code_ran').exists()


def test_whole_pickled_modules_are_not_loaded(saved):
    assert 'save its state dict alone' in refused(saved(nn.Linear(2, 2)))


def test_unreadable_file(weights, saved, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, 'Permission denied')
    path = saved(weights)
    monkeypatch.setattr(torch, 'load', forbidden)
    assert refused(path) == f'cannot read {path}: Permission denied'


def flipped(content, start, step):
    """Copies of a file with one bit flipped: another one in each, from ``start`` on."""
    for number, position in enumerate(range(start, len(content), step)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << number % 8
        yield bytes(damaged)


@pytest.mark.parametrize('torchscript', [True, False])
def test_a_flipped_bit_is_seen_or_changes_nothing(archive, weights, tmp_path, torchscript):
    """In the archive's own padding a bit may flip unseen."""
    path = tmp_path / 'clip.pt'
    if torchscript:
        path.write_bytes(archive.read_bytes())
    else:
        torch.save(weights, path)
    content, seen = path.read_bytes(), 0
    before = build_clip(str(path), BIG, 16, 20, trust_archive=True).state_dict()
    damaged = list(flipped(content, 17, len(content) // 40))
    for broken in damaged:
        path.write_bytes(broken)
        try:
            assert same(build_clip(str(path), BIG, 16, 20, trust_archive=True).state_dict(), before)
        except UserError as error:
            assert 'is damaged: its part' in str(error) or 'truncated' in str(error)
            seen += 1
    assert seen > 0.7 * len(damaged)


NOT_PLAIN = [
    (
        lambda value: value[:1].expand(len(value), *value.shape[1:]),
        r'a tensor of shape \[.*\] expanded from fewer numbers',
    ),
    (lambda value: torch.empty_like(value, device='meta'), r'a tensor without values \(meta\)'),
    (lambda value: value.to_sparse(), 'a sparse tensor'),
    (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), 'a quantized tensor'),
    (lambda value: value.to(torch.complex64), 'a tensor of complex64'),
    (lambda value: value.tolist(), 'a list'),
]


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('changed, message', NOT_PLAIN)
def test_entries_that_are_no_plain_tensors_are_named(weights, tmp_path, changed, message):
    weights = {**weights, 'visual.conv1.weight': changed(weights['visual.conv1.weight'])}
    torch.save(weights, tmp_path / 'clip.pt')
    with pytest.raises(UserError, match=f'no weights: visual.conv1.weight is {message}'):
        build_clip(str(tmp_path / 'clip.pt'), BIG, 16, 20)


def test_whole_numbers_are_no_weights(weights, tmp_path):
    torch.save({**weights, 'visual.conv1.weight': weights['visual.conv1.weight'].long()}, tmp_path / 'clip.pt')
    with pytest.raises(UserError, match='size or type: visual.conv1.weight: int64 for float32'):
        build_clip(str(tmp_path / 'clip.pt'), BIG, 16, 20)


def test_entries_that_share_memory_learn_each_for_itself(weights, tmp_path):
    shared = {**weights, 'ln_final.weight': weights['ln_final.bias']}
    torch.save(shared, tmp_path / 'clip.pt')
    clip = build_clip(str(tmp_path / 'clip.pt'), BIG, 16, 20)
    with torch.no_grad():
        clip.ln_final.bias += 1
    assert torch.equal(clip.ln_final.weight, weights['ln_final.bias'])
