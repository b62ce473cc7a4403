"""What recipes cost, on the smallest model."""
import csv

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from datasets.device_augmentation import augment_on_device
from datasets.synthpedes import generate
from model import build_model
from model.clip_weights import shape_named
from run_scripts import ROOT
from run_scripts.benchmark import machine
from run_scripts.benchmark.child import measure_in_child
from run_scripts.benchmark.recipe_cost import dataset_sizes, measure_recipe, synthetic_batch
from run_scripts.benchmark.simulated_step import (MemoryCounter, WithoutInitialization, count_recipe,
                                                  count_step_memory, repeat_rows, separate_constants)
from run_scripts.cost import build_cost_parser, format_row, main
from utils.errors import UserError
from utils.image_stats import ImageStats
from utils.options import get_args

IRRA, A2TE = 'configs/irra.yaml', 'configs/a2te-icfg-pedes.yaml'
TINY = ['--pretrain_choice', 'scratch:tiny', '--img_size', '96', '48', '--cmt_depth', '1']


@pytest.fixture(scope='module')
def row():
    return measure_recipe(IRRA, TINY, build_cost_parser().parse(['--batch_size', '4', '--repeats', '1']), 'cpu')


def test_parameters_are_the_models(row):
    model = build_model(get_args(['--config_file', IRRA, *TINY]), 11003)
    assert row['parameters'] == row['trained'] == sum(parameter.numel() for parameter in model.parameters())


def test_flops_are_those_of_the_encoders_worked_out_by_hand(row):
    """24 n w^2 + 4 n^2 w a block of n tokens, the patches' convolution and the projection."""
    shape = shape_named('scratch:tiny')

    def encoder(layers, tokens, width):
        return layers * (24 * tokens * width ** 2 + 4 * tokens ** 2 * width) + 2 * tokens * width * shape.embed_dim
    patch = shape.vision_patch_size
    positions = ((96 - patch) // 16 + 1) * ((48 - patch) // 16 + 1)
    image = encoder(shape.vision_layers, 1 + positions,
                    shape.vision_width) + 2 * positions * 3 * patch ** 2 * shape.vision_width
    assert row['image_flops'] == pytest.approx(image, rel=0.01)
    assert row['caption_flops'] == pytest.approx(encoder(shape.text_layers, 77, shape.text_width), rel=0.01)


def test_times_and_memory_are_there(row):
    assert row['batch'] == 4 and 0 < row['query_seconds'] < row['step_seconds']
    assert 0 <= row['query_bytes'] <= row['step_bytes']


def test_each_recipe_is_a_row_and_a_broken_one_says_why(tmp_path, capsys, monkeypatch):
    # The machine is described here, with small matrices: products of large ones take 10 s of a core.
    monkeypatch.setattr(machine, 'CPU_SIZE', 256)
    monkeypatch.setattr('run_scripts.cost.measure_in_child', lambda measure, *arguments: (
        measure(*arguments) if measure is machine.describe_machine else measure_in_child(measure, *arguments)))
    broken = tmp_path / 'broken.yaml'
    broken.write_text('loss_names: sdn\n')
    csv_file = tmp_path / 'cost.csv'
    assert main(['--recipes', A2TE, str(broken), '--repeats', '1', '--batch_size', '2', '--csv', str(csv_file),
                 '--', *TINY]) == 1
    printed = capsys.readouterr().out
    assert A2TE in printed and "unknown loss 'sdn'" in printed and 'GFLOPs per image' in printed
    with open(csv_file, newline='') as file:
        first, second = csv.DictReader(file)
    assert int(first['trained']) < int(first['parameters']) and second['error']      # A2TE keeps the patch convolution


def test_a_recipe_of_own_data_has_no_sizes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='--dataset_name synthpedes: the dataset has no published sizes'):
        measure_recipe(f'{ROOT}/configs/synthpedes/quickstart.yaml', [], build_cost_parser().parse([]), 'cpu')


