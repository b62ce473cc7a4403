"""One kind of error for what a user can put right, told in one sentence."""
import errno
import os
import re
import shutil
import signal
import sys

from utils.terminal import protect_streams


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do. Programs print it and exit with status 2.

    A DataLoader worker wraps the message of what it raises in a traceback; the sentence is cut out again here, so that a
    broken image reads the same with any number of workers.
    """

    def __init__(self, message):
        marker = 'UserError: '
        message = str(message)
        if 'Original Traceback' in message and marker in message:
            message = message.rsplit(marker, 1)[1].strip()
        super().__init__(message)


def nearest(name, known, meant=None):
    """``'; did you mean x?'`` for the known name closest in spelling, or the list of known names if none is close.

    Args:
        name: what the user wrote.
        known: the names that exist.
        meant: ``{name in other programs: the known one}``.

    Example:
        >>> nearest('mml', ['sdm', 'id', 'mlm'])
        '; did you mean mlm?'
        >>> nearest('x', ['sdm', 'id', 'mlm'])
        '; known: id, mlm, sdm'
        >>> nearest('--lerning_rate', ['--lr', '--noisy_rate'], meant={'--learning_rate': '--lr'})
        '; did you mean --lr?'
    """
    known = sorted(str(k) for k in known)
    candidates = {other: k for other, k in (meant or {}).items() if k in known} | {k: k for k in known}
    written = str(name).lower().lstrip('-')
    distances = {k: spelling_distance(written, k.lower().lstrip('-')) for k in candidates}
    closest = min(distances, key=distances.get, default=None)
    if closest is not None and distances[closest] <= max(1, (len(written) + 1) // 3):
        return f'; did you mean {candidates[closest]}?'
    return f'; known: {", ".join(known)}' if len(known) <= 20 else ''


def spelling_distance(written, known):
    """The number of letters to insert, remove, replace or swap with their neighbor; below 1 if one name begins with the other.

    Example:
        >>> spelling_distance('lerning_rate', 'learning_rate'), spelling_distance('mml', 'mlm'), spelling_distance('cuhk', 'cuhk-pedes')
        (1, 1, 0.5)
    """
    if len(written) >= 3 and known.startswith(written) and known != written:
        return 0.5
    before, row = [], list(range(len(known) + 1))
    for i, a in enumerate(written, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(known, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
            if i > 1 and j > 1 and a == known[j - 2] and written[i - 2] == b:
                row[j] = min(row[j], last[j - 2] + 1)
    return row[-1]


def unknown(what, name, known):
    """The error for a name that isn't one of the ``known``: ``raise unknown('sampler', 'identiy', SAMPLERS)``."""
    return UserError(f'unknown {what} {name!r}{nearest(name, known)}')


def explain_worker_error(error):
    """Explain what PyTorch says of a data loader's worker that died or cannot send its batch: cause and remedy.

    Returns:
        None if the error says something else.
    """
    message = str(error)
    for pattern, cause in TRANSFER_FAILURES.items():
        if re.search(pattern, message, re.DOTALL):
            return cause.format(shared_memory=describe_shared_memory())
    if getattr(error, 'errno', None) in (errno.EMFILE, errno.ENFILE):
        return OUT_OF_FILES
    found = re.search(r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]*)|exited unexpectedly)', message)
    if not found:
        return None
    pid, how = found[1], (found[2] or 'exited').strip()
    cause = WORKER_DEATHS.get(how, f'ended unexpectedly ({how.lower()}); --num_workers 0 reads without such processes and shows why')
    return f'a process that reads images (pid {pid}) {cause.format(shared_memory=describe_shared_memory())}'


WORKER_DEATHS = {
    'Killed': 'was killed, most likely by the system because memory ran out: lower --num_workers or --batch_size',
    'Bus error': 'had no shared memory left{shared_memory}: give a container more (docker run --shm-size 8g), or lower '
                 '--num_workers (0 needs none)',
    'Segmentation fault': 'crashed, most likely in a library that decodes images: python -m datasets.check reads them all',
}


def explain_missing_operator(error):
    """A sentence for an operator that PyTorch lacks on an Apple GPU; None for any other error."""
    found = re.search(r"operator '([^']+)' is not currently (?:implemented|supported).* MPS", str(error))
    return found and (f'PyTorch has no {found[1]} for --device mps: set PYTORCH_ENABLE_MPS_FALLBACK=1, which computes it '
                      'on the CPU, or use --device cpu')


OUT_OF_FILES = ('the processes that read images have too many open files: raise the limit (ulimit -n 4096), or lower '
                '--num_workers (0 needs none)')
# How workers hand batches over: in shared memory, by file descriptors. PyTorch's words changed between 2.6 and 2.14.
TRANSFER_FAILURES = {
    r'(shared memory|/torch_\d).*No space left on device':
        'the processes that read images have no shared memory left{shared_memory}: give a container more '
        '(docker run --shm-size 8g), or lower --num_workers (0 needs none)',
    r'/torch_\d.*Too many open files|^Too many open files\. Communication': OUT_OF_FILES,
    r'received \d+ items of ancdata|DataLoader worker.*\[Errno 2[34]\]': OUT_OF_FILES,
}


