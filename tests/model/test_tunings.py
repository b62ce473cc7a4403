"""--tuning: UP-Person and DM-Adapter against a plain second computation, and what every tuning keeps."""
import math

import pytest
import torch
import torch.nn.functional as F

from model import objectives
from model.backbones.clip import Clip
from model.build import total_loss
from model.clip_model import CLIP, MLP, BlockTuning, ClipShape, Transformer
from model.tunings import apply_tuning, registry
from model.tunings.dm_adapter import balance
from solver import build_optimizer
from tests.support import golden_archive, golden_json, options, small_batch, small_model
from utils.checkpoint import init_from_checkpoint, load_weights
from utils.errors import UserError

# Other sizes than those of the reference vectors: encoders of different depths, an odd number of heads and of patches.
SHAPE = ClipShape(embed_dim=48, image_resolution=64, vision_layers=3, vision_width=96, vision_patch_size=16,
                  text_length=11, vocab_size=60, text_width=40, text_layers=2, vision_heads=3, text_heads=5)
SMALL = {'up-person': {'prefix_length': 3, 'rank': 4}, 'dm-adapter': {'loss_names': 'sdm+aux', 'num_experts': 4}}


def tuned_backbone(tuning, **settings):
    """Build a CLIP with a tuning whose parameters are random, and inputs for it."""
    torch.manual_seed(0)
    backbone = Clip(CLIP(SHAPE, (80, 48), 16, 11))
    names = apply_tuning(registry()[tuning], options(tuning=tuning, **settings), backbone).parameter_names
    parameters = dict(backbone.named_parameters())
    with torch.no_grad():
        for name in names:
            parameters[name].add_(0.1 * torch.randn(parameters[name].shape))
    return backbone.eval(), torch.randn(3, 3, 80, 48), torch.randint(1, 58, (3, 11))


def inputs_of_blocks(backbone, images, ids):
    clip = backbone.base_model
    yield 'image', clip.visual.ln_pre(clip.visual.embed(images)), clip.visual.transformer.resblocks, False
    yield 'text', clip.token_embedding(ids) + clip.positional_embedding, clip.transformer.resblocks, True


def tokens_of(backbone, side, x):
    clip = backbone.base_model
    return clip.visual.ln_post(x) @ clip.visual.proj if side == 'image' else clip.ln_final(x) @ clip.text_projection


