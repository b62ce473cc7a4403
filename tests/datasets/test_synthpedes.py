"""synthpedes: its files, its determinism, true captions, and that it never changes other data."""
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import synthpedes
from datasets.build import build_dataset
from datasets.synthpedes import baselines, people, writing
from datasets.synthpedes.__main__ import main
from datasets.synthpedes.drawing import Palette, sample_scene, render_image
from tests.several import ForkedProgram
from tests.support import HANG_TIMEOUT
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = {'ids': 8, 'images_per_id': 2, 'size': (48, 24), 'workers': 0, 'progress': False}


def make(out, **changes):
    return Path(synthpedes.generate(str(out), **{**SMALL, **changes}))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


def read(folder, name):
    return json.loads((Path(folder) / name).read_text())


@pytest.fixture
def start(tmp_path_factory):
    """A function that starts the program, in a process that has imported PyTorch already."""
    path = tmp_path_factory.mktemp('output') / 'output.txt'
    return lambda *arguments: ForkedProgram(main, list(map(str, arguments)), path, name='synthpedes')


def samples(count, **difficulty):
    """(person, scene, caption) triples without drawing anything."""
    for i in range(count):
        person = people.sample_person(random.Random(i))
        for number, view in enumerate(('front', 'back', 'side')):
            scene = sample_scene(i, view, occlusion=0.4)
            yield person, scene, people.write_caption(person, scene, random.Random(1000 + 3 * i + number), **difficulty)


# --- the same again -----------------------------------------------------------------------------------------------

def test_same_files_whatever_the_workers_and_the_process(tmp_path):
    single = contents(make(tmp_path / 'a'))
    words = ['--out', str(tmp_path / 'b'), '--ids', '8', '--images_per_id', '2', '--size', '48', '24', '--workers', '2']
    other = subprocess.run([sys.executable, '-m', 'datasets.synthpedes', *words], cwd=ROOT, text=True,
                           capture_output=True, env={**os.environ, 'PYTHONHASHSEED': '123'})
    assert other.returncode == 0, other.stderr
    assert contents(tmp_path / 'b' / 'synthpedes') == single
    assert contents(make(tmp_path / 'c', seed=1))['reid_raw.json'] != single['reid_raw.json']


def test_a_seed_gives_what_it_always_gave(tmp_path):
    """Captions and labels are equal to the letter. Images have the same mean color; Pillow's rounding can differ."""
    folder = make(tmp_path)
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16]
               for name in ('reid_raw.json', 'attributes.json')]
    assert digests == ['d346f09085352571', '1019e6af8cbf4503']
    means = np.mean([np.asarray(Image.open(path), float).mean((0, 1)) for path in (folder / 'imgs').rglob('*.jpg')],
                    axis=0)
    assert np.abs(means - (121.66, 114.76, 112.17)).max() < 0.5


def test_workers_change_nothing_in_process(tmp_path):
    assert contents(make(tmp_path / 'a', workers=0)) == contents(make(tmp_path / 'b', workers=3))


# --- layouts ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('format, annotation, key, first, captions, val', [
    ('synthpedes', 'reid_raw.json', 'file_path', 1, 2, 1), ('CUHK-PEDES', 'reid_raw.json', 'file_path', 1, 2, 1),
    ('ICFG-PEDES', 'ICFG-PEDES.json', 'file_path', 0, 1, 0), ('RSTPReid', 'data_captions.json', 'img_path', 0, 2, 1)])
