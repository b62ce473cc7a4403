import hashlib
import logging
import os
import random
import signal

import pytest
import torch

from datasets import build_dataloader
from datasets.augmentation import perturb_caption
from datasets.bases import ImageDataset, ImageTextDataset, ImageTextMLMDataset, TextDataset, tokenize
from datasets.masking import mask_tokens
from datasets.pairs import collate
from datasets.synthpedes import generate
from datasets.transforms import build_transforms
from model.heads.sdm import SDM
from tests.datasets.pairs import build_pairs
from tests.support import options
from utils.errors import UserError
from utils.iotools import read_image
from utils.seeding import derive_seed
from utils.simple_tokenizer import default_tokenizer

MASK = 49405


@pytest.fixture
def args(make_dataset, tmp_path):
    """Options for a tiny dataset on disk."""
    make_dataset()

    def with_changes(**changes):
        settings = dict(root_dir=str(tmp_path), img_size=(24, 8), batch_size=6, test_batch_size=3, num_workers=0,
                        num_instance=2, img_aug=True, loss_names='sdm', text_length=32)
        return options(**{**settings, **changes})
    return with_changes


@pytest.fixture
def pairs(make_dataset, tmp_path):
    entries = make_dataset()
    return [(entry['id'], n, f"{tmp_path}/CUHK-PEDES/imgs/{entry['file_path']}", caption)
            for n, entry in enumerate(entries) for caption in entry['captions']]


def epoch(loader, number=1, first_step=0):
    loader.batch_sampler.set_epoch(number, first_step)
    return list(loader)


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


# -- single samples ----------------------------------------------------------------------------------------------------

def test_gallery_and_queries(pairs):
    transform = build_transforms((24, 8), is_train=False)
    images = ImageDataset([pair[0] for pair in pairs], [pair[2] for pair in pairs], transform)
    captions = TextDataset([pair[0] for pair in pairs], [pair[3] for pair in pairs], text_length=16)
    assert len(images) == len(captions) == len(pairs)
    pid, image = images[3]
    assert pid == pairs[3][0] and torch.equal(image, transform(read_image(pairs[3][2])))
    pid, ids = captions[3]
    assert pid == pairs[3][0] and ids.dtype == torch.int64
    assert torch.equal(ids, tokenize(pairs[3][3], default_tokenizer(), 16))
    assert ImageDataset([0], [pairs[0][2]])[0][1].mode == 'RGB'


def test_captions_that_may_not_be_cut(pairs):
    for dataset, *given in ((TextDataset, [0], [pairs[0][3]]), (ImageTextDataset, pairs, None)):
        with pytest.raises(UserError, match='longer than the text length 8'):
            dataset(*given, 8, truncate=False)


def test_pair_without_fields(pairs):
    transform = build_transforms((24, 8), is_train=False)
    sample = ImageTextDataset(pairs, transform)[5]
    assert sorted(sample) == ['caption_ids', 'image_ids', 'images', 'index', 'pids']
    assert (sample['pids'], sample['image_ids']) == pairs[5][:2]
    assert torch.equal(sample['images'], transform(read_image(pairs[5][2])))
    assert torch.equal(sample['caption_ids'], tokenize(pairs[5][3], default_tokenizer()))


def expected_masking(caption, seed, *rates):
    masked, labels = mask_tokens(tokenize(caption, default_tokenizer()).tolist(), random.Random(seed), MASK, *rates)
    return torch.tensor(masked), torch.tensor(labels)


def test_clean_captions_and_a_masked_copy(pairs):
    for fields in (['mlm_labels'], ['mlm_labels', 'mlm_ids']):
        sample = build_pairs(pairs, fields=fields)[4, 11]
        masked, labels = expected_masking(pairs[4][3], 11)
        assert torch.equal(sample['caption_ids'], tokenize(pairs[4][3], default_tokenizer()))
        assert torch.equal(sample['mlm_ids'], masked) and torch.equal(sample['mlm_labels'], labels)
        assert sample['mlm_ids'].dtype == sample['mlm_labels'].dtype == torch.int64
        assert len(sample) == 7


def test_masking_in_place(pairs):
    masked, labels = expected_masking(pairs[4][3], 11)
    sample = build_pairs(pairs, fields=['mlm_labels'], caption_masking='inplace')[4, 11]
    assert torch.equal(sample['caption_ids'], masked) and torch.equal(sample['mlm_labels'], labels)
    assert 'mlm_ids' not in sample
    sample = build_pairs(pairs, caption_masking='inplace')[4, 11]  # masked even if no head wants the labels
    assert torch.equal(sample['caption_ids'], masked) and 'mlm_labels' not in sample


