"""What is spoilt, and which program meets it. A case is a function of its random numbers and of its own copy of the base folder."""
import json
import os
import shutil

import torch
import yaml

from datasets.synthpedes import generate
from tests.campaign import mutate
from tests.campaign.judge import launch
from tests.support import options, small_archive
from utils.iotools import read_json

# A copy of the base folder holds data/, clip.pt and run/; programs are started in it.
TRAIN = ['train.py', '--loss_names', 'sdm+id', '--dataset_name', 'CUHK-PEDES', '--root_dir', 'data', '--num_epoch', '1',
         '--batch_size', '8', '--pretrain_choice', 'clip.pt', '--img_size', '64', '32', '--num_workers', '0', '--device', 'cpu',
         '--output_dir', 'logs', '--limit_train', '16', '--warmup_epochs', '0', '--cmt_depth', '1']
TEST = ['test.py', '--config_file', 'run/configs.yaml', '--root_dir', 'data', '--num_workers', '0']
RESUME = ['train.py', '--resume', '--resume_ckpt_file', 'run/last.pth', '--num_epoch', '2']
CHECK = ['-m', 'datasets.check', '--root_dir', 'data', '--workers', '1']
RETRIEVE = ['run_scripts/retrieve.py', '--config_file', 'run/configs.yaml', '--root_dir', 'data', '--num_workers', '0', '--captions', '1',
            '--top', '2', '--out', 'picture.png']
REPRODUCE = ['run_scripts/reproduce_tables.py', '--logs', '.', '--root_dir', 'data']
COMPARE = ['run_scripts/compare.py', 'run', 'other']
GENERATE = ['-m', 'datasets.synthpedes', '--out', 'data', '--ids', '4', '--images_per_id', '1', '--size', '32', '16', '--workers', '1']
CACHED = ['-m', 'tests.campaign.small_caches', *TRAIN, '--image_cache', 'caches/image']
SEARCH = ['run_scripts/search.py', '--config_file', 'run/configs.yaml', '--images', 'data/CUHK-PEDES/imgs', '--caption', 'a man in red',
          '--index', 'caches/index', '--out', 'found.json']
CACHES = ['listing_cache', 'token_cache']     # beside the annotation
ANNOTATION = 'data/CUHK-PEDES/reid_raw.json'
IMAGES = 'data/CUHK-PEDES/imgs'
# Losses whose heads read many options, with what keeps them small.
LOSSES = ['sdm+id', 'sdm+id+mlm', 'sdm+itc+aux --moe_layers 1 --num_experts 2', 'sdm+mae+tri', 'sdm+amm+detail', 'sdm+cmt+cmpm']
# More epochs take longer, as they should, and compiling takes a minute; the others name what is in the base folder.
NOT_SPOILT = {'num_epoch', 'compile', 'training', 'batch_fields', 'notes', 'config_file', 'resume', 'print_config', 'loss_names'}
BOMB = 'a: &a [x,x,x,x,x,x,x,x,x]\n' + ''.join(f'{chr(b)}: &{chr(b)} [{",".join(["*" + chr(b - 1)] * 9)}]\n' for b in range(98, 108))
BAD_YAML = [
    (BOMB, 'a bomb of aliases'), ('name: &a [*a]', 'an alias to itself'), (f'name: {"[" * 5000}{"]" * 5000}', 'lists 5000 deep'),
    ('name: !!python/object/apply:os.system ["touch bomb"]', 'a Python object'), ('- 1\n- 2\n', 'a list'),
    ('? [a, b]\n: 1\n', 'a list as a name'), ('1: 2\n', 'a number as a name'), ('name: 2020-13-45\n', 'a day that is none'),
    ('%YAML 9.9\n---\nname: a\n', 'another YAML'), ('name: a\n---\nname: b\n', 'two documents'), ('<<: 1\n', 'a merge of a number'),
    ('name: !!binary x\n', 'binary that is none')]
PATHS = ['output_dir', 'root_dir', 'init_from', 'pretrain_choice', 'image_cache', 'config_file', 'resume_ckpt_file', 'name', 'dataset_name']