def test_layout_of_every_format(tmp_path, format, annotation, key, first, captions, val):
    folder = make(tmp_path, format=format, val_ids=val, test_ids=2)
    assert folder == tmp_path / format
    entries = read(folder, annotation)
    assert {frozenset(e) for e in entries} == {frozenset({'id', 'split', 'captions', key})}
    assert len(entries) == 16 and {len(e['captions']) for e in entries} == {captions}
    ids = {split: sorted({e['id'] for e in entries if e['split'] == split}) for split in ('train', 'val', 'test')}
    assert sum(ids.values(), []) == list(range(first, first + 8))  # disjoint, without holes, training first
    assert (len(ids['val']), len(ids['test'])) == (val, 2)
    for entry in entries:
        with Image.open(folder / 'imgs' / entry[key]) as image:
            assert image.format == 'JPEG' and image.size == (24, 48) and image.mode == 'RGB'
    assert {str(p.relative_to(folder / 'imgs')) for p in (folder / 'imgs').rglob('*.jpg')} == {e[key] for e in entries}
    labels = read(folder, 'attributes.json')
    assert [x['id'] for x in labels] == list(range(first, first + 8))
    assert {x['id']: x['split'] for x in labels} == {e['id']: e['split'] for e in entries}
    mark = read(folder, 'synthpedes.json')
    assert mark['settings']['seed'] == 0 and mark['settings']['omission'] == 0.2
    assert mark['counts']['test'] == {'ids': 2, 'images': 4, 'captions': 4 * captions}


def test_image_and_captions_are_of_the_identity_and_view():
    """Drawing with another shirt changes the shirt's band of the image and not the legs'."""
    person = people.sample_person(random.Random(5))
    person.update(jacket=None, bag=None, scarf=None, held=None)
    person['upper'] = {'kind': 'T-shirt', 'colour': 'red', 'pattern': 'plain', 'second': None, 'sleeves': 'short'}
    person['lower'] = {'kind': 'trousers', 'colour': 'black', 'pattern': 'plain', 'second': None, 'length': 'long'}
    scene = sample_scene(3, 'front', tint=0, occlusion=0)
    red = np.asarray(render_image(person, scene, Palette(1, 0), (96, 48), 0), int)
    person['upper']['colour'] = 'blue'
    blue = np.asarray(render_image(person, scene, Palette(1, 0), (96, 48), 0), int)
    shirt, legs = (slice(26, 40), slice(20, 28)), (slice(58, 80), slice(18, 30))
    assert red[shirt].mean((0, 1)).argmax() == 0 and blue[shirt].mean((0, 1)).argmax() == 2
    assert np.abs(red[legs] - blue[legs]).max() <= 2
    assert red[legs].mean() < 110


def test_view_decides_what_is_seen_and_said():
    person = people.sample_person(random.Random(7))
    person.update(jacket={'kind': 'jacket', 'colour': 'black', 'length': 'hip'}, glasses='sunglasses')
    person['upper'] = {'kind': 'T-shirt', 'colour': 'orange', 'pattern': 'logo', 'second': 'white', 'sleeves': 'short'}
    person['lower'] = {'kind': 'trousers', 'colour': 'grey', 'pattern': 'plain', 'second': None, 'length': 'long'}
    captions = {view: ' '.join(people.write_caption(person, sample_scene(i, view), random.Random(i), omission=0.0)
                           for i in range(60))
            for view in ('front', 'back')}
    assert 'orange' in captions['front'] and 'on the chest' in captions['front'] and 'sunglasses' in captions['front']
    assert not re.search('orange|on the chest|on the front|sunglasses', captions['back'])
    assert 'camera' in captions['back'] or 'behind' in captions['back']


# --- captions -----------------------------------------------------------------------------------------------------

COLOR_WORDS = {**{c: c for c in people.COLORS}, 'gray': 'grey', 'navy': 'blue', 'maroon': 'red', 'burgundy': 'red',
                'charcoal': 'grey', 'violet': 'purple', 'lavender': 'purple', 'lilac': 'purple', 'tan': 'beige',
                'khaki': 'beige', 'cream': 'beige', 'blonde': 'blonde', 'blond': 'blonde', 'fair': 'blonde'}
SLOT_NOUNS = {
    'upper': 'T-shirt tee shirt top blouse polo sweater pullover jumper hoodie sweatshirt dress',
    'hair': 'hair ponytail', 'jacket': 'jacket coat overcoat cardigan vest', 'hat': 'cap beanie hat', 'scarf': 'scarf',
    'lower': 'trousers pants slacks jeans leggings shorts skirt', 'shoes': 'shoes sneakers trainers boots sandals',
    'bag': 'backpack rucksack bag handbag purse'}
