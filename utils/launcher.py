"""End a process of torchrun when torchrun is gone. A program calls it first, so this module imports no PyTorch."""
import functools
import os
import signal
import sys
import threading
import time

CHECK_INTERVAL = 1.0    # seconds between looks at the parent
GRACE = 20.0            # seconds to end by SIGTERM: to finish a step and save


@functools.cache    # once in a process
def watch_launcher():
    """Send this process SIGTERM once the torchrun that launched it is gone, and end it 20 s later if it still runs.

    Other programs are left alone: they may outlive their shell on purpose (nohup, tmux). On Windows nothing happens,
    because a process there does not see that its parent ended.
    """
    if 'TORCHELASTIC_RUN_ID' in os.environ and os.name == 'posix':
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True, name='launcher watch').start()


def end_with(parent):
    """End this process once ``parent`` is no longer its parent."""
    while os.getppid() == parent and not adopts_orphans(parent):
        time.sleep(CHECK_INTERVAL)
    if os.environ.get('LOCAL_RANK', '0') == '0':
        try:
            print(f'{os.path.basename(sys.argv[0])}: error: torchrun, which started this process, is gone, most likely '
                  'killed: all its processes end', file=sys.stderr, flush=True)
        except (OSError, ValueError):   # nobody reads any more
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)      # it waits in a call that heeds no signals, such as for a lost connection


def adopts_orphans(pid):
    """Whether ``pid`` is the system's init or a user's systemd, which adopt processes whose parent is gone.

    Then torchrun ended before the watch began. In a container torchrun itself may be process 1.
    """
    try:
        with open(f'/proc/{pid}/cmdline', 'rb') as file:
            program = os.path.basename(file.read().split(b'\0')[0])
    except OSError:
        return pid == 1
    return program == b'systemd' or (pid == 1 and b'python' not in program)
