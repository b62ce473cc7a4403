"""ALBEF's encoders and the losses of RaSa and MARS against vectors of the reference implementation."""
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from model import objectives
from model.backbones.albef import Albef, AlbefShape
from model.build import RetrievalModel, total_loss
from model.heads import HasTrainingOnlyParts, rasa
from processor.reranker import Reranker
from tests.support import golden, golden_files, golden_weight, options
from utils.reranking import score_candidates

RELATIVE = 1e-5
KEY_BIAS = 1e-7     # gradients of the biases of keys are 0 but for rounding
BUFFERS = 'image_queue', 'text_queue', 'idx_queue', 'queue_ptr'
FIELDS = {'second_images': 'images2', 'caption_ids': 'ids2', 'own_caption_ids': 'ids1', 'replaced': 'replace',
          'attributes_mask': 'attribute_masks', 'own_mlm_ids': 'mlm_ids', 'own_mlm_labels': 'mlm_labels',
          'own_mrtd_ids': 'mrtd_masked_ids', 'images': 'images', 'pids': 'pids'}


def reference_model(description):
    """Build the reference's model with its weights, as a model of ours."""
    config, settings = description['config'], description['settings']
    weights = {f'{name}_loss_weight': weight for name, weight in description['loss_weights'].items()}
    weights['attribute_weight'] = weights.pop('attribute_loss_weight')
    size = (config['image_res'], config['image_res'])
    args = options(backbone='albef', loss_names='+'.join(description['loss_weights']), img_size=size, amp='off',
                   start_temperature=settings['temp'], moco_queue=settings['queue_size'],
                   moco_momentum=settings['momentum'], mask_ratio=settings['mask_ratio'],
                   softlabel_ratio=config['alpha'], **weights)
    shape = AlbefShape(config['patch'], config['vision_width'], config['vision_layers'], config['vision_heads'],
                       config['vocab_size'], config['text_width'], config['text_layers'], config['fusion_layer'],
                       config['text_heads'], config['mlp_width'], config['positions'], config['embed_dim'],
                       config['decoder_layers'], config['decoder_heads'], config['decoder_positions'])
    model = RetrievalModel(args, 1, Albef(shape, size, config['full_ca']))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and name != 'temp' and name not in BUFFERS:
                value.copy_(golden_weight(name, tuple(value.shape)))
    return model.eval()


@pytest.fixture(scope='module', params=golden_files('mars_*'))
def reference(request):
    vectors, description = golden(request.param)
    return reference_model(description), vectors, description


@pytest.fixture
def batch(reference):
    return {name: reference[1][f'in/{key}'].long() if name == 'attributes_mask' else reference[1][f'in/{key}']
            for name, key in FIELDS.items()}


@pytest.fixture
def trained(reference, batch, monkeypatch):
    """The model before its step: the reference's momentum weights, queues and draws."""
    model, vectors, description = reference
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if '_m.' in name and value.is_floating_point():
                value.copy_(golden_weight(name, tuple(value.shape)))
            elif name in BUFFERS:
                value.copy_(vectors[f'in/{name}'])
    negatives = iter([vectors['in/image_negative'], vectors['in/text_negative']])
    monkeypatch.setattr(torch, 'multinomial', lambda *_: next(negatives)[:, None])
    monkeypatch.setattr(rasa, 'draw_tokens', lambda *_: vectors['in/mrtd_drawn'])
    noise = vectors['in/mae_noise']
    monkeypatch.setattr(torch, 'rand', lambda size, **_: noise if size == tuple(noise.shape) else torch.zeros(size))
    for part in model.parts_with(HasTrainingOnlyParts):
        part.before_forward(model)
    model.zero_grad()
    return model


def close(value, expected, bound=RELATIVE):
    value = value.detach()
    assert value.shape == expected.shape
    assert (value - expected).abs().max() <= bound * expected.abs().max(), (value, expected)


def test_state_dict_has_the_official_names_shapes_and_types(reference):
    model, _, description = reference
    entries = {name: [list(value.shape), str(value.dtype).removeprefix('torch.')]
               for name, value in model.state_dict().items()}
    assert entries == description['official_keys']


