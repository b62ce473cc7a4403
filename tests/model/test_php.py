"""PHP against vectors of the reference implementation, and against plain loops."""
import pytest
import torch
import torch.nn.functional as F

from model import build_model, objectives
from model.build import total_loss
from model.heads.php import ExpertMixture, ExpertTransformer, SlotParser
from solver.build import parameter_settings
from tests.support import golden_archive, golden_batch, golden_files, golden_json, golden_model, options
from utils.checkpoint import load_weights
from utils.errors import UserError
from utils.options import get_args

RELATIVE = 1e-5


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('php')


@pytest.fixture(params=golden_files('php_*'))
def reference(request, folder):
    def build(**changes):
        return golden_model(request.param, folder, itc_loss_weight=5.0, **{'php_attention': 'batch', **changes})
    return build


def small_model(folder, loss_names='sdm+itc+aux', **changes):
    """A tiny model with random weights."""
    torch.manual_seed(0)
    archive = golden_archive(golden_json('irra_tiny'), folder / 'small.pt')
    settings = dict(loss_names=loss_names, pretrain_choice=archive, img_size=(96, 32), text_length=20, num_experts=4,
                    topk=2, moe_layers=2, moe_heads=2, cnum=5)
    return build_model(options(**{**settings, **changes}), 6).eval()


def embeddings(model, batch):
    with torch.no_grad():
        return model.encode_image(batch['images']), model.encode_text(batch['caption_ids'])


def assert_embeddings(ours, vectors, prefix='', suffix=''):
    for side, value in zip(('image', 'text'), ours):
        official = vectors[f'out/{prefix}{side}_embedding{suffix}']
        assert value.dtype == torch.float32
        assert (value - official).norm() <= RELATIVE * official.norm()


# -- Vectors of the reference implementation

def test_state_dict_has_the_official_names_and_shapes(reference):
    model, _, description = reference()
    official = {name: shape for name, (shape, _) in description['official_keys'].items()}
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == official


@pytest.mark.parametrize('attention, prefix', [('batch', ''), ('slots', 'slot_attention/')])
def test_embeddings_and_losses(reference, attention, prefix):
    model, vectors, _ = reference(php_attention=attention)
    batch = golden_batch(vectors)
    assert_embeddings(embeddings(model, batch), vectors, prefix)
    results = model(batch)
    for name in ('aux_loss', 'itc_loss', 'sdm_loss', 'id_loss', 'img_acc', 'txt_acc', 'temperature'):
        assert results[name].item() == pytest.approx(float(vectors[f'out/{prefix}{name}']), rel=RELATIVE), name


def test_batches_of_one(reference):
    model, vectors, _ = reference()
    batch = golden_batch(vectors)
    singles = [embeddings(model, {name: value[i:i + 1] for name, value in batch.items()})
               for i in range(len(batch['pids']))]
    assert_embeddings([torch.cat(side) for side in zip(*singles)], vectors, 'one_by_one/')


@pytest.mark.parametrize('parts, suffix', [
    ('base', '_base'), ('crfm', '_safl'), ('efp', '_efp'), ('crfm+efp', ''), (None, '')])
def test_parts(reference, parts, suffix):
    model, vectors, _ = reference(php_parts=parts)
    assert_embeddings(embeddings(model, golden_batch(vectors)), vectors, suffix=suffix)
    assert hasattr(model, 'safl') is (suffix in ('', '_safl'))
    assert hasattr(model, 'shared_transformer') is (suffix in ('', '_efp'))


def test_gradients(reference):
    model, vectors, description = reference()
    total = total_loss(model(golden_batch(vectors)))
    assert total.item() == pytest.approx(float(vectors['out/total']), rel=RELATIVE)
    total.backward()
    official = {name[len('grad/'):]: float(value) for name, value in vectors.items() if name.startswith('grad/')}
    parameters = dict(model.named_parameters())
    last_block = f"shared_transformer.resblocks.{description['args']['moe_layers'] - 1}."
    assert {'safl.part_tokens', f'{last_block}feed_forward.experts.0.down.weight'} <= set(official)
    for name, value in official.items():
        assert float(parameters[name].grad.norm()) == pytest.approx(value, rel=RELATIVE, abs=1e-7), name
    assert parameters['safl.pos_embeding'].grad is None


