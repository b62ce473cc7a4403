"""Options: the flags of the released command lines, recipes (YAML), and a run's ``configs.yaml``.

Defaults are IRRA's. A recipe (``--config_file``) comes before the flags, so that a flag changes one thing of it. Every
name is checked: a typo that trains another model in silence is the one thing this file must never let through.
"""
import argparse
import math
import os
import re
import sys

import yaml

from utils.errors import UserError, nearest

# Flags that the released code has and never reads, or that belong to parts that cannot run there: accepted, and said once.
WITHOUT_EFFECT = ('distributed', 'img_res', 'queue_size', 'stage', 'need_MAE', 'need_limit', 'need_pseudo', 'fuse_loss_weight', 'MIM',
                  'patch_dim', 'mim_loss_weight')
# What describes one run rather than how to train: not taken over from another run's configs.yaml.
OF_ONE_RUN = ('output_dir', 'resume', 'resume_ckpt_file', 'init_from', 'config_file', 'print_config', 'training', 'local_rank',
              'distributed')
# What changes nothing that is computed.
FREE_TO_CHANGE = OF_ONE_RUN + ('num_workers', 'log_period', 'save_steps', 'save_period', 'device', 'test_batch_size', 'name',
                               'image_cache', 'grad_checkpoint', 'micro_batch', 'compile')
# What may differ between a run and its resumption: also how long, how often and where.
FREE_AT_RESUME = FREE_TO_CHANGE + ('num_epoch', 'root_dir', 'eval_period', 'amp', 'skip_broken', 'trust_archive')


# A released configs.yaml is told by the options that its fork alone has; what that code did without an option of ours, and the
# fork's own defaults where an older config lacks the option.
FORKS = {
    'A2TE': ({'attribute_weight', 'pool_ratio'},
             {'freeze_conv1': True, 'temperature': 0.01, 'img_aug': True, 'momentum': 0.995, 'alpha': 0.5}),
    'SEN': ({'need_MAE', 'mask_ratio'}, {'sampler': 'idrannum', 'num_instance': 2}),
    'PHP': ({'num_experts', 'moe_layers'},
            {'php_attention': 'batch', 'itc_loss_weight': 5.0, 'batch_size': 64, 'test_batch_size': 64,
             'transformer_lr_factor': 1.0, 'moe_lr_factor': 1.0}),  # the first release has no such factors
}


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are sentences with the nearest known flag, and that remembers which head adds what."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **settings)
        self.readers = {}             # option -> the heads that read it; options that aren't here are read by all
        self.defaults_in_code = {}    # option -> default before a recipe changes it

    def parse(self, argv):
        for word in argv:  # before argparse, which would first ask for what is missing
            flag = word.split('=')[0]
            if word.startswith('--') and flag not in self._option_string_actions:
                raise UserError(f'unknown flag {flag}{nearest(flag, self._option_string_actions)}')
        args, extra = self.parse_known_args(argv)
        if extra:
            raise UserError(f"'{extra[0]}' belongs to no flag")
        return args

    def error(self, message):
        raise UserError(message)

    def actions(self):
        """{option: argparse action}"""
        return {action.dest: action for action in self._actions if action.dest != 'help'}

    def given(self, argv):
        """The options that are on the command line."""
        flags = {word.split('=')[0] for word in argv}
        return {action.dest for flag, action in self._option_string_actions.items() if flag in flags}


def positive(convert, least=0, strict=True, most=math.inf):
    """An argparse type: a finite number above ``least`` (or from it, if not strict) and at most ``most``."""
    def number(text):
        value = convert(text)
        if not (value > least if strict else value >= least) or value > most or value == math.inf:
            raise argparse.ArgumentTypeError(
                f"'{text}' must be {'above' if strict else 'at least'} {least}" + (f' and at most {most}' if most < math.inf else ''))
        return value
    number.__name__ = convert.__name__
    return number


count = positive(int)                         # 1, 2, ...
whole = positive(int, strict=False)           # 0, 1, ...
amount = positive(float)                      # above 0
weight = positive(float, strict=False)        # 0 or more
share = positive(float, strict=False, most=1)  # 0 to 1
decay = positive(float, strict=False, most=0.9999999)  # below 1


def yes_no(group, name, default, text):
    group.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=text)


