"""File locks with POSIX, with Windows and without either."""
import errno
import subprocess
import sys
from types import SimpleNamespace

import pytest

from utils import file_lock
from utils.errors import UserError
from utils.file_lock import try_lock
from utils.iotools import lock_folder

HOLDER = ('import sys; from utils.file_lock import try_lock; file = open(sys.argv[1], "a")\n'
          'print(try_lock(file, is_inherited=sys.argv[2] == "flock"), flush=True); sys.stdin.read()')


@pytest.mark.parametrize('kind', ['flock', 'lockf'])
@pytest.mark.skipif(file_lock.fcntl is None, reason='locks of POSIX')
def test_another_process_holds_a_lock_until_it_ends(tmp_path, kind):
    path = tmp_path / 'lock'
    holder = subprocess.Popen([sys.executable, '-c', HOLDER, str(path), kind], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    with holder, open(path, 'a') as file:
        assert holder.stdout.readline() == 'True\n'
        assert not try_lock(file, is_inherited=kind == 'flock')
        holder.communicate()
        assert try_lock(file, is_inherited=kind == 'flock')


def windows_lock(error):
    """A fake ``msvcrt`` whose ``locking`` raises ``error``, if there is one, as on Windows."""
    def locking(descriptor, mode, count):
        assert isinstance(descriptor, int) and (mode, count) == (2, 1)
        if error:
            raise OSError(error, 'locking')
    return SimpleNamespace(locking=locking, LK_NBLCK=2)


@pytest.mark.parametrize('error, is_free',
                         [(None, True), (errno.EACCES, False), (errno.EDEADLK, False), (errno.EINVAL, True)])
def test_windows_locks(tmp_path, monkeypatch, error, is_free):
    monkeypatch.setattr(file_lock, 'fcntl', None)
    monkeypatch.setattr(file_lock, 'msvcrt', windows_lock(error))
    with open(tmp_path / 'lock', 'a') as file:
        assert try_lock(file) == is_free
    if not is_free:
        with (pytest.raises(UserError, match='another program is working in .*: wait for it'),
              lock_folder(str(tmp_path), 'wait for it')):
            pass


def test_a_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(file_lock, 'fcntl', None)
    with open(tmp_path / 'lock', 'a') as file:
        assert try_lock(file)
