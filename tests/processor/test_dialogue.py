"""The dialogue of ICL: its rules against the reference implementation, its answers, and its results."""
import itertools
import json
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from processor.dialogue import AnchorSelection, DialogueSettings, combine_similarities, hold_dialogue
from processor.dialogue_answers import QUESTIONS, Answers, clean_answers
from processor.transformers_model import TransformersModel
from tests.support import golden, golden_files, golden_json
from utils.errors import UserError
from utils.retrieval_metrics import compute_metrics

of_files = pytest.mark.parametrize('file', golden_files('icl_thi_*'))


@of_files
def test_rounds_of_the_reference_implementation(file):
    vectors, description = golden(file)
    similarity, rounds = vectors['in/similarity'], description['rounds']
    scores, candidates = similarity.sort(dim=1, descending=True, stable=True)
    selection = AnchorSelection(scores[:, :rounds], candidates[:, :rounds], description['xi'])
    for number in range(1, rounds + 1):
        asked = selection.next_candidates()
        assert torch.equal(asked, vectors[f'out/round{number}/asked'])
        answers = vectors['in/yes'].gather(1, asked.clamp(min=0)[:, None])[:, 0]
        selection.add_answers(answers)
        assert torch.equal(selection.anchors, vectors[f'out/round{number}/anchor'])
        # Slabs of several rows give the same as one.
        result = torch.cat(list(combine_similarities(similarity.split(5), vectors['in/similarity_rewritten'].split(5),
                                                     selection.anchors, description['lambda'])))
        torch.testing.assert_close(result, vectors[f'out/round{number}/similarity'], rtol=1e-6, atol=1e-6)
        metrics = compute_metrics(result, vectors['in/query_pids'], vectors['in/gallery_pids'])
        expected = vectors[f'out/round{number}/r1_map_minp'].tolist()
        assert [metrics[name] for name in ('R1', 'mAP', 'mINP')] == pytest.approx(expected, abs=1e-3)


@of_files
def test_answers_are_cleaned_as_in_the_reference_implementation(file):
    description = golden_json(file)
    assert [clean_answers(text) for text in description['answers']] == description['answers_cleaned']


def anchors_by_hand(answers, is_confident):
    """The round in which a caption gets its anchor, by the rules as sentences; None without one."""
    if is_confident:
        return 0 if answers[0] else None
    if answers[0]:
        return None
    return next((number for number, answer in enumerate(answers) if answer), None)


@pytest.mark.parametrize('is_confident', [True, False])
def test_every_sequence_of_answers(is_confident):
    sequences = list(itertools.product([False, True], repeat=4))
    count = len(sequences)
    scores = torch.full((count, 4), 0.6 if is_confident else 0.4)
    selection = AnchorSelection(scores, torch.arange(4).expand(count, 4), threshold=0.5)
    for number in range(4):
        assert set(selection.next_candidates().tolist()) <= {-1, number}
        selection.add_answers(torch.tensor(sequences)[:, number])
    expected = [anchors_by_hand(answers, is_confident) for answers in sequences]
    assert selection.anchors.tolist() == [-1 if number is None else number for number in expected]


@pytest.fixture
def embedded():
    """(queries, gallery) of 12 captions and 9 images of 5 people."""
    generator = torch.Generator().manual_seed(0)
    q_pids, g_pids = torch.arange(12) % 5, torch.arange(9) % 5
    directions = torch.randn(5, 8, generator=generator)
    queries = directions[q_pids] + 1.5 * torch.randn(12, 8, generator=generator)
    gallery = directions[g_pids] + torch.randn(9, 8, generator=generator)
    return (queries, q_pids), (gallery, g_pids)


