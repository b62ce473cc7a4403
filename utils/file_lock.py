"""Exclusive locks of files and folders. The system releases a lock when its process ends in any way."""
import contextlib
import errno
import os

try:
    import fcntl
except ImportError:     # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:     # POSIX
    msvcrt = None

# Error codes if another process holds the lock. Any other error means that the file system has no locks.
HELD_CODES = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


def try_lock(file, is_inherited=False):
    """Lock an open file for this process, without waiting. Closing the file releases the lock.

    Args:
        file: a file object, or on POSIX also the descriptor of an open folder.
        is_inherited: whether child processes that inherit the descriptor also hold the lock (``flock``). Otherwise
            only this process holds it (``lockf``), and the file must be open for writing. Windows' locks are never
            inherited.

    Returns:
        False if another process holds the lock, else True. A file system without locks also gives True.

    Example:
        >>> with open('.lock', 'a') as file:
        ...     try_lock(file)
        True
    """
    try:
        if fcntl:
            lock = fcntl.flock if is_inherited else fcntl.lockf
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt:
            file.seek(0)    # the byte at the file's position is locked
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return error.errno not in HELD_CODES
    return True


@contextlib.contextmanager
def lock_path(path):
    """Hold the lock of an existing file or folder.

    On a system without locks (Windows, some network file systems) this does nothing.
    """
    descriptor = None if fcntl is None else open_for_lock(path)
    try:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_locked(path):
    """Whether a process holds the lock of a file or folder; None if this is unknown."""
    descriptor = None if fcntl is None else open_for_lock(path)
    if descriptor is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def open_for_lock(path):
    """Open a file or folder to lock it. NFS locks files only if they are open for writing.

    Returns:
        A file descriptor, None if the path cannot be opened.
    """
    try:
        return os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    except OSError:
        return None
