"""The registry of heads, the hooks of a head, and training of each head."""
import pytest
import torch
from torch import nn

from model import build_model
from model.build import total_loss
from model.head_registry import head_classes, registry
from model.heads import Head
from model.loss_names import parse_loss_names
from tests.support import assert_falls, golden_archive, golden_json, options, small_batch, small_model
from utils.errors import UserError


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


ALL = sorted(set(registry()))


# Losses with a minimum above 0: aux is smallest if all experts are used evenly, and efa compares rows of length 1. They
# are trained together with another loss, and other tests check that they fall. tse and --ccd need a loss per pair.
POSITIVE_MINIMUM = ('aux', 'efa')
COMBINED = {'aux': 'sdm+aux', 'efa': 'sdm+efa', 'tse': 'tal+tse', 'rematch': 'tal+rematch'}


# moco learns from what it updates after each step; tests/model/test_moco.py trains it.
OVERFITTING = [name for name in ALL if name != 'moco']


@pytest.mark.parametrize('loss_names', [COMBINED.get(name, name) for name in OVERFITTING] + ['+'.join(OVERFITTING)])
def test_head_overfits_a_fixed_batch(archive, loss_names, monkeypatch):
    # The batch's negatives are fixed also: attribute draws them by the embeddings, which change.
    monkeypatch.setattr(torch, 'multinomial',
                        lambda weights, _: (torch.arange(len(weights))[:, None] + 1) % len(weights))
    model, batch = small_model(archive, loss_names, temperature=0.1, ccd='rematch' in loss_names), small_batch()
    # With a higher learning rate, rounding errors decide whether attribute converges in time.
    lr, steps = (3e-4, 150) if loss_names == 'attribute' else (1e-3, 60)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()

    def losses():
        for _ in range(steps):
            results = model(batch)
            loss = total_loss(results)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss - sum(results[f'{name}_loss'] for name in POSITIVE_MINIMUM if f'{name}_loss' in results)
    assert_falls(losses(), 0.05, offset=0.02)


def test_every_head_reports_a_loss_and_plain_scalars(archive):
    results = small_model(archive, '+'.join(ALL), ccd=True)(small_batch())
    assert all(value.ndim == 0 for value in results.values())
    for name in ALL:
        assert {'attribute': 'attr_loss'}.get(name, f'{name}_loss') in results


@pytest.mark.parametrize('names, message', [
    ('sdm+mml', "unknown loss 'mml'.*did you mean mlm"), ('sdm+sdm', 'named twice'),
    ('idd', "unknown loss 'idd'.*did you mean id"), ('sdm++id', "unknown loss ''"),
    ('TAL+sr0.3_tau0.015', "RDE's reference implementation.*: give --loss_names tal\\+tse --ccd"),
    ('id+InfoNCE', 'give --loss_names infonce'), ('fuse', 'never worked'), ('sdm+mim', 'never worked'),
    ('', "unknown loss ''")])
def test_wrong_loss_names(names, message):
    with pytest.raises(UserError, match=message):
        parse_loss_names(names)


def test_names_are_matched_whole():
    assert [head.names for head in parse_loss_names('id+sdm')] == [('id',), ('sdm',)]


