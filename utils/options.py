"""The options of train.py and test.py: declarations, recipes, and options that depend on others.

The defaults are IRRA's. Flags override a recipe (``--config_file``). An unknown name is an error everywhere, because a
typo would train another model.

:mod:`utils.option_types` has types and bounds, :mod:`utils.parser` parses a command line and values of a config,
:mod:`utils.recipes` reads files. Heads, backbones and datasets add their options with an :class:`OptionProvider`.
"""
import argparse
import importlib
import os
import sys

from utils import recipes
from utils.errors import UserError
from utils.option_types import (Effect, add_boolean_option, bounded_number, fraction, fraction_below_one,
                                non_negative_float, non_negative_int, positive_float, positive_int, positive_int_up_to,
                                split_dataset_path)
from utils.parser import Parser
from utils.recipes import (FORKS, apply_need_mae, as_dict, drop_command_line_options, find_recipes, find_unknown_keys,
                           format_recipe, rde_notes, read_options, read_recipe, reference_defaults,
                           refuse_other_interface, to_plain_value, translate_rde_losses, unknown_key_notes)
from utils.safe_yaml import read_yaml

__all__ = ['Effect', 'OptionProvider', 'Parser', 'as_dict', 'build_parser', 'build_test_parser', 'complete', 'get_args',
           'parse_test_options', 'read_yaml', 'register_options', 'run_options', 'split_dataset_path', 'to_plain_value']

# The options that --help shows; --help all shows all.
EVERYDAY_OPTIONS = (
    'config_file', 'print_config', 'name', 'output_dir', 'resume', 'init_from', 'seed', 'device', 'amp',
    'dataset_name', 'root_dir', 'batch_size', 'num_workers', 'img_aug', 'val_dataset',
    'loss_names', 'MLM', 'backbone', 'pretrain_choice', 'img_size', 'text_length',
    'num_epoch', 'lr', 'optimizer', 'image_cache', 'micro_batch', 'grad_checkpoint')
EVERYDAY_TEST_OPTIONS = (
    'config_file', 'checkpoint', 'pretrain_choice', 'dataset_name', 'root_dir', 'i2t', 'rerank', 'test_batch_size',
    'num_workers', 'device', 'amp', 'image_cache')
RERANK_SCORES = ('caption', 'released')

# Short names for the declarations below.
NONE, RESULT, RUN, INVOCATION = Effect.NONE, Effect.RESULT, Effect.RUN, Effect.INVOCATION
CHANGEABLE_ON_RESUME, NOT_IN_RECIPE = Effect.CHANGEABLE_ON_RESUME, Effect.NOT_IN_RECIPE
IGNORED, COMMAND_LINE_ONLY = Effect.IGNORED, Effect.COMMAND_LINE_ONLY
worker_count = bounded_number(int, at_least=0, at_most=1024)
caption_length = bounded_number(int, at_least=3, at_most=10_000)
seed_number = bounded_number(int, at_least=0, at_most=2 ** 63 - 1)


# -- options of other packages ---------------------------------------------------------------------------------------

class OptionProvider:
    """Base class of a package's options: heads, backbones, datasets. The package calls :func:`register_options`."""

    def add_options(self, parser):
        """Add options to a parser, and the classes that read them to ``parser.readers``."""

    def active_readers(self, args):
        """The classes in ``parser.readers`` that ``args`` select."""
        return []

    def validate_options(self, args):
        """Check options that depend on each other and fill in missing ones.

        Raises:
            UserError: options contradict each other.
        """

    def method_key(self, args):
        """The part of ``args`` that identifies a method. A run is compared with the published recipe of equal keys."""

    def log_notes(self, args):
        """Lines for the start of the log."""
        return []


# Modules that register options; imported here if they are not imported yet.
DEFAULT_PROVIDERS = ('model.backbones', 'model.heads', 'datasets.registry')
OPTION_PROVIDERS = {}


def register_options(name, provider):
    """Register an :class:`OptionProvider` under the name of its module."""
    OPTION_PROVIDERS[name] = provider


def option_provider(name):
    """The :class:`OptionProvider` of a module; imports the module if necessary."""
    importlib.import_module(name)
    return OPTION_PROVIDERS[name]


def option_providers():
    """All providers in a fixed order: the default ones first."""
    for name in DEFAULT_PROVIDERS:
        importlib.import_module(name)
    others = sorted(name for name in OPTION_PROVIDERS if name not in DEFAULT_PROVIDERS)
    return [OPTION_PROVIDERS[name] for name in (*DEFAULT_PROVIDERS, *others)]


# -- declarations ----------------------------------------------------------------------------------------------------

def build_parser():
    """Build train.py's parser, with the options of all providers."""
    parser = Parser(prog='train.py', abbreviations=True, usage='%(prog)s [--config_file RECIPE] [--<option> VALUE ...]',
                    description='Train a text-to-image person retrieval model.')
    for add_options in CORE_OPTIONS:
        add_options(parser)
    for provider in option_providers():
        provider.add_options(parser)
    add_ignored_options(parser)
    parser.everyday_options = EVERYDAY_OPTIONS
    parser.advanced_options = set(parser.actions()) - set(EVERYDAY_OPTIONS)
    parser.defaults_in_code = {name: action.default for name, action in parser.actions().items()}
    return parser