def build_parser():
    """The parser of train.py, with the options of every head in ``model/heads``."""
    parser = Parser(prog='train.py', description='Train a text-to-image person retrieval model.')

    run = parser.add_argument_group('run')
    run.add_argument('--config_file', default='', help='a recipe: YAML with these options by name; flags come after it')
    yes_no(run, '--print_config', False, 'print the options that result, as a recipe, and leave')
    run.add_argument('--name', default='baseline', help="the run's name")
    run.add_argument('--output_dir', default='logs', help="where runs' folders are made: <output_dir>/<dataset>/<time>_<name>")
    run.add_argument('--log_period', type=count, default=100, help='steps between lines of the log')
    run.add_argument('--eval_period', type=count, default=1, help='epochs between evaluations')
    run.add_argument('--val_dataset', default='test', choices=['test', 'val'], help='split that chooses the best epoch')
    yes_no(run, '--resume', False, 'go on with the run of --resume_ckpt_file, in its folder')
    run.add_argument('--resume_ckpt_file', default='', help='the last.pth to go on from')
    run.add_argument('--init_from', default='', help='a checkpoint whose weights a new run starts from')
    run.add_argument('--save_steps', type=whole, default=1000, help='steps between writes of last.pth; 0: at epoch ends only')
    run.add_argument('--save_period', type=whole, default=0, help='epochs between kept checkpoints epoch_<n>.pth; 0: none')
    run.add_argument('--seed', type=positive(int, strict=False, most=2 ** 63 - 1), default=1, help='of everything random')
    run.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:<n>')
    run.add_argument('--amp', default='auto', choices=['auto', 'bf16', 'fp16', 'off'], help='precision of the forward pass')
    run.add_argument('--test', dest='training', action='store_false', default=True, help="IRRA's way to say: not for training")
    run.add_argument('--local_rank', type=int, default=0, help='set by torchrun; one GPU is used')

    model = parser.add_argument_group('model')
    model.add_argument('--pretrain_choice', default='ViT-B/16',
                       help='an OpenAI CLIP, a file with weights, or scratch:<shape> of configs/clip')
    yes_no(model, '--trust_archive', False, 'load a TorchScript archive that is not one of OpenAI; it can carry code')
    model.add_argument('--loss_names', default='sdm+id+mlm', help='which heads train the model, joined by +')
    model.add_argument('--temperature', type=amount, default=0.02, help='of the similarities, constant')
    model.add_argument('--img_size', type=count, nargs=2, default=(384, 128), metavar=('HEIGHT', 'WIDTH'), help='pixels')
    model.add_argument('--stride_size', type=count, default=16, help="pixels between patches; below the patch's size they overlap")
    model.add_argument('--text_length', type=positive(int, least=2), default=77, help='tokens a caption, start and end included')

    yes_no(model, '--freeze_conv1', False, "keep the patch convolution as pretrained (A2TE)")

    captions = parser.add_argument_group('captions')
    yes_no(captions, '--MLM', False, 'mask captions in place, as the released code does: --caption_masking inplace')
    captions.add_argument('--caption_masking', choices=['inplace', 'clean'], default=None,
                          help='inplace: every loss reads the masked caption; clean: only mlm does (default: inplace with --MLM)')
    captions.add_argument('--mlm_masking', choices=['random', 'attention', 'noun'], default='random',
                          help="which tokens are masked: any, those the text encoder attends to (AGM), or nouns and adjectives (SEN)")
    captions.add_argument('--caption_filter', type=share, default=0.0,
                          help='share of the captions of which only pronouns, nouns and adjectives are kept (SEN: 0.2)')
    captions.add_argument('--attribute_tagger', choices=['textblob', 'spacy'], default='textblob', help='finds parts of speech')
    captions.add_argument('--masked_token_rate', type=share, default=0.8, help='share of the chosen tokens that become the mask')
    captions.add_argument('--masked_token_unchanged_rate', type=share, default=0.1, help='share of the chosen tokens that stay')

    solver = parser.add_argument_group('solver')
    solver.add_argument('--optimizer', default='Adam', help='Adam, AdamW or SGD')
    solver.add_argument('--lr', type=positive(float, strict=False, most=1e30), default=1e-5, help='base learning rate')
    solver.add_argument('--lr_factor', type=weight, default=5.0, help='on lr for what is made anew: cross encoder, classifier, mlm_head')
    solver.add_argument('--bias_lr_factor', type=weight, default=2.0, help='on lr for biases')
    solver.add_argument('--momentum', type=share, default=0.9, help='of SGD')
    solver.add_argument('--weight_decay', type=weight, default=4e-5, help='of all but biases')
    solver.add_argument('--weight_decay_bias', type=weight, default=0.0, help='of biases')
    solver.add_argument('--alpha', type=decay, default=0.9, help="Adam's first beta")
    solver.add_argument('--beta', type=decay, default=0.999, help="Adam's second beta")
    solver.add_argument('--num_epoch', type=count, default=60, help='epochs in all')
    solver.add_argument('--lrscheduler', default='cosine', choices=['step', 'exp', 'poly', 'cosine', 'linear'],
                        help='how lr changes from epoch to epoch')
    solver.add_argument('--milestones', type=count, nargs='+', default=(20, 50), help='epochs, for step')
    solver.add_argument('--gamma', type=weight, default=0.1, help='factor at each milestone, for step')
    solver.add_argument('--warmup_factor', type=weight, default=0.1, help='on lr at the start')
    solver.add_argument('--warmup_epochs', type=whole, default=5, help='epochs before the schedule proper')
    solver.add_argument('--warmup_method', default='linear', choices=['linear', 'constant'], help='how lr starts')
    solver.add_argument('--target_lr', type=weight, default=0.0, help='at the end, for cosine and poly')
    solver.add_argument('--power', type=weight, default=0.9, help='for exp and poly')

    speed = parser.add_argument_group('speed and memory', 'none of these changes what is computed, up to what is drawn at random')
    speed.add_argument('--image_cache', nargs='?', const='auto', default='', metavar='FOLDER',
                       help="decode and resize each image once and keep them in FOLDER (without one: in the dataset's folder)")
    yes_no(speed, '--grad_checkpoint', False, 'of each block of the encoders and the cross encoder keep the input alone, and compute the rest '
           'again for the gradient')
    speed.add_argument('--micro_batch', type=count, default=None,
                       help='samples whose activations are held at a time; the losses still compare the whole batch')
    yes_no(speed, '--compile', False, 'compile the transformer blocks (torch.compile; takes a minute at the start)')

    data = parser.add_argument_group('data')
    data.add_argument('--dataset_name', default='CUHK-PEDES', help='CUHK-PEDES, ICFG-PEDES, RSTPReid or synthpedes')
    data.add_argument('--root_dir', default='./data', help="the folder with the datasets' folders")
    data.add_argument('--batch_size', type=count, default=128, help='captions a step, each with its image')
    data.add_argument('--test_batch_size', type=count, default=512, help='samples encoded at a time by test.py')
    data.add_argument('--num_workers', type=whole, default=8, help='processes that load data')
    yes_no(data, '--img_aug', False, 'pad and crop, erase; without it training images are only flipped')
    data.add_argument('--sampler', default='random', help='random, identity or idrannum')
    data.add_argument('--num_instance', type=count, default=4, help='captions of an identity in a batch, for identity and idrannum')
    data.add_argument('--limit_train', type=count, default=None, help='train on the first so many captions only')
    yes_no(data, '--skip_broken', False, 'leave out training images that cannot be read, and say how many')

    nothing = parser.add_argument_group('without effect', 'flags of the released command lines that their code never reads, or whose code '
                                        'cannot run')
    yes_no(nothing, '--distributed', False, 'IRRA')
    nothing.add_argument('--img_res', type=int, default=16, help='A2TE')
    nothing.add_argument('--queue_size', type=int, default=65536, help='A2TE')
    nothing.add_argument('--stage', default='first', help='A2TE')
    yes_no(nothing, '--need_MAE', False, 'SEN; the loss mae needs no flag here')
    yes_no(nothing, '--need_limit', False, 'SEN')
    yes_no(nothing, '--need_pseudo', False, 'SEN')
    nothing.add_argument('--fuse_loss_weight', type=weight, default=1.0, help='SEN')
    yes_no(nothing, '--MIM', False, 'AGM')
    nothing.add_argument('--patch_dim', type=int, default=64, help='AGM')
    nothing.add_argument('--mim_loss_weight', type=weight, default=1.0, help='AGM')

    add_head_options(parser)
    parser.defaults_in_code = {name: action.default for name, action in parser.actions().items()}
    return parser