def assert_close(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ UP-Person

def plain_adapter(adapter, x):
    hidden = (x @ adapter.down.weight.t() + adapter.down.bias).clamp(min=0)
    return hidden @ adapter.up.weight.t() + adapter.up.bias


def plain_attention(block, u, lora, prefix, is_causal):
    """One head and one sample at a time, with the prefix behind position 0, scaled after the softmax, as published."""
    width, heads = block.width, block.attn.heads
    weight = block.attn.in_proj_weight.clone()
    if lora is not None:
        for part in (0, 1):
            rows = slice((1 + part) * width, (2 + part) * width)
            weight[rows] += lora.scale[part].scale * lora.lora_B[part] @ lora.lora_A[part]
    outputs, maps = [], []
    for sample in u:
        q, k, v = (sample @ weight.t() + block.attn.in_proj_bias).chunk(3, dim=-1)
        length, places = len(q), 0
        if prefix is not None:
            places = len(prefix.key.tokens)
            k = torch.cat([k[:1], prefix.key.scaler.scale * prefix.key.tokens, k[1:]])
            v = torch.cat([v[:1], prefix.val.scaler.scale * prefix.val.tokens, v[1:]])
        own = [0, *range(places + 1, places + length)]
        hidden = torch.zeros(length, places + length, dtype=torch.bool)
        if is_causal:
            hidden[:, own] = torch.ones(length, length).triu(1).bool()
        per_head = []
        for q_head, k_head, v_head in zip(*(part.chunk(heads, dim=-1) for part in (q, k, v))):
            scores = (q_head @ k_head.t() / math.sqrt(q_head.shape[1])).masked_fill(hidden, -math.inf)
            attention = scores.softmax(dim=-1)
            maps.append(attention[:, own])
            scaled = attention.clone()
            if prefix is not None:
                scaled[:, 1:1 + places] *= prefix.scale_to_grad
            per_head.append(scaled @ v_head)
        outputs.append(torch.cat(per_head, dim=-1))
    return block.attn.out_proj(torch.stack(outputs)), torch.stack(maps).unflatten(0, (len(u), heads)).mean(1)


@pytest.mark.parametrize('depths', [(12, 12, 0), (2, 1, 1), (0, 3, 9)])
def test_up_person_is_the_published_computation(depths):
    lora_depth, prefix_depth, adapter_depth = depths
    backbone, images, ids = tuned_backbone('up-person', prefix_length=1, rank=3, depth_lora=lora_depth,
                                           depth_prefix=prefix_depth, depth_adapter=adapter_depth)
    for side, x, blocks, is_causal in inputs_of_blocks(backbone, images, ids):
        for number, block in enumerate(blocks):
            lora = getattr(backbone.LORA_learner, f'lora_{side}')[number] if number < lora_depth else None
            prefixes = (backbone.vit_prefix_learner.vit_prefix if side == 'image' else
                        backbone.text_prefix_learner.text_prefix)
            has_adapters = number >= adapter_depth
            u = block.ln_1(x)
            if has_adapters:
                u = u + block.scale_1 * plain_adapter(block.adapter_ln_msa, x)
            prefix = prefixes[number] if number < prefix_depth else None
            attended, expected_map = plain_attention(block, u, lora, prefix, is_causal)
            x = x + attended
            w = block.ln_2(x)
            if has_adapters:
                w = w + block.scale_2 * plain_adapter(block.adapter_ln_mlp, x)
            x = x + block.mlp(w)
        for need_map in (False, True):      # fused attention, and explicit weights
            tokens, attention = (backbone.encode_image(images, need_map) if side == 'image' else
                                 backbone.encode_text(ids, need_map))
            assert_close(tokens, tokens_of(backbone, side, x))
        assert_close(attention, expected_map)       # without the columns of the prefix


# ----------------------------------------------------------------------------------------------------------- DM-Adapter

@pytest.mark.parametrize('experts, topk', [(5, 2), (3, 3), (4, 1)])
def test_dm_adapter_is_the_published_computation(experts, topk):
    backbone, images, ids = tuned_backbone('dm-adapter', num_experts=experts, topk=topk, reduction=5)
    for side, x, blocks, is_causal in inputs_of_blocks(backbone, images, ids):
        aux = []
        for block in blocks:
            x = x + block.attn(block.ln_1(x), causal=is_causal)[0]
            h, mixture = block.ln_3(x), block.feed_forward
            mixed, probabilities, counts = torch.zeros_like(h), [], torch.zeros(experts)
            for sample, position in torch.cartesian_prod(torch.arange(len(h)), torch.arange(h.shape[1])).tolist():
                token = h[sample, position]
                logits = ((1 - mixture.alpha) * mixture.input_gate.weight @ token
                          + mixture.alpha * mixture.task_gate.weight @ block.task_param)
                probabilities.append(logits.softmax(dim=0))
                best = logits.argsort(descending=True)[:topk]
                for expert, weight in zip(best.tolist(), logits[best].softmax(dim=0)):
                    mixed[sample, position] += weight * plain_adapter(mixture.experts[expert], token)
                    counts[expert] += 1
            aux.append(experts * (torch.stack(probabilities).mean(0) * counts / len(probabilities)).mean())
            x = x + block.mlp(block.ln_2(x)) + {'image': 0.1, 'text': 4.0}[side] * mixed
        routing = []
        tokens, _ = (backbone.encode_image(images, False, routing) if side == 'image' else
                     backbone.encode_text(ids, False, routing))
        assert_close(tokens, tokens_of(backbone, side, x))
        assert_close(balance(torch.stack(routing, dim=1)), sum(aux))


def test_dm_adapters_balance_is_load_balance_of_all_tokens():
    torch.manual_seed(0)
    logits = torch.randn(4, 7, 5)
    selected = torch.zeros_like(logits).scatter(-1, logits.topk(2, dim=-1).indices, 1.0)
    routing = torch.stack([logits.softmax(dim=-1).mean(dim=1), selected.mean(dim=1)], dim=1)        # [B, 2, E]
    torch.testing.assert_close(balance(routing.unsqueeze(1)), objectives.load_balance(logits, selected))


def test_captions_keep_their_padding_for_dm_adapters_aux(archive):
    ids = small_batch()['caption_ids']
    ids = torch.cat([ids[:, :8].clamp(max=500), torch.zeros_like(ids[:, 8:])], dim=1)
    for loss_names, length in (('sdm+aux', 20), ('sdm', 8)):
        model = small_model(archive, loss_names, tuning='dm-adapter').train()
        assert model.trim_padding(ids).shape[1] == length
        assert model.eval().trim_padding(ids).shape[1] == 8


# --------------------------------------------------------------------------------------------------------- every tuning

@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


def build(archive, tuning, **changes):
    settings = {'loss_names': 'sdm', **SMALL.get(tuning, {}), **changes}
    return small_model(archive, tuning=tuning, **settings)


@pytest.mark.parametrize('tuning', ['up-person', 'dm-adapter'])
def test_a_tuning_overfits_a_batch_and_leaves_the_pretrained_weights(archive, tuning):
    args = options(lr=3e-3, tuning=tuning)
    model, batch = build(archive, tuning).train(), small_batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer, losses = build_optimizer(args, model), []
    for _ in range(30):
        results = model(batch)
        losses.append(results['sdm_loss'].item())
        optimizer.zero_grad()
        total_loss(results).backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    own = set(model.tuning.parameter_names)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in own), name
    frozen = [parameter for name, parameter in model.named_parameters() if name not in own]
    assert all(parameter.grad is None for parameter in frozen)
    assert len(optimizer.state) == len(own) == sum(len(group['params']) for group in optimizer.param_groups)


