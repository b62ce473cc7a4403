"""Runs with --tuning: what their checkpoints hold, which base they need, how they resume, and whole models of them."""
import os
import shutil

import pytest
import torch

import pedestal
import test as test_program
import train as train_program
from run_scripts import export, page
from utils.checkpoint import read_checkpoint
from utils.errors import UserError
from utils.weight_files import compute_sha256

SENTENCES = ['a woman in a red coat', 'a man with a backpack']


def train(data, clip, output_dir, *words):
    """Train a small run and return its folder."""
    train_program.main(['--name', 'tuned', '--loss_names', 'sdm+id', '--dataset_name', 'CUHK-PEDES', '--root_dir', data,
                        '--num_epoch', '1', '--pretrain_choice', clip, '--img_size', '64', '32', '--batch_size', '8',
                        '--limit_train', '16', '--lr', '0.01', '--num_workers', '0', '--device', 'cpu',
                        '--output_dir', str(output_dir), *words])
    folders = os.path.join(output_dir, 'CUHK-PEDES')
    return max((os.path.join(folders, name) for name in os.listdir(folders)), key=os.path.getmtime)


@pytest.fixture(scope='module')
def tuned(data, clip, tmp_path_factory):
    """The folder of a run with LoRA, which tests read and do not change."""
    return train(data, clip, tmp_path_factory.mktemp('tuned'), '--tuning', 'lora')


def encode(folder, **settings):
    return pedestal.load(folder, device='cpu', amp='off', **settings).encode_captions(SENTENCES)


def test_the_best_checkpoint_holds_what_trained_and_names_its_base(tuned, clip, capsys):
    best, last = (read_checkpoint(os.path.join(tuned, name)) for name in ('best.pth', 'last.pth'))
    assert best['tuning'] == {'name': 'lora', 'base': {'name': clip, 'sha256': compute_sha256(clip)}, 'is_whole': False}
    assert {name.rsplit('.', 1)[0] for name in best['model']} == {
        'classifier', *(f'base_model.{side}transformer.resblocks.0.attn.lora.{part}'
                        for side in ('', 'visual.') for part in 'qv')}
    assert last['tuning'] == {**best['tuning'], 'is_whole': True} and set(best['model']) < set(last['model'])
    trained = {value.shape for name, value in best['model'].items()}
    assert {value['exp_avg'].shape for value in last['optimizer']['state'].values()} == trained
    assert len(last['optimizer']['state']) == len(best['model'])
    assert torch.equal(encode(tuned), encode(tuned, checkpoint=os.path.join(tuned, 'last.pth')))
    assert test_program.main(['--config_file', os.path.join(tuned, 'configs.yaml')]) == 0
    assert 'Rank-1' in capsys.readouterr().out


def test_another_base_is_refused_and_a_moved_one_is_named(tuned, clip, tmp_path):
    folder, other = str(tmp_path / 'run'), str(tmp_path / 'other.pt')
    shutil.copytree(tuned, folder)
    weights = torch.load(clip, weights_only=True)
    torch.save({name: value + 1 for name, value in weights.items()}, other)
    sentence = r'best.pth holds a tuning of .*clip.pt with the sha256 \w{12}\.\.\., and .*other.pt has \w{12}\.\.\.'
    with pytest.raises(UserError, match=f'{sentence}: name the right file with --base_weights'):
        encode(folder, base_weights=other)
    checkpoint = torch.load(os.path.join(folder, 'best.pth'), weights_only=True)
    checkpoint['tuning']['base']['name'] = str(tmp_path / 'gone.pt')
    torch.save(checkpoint, os.path.join(folder, 'best.pth'))
    with pytest.raises(UserError, match='its file with the sha256 .* is missing .*there is no file .*gone.pt.*: name '
                                        'it with --base_weights'):
        encode(folder)
    assert torch.equal(encode(folder, base_weights=clip), encode(tuned))
    page.main([folder, '--base_weights', clip, '--out', str(tmp_path / 'page.html')])
    torch.save({**checkpoint, 'tuning': {'name': 'lora'}}, os.path.join(folder, 'best.pth'))
    with pytest.raises(UserError, match="is not a checkpoint: its 'tuning' must be {'name': a text, 'base'"):
        encode(folder)


def test_random_encoders_are_stored_because_no_file_has_them(data, tmp_path):
    folder = train(data, 'scratch:tiny', tmp_path, '--tuning', 'adapter')
    best, last = (read_checkpoint(os.path.join(folder, name)) for name in ('best.pth', 'last.pth'))
    assert best['tuning'] == {'name': 'adapter', 'base': None, 'is_whole': True}
    assert set(best['model']) == set(last['model'])
    assert torch.equal(encode(folder), encode(folder, checkpoint=os.path.join(folder, 'last.pth')))


