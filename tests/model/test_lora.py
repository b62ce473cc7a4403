"""LoRA on CLIP and on open_clip's models: against plain weights, against peft, and what it cannot be added to."""
import json

import pytest
import torch
from torch import nn

from model.build import total_loss
from model.clip_model import MLP, is_plain
from model.tunings.lora import TARGETS
from tests.support import golden_archive, golden_json, options, small_batch, small_model
from utils.errors import UserError

OPEN_CLIP_SHAPES = {
    # MultiheadAttention in both encoders
    'lora-clip': {'embed_dim': 64,
                  'vision_cfg': {'image_size': 64, 'layers': 1, 'width': 64, 'head_width': 32, 'patch_size': 16},
                  'text_cfg': {'context_length': 20, 'vocab_size': 49408, 'width': 64, 'heads': 2, 'layers': 1}},
    # SigLIP: timm's qkv layer
    'lora-sig': {'embed_dim': 64, 'custom_text': True,
                 'vision_cfg': {'image_size': 160, 'timm_model_name': 'test_vit', 'timm_pool': 'map',
                                'timm_proj': 'none'},
                 'text_cfg': {'context_length': 20, 'no_causal_mask': True, 'pool_type': 'last', 'vocab_size': 49408,
                              'width': 64, 'heads': 2, 'layers': 1}},
    'lora-conv': {'embed_dim': 64,
                  'vision_cfg': {'image_size': 160, 'timm_model_name': 'test_convnext', 'timm_pool': '',
                                 'timm_proj': 'linear'},
                  'text_cfg': {'context_length': 20, 'vocab_size': 49408, 'width': 64, 'heads': 2, 'layers': 1}},
}


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('clip') / 'clip.pt')


@pytest.fixture(scope='module', autouse=True)
def open_clip_shapes(tmp_path_factory):
    """Add the small architectures to open_clip's own."""
    open_clip = pytest.importorskip('open_clip')
    folder = tmp_path_factory.mktemp('shapes')
    for name, shape in OPEN_CLIP_SHAPES.items():
        (folder / f'{name}.json').write_text(json.dumps(shape))
    before = list(open_clip.factory._MODEL_CONFIG_PATHS), dict(open_clip.factory._MODEL_CONFIGS)
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS[:], open_clip.factory._MODEL_CONFIGS = before


def build(name, archive, **changes):
    """A model of irra_tiny's CLIP, or of an open_clip architecture."""
    if name == 'clip':
        return small_model(archive, 'sdm', **changes)
    return small_model(name, 'itc', backbone='open_clip', **changes)