@pytest.mark.parametrize('tuning', ['up-person', 'dm-adapter'])
def test_grad_checkpoint_computes_the_same_bits(archive, tuning):
    gradients = []
    for grad_checkpoint in (False, True):
        model = build(archive, tuning, grad_checkpoint=grad_checkpoint).train()
        total_loss(model(small_batch())).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()
                          if parameter.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize('tuning, changes', [('dm-adapter', {}), ('up-person', {'depth_prefix': 0})])
def test_the_model_starts_as_clip(archive, tuning, changes):
    """UP-Person's prefixes change it from the start."""
    plain, tuned = build(archive, 'none'), build(archive, tuning, **changes)
    images = small_batch()['images']
    torch.testing.assert_close(tuned.encode_image(images), plain.encode_image(images), rtol=1e-5, atol=1e-6)


def test_heads_learn_at_the_rate_of_up_person(archive):
    model = build(archive, 'up-person', loss_names='sdm+id')
    args = options(tuning='up-person', loss_names='sdm+id', lr=1e-3)
    optimizer = build_optimizer(args, model)
    rates = {id(parameter): group['lr'] for group in optimizer.param_groups for parameter in group['params']}
    assert rates[id(model.classifier.weight)] == 1e-3       # without IRRA's --lr_factor, as in the reference
    assert set(rates.values()) == {1e-3}


def test_a_tuning_without_parameters_is_an_error(archive):
    nothing = {'depth_adapter': 12, 'depth_lora': 0, 'depth_prefix': 0}
    args = options(tuning='up-person', loss_names='sdm', **nothing)
    with pytest.raises(UserError, match='no parameter trains: --tuning up-person adds none .*--help up-person'):
        build_optimizer(args, build(archive, 'up-person', **nothing))


def test_a_block_without_a_tuning_is_not_changed(archive):
    model = build(archive, 'none')
    assert all(block.tuning is None for blocks in model.backbone.tunable_blocks().values() for block in blocks)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.tuning.parameter_names


def test_the_lean_mlp_computes_no_gradient_of_frozen_weights():
    torch.manual_seed(0)
    x, plain = torch.randn(2, 3, 8), MLP(8)
    lean = MLP(8)
    lean.load_state_dict(plain.state_dict())
    lean.lean = True
    gradients = []
    for mlp in (plain, lean):
        mlp.c_proj.requires_grad_(False)
        own = x.clone().requires_grad_()
        mlp(own).square().sum().backward()
        gradients.append((own.grad, mlp.c_fc.weight.grad))
        assert mlp.c_proj.weight.grad is None
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------- weights and error messages

def test_a_released_state_dict_with_duplicates_loads(archive, caplog):
    model = build(archive, 'up-person')
    weights = {name: torch.randn(value.shape) for name, value in model.state_dict().items()}
    expected = dict(weights)
    for part in ('key.tokens', 'val.scaler.scale', 'scale_to_grad'):
        weights[f'base_model.transformer.resblocks.0.attn.prefix.{part}'] = torch.randn(1)
    with caplog.at_level('INFO'):
        load_weights(model, weights)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert 'skipped unused base_model.transformer.resblocks.0.attn.prefix.key.tokens' in caplog.text


