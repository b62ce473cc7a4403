"""What of Windows can be known without it: nothing needs the modules and functions that Python lacks there."""
import os
import subprocess
import sys

from datasets.synthpedes import generate
from tests.support import SMALL_VOCABULARY, TOKENS_BESIDE_MERGES, small_archive, small_vocabulary

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WITHOUT = '''
import glob, importlib, os, shutil, signal, sys, warnings
from types import SimpleNamespace
for name in ('SIGHUP', 'SIGKILL', 'SIGALRM', 'SIGUSR1', 'SIGUSR2', 'sigtimedwait', 'sigwait', 'pthread_sigmask',
             'setitimer', 'alarm'):
    if hasattr(signal, name):
        delattr(signal, name)
import torch, torchvision, yaml, PIL.Image     # these know Windows by themselves
if __name__ == '__main__':
    import torch.utils.tensorboard      # workers do not need it

for name in ('fcntl', 'resource', 'termios', 'pwd', 'grp'):
    sys.modules[name] = None
for name in ('fork', 'getuid', 'geteuid', 'getgid', 'O_DIRECTORY', 'O_NOFOLLOW', 'O_CLOEXEC', 'O_NONBLOCK',
             'sched_getaffinity', 'sysconf', 'killpg', 'setsid', 'getpgid', 'posix_fallocate', 'uname', 'mkfifo',
             'chown', 'fchmod', 'getloadavg', 'sync'):
    if hasattr(os, name):
        delattr(os, name)
# As on Windows; else Python's own functions use what is removed above.
shutil._use_fd_functions, os.process_cpu_count = False, os.cpu_count
# Windows reads text in its own encoding where none is given.
ours = '(datasets|model|processor|solver|utils|run_scripts|train|test|pedestal)'
warnings.filterwarnings('error', category=EncodingWarning, module=ours)
sys.path.insert(0, {root!r})


def main():
    from utils import simple_tokenizer
    simple_tokenizer.MERGES = {merges}
    for path in sorted(glob.glob('**/*.py', root_dir={root!r}, recursive=True)):
        name = path.removesuffix('.py').removesuffix(os.sep + '__init__').replace(os.sep, '.')
        # Those of the installed package, and the example of an export, are not imported from the repository.
        others = ('tests', 'docs', 'conftest', 'package', 'setup', 'run_scripts.exports.onnx_example', '.')
        if not name.startswith(others) and not name.endswith('__main__'):
            importlib.import_module(name)
    import test
    import train
    from run_scripts import cost, search
    from run_scripts.ablation.training import StopSignals, lock_cell
    train.main({train!r})
    run = glob.glob(os.path.join({logs!r}, '*', '*'))[0]
    # The loaders are those of the training, which has spawned their workers. Each worker would import PyTorch again.
    assert test.main(['--config_file', os.path.join(run, 'configs.yaml'), '--num_workers', '0']) == 0
    train.main(['--resume', run, '--num_epoch', '2', '--num_workers', '0'])
    cell = SimpleNamespace(folder=run, path=lambda name: os.path.join(run, name))
    with StopSignals(), lock_cell(cell) as held: assert held
    search.main(['--config_file', os.path.join(run, 'configs.yaml'), '--images', {photos!r}, '--caption', 'a man'])
    from utils.errors import UserError
    import multiprocessing
    multiprocessing.get_all_start_methods = lambda: ['spawn']
    try:
        cost.main([])
    except UserError as error:
        assert 'not on Windows' in str(error)
    else:
        raise AssertionError('cost.py ran')
    print('done')


if __name__ == '__main__':
    import multiprocessing
    multiprocessing.set_start_method('spawn')
    main()
'''


def test_programs_without_what_windows_lacks(tmp_path):
    """All modules are imported; a run is trained with a spawned worker, tested, resumed and searched with."""
    generate(
        str(tmp_path / 'data'), 12, images_per_id=2, size=(64, 32), test_ids=4, val_ids=0, workers=1, progress=False
    )
    with small_vocabulary():
        archive = small_archive(tmp_path / 'clip.pt')
    train = [
        '--loss_names',
        'sdm+id',
        '--dataset_name',
        'synthpedes',
        '--root_dir',
        str(tmp_path / 'data'),
        '--num_epoch',
        '1',
        '--pretrain_choice',
        archive,
        '--img_size',
        '64',
        '32',
        '--batch_size',
        '8',
        '--num_workers',
        '1',
        '--image_cache',
        str(tmp_path / 'cache'),
        '--device',
        'cpu',
        '--output_dir',
        str(tmp_path / 'logs'),
    ]
    script = tmp_path / 'without.py'
    script.write_text(WITHOUT.format(root=ROOT, train=train, merges=SMALL_VOCABULARY - TOKENS_BESIDE_MERGES,
                                     logs=str(tmp_path / 'logs'),
                                     photos=str(tmp_path / 'data' / 'synthpedes' / 'imgs' / 'test')))
    done = subprocess.run(
        [sys.executable, '-X', 'warn_default_encoding', str(script)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and done.stdout.endswith('done\n'), done.stdout[-2000:] + done.stderr[-4000:]
