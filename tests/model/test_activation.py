"""The activation of weights: read from the files next to them, always logged, and kept by the run."""

import json
import logging

import pytest
import torch
import yaml
from torch import nn

from model import build_model
from model.activation import read_activation
from model.aptm_weights import refuse_other_activation
from model.clip_model import QuickGELU
from processor.runs import load_trained
from tests.support import options, small_archive
from utils.errors import UserError
from utils.options import build_test_parser, parse_test_options

TOWERS = ('text', 'vision')


def hugging_face(text='gelu', vision='gelu', ending='config'):
    return {
        'model_type': 'clip',
        **{f'{side}_{ending}': {'hidden_act': act} if act else {} for side, act in zip(TOWERS, (text, vision))},
    }


def open_clip(**model):
    return {'model_cfg': {'embed_dim': 64, **model}, 'preprocess_cfg': {}}


@pytest.fixture
def clip(tmp_path, caplog):
    logging.getLogger('Pedestal').propagate = logging.getLogger('Pedestal.weights').propagate = True
    caplog.set_level('INFO', logger='Pedestal.weights')
    return small_archive(tmp_path / 'clip.pt')


def built(choice, **changes):
    """(the classes of the activations of both encoders, the option that a run records)."""
    args = options(**{'loss_names': 'itc', 'pretrain_choice': choice, 'img_size': (64, 64), **changes})
    model = build_model(args, 2)
    clip, activation = model.base_model, model.backbone.resolved_options['activation']
    blocks = [*clip.transformer.resblocks, *clip.visual.transformer.resblocks]
    assert clip.activation == activation
    return {type(block.mlp.gelu) for block in blocks}, activation


DESCRIBED = [
    ('open_clip_config.json', open_clip(quick_gelu=True), 'quick_gelu'),
    ('open_clip_config.json', open_clip(), 'gelu'),
    ('open_clip_config.json', open_clip(quick_gelu=False), 'gelu'),
    ('config.json', hugging_face(), 'gelu'),
    ('config.json', hugging_face('quick_gelu', 'quick_gelu'), 'quick_gelu'),
    ('config.json', hugging_face(None, None), 'quick_gelu'),
    ('config.json', hugging_face(ending='config_dict'), 'gelu'),
]


@pytest.mark.parametrize('name, content, activation', DESCRIBED)
def test_the_files_next_to_weights_say_it(clip, tmp_path, caplog, name, content, activation):
    (tmp_path / name).write_text(json.dumps(content))
    assert built(clip) == ({QuickGELU if activation == 'quick_gelu' else nn.GELU}, activation)
    assert f'activation of the encoders: {activation} ({tmp_path / name} says so)' in caplog.text


@pytest.mark.parametrize(
    'name, content',
    [
        ('config.json', {'image': {'height': 64}, 'text': {'length': 77}}),
        ('config.json', [1]),
        ('config.json', {'text_config': 1}),
        ('open_clip_config.json', {'model': 1}),
        ('configs.yaml', {'loss_names': 'sdm'}),
        ('configs.yaml', {'activation': 'auto'}),
    ],
)
def test_what_says_nothing_leaves_openais_which_is_said(clip, tmp_path, caplog, name, content):
    (tmp_path / name).write_text(json.dumps(content))
    assert built(clip) == ({QuickGELU}, 'quick_gelu')
    assert 'activation of the encoders: quick_gelu (assumed' in caplog.text and 'need --activation gelu' in caplog.text


def test_other_sources_and_the_flag_are_said(clip, tmp_path, caplog):
    built('scratch:tiny', img_size=(64, 32))
    assert 'quick_gelu (assumed: the weights are random)' in caplog.text
    (tmp_path / 'config.json').write_text(json.dumps(hugging_face()))
    assert built(clip, activation='quick_gelu') == ({QuickGELU}, 'quick_gelu')
    assert 'quick_gelu (the option activation says so)' in caplog.text


