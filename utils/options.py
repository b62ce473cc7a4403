"""Options: the flags of the released command lines, and what a program makes of them and of a recipe.

Defaults are IRRA's. A recipe (``--config_file``) comes before the flags, so that a flag changes one thing of it. Every
name is checked: a typo that trains another model in silence is the one thing this file must never let through.

``option_types`` has the types and bounds, ``parser`` how a command line and a config's value are read, ``recipes`` the files. The rooms
above hand in what they bring, as a :class:`Room`.
"""
import argparse
import importlib
import os
import sys

from utils import recipes
from utils.errors import UserError
from utils.option_types import (Effect, amount, count, decay, positive, fraction, split_dataset_path, up_to, weight, whole,
                                yes_no)
from utils.parser import Parser
from utils.recipes import (FORKS, as_dict, left_out_notes, plain, rde_notes, read_options, read_recipe,
                           refuse_other_interface, unknown_keys, what_its_fork_meant, with_rde_losses, with_sen_captions,
                           drop_flags)
from utils.safe_yaml import read_yaml

__all__ = ['Effect', 'Parser', 'Room', 'amount', 'as_dict', 'build_parser', 'build_test_parser', 'complete', 'count', 'decay', 'dump',
           'get_args', 'parse_test_options', 'plain', 'positive', 'read_yaml', 'register', 'run_options', 'fraction',
           'split_dataset_path', 'up_to', 'weight', 'whole', 'yes_no']

# The options that train.py --help shows; --help all shows the others, too.
EVERYDAY = ('config_file', 'print_config', 'name', 'output_dir', 'resume', 'init_from', 'seed', 'device', 'amp', 'dataset_name', 'root_dir',
            'batch_size', 'num_workers', 'img_aug', 'val_dataset', 'loss_names', 'MLM', 'backbone', 'pretrain_choice', 'img_size',
            'text_length', 'num_epoch', 'lr', 'optimizer', 'image_cache', 'micro_batch', 'grad_checkpoint')
RERANK_SCORES = ('caption', 'released')

# Short names for the declarations below.
NOTHING, RESULT, RUN, CALL = Effect.NOTHING, Effect.RESULT, Effect.RUN, Effect.CALL
RESUMED, UNPUBLISHED, UNREAD, FLAG = Effect.RESUMED, Effect.UNPUBLISHED, Effect.UNREAD, Effect.FLAG


# -- what the rooms above hand in ------------------------------------------------------------------------------------------

class Room:
    """What a room above (heads, backbones, datasets) brings to the options. It says so when it is imported: ``register(name, room)``."""

    def add_options(self, parser):
        """Add options to ``parser``, and to ``parser.readers`` what reads them."""

    def active(self, args):
        """Those readers that ``args`` ask for."""
        return []

    def validate_options(self, args):
        """Check the room's options together and fill in what depends on others. Raises :class:`~utils.errors.UserError`."""

    def method(self, args):
        """What makes a run one of a method, whatever its other options: published recipes are found by it."""

    def notes(self, args):
        """Lines for the start of the log."""
        return []


# The modules that bring options, imported if nothing else has imported them, as in a script of IRRA's users.
USUAL = ('model.backbones', 'model.heads', 'datasets.registry')
ROOMS = {}


def register(name, room):
    ROOMS[name] = room


def room(name):
    """The room that is registered under a module's name; imports it where nothing has."""
    importlib.import_module(name)
    return ROOMS[name]


def rooms():
    """The rooms in a fixed order: the usual ones first."""
    for name in USUAL:
        importlib.import_module(name)
    return [ROOMS[name] for name in sorted(ROOMS, key=lambda name: (USUAL.index(name) if name in USUAL else len(USUAL), name))]


# -- the options -----------------------------------------------------------------------------------------------------------

def build_parser():
    """The parser of train.py, with the options that the rooms bring. What a first user needs comes first."""
    parser = Parser(prog='train.py', abbreviations=True, usage='%(prog)s [--config_file RECIPE] [--<option> VALUE ...]',
                    description='Train a text-to-image person retrieval model.')
    for add in USUAL_OPTIONS:
        add(parser)
    for room in rooms():
        room.add_options(parser)
    add_unread_options(parser)
    parser.everyday = EVERYDAY
    parser.defaults_in_code = {name: action.default for name, action in parser.actions().items()}
    return parser


def own_parser():
    """A parser with the options of this file alone, by which a room sees what is taken."""
    parser = Parser()
    for add in (*USUAL_OPTIONS, add_unread_options):
        add(parser)
    return parser