def randomize(model):
    """Draw all LoRA matrices, so that they change the embeddings."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in model.tuning.parameter_names:
            parameter = model.get_parameter(name)
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def embeddings(model):
    batch = small_batch(3)
    model.eval()
    return torch.cat([model.encode_image(batch['images']), model.encode_text(batch['caption_ids'])])


@pytest.mark.parametrize('name', ['clip', 'lora-clip', 'lora-sig'])
@pytest.mark.parametrize('targets', [('q', 'v'), TARGETS])
def test_lora_adds_nothing_at_first_and_then_what_merged_weights_compute(name, targets, archive):
    plain = build(name, archive)
    model = build(name, archive, tuning='lora', lora_targets=targets, lora_rank=3, lora_alpha=2.0)
    assert set(plain.state_dict()) == set(model.state_dict()) - set(model.tuning.parameter_names)
    plain.load_state_dict({key: value for key, value in model.state_dict().items()
                           if key not in model.tuning.parameter_names})
    # Other kernels compute a MultiheadAttention and a lean MLP without LoRA.
    is_exact = name == 'clip' and 'mlp' not in targets
    torch.testing.assert_close(embeddings(model), embeddings(plain), rtol=0 if is_exact else 1e-5,
                               atol=0 if is_exact else 1e-5)
    randomize(model)
    expected = embeddings(model)
    assert (expected - embeddings(plain)).abs().max() > 0.01
    merged = model.tuning.merge(model.backbone)
    plain.load_state_dict({**plain.state_dict(), **merged})
    torch.testing.assert_close(embeddings(plain), expected, rtol=1e-4, atol=1e-5)


def test_the_change_of_a_weight_is_alpha_over_rank_times_the_product(archive):
    model = build('clip', archive, tuning='lora', lora_targets=('q', 'out'), lora_rank=4, lora_alpha=6.0)
    randomize(model)
    block = model.base_model.visual.transformer.resblocks[0].attn
    merged = model.tuning.merge(model.backbone)
    prefix, width = 'base_model.visual.transformer.resblocks.0.attn.', block.out_proj.in_features
    difference = merged[f'{prefix}in_proj_weight'] - block.in_proj_weight
    torch.testing.assert_close(difference[:width], 1.5 * block.lora['q'].B @ block.lora['q'].A, rtol=1e-5, atol=1e-6)
    assert not difference[width:].any()
    difference = merged[f'{prefix}out_proj.weight'] - block.out_proj.weight
    torch.testing.assert_close(difference, 1.5 * block.out_proj.lora.B @ block.out_proj.lora.A, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['clip', 'lora-sig'])
def test_lora_computes_what_peft_does(name, archive):
    """On layers that are called, which is where peft's hooks are."""
    peft = pytest.importorskip('peft', reason='peft is not installed: pip install peft')
    layers = ['out_proj', 'c_fc', 'c_proj'] if name == 'clip' else ['proj', 'fc1', 'fc2']
    model = build(name, archive, tuning='lora', lora_targets=('out', 'mlp'), lora_rank=3, lora_alpha=2.0)
    randomize(model)
    theirs = build(name, archive)
    theirs.load_state_dict({key: value for key, value in model.state_dict().items()
                            if key not in model.tuning.parameter_names})
    visual = theirs.base_model.visual
    chosen = [path for path, layer in visual.named_modules()
              if isinstance(layer, nn.Linear) and path.split('.')[-1] in layers and 'blocks' in path]
    peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=2.0, target_modules=chosen), visual)
    with torch.no_grad():
        for path in chosen:
            ours, layer = model.base_model.visual.get_submodule(path).lora, visual.get_submodule(path)
            layer.lora_A['default'].weight.copy_(ours.A)
            layer.lora_B['default'].weight.copy_(ours.B)
        images = small_batch(3)['images']
        torch.testing.assert_close(model.eval().encode_image(images), theirs.eval().encode_image(images),
                                   rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['clip', 'lora-clip', 'lora-sig'])
def test_only_the_matrices_learn_also_with_activation_recomputation(name, archive):
    gradients = []
    for grad_checkpoint in (False, True):
        model = build(name, archive, tuning='lora', lora_targets=TARGETS, grad_checkpoint=grad_checkpoint)
        randomize(model)
        total_loss(model.train()(small_batch())).backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert set(gradients[0]) == set(model.tuning.parameter_names) == set(gradients[1])
    assert all(value.any() and torch.equal(value, gradients[1][key]) for key, value in gradients[0].items())


def test_the_mlp_stays_lean_unless_lora_is_on_it(archive):
    for targets, is_lean in ((('q', 'v'), True), (('q', 'mlp'), False)):
        model = build('clip', archive, tuning='lora', lora_targets=targets)
        mlps = [part for part in model.modules() if isinstance(part, MLP)]
        assert all(mlp.lean and is_plain(mlp.c_fc, nn.Linear) == is_lean for mlp in mlps)


@pytest.mark.parametrize('targets', [('q',), ('k', 'out', 'mlp')])
def test_the_layers_are_those_of_the_option(targets, archive):
    model = build('clip', archive, tuning='lora', lora_targets=targets)
    added = {name.split('resblocks.')[1].split('.', 1)[1] for name in model.tuning.parameter_names}
    layers = {'q': ['attn.lora.q'], 'k': ['attn.lora.k'], 'out': ['attn.out_proj.lora'],
              'mlp': ['mlp.c_fc.lora', 'mlp.c_proj.lora']}
    assert added == {f'{layer}.{matrix}' for target in targets for layer in layers[target] for matrix in 'AB'}


def test_encoders_without_transformer_blocks_are_refused(archive):
    with pytest.raises(UserError, match='--tuning lora changes transformer blocks of both encoders, and the image '
                                        'encoder is a ResNet: give a ViT'):
        build('clip', 'scratch:RN50', tuning='lora', img_size=(64, 32))
    with pytest.raises(UserError, match='--tuning lora needs transformer blocks with the layers attn and mlp in both'):
        build('lora-conv', archive, tuning='lora')
    with pytest.raises(UserError, match='--tuning lora does not fit --backbone aptm: give --backbone clip or open'):
        options(tuning='lora', backbone='aptm', loss_names='itc')