SLOT_OF = {noun: slot for slot, nouns in SLOT_NOUNS.items() for noun in nouns.split()}
KIND_WORDS = {  # a word that only goes with these kinds
    'bag': {'backpack': 'backpack', 'rucksack': 'backpack', 'messenger': 'shoulder bag', 'handbag': 'handbag',
            'purse': 'handbag'},
    'hat': {'cap': 'cap', 'beanie': 'beanie', 'woolly': 'beanie', 'knit': 'beanie', 'wide-brimmed': 'sun hat'},
    'lower': {'jeans': 'jeans', 'shorts': 'shorts', 'skirt': 'skirt', 'leggings': 'leggings', 'slacks': 'trousers'},
    'shoes': {'boots': 'boots', 'sandals': 'sandals', 'sneakers': 'sneakers'},
    'upper': {'hoodie': 'hoodie', 'blouse': 'blouse', 'polo': 'polo shirt', 'sweater': 'sweater', 'T-shirt': 'T-shirt'},
    'jacket': {'coat': 'coat', 'overcoat': 'coat', 'cardigan': 'cardigan'}}
BOUNDS = ('a an of with wearing in wears has is he she the over under '
          'stripes checks dots spots sides half chest front sleeves').split()
GARBLED = re.compile(r'\s\s|\s[,.]|,,|\{|None|and \.|, \.|\ba [aeiou]|\ban [^aeiou]|\b(\w+) \1\b')
HELD_WORDS = {'phone': 'phone', 'umbrella': 'umbrella', 'bottle': 'bottle', 'leaflet': 'paper', 'sheet': 'paper',
              'coffee': 'cup'}


def own_colors(thing):
    return {people.base_color(thing[k]) for k in ('colour', 'second') if thing.get(k)}


def slot_at(words, i, person):
    """The slot that the noun at ``i`` belongs to; 'dress shoes' is no dress, a 'sleeveless jacket' no sleeve."""
    if words[i] == 'dress' and words[i + 1:i + 2] == ['shoes']:
        return None
    if words[i] == 'polo' and words[i + 1:i + 2] == ['shirt']:
        return None
    return SLOT_OF.get(words[i])


def falsehoods(caption, person, view):
    """The statements of the caption that contradict the labels."""
    words, errors = re.findall(r"[A-Za-z-]+", caption), []
    for i, word in enumerate(words):
        slot = slot_at(words, i, person)
        if slot:
            if not person[slot]:
                errors.append(f'no {slot}, but {word}')
                continue
            if KIND_WORDS.get(slot, {}).get(word, person[slot].get('kind')) != person[slot].get('kind'):
                errors.append(f'{word} for {person[slot]["kind"]}')
            for before in reversed(words[max(0, i - 6):i]):
                if before in COLOR_WORDS and COLOR_WORDS[before] not in own_colors(person[slot]):
                    errors.append(f'{before} {word}')
                if before in SLOT_OF or before in BOUNDS:
                    break
        if word in HELD_WORDS and person['held'] != HELD_WORDS[word]:
            errors.append(f'{word} for {person["held"]}')
        if word in ('glasses', 'sunglasses') and (person['glasses'] != word or view == 'back'):
            errors.append(word)
    every = {'blonde'} if person['hair']['colour'] == 'blonde' else set()
    for thing in person.values():
        every |= own_colors(thing) if isinstance(thing, dict) else set()
    errors += [word for word in words if word in COLOR_WORDS and COLOR_WORDS[word] not in every]
    he = person['gender'] == 'man'
    wrong = 'she her woman lady female' if he else 'he his man guy male gentleman'
    errors += [word for word in words if word.lower() in wrong.split()]
    sleeves = re.search(r'(long|short)[- ]sleeved?\b|(long|short) sleeves', caption)
    if sleeves and (sleeves[1] or sleeves[2]) != person['upper']['sleeves']:
        errors.append(sleeves[0])
    patterns = {'strip': 'striped', 'check': 'checked', 'plaid': 'checked', 'dot': 'dotted', 'spots': 'dotted',
                'logo': 'logo', ' print ': 'logo', 'two-tone': 'two-tone', 'lower half': 'two-tone',
                'color-block': 'two-tone', 'plain': 'plain'}
    worn = {person[s]['pattern'] for s in ('upper', 'lower') if person[s]}
    errors += [word for word, pattern in patterns.items() if word in caption and pattern not in worn]
    return errors


