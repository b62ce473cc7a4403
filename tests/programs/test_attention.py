"""run_scripts/attention.py: the maps against plain re-computations, retrieval with noise, and what is refused."""
import os

import pytest
import torch

import pedestal
import train as train_program
from processor.evaluation import embed
from run_scripts import attention
from utils.errors import UserError
from utils.pictures import pyplot

TEXT = 'a woman in a red coat'
WORDS = TEXT.split()


@pytest.fixture(scope='module')
def people(trained):
    return pedestal.load(os.path.dirname(trained), device='cpu')


@pytest.fixture
def photo(opened):
    return opened.images.dataset.img_paths[0]


def test_what_hiding_takes_away(people, photo):
    image, query = people.read(photo), people.encode_captions([TEXT])[0]
    similarity = float(people.embed([image])[0] @ query)
    falls = attention.fall(people, image, query, similarity)
    assert falls.shape == (24, 8)
    changed = image.clone()
    changed[:, 8 * 64 // 24:9 * 64 // 24, 12:16] = 0                  # row 8, column 3 of 64x32 pixels
    assert falls[8, 3].item() == pytest.approx(similarity - float(people.embed([changed])[0] @ query), abs=1e-5)
    assert float(people.embed([image])[0] @ query) == similarity      # the image is as it was


def test_what_leaving_a_word_out_takes_away(people, photo):
    own, query = people.encode_images([photo]), people.encode_captions([TEXT])[0]
    losses = attention.left_out(people, people.tokens([TEXT]), own[0], float(own @ query))
    without = people.encode_captions([' '.join(WORDS[:n] + WORDS[n + 1:]) for n in range(len(WORDS))])
    assert losses == pytest.approx((float(own @ query) - without @ own[0]).tolist(), abs=1e-5)


def test_words_and_the_patches_that_are_like_them(people, photo):
    maps = attention.looked_at(people, people.read(photo), people.tokens([TEXT]))
    assert [word for word, _ in maps] == WORDS and all(rows.shape == (4, 2) for _, rows in maps)
    (title, rows), = attention.patches(people, people.read(photo))
    assert rows.shape == (4, 2) and 0 < rows.sum() < 1 and (rows > 0).all()     # the class token also looks at itself


def test_a_run_with_a_cross_encoder_shows_its_attention(data, clip, tmp_path, photo):
    train_program.main(['--name', 'mlm', '--loss_names', 'sdm+mlm', '--dataset_name', 'CUHK-PEDES', '--root_dir', data, '--num_epoch', '1',
                        '--pretrain_choice', clip, '--img_size', '64', '32', '--batch_size', '8', '--num_workers', '0', '--device', 'cpu',
                        '--cmt_depth', '1', '--output_dir', str(tmp_path)])
    folder, = os.listdir(tmp_path / 'CUHK-PEDES')
    people = pedestal.load(str(tmp_path / 'CUHK-PEDES' / folder))
    maps = attention.looked_at(people, people.read(photo), people.tokens([TEXT]))
    assert [word for word, _ in maps] == WORDS and all((rows > 0).all() and rows.sum() < 1 for _, rows in maps)


def test_the_picture(trained, photo, tmp_path):
    out = str(tmp_path / 'x.png')
    attention.main(['--config_file', trained, '--caption', TEXT, '--image', photo, '--out', out])
    assert open(out, 'rb').read(8) == b'\x89PNG\r\n\x1a\n' and not pyplot().get_fignums()
    attention.main(['--config_file', trained, '--caption', 'coat', '--image', photo, '--out', out])        # of one word


def test_noise_lowers_retrieval_and_none_changes_nothing(trained, opened, tmp_path, capsys):
    plain, _ = embed(opened.model.encode_image, opened.images, opened.model)
    same, _ = embed(attention.noisy(opened.model, 0.0, 1), opened.images, opened.model)
    other, _ = embed(attention.noisy(opened.model, 0.3, 1), opened.images, opened.model)
    again, _ = embed(attention.noisy(opened.model, 0.3, 1), opened.images, opened.model)
    assert torch.allclose(plain, same, atol=1e-6) and torch.equal(other, again) and not torch.allclose(plain, other, atol=1e-2)
    out = str(tmp_path / 'x.png')
    for own in ([], ['--caption', TEXT]):
        attention.main(['--config_file', trained, '--noise', '0', '0.5', '--out', out, *own])
        told = capsys.readouterr().out
        assert 'noise 0: Rank-1' in told and 'noise 0.5: Rank-1' in told and os.path.isfile(out)


@pytest.mark.parametrize('words, sentence', [
    ([], '--caption and --image say whose'), (['--caption', 'x'], '--caption and --image say whose'),
    (['--caption', ' ', '--image', '{photo}'], 'a caption is empty'), (['--caption', 'x', '--image', 'none.jpg'], 'no image none.jpg'),
    (['--noise', '2'], '--noise.*at most 1'), (['--noise', '0', '--out', 'x.doc'], "'doc' is none")])
def test_what_is_refused(trained, photo, words, sentence):
    with pytest.raises(UserError, match=sentence):
        attention.main(['--config_file', trained, *(word.format(photo=photo) for word in words)])