def test_masking_rates_reach_the_captions(pairs):
    rates = dict(masked_token_rate=0.0, masked_token_unchanged_rate=1.0)
    sample = build_pairs(pairs, fields=['mlm_labels'], **rates)[4, 12]
    masked, labels = expected_masking(pairs[4][3], 12, 0.0, 1.0)
    assert torch.equal(sample['mlm_ids'], masked) and torch.equal(sample['mlm_labels'], labels)


def test_irras_name_for_masked_pairs(pairs):
    sample = ImageTextMLMDataset(pairs, None, 77)[4, 11]
    assert torch.equal(sample['mlm_ids'], sample['caption_ids'])
    assert torch.equal(sample['mlm_ids'], expected_masking(pairs[4][3], 11)[0])
    assert sample['mlm_labels'].any()


def test_a_sample_follows_from_its_seed(pairs):
    transform = build_transforms((24, 8), aug=True)
    dataset = build_pairs(pairs, transform, fields=['mlm_labels'])
    torch.manual_seed(1)
    random.seed(1)
    states = torch.get_rng_state(), random.getstate()
    one = dataset[4, 11]
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    torch.manual_seed(2)
    random.seed(2)
    other = dataset[4, 11]
    assert all(torch.equal(one[name], other[name]) for name in ('images', 'caption_ids', 'mlm_ids', 'mlm_labels'))
    assert not torch.equal(dataset[4, 12]['images'], one['images'])
    assert not torch.equal(dataset[4, 12]['mlm_labels'], one['mlm_labels'])
    torch.manual_seed(11)
    assert torch.equal(one['images'], transform(read_image(pairs[4][2])))


def test_plain_indices_have_a_seed_of_their_own(pairs):
    dataset = build_pairs(pairs, build_transforms((24, 8), aug=True), fields=['mlm_labels'])
    assert torch.equal(dataset[4]['images'], dataset[4, derive_seed(4)]['images'])
    assert torch.equal(dataset[4]['images'], dataset[4]['images'])


def test_field_that_nobody_makes(pairs):
    with pytest.raises(UserError, match='^unknown batch field, requested by a head and made by no dataset: '
                                        "'mlm_label'; "
                                        'did you mean mlm_labels.$'):
        build_pairs(pairs, fields=['mlm_label'])


def test_unknown_caption_masking(pairs):
    with pytest.raises(UserError, match="^unknown caption masking 'in_place'; did you mean inplace.$"):
        build_pairs(pairs, caption_masking='in_place')


def test_collate():
    samples = [{'pids': n, 'images': torch.full((2,), float(n))} for n in range(3)]
    batch = collate(samples)
    assert list(batch) == ['pids', 'images'] and batch['pids'].tolist() == [0, 1, 2] and batch['images'].shape == (3, 2)
    batch = collate([{'skipped': 'a.jpg'}, samples[2], {'skipped': 'b.jpg'}])
    assert batch['pids'].tolist() == [2] and batch['skipped'] == ['a.jpg', 'b.jpg']
    assert collate([{'skipped': 'a.jpg'}]) == {'skipped': ['a.jpg']}


# -- build_dataloader --------------------------------------------------------------------------------------------------