def test_captions_are_of_people_s_length_and_true():
    for person, scene, caption in samples(1500):
        assert 20 <= len(caption.split()) <= 40, caption
        assert caption[0].isupper() and caption.endswith('.') and caption.isascii()
        assert not GARBLED.search(caption), caption
        assert not falsehoods(caption, person, scene.view), (caption, falsehoods(caption, person, scene.view), person)


def test_the_truth_check_can_fail():
    wrong = 0
    for _, scene, caption in samples(100):
        other = people.sample_person(random.Random(99_999))
        wrong += bool(falsehoods(caption, other, scene.view))
    assert wrong > 270  # of 300 captions checked against somebody else's labels


def test_extreme_difficulty_still_gives_sentences():
    for omission, shades in ((0, 0), (0.9, 1), (0.9, 0)):
        for person, scene, caption in samples(150, omission=omission, shades=shades):
            assert 20 <= len(caption.split()) <= 40, caption
            assert not falsehoods(caption, person, scene.view), (caption, falsehoods(caption, person, scene.view))


def test_captions_are_diverse():
    captions = [caption for *_, caption in samples(300)]
    assert len(set(captions)) == len(captions)
    openings = Counter(' '.join(c.split()[:3]) for c in captions)
    assert len(openings) > 150 and openings.most_common(1)[0][1] < 72  # 8%
    assert 0.3 < np.mean([c.count('. ') > 0 for c in captions]) < 0.95  # one sentence or two
    assert len({w for c in captions for w in c.lower().split()}) > 230


def test_without_variety_captions_have_one_pattern_and_are_true():
    plain = list(samples(300, variety=0.0, shades=0.0))
    for person, scene, caption in plain:
        assert re.fullmatch(r'A (wo)?man( with .* (hair|head))? wears .*\.', caption), caption
        assert not falsehoods(caption, person, scene.view), (caption, falsehoods(caption, person, scene.view))
        outer = person['jacket'] or person['upper']
        assert f'{outer["colour"]} {people.NOUNS[outer["kind"]][0]}' in caption
        assert person['lower'] is None or person['lower']['colour'] in caption
    words = {w for *_, caption in plain for w in caption.lower().split()}
    assert not words & {'navy', 'maroon', 'gray', 'jumper', 'striped', 'street'}
    half = [caption for *_, caption in samples(300, variety=0.5, shades=0.0)]
    assert 0.4 < np.mean([a == b for a, (*_, b) in zip(half, plain)]) < 0.6


def test_settings_without_variety_are_those_of_older_versions(tmp_path):
    assert 'variety' not in read(make(tmp_path), 'synthpedes.json')['settings']
    assert read(make(tmp_path / 'plain', variety=0.0), 'synthpedes.json')['settings']['variety'] == 0


def test_omission_leaves_attributes_out():
    def mentions_per_caption(omission):
        captions = [caption for *_, caption in samples(200, omission=omission)]
        words = re.findall('[A-Za-z-]+', ' '.join(captions))
        return sum(w in SLOT_OF or w in COLOR_WORDS for w in words) / len(captions)
    assert mentions_per_caption(0.0) > mentions_per_caption(0.4) + 1 > mentions_per_caption(0.9) + 2


def test_shades_leave_shades_out():
    def shaded(shades):
        captions = [caption for *_, caption in samples(200, shades=shades)]
        return len([c for c in captions if re.search('navy|dark blue|light blue|sky blue|pale blue', c)])
    assert shaded(0.0) > shaded(1.0) * 1.3


# --- identities ---------------------------------------------------------------------------------------------------