def add_run_options(parser):
    run = parser.add_argument_group('run')
    run.add_argument('--config_file', default='', effect=CALL, help='a recipe: YAML with these options by name; flags come after it')
    yes_no(run, '--print_config', False, 'print the options that result, as a recipe, and leave', effect=CALL)
    run.add_argument('--name', default='baseline', effect=NOTHING, help="the run's name")
    run.add_argument('--output_dir', default='logs', effect=RUN,
                     help="where runs' folders are made: <output_dir>/<dataset>/<time>_<name>")
    run.add_argument('--log_period', type=up_to(10 ** 9), default=100, effect=NOTHING, help='steps between lines of the log')
    run.add_argument('--eval_period', type=count, default=1, effect=RESULT | RESUMED | UNPUBLISHED, help='epochs between evaluations')
    run.add_argument('--eval_dataset', default='', help='another dataset whose split chooses the best epoch, for pretraining')
    run.add_argument('--val_dataset', default='test', choices=['test', 'val'], effect=RESULT | UNPUBLISHED,
                     help='split that chooses the best epoch')
    yes_no(run, '--resume', False, 'go on with the run of --resume_ckpt_file, in its folder; --resume FOLDER names it at once', effect=CALL)
    run.add_argument('--resume_ckpt_file', default='', effect=CALL, help='the last.pth to go on from, or the folder that it is in')
    run.add_argument('--init_from', '--finetune', default='', effect=RESULT | RUN,
                     help="a checkpoint whose weights a new run starts from (--finetune is FMFA's name for it)")
    run.add_argument('--save_steps', type=positive(int, strict=False, most=10 ** 9), default=1000, effect=NOTHING,
                     help='steps between writes of last.pth; 0: at epoch ends only')
    run.add_argument('--save_period', type=whole, default=0, effect=NOTHING,
                     help='epochs between kept checkpoints epoch_<n>.pth; 0: none')
    run.add_argument('--seed', type=positive(int, strict=False, most=2 ** 63 - 1), default=1, effect=RESULT | UNPUBLISHED,
                     help='of everything random')
    run.add_argument('--device', default='auto', effect=NOTHING, help='auto, cpu, mps, cuda or cuda:<n>')
    run.add_argument('--amp', default='auto', choices=['auto', 'bf16', 'fp16', 'off'], effect=RESULT | RESUMED | UNPUBLISHED,
                     help='precision of the forward pass')
    run.add_argument('--test', dest='training', action='store_false', default=True, effect=CALL,
                     help="IRRA's way to say: not for training")
    run.add_argument('--local_rank', '--local-rank', type=positive(int, least=-1, strict=False), default=0, effect=CALL,
                     help='set by launchers; read from the environment')


def add_data_options(parser):
    data = parser.add_argument_group('data')
    data.add_argument('--dataset_name', default='CUHK-PEDES', help='name of a dataset in datasets/, or path of a table')
    data.add_argument('--root_dir', default='./data', effect=RESULT | RESUMED | UNPUBLISHED, help="the folder with the datasets' folders")
    data.add_argument('--batch_size', type=count, default=128, help='captions a step, each with its image')
    data.add_argument('--test_batch_size', type=count, default=512, effect=NOTHING, help='samples encoded at a time by test.py')
    data.add_argument('--num_workers', type=positive(int, strict=False, most=1024), default=8, effect=NOTHING,
                      help='processes that load data')
    yes_no(data, '--img_aug', False, 'pad and crop, erase; without it training images are only flipped')
    yes_no(data, '--txt_aug', False, 'mask, replace and remove a fifth of the words of training captions (RDE); with --preparation tbps '
           'delete words as TBPS-CLIP does')
    data.add_argument('--preparation', default='irra', choices=['irra', 'tbps'],
                      help='how images and captions are prepared and augmented: as in IRRA and its children, or as in TBPS-CLIP '
                           "(ImageNet's mean and deviation, two draws of six augmentations, captions without marks)")
    data.add_argument('--noisy_rate', type=fraction, default=0.0,
                      help='share of the training pairs whose captions are exchanged: noise for experiments, as RDE made it')
    data.add_argument('--noisy_file', default='', effect=RESULT | UNPUBLISHED,
                      help='a NumPy file with the exchange to make, a permutation, instead of that of --noisy_rate')
    data.add_argument('--sampler', default='random', help='random, identity or idrannum')
    yes_no(data, '--drop_last', False, 'leave out the last, smaller batch of an epoch; for the sampler random')
    data.add_argument('--num_instance', type=count, default=4, help='captions of an identity in a batch, for identity and idrannum')
    data.add_argument('--limit_train', type=up_to(10 ** 9), default=None,
                      help='training captions to keep, the first ones; of several datasets in proportion to their sizes')
    yes_no(data, '--skip_broken', False, 'leave out training images that cannot be read, and say how many', effect=RESULT | RESUMED)


