"""One kind of error for what a user can put right, told in one sentence."""
import difflib
import errno
import os
import re
import shutil
import signal
import sys


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
    """``'; did you mean x?'`` for the known name closest to ``name``, or the list of known names if none is close.

    Args:
        meant: ``{another name: the known one}`` of what people call it elsewhere.

    >>> nearest('mml', ['sdm', 'id', 'mlm'])
    '; did you mean mlm?'
    >>> nearest('x', ['sdm', 'id', 'mlm'])
    '; known: id, mlm, sdm'
    >>> nearest('--lerning_rate', ['--lr', '--noisy_rate'], meant={'--learning_rate': '--lr'})
    '; did you mean --lr?'
    """
    known = sorted(str(k) for k in known)
    lower = {**{other: k for other, k in (meant or {}).items() if k in known}, **{k.lower(): k for k in known}}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.5)
    if close:
        return f'; did you mean {lower[close[0]]}?'
    return f'; known: {", ".join(known)}' if len(known) <= 20 else ''


def unknown(what, name, known):
    """The error for a name that isn't one of the ``known``: ``raise unknown('sampler', 'identiy', SAMPLERS)``."""
    return UserError(f'unknown {what} {name!r}{nearest(name, known)}')


def explain_worker_error(error):
    """What PyTorch says of a data loader's worker that died or cannot send its batch, as a sentence with cause and remedy.

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
    'Bus error': 'had no shared memory left{shared_memory}: give a container more (docker run --shm-size 8g), or lower --num_workers '
                 '(0 needs none)',
    'Segmentation fault': 'crashed, most likely in a library that decodes images: python -m datasets.check reads them all',
}


def explain_missing_operator(error):
    """A sentence for an operator that PyTorch lacks on an Apple GPU; None for any other error."""
    found = re.search(r"operator '([^']+)' is not currently (?:implemented|supported).* MPS", str(error))
    return found and (f'PyTorch has no {found[1]} for --device mps: set PYTORCH_ENABLE_MPS_FALLBACK=1, which computes it on the CPU, '
                      'or use --device cpu')


OUT_OF_FILES = ('the processes that read images have too many open files: raise the limit (ulimit -n 4096), or lower --num_workers '
                '(0 needs none)')
# How workers hand batches over: in shared memory, by file descriptors. PyTorch's words changed between 2.6 and 2.14.
TRANSFER_FAILURES = {
    r'(shared memory|/torch_\d).*No space left on device':
        'the processes that read images have no shared memory left{shared_memory}: give a container more (docker run --shm-size 8g), '
        'or lower --num_workers (0 needs none)',
    r'/torch_\d.*Too many open files|^Too many open files\. Communication|received \d+ items of ancdata|DataLoader worker.*\[Errno 2[34]\]':
        OUT_OF_FILES,
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


def program_name():
    folder, program = os.path.split(sys.argv[0])
    return os.path.basename(folder) if program == '__main__.py' else program   # python -m <package>


def tell_error(error):
    print(f'{program_name()}: error: {readable(error)}', file=sys.stderr, flush=True)


def run(main):
    """Run a program's ``main()`` and exit with its status; a :class:`UserError` becomes one line and status 2."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')   # a file's name may hold bytes that are no text
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
    sys.exit(status)
