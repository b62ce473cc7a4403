"""A broken file in model/heads is reported once, in one line, and all other losses work."""
import pytest

from model import head_registry
from model import heads as heads_package
from model.head_registry import aliases, registry
from model.loss_names import parse_loss_names
from utils.errors import UserError
from utils.options import build_parser, build_test_parser, get_args

SOUND = """
from model.heads import Head

class Sound(Head):
    names = ('sound',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--sound_weight', type=float, default=1.0, help='weight of sound')
"""


@pytest.fixture
def add_files(tmp_path, monkeypatch):
    """``add_files(name=text, ...)`` adds files to the heads."""
    monkeypatch.setattr(heads_package, '__path__', [*heads_package.__path__, str(tmp_path)])
    monkeypatch.setattr(head_registry, 'IMPORT_ERRORS', {})
    caches = (registry, aliases)

    def write(**files):
        for name, text in files.items():
            (tmp_path / f'{name}.py').write_text(text)
        for cache in caches:
            cache.cache_clear()
    yield write
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize('number, text, why', [
    (1, 'def broken(:', 'SyntaxError: invalid syntax'),
    (2, 'import no_such_library', "ModuleNotFoundError: No module named 'no_such_library'"),
    (3, '1 / 0', 'ZeroDivisionError'),
    (4, 'raise SystemExit(1)', 'SystemExit'),
    (5, SOUND.replace("('sound',)", "'sound'"), 'Sound.names must be a tuple of texts'),
    (6, SOUND.replace("('sound',)", '(1,)'), 'Sound.names must be a tuple of texts'),
    (7, SOUND.replace("('sound',)", "('so+und',)"), "Sound cannot have the name 'so+und'"),
    (8, SOUND.replace('--sound_weight', '--batch_size'), 'conflicting option string'),
    (9, SOUND.replace('--sound_weight', '--id_loss_weight'), 'conflicting option string'),
    (10, SOUND.replace('weight of sound', '5% of sound'), 'TypeError'),
    (12, SOUND + '\n    def refine(self, embedding, tokens, extras):\n        return embedding',
     'Sound defines refine, which nothing calls: add RefinesEmbedding to its base classes'),
    (13, SOUND + '\n    def micro_batch_weight(self, micro_batch, batch):\n        return 1',
     'add TrainsInMicroBatches or UsesAllGather to its base classes'),
    (11, SOUND + '\nALIASES = {"loud": 3}', 'ALIASES must be a dict of texts'),
])
def test_a_broken_file_is_reported_once_and_the_others_work(add_files, capsys, number, text, why):
    file = f'zz_broken_{number}'        # a new name, because imported modules stay in sys.modules
    add_files(**{file: text, f'zz_sound_{number}': SOUND.replace('sound', f'sound{number}')})
    args = get_args(['--loss_names', f'sdm+sound{number}', f'--sound{number}_weight', '2'])
    assert getattr(args, f'sound{number}_weight') == 2
    build_parser().format_help()
    build_test_parser('test.py', 'Test.').format_help()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f'{file}.py is skipped' in lines[0] and why in lines[0]
    with pytest.raises(UserError, match="unknown loss 'sound'"):
        parse_loss_names('sdm+sound')


def test_a_name_that_two_files_define_is_an_error(add_files, capsys):
    add_files(aa_mine=SOUND.replace("('sound',)", "('sdm', 'sound')"))
    message = "the loss name 'sdm' is defined by both model.heads.aa_mine and model.heads.sdm"
    with pytest.raises(UserError, match=message):
        parse_loss_names('sdm+id')
    assert parse_loss_names('id+itc') == [registry()['id'], registry()['itc']]
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize('value', ['nan', 'inf', '1e400', '-1'])
def test_weights_with_the_type_float_have_bounds(add_files, tmp_path, value):
    add_files(zz_sound=SOUND)
    with pytest.raises(UserError, match='sound_weight.*must be at least 0'):
        get_args(['--loss_names', 'sdm+sound', '--sound_weight', value])
    (tmp_path / 'recipe.yaml').write_text(f'loss_names: sdm+sound\nsound_weight: {value}\n')
    with pytest.raises(UserError, match='recipe.yaml, sound_weight.*must be at least 0'):
        get_args(['--config_file', str(tmp_path / 'recipe.yaml')])


@pytest.mark.parametrize('names', [('aux',), ('mlm', 'attribute', 'detail'), ('mae', 'tri'), ('id',)])
def test_recipes_of_a_broken_head_do_not_affect_other_runs(monkeypatch, names):
    """This holds for our own heads also."""
    for name in names:
        monkeypatch.delitem(registry(), name)
    args = get_args(['--loss_names', 'sdm+itc'])
    assert args.config.notes == () and 'losses: ' + names[0] not in build_parser().format_help()
    with pytest.raises(UserError, match=f"unknown loss '{names[0]}'"):
        get_args(['--loss_names', f'sdm+{names[0]}'])