def test_loaders_for_training(args):
    train, images, captions, classes = build_dataloader(args())
    assert classes == 4 and len(train) == 3  # 16 captions
    batches = epoch(train)
    assert [len(batch['pids']) for batch in batches] == [6, 6, 4]
    batch = batches[0]
    assert sorted(batch) == ['caption_ids', 'image_ids', 'images', 'index', 'pids']
    assert [batch[name].dtype for name in sorted(batch)] == [torch.int64, torch.int64, torch.float32, torch.int64,
                                                             torch.int64]
    assert batch['images'].shape == (6, 3, 24, 8) and batch['caption_ids'].shape == (6, 32)
    assert torch.equal(batch['image_ids'] // 2, batch['pids'])
    assert sorted(torch.cat([batch['image_ids'] for batch in batches]).tolist()) == sorted(list(range(8)) * 2)
    assert images.batch_size == captions.batch_size == 6


@pytest.mark.parametrize('split, pids', [('test', [6, 6, 7, 7]), ('val', [5, 5])])
def test_split_that_chooses_the_best_epoch(args, split, pids):
    _, images, captions, _ = build_dataloader(args(val_dataset=split))
    assert images.dataset.image_pids == pids
    assert captions.dataset.caption_pids == [pid for pid in pids for _ in range(2)]


def test_loaders_for_testing(args):
    images, captions, classes = build_dataloader(args(training=False, batch_size=500))
    assert classes == 4
    once, again = list(images), list(images)
    assert [len(pids) for pids, _ in once] == [3, 1]
    assert torch.cat([pids for pids, _ in once]).tolist() == [6, 6, 7, 7]
    pixels = torch.cat([batch for _, batch in once])
    plain = build_transforms((24, 8), is_train=False)
    assert torch.equal(pixels, torch.stack([plain(read_image(path)) for path in images.dataset.img_paths]))
    assert torch.equal(pixels, torch.cat([batch for _, batch in again]))
    ids = torch.cat([batch for _, batch in captions])
    expected = [tokenize(caption, default_tokenizer(), 32) for caption in captions.dataset.captions]
    assert torch.equal(ids, torch.stack(expected))
    assert torch.cat([pids for pids, _ in captions]).tolist() == [6] * 4 + [7] * 4


@pytest.mark.parametrize('losses, masking, names', [
    ('sdm+mlm', 'clean', {'mlm_ids', 'mlm_labels'}), ('sdm+mlm', 'inplace', {'mlm_labels'}), ('sdm', 'inplace', set())])
def test_the_active_heads_decide_what_a_batch_carries(args, losses, masking, names):
    batch = epoch(build_dataloader(args(loss_names=losses, MLM=masking == 'inplace'))[0])[0]
    assert set(batch) == {'pids', 'image_ids', 'images', 'caption_ids', 'index'} | names
    assert (batch['caption_ids'] == MASK).any() == (masking == 'inplace')


@pytest.mark.parametrize('sampler', ['random', 'identity', 'idrannum'])
def test_epochs_repeat_and_resume(args, sampler):
    train = build_dataloader(args(loss_names='sdm+mlm', sampler=sampler))[0]
    torch.manual_seed(1)
    second = epoch(train, 2)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    same(second, epoch(build_dataloader(args(loss_names='sdm+mlm', sampler=sampler))[0], 2))
    assert torch.equal(torch.get_rng_state(), state)
    same(second[1:], epoch(train, 2, first_step=1))
    assert len(train) == len(second)
    first = epoch(train, 1)
    assert not torch.equal(first[0]['images'], second[0]['images'])
    other = epoch(build_dataloader(args(loss_names='sdm+mlm', sampler=sampler, seed=5))[0], 2)
    assert not torch.equal(other[0]['images'], second[0]['images'])


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: range(8), raising=False)


def test_workers_change_nothing(args, many_cores):
    single = build_dataloader(args(loss_names='sdm+mlm', MLM=True))[0]
    expected = [epoch(single, 1), epoch(single, 2), epoch(single, 2, first_step=1)]
    for workers in (1, 3):
        train = build_dataloader(args(loss_names='sdm+mlm', MLM=True, num_workers=workers))[0]
        assert train.num_workers == workers and train.persistent_workers
        same(expected[0], epoch(train, 1))
        same(expected[1], epoch(train, 2))  # by the same workers
        same(expected[2], epoch(train, 2, first_step=1))


def test_no_more_workers_than_cores(args, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 1}, raising=False)
    assert build_dataloader(args(num_workers=8))[0].num_workers == 2