def test_twins_differ_in_exactly_one_label(tmp_path):
    labels = read(make(tmp_path, ids=60, images_per_id=1, test_ids=13, val_ids=7, twins=1.0), 'attributes.json')
    known = {person['id']: person for person in labels}
    twins = [person for person in labels if person['twin_of'] is not None]
    assert len(twins) == 20 + 3 + 6  # pairs of 40, 7 and 13
    for twin in twins:
        other = known[twin['twin_of']]
        assert other['split'] == twin['split'] and other['twin_of'] is None
        a, b = (people.flatten_labels({k: v for k, v in p.items() if k not in ('id', 'split', 'twin_of')})
                for p in (twin, other))
        assert a.keys() == b.keys() and sum(a[k] != b[k] for k in a) == 1
    assert len({json.dumps({k: v for k, v in p.items() if k not in ('id', 'twin_of')}) for p in labels}) == 60


def test_twins_is_a_fraction_of_pairs():
    settings = writing.validate_settings(2000, 1, 1, (48, 24), 0, 'synthpedes', 0, 400, twins=0.3)
    twins = sum(writing._sample_identity(settings, i, 0, 1600)[2] is not None for i in range(1600))
    assert 190 < twins < 290  # 0.15 x 1600 pairs
    settings['twins'] = 0.0
    assert all(writing._sample_identity(settings, i, 0, 1600)[2] is None for i in range(200))


def test_a_twin_looks_the_same_but_for_its_change():
    settings = writing.validate_settings(40, 1, 1, (48, 24), 0, 'synthpedes', 0, 1, twins=1.0)
    (one, look, _), (two, same_look, leader) = (writing._sample_identity(settings, i, 0, 39) for i in (4, 5))
    assert leader == 4 and look == same_look and one != two


def test_colors_option_limits_garments():
    for seed in range(300):
        person = people.sample_person(random.Random(seed), colors=5)
        twin = people.sample_twin(person, random.Random(seed), colors=5)
        for who in (person, twin):
            worn = set().union(*(own_colors(who[s])
                                 for s in ('upper', 'jacket', 'lower', 'shoes', 'bag', 'hat', 'scarf') if who[s]))
            assert worn <= set(people.COLORS[:5])


# --- other people's folders ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('overwrite', [False, True])
def test_foreign_folder_is_never_touched(tmp_path, overwrite):
    real = tmp_path / 'CUHK-PEDES'
    (real / 'imgs').mkdir(parents=True)
    (real / 'reid_raw.json').write_text('[]')
    with pytest.raises(UserError, match='not made by synthpedes'):
        make(tmp_path, format='CUHK-PEDES', overwrite=overwrite)
    assert contents(real) == {'reid_raw.json': b'[]'} and os.listdir(tmp_path) == ['CUHK-PEDES']


def test_again_with_the_same_other_and_overwritten_settings(tmp_path, capsys):
    folder = make(tmp_path)
    first, stamp = contents(folder), (folder / 'reid_raw.json').stat().st_mtime_ns
    make(tmp_path, workers=2)
    assert 'nothing to do' in capsys.readouterr().out and (folder / 'reid_raw.json').stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match=r'other settings \(seed, tint\).*--overwrite'):
        make(tmp_path, seed=3, tint=0.1)
    assert contents(folder) == first
    make(tmp_path, seed=3, overwrite=True)
    assert contents(folder) != first and os.listdir(tmp_path) == ['synthpedes']
    next((folder / 'imgs').rglob('*.jpg')).unlink()
    with pytest.raises(UserError, match='files are missing'):
        make(tmp_path, seed=3)


def test_empty_folder_is_taken_and_a_link_is_not(tmp_path):
    (tmp_path / 'synthpedes').mkdir()
    folder = make(tmp_path)
    assert (folder / 'reid_raw.json').exists()
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'synthpedes').symlink_to(folder)
    make(tmp_path / 'b')  # the same settings: there already
    with pytest.raises(UserError, match='is a link'):
        make(tmp_path / 'b', overwrite=True)
    assert (folder / 'reid_raw.json').exists()


@pytest.mark.parametrize('error, seen', [(KeyboardInterrupt, KeyboardInterrupt),
                                         (OSError(28, 'No space left on device'), UserError)])