def add_model_options(parser):
    model = parser.add_argument_group('model')
    model.add_argument('--loss_names', default='sdm+id+mlm', help='which heads train the model, joined by +')
    model.add_argument('--pretrain_choice', default='ViT-B/16',
                       help="an OpenAI CLIP, a file with weights, or scratch:<shape> of configs/clip; open_clip's <model>[:<tag or file>]")
    yes_no(model, '--trust_archive', False, 'load a TorchScript archive that is not one of OpenAI; it can carry code, so '
           'no recipe can hold this option', effect=RESULT | RESUMED | FLAG)
    model.add_argument('--temperature', type=amount, default=0.02, help='of the similarities, constant')
    model.add_argument('--img_size', type=up_to(10_000), nargs=2, default=(384, 128), metavar=('HEIGHT', 'WIDTH'), help='pixels')
    model.add_argument('--stride_size', type=up_to(10_000), default=16,
                       help="pixels between patches; below the patch's size they overlap")
    model.add_argument('--text_length', type=positive(int, least=2, most=10_000), default=77,
                       help='tokens a caption, start and end included')
    yes_no(model, '--freeze_conv1', False, "keep the patch convolution as pretrained (A2TE)")


def add_solver_options(parser):
    solver = parser.add_argument_group('solver')
    solver.add_argument('--num_epoch', type=count, default=60, effect=RESULT | RESUMED, help='epochs in all')
    solver.add_argument('--optimizer', default='Adam', help='Adam, AdamW or SGD')
    solver.add_argument('--lr', type=positive(float, strict=False, most=1e30), default=1e-5, help='base learning rate')
    solver.add_argument('--lr_rules', default='irra', choices=['irra', 'flat', 'undecayed'],
                        help="which parameters learn otherwise than by --lr, --weight_decay: those that IRRA's and the heads' rules name, "
                             'none (FMFA); or none, and vectors, biases and norms have no decay (TBPS-CLIP)')
    solver.add_argument('--lr_factor', type=weight, default=5.0, help='on lr for what is made anew: cross encoder, classifier, mlm_head')
    solver.add_argument('--bias_lr_factor', type=weight, default=2.0, help='on lr for biases')
    solver.add_argument('--momentum', type=fraction, default=0.9, help='of SGD')
    solver.add_argument('--weight_decay', type=weight, default=4e-5, help='of all but biases')
    solver.add_argument('--weight_decay_bias', type=weight, default=0.0, help='of biases')
    solver.add_argument('--alpha', type=decay, default=0.9, help="Adam's first beta")
    solver.add_argument('--beta', type=decay, default=0.999, help="Adam's second beta")
    solver.add_argument('--lrscheduler', default='cosine', choices=['step', 'exp', 'poly', 'cosine', 'linear', 'step_cosine',
                                                                         'step_linear', 'step_stairs'],
                        help='how lr changes from epoch to epoch; step_cosine: a cosine that moves with every step (TBPS-CLIP); '
                             'step_linear, step_stairs: a linear decay with every step (APTM), the latter with two drops')
    solver.add_argument('--milestones', type=count, nargs='+', default=(20, 50), help='epochs, for step')
    solver.add_argument('--gamma', type=weight, default=0.1, help='factor at each milestone, for step')
    solver.add_argument('--warmup_steps', type=whole, default=0, help='optimizer steps before the schedule proper, for step_linear')
    solver.add_argument('--warmup_factor', type=weight, default=0.1, help='on lr at the start')
    solver.add_argument('--warmup_epochs', type=whole, default=5, help='epochs before the schedule proper')
    solver.add_argument('--warmup_method', default='linear', choices=['linear', 'constant'], help='how lr starts')
    solver.add_argument('--target_lr', type=weight, default=0.0, help='at the end, for cosine and poly')
    solver.add_argument('--power', type=weight, default=0.9, help='for exp and poly')