@pytest.mark.parametrize('name', golden_files('official_php_*'))
def test_full_size_names_and_learning_rates(name):
    """A published checkpoint loads strictly, and each parameter has the published learning rate."""
    official = golden_json(name)
    known = vars(options())
    settings = {name: value for name, value in official['settings'].items() if name in known}
    args = options(**{**settings, 'training': False})
    model = build_model(args, official['num_classes'])
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == \
        {name: shape for name, (shape, _) in official['state_dict'].items()}
    published = {name: torch.full(shape, 0.5, dtype=getattr(torch, dtype))
                 for name, (shape, dtype) in official['state_dict'].items()}
    load_weights(model, published)
    assert all((value == 0.5).all() and value.dtype == torch.float32 for value in model.state_dict().values())
    for parameter, (lr, weight_decay) in official['optimizer_groups'].items():
        assert parameter_settings(parameter, args) == pytest.approx((lr, weight_decay)), parameter


def test_learning_rates_of_experts_gates_and_the_rest():
    args = options(lr=1.0, loss_names='aux', moe_lr_factor=10.0, transformer_lr_factor=3.0, bias_lr_factor=2.0)
    block = 'shared_transformer.resblocks.0.'
    rates = {name: parameter_settings(block + name, args)[0] for name in (
        'feed_forward.experts.0.up.weight', 'feed_forward.experts.0.norm.weight', 'feed_forward.task_gate.weight',
        'feed_forward.alpha', 'attn.in_proj_weight', 'comb_param', 'feed_forward.experts.0.up.bias')}
    assert list(rates.values()) == [10.0, 10.0, 10.0, 3.0, 3.0, 3.0, 2.0]


def test_counters_of_later_checkpoints_are_dropped(folder, caplog):
    model = small_model(folder)
    block = 'shared_transformer.resblocks.0.feed_forward.'
    counters = {block + name: torch.zeros(4) for name in ('expert_count_accum', 'token_count_accum')}
    with caplog.at_level('INFO', logger='Pedestal.checkpoint'):
        load_weights(model, {**model.state_dict(), **counters})
    assert 'expert_count_accum' in caplog.text and 'token_count_accum' in caplog.text
    with pytest.raises(UserError, match='no place in the model'):
        load_weights(model, {**model.state_dict(), 'shared_transformer.resblocks.9.ln_1.weight': torch.zeros(128)})


# -- Plain loops

def random_mixture(width=16, experts=5, topk=2):
    torch.manual_seed(1)
    mixture = ExpertMixture(width, experts, topk, reduction=4)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixture


def test_mixture_equals_expert_after_expert():
    mixture, x, comb = random_mixture().eval(), torch.randn(3, 4, 16), torch.randn(16)
    out, logits, selected = mixture(x, comb)
    for sample in range(3):
        for slot in range(4):
            token = x[sample, slot]
            gate = (1 - mixture.alpha) * mixture.input_gate(token) + mixture.alpha * mixture.task_gate(comb)
            best = gate.argsort(descending=True)[:2]
            expected = 0
            for weight, number in zip(gate[best].softmax(0), best.tolist()):
                expert = mixture.experts[number]
                expected = expected + weight * (token + expert.up(F.gelu(expert.down(expert.norm(token)))))
            torch.testing.assert_close(out[sample, slot], expected, rtol=1e-5, atol=1e-5)
            assert set(selected[sample, slot].nonzero().flatten().tolist()) == set(best.tolist())
            torch.testing.assert_close(logits[sample, slot], gate)


def test_only_the_selected_experts_get_gradients():
    mixture = random_mixture(topk=1).eval()
    out, _, selected = mixture(torch.randn(1, 1, 16), torch.randn(16))
    out.sum().backward()
    has_grad = [bool(expert.down.weight.grad.abs().sum()) for expert in mixture.experts]
    assert has_grad == selected.flatten().bool().tolist()


def test_experts_drop_out_in_training_only():
    mixture, x, comb = random_mixture(), torch.randn(2, 3, 16), torch.randn(16)
    assert torch.equal(mixture.eval()(x, comb)[0], mixture(x, comb)[0])
    assert not torch.equal(mixture.train()(x, comb)[0], mixture(x, comb)[0])
    nonzero = (mixture.dropout(torch.ones(200, 200)) > 0).float().mean()
    assert nonzero == pytest.approx(0.9, abs=0.01)


