"""The encoders against plain re-computations and the vectors of the reference implementation."""
import pytest
import torch
import torch.nn.functional as F

from model.clip_model import (CLIP, Attention, AttentionPool, Bottleneck, ClipShape, LayerNorm, ResidualAttentionBlock,
                              Transformer)
from model.clip_weights import build_clip, shape_named
from tests.support import golden, golden_files, golden_json, golden_weight
from utils.errors import UserError

TINY = dict(embed_dim=64, image_resolution=64, vision_layers=2, vision_width=128, vision_patch_size=16, text_length=20,
            vocab_size=100, text_width=64, text_layers=2)
TINY_RESNET = dict(TINY, vision_layers=(1, 2, 1, 1), vision_width=8, vision_patch_size=None, vision_heads=4)


def tiny(img_size=(64, 32), stride_size=16, text_length=20, **changes):
    torch.manual_seed(0)
    return CLIP(ClipShape(**{**TINY, **changes}), img_size, stride_size, text_length).eval()


def close(a, b, tolerance=1e-5):
    """Largest difference, relative to the largest value."""
    return (a - b).abs().max() <= tolerance * b.abs().max()


# ------------------------------------------------------------------------------------------------------------- parity

def pretrained(case):
    """A pretrained state dict: every weight by its official name, both position tables by their bare ones."""
    config = case['config']
    state = {name[len('base_model.'):]: golden_weight(name, shape) for name, (shape, _) in case['official_keys'].items()
             if name.startswith('base_model.')}
    places = (config['pretrain_res'] // config['patch']) ** 2
    tables = {'visual.positional_embedding': (1 + places, config['vision_width']),
              'positional_embedding': (77, config['text_width'])}
    return {**state, **{name: golden_weight(name, shape) for name, shape in tables.items()}}


@pytest.mark.parametrize('name', golden_files('irra_*') + golden_files('a2te_*') + golden_files('sen_*'))
def test_embeddings_are_the_released_codes(name, tmp_path):
    expected, case = golden(name)
    config = case['config']
    torch.save(pretrained(case), tmp_path / 'clip.pt')
    clip = build_clip(str(tmp_path / 'clip.pt'), config['img_size'], config['stride'], config['text_length']).eval()
    assert close(clip.visual.positional_embedding, expected['pos_embed_resized'], 1e-6)
    images, ids = expected['in/images'], expected['in/caption_ids']
    with torch.no_grad():
        image, text = clip.encode_image(images)[0][:, 0], clip.encode_text(ids)[0]
    text = text[torch.arange(len(text)), ids.argmax(1)]
    assert close(image, expected['out/image_embedding'])
    assert close(text, expected['out/text_embedding'])


def test_parameters_are_the_official_ones():
    official = golden_json('official_irra_vitb16')['state_dict']
    official = {name[len('base_model.'):]: tuple(shape) for name, (shape, _) in official.items()
                if name.startswith('base_model.')}
    with torch.device('meta'):
        clip = CLIP(shape_named('ViT-B/16'), (384, 128), 16)
    assert [(name, tuple(value.shape)) for name, value in clip.state_dict().items()] == list(official.items())
    assert all(parameter.dtype == torch.float32 for parameter in clip.parameters())


# ---------------------------------------------------------------------------------------------------------- attention

def torch_attention(attention, query, keys, values, causal=False):
    """PyTorch's own, which is sequence first."""
    mask = torch.full((query.shape[1], keys.shape[1]), float('-inf')).triu(1) if causal else None
    query, keys, values = (x.transpose(0, 1) for x in (query, keys, values))
    out, weights = F.multi_head_attention_forward(
        query, keys, values, query.shape[-1], attention.heads, attention.in_proj_weight, attention.in_proj_bias,
        None, None, False, 0.0, attention.out_proj.weight, attention.out_proj.bias, attn_mask=mask, need_weights=True)
    return out.transpose(0, 1), weights


@pytest.fixture
def attention():
    torch.manual_seed(0)
    attention = Attention(24, 3)
    torch.nn.init.normal_(attention.in_proj_bias)
    torch.nn.init.normal_(attention.out_proj.bias)
    return attention


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('need_map', [False, True])
def test_self_attention_is_pytorchs(attention, causal, need_map):
    x = torch.randn(2, 5, 24)
    expected, expected_map = torch_attention(attention, x, x, x, causal)
    out, weights = attention(x, causal=causal, need_map=need_map)
    assert close(out, expected)
    assert close(weights, expected_map) if need_map else weights is None


@pytest.mark.parametrize('need_map', [False, True])
@pytest.mark.parametrize('own_values', [False, True])
def test_cross_attention_is_pytorchs(attention, need_map, own_values):
    query, keys = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    values = torch.randn(2, 7, 24) if own_values else keys
    expected, expected_map = torch_attention(attention, query, keys, values)
    out, weights = attention(query, keys, values, need_map=need_map)
    assert close(out, expected)
    assert close(weights, expected_map) if need_map else weights is None
    if not own_values:
        assert torch.equal(attention(query, keys)[0], attention(query, keys, keys)[0])


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match='5 attention heads cannot share a width of 24'):
        Attention(24, 5)
    with pytest.raises(UserError, match='width 100 .* multiple of 64'):
        ClipShape(**dict(TINY, vision_width=100))


