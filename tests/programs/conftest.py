"""Small synthetic datasets and a small CLIP that the programs' tests share."""
import os
import pathlib
import shutil

import pytest

import train as train_program
from datasets.synthpedes import generate
from processor.runs import load_run
from tests.programs.run_folders import only
from tests.several import fork_server
from tests.support import small_archive, small_vocabulary, vocabulary_size
from utils.options import build_test_parser, parse_test_options


@pytest.fixture(scope='module', autouse=True)
def programs_with_small_vocabulary():
    """All runs here have a small vocabulary: also those of the fixtures below, which several modules share."""
    with small_vocabulary():
        yield


@pytest.fixture(scope='session', autouse=True)
def programs_with_imported_modules():
    """The processes of programs and of measurements are forks of one that has imported Pedestal."""
    fork_server()


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """A folder with all three formats, 12 training identities each."""
    root = tmp_path_factory.mktemp('data')
    for name in ('CUHK-PEDES', 'ICFG-PEDES', 'RSTPReid'):
        splits = {} if name == 'ICFG-PEDES' else {'val_ids': 4}
        generate(str(root), 12 + 6 + splits.get('val_ids', 0), images_per_id=2, size=(64, 32), format=name, test_ids=6,
                 second_captions=True, workers=1, **splits)
    return str(root)


@pytest.fixture(scope='session')
def clip(tmp_path_factory):
    """A small CLIP with a small vocabulary."""
    with small_vocabulary():
        return small_archive(tmp_path_factory.mktemp('clip') / 'clip.pt')


@pytest.fixture(scope='session')
def trained(data, clip, tmp_path_factory):
    """The configs.yaml of a run on CUHK-PEDES, which tests read and do not change."""
    logs = tmp_path_factory.mktemp('trained')
    command = ['--name', 'small', '--loss_names', 'sdm', '--dataset_name', 'CUHK-PEDES', '--root_dir', data,
               '--num_epoch', '1', '--pretrain_choice', clip, '--img_size', '64', '32', '--batch_size', '8',
               '--num_workers', '0', '--device', 'cpu', '--output_dir', str(logs)]
    with small_vocabulary():
        train_program.main(command)
    folder, = os.listdir(logs / 'CUHK-PEDES')
    return str(logs / 'CUHK-PEDES' / folder / 'configs.yaml')


@pytest.fixture(scope='session')
def opened(trained):
    """The run of ``trained``, opened."""
    with small_vocabulary():
        return load_run(parse_test_options(build_test_parser('', ''), ['--config_file', trained]))


def build_command(data, clip, output_dir):
    """Return options of IRRA's command at a size for tests."""
    return ['--name', 'irra', '--img_aug', '--batch_size', '8', '--MLM', '--loss_names', 'sdm+mlm+id',
            '--dataset_name', 'CUHK-PEDES', '--root_dir', data, '--num_epoch', '2', '--pretrain_choice', clip,
            '--img_size', '64', '32', '--cmt_depth', '1', '--num_workers', '0', '--device', 'cpu', '--lr', '1e-3',
            '--vocab_size', str(vocabulary_size()), '--output_dir', str(output_dir)]


@pytest.fixture
def command(data, clip, tmp_path):
    """The options of :func:`build_command` for a run below the test's folder."""
    return build_command(data, clip, tmp_path / 'logs')


@pytest.fixture(scope='module')
def train_shared_run(data, clip, tmp_path_factory):
    """Return a function that trains ``command`` with further options, and returns the run's folder.

    Tests of the module share these runs: they may evaluate one in its folder, and copy one to change it.
    """
    def train_once(*options):
        logs = tmp_path_factory.mktemp('shared')
        train_program.main([*build_command(data, clip, logs), *options])
        return only(only(logs))
    return train_once


@pytest.fixture
def copy_run(tmp_path):
    """Return a function that copies a run's folder, whose options then name the copy, and returns the copy's folder."""
    def copy(folder):
        copied = shutil.copytree(folder, str(tmp_path / 'copied' / os.path.basename(folder)))
        config = pathlib.Path(copied, 'configs.yaml')
        config.write_text(config.read_text().replace(folder, copied))
        return copied
    return copy


@pytest.fixture
def run_folder(tmp_path):
    """The one run folder that a test's training made."""
    def find(dataset='CUHK-PEDES', root=tmp_path / 'logs'):
        folder, = os.listdir(os.path.join(root, dataset))
        return os.path.join(root, dataset, folder)
    return find