def describe_shared_memory():
    """The size of the shared memory, in brackets; nothing if the system doesn't say."""
    try:
        return f" (/dev/shm has {shutil.disk_usage('/dev/shm').total / 1e6:.0f} MB)"
    except OSError:
        return ''



def readable(message, word=300, most=900):
    """An error's message as one line for a terminal: what cannot be printed is written as Python writes it (a name may hold a newline or
    an escape sequence), and words above ``word`` and messages above ``most`` characters are cut.

    >>> readable('no file a\\nb: give another one')
    'no file a\\\\nb: give another one'
    """
    text = ''.join(character if character.isprintable() else ascii(character)[1:-1] for character in str(message))
    text = re.sub(r'\S{%d,}' % (word + 1), lambda found: f'{found[0][:word // 2]}... ({len(found[0])} characters)', text)
    return text if len(text) <= most else f'{text[:most * 2 // 3]} ... {text[-most // 3:]}'


# PyTorch's allocators raise RuntimeErrors. The GPU's has a type of its own; these are words of the others.
ALLOCATORS = ('DefaultCPUAllocator: ', 'CUDA error: out of memory', 'CUDA error: CUBLAS_STATUS_ALLOC_FAILED')


def is_out_of_memory(error):
    """Whether an allocator raised ``error``. Other errors may speak of memory, too ("illegal memory access"), and a smaller batch would not
    help them."""
    of_allocator = type(error).__name__ == 'OutOfMemoryError' or any(words in str(error) for words in ALLOCATORS)
    return isinstance(error, MemoryError) or of_allocator


# Of a disk that is full, of a quota or limit that is reached, and of a folder that this user cannot write.
FULL = [getattr(errno, name) for name in ('ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS') if hasattr(errno, name)]
FORBIDDEN = [errno.EACCES, errno.EPERM]


def write_error_reason(error):
    """The system's words if ``error``, or one that it was raised from, is of a full or unwritable disk; else None.

    >>> try:
    ...     try:
    ...         raise OSError(errno.ENOSPC, 'No space left on device')
    ...     except OSError:
    ...         raise RuntimeError('serialization failed')
    ... except RuntimeError as error:
    ...     write_error_reason(error)
    'No space left on device'
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL + FORBIDDEN:
            return error.strerror or str(error)
        words = [os.strerror(code) for code in FULL if os.strerror(code) in str(error)]    # Rust and C++ give nothing else
        if words:
            return words[0]
        error = error.__cause__ or error.__context__
    return None


def describe_disk_error(error):
    """A sentence for an ``OSError`` that no program expected; None if it is no matter of disks and permissions."""
    if error.errno in FULL:
        where = error.filename or 'its output or a temporary file'
        return f'cannot write {where}: {error.strerror}; free some space, or choose another folder'
    if error.errno in FORBIDDEN and error.filename:
        return f'cannot open {error.filename}: {error.strerror}'
    return None


def program_name():
    folder, program = os.path.split(sys.argv[0])
    return os.path.basename(folder) if program == '__main__.py' else program   # python -m <package>


def tell_error(error):
    print(f'{program_name()}: error: {readable(error)}', file=sys.stderr, flush=True)


def restart_in_utf8_mode():
    """Start this program again with PYTHONUTF8=1 if Python reads arguments and file names as ASCII.

    That happens with LC_ALL=C and PYTHONUTF8=0. Python fixes this encoding when it starts, and in ASCII it can neither
    open a photo with a Chinese name nor read a Chinese caption.
    """
    is_ascii = os.name == 'posix' and sys.getfilesystemencoding() == 'ascii'
    if is_ascii and sys.executable and os.environ.get('PYTHONUTF8') != '1':
        os.environ['PYTHONUTF8'] = '1'
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run(main):
    """Run a program's ``main()`` and exit with its status; a :class:`UserError` becomes one line and status 2."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    restart_in_utf8_mode()
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')   # a file's name may hold bytes that are no text
    protect_streams()
    try:
        status = main()
    except UserError as error:
        tell_error(error)
        status = 2
    except KeyboardInterrupt:
        print(f'{program_name()}: interrupted', file=sys.stderr)
        status = 130
    except (MemoryError, RuntimeError) as error:
        problem = explain_worker_error(error) or explain_missing_operator(error)
        if not problem and not is_out_of_memory(error):
            raise
        reason = f'{error}'.strip().split('\n')[0] or 'no more to be had'
        problem = problem or f'out of memory ({reason}); lower --batch_size, --test_batch_size or --img_size'
        tell_error(problem)
        status = 2
    except BrokenPipeError:  # `... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        sentence = describe_disk_error(error)
        if sentence is None:
            raise
        tell_error(sentence)
        status = 2
    sys.exit(status)