def test_a_dialogue_over_embeddings(embedded):
    """Right answers, and rewritten captions that equal their anchor's image, by plain re-computation."""
    (queries, q_pids), (gallery, g_pids) = embedded
    asked = []

    def confirm(captions, images):
        asked.append(list(zip(captions, images)))
        return [bool(q_pids[caption] == g_pids[image]) for caption, image in zip(captions, images)]
    rounds = list(hold_dialogue(*embedded, confirm, lambda captions, images: gallery[images],
                                DialogueSettings(rounds=3, threshold=0.6, query_weight=0.7)))
    cosine = F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).t()
    assert [result.number for result in rounds] == [0, 1, 2, 3]
    assert rounds[0].metrics == compute_metrics(cosine, q_pids, g_pids)
    best = cosine.argsort(dim=1, descending=True)
    assert asked[0] == [(caption, int(best[caption, 0])) for caption in range(12)]
    for number in (1, 2):
        is_open = (rounds[number].anchors < 0).nonzero().flatten().tolist()
        assert asked[number] == [(caption, int(best[caption, number])) for caption in is_open]
    anchors, expected = rounds[-1].anchors, cosine.clone()
    assert 2 < (anchors >= 0).sum() < 12
    for caption, anchor in enumerate(anchors.tolist()):
        if anchor >= 0:
            rewritten = F.normalize(gallery, dim=1) @ F.normalize(gallery[anchor], dim=0)
            rewritten[anchor] = 1
            expected[caption] = 0.7 * cosine[caption] + 0.3 * rewritten
    assert rounds[-1].metrics == pytest.approx(compute_metrics(expected, q_pids, g_pids))
    assert rounds[-1].metrics['mAP'] != rounds[0].metrics['mAP']


def test_no_more_rounds_than_images(embedded):
    (queries, q_pids), _ = embedded
    rounds = list(hold_dialogue((queries[:2], q_pids[:2]), (queries[:2], q_pids[:2]),
                                lambda captions, images: [False] * len(captions), None))
    assert [result.number for result in rounds] == [0, 1, 2]


# -- answers -----------------------------------------------------------------------------------------------------------

def write(path, *rows):
    path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    return str(path)


def test_stored_answers(tmp_path):
    path = write(tmp_path / 'answers.jsonl', {'caption': 'a', 'image': 'x.png', 'matches': 'YES, it does'},
                 {'caption': 'b', 'image': 'test/y.png', 'matches': 'No.', 'rewritten': 'b in red'},
                 {'caption': 'a', 'image': 'x.png', 'rewritten': 'a in blue'})
    answers = Answers(path, '/imgs')
    assert answers.confirm(['b', 'a'], ['/imgs/test/y.png', '/imgs/x.png']) == [False, True]
    assert answers.rewrite(['a', 'b'], ['/imgs/x.png', '/imgs/test/y.png']) == ['a in blue', 'b in red']
    with pytest.raises(UserError, match="answers.jsonl lacks 'matches' of 2 pairs .*, the first of them z.png with "
                                        '"a": add lines to it .* or give --model'):
        answers.confirm(['a', 'a', 'b'], ['/imgs/x.png', '/imgs/z.png', '/imgs/x.png'])
    with pytest.raises(UserError, match="lacks 'rewritten' of 1 pairs"):
        answers.rewrite(['c'], ['/imgs/x.png'])


class Model:
    """A fake language model that records its prompts."""

    def __init__(self):
        self.prompts = []

    def __call__(self, prompts, images):
        self.prompts += zip(prompts, images)
        return [self.answer(prompt, image) for prompt, image in zip(prompts, images)]

    def answer(self, prompt, image):
        if image is None:
            return 'rewritten: ' + prompt.splitlines()[-1]
        return '1. Yes, the coat is red.\n2. Female' if QUESTIONS[3] in prompt else 'Yes' if 'coat' in prompt else 'no'


def test_a_model_answers_what_is_missing_and_the_answers_are_kept(tmp_path):
    path, model = tmp_path / 'new' / 'answers.jsonl', Model()
    answers = Answers(str(path), '/imgs', model, chunk_size=2)
    captions, images = ['coat', 'shirt', 'coat', 'coat'], [f'/imgs/{name}.png' for name in 'abcc']
    assert answers.confirm(captions, images) == [True, False, True, True]
    assert answers.rewrite(['coat'], ['/imgs/a.png']) == ['rewritten: The coat is red. Female.']
    assert [image for _, image in model.prompts] == ['/imgs/a.png', '/imgs/b.png', '/imgs/c.png', '/imgs/a.png', None]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sorted(row) for row in rows] == 3 * [['caption', 'image', 'matches']] + [
        ['caption', 'description', 'image'], ['caption', 'image', 'rewritten']]
    stored = Answers(str(path), '/imgs')
    assert stored.confirm(captions, images) == [True, False, True, True]
    assert stored.rewrite(['coat'], ['/imgs/a.png']) == ['rewritten: The coat is red. Female.']


def test_an_interrupted_line_is_answered_again(tmp_path):
    path, model = tmp_path / 'answers.jsonl', Model()
    Answers(str(path), '/imgs', model).confirm(['coat', 'shirt'], ['/imgs/a.png', '/imgs/b.png'])
    complete = path.read_bytes()
    path.write_bytes(complete[:-9])
    with pytest.raises(UserError, match='answers.jsonl, line 2 is not JSON'):
        Answers(str(path), '/imgs')
    continued = Answers(str(path), '/imgs', model)
    assert continued.confirm(['coat', 'shirt'], ['/imgs/a.png', '/imgs/b.png']) == [True, False]
    assert path.read_bytes() == complete and len(model.prompts) == 3