# The longest captions have 8, 12 and 18 tokens.
@pytest.mark.parametrize('rows, width', [([2], 8), ([2, 5], 16), ([0, 1, 2, 3, 4, 5], 20)])
def test_trimming_padding_changes_nothing(archive, rows, width):
    batch = {name: values[rows] for name, values in small_batch().items()}
    model = small_model(archive, 'sdm+itc+id')
    short, longest = model.trim_padding(batch['caption_ids']), int((batch['caption_ids'] != 0).sum(dim=1).max())
    assert torch.equal(short, batch['caption_ids'][:, :width])
    expected, trimmed = model(batch), model({**batch, 'caption_ids': short[:, :longest]})
    for name in expected:
        torch.testing.assert_close(trimmed[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('loss_names, training, evaluation', [
    ('sdm+id', True, True), ('sdm+mlm', False, True), ('sdm+attribute', False, True), ('sdm+detail', False, True),
    ('sdm+mae', False, True), ('sdm+tri', True, True), ('sdm+aux', False, False)])
def test_padding_is_not_trimmed_if_a_head_reads_it(archive, loss_names, training, evaluation):
    model, ids = small_model(archive, loss_names), torch.zeros(2, 20, dtype=torch.long)
    ids[:, :3] = torch.tensor([510, 5, 511])
    assert (model.train().trim_padding(ids).shape[1] == 8) is training
    assert (model.eval().trim_padding(ids).shape[1] == 8) is evaluation


def test_encoded_has_tokens_only_if_a_head_needs_them(archive):
    encoded = small_model(archive, 'sdm').encode(small_batch())
    assert encoded.image_tokens is None and encoded.text_tokens is None
    assert small_model(archive, 'sdm+mae').encode(small_batch()).text_tokens.shape == (6, 20, 128)


def test_only_active_heads_have_parameters(archive):
    names = {name.split('.')[0] for name, _ in small_model(archive, 'sdm+itc').named_parameters()}
    assert names == {'base_model'}
    assert 'classifier' in {name.split('.')[0] for name, _ in small_model(archive, 'id').named_parameters()}


def test_masked_captions_need_a_second_text_pass_only_if_the_losses_read_unmasked_ones(archive):
    model, batch = small_model(archive, 'sdm+mlm').eval(), small_batch()
    passes = []
    model.base_model.transformer.register_forward_hook(lambda *_: passes.append(1))
    model(batch)
    assert len(passes) == 2
    passes.clear()
    in_place = {**batch, 'caption_ids': batch['mlm_ids']}
    del in_place['mlm_ids']
    once = model(in_place)
    assert len(passes) == 1
    twice = model({**batch, 'caption_ids': batch['mlm_ids']})
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_mlm_scores_only_masked_positions(archive):
    """The loss equals a plain cross-entropy over all positions that ignores label 0."""
    model, batch = small_model(archive, 'mlm').eval(), small_batch()
    encoded = model.encode(batch)
    head = model.heads[0]
    scores = head.mlm_head(head.cross(encoded.masked_text_tokens, encoded.image_tokens))    # [B, L, V]
    plain = nn.functional.cross_entropy(scores.flatten(0, 1), batch['mlm_labels'].flatten(), ignore_index=0)
    torch.testing.assert_close(head(encoded, batch)['mlm_loss'], plain)


def test_initial_deviations(archive):
    """IRRA: input projections D^-1/2, outputs to the residual stream (2 depth D)^-1/2, first layers (2D)^-1/2."""
    model = small_model(archive, 'mlm+id', cmt_depth=2)
    width = model.embed_dim
    block = model.cross_modal_transformer.resblocks[1]
    expected = {model.cross_attn.in_proj_weight: width ** -0.5, model.cross_attn.out_proj.weight: (4 * width) ** -0.5,
                block.attn.in_proj_weight: width ** -0.5, block.attn.out_proj.weight: (4 * width) ** -0.5,
                block.mlp.c_fc.weight: (2 * width) ** -0.5, block.mlp.c_proj.weight: (4 * width) ** -0.5,
                model.mlm_head.dense.weight: (2 * width) ** -0.5, model.mlm_head.fc.weight: (4 * width) ** -0.5,
                model.classifier.weight: 0.001}
    for weight, std in expected.items():
        assert weight.std().item() == pytest.approx(std, rel=0.08)
    assert model.classifier.bias.abs().max() == 0


def test_resnet_refuses_losses_on_tokens():
    shape = dict(pretrain_choice='scratch:RN50', img_size=(64, 32), training=False)
    with pytest.raises(UserError, match="'mlm' reads image tokens.*use a ViT"):
        build_model(options(loss_names='sdm+mlm', **shape), 3)
    model = build_model(options(loss_names='sdm+id', **shape), 3).eval()
    assert model.encode_image(torch.zeros(1, 3, 64, 32)).shape == (1, 1024)


@pytest.fixture
def new_head(monkeypatch):
    """A head as a user would add it."""
    class Margin(Head):
        names = ('margin',)
        needs = ('text_attention',)

        @staticmethod
        def add_options(parser):
            parser.add_argument('--margin_width', type=float, default=0.3)

        @staticmethod
        def learning_rate(name, lr, weight_decay, args):
            return (10 * lr, weight_decay) if name.startswith('margin_proj') else (lr, weight_decay)

        def __init__(self, args, model):
            super().__init__()
            self.margin_proj = nn.Linear(model.embed_dim, 4)
            self.margin_scale = nn.Parameter(torch.ones(()))

        def forward(self, encoded, batch):
            assert encoded.text_attention is not None and encoded.image_attention is None
            distance = (self.margin_proj(encoded.image) - self.margin_proj(encoded.text)).square().mean()
            return {'margin_loss': self.margin_scale * distance, 'distance': distance}

    monkeypatch.setitem(registry(), 'margin', Margin)
    return Margin


def test_a_new_head_needs_no_other_change(archive, new_head):
    from solver.build import parameter_settings
    assert new_head in head_classes()
    args = options(loss_names='sdm+margin')
    assert args.margin_width == 0.3
    model = small_model(archive, 'sdm+margin')
    assert {'margin_proj.weight', 'margin_scale'} <= set(model.state_dict())
    results = model(small_batch())
    assert total_loss(results) == results['sdm_loss'] + results['margin_loss'] and 'distance' in results
    assert parameter_settings('margin_proj.weight', args)[0] == pytest.approx(10 * args.lr)


def test_two_parts_with_one_name_are_an_error(archive, new_head):
    def clash(self, args, model):
        Head.__init__(self)
        self.classifier = nn.Linear(2, 2)
    new_head.__init__ = clash
    with pytest.raises(UserError, match='Margin.classifier: the model has another part with this name'):
        small_model(archive, 'id+margin')


def test_train_and_eval_set_the_mode_of_the_heads(archive):
    model = small_model(archive, 'sdm+mlm')
    assert not model.eval().heads[0].training and model.train().heads[0].training


def test_half_precision_stays_close(archive):
    exact, half = (small_model(archive, 'sdm+id+mlm', amp=amp).eval() for amp in ('off', 'bf16'))
    batch = small_batch()
    for reference, value in ((exact.encode_image(batch['images']), half.encode_image(batch['images'])),
                             (exact.encode_text(batch['caption_ids']), half.encode_text(batch['caption_ids']))):
        assert value.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(reference, value).min() > 0.999


def test_fp16_needs_a_gpu(archive):
    model = small_model(archive, 'sdm', amp='fp16')
    with pytest.raises(UserError, match='fp16 needs a GPU'):
        model(small_batch())