class Asked(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_workers_leave_ctrl_c_to_the_main_process():
    from datasets.build import start_worker
    loader = torch.utils.data.DataLoader(Asked(), num_workers=1, worker_init_fn=start_worker)
    assert [answer.item() for answer in loader] == [True]


def test_each_caption_is_tokenised_once(args, monkeypatch):
    calls = []
    from datasets import text
    monkeypatch.setattr(text, 'tokenize', lambda *given: calls.append(given[0]) or tokenize(*given))
    train, _, captions, _ = build_dataloader(args(loss_names='sdm+mlm'))
    epoch(train, 1), epoch(train, 2), list(captions), list(captions)
    assert len(calls) == 16 + 8


def test_captions_beyond_any_sentence():
    """Encoding takes time quadratic in the length of a word: 100 MB without a space would take years."""
    with pytest.raises(UserError, match="^caption of 100,000,000 characters, and at most 10,000 are read: 'xxx"):
        tokenize('x' * 100_000_000, default_tokenizer())
    assert tokenize('x' * 10_000, default_tokenizer())[-1] == 49407


def test_a_new_batch_field_is_one_function(args, request, monkeypatch):
    from datasets import fields
    request.addfinalizer(lambda: fields.FIELDS.pop('words'))

    @fields.field
    def words(sample):
        return torch.tensor(len(sample.caption.split()))
    changed = args(loss_names='sdm+mlm')
    plain = epoch(build_dataloader(changed)[0])
    monkeypatch.setattr(SDM, 'fields', ('words',))
    batches = epoch(build_dataloader(changed)[0])
    assert batches[0]['words'].tolist() == [14] * 6   # 'person 1 in view 0, sentence 0, wearing ...'
    same(plain, [{name: value for name, value in batch.items() if name != 'words'} for batch in batches])


# -- few samples, few splits -------------------------------------------------------------------------------------------

def test_limit_train(args, caplog):
    with caplog.at_level(logging.INFO, 'Pedestal.dataset'):
        train, _, _, classes = build_dataloader(args(limit_train=6, batch_size=2))
    assert classes == 2 and len(train.dataset) == 6 and len(train) == 3
    assert '--limit_train: the first 6 of 16 training captions' in caplog.text
    assert build_dataloader(args(limit_train=6, training=False))[2] == 2  # as many classes as when it was trained
    with pytest.raises(UserError, match='larger than the training set of 6 captions'):
        build_dataloader(args(limit_train=6, batch_size=7))


def test_testing_needs_no_training_entries(make_dataset, args):
    make_dataset('RSTPReid', {'test': 2})
    images, captions, classes = build_dataloader(args(dataset_name='RSTPReid', training=False))
    assert classes == 0 and len(images.dataset) == 4 and len(captions.dataset) == 8


def test_empty_splits(make_dataset, args, tmp_path):
    make_dataset('ICFG-PEDES', {'train': 4, 'test': 2})
    with pytest.raises(UserError, match=f"^{tmp_path}/ICFG-PEDES/ICFG-PEDES.json has no entries in the split 'val'; "
                                        'choose the best epoch by the test split: --val_dataset test$'):
        build_dataloader(args(dataset_name='ICFG-PEDES', val_dataset='val'))
    build_dataloader(args(dataset_name='ICFG-PEDES'))
    make_dataset('RSTPReid', {'test': 2})
    with pytest.raises(UserError, match="has no entries in the split 'train'$"):
        build_dataloader(args(dataset_name='RSTPReid'))
    make_dataset('synthpedes', {'train': 2})
    with pytest.raises(UserError, match="has no entries in the split 'test'$"):
        build_dataloader(args(dataset_name='synthpedes', training=False))


def test_unknown_names(args):
    for changes, message in ((dict(dataset_name='CUHK-PEDS'), "unknown dataset 'CUHK-PEDS'; did you mean CUHK-PEDES?"),
                             (dict(sampler='identiy'), "unknown sampler 'identiy'; did you mean identity?"),
                             (dict(val_dataset='vall'), "unknown split 'vall'; did you mean val?")):
        with pytest.raises(UserError) as caught:
            build_dataloader(args(**changes))
        assert str(caught.value) == message


def test_field_that_no_dataset_makes(args, monkeypatch):
    monkeypatch.setattr(SDM, 'fields', ('attribute_mask',))
    with pytest.raises(UserError, match="batch field, requested by a head and made by no dataset: 'attribute_mask'"):
        build_dataloader(args(loss_names='sdm'))


# -- broken images -----------------------------------------------------------------------------------------------------

def damage(loader, *indices):
    paths = [loader.dataset.samples[index][2] for index in indices]
    for path in paths:
        with open(path, 'r+b') as file:
            file.truncate(200)
    return paths


@pytest.mark.parametrize('workers', [0, 2])
def test_broken_image_is_named_in_one_sentence(args, workers, many_cores):
    train = build_dataloader(args(num_workers=workers))[0]
    path, = damage(train, 0)
    with pytest.raises(UserError) as caught:
        epoch(train)
    assert path in str(caught.value) and 'Traceback' not in str(caught.value) and '\n' not in str(caught.value)
    if workers:  # the garbage collector would wait 5 s for each
        train._iterator._shutdown_workers()


@pytest.mark.parametrize('workers', [0, 2])
def test_broken_images_may_be_left_out(args, workers, many_cores):
    train = build_dataloader(args(num_workers=workers, skip_broken=True))[0]
    intact_batches = epoch(train)
    assert not any('skipped' in batch for batch in intact_batches)
    paths = damage(train, 0, 9)  # with two captions each
    batches = epoch(train)
    assert sorted(path for batch in batches for path in batch.get('skipped', ())) == sorted(paths * 2)
    for batch, before in zip(batches, intact_batches):
        is_intact = [image_id not in (0, 4) for image_id in before['image_ids'].tolist()]
        assert all(torch.equal(batch[name], before[name][is_intact]) for name in before)
        assert ('skipped' in batch) == (not all(is_intact))


def test_batch_of_broken_images_alone(args):
    train = build_dataloader(args(skip_broken=True, batch_size=16))[0]
    damage(train, *range(16))
    batch, = epoch(train)
    assert list(batch) == ['skipped'] and len(batch['skipped']) == 16


def test_evaluation_never_leaves_out(args):
    images, _, _ = build_dataloader(args(training=False, skip_broken=True))
    with open(images.dataset.img_paths[1], 'r+b') as file:
        file.truncate(200)
    with pytest.raises(UserError, match=images.dataset.img_paths[1]):
        list(images)


def test_nothing_on_disk_is_changed(args, tmp_path):
    def content():
        return {str(path): hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob('*') if path.is_file()}
    before = content()
    epoch(build_dataloader(args(loss_names='sdm+mlm'))[0])
    assert content() == before


# -- further views of an image -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('preparation', ['irra', 'tbps'])
def test_second_views_follow_from_the_sample_and_come_from_the_image_cache_too(tmp_path, preparation):
    from processor.step import prepare_batch   # not at the top, because datasets do not depend on processor
    generate(str(tmp_path), 12, images_per_id=1, size=(40, 20), format='CUHK-PEDES', test_ids=4, val_ids=2, workers=1)
    args = options(root_dir=str(tmp_path), img_size=(40, 20), batch_size=4, num_workers=0, img_aug=True,
                   preparation=preparation, loss_names='nitc+ss', mvs_image=True)
    assert {'second_images', 'simclr_images'} <= set(args.config.data.batch_fields)

    def first_batch(cache):
        args.image_cache = cache
        loader, *_ = build_dataloader(args)
        return prepare_batch(next(iter(loader)), 'cpu', image_stats=loader.dataset.image_stats)
    plain, again, cached = first_batch(''), first_batch(''), first_batch('auto')
    for name in ('images', 'second_images'):
        assert torch.equal(plain[name], again[name])
        torch.testing.assert_close(plain[name], cached[name])
    assert plain['simclr_images'].shape == (4, 2, 3, 40, 20)
    assert torch.equal(plain['simclr_images'], again['simclr_images'])
    assert torch.equal(plain['simclr_images'], cached['simclr_images'])   # the images on disk have the cache's size
    views = [plain['images'], plain['second_images'], *plain['simclr_images'].unbind(1)]
    assert all(not torch.equal(one, other) for i, one in enumerate(views) for other in views[:i])


def test_what_is_said_of_a_word_stays_with_it_where_others_are_removed():
    caption = 'a tall man wears a red jacket, blue jeans and white shoes with a big black backpack on his back'
    pairs = [(0, 0, 'image', caption)]
    plain, perturbed = (build_pairs(pairs, fields=('attributes_mask',), text_length=40, augment=augment)
                        for augment in (None, perturb_caption))
    plain.image_transform = perturbed.image_transform = lambda path, image_id, seed: {}
    sample = plain[0]
    groups = dict(zip(sample['caption_ids'].tolist(), sample['attributes_mask'].tolist()))
    shorter = 0
    for seed in range(60):
        drawn = perturbed[0, seed]
        ids, mask = drawn['caption_ids'].tolist(), drawn['attributes_mask'].tolist()
        shorter += ids.index(49407) < sample['caption_ids'].tolist().index(49407)
        once = [token for token in groups if sample['caption_ids'].tolist().count(token) == 1 and token in ids]
        assert len(once) > 5 and all(mask[ids.index(token)] == groups[token] for token in once)
    assert 20 < shorter <= 60
