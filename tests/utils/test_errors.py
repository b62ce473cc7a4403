"""Errors as programs print them."""
import os
import runpy
import signal

import pytest
import torch

from utils.errors import OUT_OF_FILES, UserError, run_program

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def printed_by(message, capsys):
    def main():
        raise UserError(message)
    with pytest.raises(SystemExit) as left:
        run_program(main)
    assert left.value.code == 2
    line, = capsys.readouterr().err.split('error: ', 1)[1].splitlines()
    return line


def test_a_sentence_is_printed_as_it_is(capsys):
    sentence = "no dataset folder d\u00e9j\u00e0 vu/CUHK-PEDES: it should hold reid_raw.json and imgs/"
    assert printed_by(sentence, capsys) == sentence


@pytest.mark.parametrize('name, shown', [('a\nb', r'a\nb'), ('\x1b[31mred', r'\x1b[31mred'), ('\u202e', r'\u202e'),
                                         ('\udcff', r'\udcff')])
def test_names_with_control_characters_stay_on_one_line_and_do_nothing_to_a_terminal(name, shown, capsys):
    assert printed_by(f'no image {name}', capsys) == f'no image {shown}'


def test_what_is_said_of_a_name_is_not_lost_behind_it(capsys):
    line = printed_by(f"no image {'x' * 1000000}: put it there", capsys)
    assert len(line) < 300 and line.startswith('no image xxx')
    assert line.endswith('... (1000001 characters) put it there')
    line = printed_by(f"unknown value '{'word ' * 5000}'; give another one", capsys)
    assert len(line) < 1000 and line.startswith("unknown value 'word") and line.endswith('give another one')


@pytest.mark.parametrize('message', ['CUDA error: an illegal memory access was encountered',
                                     'Pin memory thread exited unexpectedly',
                                     'shape of memory_mask is wrong'])
def test_errors_that_only_speak_of_memory_keep_their_traceback(message):
    def main():
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match=message):
        run_program(main)


@pytest.mark.parametrize('allocate', [
    lambda: torch.empty(2 ** 50), lambda: bytearray(2 ** 60),
    lambda: (_ for _ in ()).throw(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')),
    lambda: (_ for _ in ()).throw(RuntimeError('CUDA error: out of memory\n'
                                               'CUDA kernel errors might be reported later'))])
def test_what_an_allocator_raises_is_out_of_memory(allocate, capsys):
    with pytest.raises(SystemExit) as left:
        run_program(allocate)
    assert left.value.code == 2
    line, = capsys.readouterr().err.splitlines()
    assert 'out of memory' in line and 'lower --batch_size' in line


@pytest.mark.parametrize('program', ['train.py', 'test.py'])
def test_importing_a_program_leaves_ctrl_c_alone(program):
    """A notebook or pytest that imports the module would exit without an error message."""
    before = signal.getsignal(signal.SIGINT)
    runpy.run_path(os.path.join(ROOT, program), run_name='imported')
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize('error, sentence', [
    (OSError(28, 'No space left on device', 'out/a.npy'),
     'cannot write out/a.npy: No space left on device; free some space, or choose '
                                                          'another folder'),
    (OSError(28, 'No space left on device'),
     'cannot write its output or a temporary file: No space left on device; free some space, or '
                                             'choose another folder'),
    (OSError(122, 'Disk quota exceeded', 'x'),
     'cannot write x: Disk quota exceeded; free some space, or choose another folder'),
    (PermissionError(13, 'Permission denied', 'out'), 'cannot open out: Permission denied'),
    (OSError(24, 'Too many open files', 'photo.jpg'), OUT_OF_FILES)])
def test_a_full_disk_that_nobody_expected_is_one_sentence(error, sentence, capsys):
    def main():
        raise error
    with pytest.raises(SystemExit) as left:
        run_program(main)
    assert left.value.code == 2 and capsys.readouterr().err.strip().endswith(f'error: {sentence}')


def test_a_torchvision_of_another_pytorch_is_one_sentence(capsys):
    def main():
        raise RuntimeError('operator torchvision::nms does not exist')
    with pytest.raises(SystemExit) as left:
        run_program(main)
    assert left.value.code == 2
    assert 'error: torchvision was built for another PyTorch than the installed one: install' in capsys.readouterr().err


def test_other_errors_of_the_system_stay_tracebacks():
    def main():
        raise ConnectionRefusedError(111, 'Connection refused')
    with pytest.raises(ConnectionRefusedError):
        run_program(main)
