"""Short names of runs: which folder they mean, and where they are accepted."""
import os

import pytest

from processor.run_folders import find_run_folders
from run_scripts.compare import find_results
from utils.errors import UserError
from utils.options import build_test_parser, get_args, parse_test_options
from utils.run_aliases import alias_names, find_run_config, find_run_folder, run_alias

RUNS = ('CUHK-PEDES/20260101_100000_irra', 'CUHK-PEDES/20260102_090000_irra', 'CUHK-PEDES/20251231_235959_sen',
        'RSTPReid/20260103_100000_irra', 'RSTPReid/published', 'ablation/irra_rstpreid/sdm_seed1/RSTPReid/20260104_1_x',
        'ablation/irra_rstpreid/sdm_seed1/RSTPReid/20260104_000000_baseline')


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """The folders of some runs below logs, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for run in RUNS:
        folder = tmp_path / 'logs' / run
        folder.mkdir(parents=True)
        dataset = 'RSTPReid' if 'RSTPReid' in run else 'CUHK-PEDES'
        (folder / 'configs.yaml').write_text(f'dataset_name: {dataset}\ntraining: true\n')
        for name in ('best.pth', 'last.pth', 'metrics.json'):
            (folder / name).write_bytes(b'')
    return 'logs'


@pytest.mark.parametrize('word, folder', [
    ('CUHK-PEDES/irra', RUNS[1]), ('sen', RUNS[2]), ('RSTPReid/irra', RUNS[3]), ('published', RUNS[4]),
    ('20260101_100000_irra', RUNS[0]), ('CUHK-PEDES/20260101_100000_irra/', RUNS[0]), ('baseline', RUNS[-1]),
    ('sdm_seed1/RSTPReid/baseline', RUNS[-1])])
def test_which_run_a_name_means(logs, word, folder):
    assert find_run_folder(word) == os.path.join(logs, folder)
    assert find_run_config(word) == os.path.join(logs, folder, 'configs.yaml')


def test_a_path_comes_before_a_name(logs):
    os.makedirs('sen')
    assert find_run_folder('sen') == 'sen' and find_run_config('x/configs.yaml') == 'x/configs.yaml'


def test_a_folder_that_hides_a_run_of_its_name(logs):
    os.makedirs('sen')
    with pytest.raises(UserError, match='^--config_file: sen is a folder without a configs.yaml; give CUHK-PEDES/sen$'):
        find_run_config('sen')
    with pytest.raises(UserError, match='^--resume_ckpt_file: there is no file sen/last.pth; give CUHK-PEDES/sen$'):
        get_args(['--resume', 'sen'])
    with pytest.raises(UserError, match='without a configs.yaml; give one of RSTPReid/irra, RSTPReid/published$'):
        find_run_config('logs/RSTPReid')
    with pytest.raises(UserError, match='--init_from: there is no file photos/best.pth; give the folder of a run$'):
        os.makedirs('photos')
        get_args(['--init_from', 'photos'])


def test_names_that_mean_no_run_or_several(logs):
    with pytest.raises(UserError, match="2 runs below logs are named 'irra': give one of CUHK-PEDES/irra, RSTPR"):
        find_run_folder('irra')
    with pytest.raises(UserError, match="--config_file: .* no run of this name below logs; did you mean CUHK-PEDES/"):
        find_run_config('CUHK-PEDES/senn')
    assert find_run_folder('CUHK-PEDES/published') is None and find_run_folder('a/CUHK-PEDES/sen') is None
    assert alias_names() == ['CUHK-PEDES/irra', 'CUHK-PEDES/sen', 'RSTPReid/irra', 'RSTPReid/published']
    assert run_alias(os.path.join(logs, RUNS[0])) == 'CUHK-PEDES/irra'


def test_where_a_name_is_accepted(logs):
    newest = os.path.join(logs, RUNS[1])
    args = parse_test_options(build_test_parser('', ''), ['--config_file', 'CUHK-PEDES/irra'])
    assert (args.config_file, args.checkpoint) == tuple(os.path.join(newest, n) for n in ('configs.yaml', 'best.pth'))
    assert get_args(['--resume', 'CUHK-PEDES/irra']).resume_ckpt_file == os.path.join(newest, 'last.pth')
    assert get_args(['--init_from', 'CUHK-PEDES/irra']).init_from == os.path.join(newest, 'best.pth')
    assert find_run_folders('CUHK-PEDES/irra') == [newest]
    assert find_results('CUHK-PEDES/irra', 'metrics.json') == [os.path.join(newest, 'metrics.json')]
    with pytest.raises(UserError, match='--init_from: there is no file CUHK-PEDES/nowhere'):
        get_args(['--init_from', 'CUHK-PEDES/nowhere'])
