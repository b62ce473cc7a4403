"""Temporary files and folders next to what they replace: unique names, a lock while they are written, removal of abandoned ones."""
import contextlib
import os
import re
import secrets
import shutil
import time

from utils.file_lock import is_locked, lock_path

NAME = re.compile(r'.+\.[0-9a-f]{8}\.pedestal\.tmp')
UNTOUCHED = 60                      # seconds: a younger one may not be locked yet, or is about to be renamed
UNTOUCHED_WITHOUT_LOCKS = 86400     # seconds, on a file system that knows no locks


@contextlib.contextmanager
def temporary_sibling(path, folder=False):
    """Create an empty file next to ``path``, yield its name, and remove it at the end unless it was renamed.

    The name is new each time, so two writers never share it. A lock tells other processes that the writer is alive. No process
    number and no host name is asked: containers have equal ones. Abandoned siblings in the same folder are removed first.

    Args:
        path: the file or folder that the temporary one is going to replace.
        folder: create a folder instead of a file.

    Raises:
        OSError: the folder of ``path`` is missing or cannot be written.
    """
    path = os.fspath(path)
    remove_abandoned(os.path.dirname(path))
    temporary = f'{path}.{secrets.token_hex(4)}.pedestal.tmp'
    if folder:
        os.mkdir(temporary)
    else:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        with lock_path(temporary):
            yield temporary
    finally:
        remove(temporary)


def remove_abandoned(folder):
    """Remove the temporary files and folders in ``folder`` whose writers are gone."""
    with contextlib.suppress(OSError), os.scandir(folder or os.curdir) as entries:
        for path in [os.path.join(folder, entry.name) for entry in entries if NAME.fullmatch(entry.name)]:
            if is_abandoned(path):
                remove(path)


def is_abandoned(path):
    """Whether nobody holds the lock of a temporary file or folder and nobody has written into it for a while."""
    try:
        age = time.time() - os.lstat(path).st_mtime
    except OSError:
        return False
    locked = is_locked(path) if age > UNTOUCHED else True
    return age > UNTOUCHED_WITHOUT_LOCKS if locked is None else not locked


def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.remove(path)
