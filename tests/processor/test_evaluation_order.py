"""Captions are embedded in order of decreasing length if the sampler supports it; the embeddings stay the same."""
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, default_collate

from datasets.bases import TextDataset
from datasets.sampler import CaptionSampler
from model import build_model
from tests.support import options, small_archive
from utils.errors import UserError
from processor.evaluation import Evaluator, embed
from processor.independence import check_independence

WORDS = 'a man in a long dark red coat with blue jeans and a small black bag over his left shoulder walks past'.split()
CAPTIONS = [' '.join(WORDS[:length]) for length in (3, 18, 6, 12, 4, 20, 5, 3, 9, 16, 7, 3, 14)]
PIDS = [number // 2 for number in range(len(CAPTIONS))]


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return small_archive(tmp_path_factory.mktemp('clip') / 'clip.pt')


def make(archive, **changes):
    torch.manual_seed(0)
    return build_model(options(pretrain_choice=archive, img_size=(64, 32), **changes), 4)


@pytest.fixture(scope='module')
def plain_model(archive):
    return make(archive, loss_names='sdm')


@pytest.fixture
def encoded(monkeypatch):
    """A function that embeds and records the encoder's batches: ``(model, loader)`` -> (feats, pids, batches)."""
    def embed_and_record(model, loader):
        batches, encode = [], model.base_model.encode_text

        def record(ids, *rest):
            batches.append(ids)
            return encode(ids, *rest)
        monkeypatch.setattr(model.base_model, 'encode_text', record)
        feats, pids = embed(model, loader, 'text')
        monkeypatch.undo()
        return feats, pids, batches
    return embed_and_record


@torch.no_grad()
def embed_one_by_one(model, dataset):
    """Embed each caption alone, with its padding, in the dataset's order."""
    return torch.cat([model.eval().encode_text(dataset[i][1][None]) for i in range(len(dataset))])


def token_count(batches):
    return sum(ids.numel() for ids in batches)


def lengths(batches):
    return [(row != 0).sum().item() for ids in batches for row in ids]


def is_in_order(batches, ids):
    """Whether the encoder got the captions [S, L] in their order."""
    first_tokens = torch.cat([batch[:, :5] for batch in batches])
    return lengths(batches) == lengths([ids]) and torch.equal(first_tokens, ids[:, :5])


def evaluation_loader(dataset):
    """A loader as an evaluation builds it."""
    return DataLoader(dataset, 4, sampler=CaptionSampler(dataset.lengths))


def test_the_longest_first_and_back_in_order(plain_model, encoded):
    dataset = TextDataset(PIDS, CAPTIONS)
    loader = evaluation_loader(dataset)
    feats, pids, batches = encoded(plain_model, loader)
    assert torch.equal(torch.cat([ids for _, ids in loader]), dataset.tokens)   # outside embed: the annotation's order
    torch.testing.assert_close(feats, embed_one_by_one(plain_model, dataset), rtol=1e-5, atol=1e-5)
    assert pids.tolist() == PIDS
    assert lengths(batches) == sorted(lengths([dataset.tokens]), reverse=True)
    assert [len(ids) for ids in batches] == [4, 4, 4, 1] and [ids.shape[1] for ids in batches] == [24, 16, 8, 8]
    *_, unsorted_batches = encoded(plain_model, list(DataLoader(dataset, 4)))
    assert token_count(batches) < 0.8 * token_count(unsorted_batches)


class Prefetching(DataLoader):
    """A loader of a user's script that iterates in another order."""

    def __iter__(self):
        return reversed(list(super().__iter__()))


class UnknownLengths(TextDataset):
    """Captions without known lengths."""

    def __init__(self, *args):
        super().__init__(*args)
        self.ids, self.tokens = self.tokens, None

    def __getitem__(self, index):
        return self.caption_pids[index], self.ids[index].long()


def shuffled(dataset):
    return DataLoader(dataset, 4, shuffle=True, generator=torch.Generator().manual_seed(3))


def random_sampler(dataset):
    return RandomSampler(dataset, generator=torch.Generator().manual_seed(3))


LOADERS = {
    'as it comes': lambda dataset: DataLoader(dataset, 4),
    'shuffled': shuffled,
    'chosen': lambda dataset: DataLoader(dataset, 4, sampler=[5, 0, 1, 9]),
    'batch sampler': lambda dataset: DataLoader(dataset, batch_sampler=BatchSampler(random_sampler(dataset), 4, False)),
    'drops the last': lambda dataset: DataLoader(dataset, 4, drop_last=True),
    'one by one, not batched': lambda dataset: DataLoader(
        dataset, None, collate_fn=lambda sample: default_collate([sample])),
    'own iteration': lambda dataset: Prefetching(dataset, 4),
    'list of batches': lambda dataset: list(DataLoader(dataset, 4)),
    'own dataset': lambda dataset: DataLoader(UnknownLengths(dataset.caption_pids, dataset.captions), 4)}


@pytest.mark.parametrize('name', LOADERS)
def test_other_loaders_are_read_as_they_come(plain_model, encoded, name):
    dataset = TextDataset(PIDS, CAPTIONS)
    expected = list(LOADERS[name](dataset))
    feats, pids, batches = encoded(plain_model, LOADERS[name](dataset))
    assert [len(ids) for ids in batches] == [len(ids) for _, ids in expected]
    assert is_in_order(batches, torch.cat([ids for _, ids in expected]))
    assert pids.tolist() == torch.cat([pids for pids, _ in expected]).tolist() and len(feats) == len(pids)


def test_refined_embeddings_keep_order_and_padding(archive, encoded):
    """PHP's attention across the batch depends on the order; published results have the annotation's order."""
    model = make(archive, loss_names='sdm+itc+aux', php_attention='batch', moe_heads=2, moe_layers=1)
    dataset = TextDataset(PIDS, CAPTIONS)
    _, pids, batches = encoded(model, evaluation_loader(dataset))
    assert torch.equal(torch.cat(batches), dataset.tokens) and pids.tolist() == PIDS


def test_an_empty_split_is_an_error(plain_model):
    with pytest.raises(UserError, match='nothing to evaluate'):
        embed(plain_model, DataLoader(TextDataset([], []), 4), 'text')


def test_a_wrapped_encoder_gets_inputs_of_the_modality(plain_model):
    """The modality decides what is prepared, not the identity of the function that encodes it."""
    loader, batches = evaluation_loader(TextDataset(PIDS, CAPTIONS)), []

    def encode_text(ids):
        batches.append(ids)
        return plain_model.encode_text(ids)
    feats, pids = embed(plain_model, loader, 'text', encode_text)
    expected, _ = embed(plain_model, loader, 'text')
    assert torch.equal(feats, expected) and pids.tolist() == PIDS
    assert all(ids.dtype == torch.int64 for ids in batches) and lengths(batches) == sorted(lengths(batches))[::-1]


def test_another_modality_is_an_error(plain_model):
    with pytest.raises(ValueError, match="modality must be 'image' or 'text', not 'video'"):
        embed(plain_model, [], 'video')


class BagOfTokens(torch.nn.Module):
    """Embeds a caption as the counts of its tokens, mixed with those of its batch if it ``leaks``."""
    embeddings_read_padding = False

    def __init__(self, leaks):
        super().__init__()
        self.leaks, self.anchor = leaks, torch.nn.Parameter(torch.zeros(1))

    def trim_padding(self, ids):
        return ids

    def encode_text(self, ids):
        counts = torch.nn.functional.one_hot(ids % 97, 97)[:, :, 1:].sum(dim=1).float()
        return counts + 0.5 * counts.mean(dim=0) if self.leaks else counts

    def encode_image(self, images):
        return images + 0


@pytest.mark.parametrize('leaks', [False, True])
def test_the_independence_check_is_of_these_embeddings(leaks):
    """The check finds a leak between captions of similar length, and compares samples with their own embeddings."""
    texts, images = evaluation_loader(TextDataset(PIDS, CAPTIONS)), DataLoader(list(zip(PIDS, torch.eye(len(PIDS)))), 4)
    model = BagOfTokens(leaks)
    qfeats, gfeats, _, _ = Evaluator(images, texts)._compute_embedding(model)
    assert check_independence(model, images, texts, (qfeats, gfeats)).is_independent is not leaks
    independence = check_independence(BagOfTokens(False), images, texts, (qfeats, gfeats))
    assert (independence.worst['text'] > 1e-4) is leaks and independence.worst['image'] < 1e-6