def add_head_options(parser):
    # The one place where utils looks up to model: the heads bring their own options.
    from model.heads import head_classes
    for head in head_classes():
        before = set(parser.actions())
        head.add_options(parser.add_argument_group(f"losses: {', '.join(head.names)}"))
        for name in set(parser.actions()) - before:
            parser.readers[name] = [head]
    for head in head_classes():
        for name in head.reads:
            if name in parser.readers:
                parser.readers[name].append(head)


def get_args(argv=None):
    """The options of a training run from the command line (``argv``, by default the program's own) and the recipe that it
    names. Raises :class:`UserError`; ``--help`` and ``--print_config`` print and leave."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    first = parser.parse(argv)
    given = parser.given(argv)
    check_files(first)
    resumed = options_of_resumed_run(first.resume_ckpt_file, parser) if first.resume else {}
    recipe = {**resumed, **(read_recipe(first.config_file, parser) if first.config_file else {})}
    if 'MLM' in given and 'caption_masking' not in given:
        recipe.pop('caption_masking', None)  # the flag decides it, also after a recipe that was printed in full
    parser.set_defaults(**recipe)
    args = complete(parser.parse(argv))
    if resumed:
        refuse_changes(args, complete(argparse.Namespace(**{**parser.defaults_in_code, **resumed})))
    changed = {name for name, value in recipe.items() if plain(value) != plain(parser.defaults_in_code[name])}
    args.notes = notes(args, parser, given | changed)
    if args.print_config:
        print(dump(args), end='')
        sys.exit(0)
    return args


def check_files(args):
    """What names files and folders must name some, before anything is made."""
    if args.resume and args.init_from:
        raise UserError('--init_from starts a new run and --resume goes on with one: give one of them')
    if args.resume_ckpt_file and not args.resume:
        raise UserError('--resume_ckpt_file is read with --resume, which is missing')
    for path in (args.resume_ckpt_file, args.init_from):
        if path and not os.path.isfile(path):
            raise UserError(f'there is no file {path}')
    if os.path.basename(args.name) != args.name or not args.name:
        raise UserError(f"--name '{args.name}' becomes a part of a folder's name and cannot be empty or hold a /")


def refuse_changes(args, run):
    """A resumed run goes on as it was: options that change what is computed must be those of the run."""
    changed = [f'{name} {plain(getattr(args, name))} (run: {plain(value)})' for name, value in sorted(vars(run).items())
               if name not in FREE_AT_RESUME and plain(getattr(args, name)) != plain(value)]
    if changed:
        raise UserError(f"--resume goes on with a run as it was, and these options differ: {', '.join(changed)}; leave them out, or start "
                        'a new run with --init_from')


def complete(args):
    """Settle what depends on several options: caption masking, and what a sample must carry for the active heads."""
    from model.heads import active_heads, head_classes
    heads = active_heads(args)
    args.img_size, args.milestones = tuple(args.img_size), tuple(args.milestones)
    if args.caption_masking is None:
        args.caption_masking = 'inplace' if args.MLM else 'clean'
    if args.masked_token_rate + args.masked_token_unchanged_rate > 1:
        raise UserError('--masked_token_rate and --masked_token_unchanged_rate are shares of the same tokens and add up to '
                        f'{args.masked_token_rate + args.masked_token_unchanged_rate:g}, above 1')
    for head in head_classes():
        head.settle(args, head in heads)
    args.batch_fields = tuple(sorted({field for head in heads for field in head.fields}))
    return args


def notes(args, parser, given):
    """Lines for the start of the log: options that nobody reads, and differences from the method's published recipe."""
    from model.heads import active_heads, parse_loss_names
    lines = []
    heads = active_heads(args)
    named = parse_loss_names(args.loss_names)
    lines += [f"'{head.names[0]}' is not among the losses and shapes the model all the same, by its options" for head in heads
              if head not in named]
    idle = sorted(name for name in given if name in parser.readers and not set(parser.readers[name]) & set(heads))
    if idle:
        lines.append(f"no active head reads {', '.join('--' + name for name in idle)} (--loss_names {args.loss_names})")
    nothing = sorted(name for name in given if name in WITHOUT_EFFECT and getattr(args, name) != parser.defaults_in_code[name])
    if nothing:
        lines.append(f"without effect: {', '.join('--' + name for name in nothing)}")
    path, differences = recipe_differences(args, parser)
    if differences:
        lines.append(f"differs from {path}: {', '.join(differences)}")
    return lines


