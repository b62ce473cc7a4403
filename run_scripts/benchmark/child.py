"""Run each measurement of the benchmark in its own process."""
import contextlib
import multiprocessing
import signal
import traceback

from utils.errors import UserError
from utils.plugins import qualify

ONLY_UNIX = {'error': 'time and memory are measured only on Linux and macOS, not on Windows'}
# Modules that the first process imports once for all children.
_preloaded = ['torch', 'torchvision', 'torch.utils.tensorboard']


def preload(module):
    """Import a module once for all children. Call this before the first measurement.

    Args:
        module: the dotted name of a module that measures.
    """
    _preloaded.append(qualify(module))


def measure_in_child(measure, *arguments):
    """Call a function in a new process, whose memory no earlier measurement has touched.

    Args:
        measure: a function at the top of a module that returns a dict.
        arguments: its arguments.

    Returns:
        The dict; ``{'error': reason}`` if the function fails.
    """
    if not has_forkserver():
        return dict(ONLY_UNIX)
    context = forkserver()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_result, args=(sender, measure, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return {'error': exit_reason(process.exitcode)}
    except BaseException:       # the benchmark is being stopped
        process.terminate()
        raise
    finally:
        process.join()


def measure_in_turns(builders, count):
    """Let processes that each build a measurement take turns, so that a change of load affects all of them.

    Args:
        builders: ``{name: (function, *arguments)}``. The function, at the top of a module, returns a function without
            arguments that measures one turn and returns a dict.
        count: the number of turns of each process.

    Returns:
        ``{name: [the dict of each turn]}``; a dict is ``{'error': reason}`` if the process fails.
    """
    if not has_forkserver():
        return {name: [dict(ONLY_UNIX)] for name in builders}
    with contextlib.ExitStack() as stack:
        children = {name: stack.enter_context(TurnProcess(*builder)) for name, builder in builders.items()}
        turns = [{name: child.measure() for name, child in children.items()} for _ in range(count)]
    return {name: [turn[name] for turn in turns] for name in builders}


class TurnProcess:
    """Context manager for a process of :func:`measure_in_turns`. It is built when the block begins."""

    def __init__(self, build, *arguments):
        self.connection, self.other_end = forkserver().Pipe()
        self.process = forkserver().Process(target=take_turns, args=(self.other_end, build, *arguments))
        self.failure = {}

    def __enter__(self):
        self.process.start()
        self.other_end.close()
        self.receive()      # processes are built one after the other, because each uses all cores
        return self

    def measure(self):
        """Measure a turn and return its dict."""
        if self.failure:
            return self.failure
        self.connection.send('measure')
        return self.receive()

    def receive(self):
        try:
            result = self.connection.recv()
        except EOFError:
            self.process.join()
            result = {'error': exit_reason(self.process.exitcode)}
        if 'error' in result:
            self.failure = result
        return result

    def __exit__(self, error_type, *_):
        self.connection.close()     # ends the process
        if error_type:              # the benchmark is being stopped
            self.process.terminate()
        self.process.join()


def take_turns(connection, build, *arguments):
    """Measure a turn on each request, until the connection is closed; the main function of a :class:`TurnProcess`."""
    prepare_child()
    built = run_measurement(lambda: {'measure': build(*arguments)})
    measure = built.pop('measure', None)
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send(built)      # {} or an error
        while measure and connection.recv():
            connection.send(run_measurement(measure))


def has_forkserver():
    return 'forkserver' in multiprocessing.get_all_start_methods()


def forkserver():
    """Return the context whose processes are forks of one that has only imported modules."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(_preloaded)
    return context


def prepare_child():
    signal.signal(signal.SIGINT, signal.SIG_IGN)           # the parent process handles Ctrl-C
    multiprocessing.set_start_method(None, force=True)     # data loaders use the default start method again


def run_measurement(measure, *arguments):
    """Call a function and return its dict; ``{'error': reason}`` if it fails."""
    try:
        return measure(*arguments)
    except UserError as error:
        return {'error': str(error)}
    except Exception as error:
        if 'memory' not in str(error).lower():
            traceback.print_exc()
        return {'error': f'{type(error).__name__}: {error}'.split('\n')[0]}


def send_result(sender, measure, arguments):
    """Call a function and send its result; the main function of the new process."""
    prepare_child()
    sender.send(run_measurement(measure, *arguments))


def exit_reason(status):
    if status == -signal.SIGKILL:
        return 'ended by SIGKILL, probably because memory ran out'
    return f'ended by {signal.Signals(-status).name}' if status < 0 else f'exited with status {status}'