def test_the_map_is_the_last_blocks():
    torch.manual_seed(0)
    transformer = Transformer(16, 2, 2)
    x = torch.randn(2, 4, 16)
    out, attention = transformer(x, causal=True, need_map=True)
    first, last = transformer.resblocks
    middle, _ = first(x, causal=True)
    _, expected = last.attn(last.ln_1(middle), causal=True, need_map=True)
    assert torch.equal(attention, expected)
    assert close(out, transformer(x, causal=True)[0])
    assert transformer(x)[1] is None


def test_block_is_pre_norm_with_two_residuals():
    torch.manual_seed(0)
    block, x = ResidualAttentionBlock(16, 2), torch.randn(2, 4, 16)
    middle = x + block.attn(F.layer_norm(x, (16,)))[0]
    hidden = F.linear(F.layer_norm(middle, (16,)), block.mlp.c_fc.weight, block.mlp.c_fc.bias)
    hidden = hidden / (1 + torch.exp(-1.702 * hidden))
    expected = middle + F.linear(hidden, block.mlp.c_proj.weight, block.mlp.c_proj.bias)
    assert close(block(x)[0], expected)


def test_layer_norm_computes_in_float32():
    torch.manual_seed(0)
    x = (300 + torch.randn(4, 64)).to(torch.float16)     # squares overflow half precision
    out = LayerNorm(64)(x)
    assert out.dtype == torch.float16
    assert torch.equal(out, F.layer_norm(x.float(), (64,)).half())


# -------------------------------------------------------------------------------------------------------- text encoder

def test_text_tokens_do_not_see_later_ones():
    clip = tiny()
    ids = torch.randint(1, 90, (3, 20))
    changed = ids.clone()
    changed[:, 12:] = torch.randint(1, 90, (3, 8))
    before, after = clip.encode_text(ids)[0], clip.encode_text(changed)[0]
    assert close(after[:, :12], before[:, :12], 1e-6)
    assert not close(after[:, 12:], before[:, 12:], 1e-2)


@pytest.mark.parametrize('need_map', [False, True])
def test_shorter_ids_give_the_same_tokens(need_map):
    clip = tiny()
    ids = torch.randint(1, 90, (3, 20))
    (whole, whole_map), (cut, cut_map) = clip.encode_text(ids, need_map), clip.encode_text(ids[:, :9], need_map)
    assert cut.shape == (3, 9, 64)
    assert close(cut, whole[:, :9], 1e-6)
    if need_map:
        assert close(cut_map, whole_map[:, :9, :9], 1e-6)
        assert torch.equal(whole_map.triu(1), torch.zeros(3, 20, 20))
        assert close(whole_map.sum(-1), torch.ones(3, 20), 1e-6)