def test_load_balance():
    logits = torch.randn(2, 3, 4)
    selection = torch.zeros(2, 3, 4).scatter(-1, logits.topk(2).indices, 1.0)
    expected = 0
    for expert in range(4):
        probability = sum(logits[i, j].softmax(0)[expert] for i in range(2) for j in range(3)) / 6
        expected += probability * sum(selection[i, j, expert] for i in range(2) for j in range(3)) / 6
    torch.testing.assert_close(objectives.load_balance(logits, selection), expected)
    even = objectives.load_balance(torch.zeros(8, 4), torch.tensor([[1., 1, 0, 0], [0, 0, 1, 1]]).repeat(4, 1))
    assert float(even) == pytest.approx(0.5)


def test_slot_parser_equals_its_formula():
    parser, tokens = SlotParser(16, 3).eval(), torch.randn(2, 7, 16)
    attention = torch.softmax(torch.einsum('sd,bnd->bsn', parser.part_tokens, tokens), dim=-1)
    slots = torch.einsum('bsn,bnd->bsd', attention, tokens) / 16 ** 0.5
    norm, up, down = parser.feed[0], parser.feed[1], parser.feed[4]
    torch.testing.assert_close(parser(tokens), down(F.gelu(up(norm(slots)))))


def test_initial_values():
    transformer = ExpertTransformer(1, width=128, heads=2, num_experts=3, topk=2, reduction=4, across_batch=False)
    block, = transformer.resblocks
    for expert in block.feed_forward.experts:
        assert not expert.up.weight.any() and not expert.up.bias.any() and not expert.down.bias.any()
        assert expert.down.weight.abs().max() <= 128 ** -0.5     # kaiming uniform with a = sqrt(5)
    assert block.feed_forward.alpha == 0.5
    assert block.comb_param.std().item() == pytest.approx(1, abs=0.2)
    assert SlotParser(256, 9).part_tokens.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.1)


# -- The model

def random_batch(size=6):
    generator = torch.Generator().manual_seed(3)
    captions = torch.randint(1, 500, (size, 20), generator=generator)
    captions[:, 0], captions[:, 12], captions[:, 13:] = 510, 511, 0
    return {'images': torch.randn(size, 3, 96, 32, generator=generator), 'caption_ids': captions,
            'pids': torch.arange(size), 'image_ids': torch.arange(size)}


def test_all_losses_read_the_embeddings_of_evaluation(folder):
    model, batch = small_model(folder), random_batch()
    encoded = model.encode(batch)
    for ours, other in zip(embeddings(model, batch), (encoded.image, encoded.text)):
        torch.testing.assert_close(ours, other)
    plain = small_model(folder, 'sdm')
    load_weights(plain, {name: value for name, value in model.state_dict().items() if name in plain.state_dict()})
    assert not torch.allclose(embeddings(plain, batch)[0], encoded.image, atol=1e-2)
    expected = objectives.sdm(encoded.image, encoded.text, batch['pids'], scale=50.0)
    torch.testing.assert_close(model(batch)['sdm_loss'], expected)


@pytest.mark.parametrize('loss_names, parts, losses, modules', [
    ('sdm+aux', None, {'sdm_loss', 'aux_loss'}, 2), ('sdm+itc', 'crfm+efp', {'sdm_loss', 'itc_loss'}, 2),
    ('sdm', None, {'sdm_loss'}, 0), ('sdm', 'base', {'sdm_loss'}, 0),
    ('sdm+aux', 'crfm', {'sdm_loss', 'aux_loss'}, 1), ('aux+sdm', 'base', {'sdm_loss', 'aux_loss'}, 0)])
def test_when_php_is_active(folder, loss_names, parts, losses, modules):
    model = small_model(folder, loss_names, php_parts=parts)
    results = model(random_batch())
    assert {name for name in results if name.endswith('_loss')} == losses
    assert hasattr(model, 'safl') + hasattr(model, 'shared_transformer') == modules
    if 'aux_loss' in losses and modules < 2:
        assert results['aux_loss'] == 0