def test_losses_queues_and_momentum_encoder(trained, batch, reference):
    _, vectors, description = reference
    results = trained(batch)
    for name, weight in description['loss_weights'].items():
        close(results[f'{name}_loss'] / weight, vectors[f'out/{name}_loss'])
    close(total_loss(results), vectors['out/total'])
    close(trained.text_encoder_m.bert.embeddings.word_embeddings.weight.double().norm().float(),
          vectors['out/momentum_word_embeddings'])
    close(trained.visual_encoder_m.patch_embed.proj.weight.double().norm().float(), vectors['out/momentum_patch_embed'])
    for part in trained.parts_with(HasTrainingOnlyParts):
        part.after_step(trained)
    for name in BUFFERS:
        close(trained.state_dict()[name], vectors[f'out/{name}'])


@pytest.mark.parametrize('loss', ['', 'cl', 'mae', 'attribute'])
def test_gradients(trained, batch, reference, loss):
    _, vectors, description = reference
    results = trained(batch)
    (results[f'{loss}_loss'] / description['loss_weights'][loss] if loss else total_loss(results)).backward()
    prefix = f'grad/{loss}/' if loss else 'grad/'
    norms = {name.removeprefix(prefix): norm for name, norm in vectors.items() if name.startswith(prefix)
             and (loss or name.split('/')[1] not in ('cl', 'mae', 'attribute'))}
    parameters = dict(trained.named_parameters())
    gradients = {name: value.grad.double().norm().float() for name, value in parameters.items()
                 if value.grad is not None and value.grad.any()}
    assert norms and set(norms) <= set(gradients)
    for name, gradient in gradients.items():
        if name.endswith('self.key.bias'):
            assert gradient < KEY_BIAS and norms.get(name, torch.zeros(())) < KEY_BIAS
        else:
            close(gradient, norms[name])


def test_embeddings_and_logits(trained, batch, reference, monkeypatch):
    _, vectors, _ = reference
    heads, size = {head.names[0]: head for head in trained.heads}, len(batch['pids'])
    probabilities, drawn_from = objectives.negative_probabilities, []
    monkeypatch.setattr(objectives, 'negative_probabilities', lambda *inputs: drawn_from.append(probabilities(*inputs)))
    with torch.no_grad():
        encoded = trained.encode(batch)
        momentum = heads['pitm'].momentum.backbone
        tokens, matches, _ = rasa.read_pairs_and_negatives(heads['pitm'], encoded, batch)
        close(encoded.image, vectors['out/image_feat'])
        close(encoded.text, vectors['out/text_feat'])
        close(momentum.image_embedding(momentum.encode_image(batch['second_images'])[0]), vectors['out/image_feat_m'])
        close(momentum.text_embedding(momentum.encode_text(batch['caption_ids'])[0], None), vectors['out/text_feat_m'])
        close(heads['pitm'].matching(tokens[:, 0]), vectors['out/itm_logits'])
        assert matches.tolist() == [1] * size + [0] * 2 * size
        close(heads['prd'].prd_head(tokens[:size, 0]), vectors['out/prd_logits'])
    for weights, name in zip(drawn_from, ('weights_t2i', 'weights_i2t'), strict=True):
        close(weights, vectors[f'out/{name}'] / vectors[f'out/{name}'].sum(dim=1, keepdim=True))


def test_restored_patches_and_detected_tokens(trained, batch, reference):
    _, vectors, _ = reference
    recorded = {}
    for name in ('decoder_pred', 'mrtd_head'):
        getattr(trained, name).register_forward_hook(lambda _, __, out, name=name: recorded.update({name: out}))
    trained(batch)
    close(recorded['decoder_pred'], vectors['out/mae_pred'])
    close(recorded['mrtd_head'].flatten(0, 1), vectors['out/mrtd_logits'])


def test_reranked_scores(reference):
    """The matching head alone scores the most similar images of each caption; all others have -100."""
    model, vectors, description = reference
    ids, images = vectors['out/rerank/ids'], vectors['in/images']
    with torch.no_grad():
        image, text = model.encode_image(images), model.encode_text(ids)
    close(F.normalize(image, dim=1), vectors['out/rerank/image_embedding'])
    close(F.normalize(text, dim=1), vectors['out/rerank/text_embedding'])
    cosine = objectives.cosine_similarity(text, image)
    close(cosine, vectors['out/rerank/similarity'])
    reranker = Reranker(model, *(DataLoader(list(zip(range(len(side)), side)), 4) for side in (images, ids)))
    best, scores = score_candidates([cosine], description['config']['k_test'], len(images), reranker.score_pairs,
                                    progress=False)
    close(torch.full_like(cosine, -100.0).scatter(1, best, scores), vectors['out/rerank/score_t2i'])