def build_core_parser():
    """Build a parser with the options of this file only, so that a provider can avoid their names."""
    parser = Parser()
    for add_options in (*CORE_OPTIONS, add_ignored_options):
        add_options(parser)
    return parser


def add_run_options(parser):
    run = parser.add_argument_group('run')
    run.add_argument('--config_file', default='', effect=INVOCATION,
                     help='recipe: a YAML file of options by name; flags override it')
    add_boolean_option(run, '--print_config', False, 'print all options as a recipe, and exit', effect=INVOCATION)
    run.add_argument('--name', default='baseline', effect=NONE, help="name of the run, a part of its folder's name")
    run.add_argument('--output_dir', default='logs', effect=RUN,
                     help="folder of the runs: a run's folder is <output_dir>/<dataset>/<time>_<name>")
    run.add_argument('--log_period', type=positive_int_up_to(10 ** 9), default=100, effect=NONE,
                     help='number of training steps between two lines of the log')
    run.add_argument('--eval_period', type=positive_int, default=1,
                     effect=RESULT | CHANGEABLE_ON_RESUME | NOT_IN_RECIPE,
                     help='number of epochs between two evaluations')
    run.add_argument('--eval_dataset', default='', help='dataset to evaluate on during training, instead of '
                     '--dataset_name; it chooses the best epoch (for pretraining)')
    run.add_argument('--val_dataset', default='test', choices=['test', 'val'], effect=RESULT | NOT_IN_RECIPE,
                     help='split that chooses the best epoch (IRRA: test)')
    add_boolean_option(run, '--resume', False, "resume the run of --resume_ckpt_file in its folder; --resume <run's "
                       'folder> sets both', effect=INVOCATION)
    run.add_argument('--resume_ckpt_file', default='', effect=INVOCATION,
                     help="last.pth of the run to resume, or the run's folder")
    run.add_argument('--init_from', '--finetune', default='', effect=RESULT | RUN, metavar='FILE',
                     help='checkpoint whose weights initialize a new run (--finetune: its name in FMFA)')
    run.add_argument('--save_steps', type=bounded_number(int, at_least=0, at_most=10 ** 9), default=1000, effect=NONE,
                     help='number of training steps between two writes of last.pth; 0: only after each epoch')
    run.add_argument('--save_period', type=non_negative_int, default=0, effect=NONE,
                     help='number of epochs between two checkpoints epoch_<n>.pth; 0: none')
    run.add_argument('--seed', type=seed_number, default=1, effect=RESULT | NOT_IN_RECIPE,
                     help='seed of all random numbers')
    run.add_argument('--device', default='auto', effect=NONE, help='auto, cpu, mps, cuda or cuda:<n>')
    run.add_argument('--amp', default='auto', choices=['auto', 'bf16', 'fp16', 'off'],
                     effect=RESULT | CHANGEABLE_ON_RESUME | NOT_IN_RECIPE,
                     help='precision of the forward pass; auto: bf16 on a GPU that has it, fp16 on other GPUs, off on '
                          'a CPU')
    run.add_argument('--test', dest='training', action='store_false', default=True, effect=INVOCATION,
                     help="IRRA's flag for evaluation, which train.py refuses; use test.py")
    run.add_argument('--local_rank', '--local-rank', type=bounded_number(int, at_least=-1), default=0,
                     effect=INVOCATION, help='flag of launchers; Pedestal reads the environment instead')


def add_data_options(parser):
    data = parser.add_argument_group('data')
    data.add_argument('--dataset_name', default='CUHK-PEDES', help='name of a dataset, or path of a table')
    data.add_argument('--root_dir', default='./data', effect=RESULT | CHANGEABLE_ON_RESUME | NOT_IN_RECIPE,
                      help="folder of the datasets' folders")
    data.add_argument('--batch_size', type=positive_int, default=128,
                      help='number of captions per training step, each with its image; on several GPUs of all together')
    data.add_argument('--test_batch_size', type=positive_int, default=512, effect=NONE,
                      help='number of images or captions that test.py encodes at a time')
    data.add_argument('--num_workers', type=worker_count, default=8, effect=NONE,
                      help='number of processes that load data; 0: the main process loads')
    add_boolean_option(data, '--img_aug', False, 'crop and erase training images at random; flips are always on. With '
                       '--preparation tbps: two of its six augmentations per image')
    add_boolean_option(data, '--txt_aug', False, 'mask, replace or remove a fifth of the tokens of training captions '
                       '(RDE). With --preparation tbps: use back-translations, and delete words (TBPS-CLIP)')
    data.add_argument('--preparation', default='irra',     # datasets.registry sets its choices
                      help='preprocessing and augmentation of images and captions: as in IRRA and its forks, or as in '
                           "TBPS-CLIP (normalization with ImageNet's statistics, captions without punctuation)")
    data.add_argument('--noisy_rate', type=fraction, default=0.0,
                      help='fraction of the training pairs that exchange captions: artificial noise (RDE: 0.2 to 0.8)')
    data.add_argument('--noisy_file', default='', effect=RESULT | NOT_IN_RECIPE,
                      help='NumPy file with the permutation of the captions, read if --noisy_rate is above 0 '
                           '(default: a random permutation)')
    data.add_argument('--sampler', default='random', help='composition of batches; random: each caption once per '
                      'epoch; identity: --num_instance captions per identity; idrannum: 1 to --num_instance captions '
                      'per identity (SEN)')
    add_boolean_option(data, '--drop_last', False, 'skip the last batch of an epoch if it is smaller than '
                       '--batch_size, for --sampler random')
    data.add_argument('--num_instance', type=positive_int, default=4,
                      help='number of captions per identity in a batch, for --sampler identity and idrannum')
    data.add_argument('--limit_train', type=positive_int_up_to(10 ** 9), default=None,
                      help='number of training captions to use, the first ones (default: all); several datasets share '
                           'it in proportion to their sizes')
    add_boolean_option(data, '--skip_broken', False, 'skip training images that cannot be read; the log counts them',
                       effect=RESULT | CHANGEABLE_ON_RESUME)


