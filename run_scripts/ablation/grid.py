"""The runs of a grid: the product of loss strings, seeds and values of any flags over a recipe."""
import glob
import hashlib
import itertools
import json
import os
from argparse import BooleanOptionalAction
from dataclasses import dataclass

from utils.declarations import retry_with_pytorch
from utils.errors import UserError, unknown_name_error
from utils.iotools import read_json
from utils.measures import has_all_metrics
from utils.option_types import non_negative_int
from utils.options import Effect, Parser, as_dict, build_parser, get_args, to_plain_value
from utils.recipes import find_recipe

EPOCHS = ('best', 'last', 'mean')
# Options of train.py that ablate.py sets, and the options of ablate.py that control them.
GRID_OPTIONS = {'loss_names': '--loss_names', 'seed': '--seeds', 'config_file': '--config_file',
                'output_dir': '--output_dir', 'keep': '--keep'}


def build_ablation_parser(description=''):
    parser = Parser(prog='ablate.py', description=description,
                    usage='%(prog)s [--<option> VALUE ...] [-- <options of train.py>]')
    parser.add_argument('--config_file', default='', help='recipe of all runs')
    parser.add_argument('--loss_names', nargs='+', help="loss strings to compare (default: the recipe's)")
    parser.add_argument('--seeds', nargs='+', type=non_negative_int, default=[1], help='random seeds of each setting')
    parser.add_argument('--vary', nargs='+', action='append', default=[], metavar=('FLAG', 'VALUE'),
                        help="flag of train.py without its dashes, and its values: '384 128' if the flag takes two, "
                             'true or false if it takes none; repeat the option for several flags')
    parser.add_argument('--output_dir', help='folder of the grid (default: named for the recipe, in logs/ablation)')
    parser.add_argument('--keep', choices=['none', 'best', 'all'], default='best',
                        help='checkpoints of finished runs to keep')
    parser.add_argument('--epoch', choices=EPOCHS, default='best',
                        help="epoch in the table: each run's best one, its last one, or the mean of its last five")
    parser.add_argument('--table_only', action='store_true', help='print the table of finished runs without training')
    return parser


@dataclass
class Cell:
    """One run of the grid.

    Attributes:
        setting: the loss string and the values of the varied flags, as strings.
        label: the setting and the seed in words.
        argv: the command line of train.py without --output_dir.
        args: the options of the run.
        folder: the --output_dir of the run.
    """
    setting: tuple
    label: str
    argv: list
    args: object
    folder: str

    @property
    def seed(self):
        return self.args.seed

    @property
    def result(self):
        """``{'metrics', 'epoch', ...}`` of a finished run, ``{'error'}`` of a failed one, ``{}`` of any other."""
        try:
            content = read_json(self.path('result.json'))
        except UserError:
            return {}
        is_valid = isinstance(content, dict) and ('error' in content or has_all_metrics(content.get('metrics')))
        return content if is_valid else {}

    @property
    def is_finished(self):
        return 'metrics' in self.result

    def evaluation(self, epoch):
        """The metrics of a finished run.

        Args:
            epoch: 'best', 'last', or 'mean' of the last five.

        Returns:
            ``(metrics, [epoch, ...])``; ``(None, [])`` if the run is not finished or its evaluations are gone.
        """
        from processor.history import summarize_evaluations
        from processor.results import read_evaluations
        if not self.is_finished or epoch == 'best':
            return self.result.get('metrics'), [self.result['epoch']] if self.is_finished else []
        folder = os.path.dirname(self.newest('metrics.jsonl') or '')
        metrics = summarize_evaluations(read_evaluations(folder)).get(epoch, {'epochs': []})
        return (metrics, metrics['epochs']) if metrics['epochs'] else (None, [])

    @property
    def last_checkpoint(self):
        """The last.pth to resume from; None if there is none."""
        return self.newest('last.pth')

    def newest(self, name):
        """The path of a file in the newest folder that train.py made; None if there is none."""
        return max(glob.glob(os.path.join(glob.escape(self.folder), '*', '*', name)), default=None)

    def path(self, name):
        return os.path.join(self.folder, name)