def add_speed_options(parser):
    speed = parser.add_argument_group('speed and memory', 'none of these changes what is computed, up to what is drawn at random')
    speed.add_argument('--image_cache', nargs='?', const='auto', default='', metavar='FOLDER', effect=NOTHING,
                       help="decode and resize each image once and keep them in FOLDER (without one: in the dataset's folder)")
    yes_no(speed, '--grad_checkpoint', False, 'of each block of the encoders and the cross encoder keep the input alone, and compute the '
           'rest again for the gradient', effect=NOTHING)
    # Not NOTHING: heads that draw at random in a step (mae's patches, dropout) draw anew for each piece.
    speed.add_argument('--micro_batch', type=count, default=None, effect=RESULT | RESUMED | UNPUBLISHED,
                       help='samples whose activations are held at a time; the losses still compare the whole batch')
    yes_no(speed, '--shard', False, 'several processes: each holds its part of the parameters and of the optimizer state alone (FSDP2)',
           effect=NOTHING)
    yes_no(speed, '--compile', False, 'compile the transformer blocks (torch.compile; takes a minute at the start)', effect=NOTHING)


def add_caption_options(parser):
    captions = parser.add_argument_group('captions')
    yes_no(captions, '--MLM', False, 'mask captions in place, as the released code does: --caption_masking inplace')
    captions.add_argument('--caption_masking', choices=['inplace', 'clean'], default=None,
                          help='inplace: every loss reads the masked caption; clean: only mlm does (default: inplace with --MLM)')
    captions.add_argument('--mlm_masking', choices=['random', 'attention', 'noun'], default='random',
                          help="which tokens are masked: any, those the text encoder attends to (AGM), or nouns and adjectives (SEN)")
    captions.add_argument('--caption_filter', type=fraction, default=0.0,
                          help='share of the captions of which only pronouns, nouns and adjectives are kept (SEN: 0.2)')
    captions.add_argument('--attribute_tagger', choices=['textblob', 'spacy'], default='textblob', help='finds parts of speech')
    captions.add_argument('--masked_token_rate', type=fraction, default=0.8, help='share of the chosen tokens that become the mask')
    captions.add_argument('--masked_token_unchanged_rate', type=fraction, default=0.1, help='share of the chosen tokens that stay')
    yes_no(captions, '--need_MAE', False, "SEN's captions, filtered and masked in place: --caption_masking inplace --mlm_masking noun "
           '--caption_filter 0.2; the loss mae does not need it')


USUAL_OPTIONS = (add_run_options, add_data_options, add_model_options, add_solver_options, add_speed_options, add_caption_options)


def add_unread_options(parser):
    unread = parser.add_argument_group('without effect', 'flags of the released command lines that their code never reads, or whose code '
                                       'cannot run')
    yes_no(unread, '--distributed', False, 'IRRA', effect=UNREAD | CALL)
    unread.add_argument('--img_res', type=count, default=16, effect=UNREAD, help='A2TE')
    unread.add_argument('--queue_size', type=count, default=65536, effect=UNREAD, help='A2TE')
    unread.add_argument('--stage', default='first', effect=UNREAD, help='A2TE')
    yes_no(unread, '--need_limit', False, 'SEN', effect=UNREAD)
    yes_no(unread, '--need_pseudo', False, 'SEN', effect=UNREAD)
    unread.add_argument('--fuse_loss_weight', type=weight, default=1.0, effect=UNREAD, help='SEN')
    yes_no(unread, '--MIM', False, 'AGM', effect=UNREAD)
    unread.add_argument('--patch_dim', type=count, default=64, effect=UNREAD, help='AGM')
    unread.add_argument('--mim_loss_weight', type=weight, default=1.0, effect=UNREAD, help='AGM')


# -- train.py's ------------------------------------------------------------------------------------------------------------

