"""A process for each row of the benchmark."""
import multiprocessing
import signal
import traceback

from utils.errors import UserError


def in_child(measure, *arguments):
    """The dict that ``measure(*arguments)`` returns in a new process, so that no row finds another one's memory;
    ``{'error': why}`` where it fails."""
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return {'error': 'speed and memory are measured on Linux and macOS alone, not on Windows'}
    context = multiprocessing.get_context('forkserver')   # forks from a process that has imported PyTorch and computed nothing
    context.set_forkserver_preload(['torch', 'torchvision', 'torch.utils.tensorboard', 'run_scripts.benchmark.rows'])
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(sending, measure, arguments))
    process.start()
    sending.close()
    try:
        return receiving.recv()
    except EOFError:
        process.join()
        return {'error': how_ended(process.exitcode)}
    except BaseException:       # the benchmark is being stopped
        process.terminate()
        raise
    finally:
        process.join()


def answer(sending, measure, arguments):
    signal.signal(signal.SIGINT, signal.SIG_IGN)           # which is for the parent to heed
    multiprocessing.set_start_method(None, force=True)     # loaders start their workers as everywhere else
    try:
        result = measure(*arguments)
    except UserError as error:
        result = {'error': str(error)}
    except Exception as error:
        if 'memory' not in str(error).lower():
            traceback.print_exc()
        result = {'error': f'{type(error).__name__}: {error}'.split('\n')[0]}
    sending.send(result)


def how_ended(status):
    if status == -signal.SIGKILL:
        return 'ended by SIGKILL, as systems do when memory runs out'
    return f'ended by {signal.Signals(-status).name}' if status < 0 else f'left with status {status}'