def add_model_options(parser):
    model = parser.add_argument_group('model')
    model.add_argument('--loss_names', default='sdm+id+mlm', help='names of the losses, joined by +')
    model.add_argument('--pretrain_choice', default='ViT-B/16',
                       help='pretrained weights: the name of an OpenAI CLIP, a file, or scratch:<shape> of '
                            'configs/clip for random weights; with --backbone open_clip: <model>[:<tag or file>]')
    add_boolean_option(model, '--trust_archive', False, "load a TorchScript archive that is not one of OpenAI's; it "
                       'can execute code, so only the command line can turn this on',
                       effect=RESULT | CHANGEABLE_ON_RESUME | COMMAND_LINE_ONLY)
    model.add_argument('--temperature', type=positive_float, default=0.02,
                       help='softmax temperature of the image-text similarities (IRRA: 0.02)')
    model.add_argument('--img_size', type=positive_int_up_to(10_000), nargs=2, default=(384, 128),
                       metavar=('HEIGHT', 'WIDTH'), help='size of the images in pixels')
    model.add_argument('--stride_size', type=positive_int_up_to(10_000), default=16,
                       help="distance between patches in pixels; below the patch's size they overlap")
    model.add_argument('--text_length', type=caption_length, default=77,
                       help='maximum number of tokens of a caption, including start and end')
    add_boolean_option(model, '--freeze_conv1', False, 'freeze the patch convolution of the image encoder (A2TE)')


def add_solver_options(parser):
    solver = parser.add_argument_group('optimizer and schedule')
    solver.add_argument('--num_epoch', type=positive_int, default=60, effect=RESULT | CHANGEABLE_ON_RESUME,
                        help='number of training epochs')
    solver.add_argument('--optimizer', default='Adam', help='Adam (eps 1e-3), AdamW (eps 1e-8) or SGD')
    solver.add_argument('--lr', type=non_negative_float, default=1e-5,
                        help='learning rate of the parameters that no other rule covers')
    solver.add_argument('--lr_rules', default='irra', choices=['irra', 'flat', 'undecayed'],
                        help='rules of learning rate and weight decay; irra: those of the backbone and the heads; '
                             'flat: --lr and --weight_decay for all parameters (FMFA); undecayed: flat, but no decay '
                             'of vectors, biases and norms (TBPS-CLIP)')
    solver.add_argument('--lr_factor', type=non_negative_float, default=5.0,
                        help='factor on --lr for new parts: cross-modal encoder, classifier, mlm_head, itm_head')
    solver.add_argument('--bias_lr_factor', type=non_negative_float, default=2.0, help='factor on --lr for biases')
    solver.add_argument('--momentum', type=fraction, default=0.9, help='momentum of SGD')
    solver.add_argument('--weight_decay', type=non_negative_float, default=4e-5,
                        help='weight decay of all parameters but biases')
    solver.add_argument('--weight_decay_bias', type=non_negative_float, default=0.0, help='weight decay of biases')
    solver.add_argument('--alpha', type=fraction_below_one, default=0.9, help='first beta of Adam and AdamW')
    solver.add_argument('--beta', type=fraction_below_one, default=0.999, help='second beta of Adam and AdamW')
    solver.add_argument('--lrscheduler', default='cosine',
                        choices=['step', 'exp', 'poly', 'cosine', 'linear',
                                 'step_cosine', 'step_linear', 'step_stairs'],
                        help='schedule of the learning rate; it changes after each epoch, and with step_... in each '
                             'step (TBPS-CLIP: step_cosine; APTM: step_linear, or step_stairs with two drops)')
    solver.add_argument('--milestones', type=positive_int, nargs='+', default=(20, 50),
                        help='epochs after which --gamma multiplies the learning rate, for --lrscheduler step')
    solver.add_argument('--gamma', type=non_negative_float, default=0.1,
                        help='factor on the learning rate at each milestone, for --lrscheduler step')
    solver.add_argument('--warmup_steps', type=non_negative_int, default=0,
                        help='number of warm-up steps, for --lrscheduler step_linear')
    solver.add_argument('--warmup_factor', type=non_negative_float, default=0.1,
                        help='factor on the learning rate at the start of the warm-up epochs')
    solver.add_argument('--warmup_epochs', type=non_negative_int, default=5,
                        help='number of warm-up epochs, for all --lrscheduler but step_linear and step_stairs')
    solver.add_argument('--warmup_method', default='linear', choices=['linear', 'constant'],
                        help='course of the learning rate during the warm-up epochs')
    solver.add_argument('--target_lr', type=non_negative_float, default=0.0,
                        help='learning rate at the end, for --lrscheduler cosine, step_cosine and poly')
    solver.add_argument('--power', type=non_negative_float, default=0.9,
                        help='base of the exponential, for --lrscheduler exp and poly')


