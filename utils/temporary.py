"""Temporary files and folders next to their targets: unique names, locks, and removal of abandoned ones."""
import contextlib
import os
import re
import secrets
import shutil
import time

from utils.file_lock import is_locked, lock_path

NAME = re.compile(r'.+\.[0-9a-f]{8}\.pedestal\.tmp')
MIN_AGE = 60                        # seconds: a younger file may not be locked yet, or is about to be renamed
MIN_AGE_WITHOUT_LOCKS = 86400       # seconds, on a file system without locks


@contextlib.contextmanager
def temporary_sibling(path, folder=False):
    """Create an empty file next to ``path``, yield its name, and remove it at the end unless it was renamed.

    The name is new each time, so two writers never share it. A lock shows other processes that the writer is alive.
    Process ids and host names cannot show it, because they may be equal in two containers. Abandoned files in the same
    folder are removed first.

    Args:
        path: the file or folder to replace.
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
        remove_path(temporary)


def remove_abandoned(folder):
    """Remove the temporary files and folders in ``folder`` whose writers have ended."""
    with contextlib.suppress(OSError), os.scandir(folder or os.curdir) as entries:
        for path in [os.path.join(folder, entry.name) for entry in entries if NAME.fullmatch(entry.name)]:
            if is_abandoned(path):
                remove_path(path)


def is_abandoned(path):
    """Whether a temporary file or folder is not locked and has not been written to for a while."""
    try:
        age = time.time() - os.lstat(path).st_mtime
    except OSError:
        return False
    locked = is_locked(path) if age > MIN_AGE else True
    return age > MIN_AGE_WITHOUT_LOCKS if locked is None else not locked


def remove_path(path):
    """Remove a file or folder, and ignore errors."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.remove(path)