def get_args(argv=None):
    """The options of a training run from the command line (``argv``, by default the program's own) and the recipe that it
    names. Raises :class:`UserError`; ``--help`` and ``--print_config`` print and leave.

    >>> args = get_args(['--loss_names', 'sdm+id', '--img_size', '256', '128'])
    >>> args.img_size, args.lr, args.caption_masking
    ((256, 128), 1e-05, 'clean')
    """
    argv = with_run_named(list(sys.argv[1:] if argv is None else argv))
    refuse_other_interface(argv, 'the command line')
    parser = build_parser()
    first = parser.parse(argv)
    given = parser.given(argv)
    recipe, lines = read_recipe(first.config_file, parser) if first.config_file else ({}, [])
    recipe, of_recipe = as_rde_means(recipe, f'{first.config_file}: ')
    flags, of_flags = as_rde_means(with_sen_captions({name: getattr(first, name) for name in given}))
    told = {**recipe, **flags}
    if os.path.isdir(told.get('resume_ckpt_file', '')):
        told['resume_ckpt_file'] = newest_state(told['resume_ckpt_file'])
    check(argparse.Namespace(**{**parser.defaults_in_code, **told}))
    resumed, of_run = options_of_resumed_run(told['resume_ckpt_file'], parser) if told.get('resume') else ({}, [])
    settings = {**parser.defaults_in_code, **resumed, **told}
    if 'MLM' in given and 'caption_masking' not in flags:
        settings['caption_masking'] = None  # the flag decides it, also after a recipe that was printed in full
    args = complete(argparse.Namespace(**settings))
    args.notes = [*lines, *of_recipe, *of_flags, *of_run, *notes(args, parser, given, {**resumed, **told})]
    if resumed:
        run = complete(argparse.Namespace(**{**parser.defaults_in_code, **resumed}))
        refuse_changes(args, run, parser)
        args.notes += [f'resumed with another {name}: {plain(getattr(run, name))} -> {plain(getattr(args, name))}'
                       for name in sorted(parser.having(RESUMED)) if plain(getattr(run, name)) != plain(getattr(args, name))]
    if args.print_config:
        print(dump(args), end='')
        sys.exit(0)
    return args


def is_launched_by_torchrun():
    """Whether this process is one of several, by the environment."""
    return os.environ.get('WORLD_SIZE', '1') != '1'


def as_rde_means(said, where=''):
    """``(options, lines for the log)``: the options ``said``, with the losses that RDE's loss names mean."""
    meant = with_rde_losses(said, room('model.heads').loss_names())
    return meant, rde_notes(said, meant, where)


def with_run_named(argv):
    """``--resume logs/<dataset>/<run>`` is ``--resume --resume_ckpt_file`` with the last.pth in that folder."""
    words = []
    for word in argv:
        if word.startswith('--resume='):
            word, words = word[len('--resume='):], [*words, '--resume']
        named = words[-1:] == ['--resume'] and not word.startswith('-') and word.lower() not in ('true', 'false')
        words += ['--resume_ckpt_file', word] if named else [word]
    return words


def newest_state(folder):
    """The checkpoint in a run's folder to go on from: last.pth; a released run has its best one alone."""
    last, config = (os.path.join(folder, name) for name in ('last.pth', 'configs.yaml'))
    trained_on = read_yaml(config).get('dataset_name') if os.path.exists(config) else None
    return last if os.path.exists(last) else best_checkpoint([folder], [trained_on]) or last


def check(args):
    """What a run is started with, from flags and recipe alike: files and names, before anything is made."""
    if args.resume and args.init_from:
        raise UserError('--init_from starts a new run and --resume goes on with one: give one of them')
    if args.resume_ckpt_file and not args.resume:
        raise UserError('--resume_ckpt_file is read with --resume, which is missing')
    if args.resume and not args.resume_ckpt_file:
        raise UserError('--resume needs --resume_ckpt_file, the last.pth of the run to go on with')
    for path in (args.resume_ckpt_file, args.init_from):
        if path and not os.path.isfile(path):
            raise UserError(f'there is no file {path}')
    if os.path.basename(args.name) != args.name or not args.name:
        raise UserError(f"--name '{args.name}' becomes a part of a folder's name and cannot be empty or hold a /")


def refuse_changes(args, run, parser):
    """A resumed run goes on as it was: options that change what is computed must be those of the run."""
    fixed = parser.having(RESULT) & parser.without(RUN | CALL | RESUMED)
    changed = [f'{name} {plain(getattr(args, name))} (run: {plain(value)})' for name, value in sorted(vars(run).items())
               if name in fixed and plain(getattr(args, name)) != plain(value)]
    if changed:
        raise UserError(f"--resume goes on with a run as it was, and these options differ: {', '.join(changed)}; leave them out, or start "
                        'a new run with --init_from')


def options_of_resumed_run(checkpoint, parser):
    """What :func:`~utils.recipes.read_recipe` finds beside the checkpoint to resume from; nothing without a configs.yaml."""
    path = os.path.join(os.path.dirname(checkpoint), 'configs.yaml')
    return read_recipe(path, parser) if os.path.exists(path) else ({}, [])