def add_speed_options(parser):
    speed = parser.add_argument_group('speed and memory', 'These options change no result, except for random numbers '
                                      'that a step draws with --micro_batch.')
    speed.add_argument('--image_cache', nargs='?', const='auto', default='', metavar='FOLDER', effect=NONE,
                       help='folder for resized images, each of which is decoded only once; without FOLDER: '
                            "image_cache in the dataset's folder (default: no cache)")
    add_boolean_option(speed, '--grad_checkpoint', False, 'gradient checkpointing: each block keeps only its input, '
                       'and is computed again in the backward pass (less memory, more time)', effect=NONE)
    # Its effect is not NONE, because heads that draw random numbers in a step (mae, dropout) draw them per micro batch.
    speed.add_argument('--micro_batch', type=positive_int, default=None,
                       effect=RESULT | CHANGEABLE_ON_RESUME | NOT_IN_RECIPE,
                       help='number of samples whose activations are in memory at a time; losses still compare the '
                            'whole batch (default: --batch_size)')
    add_boolean_option(speed, '--shard', False, 'shard parameters and optimizer state across processes (FSDP2)',
                       effect=NONE)
    add_boolean_option(speed, '--compile', False, 'compile the transformer blocks with torch.compile, which takes '
                       'about a minute at the start', effect=NONE)


def add_caption_options(parser):
    captions = parser.add_argument_group('captions')
    add_boolean_option(captions, '--MLM', False, 'mask the captions that all losses read, not only those of mlm, as in '
                       "IRRA's reference implementation: short for --caption_masking inplace")
    captions.add_argument('--caption_masking', choices=['inplace', 'clean'], default=None,
                          help='captions that losses read; inplace: masked captions for all losses; clean: masked '
                               'captions only for mlm (default: inplace with --MLM, else clean)')
    captions.add_argument('--mlm_masking', choices=['random', 'attention', 'noun'], default='random',
                          help='tokens to mask: random; those that the text encoder attends to (AGM); nouns and '
                               'adjectives more often (SEN)')
    captions.add_argument('--caption_filter', type=fraction, default=0.0,
                          help='fraction of the training captions that keep only nouns, adjectives and pronouns '
                               '(SEN: 0.2)')
    captions.add_argument('--attribute_tagger', choices=['textblob', 'spacy'], default='textblob',
                          help='library that finds the parts of speech of captions')
    captions.add_argument('--masked_token_rate', type=fraction, default=0.8,
                          help='fraction of the selected tokens that become the mask (BERT: 0.8)')
    captions.add_argument('--masked_token_unchanged_rate', type=fraction, default=0.1,
                          help='fraction of the selected tokens that stay unchanged (BERT: 0.1)')
    add_boolean_option(captions, '--need_MAE', False, "SEN's captions: --caption_masking inplace --mlm_masking noun "
                       '--caption_filter 0.2; the loss mae does not need them')


CORE_OPTIONS = (add_run_options, add_data_options, add_model_options, add_solver_options, add_speed_options,
                add_caption_options)


def add_ignored_options(parser):
    ignored = parser.add_argument_group('without effect', 'Flags of published commands that the reference '
                                        'implementation never reads, or that make it fail.')
    add_boolean_option(ignored, '--distributed', False, 'IRRA', effect=IGNORED | INVOCATION)
    ignored.add_argument('--img_res', type=positive_int, default=16, effect=IGNORED, help='A2TE')
    ignored.add_argument('--queue_size', type=positive_int, default=65536, effect=IGNORED, help='A2TE')
    ignored.add_argument('--stage', default='first', effect=IGNORED, help='A2TE')
    add_boolean_option(ignored, '--need_limit', False, 'SEN', effect=IGNORED)
    add_boolean_option(ignored, '--need_pseudo', False, 'SEN', effect=IGNORED)
    ignored.add_argument('--fuse_loss_weight', type=non_negative_float, default=1.0, effect=IGNORED, help='SEN')
    add_boolean_option(ignored, '--MIM', False, 'AGM', effect=IGNORED)
    ignored.add_argument('--patch_dim', type=positive_int, default=64, effect=IGNORED, help='AGM')
    ignored.add_argument('--mim_loss_weight', type=non_negative_float, default=1.0, effect=IGNORED, help='AGM')


# -- the options of a training run -----------------------------------------------------------------------------------