def recipe_differences(args, parser):
    """The published recipe (configs/<method>/<dataset>.yaml) with this run's losses and dataset, and how the run differs."""
    from model.heads import parse_loss_names
    folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'configs')
    dataset = f'{args.dataset_name.lower()}.yaml'
    losses = set(parse_loss_names(args.loss_names))
    for method in sorted(set(os.listdir(folder)) - {'published'}):
        path = os.path.join(folder, method, dataset)
        if not os.path.exists(path):
            continue
        recipe = {**parser.defaults_in_code, **read_recipe(path, parser)}
        if set(parse_loss_names(recipe['loss_names'])) != losses:
            continue
        recipe = vars(complete(argparse.Namespace(**recipe)))
        ignored = FREE_TO_CHANGE + ('root_dir', 'loss_names', 'seed', 'MLM', 'eval_period', 'val_dataset', 'amp', 'notes')
        differences = [f'{name} {plain(getattr(args, name))} (recipe {plain(value)})' for name, value in sorted(recipe.items())
                       if name not in ignored and plain(getattr(args, name)) != plain(value)]
        return f'configs/{method}/{dataset}', differences
    return None, []


class SafeLoader(yaml.SafeLoader):
    """YAML without code. ``!!python/tuple``, which the released configs.yaml contain, is a tuple."""


