"""A broken file beside the heads: it is named once, in one line, and everything but its losses works."""
import pytest

from model import heads as heads_package
from model.heads import parse_loss_names, registry
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
def beside(tmp_path, monkeypatch):
    """``beside(file=text, ...)`` puts files beside the heads."""
    monkeypatch.setattr(heads_package, '__path__', [*heads_package.__path__, str(tmp_path)])
    monkeypatch.setattr(heads_package, 'IMPORT_ERRORS', {})
    monkeypatch.setattr(heads_package, 'NAME_CONFLICTS', {})
    caches = (heads_package.registry, heads_package.aliases)

    def put(**files):
        for name, text in files.items():
            (tmp_path / f'{name}.py').write_text(text)
        for cache in caches:
            cache.cache_clear()
    yield put
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
    (11, SOUND + '\nALIASES = {"loud": 3}', 'ALIASES must be a dict of texts'),
])
def test_it_is_named_once_and_the_rest_works(beside, capsys, number, text, why):
    file = f'zz_broken_{number}'        # a name of its own: what was imported once stays
    beside(**{file: text, f'zz_sound_{number}': SOUND.replace('sound', f'sound{number}')})
    args = get_args(['--loss_names', f'sdm+sound{number}', f'--sound{number}_weight', '2'])
    assert getattr(args, f'sound{number}_weight') == 2
    build_parser().format_help()
    build_test_parser('test.py', 'Test.').format_help()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f'{file}.py is skipped' in said[0] and why in said[0]
    with pytest.raises(UserError, match="unknown loss 'sound'"):
        parse_loss_names('sdm+sound')


def test_a_name_that_two_files_claim_is_nobodys(beside, capsys):
    beside(aa_mine=SOUND.replace("('sound',)", "('sdm', 'sound')"))
    with pytest.raises(UserError, match="the loss name 'sdm' is defined by both model.heads.aa_mine and model.heads.sdm"):
        parse_loss_names('sdm+id')
    assert parse_loss_names('id+itc') == [registry()['id'], registry()['itc']]
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize('value', ['nan', 'inf', '1e400', '-1'])
def test_weights_of_heads_that_say_float_are_weights(beside, tmp_path, value):
    beside(zz_sound=SOUND)
    with pytest.raises(UserError, match='sound_weight.*must be at least 0'):
        get_args(['--loss_names', 'sdm+sound', '--sound_weight', value])
    (tmp_path / 'recipe.yaml').write_text(f'loss_names: sdm+sound\nsound_weight: {value}\n')
    with pytest.raises(UserError, match='recipe.yaml, sound_weight.*must be at least 0'):
        get_args(['--config_file', str(tmp_path / 'recipe.yaml')])


@pytest.mark.parametrize('names', [('aux',), ('mlm', 'attribute', 'detail'), ('mae', 'tri'), ('id',)])
def test_recipes_of_a_broken_head_disturb_no_other_run(monkeypatch, names):
    """Also where the file of a released head is what somebody broke."""
    for name in names:
        monkeypatch.delitem(registry(), name)
    args = get_args(['--loss_names', 'sdm+itc'])
    assert args.notes == [] and 'losses: ' + names[0] not in build_parser().format_help()
    with pytest.raises(UserError, match=f"unknown loss '{names[0]}'"):
        get_args(['--loss_names', f'sdm+{names[0]}'])