def get_args(argv=None):
    """Read the options of a training run from the command line and its recipe.

    ``--help`` and ``--print_config`` print and exit.

    Args:
        argv: words of the command line, by default the program's own.

    Returns:
        An ``argparse.Namespace``. Its ``notes`` are lines for the log.

    Raises:
        UserError: an unknown option, an invalid value, or options that contradict each other.

    Example:
        >>> args = get_args(['--loss_names', 'sdm+id', '--img_size', '256', '128'])
        >>> args.img_size, args.lr, args.caption_masking
        ((256, 128), 1e-05, 'clean')
    """
    argv = expand_resume_folder(list(sys.argv[1:] if argv is None else argv))
    refuse_other_interface(argv, 'the command line')
    parser = build_parser()
    parsed = parser.parse(argv)
    flag_names = parser.given_options(argv)
    recipe, notes = read_recipe(parsed.config_file, parser) if parsed.config_file else ({}, [])
    recipe, recipe_notes = translate_losses(recipe, f'{parsed.config_file}: ')
    flags, flag_notes = translate_losses(apply_need_mae({name: getattr(parsed, name) for name in flag_names}))
    chosen = {**recipe, **flags}
    if os.path.isdir(chosen.get('resume_ckpt_file', '')):
        chosen['resume_ckpt_file'] = find_resume_checkpoint(chosen['resume_ckpt_file'])
    check_run_options(argparse.Namespace(**{**parser.defaults_in_code, **chosen}))
    resumed, resume_notes = {}, []
    if chosen.get('resume'):
        resumed, resume_notes = read_resumed_options(chosen['resume_ckpt_file'], parser)
    settings = {**parser.defaults_in_code, **resumed, **chosen}
    if 'MLM' in flag_names and 'caption_masking' not in flags:
        settings['caption_masking'] = None  # --MLM decides it, also if the recipe holds all options
    args = complete(argparse.Namespace(**settings))
    args.notes = [*notes, *recipe_notes, *flag_notes, *resume_notes,
                  *option_notes(args, parser, flag_names, {**resumed, **chosen})]
    if resumed:
        resumed_args = complete(argparse.Namespace(**{**parser.defaults_in_code, **resumed}))
        refuse_changes(args, resumed_args, parser)
        args.notes += [f'resumed with another {name}: {before} -> {after}' for name, before, after
                       in changed_values(resumed_args, args, parser.options_with(CHANGEABLE_ON_RESUME))]
    if args.print_config:
        print(format_recipe(args, parser), end='')
        sys.exit(0)
    return args


def is_launched_by_torchrun():
    """Whether a launcher started several processes, according to the environment."""
    return os.environ.get('WORLD_SIZE', '1') != '1'


def changed_values(before, after, names):
    """(option, plain value before, plain value after) of the options among ``names`` whose values differ."""
    for name in sorted(name for name in vars(before) if name in names):
        old, new = to_plain_value(getattr(before, name)), to_plain_value(getattr(after, name))
        if old != new:
            yield name, old, new


def translate_losses(options, prefix=''):
    """Replace RDE's loss names: ``(options, lines for the log)``."""
    translated = translate_rde_losses(options, option_provider('model.heads').loss_names())
    return translated, rde_notes(options, translated, prefix)


def expand_resume_folder(argv):
    """Replace ``--resume <run's folder>`` by ``--resume --resume_ckpt_file <run's folder>``."""
    words = []
    for word in argv:
        if word.startswith('--resume='):
            word, words = word[len('--resume='):], [*words, '--resume']
        is_path = not word.startswith('-') and word.lower() not in ('true', 'false')
        words += ['--resume_ckpt_file', word] if words[-1:] == ['--resume'] and is_path else [word]
    return words


def find_resume_checkpoint(folder):
    """The checkpoint to resume in a run's folder: last.pth, or the best one of a reference implementation's run."""
    last, config = (os.path.join(folder, name) for name in ('last.pth', 'configs.yaml'))
    trained_on = read_yaml(config).get('dataset_name') if os.path.exists(config) else None
    return last if os.path.exists(last) else find_best_checkpoint([folder], [trained_on]) or last


def check_run_options(args):
    """Check files and names before anything is created.

    Raises:
        UserError: a file is missing, or options contradict each other.
    """
    if args.resume and args.init_from:
        raise UserError('--init_from starts a new run, and --resume resumes one: give only one of them')
    if args.resume_ckpt_file and not args.resume:
        raise UserError('--resume_ckpt_file is only read with --resume: add --resume')
    if args.resume and not args.resume_ckpt_file:
        raise UserError("--resume needs --resume_ckpt_file, the last.pth of the run, or --resume <run's folder>")
    for name in ('resume_ckpt_file', 'init_from'):
        path = getattr(args, name)
        if path and not os.path.isfile(path):
            raise UserError(f'--{name}: there is no file {path}')
    if os.path.basename(args.name) != args.name or not args.name:
        raise UserError(f"--name '{args.name}' becomes a part of a folder's name: it cannot be empty or hold a /")


def refuse_changes(args, resumed_args, parser):
    """Raise UserError if the command changes an option of the resumed run that affects its result."""
    fixed = parser.options_with(RESULT) & parser.options_without(RUN | INVOCATION | CHANGEABLE_ON_RESUME)
    changed = [f'{name} {new} (run: {old})' for name, old, new in changed_values(resumed_args, args, fixed)]
    if changed:
        raise UserError(f"--resume keeps a run's options, and these options differ: {', '.join(changed)}; remove them, "
                        'or start a new run with --init_from')


def read_resumed_options(checkpoint, parser):
    """Read the configs.yaml next to a checkpoint with :func:`~utils.recipes.read_recipe`; ``({}, [])`` without one."""
    path = os.path.join(os.path.dirname(checkpoint), 'configs.yaml')
    return read_recipe(path, parser) if os.path.exists(path) else ({}, [])