SafeLoader.add_constructor('tag:yaml.org,2002:python/tuple', lambda loader, node: tuple(loader.construct_sequence(node)))
# YAML 1.1 reads 1e-5 as text; researchers mean a number.
SafeLoader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$'),
                                 list('-+0123456789'))


def read_yaml(path):
    """A YAML file's mapping. Missing, malformed, not a mapping or with Python tags: :class:`UserError`."""
    try:
        with open(path, encoding='utf-8') as file:
            content = yaml.load(file, Loader=SafeLoader)
    except FileNotFoundError:
        raise UserError(f'no config file {path}') from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'cannot read {path}: {error}') from None
    except yaml.constructor.ConstructorError as error:
        mark = error.problem_mark
        raise UserError(f'{path}, line {mark.line + 1}: {error.problem}; configs hold plain values only') from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f'{path} must hold options as `name: value` lines')
    return content


def read_recipe(path, parser):
    """A recipe's options with the flags' types. A key that is no option is an error with the nearest name. Of a run's
    configs.yaml, what describes that run alone (its folder, its resumption) is left out."""
    content = read_yaml(path)
    actions = parser.actions()
    of_a_run = os.path.basename(path) == 'configs.yaml'
    options = what_its_fork_meant(content) if of_a_run else {}
    for name, value in content.items():
        if of_a_run and (name in OF_ONE_RUN or name == 'batch_fields'):
            continue
        if name not in actions:
            raise UserError(f"{path}: unknown option '{name}'{nearest(name, actions)}")
        options[name] = typed(actions[name], value, path)
    return options


def typed(action, value, path):
    """A recipe's value as the flag would have read it."""
    if value is None and action.default is None:
        return None
    try:
        if isinstance(action, argparse.BooleanOptionalAction) or action.const in (True, False):
            if not isinstance(value, bool):
                raise argparse.ArgumentTypeError(f"'{value}' must be true or false")
            return value
        if action.nargs not in (None, '?'):
            values = list(value) if isinstance(value, (list, tuple)) else str(value).split()
            if isinstance(action.nargs, int) and len(values) != action.nargs:
                raise argparse.ArgumentTypeError(f"'{value}' must be {action.nargs} numbers")
            return tuple(action.type(str(item)) for item in values)
        if isinstance(value, (list, tuple, dict, bool)):
            raise argparse.ArgumentTypeError(f"'{value}' must be a single value")
        value = action.type(str(value)) if action.type else str(value)
        if action.choices and value not in action.choices:
            raise argparse.ArgumentTypeError(f"'{value}' must be one of {', '.join(action.choices)}")
        return value
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise UserError(f'{path}, {action.dest}: {error}') from None


