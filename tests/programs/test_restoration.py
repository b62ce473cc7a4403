"""SEN's report of restored images, by test.py --restoration: the figure, its content, errors."""
import json
import os

import pytest
import torch

import test as test_program
import train as train_program
from datasets.bases import tokenize
from model import build_model
from model.heads import ImageTable, sen
from model.heads.sen import to_gray
from processor.head_figures import draw_figure
from tests.support import options
from utils.errors import UserError
from utils.figures import import_pyplot
from utils.simple_tokenizer import default_tokenizer


@pytest.fixture
def sen_command(command):
    changes = {'--loss_names': 'sdm+mae+id+tri', '--num_epoch': '1', '--name': 'sen'}
    argv = [changes.get(flag, word) for flag, word in zip(['', *command], command)]
    return argv + ['--limit_train', '16', '--mask_ratio', '0.5']


def test_a_picture_of_a_run(sen_command, run_folder, tmp_path, capsys):
    train_program.main(sen_command)
    folder, out = run_folder(), str(tmp_path / 'figure.svg')
    words = ['--config_file', os.path.join(folder, 'configs.yaml'), '--restoration']

    def images_in_report():
        assert 'mean squared error of hidden patches' in capsys.readouterr().out
        with open(os.path.join(folder, 'restoration.json')) as file:
            content = json.load(file)
        assert content['own_caption'] > 0 and content['wrong_caption'] > 0
        return content['images']

    assert test_program.main(words) == 0 and images_in_report() == 6
    figure = os.path.join(folder, 'restoration.png')
    assert open(figure, 'rb').read(8) == b'\x89PNG\r\n\x1a\n' and os.path.getsize(figure) > 1000
    os.remove(figure)
    assert test_program.main([*words, out, '--images', '2']) == 0 and images_in_report() == 2
    assert '<svg' in open(out, encoding='utf-8').read() and not os.path.exists(figure)


def test_a_figure_that_cannot_be_written_is_an_error_before_the_evaluation(tmp_path):
    (tmp_path / 'configs.yaml').write_text('loss_names: sdm+mae\n')
    (tmp_path / 'best.pth').write_bytes(b'')
    for path in (str(tmp_path / 'no' / 'x.png'), str(tmp_path / 'x.yaml'), str(tmp_path)):
        with pytest.raises(UserError, match=f'cannot write the figure {path}: '):
            test_program.main(['--config_file', str(tmp_path / 'configs.yaml'), '--restoration', path])


@pytest.mark.parametrize('flag, message', [
    ('--restoration', r"--restoration: this run has no restoration; SEN has it \(the loss 'mae'\)"),
    ('--moe_report', '--moe_report: this run has no experts; PHP has them')])
def test_a_run_without_the_head_of_a_report(tmp_path, flag, message):
    (tmp_path / 'configs.yaml').write_text('loss_names: sdm+id\n')
    (tmp_path / 'best.pth').write_bytes(b'')
    with pytest.raises(UserError, match=message):
        test_program.main(['--config_file', str(tmp_path / 'configs.yaml'), flag])


@pytest.mark.parametrize('number', ['0', '-1', 'many'])
def test_the_number_of_images_is_positive(tmp_path, number):
    with pytest.raises(UserError, match='--images'):
        test_program.main(['--config_file', str(tmp_path / 'configs.yaml'), '--restoration', '--images', number])


def test_what_is_in_the_picture(clip):
    args = options(loss_names='mae', mask_ratio=0.5, pretrain_choice=clip, img_size=(64, 32), cmt_depth=1, amp='off',
                   seed=3)
    model = build_model(args, 0).eval()
    images, coat, jeans = torch.randn(3, 3, 64, 32) / 2, *(torch.stack([tokenize(text, default_tokenizer(), 77)] * 3)
                                                           for text in ('a red coat', 'blue jeans and shoes'))
    views, errors = sen.restore_with_captions(model.heads[0], model, images, [coat, coat], args.seed)
    assert views.shape == (3, 4, 3, 64, 32) and errors[0] == errors[1]
    assert torch.equal(views[:, 2], views[:, 3]) and torch.equal(views[:, 0], images)
    seen = (views[:, 1] == to_gray(images)).all(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    # 9 tokens, 4 kept, one of them the class token
    assert seen.float().mean().item() == pytest.approx(3 / 8, abs=0.01)
    torch.testing.assert_close(views[:, 2][seen], to_gray(images)[seen])
    different, _ = sen.restore_with_captions(model.heads[0], model, images, [coat, jeans], args.seed)
    assert torch.equal(different[:, :3], views[:, :3]) and not torch.equal(different[:, 3], views[:, 3])


def test_the_picture_says_that_sen_sees_grey():
    figure = draw_figure(ImageTable(torch.rand(1, 4, 3, 64, 32), sen.COLUMNS, ['a red coat'], ['blue jeans']))
    titles = [axis.get_title() for axis in figure.axes]
    assert 'input of SEN' in titles[2] and 'gray' in titles[2]
    import_pyplot().close(figure)


def test_wrong_captions_are_of_others():
    entries = [{'id': pid, 'captions': [f'{pid} {number}']} for pid, number in ((1, 0), (1, 1), (2, 0), (2, 1))]
    assert [sen.caption_of_another_identity(entry, entries) for entry in entries] == ['2 0', '2 0', '1 0', '1 0']
    with pytest.raises(UserError, match='one identity only'):
        sen.caption_of_another_identity(entries[0], entries[:2])
    assert sen.pick_evenly(entries, 2) == [entries[0], entries[3]]
    with pytest.raises(UserError, match='no entries'):
        sen.pick_evenly([], 2)
