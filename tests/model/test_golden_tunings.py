"""UP-Person and DM-Adapter against vectors of their reference implementations."""
import pytest
import torch

from model import objectives
from model.backbones.clip import Clip
from model.build import RetrievalModel, total_loss
from model.clip_model import CLIP, ClipShape
from solver.build import parameter_groups
from tests.support import golden_batch, golden_cases, golden_files, golden_json, golden_model, options

RELATIVE = 1e-5
FULL_SIZE = ClipShape(embed_dim=512, image_resolution=224, vision_layers=12, vision_width=768, vision_patch_size=16,
                      text_length=77, vocab_size=49408, text_width=512, text_layers=12)
DM_UNUSED = ('base_model.vision_param', 'base_model.co_vision_param', 'base_model.text_param', 'base_model.v2i_proj.')


def assert_close(value, reference, name):
    assert (value - reference).norm() <= RELATIVE * reference.norm(), name


def assert_gradients(model, vectors, prefix, absolute, unused=()):
    """Compare the norms of all gradients. ``absolute`` bounds the error of gradients that are sums that cancel."""
    names = {name[len(prefix):]: name for name in vectors if name.startswith(prefix)}
    official = {name: float(vectors[full_name]) for name, full_name in names.items()
                if '/' not in name and not name.startswith(unused)}
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert own.keys() == official.keys()
    for name, value in official.items():
        norm = 0.0 if own[name].grad is None else own[name].grad.double().norm().item()
        bound = absolute if own[name].dim() == 0 or 'task_gate' in name else 1e-9
        assert norm == pytest.approx(value, rel=RELATIVE, abs=bound), name


def outputs_of_blocks(model):
    """Collect ``{'image_block0': what leaves the block, ...}`` of later passes."""
    outputs = {}
    for side, blocks in model.backbone.tunable_blocks().items():
        for number, block in enumerate(blocks):
            block.register_forward_hook(lambda module, inputs, output, key=f'{side}_block{number}':
                                        outputs.__setitem__(key, output[0]))
    return outputs


def official_shapes(description, unused=()):
    return {name: shape for name, (shape, _) in description['official_keys'].items() if not name.startswith(unused)}


# ------------------------------------------------------------------------------------------------------------ UP-Person

@pytest.fixture(scope='module', params=golden_files('up_person_*'))
def up_person(request, tmp_path_factory):
    model, vectors, description = golden_model(request.param, tmp_path_factory.mktemp('clip'), tuning='up-person')
    outputs = outputs_of_blocks(model)
    encoded = model.encode(golden_batch(vectors))
    return model, vectors, description, outputs, encoded


def test_up_person_names_and_trainable_parameters(up_person):
    model, _, description, _, _ = up_person
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == official_shapes(description)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == set(description['trainable'])


def test_up_person_embeddings_tokens_and_blocks(up_person):
    model, vectors, _, outputs, encoded = up_person
    assert_close(encoded.image, vectors['out/image_embedding'], 'image')
    assert_close(encoded.text, vectors['out/text_embedding'], 'text')
    batch = golden_batch(vectors)
    assert_close(model.backbone.encode_image(batch['images'])[0], vectors['out/image_tokens'], 'image tokens')
    assert_close(model.backbone.encode_text(batch['caption_ids'])[0], vectors['out/text_tokens'], 'text tokens')
    expected = {name[len('out/'):]: value for name, value in vectors.items() if '_block' in name}
    assert expected.keys() == outputs.keys()
    for name, value in expected.items():
        assert_close(outputs[name], value, name)


def test_up_person_low_rank_updates(up_person):
    model, vectors, _, _, _ = up_person
    for side in ('image', 'text'):
        update = getattr(model.LORA_learner, f'lora_{side}')[0].update()
        assert_close(update, vectors[f'out/lora_{side}0'], side)