def complete(args):
    """Fill in the options that depend on others, in place.

    Returns:
        ``args``.

    Raises:
        UserError: options contradict each other.
    """
    args.dataset_name, args.root_dir = split_dataset_path(args.dataset_name, args.root_dir)
    args.img_size, args.milestones = tuple(args.img_size), tuple(args.milestones)
    if args.caption_masking is None:
        args.caption_masking = 'inplace' if args.MLM else 'clean'
    total = args.masked_token_rate + args.masked_token_unchanged_rate
    if total > 1:
        raise UserError('--masked_token_rate and --masked_token_unchanged_rate are fractions of the same tokens: they '
                        f'add up to {total:g}, and must not exceed 1')
    for provider in option_providers():
        provider.validate_options(args)
    return args


# -- notes for the start of the log ----------------------------------------------------------------------------------

def option_notes(args, parser, flag_names, chosen):
    """Lines for the start of the log.

    They name options that nothing reads, options that a reference implementation sets differently, and differences from
    the method's published recipe.

    Args:
        args: the completed options.
        parser: train.py's parser.
        flag_names: the options on the command line.
        chosen: {option: value} of the command line, the recipe and the resumed run.
    """
    defaults = parser.defaults_in_code
    notes = [line for provider in option_providers() for line in provider.log_notes(args)]
    changed = flag_names | {name for name, value in chosen.items()
                            if to_plain_value(value) != to_plain_value(defaults[name])}
    active = {reader for provider in option_providers() for reader in provider.active_readers(args)}
    unread = {name for name, readers in parser.readers.items() if not active & set(readers)}
    if changed & unread:
        names = ', '.join(f'--{name}' for name in sorted(changed & unread))
        notes.append(f'no active head reads {names} (--loss_names {args.loss_names})')
    ignored = sorted(name for name in changed & parser.options_with(IGNORED) if getattr(args, name) != defaults[name])
    if ignored:
        notes.append(f"without effect: {', '.join('--' + name for name in ignored)}")
    if args.need_MAE and 'need_MAE' in flag_names:
        values = ', '.join(f'{name} {getattr(args, name)}' for name in recipes.SEN_CAPTION_OPTIONS)
        notes.append(f'--need_MAE: as in SEN, captions are filtered and masked in place: {values}')
    path, differences = recipe_differences(args, parser)
    fork = find_fork(args, changed - unread)
    fork_differences = [f'{name} {value} (here {getattr(args, name)})'
                        for name, value in (fork.command_defaults if fork else {}).items()
                        if name not in {*chosen, *unread, *differences} and getattr(args, name) != value]
    if fork_differences:
        notes.append(f"the reference implementation of {fork.name} trains with {', '.join(fork_differences)}: give "
                     'these options to train as it does')
    if differences:
        notes.append(f"differs from {path}: {', '.join(differences.values())}")
    return notes


def find_fork(args, changed):
    """Find the reference implementation whose command this may be, by its losses or by its own options.

    Args:
        args: the completed options.
        changed: the options that differ from their defaults.

    Returns:
        A :class:`~utils.recipes.Fork`, or None if there is none or more than one.
    """
    by_losses = [fork for fork in FORKS
                 if method_keys(args) == method_keys(argparse.Namespace(**{**vars(args), 'loss_names': fork.losses}))]
    candidates = by_losses or [fork for fork in FORKS if fork.own_options & changed]
    return candidates[0] if len(candidates) == 1 else None


def method_keys(args):
    """The :meth:`~OptionProvider.method_key` of all providers."""
    return [provider.method_key(args) for provider in option_providers()]


def recipe_differences(args, parser):
    """Compare a run with the published recipe that has its losses and its dataset.

    Returns:
        ``(path below the repository, {option: the difference in words})``; ``(None, {})`` without one.
    """
    # method_keys compares the losses; MLM and need_MAE are compared by the options that they stand for.
    compared = (parser.options_with(RESULT) & parser.options_without(RUN | INVOCATION | NOT_IN_RECIPE)
                - {'loss_names', 'MLM', 'need_MAE'})
    for path in find_recipes(args.dataset_name):
        try:
            recipe = argparse.Namespace(**{**parser.defaults_in_code, **read_recipe(path, parser)[0],
                                           'dataset_name': args.dataset_name})
        except UserError:   # the head that brings its options is broken
            continue
        if method_keys(recipe) != method_keys(args):
            continue
        differences = {name: f'{name} {new} (recipe {old})'
                       for name, old, new in changed_values(complete(recipe), args, compared)}
        return f'configs/{os.path.basename(path)}', differences
    return None, {}


# -- the options of a trained run ------------------------------------------------------------------------------------

def run_options(path):
    """Read the options of a run from its configs.yaml, Pedestal's or a reference implementation's.

    Missing options get the values that the reference implementation used.

    Returns:
        An ``argparse.Namespace``. Its ``notes`` are lines for the log, for example on unknown keys, which are skipped.
    """
    parser = build_parser()
    actions = parser.actions()
    content = drop_command_line_options(read_options(path), parser, path)
    translated = translate_rde_losses(content)
    options = {**parser.defaults_in_code, **reference_defaults(translated)}
    options.update({name: parser.convert_config_value(name, value, path) for name, value in translated.items()
                    if name in actions})
    args = complete(argparse.Namespace(**options))
    args.notes = [*unknown_key_notes(find_unknown_keys(translated, parser), path),
                  *rde_notes(content, translated, f'{path}: ')]
    return args


