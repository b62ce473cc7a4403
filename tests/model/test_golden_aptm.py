"""APTM's encoders and losses against vectors of the reference implementation."""
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from model import objectives
from model.backbones.aptm import Aptm, AptmShape
from model.bert import BertShape, TextEncoder
from model.build import RetrievalModel, total_loss
from model.swin import SwinTransformer
from processor.reranker import Reranker
from tests.support import golden, golden_files, golden_weight, options
from utils.reranking import global_bounds, combine_scores, score_candidates

RELATIVE = 1e-5
EDA, ATTRIBUTES, SMOOTHING = 0.8, 3, 0.4


class ReferenceModel(nn.Module):
    """Our parts under the parameter names of the reference implementation."""

    def __init__(self, description):
        super().__init__()
        vision, text, config = description['vision'], description['text'], description['config']
        patch = description['official_keys']['vision_encoder.patch_embed.proj.weight'][0][-1]
        self.vision_encoder = SwinTransformer((vision['h'], vision['w']), patch, vision['embed_dim'], vision['depths'],
                                              vision['num_heads'], vision['window_size'])
        width = text['hidden_size']
        self.text_encoder = TextEncoder(BertShape(
            text['vocab_size'], width, text['num_hidden_layers'], text['fusion_layer'], text['num_attention_heads'],
            text['intermediate_size'], text['max_position_embeddings'], text['encoder_width'],
            eps=text['layer_norm_eps']))
        self.vision_proj = nn.Linear(self.vision_encoder.width, config['embed_dim'])
        self.text_proj = nn.Linear(width, config['embed_dim'])
        self.itm_head = nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(),
                                      nn.Linear(2 * width, 2))
        self.temp = nn.Parameter(torch.tensor(config['temp']))

    def fill(self):
        """Set the reference's weights. The decoder's value wins for tied weights: state_dict lists it last."""
        with torch.no_grad():
            for name, value in self.state_dict().items():
                if value.is_floating_point() and name != 'temp' and not name.endswith('attn_mask'):
                    value.copy_(golden_weight(name, tuple(value.shape)))
        return self.eval()

    def features(self, ids, mask):
        tokens = self.text_encoder.encode(ids, mask)
        return tokens, self.text_proj(tokens[:, 0])

    def match(self, text_tokens, mask, image_tokens):
        return self.itm_head(self.text_encoder.fuse(text_tokens, mask, image_tokens)[:, 0])

    def contrast_and_match(self, ids, mask, image_tokens, pids):
        tokens, text = self.features(ids, mask)
        image = self.vision_proj(image_tokens[:, 0])
        texts, images = objectives.sample_hard_negatives(image, text, pids, temperature=self.temp)
        logits = self.match(torch.cat([tokens, tokens[texts], tokens]), torch.cat([mask, mask[texts], mask]),
                            torch.cat([image_tokens, image_tokens, image_tokens[images]]))
        matches = torch.cat([torch.ones(len(ids)), torch.zeros(2 * len(ids))]).long()
        return (objectives.itc_by_identity(image, text, pids, temperature=self.temp),
                objectives.image_text_matching(logits, matches))

    def predict_words(self, ids, mask, positions, labels, image_tokens):
        tokens = self.text_encoder.read(ids, mask, image_tokens)
        tokens = tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))
        is_masked = labels != -100
        return objectives.masked_language_modeling(self.text_encoder.predict(tokens[is_masked]), labels[is_masked])

    def attributes(self, vectors, kind, labels, image_tokens, sample, smoothing):
        """The three losses of a kind of prompts: 'attr' (MALS) or 'pa' (PA-100K)."""
        ids, mask, masked, positions, words = (
            vectors[f'in/{kind}_{name}'] for name in ('ids', 'atts', 'masked_ids', 'masked_pos', 'mlm_labels'))
        tokens, prompts = self.features(ids, mask)
        contrast = objectives.attribute_contrast(self.vision_proj(image_tokens[:, 0]), prompts, labels,
                                                 temperature=self.temp, smoothing=smoothing)
        is_true, matching = objectives.true_prompts(labels), []
        for prompt in sample:
            known = labels[:, prompt // 2] >= 0
            count = int(known.sum())
            prompt_tokens, prompt_mask = tokens[prompt].expand(count, -1, -1), mask[prompt].expand(count, -1)
            logits = self.match(prompt_tokens, prompt_mask, image_tokens[known])
            loss = objectives.smoothed_cross_entropy(logits, is_true[known, prompt].long(), smoothing=smoothing)
            matching.append(loss)
        used = is_true.any(dim=0)
        example = is_true.float().t()[used].argmax(dim=1)
        words = self.predict_words(masked[used], mask[used], positions[used], words[used], image_tokens[example])
        return contrast, torch.stack(matching).mean(), words


@pytest.fixture(scope='module', params=golden_files('aptm_*'))
def reference(request):
    vectors, description = golden(request.param)
    model = ReferenceModel(description)
    return model.fill(), vectors, description


@pytest.fixture
def most_likely(monkeypatch):
    """Replace the drawing of negatives by the most likely one, as in the reference vectors."""
    monkeypatch.setattr(torch, 'multinomial',
                        lambda weights, count, generator=None: weights.argmax(dim=-1, keepdim=True))


def close(value, expected):
    value = value.detach()
    assert (value - expected).abs().max() <= RELATIVE * expected.abs().max(), (value, expected)


def test_state_dict_has_the_official_names_shapes_and_types(reference):
    model, _, description = reference
    entries = {name: [list(value.shape), str(value.dtype).removeprefix('torch.')]
               for name, value in model.state_dict().items()}
    assert entries == description['official_keys']


def test_tokens_and_features(reference):
    model, vectors, _ = reference
    images = model.vision_encoder(vectors['in/images'])
    tokens, text = model.features(vectors['in/text_ids'], vectors['in/text_atts'])
    close(images, vectors['out/image_tokens'])
    close(tokens, vectors['out/text_tokens'])
    close(model.vision_proj(images[:, 0]), vectors['out/image_feat'])
    close(text, vectors['out/text_feat'])
    fused = model.text_encoder.fuse(tokens, vectors['in/text_atts'], images)
    close(fused, vectors['out/cross_tokens'])
    close(model.itm_head(fused[:, 0]), vectors['out/itm_logits'])


def test_losses_and_gradients_of_finetuning(reference, most_likely):
    model, vectors, _ = reference
    model.zero_grad()
    images = model.vision_encoder(vectors['in/images'])
    original, edited = (
        model.contrast_and_match(vectors[f'in/{kind}_ids'], vectors[f'in/{kind}_atts'], images, vectors['in/idx'])
        for kind in ('text', 'eda_text'))
    words = model.predict_words(vectors['in/masked_text_ids'], vectors['in/text_atts'], vectors['in/masked_pos'],
                                vectors['in/masked_ids'], images)
    itc, itm = (loss + EDA * edited_loss for loss, edited_loss in zip(original, edited))
    for name, loss in (('finetune/itc', itc), ('finetune/itm', itm), ('finetune/mlm', words),
                       ('pretrain/itc', original[0]), ('pretrain/itm', original[1]), ('pretrain/mlm', words)):
        close(loss, vectors[f'out/{name}'])
    (itc + itm + words).backward()
    parameters = dict(model.named_parameters())
    norms = {name: norm for name, norm in vectors.items() if name.startswith('grad/finetune/')}
    assert norms
    for name, norm in norms.items():
        close(parameters[name.removeprefix('grad/finetune/')].grad.norm(), norm)


def test_losses_of_attributes(reference):
    model, vectors, description = reference
    with torch.no_grad():
        images = model.vision_encoder(vectors['in/images'])
        sample, count = description['attr_sample'], len(vectors['in/pa_ids'])
        pretraining = model.attributes(vectors, 'attr', vectors['in/attr_labels'], images, sample, SMOOTHING)
        pa100k = model.attributes(vectors, 'pa', vectors['in/pa_labels'], images, [i % count for i in sample], 0.0)
    close(sum(pretraining) / ATTRIBUTES, vectors['out/pretrain/attr'])
    for name, loss in zip(('itc', 'itm', 'mlm'), pa100k):
        close(loss, vectors[f'out/pa100k/{name}'])


def test_reranked_scores(reference):
    model, vectors, description = reference
    with torch.no_grad():
        images = model.vision_encoder(vectors['in/images'])
        mask = vectors['in/text_atts']
        tokens, text = model.features(vectors['in/text_ids'], mask)
        cosine = objectives.cosine_similarity(text, model.vision_proj(images[:, 0]))

        def match(caption, best):
            count = len(best)
            caption_tokens, caption_mask = tokens[caption].expand(count, -1, -1), mask[caption].expand(count, -1)
            return model.match(caption_tokens, caption_mask, images[best])[:, 1]
        best, scores = score_candidates([cosine], description['config']['k_test'], len(images), match, progress=False)
        reranked, = combine_scores([cosine], best, scores, 'released', global_bounds([cosine]))
        close(reranked, vectors['out/rerank/score_t2i'])


# -- The model and its heads

def reference_model(description, loss_names, **changes):
    vision, text, config = description['vision'], description['text'], description['config']
    patch = description['official_keys']['vision_encoder.patch_embed.proj.weight'][0][-1]
    shape = AptmShape(
        patch, vision['embed_dim'], vision['depths'], vision['num_heads'], vision['window_size'], text['vocab_size'],
        text['hidden_size'], text['num_hidden_layers'], text['fusion_layer'], text['num_attention_heads'],
        text['intermediate_size'], text['max_position_embeddings'], config['embed_dim'])
    size = vision['h'], vision['w']
    args = options(backbone='aptm', pretrain_choice='scratch:aptm-tiny', loss_names=loss_names, img_size=size,
                   amp='off', start_temperature=config['temp'], **changes)
    model = RetrievalModel(args, 6, Aptm(shape, size))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and name != 'temp' and not name.endswith('attn_mask'):
                value.copy_(golden_weight(name, tuple(value.shape)))
    return model.eval()


def make_batch(vectors, kind):
    text = {'caption_ids': 'text_ids', 'eda_ids': 'eda_text_ids', 'bert_mlm_ids': 'masked_text_ids',
            'bert_mlm_positions': 'masked_pos', 'bert_mlm_labels': 'masked_ids', 'images': 'images', 'pids': 'idx'}
    prompts = {'prompt_ids': f'{kind}_ids', 'prompt_mlm_ids': f'{kind}_masked_ids',
               'prompt_mlm_positions': f'{kind}_masked_pos', 'prompt_mlm_labels': f'{kind}_mlm_labels',
               'attribute_labels': f'{kind}_labels'}
    return {name: vectors[f'in/{theirs}'] for name, theirs in {**text, **prompts}.items()}


def test_heads_give_the_losses_and_gradients_of_finetuning(reference, most_likely):
    _, vectors, description = reference
    model = reference_model(description, 'itc+itm+mlm+eda')
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == {
        name: shape for name, (shape, _) in description['official_keys'].items()}
    results = model(make_batch(vectors, 'attr'))
    for name in ('itc', 'itm', 'mlm'):
        close(results[f'{name}_loss'], vectors[f'out/pretrain/{name}'])
    expected = sum(vectors[f'out/finetune/{name}'] for name in ('itc', 'itm', 'mlm'))
    close(total_loss(results), expected)
    total_loss(results).backward()
    parameters = dict(model.named_parameters())
    for name, norm in vectors.items():
        if name.startswith('grad/finetune/'):
            close(parameters[name.removeprefix('grad/finetune/')].grad.norm(), norm)


@pytest.mark.parametrize('kind, weight, smoothing', [('attr', 1.0, 0.4), ('pa', 3.0, 0.0)])
def test_heads_give_the_losses_of_attributes(reference, most_likely, monkeypatch, kind, weight, smoothing):
    _, vectors, description = reference
    model = reference_model(description, 'attr', attr_loss_weight=weight, attr_smoothing=smoothing)
    sample = torch.tensor(description['attr_sample'])
    monkeypatch.setattr(torch, 'randperm', lambda count: sample % count)
    with torch.no_grad():
        loss = model(make_batch(vectors, kind))['attr_loss']
    pa100k = sum(vectors[f'out/pa100k/{name}'] for name in ('itc', 'itm', 'mlm'))
    close(loss, vectors['out/pretrain/attr'] if kind == 'attr' else pa100k)


def test_the_reranker_gives_the_reference_scores(reference):
    _, vectors, description = reference
    model = reference_model(description, 'itc+itm')
    ids = vectors['in/text_ids']
    data = [list(zip(range(len(side)), side)) for side in (vectors['in/images'], ids)]
    loaders = [DataLoader(side, 4) for side in data]
    with torch.no_grad():
        reranker = Reranker(model, *loaders)
        cosine = objectives.cosine_similarity(model.encode_text(ids), model.encode_image(vectors['in/images']))
        best, scores = score_candidates([cosine], description['config']['k_test'], len(cosine), reranker.score_pairs,
                                        progress=False)
        reranked, = combine_scores([cosine], best, scores, 'released', global_bounds([cosine]))
    close(reranked, vectors['out/rerank/score_t2i'])
    assert reranker.measure_batch_dependence(best).is_independent