def test_up_person_attention_to_prefixes(up_person, monkeypatch):
    """The reference's prefix attention is that of the class token's and the end token's row, before scale_to_grad."""
    from model import clip_model
    model, vectors, _, _, _ = up_person
    maps = []
    weights = clip_model.attention_weights
    monkeypatch.setattr(clip_model, 'attention_weights', lambda *inputs: maps.append(weights(*inputs)) or maps[-1])
    batch = golden_batch(vectors)
    ends = batch['caption_ids'].argmax(dim=1)
    for side, encode, inputs in (('image', model.backbone.encode_image, batch['images']),
                                 ('text', model.backbone.encode_text, batch['caption_ids'])):
        # With a map, attention computes the weights of all places explicitly.
        hooks = [block.attn.register_forward_pre_hook(with_map, with_kwargs=True)
                 for block in model.backbone.tunable_blocks()[side]]
        encode(inputs)
        for hook in hooks:
            hook.remove()
        for number in range(len(maps)):
            prefix = maps[number][..., :len(model.vit_prefix_learner.vit_prefix[0].key.tokens)]     # [B, H, L, P]
            rows = prefix[:, :, 0] if side == 'image' else prefix[torch.arange(len(ends)), :, ends]
            assert_close(rows, vectors[f'out/{side}_prefix_attention{number}'], f'{side} {number}')
        maps.clear()


def with_map(module, inputs, settings):
    return inputs, {**settings, 'need_map': True}


@pytest.mark.parametrize('loss', ['sdm', 'itc', 'cmpm'])
def test_up_person_losses_and_gradients(up_person, loss):
    model, vectors, _, _, _ = up_person
    batch = golden_batch(vectors)
    model.zero_grad()
    encoded = model.encode(batch)
    settings = {} if loss == 'cmpm' else {'scale': 50}
    inputs = (encoded.image, encoded.text) if loss == 'itc' else (encoded.image, encoded.text, batch['pids'])
    value = getattr(objectives, loss)(*inputs, **settings)
    assert value.item() == pytest.approx(float(vectors[f'out/{loss}_loss']), rel=RELATIVE)
    value.backward()
    assert_gradients(model, vectors, 'grad/' if loss == 'sdm' else f'grad/{loss}/', absolute=3e-6)


@pytest.mark.parametrize('name, case', golden_cases('up_person_*', 'image_embedding'))
def test_up_person_depths(name, case, tmp_path):
    case = case.removeprefix('out/')
    depths = golden_json(name)['cases']['full' if case == 'out' else case]
    model, vectors, _ = golden_model(name, tmp_path, tuning='up-person', **depths)
    prefix = '' if case == 'out' else f'{case}/'
    results = model(golden_batch(vectors))
    total_loss(results).backward()
    encoded = model.encode(golden_batch(vectors))
    assert_close(encoded.image, vectors[f'out/{prefix}image_embedding'], 'image')
    assert_close(encoded.text, vectors[f'out/{prefix}text_embedding'], 'text')
    assert results['sdm_loss'].item() == pytest.approx(float(vectors[f'out/{prefix}sdm_loss']), rel=RELATIVE)
    if prefix:
        assert_gradients(model, vectors, f'grad/{prefix}', absolute=3e-6)


# ----------------------------------------------------------------------------------------------------------- DM-Adapter

@pytest.fixture(scope='module', params=golden_files('dm_adapter_*'))
def dm_adapter(request, tmp_path_factory):
    model, vectors, description = golden_model(request.param, tmp_path_factory.mktemp('clip'), tuning='dm-adapter')
    outputs, gates = outputs_of_blocks(model), {}
    for side, blocks in model.backbone.tunable_blocks().items():
        for number, block in enumerate(blocks):
            block.feed_forward.register_forward_hook(lambda module, inputs, output, key=f'{side}{number}':
                                                     gates.__setitem__(key, output[1:]))
    encoded = model.encode(golden_batch(vectors))
    return model, vectors, description, outputs, dict(gates), encoded      # later passes change ``outputs``


