"""Each example of docs/adding_a_*.md is found without a change, trains, and does what its section says."""
import contextlib
import glob
import os
import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from model import heads as heads_package
from model import objectives
from model.build import total_loss
from model.head_registry import aliases, registry
from processor.clean_pairs import CleanPairs
from processor.build import build_step
from processor.evaluation import Evaluator, embed_split
from processor.pair_states import PairStates
from processor.reranker import rerank_split
from tests.support import assert_falls, golden_archive, golden_json, small_batch, small_model
from utils.batch_shard import WHOLE_BATCH
from utils.errors import UserError
from utils.rerank_options import PairScores

DOCS = os.path.join(os.path.dirname(__file__), '..', '..', 'docs')
PAGES = sorted(glob.glob(os.path.join(DOCS, 'adding_a_*.md')))


def read_examples(path):
    """The complete heads on a page: {loss name: code}."""
    with open(path, encoding='utf-8') as file:
        blocks = re.findall(r'```python\n(.*?)```', file.read(), flags=re.DOTALL)
    return {re.search(r"names = \('([\w-]+)',\)", code)[1]: code for code in blocks if "names = ('" in code}


EXAMPLES = {name: code for path in PAGES for name, code in read_examples(path).items()}


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


@pytest.fixture(scope='module', autouse=True)
def example_files(tmp_path_factory):
    with registered_examples(tmp_path_factory.mktemp('heads')):
        yield


@contextlib.contextmanager
def registered_examples(folder):
    """Write the examples to an empty folder and add it to the heads."""
    for name, code in EXAMPLES.items():
        (folder / f"documented_{name.replace('-', '_')}.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads_package, '__path__', [*heads_package.__path__, str(folder)])
        for cache in (registry, aliases):
            cache.cache_clear()
        yield
    for cache in (registry, aliases):
        cache.cache_clear()


def make_step(model, lr=1e-3):
    return build_step(model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr))


def test_there_is_a_short_example_for_each_hook():
    assert set(EXAMPLES) == {'averages', 'trimmed', 'views', 'learned-itc', 'filip', 'trusted'}
    assert all(len(code.splitlines()) < 60 for code in EXAMPLES.values())


@pytest.mark.parametrize('name', sorted(EXAMPLES))
def test_an_example_overfits_a_batch_alone_and_with_other_losses(archive, name):
    for loss_names in (name, f'sdm+id+{name}'):
        model = small_model(archive, loss_names, temperature=0.1).train()
        step, batch = make_step(model), small_batch()
        assert_falls((total_loss(step(batch)) for _ in range(60)), 0.1, offset=0.02)


def test_an_added_embedding_is_part_of_the_score_and_does_not_change_the_others(archive):
    model, plain, batch = small_model(archive, 'id+averages').eval(), small_model(archive, 'id').eval(), small_batch()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in plain.state_dict()})
    with torch.no_grad():
        image, text = model.encode_image(batch['images']), model.encode_text(batch['caption_ids'])
        tokens = model.base_model.encode_image(batch['images'])[0]
        torch.testing.assert_close(model(batch)['id_loss'], plain(batch)['id_loss'])
        expected = F.normalize(model.averages_proj(tokens[:, 1:].mean(dim=1)), dim=1)
        plain_image, plain_text = plain.encode_image(batch['images']), plain.encode_text(batch['caption_ids'])
    assert [(part.name, part.weight) for part in model.embedding_parts] == [('BGE', 1.0), ('AVG', 0.5)]
    columns = model.embedding_parts[1].columns
    torch.testing.assert_close(F.normalize(image[:, columns], dim=1), expected)
    base = objectives.cosine_similarity(plain_text, plain_image)
    added = objectives.cosine_similarity(text[:, columns], image[:, columns])
    torch.testing.assert_close(objectives.cosine_similarity(text, image), (base + 0.5 * added) / 1.5)
    assert plain.embedding_parts == () and plain.encode_image(batch['images']).shape[1] == plain.embed_dim


class Loader(list):
    """A data loader that is a list of batches with 12 pairs."""
    batch_sampler = None
    dataset = range(12)


def two_batches():
    first, second = small_batch(seed=0), small_batch(seed=1)
    return Loader([first, {**second, 'index': second['index'] + 6}])