def test_a_step_of_a_table_with_named_columns():
    """The doctor and cost measure a step on generated images, which have no such columns."""
    words = ['--dataset_name', 'people.csv', '--columns', 'image=picture', 'caption=says', '--pretrain_choice',
             'scratch:tiny', '--img_size', '32', '16', '--device', 'cpu', '--loss_names', 'itc']
    options, batch = synthetic_batch(words, 3)
    assert options.columns is None and batch['images'].shape == (3, 3, 32, 16)


def test_a_row_in_units(row):
    cells = format_row({'recipe': 'x', **row})
    assert format_row({'recipe': 'x', **row, 'others': 0.75})[-1].startswith('other programs used 75% of the cores')
    assert format_row({'recipe': 'x', **row, 'others': 0.01})[-1] == ''
    assert format_row({'recipe': 'x', 'error': 'why'})[-1] == 'why'
    assert cells[2] == f"{row['parameters'] / 1e6:.2f}" and cells[6] == f"{1000 * row['step_seconds']:.2f}"


def test_a_tuning_trains_few_parameters(row):
    args = build_cost_parser().parse(['--batch_size', '4', '--repeats', '1'])
    tuned = measure_recipe(IRRA, [*TINY, '--loss_names', 'sdm', '--tuning', 'lora'], args, 'cpu')
    # two matrices of rank 8 for queries and values in four blocks, 128 wide
    assert tuned['trained'] == 4 * 2 * 2 * 8 * 128 < tuned['parameters'] < row['parameters']


def test_each_tuning_of_a_recipe_is_a_row(monkeypatch, capsys):
    calls = []

    def measure(function, *args):
        if function is not measure_recipe:
            return {'device': 'cpu', 'cpu': 'a CPU', 'precision': 'float32'}
        calls.append(args[:2])
        return {'error': 'not measured'}
    monkeypatch.setattr('run_scripts.cost.measure_in_child', measure)
    monkeypatch.setattr('run_scripts.cost.preload', lambda name: None)
    assert main(['--recipes', IRRA, A2TE, '--tunings', 'none', 'lora', '--', *TINY]) == 1
    assert calls == [(path, [*TINY, '--tuning', name]) for path in (IRRA, A2TE) for name in ('none', 'lora')]
    assert f'{A2TE} --tuning lora' in capsys.readouterr().out


# -- counting without computing --------------------------------------------------------------------------------------

def test_counts_without_values_are_those_of_the_model(row):
    assert count_recipe(['--config_file', IRRA, *TINY]) == {
        name: row[name] for name in ('parameters', 'trained', 'image_flops', 'caption_flops')}


def test_the_counter_adds_up_what_exists_at_the_same_time():
    counter = MemoryCounter()
    with FakeTensorMode(), counter:
        first = torch.empty(100)                # 400 bytes
        view = first[:50]                       # the same memory
        second = first + 1
        assert counter.current == 800
        del first, second
        assert counter.current == 400           # the view keeps it
        del view
    assert counter.current == 0 and counter.changes == [400, 400, -400, -400]


def test_memory_of_a_step_grows_with_the_batch_and_shrinks_with_grad_checkpoint():
    words = ['--config_file', IRRA, *TINY, '--loss_names', 'sdm']
    counted = count_step_memory(words, [32, 64, 96])
    small, middle, large = counted['peak_bytes'].values()
    assert counted['state_bytes'] == pytest.approx(3 * 4 * counted['trained'], rel=0.02)     # and Adam's two moments
    assert 4 / 3 * counted['state_bytes'] < small and large - middle == pytest.approx(middle - small, rel=0.05)
    assert count_step_memory(words, [64])['peak_bytes'][64] == pytest.approx(middle, rel=0.001)
    assert count_step_memory([*words, '--grad_checkpoint'], [96])['peak_bytes'][96] < middle