def test_interruption_leaves_nothing(tmp_path, monkeypatch, error, seen):
    before = contents(make(tmp_path / 'old'))
    plain = writing._write_identity

    def stop(task):
        if task[3] == 4:
            raise error
        return plain(task)
    monkeypatch.setattr(writing, '_write_identity', stop)
    with pytest.raises(seen):
        make(tmp_path / 'new')
    with pytest.raises(seen):
        make(tmp_path / 'old', seed=5, overwrite=True)
    assert os.listdir(tmp_path) == ['old'] and os.listdir(tmp_path / 'old') == ['synthpedes']
    assert contents(tmp_path / 'old' / 'synthpedes') == before


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_workers_and_leaves_nothing(start, tmp_path, number):
    running = first_image_of(start, tmp_path / 'data')
    running.send_signal(number)
    assert running.wait() == 130
    assert 'interrupted' in running.read_output() and os.listdir(tmp_path) == []


def first_image_of(start, tmp_path):
    """A generation into ``tmp_path`` that has just started to write."""
    running = start('--out', tmp_path, '--ids', 2000, '--size', 64, 32, '--workers', 2)
    deadline = time.time() + HANG_TIMEOUT
    while not list(tmp_path.rglob('*.jpg')) and time.time() < deadline:
        time.sleep(0.05)
    return running


def test_two_generations_at_once_do_not_replace_each_other(start, tmp_path):
    running = first_image_of(start, tmp_path)
    try:
        for overwrite in (False, True):
            message = f'^another run is writing {tmp_path}/synthpedes: wait until it is done'
            with pytest.raises(UserError, match=message):
                make(tmp_path, overwrite=overwrite)
        other = make(tmp_path, format='RSTPReid')       # another format is another folder
        assert running.poll() is None and sorted(os.listdir(tmp_path)) == ['.synthpedes.new', other.name]
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 130
    assert os.listdir(tmp_path) == ['RSTPReid']
    make(tmp_path)


def test_the_slower_of_two_generations_replaces_nothing(tmp_path, monkeypatch):
    """It checks the folder before the faster run ends, and again after it has the lock."""
    locked = writing._lock_folder

    def late(*arguments):
        monkeypatch.setattr(writing, '_lock_folder', locked)
        make(tmp_path, seed=1)
        return locked(*arguments)
    monkeypatch.setattr(writing, '_lock_folder', late)
    with pytest.raises(UserError, match='was made with other settings'):
        make(tmp_path, seed=2)
    assert read(tmp_path / 'synthpedes', 'synthpedes.json')['settings']['seed'] == 1
    assert os.listdir(tmp_path) == ['synthpedes']


def test_what_a_killed_generation_left_goes_with_the_next(start, tmp_path):
    running = first_image_of(start, tmp_path)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert os.listdir(tmp_path) == ['.synthpedes.new']
    deadline = time.time() + HANG_TIMEOUT
    while time.time() < deadline:    # its workers notice within a second or two
        try:
            folder = make(tmp_path)
            break
        except UserError:
            time.sleep(0.2)
    assert os.listdir(tmp_path) == ['synthpedes'] and contents(folder) == contents(make(tmp_path / 'b'))


def test_what_was_replaced_comes_back_after_a_kill_between_the_renames(tmp_path):
    folder = make(tmp_path)
    before = contents(folder)
    folder.rename(tmp_path / '.synthpedes.old')
    (tmp_path / '.synthpedes.new' / 'imgs').mkdir(parents=True)
    with pytest.raises(UserError, match='was made with other settings'):
        make(tmp_path, seed=1)
    assert os.listdir(tmp_path) == ['synthpedes'] and contents(folder) == before


@pytest.mark.parametrize('content', ['[]', '3', '{"made_by": "datasets.synthpedes"}',
                                     '{"made_by": "datasets.synthpedes", "settings": 3}'])
def test_synthpedes_json_of_other_content_is_a_sentence(tmp_path, content):
    folder = make(tmp_path)
    (folder / 'synthpedes.json').write_text(content)
    with pytest.raises(UserError, match='was not made by synthpedes|was made with other settings'):
        make(tmp_path)