def complete(args):
    """Settle what depends on several options: caption masking, and what each room has to settle."""
    args.dataset_name, args.root_dir = split_dataset_path(args.dataset_name, args.root_dir)
    args.img_size, args.milestones = tuple(args.img_size), tuple(args.milestones)
    if args.caption_masking is None:
        args.caption_masking = 'inplace' if args.MLM else 'clean'
    if args.masked_token_rate + args.masked_token_unchanged_rate > 1:
        raise UserError('--masked_token_rate and --masked_token_unchanged_rate are shares of the same tokens and add up to '
                        f'{args.masked_token_rate + args.masked_token_unchanged_rate:g}, above 1')
    for room in rooms():
        room.validate_options(args)
    return args


# -- what is said at the start of a run ------------------------------------------------------------------------------------

def notes(args, parser, given, told):
    """Lines for the start of the log: options that nobody reads, what a released command means elsewhere, and differences from the
    method's published recipe. ``given``: the options on the command line; ``told``: {option: value} of it and of the recipe."""
    lines = [line for room in rooms() for line in room.notes(args)]
    chosen = given | {name for name, value in told.items() if plain(value) != plain(parser.defaults_in_code[name])}
    active = {reader for room in rooms() for reader in room.active(args)}
    idle = {name for name in chosen if name in parser.readers and not active & set(parser.readers[name])}
    if idle:
        lines.append(f"no active head reads {', '.join('--' + name for name in sorted(idle))} (--loss_names {args.loss_names})")
    nothing = sorted(name for name in chosen & parser.having(UNREAD) if getattr(args, name) != parser.defaults_in_code[name])
    if nothing:
        lines.append(f"without effect: {', '.join('--' + name for name in nothing)}")
    if args.need_MAE and 'need_MAE' in given:
        lines.append('--need_MAE: as in SEN, captions are filtered and masked in place: '
                     + ', '.join(f'{name} {getattr(args, name)}' for name in recipes.SEN_CAPTIONS))
    path, differences = recipe_differences(args, parser)
    unread = {name for name, readers in parser.readers.items() if not active & set(readers)}
    fork = fork_of(args, chosen - idle)
    otherwise = [f'{name} {value} (here {getattr(args, name)})' for name, value in (fork.unsaid if fork else {}).items()
                 if name not in {*told, *unread, *differences} and getattr(args, name) != value]
    if otherwise:
        lines.append(f"the released {fork.name} trains with {', '.join(otherwise)}: name it to train as it does")
    if differences:
        lines.append(f"differs from {path}: {', '.join(differences.values())}")
    return lines


def fork_of(args, chosen):
    """The released codebase whose command this may be: one whose recipe has these losses, or the one whose own options are ``chosen``."""
    by_losses = [fork for fork in FORKS if method(args) == method(argparse.Namespace(**{**vars(args), 'loss_names': fork.losses}))]
    by_options = [fork for fork in FORKS if fork.own & chosen]
    found = by_losses or by_options
    return found[0] if len(found) == 1 else None


def method(args):
    return [room.method(args) for room in rooms()]


def recipe_differences(args, parser):
    """The published recipe (configs/<method>/<dataset>.yaml) with this run's losses and dataset, and {option: how the run differs}."""
    folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'configs')
    dataset = f'{args.dataset_name.lower()}.yaml'
    # Losses are compared as a set, and MLM and need_MAE by what they stand for.
    compared = parser.having(RESULT) & parser.without(RUN | CALL | UNPUBLISHED) - {'loss_names', 'MLM', 'need_MAE'}
    for name in sorted(set(os.listdir(folder)) - {'published'}):
        path = os.path.join(folder, name, dataset)
        try:
            recipe = argparse.Namespace(**{**parser.defaults_in_code, **read_recipe(path, parser)[0]})
        except UserError:   # no recipe for this dataset, or the head that brings its options is broken: it is not this run's
            continue
        if method(recipe) != method(args):
            continue
        recipe = complete(recipe)
        differences = {name: f'{name} {plain(getattr(args, name))} (recipe {plain(value)})' for name, value in sorted(vars(recipe).items())
                       if name in compared and plain(getattr(args, name)) != plain(value)}
        return f'configs/{name}/{dataset}', differences
    return None, {}


# -- those of a run that is there ------------------------------------------------------------------------------------------

