"""End a process of torchrun after torchrun has ended. Programs import this module first, so it imports no PyTorch."""
import functools
import os
import signal
import sys
import threading
import time

CHECK_INTERVAL = 1.0    # seconds between checks of the parent
GRACE = 20.0            # seconds after SIGTERM to finish a step and save


def is_launched_by_torchrun():
    """Whether a launcher started several processes, according to the environment."""
    return os.environ.get('WORLD_SIZE', '1') != '1'


@functools.cache    # once in a process
def watch_launcher():
    """Send this process SIGTERM after the torchrun that launched it has ended, and end it 20 s later if it still runs.

    Without torchrun this does nothing, because a program may outlive its shell on purpose (nohup, tmux). It also does
    nothing on Windows, where a process cannot see that its parent has ended.
    """
    if 'TORCHELASTIC_RUN_ID' in os.environ and os.name == 'posix':
        threading.Thread(target=exit_after_parent, args=(os.getppid(),), daemon=True, name='launcher watch').start()


def exit_after_parent(parent):
    """End this process when the process with the id ``parent`` is no longer its parent."""
    while os.getppid() == parent and not adopts_orphans(parent):
        time.sleep(CHECK_INTERVAL)
    if os.environ.get('LOCAL_RANK', '0') == '0':
        try:
            print(f'{os.path.basename(sys.argv[0])}: error: torchrun, which started this process, has ended, most '
                  'likely killed: all its processes end', file=sys.stderr, flush=True)
        except (OSError, ValueError):   # the reader of stderr has ended
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)      # it waits in a call that handles no signals, such as on a lost connection


def adopts_orphans(pid):
    """Whether ``pid`` is the system's init or a user's systemd, which adopt processes whose parent has ended.

    If so, torchrun ended before the watch began. In a container, torchrun itself may be process 1.
    """
    try:
        with open(f'/proc/{pid}/cmdline', 'rb') as file:
            program = os.path.basename(file.read().split(b'\0')[0])
    except OSError:
        return pid == 1
    return program == b'systemd' or (pid == 1 and b'python' not in program)