# ------------------------------------------------------------------------------------------------------- image encoder

def test_image_tokens_and_attributes():
    clip = tiny(img_size=(96, 32))
    tokens, attention = clip.encode_image(torch.randn(2, 3, 96, 32), need_map=True)
    assert tokens.shape == (2, 13, 64) and attention.shape == (2, 13, 13)
    assert close(attention.sum(-1), torch.ones(2, 13), 1e-6)
    assert clip.encode_image(torch.randn(2, 3, 96, 32))[1] is None
    assert (clip.grid, clip.patch_size, clip.stride_size, clip.has_image_tokens) == ((6, 2), 16, 16, True)
    assert (clip.embed_dim, clip.vocab_size, clip.text_length) == (64, 100, 20)


@pytest.mark.parametrize('img_size, stride, grid', [
    ((64, 32), 16, (4, 2)), ((64, 32), 12, (5, 2)), ((70, 45), 11, (5, 3))])
def test_patches_and_their_positions(img_size, stride, grid):
    clip = tiny(img_size, stride)
    assert clip.grid == grid
    image = torch.randn(1, 3, *img_size)
    tokens = clip.visual.embed(image)[0]
    weight, positions = clip.visual.conv1.weight, clip.visual.positional_embedding
    assert close(tokens[0], clip.visual.class_embedding + positions[0])
    for i in range(grid[0]):
        for j in range(grid[1]):
            patch = image[0, :, i * stride:i * stride + 16, j * stride:j * stride + 16]
            n = 1 + i * grid[1] + j
            assert close(tokens[n], (weight * patch).sum((1, 2, 3)) + positions[n])


def test_encode_takes_any_of_the_tokens():
    clip = tiny()
    images = torch.randn(2, 3, 64, 32)
    tokens = clip.visual.embed(images)
    assert torch.equal(clip.visual.encode(tokens)[0], clip.encode_image(images)[0])
    few, attention = clip.visual.encode(tokens[:, :4], need_map=True)
    assert few.shape == (2, 4, 64) and attention.shape == (2, 4, 4)


@pytest.mark.parametrize('changes', [{}, TINY_RESNET])
def test_too_small_an_image_is_refused(changes):
    with pytest.raises(UserError, match='--img_size 64 12 is too small'):
        tiny((64, 12), **changes)


def test_half_precision_comes_from_autocast():
    clip = tiny()
    images, ids = torch.randn(2, 3, 64, 32), torch.randint(1, 90, (2, 20))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outs = clip.encode_image(images, need_map=True)[0], clip.encode_image(images)[0], clip.encode_text(ids)[0]
    expected = clip.encode_image(images)[0], clip.encode_image(images)[0], clip.encode_text(ids)[0]
    for half, full in zip(outs, expected):
        assert half.dtype == torch.bfloat16
        assert close(half.float(), full, 0.05)


# -------------------------------------------------------------------------------------------------------------- ResNet

def test_resnet_gives_one_vector_an_image():
    clip = tiny((64, 32), **TINY_RESNET)
    tokens, attention = clip.encode_image(torch.randn(2, 3, 64, 32), need_map=True)
    assert tokens.shape == (2, 1, 64) and attention is None
    assert (clip.grid, clip.patch_size, clip.stride_size, clip.has_image_tokens) == ((2, 1), None, None, False)


@pytest.mark.parametrize('img_size', [(64, 32), (100, 70), (127, 65), (95, 63)])
def test_resnet_positions_are_as_many_as_its_features(img_size):
    clip = tiny(img_size, **TINY_RESNET)
    assert clip.encode_image(torch.randn(1, 3, *img_size))[0].shape == (1, 1, 64)