def make_base(folder):
    """A dataset of 16 identities, a small CLIP, and a run of one epoch with its results."""
    generate(os.path.join(folder, 'data'), 16, images_per_id=2, size=(64, 32), format='CUHK-PEDES', test_ids=4, val_ids=2, workers=1)
    small_archive(os.path.join(folder, 'clip.pt'))
    must_succeed(TRAIN, folder)
    runs = os.path.join(folder, 'logs', 'CUHK-PEDES')
    shutil.move(os.path.join(runs, *os.listdir(runs)), os.path.join(folder, 'run'))
    must_succeed(TEST, folder)
    make_caches(folder)
    for name in ('logs', 'output', 'errors'):
        path = os.path.join(folder, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def make_caches(folder):
    """All caches in ``caches/``, out of the other cases' way, and the figures of the programs that made them."""
    for words in (CACHED, SEARCH):
        must_succeed(words, folder)
    for name in CACHES:
        shutil.move(os.path.join(folder, 'data', 'CUHK-PEDES', name), os.path.join(folder, 'caches', name))
    with open(os.path.join(folder, 'caches', 'figures.json'), 'w') as file:
        json.dump({'training': trained_figures(folder), 'search': found_photos(folder)}, file)
    os.remove(os.path.join(folder, 'found.json'))


def trained_figures(folder):
    """[kind, {name: value}] of each line of the newest run's journal, without times."""
    runs = os.path.join(folder, 'logs', 'CUHK-PEDES')
    with open(os.path.join(runs, sorted(os.listdir(runs))[-1], 'metrics.jsonl')) as file:
        lines = map(json.loads, file)
        return [[line.pop('kind'), {name: value for name, value in line.items() if 'second' not in name}] for line in lines]


def found_photos(folder):
    with open(os.path.join(folder, 'found.json')) as file:
        return [[photo['path'], round(photo['score'], 4)] for photo in json.load(file)[0]['photos']]


def try_unspoilt(base, folder):
    """Every program succeeds on what is whole: a case that is refused is refused for what was spoilt."""
    trainings = [TRAIN + ['--loss_names', *losses.split(' ')] for losses in LOSSES]
    for words in (RESUME, CHECK, RETRIEVE, REPRODUCE, COMPARE, GENERATE, *trainings):
        copy_base(base, folder)
        with_another_run(folder)
        must_succeed(words, folder)
        shutil.rmtree(folder)


def with_another_run(folder):
    shutil.copytree(os.path.join(folder, 'run'), os.path.join(folder, 'other'), copy_function=os.link)


def must_succeed(words, folder):
    status, output, errors, _ = launch(words, folder, 300)
    if status != 0:
        raise SystemExit(f'{words[0]} ended with status {status} before anything was spoilt:\n{output}\n{errors}')


def copy_base(base, folder):
    """The base folder again. Large files and images are links: programs replace files, and cases are told to."""
    def copy(source, target):
        (os.link if source.endswith(('.pth', '.pt', '.jpg')) else shutil.copy2)(source, target)
    shutil.copytree(base, folder, copy_function=copy)


# -- the kinds of cases: each returns (what was done, the program's words, whether it must be
# refused or, called after success, what is wrong) --------------------------------

def annotation(rng, folder):
    path = os.path.join(folder, ANNOTATION)
    what = (mutate.spoil_json if rng.random() < 0.7 else mutate.spoil_file)(rng, path)
    return what, rng.choice([TRAIN, TRAIN, TEST, CHECK, TRAIN + ['--image_cache', 'cache']]), False


def table(rng, folder):
    """A table as spreadsheets and scripts write it, or with spoilt bytes."""
    path = os.path.join('data', 'CUHK-PEDES', rng.choice(['people.csv', 'people.csv', 'people.tsv', 'people.CSV']))
    rows = [{'image': entry['file_path'], 'caption': caption, 'id': str(entry['id']), 'split': entry['split']}
            for entry in read_json(os.path.join(folder, ANNOTATION)) for caption in entry['captions']]
    what = mutate.spoil_table(rng, rows, os.path.join(folder, path))
    if rng.random() < 0.2:
        what += f'; {mutate.spoil_file(rng, os.path.join(folder, path))}'
    return what, [*rng.choice([TRAIN, CHECK, CHECK]), '--dataset_name', path], False


def image(rng, folder):
    program = rng.choice([TRAIN, TEST, CHECK, RETRIEVE])
    path = rng.choice(images_read(folder, program))
    what, refused = mutate.strange_image(rng, path) if rng.random() < 0.5 else (mutate.spoil_file(rng, path), False)
    extra = rng.choice([[], [], ['--num_workers', '1'], ['--num_workers', '2'], ['--image_cache', 'cache']])
    if program is CHECK:
        extra = []
    elif program is TRAIN:
        extra = extra + rng.choice([[], ['--skip_broken'], ['--img_aug']])
    must_fail = refused and program is not RETRIEVE and '--skip_broken' not in extra     # a figure shows some images alone
    return f'{os.path.basename(path)}: {what}', program + extra, must_fail


def images_read(folder, program):
    """The images that a program opens: the test split's, and in training those of the first 16 captions."""
    entries = read_json(os.path.join(folder, ANNOTATION))
    train = [entry for entry in entries if entry['split'] == 'train'][:8 if program is TRAIN else None]
    found = [entry for entry in entries if entry['split'] == 'test'] + (train if program in (TRAIN, CHECK) else [])
    return [os.path.join(folder, IMAGES, entry['file_path']) for entry in found]


def recipe(rng, folder):
    """A recipe for train.py, with flags behind it that keep the run small."""
    path, program = os.path.join(folder, 'run', 'configs.yaml'), rng.choice(['recipe', 'recipe', 'test', 'resume'])
    content = read_plainly(path)
    if program == 'recipe':
        content = {name: value for name, value in content.items() if name not in ('training', 'batch_fields', 'resume', 'resume_ckpt_file')}
    what, refused = spoil_yaml(rng, path, content)
    refused = refused and (program == 'recipe' or not what.startswith('an unknown name'))   # other forks' runs have options of theirs
    if program == 'recipe':
        os.rename(path, os.path.join(folder, 'recipe.yaml'))
        return what, ['train.py', '--config_file', 'recipe.yaml', *TRAIN[3:]], refused
    return what, TEST if program == 'test' else RESUME, refused


def read_plainly(path):
    with open(path) as file:
        return yaml.safe_load(file)


def spoil_yaml(rng, path, content):
    """(what was done, whether it must be refused)"""
    names = sorted(set(content) - NOT_SPOILT)
    kind, name, text, refused = rng.randrange(10), rng.choice(names), None, False
    weights = [other for other in names if other.endswith('_weight')]
    if kind <= 3:
        content[name] = rng.choice([*mutate.VALUES, *mutate.NUMBERS])
        what = f'{name} is {mutate.short(content[name])}'
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
        return mutate.spoil_file(rng, path), False
    write_yaml(path, content) if text is None else mutate.write(path, text.encode())
    return what, refused


def write_yaml(path, content):
    mutate.write(path, yaml.dump(content, allow_unicode=True).encode('utf-8', 'surrogatepass'))


def argument(text):
    """A text that a command line can hold: it ends at NUL and is no longer than 128 KB."""
    return text.replace('\0', '')[:100000]


def flags(rng, folder):
    """One or two options of train.py with hostile values, behind a command that is right."""
    losses, *small = rng.choice(LOSSES).split(' ')
    names = sorted(set(vars(options())) - NOT_SPOILT)
    words, what = TRAIN + ['--loss_names', losses, *small], []
    for name in rng.sample(names, rng.choice([1, 1, 2])):
        value = argument(rng.choice([rng.choice(mutate.NUMBERS), rng.choice(mutate.NUMBERS), rng.choice(mutate.TEXTS)]))
        given = rng.choice([[f'--{name}={value}'], [f'--{name}={value}'], [f'--{name}', value], [f'--{name}'], [f'--{name}', value, value]])
        words, what = words + given, what + [mutate.short(' '.join(given))]
    return ', '.join(what), words, False


def paths(rng, folder):
    """Names of files and folders that are strange, or not what they should be."""
    name = rng.choice(PATHS)
    value = argument(rng.choice([*mutate.TEXTS, 'data', 'clip.pt', 'run', 'run/best.pth', 'run/last.pth', 'run/configs.yaml', ANNOTATION,
                                 'pipe', 'deep/' * 200, 'loop', '/dev/zero', '/dev/full', 'text']))
    os.mkfifo(os.path.join(folder, 'pipe'))
    os.symlink('loop', os.path.join(folder, 'loop'))
    with open(os.path.join(folder, 'text'), 'w') as file:
        file.write('text\n')
    program = rng.choice([TRAIN, TRAIN, TEST, RETRIEVE, CHECK])
    known = {'test.py': ['config_file', 'checkpoint', 'root_dir', 'dataset_name', 'image_cache'], '-m': ['root_dir', 'dataset_name'],
             'run_scripts/retrieve.py': ['config_file', 'checkpoint', 'root_dir', 'dataset_name', 'out', 'caption']}.get(program[0], PATHS)
    name = rng.choice(known)
    return f'--{name} {mutate.short(value)}', program + ['--resume'] * (name == 'resume_ckpt_file') + [f'--{name}={value}'], False


def tools(rng, folder):
    """Numbers for the tools."""
    program, names = rng.choice([(RETRIEVE, ['captions', 'top', 'test_batch_size', 'num_workers']), (CHECK, ['workers']),
                                 (TEST, ['test_batch_size', 'num_workers', 'amp', 'device']),
                                 (GENERATE, ['val_ids', 'test_ids', 'size', 'seed', 'format', 'captions_per_image']),
                                 (GENERATE, ['val_ids', 'test_ids', 'size', 'seed', 'format', 'captions_per_image'])])
    name, value = rng.choice(names), rng.choice([*mutate.NUMBERS, 'x'])
    if name in ('workers', 'captions_per_image') and len(value) > 3:   # as many as that are no mistake, and take their time
        value = '0'
    given = [f'--{name}', value, value] if name == 'size' else [f'--{name}={value}']
    return ' '.join(given), program + given, False


def checkpoint(rng, folder):
    """Bytes or entries of a checkpoint or of a pretrained CLIP, and every program that reads one."""
    name, program = rng.choice([('run/best.pth', TEST), ('run/best.pth', RETRIEVE), ('run/last.pth', RESUME), ('run/last.pth', RESUME),
                                ('run/best.pth', TRAIN + ['--init_from', 'run/best.pth']), ('clip.pt', TRAIN)])
    path, raw = os.path.join(folder, name), rng.random() < 0.35
    original = torch.load(path, map_location='cpu', weights_only=True)
    what = (mutate.spoil_file if raw else mutate.spoil_checkpoint)(rng, path)
    return f'{name}: {what}', program, raw and not same(original, path)


def same(original, path):
    """Whether the file still holds what it held, to the last bit."""
    if not os.path.isfile(path) or os.path.islink(path):
        return False
    try:
        return equal(original, torch.load(path, map_location='cpu', weights_only=True))
    except Exception:  # what was spoilt cannot be read any more
        return False


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return one == other


def training_state(rng, folder):
    """What lies beside the weights of last.pth, and the files of the run's folder that a resumed run reads."""
    if rng.random() < 0.3:
        name = rng.choice(['metrics.jsonl', 'best.pth', 'configs.yaml'])
        what = mutate.spoil_file(rng, os.path.join(folder, 'run', name))
        return f'{name}: {what}', rng.choice([RESUME, RESUME, TEST, REPRODUCE]), False
    path = os.path.join(folder, 'run', 'last.pth')
    content = torch.load(path, map_location='cpu', weights_only=True)
    if rng.random() < 0.3:
        what, refused = swapped_moments(rng, content), True
    else:
        what, refused = mutate.odd_entry(rng, {key: value for key, value in content.items() if key != 'model'}, content), False
    os.remove(path)
    torch.save(content, path)
    return what, RESUME, refused


def swapped_moments(rng, content):
    """Exchange the moments of two parameters of different shapes."""
    state = content['optimizer']['state']
    one = rng.choice(sorted(state))
    shape = state[one]['exp_avg'].shape
    other = rng.choice([number for number in sorted(state) if state[number]['exp_avg'].shape != shape])
    state[one], state[other] = state[other], state[one]
    return f'moments of {one} and {other} exchanged'


def results(rng, folder):
    """What test.py wrote, and the programs that read it."""
    with_another_run(folder)
    name = rng.choice(sorted(name for name in os.listdir(os.path.join(folder, 'run')) if name.endswith(('.json', '.csv'))))
    path = os.path.join(folder, 'run', name)
    what = spoilt_mapping(rng, path) if name.endswith('.json') and rng.random() < 0.6 else mutate.spoil_file(rng, path)
    return f'{name}: {what}', rng.choice([COMPARE, COMPARE, REPRODUCE]), False


def spoilt_mapping(rng, path):
    """Give one entry of a JSON mapping an odd value."""
    content = read_json(path)
    place = mutate.some_place(rng, content)
    value = rng.choice([value for value in mutate.ODD if not isinstance(value, torch.Tensor)])
    mutate.holder_of(content, place)[place[-1]] = value
    mutate.write(path, json.dumps(content).encode())
    return f'{".".join(map(str, place))} is {mutate.short(value)}'


def caches(rng, folder):
    """Flipped bits and other damage of a cache. A program refuses it, or its figures are those of a whole cache."""
    kind = rng.choice(['image', 'image', 'index', 'index', *CACHES])
    place = os.path.join(folder, 'caches', kind)
    path = rng.choice(sorted(os.path.join(below, name) for below, _, names in os.walk(place) for name in names if name != '.lock'))
    what = mutate.flipped_bits(rng, path) if rng.random() < 0.7 else mutate.spoil_file(rng, path)
    for name in CACHES:
        shutil.move(os.path.join(folder, 'caches', name), os.path.join(folder, 'data', 'CUHK-PEDES', name))
    with open(os.path.join(folder, 'caches', 'figures.json')) as file:
        figures = json.load(file)
    program, now, before = (SEARCH, found_photos, figures['search']) if kind == 'index' else (CACHED, trained_figures, figures['training'])

    def differs():
        return [f'{kind}: other figures than those of a whole cache'] * (now(folder) != before)
    return f'{os.path.relpath(path, folder)}: {what}', program, differs


KINDS = [annotation, image, recipe, flags, flags, paths, tools, checkpoint, checkpoint, training_state, results, table, caches]