def run_options(path):
    """The options of a run's configs.yaml, ours or a released one's, with what is missing there filled in as its code meant
    it. ``notes`` are lines for the log, such as on keys that Pedestal has no option for: these are left out."""
    parser = build_parser()
    actions = parser.actions()
    said = drop_flags(read_options(path), parser, path)
    content = with_rde_losses(said)
    options = {**parser.defaults_in_code, **what_its_fork_meant(content)}
    options.update({name: parser.typed(name, value, path) for name, value in content.items() if name in actions})
    args = complete(argparse.Namespace(**options))
    args.notes = [*left_out_notes(unknown_keys(content, parser), path), *rde_notes(said, content, f'{path}: ')]
    return args


def build_test_parser(program, description):
    """What evaluating programs have in common: a run, and what may be different from when it was trained; or a CLIP before any
    training."""
    parser = Parser(prog=program, description=description)
    parser.add_argument('--config_file', help="a run's configs.yaml")
    parser.add_argument('--checkpoint', help='instead of the best.pth beside it')
    parser.add_argument('--dataset_name', help='another dataset than the run was trained on')
    parser.add_argument('--columns', nargs='+', metavar='WHAT=COLUMN', help="what the columns of --dataset_name's table are called")
    parser.add_argument('--root_dir', help="the folder with the datasets' folders")
    parser.add_argument('--vocab_file', help="BERT's vocab.txt or its folder, where the run's is not beside it (--backbone aptm)")
    parser.add_argument('--i2t', action='store_true', help='image-to-text retrieval, too')
    parser.add_argument('--one_by_one', action='store_true', help='also embed everything in shuffled batches and in batches of one')
    parser.add_argument('--rerank', type=count, metavar='K', help="also score each caption's K best images again, pair by pair (itm)")
    parser.add_argument('--rerank_score', choices=RERANK_SCORES, default='caption',
                        help="how both stages' scores are scaled: within each caption, or over the whole test split, as APTM's code does")
    parser.add_argument('--test_batch_size', type=count, help='samples encoded at a time')
    parser.add_argument('--num_workers', type=positive(int, strict=False, most=1024), help='processes that load data')
    parser.add_argument('--device', help='auto, cpu, mps, cuda or cuda:<n>')
    parser.add_argument('--amp', choices=['auto', 'bf16', 'fp16', 'off'], help='precision of the forward pass')
    parser.add_argument('--image_cache', nargs='?', const='auto', metavar='FOLDER',
                        help="keep decoded and resized images in FOLDER (without one: in the dataset's folder)")
    untrained = parser.add_argument_group('instead of --config_file', 'a CLIP before any training')
    untrained.add_argument('--backbone', help='with --checkpoint: the family of a released checkpoint that has no configs.yaml')
    untrained.add_argument('--pretrain_choice', help='an OpenAI CLIP, a file with weights, or scratch:<shape> of configs/clip')
    untrained.add_argument('--img_size', type=up_to(10_000), nargs=2, metavar=('HEIGHT', 'WIDTH'), help='pixels (default: 384 128)')
    untrained.add_argument('--stride_size', type=up_to(10_000), help="pixels between patches (default: the patch's size)")
    untrained.add_argument('--text_length', type=positive(int, least=2, most=10_000), help='tokens a caption (default: 77)')
    untrained.add_argument('--activation', choices=['auto', 'quick_gelu', 'gelu'],
                           help="activation of CLIP's encoders (default: as files next to the weights say, else quick_gelu)")
    untrained.add_argument('--output_dir', help='results go to <output_dir>/<dataset>/zero-shot_<weights> (default: logs)')
    untrained.add_argument('--trust_archive', action='store_true', default=None, help='load a TorchScript archive that is not OpenAI'"'"'s')
    return parser


# What describes a CLIP before training; a run has its own.
OF_UNTRAINED = ('backbone', 'pretrain_choice', 'img_size', 'stride_size', 'text_length', 'activation', 'output_dir',
                'trust_archive')


def parse_test_options(parser, argv=None):
    """The options of the run that --config_file names, under those of the command line, and ``checkpoint``, the file to test: None
    for the CLIP of --pretrain_choice before any training."""
    argv = sys.argv[1:] if argv is None else argv
    refuse_other_interface(argv, 'the command line')
    given = parser.parse(argv)
    if not given.config_file and given.backbone and given.checkpoint:
        return released_options(given)
    if not given.config_file:
        return untrained_options(given)
    for name in OF_UNTRAINED:
        if getattr(given, name) is not None:
            raise UserError(f'--{name} is of the run that --config_file names: leave it out, or leave out --config_file to test a CLIP '
                            'before any training')
        delattr(given, name)
    args = run_options(given.config_file)
    args.training = False
    args.trained_on = args.dataset_name
    for name, value in vars(given).items():
        if value is not None or not hasattr(args, name):
            setattr(args, name, value)
    # of several datasets the first is looked at, as it was in training; test.py goes on to the others
    name, args.root_dir = split_dataset_path(args.dataset_name, args.root_dir)
    args.dataset_name, *args.further_datasets = name.split('+')
    args.image_cache = given.image_cache or ''   # a folder of the machine that trained need not be on this one
    args.checkpoint = given.checkpoint or find_checkpoint(given.config_file, args)
    note_whose_best(args)
    return args