@pytest.mark.parametrize('tuning', ['lora', 'adapter', 'prefix'])
def test_a_resumed_run_equals_an_uninterrupted_one(tuning, data, clip, tmp_path, monkeypatch):
    words = ['--tuning', tuning, '--num_epoch', '2']
    whole = train(data, clip, tmp_path / 'whole', *words)
    monkeypatch.setattr('processor.processor.Trainer.evaluate',
                        lambda trainer: pytest.fail('killed') if trainer.state.pending_evaluation else None)
    with pytest.raises(pytest.fail.Exception):
        train(data, clip, tmp_path / 'parts', *words)
    monkeypatch.undo()
    parts, = (tmp_path / 'parts' / 'CUHK-PEDES').iterdir()
    train_program.main(['--resume', str(parts)])
    for name in ('best.pth', 'last.pth'):
        first, second = (read_checkpoint(os.path.join(folder, name)) for folder in (whole, parts))
        assert first['tuning'] == second['tuning'] and first['model'].keys() == second['model'].keys()
        assert all(torch.equal(value, second['model'][key]) for key, value in first['model'].items())


def test_a_new_run_starts_from_a_tuned_one(tuned, data, clip, tmp_path):
    best = os.path.join(tuned, 'best.pth')
    folder = train(data, clip, tmp_path, '--tuning', 'lora', '--init_from', best, '--lr', '0')
    assert torch.equal(encode(folder), encode(tuned))
    assert read_checkpoint(os.path.join(folder, 'best.pth'))['tuning'] == read_checkpoint(best)['tuning']
    for tuning in ('none', 'prefix'):
        with pytest.raises(UserError, match='best.pth was tuned with --tuning lora, and the options have --tuning '
                                            f'{tuning}: give --tuning lora, or another checkpoint .*--to full --merge'):
            train(data, clip, tmp_path, '--tuning', tuning, '--init_from', best)


def test_the_base_can_be_a_trained_run(data, clip, tmp_path):
    """Its encoders are the base. Its classifier trains, and is stored."""
    full = train(data, clip, tmp_path / 'full')
    tuned = train(data, clip, tmp_path / 'tuned', '--tuning', 'lora', '--init_from', os.path.join(full, 'best.pth'),
                  '--lr', '0')
    best = read_checkpoint(os.path.join(tuned, 'best.pth'))
    assert best['tuning']['base']['name'] == os.path.join(full, 'best.pth')
    assert 'classifier.weight' in best['model'] and 'base_model.proj' not in best['model']
    assert torch.equal(encode(tuned), encode(full))


@pytest.mark.parametrize('words', [[], ['--merge']])
def test_a_whole_model_is_written_with_lora_in_its_weights_or_next_to_them(words, tuned, data, clip, tmp_path, capsys):
    out = str(tmp_path / 'whole')
    export.main(['--config_file', os.path.join(tuned, 'configs.yaml'), '--to', 'full', '--out', out, *words])
    assert "largest cosine distance to the run's embeddings" in capsys.readouterr().out
    best = read_checkpoint(os.path.join(out, 'best.pth'))
    assert ('tuning' in best) == any('lora' in name for name in best['model']) == (not words)
    assert best['epoch'] == 1 and 'R1' in best['metrics']
    torch.testing.assert_close(encode(out), encode(tuned), rtol=0, atol=1e-5 if words else 0)
    os.rename(clip, f'{clip}.away')     # the whole model needs no base
    try:
        encode(out)
    finally:
        os.rename(f'{clip}.away', clip)
    if not words:       # a run that starts from it stores everything again
        folder = train(data, clip, tmp_path / 'next', '--tuning', 'lora', '--init_from', os.path.join(out, 'best.pth'))
        assert read_checkpoint(os.path.join(folder, 'best.pth'))['tuning'] == {'name': 'lora', 'base': None,
                                                                              'is_whole': True}


def test_what_export_cannot_write_is_one_sentence(tuned, trained, data, clip, tmp_path):
    config, out = os.path.join(tuned, 'configs.yaml'), str(tmp_path / 'out')
    with pytest.raises(UserError, match='--merge is for --to full'):
        export.main(['--config_file', config, '--merge', '--out', out])
    with pytest.raises(UserError, match='--merge is for a run with --tuning, and this run has none'):
        export.main(['--config_file', trained, '--merge', '--to', 'full', '--out', out])
    with pytest.raises(UserError, match='its encoders have a tuning; --to full --merge writes LoRA without one'):
        export.main(['--config_file', config, '--to', 'huggingface', '--out', out])
    prefix = train(data, clip, tmp_path / 'prefix', '--tuning', 'prefix')
    with pytest.raises(UserError, match='--tuning prefix cannot be merged, because no weight computes its keys'):
        export.main(['--config_file', os.path.join(prefix, 'configs.yaml'), '--to', 'full', '--merge', '--out', out])
    assert not os.path.exists(out)
