"""The kinds of cases: what is corrupted, and which program is started.

A case is a function of a random number generator and of its own copy of the base folder.
"""
import json
import os
import shutil

import torch
import yaml

from datasets.synthpedes import generate
from tests.campaign import mutate
from tests.campaign.judge import launch
from tests.support import SMALL_VOCABULARY, options, small_archive
from utils.iotools import read_json

# A copy of the base folder holds data/, clip.pt and run/; it is the working folder of programs.
TRAIN = ['train.py', '--loss_names', 'sdm+id', '--dataset_name', 'CUHK-PEDES', '--root_dir', 'data', '--num_epoch', '1',
         '--batch_size', '8', '--pretrain_choice', 'clip.pt', '--img_size', '64', '32', '--num_workers', '0',
         '--device', 'cpu', '--output_dir', 'logs', '--limit_train', '16', '--warmup_epochs', '0', '--cmt_depth', '1',
         '--vocab_size', str(SMALL_VOCABULARY)]
TEST = ['test.py', '--config_file', 'run/configs.yaml', '--root_dir', 'data', '--num_workers', '0']
RESUME = ['train.py', '--resume', '--resume_ckpt_file', 'run/last.pth', '--num_epoch', '2']
CHECK = ['-m', 'datasets.check', '--root_dir', 'data', '--workers', '1']
RETRIEVE = ['run_scripts/retrieve.py', '--config_file', 'run/configs.yaml', '--root_dir', 'data', '--num_workers', '0',
            '--captions', '1', '--top', '2', '--out', 'picture.png']
REPRODUCE = ['run_scripts/reproduce_tables.py', '--logs', '.', '--root_dir', 'data']
COMPARE = ['run_scripts/compare.py', 'run', 'other']
GENERATE = ['-m', 'datasets.synthpedes', '--out', 'data', '--ids', '4', '--images_per_id', '1', '--size', '32', '16',
            '--workers', '1']
CACHED = ['-m', 'tests.campaign.small_caches', *TRAIN, '--image_cache', 'caches/image']
SEARCH = ['run_scripts/search.py', '--config_file', 'run/configs.yaml', '--images', 'data/CUHK-PEDES/imgs',
          '--caption', 'a man in red', '--index', 'caches/index', '--out', 'found.json']
CACHES = ['listing_cache', 'token_cache']     # next to the annotation
ANNOTATION = 'data/CUHK-PEDES/reid_raw.json'
IMAGES = 'data/CUHK-PEDES/imgs'
# Losses whose heads read many options, with options that keep the heads small.
LOSSES = ['sdm+id', 'sdm+id+mlm', 'sdm+itc+aux --moe_layers 1 --num_experts 2', 'sdm+mae+tri', 'sdm+amm+detail',
          'sdm+cmt+cmpm']
# More epochs and compilation take long. The other options describe the files of the base folder.
FIXED_OPTIONS = {'num_epoch', 'compile', 'training', 'config_file', 'resume', 'print_config',
                 'loss_names'}
BOMB = 'a: &a [x,x,x,x,x,x,x,x,x]\n' + ''.join(
    f'{chr(b)}: &{chr(b)} [{",".join(["*" + chr(b - 1)] * 9)}]\n' for b in range(98, 108))
BAD_YAML = [
    (BOMB, 'a bomb of aliases'), ('name: &a [*a]', 'an alias to itself'),
    (f'name: {"[" * 5000}{"]" * 5000}', 'lists 5000 deep'),
    ('name: !!python/object/apply:os.system ["touch bomb"]', 'a Python object'), ('- 1\n- 2\n', 'a list'),
    ('? [a, b]\n: 1\n', 'a list as a name'), ('1: 2\n', 'a number as a name'),
    ('name: 2020-13-45\n', 'an invalid date'),
    ('%YAML 9.9\n---\nname: a\n', 'another YAML'), ('name: a\n---\nname: b\n', 'two documents'),
    ('<<: 1\n', 'a merge of a number'), ('name: !!binary x\n', 'invalid binary')]
