"""SEN's restoration and triplet loss against vectors of the reference implementation, and against plain loops."""
import math
import os

import pytest
import torch

from model import build_model, objectives
from model.build import total_loss
from model.heads import sen
from model.loss_names import parse_loss_names
from solver.build import parameter_settings
from tests.support import (
    OWN, golden, golden_archive, golden_batch, golden_cases, golden_files, golden_json, golden_model, options)
from utils.checkpoint import load_weights
from utils.errors import UserError
from utils.options import get_args

RELATIVE = 1e-5


def close(value, reference):
    return value == pytest.approx(float(reference), rel=RELATIVE, abs=1e-7)


class Noise:
    """A replacement of torch.rand that returns given noise and records the requested shapes."""

    def __init__(self, noise):
        self.noise, self.shapes = noise, []

    def __call__(self, *shape, **_):
        self.shapes.append(tuple(shape[0]) if len(shape) == 1 else shape)
        return self.noise


@pytest.fixture(scope='module', params=golden_files('sen_*'))
def reference(request, tmp_path_factory):
    model, vectors, description = golden_model(request.param, tmp_path_factory.mktemp('sen'))
    noise = Noise(vectors['in/mae_noise'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'rand', noise)
        results = model(golden_batch(vectors))
    total_loss(results).backward()
    return model, vectors, description, results, noise


def test_one_draw_of_noise(reference):
    _, vectors, _, _, noise = reference
    assert noise.shapes == [tuple(vectors['in/mae_noise'].shape)]


def test_losses_and_read_outs(reference):
    _, vectors, _, results, _ = reference
    official = {name[len('out/'):]: value for name, value in vectors.items()
                if name.startswith('out/') and not name.endswith(('embedding', 'total'))}
    assert set(official) == set(results)
    for name, value in official.items():
        assert close(float(results[name].detach()), value), name
    assert close(float(total_loss(results).detach()), vectors['out/total'])


def test_embeddings(reference):
    model, vectors, _, _, _ = reference
    batch = golden_batch(vectors)
    with torch.no_grad():
        for ours, official in ((model.encode_image(batch['images']), vectors['out/image_embedding']),
                               (model.encode_text(batch['caption_ids']), vectors['out/text_embedding'])):
            assert (ours - official).norm() <= RELATIVE * official.norm()


def test_gradients(reference):
    model, vectors, _, _, _ = reference
    official = {name[len('grad/'):]: float(value) for name, value in vectors.items() if name.startswith('grad/')}
    parameters = dict(model.named_parameters())
    assert official and set(official) <= set(parameters)
    for name, value in official.items():
        assert close(float(parameters[name].grad.norm()), value), name


def test_names_shapes_and_unused_parameters(reference):
    model, _, description, _, _ = reference
    official = {name: shape for name, (shape, _) in description['official_keys'].items()}
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == official
    assert not model.decoder_pos_embed.requires_grad
    assert model.cross_attn_TextImage.in_proj_weight.grad is None and model.norm_3.weight.grad is None


# -- Plain loops

def small_model(tmp_path_factory, loss_names='sdm+mae', **changes):
    path = golden_archive(golden_json('sen_tiny'), tmp_path_factory.mktemp('sen') / 'clip.pt')
    torch.manual_seed(0)
    settings = dict(loss_names=loss_names, pretrain_choice=path, img_size=(96, 32), text_length=20, vocab_size=512,
                    cmt_depth=1, mask_ratio=0.7)
    return build_model(options(**{**settings, **changes}), 6)


def test_patchify_and_unpatchify():
    images = torch.randn(2, 3, 8, 12)
    patches = sen.patchify(images, 4)                                          # 2 x 3 patches of 4 x 4
    for row in range(2):
        for col in range(3):
            plain = [images[1, channel, 4 * row + y, 4 * col + x].item()
                     for y in range(4) for x in range(4) for channel in range(3)]
            assert patches[1, 3 * row + col].tolist() == plain
    assert torch.equal(sen.unpatchify(patches, 4, (2, 3)), images)


def test_position_embedding():
    table = sen.sincos_position_embedding((3, 2), 8)
    assert table.shape == (7, 8) and not table[0].any()
    for row in range(3):
        for col in range(2):
            plain = [f(position / 10000 ** (k / 2))
                     for position in (col, row) for f in (math.sin, math.cos) for k in range(2)]
            assert table[1 + 2 * row + col].tolist() == pytest.approx(plain, abs=1e-6)


def test_gray_has_three_equal_channels():
    image = torch.tensor([0.5, -1.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert sen.to_gray(image).shape == (1, 3, 2, 2)
    torch.testing.assert_close(sen.to_gray(image), torch.full((1, 3, 2, 2), 0.2989 * 0.5 - 0.5870 + 0.1140 * 2))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return small_model(tmp_path_factory).eval()


def test_which_patches_are_visible_and_which_are_scored(model):
    """Of 12 patches and the class token, 3 are visible at ratio 0.7. The next patch is hidden and not scored."""
    head = model.heads[1]
    noise = torch.rand(5, 13, generator=torch.Generator().manual_seed(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'rand', Noise(noise))
        order = head.sample_order(torch.zeros(5, 3, 96, 32))
    assert head.visible_count == 3
    for row, scored, noises in zip(order.tolist(), head.scored_patches(order).tolist(), noise.tolist()):
        by_noise = sorted(range(1, 13), key=lambda position: noises[position])
        assert row == [0, *by_noise]
        assert [position for position in range(1, 13) if scored[position - 1]] == sorted(by_noise[3:])


def test_hidden_patches_and_colors_have_no_influence(model):
    """Only the visible patches in gray reach the decoder."""
    head, images = model.heads[1], torch.randn(1, 3, 96, 32)
    order = head.sample_order(images)
    text = torch.randn(1, 20, model.embed_dim)

    def restored(image):
        with torch.no_grad():
            return head.restore(model.base_model, image, text, order)
    expected = restored(images)
    hidden = sen.unpatchify(torch.zeros(1, 12, 768).index_fill(1, order[0, 3:] - 1, 1.0), 16, (6, 2))
    torch.testing.assert_close(restored(images + 5 * hidden), expected)
    shift = torch.tensor([0.5870, -0.2989, 0.0]).view(1, 3, 1, 1)            # the same gray
    torch.testing.assert_close(restored(images + shift), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(restored(images * (1 - 0.5 * (1 - hidden))), expected, rtol=1e-3)
    with torch.no_grad():
        assert not torch.allclose(head.restore(model.base_model, images, text.flip(1) * 2, order), expected, rtol=1e-3)


def test_loss_is_the_mean_over_scored_patches():
    restored, target = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    scored = torch.tensor([[1., 0, 1, 0], [0, 1, 0, 0]])
    plain = [(restored[i, p] - target[i, p]).square().mean().item() for i, p in ((0, 0), (0, 2), (1, 1))]
    assert objectives.restoration(restored, target, scored).item() == pytest.approx(sum(plain) / 3, rel=1e-6)


def cosine(a, b):
    return float(a @ b / a.norm() / b.norm())


def plain_tri(image, text, pids, margin=0.05):
    total = 0.0
    for anchors, others in ((text, image), (image, text)):
        for i, anchor in enumerate(anchors):
            negatives = [cosine(anchor, others[j]) for j in range(len(pids)) if pids[j] != pids[i]]
            if negatives:
                total += max(0.0, (1 - cosine(anchor, others[i])) - (1 - max(negatives)) + margin) / len(pids)
    return total


@pytest.mark.parametrize('file, case', golden_cases('objectives*', 'tri'))
def test_tri_is_that_of_the_reference(file, case):
    vectors, _ = golden(file)
    image, text = (vectors[f'{case}/{side}'].clone().requires_grad_() for side in ('image', 'text'))
    loss = objectives.tri(image, text, vectors[f'{case}/pids'])
    loss.backward()
    assert close(loss.item(), vectors[f'{case}/tri'])
    for ours, side in ((image.grad, 'image'), (text.grad, 'text')):
        official = vectors[f'{case}/tri/grad_{side}']
        assert (ours - official).norm() <= RELATIVE * official.norm() + 1e-6


@pytest.mark.parametrize('pids', [[0, 1, 2, 3, 4], [3, 1, 3, 1, 3], [7, 7, 7, 7, 1]])
def test_tri_against_a_loop(pids):
    generator = torch.Generator().manual_seed(len(set(pids)))
    image, text = (torch.randn(5, 4, generator=generator) for _ in range(2))
    expected = plain_tri(image, text, pids)
    assert objectives.tri(image, text, torch.tensor(pids)).item() == pytest.approx(expected, rel=1e-5)


def test_tri_of_one_identity_is_0():
    image, text = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    loss = objectives.tri(image, text, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and not image.grad.any() and not text.grad.any()


# -- Options and errors

@pytest.mark.parametrize('ratio', ['0', '1', '1.2', '-0.3', 'nan'])
def test_mask_ratio_outside(ratio):
    with pytest.raises(UserError, match='--mask_ratio.*must be above 0 and below 1'):
        get_args(['--loss_names', 'sdm+mae', '--mask_ratio', ratio])


@pytest.mark.parametrize('ratio, tokens', [(0.99, 13), (0.01, 13), (1.5, 13), (float('nan'), 13)])
def test_mask_ratio_that_leaves_nothing(ratio, tokens):
    with pytest.raises(UserError, match='leaves nothing to see or nothing to restore of 12 patches'):
        sen.count_visible_tokens(tokens, ratio)


def test_mask_ratio_at_full_size():
    assert sen.count_visible_tokens(193, 0.7) == 57 and sen.count_visible_tokens(193, 0.8) == 38


@pytest.mark.parametrize('changes, message', [
    (dict(stride_size=12), '--stride_size to the patch size, 16, instead of 12'),
    (dict(img_size=(100, 32)), 'patch size, 16, and it is 100 32: give --img_size 96 32'),
])
def test_patches_must_tile(tmp_path_factory, changes, message):
    with pytest.raises(UserError, match=message):
        small_model(tmp_path_factory, **changes)
    small_model(tmp_path_factory, 'sdm+tri', **changes)


def test_a_resnet_has_no_patches():
    shape = dict(pretrain_choice='scratch:RN50', img_size=(64, 32), training=False)
    with pytest.raises(UserError, match="'mae' reads image tokens"):
        build_model(options(loss_names='sdm+mae', **shape), 3)
    build_model(options(loss_names='sdm+tri', **shape), 3)


def test_the_papers_command():
    args = get_args('--name sen --img_aug --batch_size 128 --need_MAE --mlm_loss_weight 1.0 --mae_loss_weight 10 '
                    '--tri_loss_weight 10 --mask_ratio 0.7 --lr 1e-5 --loss_names sdm+mae+id+tri --num_epoch 60 '
                    '--lrscheduler cosine'.split())
    assert (args.mask_ratio, args.mae_loss_weight, args.tri_loss_weight) == (0.7, 10, 10)
    assert get_args(['--loss_names', 'sdm+mae']).mask_ratio == 0.8


@pytest.mark.parametrize('dataset', ['CUHK-PEDES', 'ICFG-PEDES', 'RSTPReid'])
@pytest.mark.parametrize('size', ['', '-xl'])
def test_recipes(dataset, size):
    recipe = os.path.join(os.path.dirname(OWN), '..', 'configs', f'sen{size}.yaml')
    args = get_args(['--config_file', recipe, '--dataset_name', dataset])
    assert (args.batch_size, args.sampler, args.num_instance, args.seed) == (128, 'idrannum', 2, 42)
    assert (args.mae_loss_weight, args.tri_loss_weight, args.mask_ratio, args.temperature) == (10, 10, 0.7, 0.02)
    assert (args.caption_masking, args.mlm_masking, args.caption_filter) == ('inplace', 'noun', 0.2)
    assert (args.img_size, args.stride_size) == (((378, 126), 14) if size else ((384, 128), 16))
    assert args.pretrain_choice == ('ViT-L/14' if size else 'ViT-B/16')
    assert args.dataset_name == dataset
    sen.check_tiling(args.img_size, args.stride_size, args.stride_size)


# -- Checkpoints

@pytest.fixture(scope='module', params=golden_files('official_sen_*'))
def full_size(request):
    official = golden_json(request.param)
    args = options(loss_names=official['loss_names'], mask_ratio=0.7, training=False)
    return build_model(args, official['num_classes']), official


def test_full_size_state_dict_loads_both_ways(full_size):
    model, official = full_size
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in official['state_dict'].items()}
    published = {name: torch.full(shape, 0.5, dtype=getattr(torch, dtype))
                 for name, (shape, dtype) in official['state_dict'].items()}
    load_weights(model, published)
    assert all((value == 0.5).all() and value.dtype == torch.float32 for value in model.state_dict().values())


def test_learning_rates(full_size):
    model, official = full_size
    args = options(loss_names=official['loss_names'], **{name: official['settings'][name] for name in (
        'lr', 'lr_factor', 'bias_lr_factor', 'weight_decay', 'weight_decay_bias')})
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert set(learning) == set(official['optimizer_groups'])
    for name in learning:
        assert parameter_settings(name, args) == pytest.approx(tuple(official['optimizer_groups'][name])), name


def test_mlm_under_sens_names(tmp_path_factory):
    model = small_model(tmp_path_factory, 'sdm+mlm+mae+tri')
    weights = {name: torch.full_like(value, 0.25) for name, value in model.state_dict().items()}
    for ours in ('cross_attn', 'cross_modal_transformer'):
        weights = {name.replace(f'{ours}.', f'{ours}_mlm.', 1) if name.startswith(f'{ours}.') else name: value
                   for name, value in weights.items()}
    assert {'cross_attn_mlm.in_proj_weight', 'cross_modal_transformer_mlm.resblocks.0.ln_1.weight'} <= set(weights)
    load_weights(model, weights)
    assert all((value == 0.25).all() for value in model.state_dict().values())


def test_heads_by_name():
    assert parse_loss_names('mae+tri') == [sen.MAE, sen.Tri]