def test_clean_pairs_are_selected_from_the_losses_of_all_pairs(archive):
    model = small_model(archive, 'trimmed').train()
    loader = two_batches()
    clean_pairs = CleanPairs(model, loader, seed=1)
    assert clean_pairs.add_weights(loader[0]) is loader[0]
    clean_pairs.select(1, 1)
    with torch.no_grad():
        pairs = [(model.encode_image(batch['images']), model.encode_text(batch['caption_ids'])) for batch in loader]
        losses = torch.cat([objectives.itc(*pair, scale=50.0, reduction='none') for pair in pairs])
    assert model.training and torch.equal(clean_pairs.weights, (losses <= losses.median()).float())
    marked = clean_pairs.add_weights(loader[1])
    assert torch.equal(marked['clean'], clean_pairs.weights[6:])
    expected = (losses[6:] * marked['clean']).sum() / marked['clean'].sum()
    torch.testing.assert_close(model(marked)['trimmed_loss'].detach(), expected)


def test_a_pair_weighs_less_if_its_losses_were_high(archive):
    model, batch = small_model(archive, 'trusted').train(), small_batch()
    states = PairStates(model, 6)
    assert torch.equal(states.add_values(batch, WHOLE_BATCH)['mean_loss'], torch.zeros(6, 1))
    with torch.no_grad():
        model(batch)
        states.store(batch, model.pair_values, WHOLE_BATCH)
        filled = states.add_values(batch, WHOLE_BATCH)
        embeddings = model.encode_image(batch['images']), model.encode_text(batch['caption_ids'])
        losses = objectives.itc(*embeddings, scale=50.0, reduction='none')
        torch.testing.assert_close(filled['mean_loss'], 0.2 * losses[:, None])
        weights = torch.exp(-0.2 * losses)
        torch.testing.assert_close(model(filled)['trusted_loss'], (weights * losses).sum() / weights.sum())


def test_values_of_pairs_have_one_owner_and_no_micro_batches(archive, monkeypatch):
    model = small_model(archive, 'trusted')
    model.heads *= 2
    with pytest.raises(UserError, match="documented_trusted.py: Trusted keeps 'mean_loss' .* another head: rename"):
        PairStates(model, 6)
    with pytest.raises(UserError, match="--micro_batch cannot split a batch for the loss 'trusted': it updates values"):
        small_model(archive, 'trusted', micro_batch=2)


def test_the_last_row_counts_if_a_batch_has_a_pair_twice(archive):
    states = PairStates(small_model(archive, 'trusted'), 4)
    batch = {'index': torch.tensor([2, 0, 2])}
    states.store(batch, {'mean_loss': torch.tensor([[1.0], [2.0], [3.0]])}, WHOLE_BATCH)
    assert states.state_dict()['mean_loss'].flatten().tolist() == [2, 0, 3, 0]


def test_a_learned_temperature_has_its_official_name_and_is_shared(archive):
    model = small_model(archive, 'nitc+ritc+learned-itc').train()
    assert [name for name in model.state_dict() if 'scale' in name] == ['logit_scale']
    total_loss(model(small_batch())).backward()
    assert model.logit_scale.grad.abs() > 0
    torch.testing.assert_close(model.logit_scale.exp().item(), 1 / 0.07)


def test_views_compares_both_views(archive):
    model, batch = small_model(archive, 'views').eval(), small_batch()
    with torch.no_grad():
        first, second = model.encode_image(batch['images']), model.encode_image(batch['second_images'])
        torch.testing.assert_close(model(batch)['views_loss'], (1 - F.cosine_similarity(first, second)).mean())


def test_filip_compares_words_and_patches_one_by_one(archive):
    model, batch = small_model(archive, 'filip', temperature=0.5).eval(), small_batch()
    with torch.no_grad():
        patches = F.normalize(model.base_model.encode_image(batch['images'])[0][:, 1:], dim=2)
        words = F.normalize(model.base_model.encode_text(batch['caption_ids'])[0], dim=2)
        loss = model(batch)['filip_loss']
    text_to_image, image_to_text = torch.zeros(6, 6), torch.zeros(6, 6)
    for t in range(6):
        content = words[t, 1:int(batch['caption_ids'][t].argmax())]
        for i in range(6):
            scores = patches[i] @ content.t()
            text_to_image[t, i], image_to_text[i, t] = scores.max(dim=0).values.mean(), scores.max(dim=1).values.mean()
    target = torch.arange(6)
    expected = (F.cross_entropy(2 * text_to_image, target) + F.cross_entropy(2 * image_to_text, target)) / 2
    torch.testing.assert_close(loss, expected)


