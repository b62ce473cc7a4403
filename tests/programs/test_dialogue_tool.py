"""run_scripts/dialogue.py on a small run: the table of the rounds, dialogue.json, and what is missing."""
import json
import os
import shutil

import pytest

import pedestal
from processor.dialogue import DialogueSettings
from processor.dialogue_answers import Answers, read_answers
from run_scripts import dialogue
from utils.errors import UserError


@pytest.fixture(scope='module')
def run(trained, tmp_path_factory):
    """A copy of the trained run, next to which the tool writes: (configs.yaml, its people)."""
    folder = tmp_path_factory.mktemp('run') / 'run'
    shutil.copytree(os.path.dirname(trained), folder)
    return str(folder / 'configs.yaml'), pedestal.load(str(folder), device='cpu')


@pytest.fixture(scope='module')
def answered(run, tmp_path_factory):
    """(file of the answers of a fake model that says yes to every image of the right person, the rounds)."""
    _, people = run
    pids = dict(zip(people.split.paths, people.split.gallery[1].tolist()))
    owners = dict(zip(people.split.captions, people.split.queries[1].tolist()))

    def generate(prompts, images):
        return [f'rewritten {prompt.split(chr(10))[2]}' if image is None else
                'yes' if any(caption in prompt and pids[image] == pid for caption, pid in owners.items()) else
                '1. Yes, the coat is red.' if 'Answer each question' in prompt else 'no'
                for prompt, image in zip(prompts, images)]
    path = str(tmp_path_factory.mktemp('answers') / 'answers.jsonl')
    answers = Answers(path, people.split.dataset.img_dir, generate)
    return path, list(dialogue.hold_run_dialogue(people, answers, DialogueSettings(threshold=0.9)))


def test_the_tool_prints_and_writes_each_round(run, answered, capsys):
    config, people = run
    path, rounds = answered
    before = open(path, 'rb').read()
    dialogue.main(['--config_file', config, '--device', 'cpu', '--answers', path, '--threshold', '0.9'])
    output = capsys.readouterr().out
    assert dialogue.format_table(rounds) in output and open(path, 'rb').read() == before
    results = os.path.join(os.path.dirname(config), 'dialogue.json')
    assert output.endswith(f'wrote {results}\n')
    content = json.load(open(results, encoding='utf-8'))
    assert content['settings'] == {'rounds': 5, 'threshold': 0.9, 'query_weight': 0.8}
    assert content['produced_by']['dataset'] == 'CUHK-PEDES' and content['answers']['file'] == path
    assert [row['R1'] for row in content['rounds']] == [result.metrics['R1'] for result in rounds]
    assert content['rounds'][0] == {'round': 0, 'asked': 0, 'anchored': 0, **rounds[0].metrics}
    assert content['rounds'][1]['asked'] == len(people.split.captions) and 0 < content['rounds'][-1]['anchored']


def test_answers_name_images_as_the_annotation_does(run, answered):
    _, people = run
    images = {image for _, image in read_answers(answered[0])}
    assert images <= {entry['file_path'] for entry in people.split.entries} and len(images) > 3


def test_a_missing_answer_is_an_error(run, answered, tmp_path):
    lines = open(answered[0], encoding='utf-8').read().splitlines(keepends=True)
    (tmp_path / 'some.jsonl').write_text(''.join(lines[1:]), encoding='utf-8')
    messages = {'some.jsonl': "lacks 'matches' of 1 pairs", 'none.jsonl': 'there is no file .*none.jsonl'}
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            dialogue.main(['--config_file', run[0], '--device', 'cpu', '--answers', str(tmp_path / name)])


def test_the_threshold_of_icfg_pedes():
    assert dialogue.THRESHOLDS == {'ICFG-PEDES': 0.55}
    with pytest.raises(UserError, match='--query_weight'):
        dialogue.read_options(['--config_file', 'x', '--answers', 'y', '--query_weight', '1.5'])