def options_of_resumed_run(checkpoint, parser):
    """The options in the folder of the checkpoint that a run is resumed from; none if it keeps no configs.yaml."""
    if not checkpoint:
        raise UserError('--resume needs --resume_ckpt_file, the last.pth of the run to go on with')
    path = os.path.join(os.path.dirname(checkpoint), 'configs.yaml')
    return read_recipe(path, parser) if os.path.exists(path) else {}


def run_options(path):
    """The options of a run's configs.yaml, ours or a released one's, with what is missing there filled in as its code meant
    it. Names that Pedestal doesn't know are kept as they are: a fork may have had them."""
    parser = build_parser()
    actions = parser.actions()
    content = read_yaml(path)
    options = {**parser.defaults_in_code, **what_its_fork_meant(content)}
    for name, value in content.items():
        options[name] = typed(actions[name], value, path) if name in actions else value
    args = complete(argparse.Namespace(**options))
    args.notes = []
    return args


def what_its_fork_meant(content):
    """The options that a released configs.yaml's ``content`` lacks and that its code decided otherwise than our defaults do. Our own
    configs hold every option, and are told by ``caption_masking``."""
    if 'caption_masking' in content:
        return {}
    meant = {}
    for own_options, decided in FORKS.values():
        if own_options & set(content):
            meant.update(decided)
    if content.get('need_MAE'):  # SEN's dataset for it masks and filters every caption, whatever --MLM says
        meant.update(caption_masking='inplace', mlm_masking='noun', caption_filter=0.2)
    return {name: value for name, value in meant.items() if name not in content}


def build_test_parser(program, description):
    """What evaluating programs have in common: a run, and what may be different from when it was trained."""
    parser = Parser(prog=program, description=description)
    parser.add_argument('--config_file', required=True, help="a run's configs.yaml")
    parser.add_argument('--checkpoint', help='instead of the best.pth beside it')
    parser.add_argument('--dataset_name', help='another dataset than the run was trained on')
    parser.add_argument('--root_dir', help="the folder with the datasets' folders")
    parser.add_argument('--i2t', action='store_true', help='image-to-text retrieval, too')
    parser.add_argument('--one_by_one', action='store_true', help='also embed everything in shuffled batches and in batches of one')
    parser.add_argument('--test_batch_size', type=count, help='samples encoded at a time')
    parser.add_argument('--num_workers', type=whole, help='processes that load data')
    parser.add_argument('--device', help='auto, cpu, cuda or cuda:<n>')
    parser.add_argument('--amp', choices=['auto', 'bf16', 'fp16', 'off'], help='precision of the forward pass')
    parser.add_argument('--image_cache', nargs='?', const='auto', metavar='FOLDER',
                        help="keep decoded and resized images in FOLDER (without one: in the dataset's folder)")
    return parser


def parse_test_options(parser, argv=None):
    """The options of the run that --config_file names, under those of the command line, and ``checkpoint``, the file to test."""
    given = parser.parse(sys.argv[1:] if argv is None else argv)
    args = run_options(given.config_file)
    args.training = False
    args.trained_on = args.dataset_name
    for name, value in vars(given).items():
        if value is not None or not hasattr(args, name):
            setattr(args, name, value)
    args.image_cache = given.image_cache or ''   # a folder of the machine that trained need not be on this one
    args.checkpoint = given.checkpoint or find_checkpoint(given.config_file, args.output_dir)
    return args


def find_checkpoint(config_file, output_dir):
    """best.pth beside the configs.yaml, or in the folder that it names."""
    candidates = [os.path.join(folder, 'best.pth') for folder in (os.path.dirname(config_file), output_dir)]
    for path in candidates:
        if os.path.isfile(path):
            return path
    raise UserError(f"no best.pth: neither {' nor '.join(candidates)} is there; name one with --checkpoint")


def plain(value):
    """A value as YAML holds it: tuples as lists."""
    return list(value) if isinstance(value, (tuple, list)) else value


def as_dict(args):
    """The options as plain values, without what only describes this call."""
    left_out = ('notes', 'config_file', 'print_config')
    return {name: plain(value) for name, value in sorted(vars(args).items()) if name not in left_out}


def dump(args):
    """The options as a recipe's text."""
    left_out = ('batch_fields', 'training', 'local_rank', 'distributed', 'resume', 'resume_ckpt_file')
    options = {name: value for name, value in as_dict(args).items() if name not in left_out}
    return yaml.safe_dump(options, default_flow_style=None, sort_keys=True)