def test_dm_adapter_names_and_trainable_parameters(dm_adapter):
    model, _, description, *_ = dm_adapter
    own = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert own == official_shapes(description, DM_UNUSED)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == set(description['trainable']) - set(description['unused'])


def test_dm_adapter_embeddings_tokens_and_blocks(dm_adapter):
    model, vectors, _, outputs, _, encoded = dm_adapter
    assert_close(encoded.image, vectors['out/image_embedding'], 'image')
    assert_close(encoded.text, vectors['out/text_embedding'], 'text')
    batch = golden_batch(vectors)
    assert_close(model.backbone.encode_image(batch['images'])[0], vectors['out/image_tokens'], 'image tokens')
    assert_close(model.backbone.encode_text(batch['caption_ids'])[0], vectors['out/text_tokens'], 'text tokens')
    expected = {name[len('out/'):]: value for name, value in vectors.items() if '_block' in name}
    assert expected.keys() == outputs.keys()
    for name, value in expected.items():
        assert_close(outputs[name], value, name)


def test_dm_adapter_routing(dm_adapter):
    _, vectors, _, _, gates, encoded = dm_adapter
    assert {f'out/{key[:-1]}_gate{key[-1]}' for key in gates} == {name for name in vectors if '_gate' in name
                                                                 and name.startswith('out/')}
    for key, (logits, selected) in gates.items():
        side, number = key[:-1], key[-1]
        assert_close(logits, vectors[f'out/{side}_gate{number}'], key)
        official = torch.zeros_like(selected).scatter(-1, vectors[f'out/{side}_selected{number}'], 1.0)
        assert torch.equal(selected, official), key
        probability, selection = getattr(encoded, f'{side}_routing')[:, int(number)].mean(dim=0)
        aux = (probability * selection).sum().item()
        assert aux == pytest.approx(float(vectors[f'out/{side}_aux{number}']), rel=RELATIVE), key


@pytest.mark.parametrize('losses', ['sdm+aux', 'sdm', 'aux'])
def test_dm_adapter_losses_and_gradients(dm_adapter, losses):
    model, vectors, *_ = dm_adapter
    model.zero_grad()
    results = model(golden_batch(vectors))
    values = [results[f'{loss}_loss'] for loss in losses.split('+')]
    for loss, value in zip(losses.split('+'), values):
        assert value.item() == pytest.approx(float(vectors[f'out/{loss}_loss']), rel=RELATIVE)
    sum(values).backward()
    prefix = {'sdm+aux': 'grad/', 'sdm': 'grad/sdm/', 'aux': 'grad/aux/'}[losses]
    assert_gradients(model, vectors, prefix, absolute=1e-7, unused=DM_UNUSED)


# ------------------------------------------------------------------------------------------------------------ full size

@pytest.mark.parametrize('file', golden_files('official_up_person_*') + golden_files('official_dm_adapter_*'))
def test_full_size_parameters_and_learning_rates(file):
    official = golden_json(file)
    known, unused = vars(options()), DM_UNUSED if 'dm_adapter' in file else ()
    settings = {name: value for name, value in official['settings'].items() if name in known}
    tuning = 'dm-adapter' if 'dm_adapter' in file else 'up-person'
    args = options(**settings, tuning=tuning, img_size=(384, 128), pretrain_choice='scratch:ViT-B/16')
    with torch.device('meta'):
        model = RetrievalModel(args, 0, Clip(CLIP(FULL_SIZE, args.img_size, 16, 77)))
    expected = {name: shape for name, (shape, _) in official['state_dict'].items() if not name.startswith(unused)}
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {names[id(parameter)]: [group['lr'], group['weight_decay']]
              for group in parameter_groups(args, model) for parameter in group['params']}
    expected = {name: value for name, value in official['lr_and_decay'].items() if not name.startswith(unused)}
    assert groups.keys() == expected.keys()
    for name, value in expected.items():
        assert groups[name] == pytest.approx(value, rel=1e-12), name
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == official['num_trainable'] - official['by_part'].get('unused', 0)