@pytest.mark.parametrize('name, content, message', [
    ('config.json', hugging_face('gelu', 'quick_gelu'), "the activation of clip.pt is 'gelu and "
                                                        "quick_gelu'.*--activation"),
    ('config.json', hugging_face('relu', 'relu'), "the activation of clip.pt is 'relu'.*quick_gelu or gelu here"),
    ('config.json', '{', 'config.json is not JSON.*--activation quick_gelu or gelu'),
    ('open_clip_config.json', '{"a": 1, "a": 2}', 'open_clip_config.json is not JSON.*--activation'),
    ('configs.yaml', {'activation': 'gelu_new'}, "the activation of clip.pt is 'gelu_new'"),
    ('configs.yaml', {'activation': [1]}, r'the activation of clip.pt is \[1\]')])
def test_what_cannot_be_had_is_refused_and_the_flag_helps(clip, tmp_path, name, content, message):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        built(clip)
    assert '\n' not in str(caught.value)
    assert built(clip, activation='gelu') == ({nn.GELU}, 'gelu')


def test_a_new_run_has_the_activation_of_the_run_that_it_starts_from(clip, tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'configs.yaml').write_text(yaml.safe_dump({'activation': 'gelu'}))
    (tmp_path / 'run' / 'best.pth').write_bytes((tmp_path / 'clip.pt').read_bytes())
    assert read_activation(str(tmp_path / 'run' / 'best.pth')) == ('gelu', str(tmp_path / 'run' / 'configs.yaml'))
    assert built(clip, init_from=str(tmp_path / 'run' / 'best.pth'))[1] == 'gelu'
    assert built(str(tmp_path / 'run' / 'best.pth'))[1] == 'gelu'


def test_a_clip_before_any_training_is_tested_with_it(clip, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(hugging_face()))
    for words, activation in (([], 'gelu'), (['--activation', 'quick_gelu'], 'quick_gelu')):
        args = parse_test_options(
            build_test_parser('test.py', ''), ['--pretrain_choice', clip, '--device', 'cpu', *words]
        )
        model, _ = load_trained(args, 1)
        assert model.base_model.activation == model.backbone.resolved_options['activation'] == activation
    with pytest.raises(UserError, match='--activation is in the configs.yaml of --config_file'):
        parse_test_options(build_test_parser('test.py', ''), ['--config_file', 'configs.yaml', '--activation', 'gelu'])


def test_embeddings_are_those_of_transformers(tmp_path, caplog):
    transformers = pytest.importorskip('transformers', reason='the transformers library is not installed')
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=1,
        hidden_act='gelu',
        projection_dim=64,
    )
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            projection_dim=64,
            text_config=dict(vocab_size=100, max_position_embeddings=20, eos_token_id=99, bos_token_id=98, **sizes),
            vision_config=dict(image_size=64, patch_size=16, **sizes),
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    args = options(
        loss_names='itc',
        pretrain_choice=str(tmp_path / 'model.safetensors'),
        img_size=(64, 64),
        text_length=20,
        amp='off',
    )
    ours = build_model(args, 2).eval()
    images, ids = torch.randn(2, 3, 64, 64), torch.tensor([[98, 5, 6, 99, 0], [98, 7, 99, 0, 0]])
    with torch.no_grad():
        given = theirs(pixel_values=images, input_ids=ids)
        for embedding, expected in (
            (ours.encode_image(images), given.image_embeds),
            (ours.encode_text(ids), given.text_embeds),
        ):
            torch.testing.assert_close(nn.functional.normalize(embedding, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_a_bert_of_another_activation_is_refused(tmp_path):
    (tmp_path / 'config.json').write_text('{"hidden_act": "gelu_new"}')
    with pytest.raises(UserError, match="hidden_act is 'gelu_new', and this text encoder has 'gelu'"):
        refuse_other_activation(str(tmp_path / 'model.safetensors'))
    (tmp_path / 'config.json').write_text('{"hidden_act": "gelu"}')
    refuse_other_activation(str(tmp_path / 'model.safetensors'))