def build_test_parser(program, description):
    """Build the parser that test.py and other tools share: a trained run, or a pretrained CLIP without a run."""
    parser = Parser(prog=program, description=description,
                    usage='%(prog)s --config_file <run folder>/configs.yaml [--<option> VALUE ...]')
    run = parser.add_argument_group('trained model')
    run.add_argument('--config_file', help='configs.yaml of the run')
    run.add_argument('--checkpoint', help='checkpoint to evaluate (default: best.pth next to configs.yaml)')
    run.add_argument('--vocab_file', help="BERT's vocab.txt or its folder, for --backbone aptm (default: the run's)")
    run.add_argument('--device', help='auto, cpu, mps, cuda or cuda:<n> (default: as in configs.yaml)')
    run.add_argument('--amp', choices=['auto', 'bf16', 'fp16', 'off'],
                     help='precision of the forward pass (default: as in configs.yaml)')
    data = parser.add_argument_group('data')
    data.add_argument('--dataset_name', help="dataset to evaluate on (default: the run's)")
    data.add_argument('--columns', nargs='+', metavar='ROLE=COLUMN',
                      help="names of a table's columns: image=... caption=... id=... split=...")
    data.add_argument('--root_dir', help="folder of the datasets' folders (default: as in configs.yaml)")
    data.add_argument('--test_batch_size', type=positive_int,
                      help='number of images or captions to encode at a time (default: as in configs.yaml)')
    data.add_argument('--num_workers', type=worker_count,
                      help='number of processes that load data (default: as in configs.yaml)')
    data.add_argument('--image_cache', nargs='?', const='auto', metavar='FOLDER',
                      help='folder for resized images, each of which is decoded only once; without FOLDER: image_cache '
                           "in the dataset's folder (default: no cache)")
    evaluation = parser.add_argument_group('evaluation')
    evaluation.add_argument('--i2t', action='store_true', help='also evaluate image-to-text retrieval')
    evaluation.add_argument('--one_by_one', action='store_true',
                            help='also evaluate embeddings from shuffled batches and from batches of one sample')
    evaluation.add_argument('--rerank', type=positive_int, metavar='K',
                            help="number of each caption's best images to score again, pair by pair, with the "
                                 'image-text matching head (loss itm)')
    evaluation.add_argument('--rerank_score', choices=RERANK_SCORES, default='caption',
                            help="scaling of the scores for --rerank; caption: within each caption; released: over the "
                                 "whole test split, as in APTM's reference implementation")
    untrained = parser.add_argument_group('instead of --config_file', 'A pretrained CLIP, evaluated without training.')
    untrained.add_argument('--backbone', help='backbone of a published checkpoint without configs.yaml, with '
                           '--checkpoint')
    untrained.add_argument('--pretrain_choice', help='pretrained weights, evaluated without training: the name of an '
                           'OpenAI CLIP, a file, or scratch:<shape> of configs/clip')
    untrained.add_argument('--img_size', type=positive_int_up_to(10_000), nargs=2, metavar=('HEIGHT', 'WIDTH'),
                           help='size of the images in pixels (default: 384 128)')
    untrained.add_argument('--stride_size', type=positive_int_up_to(10_000),
                           help="distance between patches in pixels (default: the patch's size)")
    untrained.add_argument('--text_length', type=caption_length,
                           help='maximum number of tokens of a caption (default: 77)')
    untrained.add_argument('--activation', choices=['auto', 'quick_gelu', 'gelu'],
                           help="activation of CLIP's encoders (default: as files next to the weights say, else "
                                'quick_gelu)')
    untrained.add_argument('--output_dir', help='folder of the results, which go to '
                           '<output_dir>/<dataset>/zero-shot_<weights> (default: logs)')
    untrained.add_argument('--trust_archive', action='store_true', default=None,
                           help="load a TorchScript archive that is not one of OpenAI's; it can execute code")
    parser.everyday_options = EVERYDAY_TEST_OPTIONS
    parser.advanced_options = set(parser.actions()) - set(EVERYDAY_TEST_OPTIONS)
    return parser


# Options of a pretrained CLIP without a run. A run's configs.yaml has its own values.
UNTRAINED_OPTIONS = ('backbone', 'pretrain_choice', 'img_size', 'stride_size', 'text_length', 'activation',
                     'output_dir', 'trust_archive')


