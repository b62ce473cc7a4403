"""Errors that a user can fix, each reported in one sentence."""
import errno
import os
import re
import shutil
import signal
import sys

from utils.commands import rename_commands
from utils.terminal import protect_streams


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do. Programs print it and exit with status 2.

    A DataLoader worker puts a traceback around the message of an error. The message is extracted again here, so that a
    broken image is reported in the same words with any number of workers.
    """

    def __init__(self, message):
        marker = 'UserError: '
        message = str(message)
        if 'Original Traceback' in message and marker in message:
            message = message.rsplit(marker, 1)[1].strip()
        super().__init__(message)


def suggest_name(name, known, meant=None):
    """Return ``'; did you mean x?'`` for the known name closest in spelling, or list the known names if none is close.

    Args:
        name: what the user wrote.
        known: the names that exist.
        meant: ``{name in other programs: the known one}``.

    Example:
        >>> suggest_name('mml', ['sdm', 'id', 'mlm'])
        '; did you mean mlm?'
        >>> suggest_name('x', ['sdm', 'id', 'mlm'])
        '; known: id, mlm, sdm'
        >>> suggest_name('--lerning_rate', ['--lr', '--noisy_rate'], meant={'--learning_rate': '--lr'})
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
    """Count the letters to insert, remove, replace or swap with their neighbor.

    The distance is 0.5 if ``known`` begins with ``written``.

    Example:
        >>> spelling_distance('lerning_rate', 'learning_rate'), spelling_distance('mml', 'mlm')
        (1, 1)
        >>> spelling_distance('cuhk', 'cuhk-pedes')
        0.5
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


def unknown_name_error(what, name, known):
    """Return the error for a name that is not one of the ``known`` names.

    Args:
        what: the kind of name, such as 'sampler'.
        name: what the user wrote.
        known: the names that exist.
    """
    return UserError(f'unknown {what} {name!r}{suggest_name(name, known)}')


def abbreviate(names, limit=5):
    """Join the first few names, and count the rest.

    Args:
        names: an iterable of texts.
        limit: the number of names to show.

    Example:
        >>> abbreviate(['a', 'b', 'c'], limit=2)
        'a, b and 1 more'
    """
    names = list(names)
    return ', '.join(names[:limit]) + (f' and {len(names) - limit:,} more' if len(names) > limit else '')


def describe_type(value):
    """Describe the type of a value in an error.

    Example:
        >>> describe_type(3), describe_type([])
        ('an int', 'a list')
    """
    return add_article(type(value).__name__)


def add_article(noun):
    """Put 'a' or 'an' before a noun.

    Example:
        >>> add_article('int'), add_article('list')
        ('an int', 'a list')
    """
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def is_out_of_files(error):
    """Whether the system refused to open a file because too many are open, so that the file itself may be sound."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def explain_worker_error(error):
    """Explain PyTorch's error for a data loader worker that died or cannot send its batch.

    Returns:
        The cause and what to do, or None for any other error.
    """
    message = str(error)
    for pattern, cause in TRANSFER_FAILURES.items():
        if re.search(pattern, message, re.DOTALL):
            return cause.format(shared_memory=describe_shared_memory())
    if is_out_of_files(error):
        return OUT_OF_FILES
    match = re.search(r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) '
                      r'(?:is killed by signal: ([^.]*)|exited unexpectedly)', message)
    if not match:
        return None
    pid, how = match[1], (match[2] or 'exited').strip()
    cause = WORKER_DEATHS.get(how, f'exited unexpectedly ({how.lower()}); --num_workers 0 reads images in the main '
                                   'process and shows the cause')
    return f'a process that reads images (pid {pid}) {cause.format(shared_memory=describe_shared_memory())}'


WORKER_DEATHS = {
    'Killed': 'was killed, most likely by the system because memory ran out: lower --num_workers or --batch_size',
    'Bus error': 'had no shared memory left{shared_memory}: give a container more (docker run --shm-size 8g), or lower '
                 '--num_workers (0 needs none)',
    'Segmentation fault': 'crashed, most likely in a library that decodes images: python -m datasets.check reads them '
                          'all',
}


def explain_missing_operator(error):
    """Explain an error for an operator that PyTorch lacks on an Apple GPU; None for any other error."""
    match = re.search(r"operator '([^']+)' is not currently (?:implemented|supported).* MPS", str(error))
    return match and (f'PyTorch has no {match[1]} for --device mps: set PYTORCH_ENABLE_MPS_FALLBACK=1, which computes '
                      'it on the CPU, or use --device cpu')


def explain_torchvision_mismatch(error):
    """Explain an error of a torchvision that was built for another PyTorch; None for any other error.

    Example:
        >>> explain_torchvision_mismatch(RuntimeError('operator torchvision::nms does not exist')).split(':')[0]
        'torchvision was built for another PyTorch than the installed one'
    """
    if not re.search('operator torchvision::[a-z_]+ does not exist', str(error)):
        return None
    return ('torchvision was built for another PyTorch than the installed one: install both from one source: '
            'pip install --force-reinstall torch torchvision, with one --index-url for both')


OUT_OF_FILES = ('the processes that read images have too many open files: raise the limit (ulimit -n 4096), or lower '
                '--num_workers (0 needs none)')
