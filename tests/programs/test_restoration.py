"""run_scripts/restoration.py on small runs: the picture, what is in it, and what it refuses."""
import os

import pytest
import torch

import train as train_program
from datasets.transforms import MEAN, STD
from model import build_model
from model.heads.sen import grey
from run_scripts import restoration
from tests.support import options
from utils.errors import UserError


@pytest.fixture
def sen_command(command):
    changes = {'--loss_names': 'sdm+mae+id+tri', '--num_epoch': '1', '--name': 'sen'}
    argv = [changes.get(flag, word) for flag, word in zip(['', *command], command)]
    return argv + ['--limit_train', '16', '--mask_ratio', '0.5']


def test_a_picture_of_a_run(sen_command, run_folder, tmp_path, capsys):
    train_program.main(sen_command)
    out = str(tmp_path / 'restoration.png')
    restoration.main(['--config_file', os.path.join(run_folder(), 'configs.yaml'), '--out', out, '--images', '2'])
    assert open(out, 'rb').read(8) == b'\x89PNG\r\n\x1a\n'
    printed = capsys.readouterr().out
    assert f'wrote {out}' in printed and 'with a wrong one' in printed
    with pytest.raises(UserError, match='cannot write the picture'):
        restoration.main(['--config_file', os.path.join(run_folder(), 'configs.yaml'), '--out', str(tmp_path / 'no' / 'x.png')])


def test_a_run_without_mae(tmp_path):
    (tmp_path / 'configs.yaml').write_text('loss_names: sdm+id\n')
    (tmp_path / 'best.pth').write_bytes(b'')
    with pytest.raises(UserError, match="without the loss 'mae'"):
        restoration.main(['--config_file', str(tmp_path / 'configs.yaml')])


def test_what_is_in_the_picture(clip):
    args = options(loss_names='mae', mask_ratio=0.5, pretrain_choice=clip, img_size=(64, 32), cmt_depth=1, amp='off', seed=3)
    model = build_model(args, 0).eval()
    images = torch.randn(3, 3, 64, 32) / 2
    views, errors = restoration.restorations(model, images, [['a red coat'] * 3, ['a red coat'] * 3], args)
    assert views.shape == (3, 4, 3, 64, 32) and errors[0] == errors[1]
    assert torch.equal(views[:, 2], views[:, 3])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    colours, greys = ((x * std + mean).clamp(0, 1) for x in (images, grey(images)))
    torch.testing.assert_close(views[:, 0], colours)
    seen = (views[:, 1] == greys).all(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    assert seen.float().mean().item() == pytest.approx(3 / 8, abs=0.01)     # 9 tokens, 4 kept, one of them the class token
    torch.testing.assert_close(views[:, 2][seen], greys[seen])
    different, _ = restoration.restorations(model, images, [['a red coat'] * 3, ['blue jeans and shoes'] * 3], args)
    assert torch.equal(different[:, :3], views[:, :3]) and not torch.equal(different[:, 3], views[:, 3])


def test_wrong_captions_are_of_others():
    entries = [{'id': pid, 'captions': [f'{pid} {number}']} for pid, number in ((1, 0), (1, 1), (2, 0), (2, 1))]
    assert [restoration.other_persons_caption(entry, entries) for entry in entries] == ['2 0', '2 0', '1 0', '1 0']
    with pytest.raises(UserError, match='one identity only'):
        restoration.other_persons_caption(entries[0], entries[:2])
    assert restoration.spread(entries, 2) == [entries[0], entries[3]]
    with pytest.raises(UserError, match='no entries'):
        restoration.spread([], 2)