def test_out_is_a_file(tmp_path):
    (tmp_path / 'a').write_text('mine')
    with pytest.raises(UserError, match='cannot write .*: Not a directory'):
        make(tmp_path / 'a')
    with pytest.raises(UserError, match='cannot write the contact sheet'):
        main(['--contact_sheet', str(tmp_path)])
    assert (tmp_path / 'a').read_text() == 'mine' and os.listdir(tmp_path) == ['a']


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_unwritable_out(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match='cannot write'):
        make(tmp_path)


def test_out_below_a_file(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write'):
        make(tmp_path / 'file')


# --- baselines ----------------------------------------------------------------------------------------------------

def test_baselines_agree_with_a_plain_recomputation(tmp_path):
    folder = make(tmp_path, ids=40, test_ids=30, val_ids=0, size=(96, 48), images_per_id=3)
    captions, caption_pids, paths, image_pids = baselines.read_split(str(folder), 'test')
    assert (len(captions), len(paths)) == (180, 90)
    scores = baselines.baseline_scores(str(folder), 'test', 2, 10, seed=4)
    rank1 = {'whole image': [], 'garment bands': []}
    for group in synthpedes.sample_galleries(image_pids, 2, 10, seed=4):
        queries = [i for i, p in enumerate(caption_pids) if p in group]
        gallery = [i for i, p in enumerate(image_pids) if p in group]
        similar = synthpedes.baseline_similarities([captions[i] for i in queries], [paths[i] for i in gallery])
        for name, matrix in similar.items():
            assert matrix.shape == (60, 30)
            best = [gallery[max(range(30), key=lambda g: matrix[q][g])] for q in range(60)]
            rank1[name].append(np.mean([image_pids[b] == caption_pids[q] for b, q in zip(best, queries)]))
    for name in rank1:
        assert scores[name]['R1'] == pytest.approx(100 * np.mean(rank1[name]), abs=1e-4)
    assert scores['garment bands']['R1'] > 30 and scores['whole image']['R1'] > 13  # chance: 10
    assert scores['garment bands']['R1'] > scores['whole image']['R1']


def test_color_words_go_to_their_garment():
    image, upper, lower = baselines.count_caption_colors(
        'A man with brown hair wears a navy blue and white striped shirt, a pair of black trousers and red shoes. '
        'His skirt is khaki.')
    names = people.COLORS

    def named(counts):
        return {names[i]: int(n) for i, n in enumerate(counts) if n}
    assert named(upper) == {'blue': 2, 'white': 1} and named(lower) == {'black': 1, 'beige': 1}
    assert named(image) == {'brown': 1, 'blue': 2, 'white': 1, 'black': 1, 'red': 1, 'beige': 1}


def test_image_colors_look_in_the_bands(tmp_path):
    pixels = np.zeros((90, 30, 3), np.uint8)
    pixels[:46], pixels[46:] = people.TONES['red'][0], people.TONES['green'][0]
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    image, upper, lower = baselines.measure_image_colors(str(tmp_path / 'a.png'))
    red, green = people.COLORS.index('red'), people.COLORS.index('green')
    assert upper[red] == 1 and lower[green] == 1
    assert image[red] + image[green] == pytest.approx(1) and 0.45 < image[red] < 0.55
    (tmp_path / 'b.jpg').write_bytes(b'no image')
    with pytest.raises(UserError, match='b.jpg'):
        baselines.measure_image_colors(str(tmp_path / 'b.jpg'))


def test_galleries_are_disjoint_and_repeat():
    pids = [p for p in range(100, 160) for _ in range(3)]
    groups = synthpedes.sample_galleries(pids, 5, 12, seed=2)
    assert [len(g) for g in groups] == [12] * 5 and sorted(sum(groups, [])) == list(range(100, 160))
    assert groups == synthpedes.sample_galleries(pids[::-1], 5, 12, seed=2)
    assert groups != synthpedes.sample_galleries(pids, 5, 12, seed=3)
    with pytest.raises(UserError, match='need 65 identities, there are 60'):
        synthpedes.sample_galleries(pids, 5, 13)


# --- command line -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('arguments, message', [
    ('--ids 10', '--out and --ids'),
    ('--out X', '--out and --ids'),
    ('--out X --ids 2', 'ids must be'),
    ('--out X --ids ten', 'must be an integer'),
    ('--out X --ids 10 --format CUHK', 'did you mean CUHK-PEDES'),
    ('--out X --ids 10 --format MALS', 'unknown format'),
    ('--out X --ids 10 --format PA-100K', 'unknown format'),
    ('--out X --ids 10 --omission 1.5', 'omission must be'),
    ('--out X --ids 10 --colours 1', 'colours must be'),
    ('--out X --ids 10 --variety 2', 'variety must be'),
    ('--out X --ids 10 --test_ids 8 --val_ids 2', 'leave none'),
    ('--out X --ids 10 --format ICFG-PEDES --val_ids 2', 'no val split'),
    ('--out X --ids 10 --format ICFG-PEDES --captions_per_image 2', 'one caption'),
    ('--out X --ids 10 --size 4 4', r'size \(height\)'),
    ('--out X --ids 10 --seed -1', 'seed must be'),
    ('--out X --ids 10 --workers -1', 'workers must be'),
    ('--out X --ids 10 --tints 1', '--tints'),
    ('--contact_sheet X/there/sheet.png', 'cannot write the contact sheet'),
    ('--contact_sheet X --images_per_id 1000 --size 2048 2048', 'is too large'),
    ('--baselines X', 'none of the annotations')])