# Workers send batches through shared memory, by file descriptors. PyTorch's messages changed between 2.6 and 2.14.
# 2.10 gives an unrelated reason for "unable to allocate": posix_fallocate returns its error and sets no errno.
TRANSFER_FAILURES = {
    r'unable to allocate shared memory|(shared memory|/torch_\d).*No space left on device':
        'the processes that read images have no shared memory left{shared_memory}: give a container more '
        '(docker run --shm-size 8g), or lower --num_workers (0 needs none)',
    r'/torch_\d.*Too many open files|^Too many open files\. Communication': OUT_OF_FILES,
    r'received \d+ items of ancdata|DataLoader worker.*\[Errno 2[34]\]': OUT_OF_FILES,
}


def describe_shared_memory():
    """Return the size of the shared memory, in brackets, or '' if the system does not report it."""
    try:
        return f" (/dev/shm has {shutil.disk_usage('/dev/shm').total / 1e6:.0f} MB)"
    except OSError:
        return ''


def to_printable_line(message, word_limit=300, limit=900):
    """Return a message as one line for a terminal.

    Characters that cannot be printed are escaped as in Python, because a name may hold a newline or an escape sequence.

    Args:
        message: the text or exception.
        word_limit: the number of characters above which a word is cut.
        limit: the number of characters above which the message is cut.

    Example:
        >>> to_printable_line('no file a\\nb: give another one')
        'no file a\\\\nb: give another one'
    """
    text = ''.join(character if character.isprintable() else ascii(character)[1:-1] for character in str(message))
    text = re.sub(r'\S{%d,}' % (word_limit + 1),
                  lambda match: f'{match[0][:word_limit // 2]}... ({len(match[0])} characters)', text)
    return text if len(text) <= limit else f'{text[:limit * 2 // 3]} ... {text[-limit // 3:]}'


# PyTorch's allocators raise RuntimeErrors. The GPU's has its own type; the others are known by their messages.
ALLOCATOR_MESSAGES = ('DefaultCPUAllocator: ', 'CUDA error: out of memory', 'CUDA error: CUBLAS_STATUS_ALLOC_FAILED')


def is_out_of_memory(error):
    """Whether an allocator raised ``error``.

    Other errors also mention memory ("illegal memory access"), but a smaller batch does not avoid them.
    """
    is_allocator_error = type(error).__name__ == 'OutOfMemoryError' or any(
        text in str(error) for text in ALLOCATOR_MESSAGES)
    return isinstance(error, MemoryError) or is_allocator_error


# Codes for a full disk, an exceeded quota or file size limit, and a read-only disk.
DISK_FULL = [getattr(errno, name) for name in ('ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS') if hasattr(errno, name)]
NO_PERMISSION = [errno.EACCES, errno.EPERM]


def write_error_reason(error):
    """Return the system's message if a full or unwritable disk caused ``error``, directly or in its chain, else None.

    Example:
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
        if isinstance(error, OSError) and error.errno in DISK_FULL + NO_PERMISSION:
            return error.strerror or str(error)
        # libraries in Rust and C++ only give the message
        messages = [os.strerror(code) for code in DISK_FULL if os.strerror(code) in str(error)]
        if messages:
            return messages[0]
        error = error.__cause__ or error.__context__
    return None


def describe_disk_error(error):
    """Describe an unexpected ``OSError`` of the disk or of permissions; None for any other."""
    if error.errno in DISK_FULL:
        path = error.filename or 'its output or a temporary file'
        return f'cannot write {path}: {error.strerror}; free some space, or choose another folder'
    if error.errno in NO_PERMISSION and error.filename:
        return f'cannot open {error.filename}: {error.strerror}'
    return None


def get_program_name():
    folder, program = os.path.split(sys.argv[0])
    return os.path.basename(folder) if program == '__main__.py' else program   # python -m <package>


def print_error(error):
    print(f'{get_program_name()}: error: {to_printable_line(rename_commands(str(error)))}', file=sys.stderr, flush=True)


def restart_in_utf8_mode():
    """Restart this program with PYTHONUTF8=1 if Python reads arguments and file names as ASCII.

    This is the case with LC_ALL=C and PYTHONUTF8=0. Python fixes the encoding when it starts. In ASCII it can neither
    open a photo with a Chinese name nor read a Chinese caption.
    """
    is_ascii = os.name == 'posix' and sys.getfilesystemencoding() == 'ascii'
    if is_ascii and sys.executable and os.environ.get('PYTHONUTF8') != '1':
        os.environ['PYTHONUTF8'] = '1'
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run_program(main):
    """Run a program's ``main()`` and exit with its status. A :class:`UserError` is printed in one line (status 2)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    restart_in_utf8_mode()
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')   # a file name may hold bytes that are not text
    protect_streams()
    try:
        status = main()
    except UserError as error:
        print_error(error)
        status = 2
    except KeyboardInterrupt:
        print(f'{get_program_name()}: interrupted', file=sys.stderr)
        status = 130
    except (MemoryError, RuntimeError) as error:
        problem = (explain_worker_error(error) or explain_missing_operator(error)
                   or explain_torchvision_mismatch(error))
        if not problem and not is_out_of_memory(error):
            raise
        reason = f'{error}'.strip().split('\n')[0] or 'the system has no more'
        problem = problem or f'out of memory ({reason}); lower --batch_size, --test_batch_size or --img_size'
        print_error(problem)
        status = 2
    except BrokenPipeError:  # the reader has exited, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        sentence = explain_worker_error(error) or describe_disk_error(error)
        if sentence is None:
            raise
        print_error(sentence)
        status = 2
    sys.exit(status)