def released_options(given):
    """The options of a released checkpoint of a backbone that keeps none beside it."""
    if not os.path.isfile(given.checkpoint):
        raise UserError(f'there is no file {given.checkpoint}')
    told = {name: value for name, value in vars(given).items() if value is not None}
    of_release = room('model.backbones').released(given.backbone, given.checkpoint)
    args = argparse.Namespace(**{**build_parser().defaults_in_code, **of_release, 'training': False, **told})
    args = complete(args)
    args.notes, args.trained_on = [], args.dataset_name
    args.output_dir, args.image_cache = os.path.dirname(given.checkpoint), given.image_cache or ''
    for name, value in vars(given).items():
        if not hasattr(args, name):
            setattr(args, name, value)
    args.dataset_name, args.root_dir = split_dataset_path(args.dataset_name, args.root_dir)
    return args


def untrained_options(given):
    """The options of a CLIP before any training: both embeddings as they are, without a head."""
    if not given.pretrain_choice:
        raise UserError("name a run with --config_file <run's folder>/configs.yaml, or a CLIP before any training with --pretrain_choice")
    if given.checkpoint:
        raise UserError("--checkpoint needs --config_file, its run's configs.yaml; weights without a run are for --pretrain_choice")
    args = complete(argparse.Namespace(**{**build_parser().defaults_in_code, 'loss_names': 'itc', 'training': False}))
    args.notes = []
    stride_size = given.stride_size   # by default the patch's, which the weights tell
    for name, value in vars(given).items():
        if value is not None or not hasattr(args, name):
            setattr(args, name, value)
    args.dataset_name, args.root_dir = split_dataset_path(args.dataset_name, args.root_dir)
    args.img_size, args.stride_size, args.checkpoint, args.trained_on = tuple(args.img_size), stride_size, None, None
    return args


# FMFA's code evaluates each of its runs on three datasets and keeps the best epoch of each.
BEST_ON = {'best0.pth': 'CUHK-PEDES', 'best1.pth': 'ICFG-PEDES', 'best2.pth': 'RSTPReid'}


def best_checkpoint(folders, datasets):
    """A run's best checkpoint in the first of ``folders`` that has one, else None.

    It is best.pth. Of the three that FMFA's code keeps it is the one of the first of ``datasets``, or else best0.pth, which
    FMFA's own test.py reads.
    """
    wanted = [name for dataset in datasets for name in BEST_ON if BEST_ON[name] == dataset]
    paths = (os.path.join(folder, name) for folder in folders for name in ('best.pth', *wanted, *BEST_ON))
    return next((path for path in paths if os.path.isfile(path)), None)


def find_checkpoint(config_file, args):
    """The best checkpoint beside the configs.yaml, or in the folder that it names. Of FMFA's it is that of the dataset to
    test on, or else of the dataset that the run trained on."""
    folders = [os.path.dirname(config_file), args.output_dir]
    found = best_checkpoint(folders, [args.dataset_name, args.trained_on])
    if found is None:
        candidates = ' nor '.join(os.path.join(folder, 'best.pth') for folder in folders)
        raise UserError(f"no best.pth: neither {candidates} is there; name one with --checkpoint")
    return found


def note_whose_best(args):
    """Note which dataset chose a checkpoint that FMFA's code kept."""
    dataset = BEST_ON.get(os.path.basename(args.checkpoint))
    if dataset:
        args.eval_dataset = dataset
        kept = ', '.join(f'{name}: {its_dataset}' for name, its_dataset in BEST_ON.items())
        args.notes.append(f"{args.checkpoint} is of the best epoch on {dataset}: FMFA's code keeps the best epoch of each of "
                          f'three datasets ({kept}); --checkpoint names another')


def dump(args):
    """The options as a recipe's text."""
    return recipes.dump(args, build_parser())