def test_a_complete_last_line_without_its_newline_stays(tmp_path):
    path, model = tmp_path / 'answers.jsonl', Model()
    path.write_text('{"caption": "coat", "image": "a.png", "matches": "No, \u00e9"}', encoding='utf-8')
    answers = Answers(str(path), '/imgs', model)
    assert answers.confirm(['coat', 'coat'], ['/imgs/a.png', '/imgs/b.png']) == [False, True]
    assert len(model.prompts) == 1
    assert Answers(str(path), '/imgs').confirm(['coat', 'coat'], ['/imgs/a.png', '/imgs/b.png']) == [False, True]


@pytest.mark.parametrize('row', [[1], {'caption': 'a'}, {'caption': 'a', 'image': 3},
                                 {'caption': 'a', 'image': 'x', 'matches': True}], ids=str)
def test_wrong_lines_are_named(tmp_path, row):
    path = write(tmp_path / 'answers.jsonl', {'caption': 'a', 'image': 'x.png'}, row)
    with pytest.raises(UserError, match="answers.jsonl, line 2 is no mapping with the texts 'caption', 'image'"):
        Answers(path, '/imgs')


@pytest.mark.parametrize('text', ['', ' '])
def test_an_empty_rewritten_caption_does_not_count(tmp_path, caplog, text):
    path = write(tmp_path / 'answers.jsonl', {'caption': 'a', 'image': 'x.png', 'rewritten': text})
    assert Answers(path, '/imgs').rewrite(['a'], ['/imgs/x.png']) == ['a']
    assert "a rewritten caption is an empty caption: the caption 'a' stays as it is" in caplog.text


@pytest.mark.parametrize('texts', [['yes'], ['yes', None]])
def test_a_model_with_other_answers_is_an_error(tmp_path, texts):
    answers = Answers(str(tmp_path / 'answers.jsonl'), '/imgs', lambda prompts, images: texts)
    with pytest.raises(UserError, match='answers to 2 prompts, or one that is no text'):
        answers.confirm(['a', 'b'], ['/imgs/x.png', '/imgs/y.png'])


# -- the transformers library ------------------------------------------------------------------------------------------

def test_the_pipeline_of_transformers(tmp_path, monkeypatch):
    """With a fake pipeline: no test downloads a model."""
    calls = []

    class Pipeline:
        def __call__(self, **inputs):
            calls.append(inputs)
            return [{'input_text': inputs['text'], 'generated_text': f'answer {len(calls)}'}]
    library = types.SimpleNamespace(pipeline=lambda *task, **settings: calls.append((task, settings)) or Pipeline())
    monkeypatch.setitem(sys.modules, 'transformers', library)
    Image.new('RGB', (400, 800)).save(tmp_path / 'large.png')
    model = TransformersModel('some/model', torch.device('cpu'), max_new_tokens=7)
    assert model(['see?', 'merge'], [str(tmp_path / 'large.png'), None]) == ['answer 2', 'answer 3']
    assert calls[0] == (('image-text-to-text',), {'model': 'some/model', 'device': torch.device('cpu')})
    message, = calls[1]['text']
    assert message['role'] == 'user' and message['content'][1] == {'type': 'text', 'text': 'see?'}
    assert message['content'][0]['type'] == 'image' and message['content'][0]['image'].size == (158, 317)
    assert calls[2]['text'][0]['content'] == [{'type': 'text', 'text': 'merge'}]
    assert calls[1]['generate_kwargs'] == {'max_new_tokens': 7, 'do_sample': False}


def test_a_model_that_cannot_be_loaded_is_one_sentence(monkeypatch):
    def pipeline(*_, **settings):
        raise OSError(f"{settings['model']} has no config.json.\nMore lines")
    monkeypatch.setitem(sys.modules, 'transformers', types.SimpleNamespace(pipeline=pipeline))
    with pytest.raises(UserError, match='--model x is no image-text-to-text model that transformers can load: x has no '
                                        'config.json.$'):
        TransformersModel('x', torch.device('cpu'))


def test_the_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(UserError, match='--model needs the transformers library: pip install transformers'):
        TransformersModel('some/model', torch.device('cpu'))
