"""Run each measurement of the benchmark in its own process."""
import multiprocessing
import signal
import traceback

from utils.errors import UserError
from utils.plugins import qualify

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
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return {'error': 'time and memory are measured only on Linux and macOS, not on Windows'}
    context = multiprocessing.get_context('forkserver')   # forks a process that has only imported modules
    context.set_forkserver_preload(_preloaded)
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


def send_result(sender, measure, arguments):
    """Call a function and send its result; the main function of the new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)           # the parent process handles Ctrl-C
    multiprocessing.set_start_method(None, force=True)     # data loaders use the default start method again
    try:
        result = measure(*arguments)
    except UserError as error:
        result = {'error': str(error)}
    except Exception as error:
        if 'memory' not in str(error).lower():
            traceback.print_exc()
        result = {'error': f'{type(error).__name__}: {error}'.split('\n')[0]}
    sender.send(result)


def exit_reason(status):
    if status == -signal.SIGKILL:
        return 'ended by SIGKILL, probably because memory ran out'
    return f'ended by {signal.Signals(-status).name}' if status < 0 else f'exited with status {status}'