def test_bad_arguments_are_one_sentence(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments.replace('X', str(tmp_path / 'new')).split())
    assert os.listdir(tmp_path) == []


def test_the_handler_of_signals_is_restored(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match='--out and --ids are needed'):
        main(['--out', str(tmp_path)])
    assert signal.getsignal(signal.SIGTERM) == before


def test_program_says_it_in_one_line(start, tmp_path):
    running = start('--out', tmp_path, '--ids', 10, '--size', 4, 4)
    assert running.wait() == 2
    output = running.read_output().strip()
    assert output == 'synthpedes: error: size (height) must be a whole number from 32 to 2048, not 4'


def test_unknown_difficulty_option():
    with pytest.raises(UserError, match='did you mean clutter'):
        make('nowhere', cluter=1)


def test_contact_sheet_and_baselines_on_the_command_line(tmp_path, capsys):
    assert main(['--contact_sheet', str(tmp_path / 'sheet.png'), '--size', '96', '48']) == 0
    with Image.open(tmp_path / 'sheet.png') as sheet:
        assert sheet.width > 4 * 48 and sheet.height > 6 * 96
    folder = make(tmp_path, ids=20, test_ids=10)
    assert main(['--baselines', str(folder), '--galleries', '2', '--ids_per_gallery', '5']) == 0
    output = capsys.readouterr().out
    assert 'garment bands' in output and 'whole image' in output and 'mean of 2 galleries of 5' in output
    with pytest.raises(UserError, match="no entries in split 'dev'"):
        baselines.baseline_scores(str(folder), 'dev')


def test_second_captions_do_not_change_anything_else(tmp_path):
    """Each caption has one: rewritings of a sentence about the clothes, and of one about the rest."""
    settings = dict(images_per_id=2, size=(40, 16), test_ids=1, val_ids=1, workers=1, progress=False)
    plain, second = (synthpedes.generate(str(tmp_path / name), 5, second_captions=name == 'second', **settings)
                     for name in ('plain', 'second'))
    entries = [json.load(open(os.path.join(folder, 'reid_raw.json'), encoding='utf-8')) for folder in (plain, second)]
    side_texts = [entry.pop('diversity_captions') for entry in entries[1]]
    assert entries[0] == entries[1]
    for texts, entry in zip(side_texts, entries[0]):
        assert len(texts) == len(entry['captions'])
        for sub_sentences in texts:
            assert 1 <= len(sub_sentences) <= 2 and all(len(rewritings) == 3 for rewritings in sub_sentences)
            assert all(text.endswith('.') and len(text.split()) > 2 for texts in sub_sentences for text in texts)
    assert len({str(texts) for texts in side_texts}) == len(side_texts)
    assert len(build_dataset('synthpedes', str(tmp_path / 'second')).side_texts('diversity_captions')) == 12