@retry_with_pytorch
def build_grid(args, train_words):
    """Build the cells of a grid.

    Args:
        args: the options of ablate.py.
        train_words: the options after ``--``.

    Returns:
        ``(names, cells)``: the names of the columns that vary, and the cells with those of the first seed first.

    Raises:
        UserError: an option that train.py would reject, or one that the grid sets itself.
    """
    parser = build_parser()
    varied = parse_varied_flags(args.vary, parser)
    check_common_words(train_words, varied, parser)
    common = ['--config_file', args.config_file] * bool(args.config_file) + train_words
    losses = args.loss_names or [get_args(common).loss_names]
    cells = []
    for seed, loss_names, *values in itertools.product(args.seeds, losses, *varied.values()):
        varied_words = [word for name, value in zip(varied, values)
                        for word in flag_words(parser.actions()[name], value)]
        label = ', '.join([loss_names, *(f'{name} {value}' for name, value in zip(varied, values)), f'seed {seed}'])
        cell_argv = [*common, '--loss_names', loss_names, '--seed', str(seed), *varied_words]
        try:
            cell_args = get_args(cell_argv)
        except UserError as error:
            raise UserError(f'{label}: {error}') from None
        if not args.output_dir:
            args.output_dir = os.path.join('logs', 'ablation', grid_name(args.config_file, cell_args.dataset_name))
        folder = os.path.join(args.output_dir, cell_folder_name(cell_args, parser))
        cells.append(Cell((loss_names, *values), label, cell_argv, cell_args, folder))
    by_folder = {}
    for cell in cells:
        other = by_folder.setdefault(cell.folder, cell)
        if other is not cell:
            raise UserError(f"the grid has the same run twice, '{other.label}' and '{cell.label}'; leave one out")
    return ('losses', *varied), cells


def grid_name(config_file, dataset_name):
    """The name of a grid's folder: irra_rstpreid for configs/irra.yaml on RSTPReid, mine_quick for mine/quick.yaml."""
    if not config_file:
        return 'defaults'
    folder, name = os.path.split(os.path.splitext(os.path.abspath(find_recipe(config_file)))[0])
    if os.path.basename(folder) != 'configs':
        return f'{os.path.basename(folder)}_{name}'
    dataset = dataset_name.lower()
    return f"{name.removesuffix(f'-{dataset}')}_{dataset}"


def parse_varied_flags(groups, parser):
    """``{option: [value, ...]}`` of the words of each --vary."""
    varied = {}
    for name, *values in groups:
        name = name.lstrip('-')
        if name in GRID_OPTIONS:
            raise UserError(f'--vary {name}: the grid sets this flag; use {GRID_OPTIONS[name]} of ablate.py')
        if name not in parser.actions():
            raise unknown_name_error('flag', name, parser.actions())
        if name not in parser.options_with(Effect.RESULT):
            raise UserError(f'--vary {name}: the flag does not change the trained model')
        if name in varied:
            raise UserError(f'--vary {name} is given twice; name all its values in one --vary')
        if not values:
            raise UserError(f'--vary {name} has no values')
        varied[name] = values
    return varied


def check_common_words(train_words, varied, parser):
    """Raise :class:`~utils.errors.UserError` if an option after ``--`` is one that the grid sets or varies."""
    for name in sorted(parser.given_options(train_words)):
        if name in GRID_OPTIONS:
            raise UserError(f'--{name} after -- would be the same for all runs: use {GRID_OPTIONS[name]} before --')
        if name in parser.options_with(Effect.INVOCATION):
            raise UserError(f"{parser.actions()[name].option_strings[0]} after -- does not apply to a grid's runs; "
                            'leave it out')
        if name in varied:
            raise UserError(f'--{name} is both varied and given after --; leave one out')


def flag_words(action, value):
    """The words of a varied flag on train.py's command line."""
    flag = action.option_strings[0]
    if isinstance(action, BooleanOptionalAction):
        if value.lower() not in ('true', 'false'):
            raise UserError(f"--vary {action.dest}: '{value}' must be true or false")
        return [flag] if value.lower() == 'true' else [action.option_strings[1]]
    return [flag, *(value.split() if action.nargs else [value])]


def cell_folder_name(args, parser):
    """The name of a run's folder: its losses, its seed, and a checksum of its options.

    The checksum covers only options that differ from their defaults. An option that a later version adds therefore
    does not change the folder of an old run.
    """
    settings, defaults = parser.options_with(Effect.RESULT), parser.defaults_in_code
    options = {name: value for name, value in as_dict(args).items()
               if name in settings and value != to_plain_value(defaults[name])}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return f"{args.loss_names.replace(' ', '')}_seed{args.seed}_{digest}"


def args_of_each_dataset(cells):
    """The options of one cell for each dataset and split of the grid."""
    return list({(c.args.dataset_name, c.args.root_dir, c.args.val_dataset): c.args for c in cells}.values())