@pytest.mark.parametrize('attention, same', [('slots', True), ('batch', False)])
def test_embeddings_depend_on_the_batch_only_with_attention_across_it(folder, attention, same):
    model, batch = small_model(folder, php_attention=attention), random_batch()
    in_batch = embeddings(model, batch)
    single = embeddings(model, {name: value[:1] for name, value in batch.items()})
    for side in (0, 1):
        assert torch.allclose(in_batch[side][:1], single[side], rtol=1e-4, atol=1e-5) is same


def test_half_precision_stays_close(folder):
    batch = random_batch()
    for exact, half in zip(*(embeddings(small_model(folder, amp=amp), batch) for amp in ('off', 'bf16'))):
        assert half.dtype == torch.float32
        assert F.cosine_similarity(exact, half).min() > 0.999


def test_half_precision_trains(folder):
    model = small_model(folder, amp='bf16').train()
    total_loss(model(random_batch())).backward()
    assert all(p.grad.isfinite().all() for name, p in model.named_parameters() if p.grad is not None)
    assert model.safl.part_tokens.grad.any()
    assert model.shared_transformer.resblocks[0].feed_forward.input_gate.weight.grad.any()


# -- Options

def test_defaults():
    args = get_args(['--loss_names', 'sdm+itc+aux'])
    assert (args.php_parts, args.php_attention) == ('crfm+efp', 'slots')
    assert (args.num_experts, args.topk, args.reduction) == (6, 2, 8)
    assert (args.moe_layers, args.moe_heads, args.aux_factor, args.cnum) == (6, 8, 0.5, 9)
    assert (args.moe_lr_factor, args.transformer_lr_factor) == (10.0, 2.0)
    without = get_args(['--loss_names', 'sdm'])
    assert without.php_parts is None and without.php_attention is None
    notes = get_args(['--loss_names', 'sdm', '--php_parts', 'base']).config.notes
    assert not [note for note in notes if 'no active head' in note]
    assert 'num_experts' in get_args(['--loss_names', 'sdm', '--num_experts', '4']).config.notes[0]


@pytest.mark.parametrize('argv, message', [
    (['--loss_names', 'sdm+aux', '--topk', '7'], '--topk 7 .*--num_experts 6'),
    (['--loss_names', 'sdm', '--php_attention', 'batch'], '--php_attention batch needs PHP.*--php_parts'),
    (['--loss_names', 'sdm', '--php_parts', 'safl'], 'invalid choice'),
    (['--loss_names', 'aux', '--cnum', '0'], 'above 0')])
def test_wrong_options(argv, message):
    with pytest.raises(UserError, match=message):
        get_args(argv)


@pytest.mark.parametrize('changes, message', [
    (dict(moe_heads=3), '--moe_heads 3 does not divide.*128'),
    (dict(reduction=7), '--reduction 7 does not divide.*128'),
    (dict(pretrain_choice='scratch:RN50', training=False, img_size=(64, 32)), 'PHP.*ResNet.*give a ViT')])
def test_incompatible_options(folder, changes, message):
    with pytest.raises(UserError, match=message):
        small_model(folder, **changes)


@pytest.mark.parametrize('dataset, aux_factor', [('CUHK-PEDES', 3.0), ('ICFG-PEDES', 0.5), ('RSTPReid', 0.5)])
def test_recipes(dataset, aux_factor):
    ending = '' if dataset == 'CUHK-PEDES' else f'-{dataset.lower()}'
    recipe = ['--config_file', f'configs/php{ending}.yaml']
    args = get_args(recipe)
    assert (args.dataset_name, args.loss_names) == (dataset, 'sdm+itc+aux')
    assert (args.php_parts, args.php_attention) == ('crfm+efp', 'slots')
    assert (args.num_experts, args.topk, args.reduction) == (4, 2, 8)
    assert (args.moe_layers, args.moe_heads, args.cnum) == (4, 8, 9)
    assert (args.lr, args.transformer_lr_factor, args.moe_lr_factor, args.itc_loss_weight) == (3e-6, 1.0, 2.0, 5.0)
    assert (args.batch_size, args.test_batch_size) == (64, 64)
    assert (args.aux_factor, args.caption_masking) == (aux_factor, 'clean')
    assert args.config.notes == ()
    assert get_args([*recipe, '--loss_names', 'sdm+itc']).php_parts == 'crfm+efp'
