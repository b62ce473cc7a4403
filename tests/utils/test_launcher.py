"""Processes of torchrun end after torchrun has ended; other programs continue.

The tests use real processes and a fake torchrun.
"""
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from utils.launcher import adopts_orphans

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
pytestmark = pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')
# Starts the given program, and waits until it is killed.
LAUNCHER = 'import subprocess, sys; subprocess.Popen(sys.argv[1:]); sys.stdin.read()'
WATCHED = '''
import os, signal, time
from utils import launcher
{before}
launcher.watch_launcher()
print(os.getpid(), flush=True)
time.sleep(60)
'''


@pytest.fixture
def launch():
    """Return a function that starts a program under a fake torchrun.

    It returns (the fake torchrun, the read end of all output).
    """
    started = []

    def start(*command, **environment):
        process = subprocess.Popen([sys.executable, '-c', LAUNCHER, sys.executable, *command], cwd=ROOT,
                                   stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                                   env={**os.environ, **environment})
        started.append(process)
        return process
    yield start
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()


def seconds_to_end(process):
    """Kill the fake torchrun, and measure how long its program, which holds the output open, still runs."""
    process.kill()
    began = time.monotonic()
    output = process.stdout.read()
    return time.monotonic() - began, output


@pytest.mark.parametrize('before', ['', 'launcher.GRACE = 1; signal.signal(signal.SIGTERM, signal.SIG_IGN)'])
def test_a_process_ends_with_its_launcher(launch, before):
    process = launch('-c', WATCHED.format(before=before), TORCHELASTIC_RUN_ID='x', LOCAL_RANK='0')
    process.stdout.readline()
    seconds, output = seconds_to_end(process)
    assert seconds < 15, output
    assert output.count('torchrun, which started this process, has ended') == 1


def test_one_process_of_a_machine_speaks(launch):
    process = launch('-c', WATCHED.format(before=''), TORCHELASTIC_RUN_ID='x', LOCAL_RANK='1')
    process.stdout.readline()
    assert seconds_to_end(process)[1] == ''


def test_a_program_that_torchrun_did_not_start_outlives_its_parent(launch):
    process = launch('-c', WATCHED.format(before='').replace('sleep(60)', 'sleep(4); print("done")'), RANK='0',
                     WORLD_SIZE='1')
    process.stdout.readline()
    assert seconds_to_end(process)[1] == 'done\n'


def test_a_launcher_that_is_gone_before_the_watch_begins(launch):
    begin_late = 'while os.getppid() == parent: time.sleep(0.05)\nprint(os.getppid(), flush=True)'
    first = 'import os; parent = os.getppid(); print(parent, flush=True)\n'
    process = launch('-c', first + WATCHED.format(before=begin_late), TORCHELASTIC_RUN_ID='x')
    process.stdout.readline()
    process.kill()
    if not adopts_orphans(int(process.stdout.readline())):
        pytest.skip('orphans here get a parent that is not told from a launcher')
    began = time.monotonic()
    process.stdout.read()
    assert time.monotonic() - began < 15


def test_train_ends_while_it_connects_to_a_launcher_that_is_killed(launch):
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen()
        server.settimeout(240)
        process = launch('train.py', TORCHELASTIC_RUN_ID='x', TORCHELASTIC_USE_AGENT_STORE='True', RANK='0',
                         LOCAL_RANK='0', WORLD_SIZE='2',
                         MASTER_ADDR='127.0.0.1', MASTER_PORT=str(server.getsockname()[1]))
        connection, _ = server.accept()     # train.py waits for an answer that never comes
        with connection:
            seconds, output = seconds_to_end(process)
    assert seconds < 30, output
    assert 'torchrun, which started this process, has ended' in output and 'Traceback' not in output