def test_a_counted_step_leaves_no_fake_tensors_to_later_steps():
    stats, images = ImageStats((0.25,) * 3, (0.5,) * 3, (0.0,) * 3), torch.ones(1, 3, 4, 2, dtype=torch.uint8)
    expected = augment_on_device(images, image_stats=stats)
    with separate_constants(), FakeTensorMode() as mode:
        assert augment_on_device(mode.from_tensor(images), image_stats=stats).shape == images.shape
    assert torch.equal(augment_on_device(images, image_stats=stats), expected)


def test_weights_that_are_not_initialized_need_no_draws(monkeypatch):
    """PyTorch 2.14 draws from a truncated normal distribution until all values are within its bounds."""
    monkeypatch.setattr(torch, 'where', lambda *_: pytest.fail('draws again'))
    weights, initialize = torch.full((4,), 9.0), torch.nn.init.trunc_normal_
    with WithoutInitialization():
        assert torch.nn.init.trunc_normal_(weights, std=0.02) is weights
    assert weights.tolist() == [9.0] * 4 and torch.nn.init.trunc_normal_ is initialize


@pytest.mark.parametrize('recipe, words', [
    ('aptm', ['--pretrain_choice', 'scratch:aptm-tiny', '--img_size', '96', '32']),
    ('rasa', ['--pretrain_choice', 'scratch:albef-tiny', '--img_size', '64', '32', '--moco_queue', '64']),
    ('mars', ['--pretrain_choice', 'scratch:albef-tiny', '--img_size', '64', '32', '--moco_queue', '64']),
    ('conquer', TINY)])
def test_memory_of_recipes_with_other_encoders_and_losses(recipe, words):
    counted = count_step_memory(['--config_file', f'configs/{recipe}.yaml', *words, '--amp', 'bf16'], [8, 16])
    assert 4 * counted['trained'] < counted['state_bytes'] < counted['peak_bytes'][8] < counted['peak_bytes'][16]


def test_repeated_rows_are_other_pairs():
    batch = repeat_rows({'pids': torch.tensor([3, 1]), 'index': torch.tensor([0, 1]), 'prompt_ids': torch.ones(5),
                         'images': torch.zeros(2, 3)}, 5)
    assert batch['index'].tolist() == [0, 1, 2, 3, 4] and len(batch['pids'].unique()) == 5
    assert batch['prompt_ids'].shape == (5,) and batch['images'].shape == (5, 3)


def test_the_memory_table_has_a_column_for_each_batch(monkeypatch, capsys, tmp_path):
    counted = {False: {16: 2 ** 31, 64: 2 ** 33}, True: {16: 2 ** 30, 64: 2 ** 31}}

    def measure(function, words, sizes):
        assert sizes == [16, 64] and words[-1 - ('--grad_checkpoint' in words)] == 'bf16'
        if A2TE in words:
            return {'error': 'not counted'}
        return {'state_bytes': 2 ** 30, 'peak_bytes': counted['--grad_checkpoint' in words]}
    monkeypatch.setattr('run_scripts.cost.measure_in_child', measure)
    monkeypatch.setattr('run_scripts.cost.preload', lambda name: None)
    path = tmp_path / 'memory.csv'
    assert main(['--memory', '--recipes', IRRA, A2TE, '--batch_sizes', '64', '16', '--csv', str(path),
                 '--format', 'markdown']) == 1
    lines = capsys.readouterr().out.splitlines()
    assert '| irra | 1.0 | 2.0 | 8.0 | 1.0 | 2.0 |' in lines and '| a2te-icfg-pedes | - | - | - | - | - |' in lines
    assert lines[-1] == 'a2te-icfg-pedes: not counted'
    with open(path, newline='') as file:
        first, second = csv.DictReader(file)
    assert float(first['64']) == 2 ** 33 and second['error'] == 'not counted'


def test_a_dataset_without_published_sizes_is_counted(tmp_path):
    generate(str(tmp_path), 7, images_per_id=2, size=(64, 32), val_ids=0, test_ids=3, workers=0, progress=False)
    assert dataset_sizes(get_args(['--dataset_name', 'synthpedes', '--root_dir', str(tmp_path)])) == (4, 6)