PATHS = ['output_dir', 'root_dir', 'init_from', 'pretrain_choice', 'image_cache', 'config_file', 'resume_ckpt_file',
         'name', 'dataset_name']


def make_base(folder):
    """Make a dataset of 16 identities, a small CLIP, and a run of one epoch with its results."""
    generate(os.path.join(folder, 'data'), 16, images_per_id=2, size=(64, 32), format='CUHK-PEDES', test_ids=4,
             val_ids=2, workers=1)
    small_archive(os.path.join(folder, 'clip.pt'))
    run_successfully(TRAIN, folder)
    runs = os.path.join(folder, 'logs', 'CUHK-PEDES')
    shutil.move(os.path.join(runs, *os.listdir(runs)), os.path.join(folder, 'run'))
    run_successfully(TEST, folder)
    make_caches(folder)
    for name in ('logs', 'output', 'errors'):
        path = os.path.join(folder, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def make_caches(folder):
    """Make all caches in ``caches/``, where other cases do not use them, and store the metrics of the programs."""
    for words in (CACHED, SEARCH):
        run_successfully(words, folder)
    for name in CACHES:
        shutil.move(os.path.join(folder, 'data', 'CUHK-PEDES', name), os.path.join(folder, 'caches', name))
    with open(os.path.join(folder, 'caches', 'figures.json'), 'w') as file:
        json.dump({'training': read_training_metrics(folder), 'search': read_search_results(folder)}, file)
    os.remove(os.path.join(folder, 'found.json'))


def read_training_metrics(folder):
    """Read ``[kind, {name: value}]`` of each line of the newest run's metrics.jsonl, without times."""
    runs = os.path.join(folder, 'logs', 'CUHK-PEDES')
    with open(os.path.join(runs, sorted(os.listdir(runs))[-1], 'metrics.jsonl')) as file:
        lines = map(json.loads, file)
        return [[line.pop('kind'), {name: value for name, value in line.items() if 'second' not in name}]
                for line in lines]


def read_search_results(folder):
    with open(os.path.join(folder, 'found.json')) as file:
        return [[photo['path'], round(photo['score'], 4)] for photo in json.load(file)[0]['photos']]


def check_base(base, folder):
    """Check that every program succeeds without corruption. If a case is refused, then because of its corruption."""
    trainings = [TRAIN + ['--loss_names', *losses.split(' ')] for losses in LOSSES]
    for words in (RESUME, CHECK, RETRIEVE, REPRODUCE, COMPARE, GENERATE, *trainings):
        copy_base(base, folder)
        copy_run(folder)
        run_successfully(words, folder)
        shutil.rmtree(folder)


def copy_run(folder):
    shutil.copytree(os.path.join(folder, 'run'), os.path.join(folder, 'other'), copy_function=os.link)


def run_successfully(words, folder):
    status, output, errors, _ = launch(words, folder, 300)
    if status != 0:
        raise SystemExit(f'{words[0]} ended with status {status} before anything was corrupted:\n{output}\n{errors}')


def copy_base(base, folder):
    """Copy the base folder. Large files and images are hard links, which programs and cases must replace."""
    def copy(source, target):
        (os.link if source.endswith(('.pth', '.pt', '.jpg')) else shutil.copy2)(source, target)
    shutil.copytree(base, folder, copy_function=copy)


# -- the kinds of cases ------------------------------------------------------------------------------------------------
# Each returns (what was corrupted, the program's arguments, must_be_refused): a bool, or a function that lists problems
# after the program has succeeded.

def annotation(rng, folder):
    path = os.path.join(folder, ANNOTATION)
    what = (mutate.corrupt_json if rng.random() < 0.7 else mutate.corrupt_file)(rng, path)
    return what, rng.choice([TRAIN, TRAIN, TEST, CHECK, TRAIN + ['--image_cache', 'cache']]), False


def table(rng, folder):
    """A table as spreadsheets and scripts write it, or with corrupt bytes."""
    path = os.path.join('data', 'CUHK-PEDES', rng.choice(['people.csv', 'people.csv', 'people.tsv', 'people.CSV']))
    rows = [{'image': entry['file_path'], 'caption': caption, 'id': str(entry['id']), 'split': entry['split']}
            for entry in read_json(os.path.join(folder, ANNOTATION)) for caption in entry['captions']]
    what = mutate.corrupt_table(rng, rows, os.path.join(folder, path))
    if rng.random() < 0.2:
        what += f'; {mutate.corrupt_file(rng, os.path.join(folder, path))}'
    return what, [*rng.choice([TRAIN, CHECK, CHECK]), '--dataset_name', path], False


def image(rng, folder):
    program = rng.choice([TRAIN, TEST, CHECK, RETRIEVE])
    path = rng.choice(list_read_images(folder, program))
    is_strange = rng.random() < 0.5
    what, refused = mutate.write_strange_image(rng, path) if is_strange else (mutate.corrupt_file(rng, path), False)
    extra = rng.choice([[], [], ['--num_workers', '1'], ['--num_workers', '2'], ['--image_cache', 'cache']])
    if program is CHECK:
        extra = []
    elif program is TRAIN:
        extra = extra + rng.choice([[], ['--skip_broken'], ['--img_aug']])
    # a figure shows only some images
    must_fail = refused and program is not RETRIEVE and '--skip_broken' not in extra
    return f'{os.path.basename(path)}: {what}', program + extra, must_fail


def list_read_images(folder, program):
    """List the images that a program opens: those of the test split, and in training those of the first 16 captions."""
    entries = read_json(os.path.join(folder, ANNOTATION))
    train = [entry for entry in entries if entry['split'] == 'train'][:8 if program is TRAIN else None]
    opened = [entry for entry in entries if entry['split'] == 'test'] + (train if program in (TRAIN, CHECK) else [])
    return [os.path.join(folder, IMAGES, entry['file_path']) for entry in opened]


def recipe(rng, folder):
    """A recipe for train.py, followed by flags that keep the run small."""
    path, program = os.path.join(folder, 'run', 'configs.yaml'), rng.choice(['recipe', 'recipe', 'test', 'resume'])
    content = read_yaml(path)
    if program == 'recipe':
        no_recipe_keys = ('training', 'batch_fields', 'resume', 'resume_ckpt_file')
        content = {name: value for name, value in content.items() if name not in no_recipe_keys}
    what, refused = corrupt_yaml(rng, path, content)
    # the runs of other forks have other options
    refused = refused and (program == 'recipe' or not what.startswith('an unknown name'))
    if program == 'recipe':
        os.rename(path, os.path.join(folder, 'recipe.yaml'))
        return what, ['train.py', '--config_file', 'recipe.yaml', *TRAIN[3:]], refused
    return what, TEST if program == 'test' else RESUME, refused


def read_yaml(path):
    with open(path) as file:
        return yaml.safe_load(file)


def corrupt_yaml(rng, path, content):
    """Corrupt one thing in a YAML file: ``(what was corrupted, whether it must be refused)``."""
    names = sorted(set(content) - FIXED_OPTIONS)
    kind, name, text, refused = rng.randrange(10), rng.choice(names), None, False
    weights = [other for other in names if other.endswith('_weight')]
    if kind <= 3:
        content[name] = rng.choice([*mutate.VALUES, *mutate.NUMBERS])
        what = f'{name} is {mutate.shorten(content[name])}'
    elif kind == 4:
        name = rng.choice(weights)
        content[name] = rng.choice([float('nan'), float('inf'), -1.0, '1e400'])
        what, refused = f'{name} is {content[name]}', True
    elif kind == 5:
        del content[name]
        what = f'{name} is not there'
    elif kind == 6:
        content[f'{name}{rng.choice(["s", " ", "_", "2"])}'] = content[name]
        what, refused = f'an unknown name like {name}', True
    elif kind == 7:
        text, what = rng.choice([(f'{yaml.safe_dump(content)}\n{name}: 1\n', f'{name} twice'), *BAD_YAML])
        refused = True
    else:
        write_yaml(path, content)
        return mutate.corrupt_file(rng, path), False
    write_yaml(path, content) if text is None else mutate.write(path, text.encode())
    return what, refused


def write_yaml(path, content):
    mutate.write(path, yaml.dump(content, allow_unicode=True).encode('utf-8', 'surrogatepass'))


def argument(text):
    """Shorten a text to an argument that a command line can hold, without NUL."""
    return text.replace('\0', '')[:100000]


def flags(rng, folder):
    """One or two options of train.py with hostile values, after a valid command."""
    losses, *small = rng.choice(LOSSES).split(' ')
    names = sorted(set(vars(options())) - FIXED_OPTIONS)
    words, what = TRAIN + ['--loss_names', losses, *small], []
    for name in rng.sample(names, rng.choice([1, 1, 2])):
        value = argument(rng.choice([rng.choice(mutate.NUMBERS), rng.choice(mutate.NUMBERS), rng.choice(mutate.TEXTS)]))
        flag = rng.choice([[f'--{name}={value}'], [f'--{name}={value}'], [f'--{name}', value], [f'--{name}'],
                           [f'--{name}', value, value]])
        words, what = words + flag, what + [mutate.shorten(' '.join(flag))]
    return ', '.join(what), words, False


def paths(rng, folder):
    """Strange names of files and folders, and names of other files and folders."""
    name = rng.choice(PATHS)
    value = argument(rng.choice([*mutate.TEXTS, 'data', 'clip.pt', 'run', 'run/best.pth', 'run/last.pth',
                                 'run/configs.yaml', ANNOTATION, 'pipe', 'deep/' * 200, 'loop', '/dev/zero',
                                 '/dev/full', 'text']))
    os.mkfifo(os.path.join(folder, 'pipe'))
    os.symlink('loop', os.path.join(folder, 'loop'))
    with open(os.path.join(folder, 'text'), 'w') as file:
        file.write('text\n')
    program = rng.choice([TRAIN, TRAIN, TEST, RETRIEVE, CHECK])
    known = {'test.py': ['config_file', 'checkpoint', 'root_dir', 'dataset_name', 'image_cache'],
             '-m': ['root_dir', 'dataset_name'],
             'run_scripts/retrieve.py': ['config_file', 'checkpoint', 'root_dir', 'dataset_name', 'out', 'caption']}
    name = rng.choice(known.get(program[0], PATHS))
    resume = ['--resume'] * (name == 'resume_ckpt_file')
    return f'--{name} {mutate.shorten(value)}', [*program, *resume, f'--{name}={value}'], False


def tools(rng, folder):
    """Numbers for the tools."""
    program, names = rng.choice([(RETRIEVE, ['captions', 'top', 'test_batch_size', 'num_workers']),
                                 (CHECK, ['workers']), (TEST, ['test_batch_size', 'num_workers', 'amp', 'device']),
                                 (GENERATE, ['val_ids', 'test_ids', 'size', 'seed', 'format', 'captions_per_image']),
                                 (GENERATE, ['val_ids', 'test_ids', 'size', 'seed', 'format', 'captions_per_image'])])
    name, value = rng.choice(names), rng.choice([*mutate.NUMBERS, 'x'])
    if name in ('workers', 'captions_per_image') and len(value) > 3:   # a large number is valid, and takes long
        value = '0'
    flag = [f'--{name}', value, value] if name == 'size' else [f'--{name}={value}']
    return ' '.join(flag), program + flag, False


def checkpoint(rng, folder):
    """Bytes or entries of a checkpoint or of a pretrained CLIP, and every program that reads one."""
    name, program = rng.choice([('run/best.pth', TEST), ('run/best.pth', RETRIEVE), ('run/last.pth', RESUME),
                                ('run/last.pth', RESUME), ('run/best.pth', TRAIN + ['--init_from', 'run/best.pth']),
                                ('clip.pt', TRAIN)])
    path, corrupts_bytes = os.path.join(folder, name), rng.random() < 0.35
    original = torch.load(path, map_location='cpu', weights_only=True)
    what = (mutate.corrupt_file if corrupts_bytes else mutate.corrupt_checkpoint)(rng, path)
    return f'{name}: {what}', program, corrupts_bytes and not is_unchanged(original, path)


def is_unchanged(original, path):
    """Whether a file still holds the original values, bit by bit."""
    if not os.path.isfile(path) or os.path.islink(path):
        return False
    try:
        return is_equal(original, torch.load(path, map_location='cpu', weights_only=True))
    except Exception:  # the corrupt file cannot be read
        return False


def is_equal(one, other):
    """Whether two nested values are equal."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(
            is_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(is_equal, one, other))
    return one == other


def training_state(rng, folder):
    """The other entries of last.pth, and the files in the run's folder that a resumed run reads."""
    if rng.random() < 0.3:
        name = rng.choice(['metrics.jsonl', 'best.pth', 'configs.yaml'])
        what = mutate.corrupt_file(rng, os.path.join(folder, 'run', name))
        return f'{name}: {what}', rng.choice([RESUME, RESUME, TEST, REPRODUCE]), False
    path = os.path.join(folder, 'run', 'last.pth')
    content = torch.load(path, map_location='cpu', weights_only=True)
    if rng.random() < 0.3:
        what, refused = swap_moments(rng, content), True
    else:
        other_entries = {key: value for key, value in content.items() if key != 'model'}
        what, refused = mutate.corrupt_entry(rng, other_entries, content), False
    os.remove(path)
    torch.save(content, path)
    return what, RESUME, refused


def swap_moments(rng, content):
    """Exchange the moments of two parameters of different shapes."""
    state = content['optimizer']['state']
    one = rng.choice(sorted(state))
    shape = state[one]['exp_avg'].shape
    other = rng.choice([number for number in sorted(state) if state[number]['exp_avg'].shape != shape])
    state[one], state[other] = state[other], state[one]
    return f'moments of {one} and {other} exchanged'


def results(rng, folder):
    """The results of test.py, and the programs that read them."""
    copy_run(folder)
    names = sorted(name for name in os.listdir(os.path.join(folder, 'run')) if name.endswith(('.json', '.csv')))
    name = rng.choice(names)
    path = os.path.join(folder, 'run', name)
    corrupt = corrupt_mapping if name.endswith('.json') and rng.random() < 0.6 else mutate.corrupt_file
    what = corrupt(rng, path)
    return f'{name}: {what}', rng.choice([COMPARE, COMPARE, REPRODUCE]), False


def corrupt_mapping(rng, path):
    """Replace one entry of a JSON mapping by an odd value."""
    content = read_json(path)
    keys = mutate.choose_path(rng, content)
    value = rng.choice([value for value in mutate.ODD_VALUES if not isinstance(value, torch.Tensor)])
    mutate.get_parent(content, keys)[keys[-1]] = value
    mutate.write(path, json.dumps(content).encode())
    return f'{".".join(map(str, keys))} is {mutate.shorten(value)}'


def caches(rng, folder):
    """Flipped bits and other damage of a cache. A program refuses it, or its metrics are those of an intact cache."""
    kind = rng.choice(['image', 'image', 'index', 'index', *CACHES])
    files = [os.path.join(subfolder, name) for subfolder, _, names in os.walk(os.path.join(folder, 'caches', kind))
             for name in names if name != '.lock']
    path = rng.choice(sorted(files))
    what = mutate.flip_bits(rng, path) if rng.random() < 0.7 else mutate.corrupt_file(rng, path)
    for name in CACHES:
        shutil.move(os.path.join(folder, 'caches', name), os.path.join(folder, 'data', 'CUHK-PEDES', name))
    with open(os.path.join(folder, 'caches', 'figures.json')) as file:
        figures = json.load(file)
    if kind == 'index':
        program, read_results, expected = SEARCH, read_search_results, figures['search']
    else:
        program, read_results, expected = CACHED, read_training_metrics, figures['training']

    def find_differences():
        return [f'{kind}: other metrics than those of an intact cache'] * (read_results(folder) != expected)
    return f'{os.path.relpath(path, folder)}: {what}', program, find_differences


KINDS = [annotation, image, recipe, flags, flags, paths, tools, checkpoint, checkpoint, training_state, results, table,
         caches]