def test_filip_orders_each_captions_best_images(archive):
    model, batch = small_model(archive, 'filip').eval(), small_batch()
    loaders = [DataLoader(list(zip(range(6), batch[side])), 4) for side in ('images', 'caption_ids')]
    with torch.no_grad():
        patches = F.normalize(model.base_model.encode_image(batch['images'])[0][:, 1:], dim=2)
        words = F.normalize(model.base_model.encode_text(batch['caption_ids'])[0], dim=2)
    expected = torch.stack([(patches @ words[t, 1:int(ids.argmax())].t()).amax(dim=1).mean(dim=1)
                            for t, ids in enumerate(batch['caption_ids'])])                     # [6 captions, 6 images]
    embeddings = embed_split(model, *loaders)
    make_slabs, dependence = rerank_split(model, loaders, embeddings, PairScores(6, 'itm'), progress=False)
    slab, = make_slabs()
    assert torch.equal(slab.argsort(dim=1), expected.argsort(dim=1)) and dependence.is_independent
    with pytest.raises(UserError, match="sum needs the log-odds.*'filip' are not log-odds: give --rerank_score itm"):
        Evaluator(*loaders, PairScores(6, 'sum')).validate(model, '--val_rerank')
    evaluator = Evaluator(*loaders, PairScores(6, 'itm'))
    rank1 = 100 * (expected.argmax(dim=1) == torch.arange(6)).float().mean().item()
    assert evaluator.eval(model) == evaluator.metrics['reranked_R1'] == pytest.approx(rank1)
    assert evaluator.metrics['R1'] == Evaluator(*loaders).eval(model)


# -- Heads with mistakes

# {line of __init__: error}, for a head of the class AddsEmbedding if the line names the embedding
WRONG = {
    'self.own_encoder = model.base_model': 'is the model itself or its encoder',
    'self.wrapped = model': 'is the model itself or its encoder',
    "self.register_buffer('classifier', torch.zeros(3))": 'classifier: the model has another part with this name',
    'self.classifier = nn.Linear(model.embed_dim, 3)': 'classifier: the model has another part with this name',
    'self.layer = nn.Linear(7, 3)': 'shapes cannot be multiplied',
    "self.embedding = 'NEW'": "adds the embedding 'NEW' without its width: set embedding_width",
    "self.embedding, self.embedding_width = 'NEW', 5":
        r'embed returns \[6, 128\] for a batch of 6 images, and its embedding_width is 5',
}


@pytest.mark.parametrize('line', WRONG)
def test_a_mistake_is_reported_in_one_line_with_the_heads_file(archive, tmp_path, monkeypatch, line):
    bases, method = ('AddsEmbedding, Head', 'embed') if 'self.embedding' in line else ('Head', 'unused')
    (tmp_path / 'wrong.py').write_text(f"""
import torch
from torch import nn
from model.heads import AddsEmbedding, Head

class Wrong({bases}):
    names = ('wrong',)

    def __init__(self, args, model):
        super().__init__()
        {line}

    def {method}(self, side, tokens, caption_ids, attention):
        return tokens[:, 0]

    def forward(self, encoded, batch):
        return {{'wrong_loss': self.layer(encoded.image).sum()}}
""")
    monkeypatch.setattr(heads_package, '__path__', [*heads_package.__path__, str(tmp_path)])
    for cache in (registry, aliases):
        cache.cache_clear()
    monkeypatch.delitem(__import__('sys').modules, 'model.heads.wrong', raising=False)
    with pytest.raises(UserError, match=f'^model/heads/wrong.py: Wrong.*{WRONG[line]}') as raised:
        small_model(archive, 'id+wrong')(small_batch())
    assert len(str(raised.value).splitlines()) == 1


def test_a_refined_embedding_keeps_its_width(archive, monkeypatch):
    class Widening(heads_package.RefinesEmbedding, registry()['sdm']):
        def refine(self, embedding, tokens, extras):
            return torch.cat([embedding, embedding], dim=1)
    monkeypatch.setitem(registry(), 'sdm', Widening)
    message = r'test_documented_hooks.py: Widening: refine turns embeddings \[6, 128\] into \[6, 256\].*embed'
    with pytest.raises(UserError, match=message):
        small_model(archive, 'sdm+id')(small_batch())
