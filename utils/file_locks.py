"""Locks of files and folders that the system releases when their process ends, however it ends."""
import contextlib
import os

try:
    import fcntl
except ImportError:     # Windows
    fcntl = None


@contextlib.contextmanager
def lock_path(path):
    """Hold the lock of an existing file or folder. Without locks (Windows, some network file systems) this does nothing."""
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
    """Whether somebody holds the lock of a file or folder; None if that cannot be found out."""
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
    """A file descriptor; None if the path cannot be opened. NFS locks files only if they are open for writing."""
    try:
        return os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    except OSError:
        return None