def parse_test_options(parser, argv=None):
    """Read the options of an evaluation from the command line and from the configs.yaml of ``--config_file``.

    Args:
        parser: the result of :func:`build_test_parser`, perhaps with more options.
        argv: words of the command line, by default the program's own.

    Returns:
        An ``argparse.Namespace``. ``checkpoint`` is the file to evaluate, or None for a pretrained CLIP.

    Raises:
        UserError: an unknown option, an invalid value, or a missing run or checkpoint.
    """
    argv = sys.argv[1:] if argv is None else argv
    refuse_other_interface(argv, 'the command line')
    flags = parser.parse(argv)
    if not flags.config_file and flags.backbone and flags.checkpoint:
        return published_checkpoint_options(flags)
    if not flags.config_file:
        return pretrained_model_options(flags)
    for name in UNTRAINED_OPTIONS:
        if getattr(flags, name) is not None:
            raise UserError(f'--{name} is in the configs.yaml of --config_file: remove --{name}, or remove '
                            '--config_file to evaluate a pretrained CLIP without training')
        delattr(flags, name)
    args = run_options(flags.config_file)
    args.training = False
    # A recipe that names no dataset is for the dataset of the command line.
    names_dataset = 'dataset_name' in read_options(flags.config_file)
    args.trained_on = args.dataset_name if names_dataset else flags.dataset_name or args.dataset_name
    override_options(args, flags)
    # If a run trained on several datasets, the first is evaluated here, and test.py continues with the others.
    name, args.root_dir = split_dataset_path(args.dataset_name, args.root_dir)
    args.dataset_name, *args.further_datasets = name.split('+')
    args.image_cache = flags.image_cache or ''   # the run's folder may exist only on another machine
    args.checkpoint = flags.checkpoint or find_checkpoint(flags.config_file, args)
    add_checkpoint_note(args)
    return args


def override_options(args, flags):
    """Set the options that the command line gives, and those that ``args`` lack, in place."""
    for name, value in vars(flags).items():
        if value is not None or not hasattr(args, name):
            setattr(args, name, value)


def published_checkpoint_options(flags):
    """The options of a published checkpoint that has no configs.yaml, by its backbone."""
    if not os.path.isfile(flags.checkpoint):
        raise UserError(f'--checkpoint: there is no file {flags.checkpoint}')
    given = {name: value for name, value in vars(flags).items() if value is not None}
    published = option_provider('model.backbones').released_options(flags.backbone, flags.checkpoint)
    defaults = build_parser().defaults_in_code
    args = complete(argparse.Namespace(**{**defaults, **published, 'training': False, **given}))
    args.notes, args.trained_on = [], args.dataset_name
    args.output_dir, args.image_cache = os.path.dirname(flags.checkpoint), flags.image_cache or ''
    for name, value in vars(flags).items():
        if not hasattr(args, name):
            setattr(args, name, value)
    args.dataset_name, args.root_dir = split_dataset_path(args.dataset_name, args.root_dir)
    return args


def pretrained_model_options(flags):
    """The options of a pretrained CLIP without training: its embeddings, without a head."""
    if not flags.pretrain_choice:
        raise UserError('no model: give a run with --config_file <run folder>/configs.yaml, or a pretrained CLIP with '
                        '--pretrain_choice')
    if flags.checkpoint:
        raise UserError("--checkpoint needs --config_file, its run's configs.yaml; give weights without a run with "
                        '--pretrain_choice')
    args = complete(argparse.Namespace(**{**build_parser().defaults_in_code, 'loss_names': 'itc', 'training': False}))
    args.notes = []
    override_options(args, flags)
    args.dataset_name, args.root_dir = split_dataset_path(args.dataset_name, args.root_dir)
    args.img_size, args.checkpoint, args.trained_on = tuple(args.img_size), None, None
    args.stride_size = flags.stride_size   # None: the patch's size, which the weights have
    return args


# FMFA's reference implementation evaluates a run on three datasets and keeps the best epoch of each.
FMFA_CHECKPOINTS = {'best0.pth': 'CUHK-PEDES', 'best1.pth': 'ICFG-PEDES', 'best2.pth': 'RSTPReid'}


def find_best_checkpoint(folders, datasets):
    """Find a run's best checkpoint: best.pth, or one of the three that FMFA's reference implementation keeps.

    Args:
        folders: folders to search, in this order.
        datasets: dataset names, the preferred one first. They select among FMFA's three checkpoints. If none of them
            fits, best0.pth is selected, as in FMFA's own test.py.

    Returns:
        A path, or None.
    """
    names = [name for dataset in datasets for name in FMFA_CHECKPOINTS if FMFA_CHECKPOINTS[name] == dataset]
    paths = (os.path.join(folder, name) for folder in folders for name in ('best.pth', *names, *FMFA_CHECKPOINTS))
    return next((path for path in paths if os.path.isfile(path)), None)


def find_checkpoint(config_file, args):
    """Find the best checkpoint next to a configs.yaml, or in the folder that it names.

    Raises:
        UserError: there is none.
    """
    folders = [os.path.dirname(config_file), args.output_dir]
    checkpoint = find_best_checkpoint(folders, [args.dataset_name, args.trained_on])
    if checkpoint is None:
        candidates = ' nor '.join(os.path.join(folder, 'best.pth') for folder in folders)
        raise UserError(f'no best.pth: there is neither {candidates}; give a checkpoint with --checkpoint')
    return checkpoint


def add_checkpoint_note(args):
    """Note which dataset chose a checkpoint of FMFA's reference implementation."""
    dataset = FMFA_CHECKPOINTS.get(os.path.basename(args.checkpoint))
    if dataset:
        args.eval_dataset = dataset
        checkpoints = ', '.join(f'{name}: {its_dataset}' for name, its_dataset in FMFA_CHECKPOINTS.items())
        args.notes.append(f"{args.checkpoint} is of the best epoch on {dataset}: FMFA's reference implementation keeps "
                          f'the best epoch on each of three datasets ({checkpoints}); --checkpoint chooses another')
