"""run_scripts/attention.py: the maps against plain re-computations, retrieval with noise, and what is refused."""
import os

import pytest
import torch

import pedestal
import train as train_program
from processor import attention
from processor.evaluation import embed
from run_scripts import attention as program
from utils.errors import UserError
from utils.figures import import_pyplot

TEXT = 'a woman in a red coat'
WORDS = TEXT.split()


@pytest.fixture(scope='module')
def people(trained):
    return pedestal.load(os.path.dirname(trained), device='cpu')


@pytest.fixture
def photo(opened):
    return opened.images.dataset.img_paths[0]


def pair_of(people, photo):
    return attention.ImageCaptionPair(people, people.load_image(photo), TEXT)


def test_what_hiding_takes_away(people, photo):
    pair, image, query = pair_of(people, photo), people.load_image(photo), people.encode_captions([TEXT])[0]
    falls = pair.occlusion_map()
    assert falls.shape == (24, 8)
    changed = image.clone()
    changed[:, 8 * 64 // 24:9 * 64 // 24, 12:16] = 0                  # row 8, column 3 of 64x32 pixels
    assert falls[8, 3].item() == pytest.approx(pair.similarity - float(people.embed_images([changed])[0] @ query),
                                               abs=1e-5)
    assert float(people.embed_images([pair.image])[0] @ query) == pair.similarity      # the image is as it was


def test_what_leaving_a_word_out_takes_away(people, photo):
    original, query = people.encode_images([photo]), people.encode_captions([TEXT])[0]
    without = people.encode_captions([' '.join(WORDS[:n] + WORDS[n + 1:]) for n in range(len(WORDS))])
    assert pair_of(people,
                   photo).word_drops() == pytest.approx((float(original @ query) - without @ original[0]).tolist(),
                                                        abs=1e-5)


def test_what_the_library_shows_of_a_photo_and_a_caption(people, photo):
    results = people.explain(photo, TEXT)
    similarity = float(people.encode_images([photo])[0] @ people.encode_captions([TEXT])[0])
    assert results.similarity == pytest.approx(similarity, abs=1e-6)
    assert [word for word, *_ in results.words] == WORDS and all(rows.shape == (4, 2) for _, rows, _ in results.words)
    assert [loss for *_, loss in results.words] == pair_of(people, photo).word_drops()
    (title, rows), (hidden, falls) = results.maps
    assert rows.shape == (4, 2) and 0 < rows.sum() < 1 and (rows > 0).all()     # the class token also looks at itself
    assert 'drop' in hidden and falls.shape == (24, 8)


def run_with(losses, data, clip, folder, *more):
    train_program.main(['--name', 'maps', '--loss_names', losses, '--dataset_name', 'CUHK-PEDES', '--root_dir', data,
                        '--num_epoch', '1', '--pretrain_choice', clip, '--img_size', '64', '32', '--batch_size', '8',
                        '--num_workers', '0', '--device', 'cpu', '--output_dir', str(folder), *more])
    run, = os.listdir(folder / 'CUHK-PEDES')
    return pedestal.load(str(folder / 'CUHK-PEDES' / run))


def test_a_run_with_a_cross_encoder_shows_its_attention(data, clip, tmp_path, photo):
    results = run_with('sdm+mlm', data, clip, tmp_path, '--cmt_depth', '1').explain(photo, TEXT)
    assert [word for word, *_ in results.words] == WORDS
    assert all((rows > 0).all() and rows.sum() < 1 for _, rows, _ in results.words)


def test_what_heads_read_is_shown(data, clip, tmp_path, photo):
    """PHP's parts and A2TE's details, against a plain computation."""
    people = run_with('itc+aux+detail', data, clip, tmp_path, '--moe_layers', '1', '--num_experts', '2', '--cnum', '3',
                      '--pool_ratio', '0.5')
    maps = dict(people.explain(photo, TEXT).maps[1:-1])
    assert [title.split(':')[0] for title in maps] == ['part 1', 'part 2', 'part 3', 'details']
    model, ids = people.model, people.tokenize([TEXT])
    with torch.no_grad():
        patches, attended = model.backbone.encode_image(people.load_image(photo)[None], True)
        tokens, of_words = model.backbone.encode_text(ids, True)
    slots, real = model.safl.part_tokens, slice(1, 1 + len(WORDS))
    for number in range(3):
        title, = (title for title in maps if title.startswith(f'part {number + 1}'))
        assert torch.allclose(maps[title].flatten(), (patches[0, 1:] @ slots[number]).softmax(dim=0), atol=1e-5)
        heaviest = (tokens[0] @ slots[number])[real].topk(3).indices.sort().values
        assert title.split(': ')[1] == ' '.join(WORDS[position] for position in heaviest)
    title, = (title for title in maps if title.startswith('details'))
    best = attended[0, 0, 1:].topk(4)                                   # half of the 4x2 patches
    assert torch.equal(maps[title].flatten(), torch.zeros(8).scatter(0, best.indices, 1.0))
    heaviest = of_words[0, 1 + len(WORDS), real].topk(3).indices.sort().values
    assert title.split(': ')[1] == ' '.join(WORDS[position] for position in heaviest)


def test_rdes_tokens_are_shown_beside_its_words(data, clip, tmp_path, photo):
    title, rows = run_with('tal+tse', data, clip, tmp_path, '--select_ratio', '0.4').explain(photo, TEXT).maps[1]
    assert title.startswith('TSE: ') and set(title.split()[1:]) <= set(WORDS) and rows.unique().tolist() == [0, 1]
    assert rows.sum() == 3


def test_the_picture(trained, photo, tmp_path):
    out, open_before = str(tmp_path / 'x.png'), import_pyplot().get_fignums()
    program.main(['--config_file', trained, '--caption', TEXT, '--image', photo, '--out', out])
    assert open(out, 'rb').read(8) == b'\x89PNG\r\n\x1a\n' and import_pyplot().get_fignums() == open_before
    program.main(['--config_file', trained, '--caption', 'coat', '--image', photo, '--out', out])        # of one word


def test_noise_lowers_retrieval_and_none_changes_nothing(trained, opened, tmp_path, capsys):
    plain, _ = embed(opened.model, opened.images, 'image')
    def encode(std):
        return program.encode_with_noise(opened.model, std, 1, opened.model.image_stats)
    same, _ = embed(opened.model, opened.images, 'image', encode(0.0))
    other, _ = embed(opened.model, opened.images, 'image', encode(0.3))
    again, _ = embed(opened.model, opened.images, 'image', encode(0.3))
    assert torch.allclose(plain, same, atol=1e-6) and torch.equal(other, again)
    assert not torch.allclose(plain, other, atol=1e-2)
    out = str(tmp_path / 'x.png')
    for original in ([], ['--caption', TEXT]):
        program.main(['--config_file', trained, '--noise', '0', '0.5', '--out', out, *original])
        output = capsys.readouterr().out
        assert 'noise 0: Rank-1' in output and 'noise 0.5: Rank-1' in output and os.path.isfile(out)


@pytest.mark.parametrize('words, sentence', [([], '--caption and --image are both required'),
                                             (['--caption', 'x'], '--caption and --image are both required'),
                                             (['--caption', ' ', '--image', '{photo}'], 'a caption is empty'),
                                             (['--caption', 'x', '--image', 'none.jpg'], 'no image none.jpg'),
                                             (['--noise', '2'], '--noise.*at most 1'),
                                             (['--noise', '0', '--image', '{photo}'], 'does not read --image'),
                                             (['--noise', '0', '--out', 'x.doc'], "'doc' is none")])
def test_what_is_refused(trained, photo, words, sentence):
    with pytest.raises(UserError, match=sentence):
        program.main(['--config_file', trained, *(word.format(photo=photo) for word in words)])