def test_dm_adapters_unused_parameters_are_skipped(archive, caplog):
    model = build(archive, 'dm-adapter')
    unused = ('vision_param', 'co_vision_param', 'text_param', 'v2i_proj.weight', 'v2i_proj.bias')
    with caplog.at_level('INFO'):
        load_weights(model, {**model.state_dict(), **{f'base_model.{name}': torch.zeros(2) for name in unused}})
    assert all(f'base_model.{name}' in caplog.text for name in unused[:2])


def test_init_from_a_run_without_a_tuning(archive, tmp_path, caplog):
    trained = build(archive, 'none', seed=3)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    torch.save({'model': trained.state_dict()}, tmp_path / 'best.pth')
    model = build(archive, 'up-person')
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level('INFO'):
        init_from_checkpoint(model, str(tmp_path / 'best.pth'))
    own = set(model.tuning.parameter_names)
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name] if name in own else trained.state_dict()[name]), name
    assert 'with initial weights: ' in caplog.text


def test_init_from_a_damaged_encoder_is_still_an_error(archive, tmp_path):
    weights = build(archive, 'none').state_dict()
    del weights['base_model.ln_final.weight']
    torch.save({'model': weights}, tmp_path / 'best.pth')
    with pytest.raises(UserError, match='another encoder than the options describe: base_model.ln_final.weight'):
        init_from_checkpoint(build(archive, 'up-person'), str(tmp_path / 'best.pth'))


@pytest.mark.parametrize('settings, sentence', [
    ({'tuning': 'up-person', 'backbone': 'aptm'},
     '--tuning up-person does not fit --backbone aptm: give --backbone clip, or another --tuning'),
    ({'tuning': 'dm-adapter', 'topk': 7}, '--topk 7 is above --num_experts 6: give a smaller --topk'),
    ({'tuning': 'dm-adapter', 'php_parts': 'efp'},
     '--tuning dm-adapter has a loss aux of its own, .* --php_parts efp enables PHP: leave out one of them')])
def test_options_that_exclude_each_other(settings, sentence):
    with pytest.raises(UserError, match=f'^{sentence}'):
        options(**settings)


def test_a_resnet_is_refused():
    resnet = {'vision_layers': (1, 1, 1, 1), 'vision_width': 64, 'vision_heads': None, 'vision_patch_size': None}
    with torch.device('meta'):
        backbone = Clip(CLIP(ClipShape(**{**vars(SHAPE), **resnet}), (64, 64)))
    with pytest.raises(UserError, match='^--tuning up-person changes transformer blocks of both encoders, and the '
                                        'image encoder is a ResNet: give a ViT as --pretrain_choice'):
        apply_tuning(registry()['up-person'], options(tuning='up-person'), backbone)


def test_the_loss_aux_is_the_tunings(archive):
    """Without the tuning, it is PHP's, which adds an embedding of parsed parts."""
    tuned = build(archive, 'dm-adapter')
    assert [type(head).__name__ for head in tuned.heads] == ['SDM', 'ExpertBalance']
    assert not any(name.startswith(('safl', 'shared_transformer')) for name in tuned.state_dict())
    with pytest.raises(UserError, match="the loss 'aux' is named twice"):
        build(archive, 'dm-adapter', loss_names='aux+aux')


def test_embeddings_depend_on_their_own_sample(archive):
    for tuning in ('up-person', 'dm-adapter'):
        model, batch = build(archive, tuning).eval(), small_batch()
        with torch.no_grad():
            together = model.encode_text(batch['caption_ids'])
            alone = torch.cat([model.encode_text(row[None]) for row in batch['caption_ids']])
        assert F.cosine_similarity(together, alone).min() > 1 - 1e-6


class DropoutTuning(BlockTuning):
    is_random = True

    def mlp_input(self, block, normalized, x):
        return F.dropout(normalized, 0.5)


def test_grad_checkpoint_draws_the_random_numbers_of_a_tuning_again():
    transformer, x, gradients = Transformer(16, 2, 2), torch.randn(2, 4, 16), []
    for block in transformer.resblocks:
        block.tuning = DropoutTuning()
    for transformer.grad_checkpoint in (False, True):
        torch.manual_seed(1)
        own = x.clone().requires_grad_()
        transformer(own)[0].square().sum().backward()
        gradients.append(own.grad)
    assert torch.equal(*gradients)