def test_resnet_parameters_are_openais():
    with torch.device('meta'):
        clip = CLIP(shape_named('RN50'), (224, 224))
    shapes = {name: tuple(value.shape) for name, value in clip.state_dict().items()}
    some = {'visual.conv1.weight': (32, 3, 3, 3), 'visual.conv3.weight': (64, 32, 3, 3),
            'visual.bn3.running_var': (64,), 'visual.layer1.0.downsample.0.weight': (256, 64, 1, 1),
            'visual.layer1.0.downsample.1.bias': (256,),
            'visual.layer2.0.conv2.weight': (128, 128, 3, 3), 'visual.layer4.2.bn3.num_batches_tracked': (),
            'visual.attnpool.positional_embedding': (50, 2048), 'visual.attnpool.q_proj.weight': (2048, 2048),
            'visual.attnpool.c_proj.weight': (1024, 2048), 'text_projection': (512, 1024)}
    assert {name: shapes.get(name) for name in some} == some
    assert len(shapes) == 488


@pytest.mark.parametrize('inputs, stride', [(32, 1), (8, 1), (32, 2)])
def test_bottleneck(inputs, stride):
    torch.manual_seed(0)
    block, x = Bottleneck(inputs, 8, stride).eval(), torch.randn(2, inputs, 6, 4)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)

    def normed(y, bn):
        y = (y - bn.running_mean[:, None, None]) / (bn.running_var[:, None, None] + bn.eps).sqrt()
        return y * bn.weight[:, None, None] + bn.bias[:, None, None]

    def pooled(y):
        return y if stride == 1 else (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4

    out = normed(F.conv2d(x, block.conv1.weight), block.bn1).relu()
    out = normed(F.conv2d(out, block.conv2.weight, padding=1), block.bn2).relu()
    out = normed(F.conv2d(pooled(out), block.conv3.weight), block.bn3)
    shortcut = x
    if inputs != 32 or stride > 1:
        names = dict(block.downsample.named_children())
        shortcut = normed(F.conv2d(pooled(x), names['0'].weight), names['1'])
    else:
        assert block.downsample is None
    assert close(block(x), (out + shortcut).relu())


def test_attention_pool_is_pytorchs_attention_of_the_mean():
    torch.manual_seed(0)
    pool = AttentionPool((3, 2), 24, 3, 10)
    pool.reset_parameters()
    x = torch.randn(2, 24, 3, 2)
    sequence = x.flatten(2).permute(2, 0, 1)                                        # [6, B, 24]
    sequence = torch.cat([sequence.mean(0, keepdim=True), sequence]) + pool.positional_embedding[:, None]
    biases = torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias])
    expected, _ = F.multi_head_attention_forward(
        sequence[:1], sequence, sequence, 24, 3, None, biases, None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight)
    assert close(pool(x), expected[0])


# ------------------------------------------------------------------------------------------------------ random weights

@pytest.mark.parametrize('changes', [{}, TINY_RESNET])
def test_random_weights_repeat_with_the_seed(changes):
    first, second = tiny(**changes).state_dict(), tiny(**changes).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(value.isfinite().all() for value in first.values())


def test_random_weights_follow_clips_rules():
    state = tiny(text_width=256, vision_width=256).state_dict()

    def std(name):
        return state[name].std().item()

    for tower in ('', 'visual.'):
        block = f'{tower}transformer.resblocks.1.'
        assert std(block + 'attn.in_proj_weight') == pytest.approx(256 ** -0.5, rel=0.02)
        assert std(block + 'attn.out_proj.weight') == pytest.approx(256 ** -0.5 * 4 ** -0.5, rel=0.02)
        assert std(block + 'mlp.c_proj.weight') == pytest.approx(256 ** -0.5 * 4 ** -0.5, rel=0.02)
        assert std(block + 'mlp.c_fc.weight') == pytest.approx(512 ** -0.5, rel=0.02)
        assert not state[block + 'attn.in_proj_bias'].any() and not state[block + 'attn.out_proj.bias'].any()
    assert std('token_embedding.weight') == pytest.approx(0.02, rel=0.05)
    assert std('positional_embedding') == pytest.approx(0.01, rel=0.05)
    for name in ('text_projection', 'visual.proj', 'visual.positional_embedding'):
        assert std(name) == pytest.approx(256 ** -0.5, rel=0.1)
