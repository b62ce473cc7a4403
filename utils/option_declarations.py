"""The declarations of options: those that every run has, and the parsers of train.py and test.py.

The defaults are IRRA's. Heads, backbones and datasets declare their own (:mod:`utils.option_providers`).
"""
from utils.option_providers import option_providers
from utils.option_types import (Effect, add_boolean_option, bounded_number, fraction, fraction_below_one,
                                non_negative_float, non_negative_int, positive_float, positive_int, positive_int_up_to)
from utils.parser import Parser
from utils.rerank_options import SETTINGS, add_rerank_options

# The options that --help shows; --help all shows all.
EVERYDAY_OPTIONS = (
    'config_file', 'print_config', 'dry_run', 'name', 'output_dir', 'resume', 'init_from', 'seed', 'device', 'amp',
    'dataset_name', 'root_dir', 'batch_size', 'num_workers', 'img_aug', 'val_dataset',
    'loss_names', 'MLM', 'backbone', 'pretrain_choice', 'img_size', 'text_length',
    'num_epoch', 'lr', 'optimizer', 'image_cache', 'micro_batch', 'grad_checkpoint')
EVERYDAY_TEST_OPTIONS = (
    'config_file', 'checkpoint', 'pretrain_choice', 'dataset_name', 'root_dir', 'split', 'i2t', 'rerank',
    'test_batch_size', 'num_workers', 'device', 'amp', 'image_cache')
BREAKDOWNS = ('attributes', 'words')

# Options of test.py that a tool may not read: those of re-ranking, of the report, and of the evaluated split.
RERANK_OPTIONS = ('rerank', *(flag[2:] for flag in SETTINGS))
REPORT_OPTIONS = ('i2t', 'one_by_one')
SPLIT_OPTIONS = ('columns', 'root_dir', 'split', 'distractors', 'num_workers', 'image_cache')

# Short names for the declarations below.
NONE, RESULT, RUN, INVOCATION = Effect.NONE, Effect.RESULT, Effect.RUN, Effect.INVOCATION
CHANGEABLE_ON_RESUME, NOT_IN_RECIPE = Effect.CHANGEABLE_ON_RESUME, Effect.NOT_IN_RECIPE
IGNORED, COMMAND_LINE_ONLY = Effect.IGNORED, Effect.COMMAND_LINE_ONLY
number_of_workers = bounded_number(int, at_least=0, at_most=1024)
caption_length = bounded_number(int, at_least=3, at_most=10_000)
seed_number = bounded_number(int, at_least=0, at_most=2 ** 63 - 1)


# -- parsers ---------------------------------------------------------------------------------------------------------

def build_parser():
    """Build train.py's parser, with the options of all providers."""
    parser = Parser(prog='train.py', abbreviations=True, usage='%(prog)s [--config_file RECIPE] [--<option> VALUE ...]',
                    description='Train a text-to-image person retrieval model.')
    for add_options in CORE_OPTIONS:
        add_options(parser)
    for provider in option_providers():
        provider.add_options(parser)
    add_ignored_options(parser)
    parser.run_options = {'init_from', 'resume_ckpt_file'}
    parser.everyday_options = EVERYDAY_OPTIONS
    parser.advanced_options = set(parser.actions()) - set(EVERYDAY_OPTIONS)
    parser.unabbreviated_flags |= {'--val_rerank', *SETTINGS}   # --val is --val_dataset in published commands
    parser.defaults_in_code = {name: action.default for name, action in parser.actions().items()}
    return parser


def build_core_parser():
    """Build a parser with the options of this file only, so that a provider can avoid their names."""
    parser = Parser()
    for add_options in (*CORE_OPTIONS, add_ignored_options):
        add_options(parser)
    return parser


def build_test_parser(program, description, excluded_options=()):
    """Build the parser that test.py and other tools share: a trained run, or a pretrained CLIP without a run.

    Args:
        program: the program's file, such as 'test.py'.
        description: the text above the options on the help page.
        excluded_options: names of the options that the program does not read, such as :data:`REPORT_OPTIONS`.
    """
    parser = Parser(prog=program, description=description, excluded_options=excluded_options,
                    usage='%(prog)s --config_file RUN [--<option> VALUE ...]')
    run = parser.add_argument_group('trained model')
    run.add_argument('--config_file', metavar='RUN',
                     help="configs.yaml of the run, its folder, or <dataset>/<name> or <name> of a run below logs, "
                          'which is the newest one of this name')
    run.add_argument('--checkpoint', help='checkpoint to evaluate (default: best.pth next to configs.yaml)')
    run.add_argument('--base_weights', metavar='FILE',
                     help='file of the pretrained weights that a run with --tuning needs (default: the file that the '
                          'run started from)')
    run.add_argument('--vocab_file',
                     help="BERT's vocab.txt or its folder, for --backbone aptm and albef, or the folder of open_clip's "
                          "tokenizer (default: the run's)")
    run.add_argument('--device', help='auto, cpu, mps, cuda or cuda:<n> (default: as in configs.yaml)')
    run.add_argument('--amp', choices=['auto', 'bf16', 'fp16', 'off'],
                     help='precision of the forward pass (default: as in configs.yaml)')
    data = parser.add_argument_group('data')
    data.add_argument('--dataset_name', help="dataset to evaluate on (default: the run's)")
    data.add_argument('--columns', nargs='+', metavar='ROLE=COLUMN',
                      help="names of a table's columns: image=... caption=... id=... split=... back_translation=... "
                           'second_caption=...')
    data.add_argument('--root_dir', help="folder of the datasets' folders (default: as in configs.yaml)")
    data.add_argument('--split', choices=['test', 'val', 'train'], default='test',
                      help='split to evaluate; train and val show over- and underfitting')
    data.add_argument('--distractors', metavar='FOLDER',
                      help='folder of images without captions that enlarge the gallery (default: none)')
    data.add_argument('--test_batch_size', type=positive_int,
                      help='number of images or captions to encode at a time (default: as in configs.yaml)')
    data.add_argument('--num_workers', type=number_of_workers,
                      help='number of processes that load data (default: as in configs.yaml)')
    data.add_argument('--image_cache', nargs='?', const='auto', metavar='FOLDER',
                      help='folder for resized images, each of which is decoded only once; without FOLDER: image_cache '
                           "in the dataset's folder (default: no cache)")
    evaluation = parser.add_argument_group('evaluation')
    evaluation.add_argument('--i2t', action='store_true', help='also evaluate image-to-text retrieval')
    evaluation.add_argument('--one_by_one', action='store_true',
                            help='also evaluate embeddings from shuffled batches and from batches of one sample')
    add_rerank_options(evaluation, '--rerank', "method that orders each caption's images again, in a table of its own")
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
    parser.run_options = {'config_file'}
    parser.everyday_options = EVERYDAY_TEST_OPTIONS
    parser.advanced_options = set(parser.actions()) - set(EVERYDAY_TEST_OPTIONS)
    return parser


def add_breakdown_options(parser):
    """Add the options of results by attribute and by word (:mod:`processor.breakdown`) to a parser."""
    breakdown = parser.add_argument_group('results by groups of captions')
    breakdown.add_argument('--by', nargs='+', choices=BREAKDOWNS, default=[], effect=NONE,
                           help='groups of captions whose results are also printed; attributes: captions with a color, '
                                'a garment or another word of the lexicon; words: captions with a word that differ '
                                'from all others')
    breakdown.add_argument('--lexicon', metavar='FILE', effect=NONE,
                           help='YAML file with the words of --by attributes and their synonyms (default: '
                                'configs/lexicon/english.yaml)')


# -- options of every run --------------------------------------------------------------------------------------------

def add_run_options(parser):
    run = parser.add_argument_group('run')
    run.add_argument('--config_file', default='', effect=INVOCATION,
                     help='recipe: a YAML file of options by name, or the name of a recipe of Pedestal, such as '
                          'irra; flags override it')
    add_boolean_option(run, '--print_config', False, 'print all options as a recipe, and exit', effect=INVOCATION)
    add_boolean_option(run, '--dry_run', False, 'trial of the run: two steps, an evaluation of a few samples, a '
                       'checkpoint and its resumption in a temporary folder, then estimates of time and memory',
                       effect=INVOCATION)
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
    add_rerank_options(run, '--val_rerank', 'method that orders the images of the evaluations during training again; '
                       'the best epoch is that with the highest re-ranked Rank-1', RESULT | NOT_IN_RECIPE)
    add_boolean_option(run, '--resume', False, "resume the run of --resume_ckpt_file in its folder; --resume <run's "
                       'folder> sets both', effect=INVOCATION)
    run.add_argument('--resume_ckpt_file', default='', effect=INVOCATION,
                     help="last.pth of the run to resume, its folder, or its name below logs, such as CUHK-PEDES/irra")
    run.add_argument('--init_from', '--finetune', default='', effect=RESULT | RUN, metavar='FILE',
                     help='checkpoint whose weights initialize a new run, or a run whose best one does (--finetune: '
                          'its name in FMFA)')
    run.add_argument('--base_weights', default='', effect=INVOCATION, metavar='FILE',
                     help="file of the pretrained weights that a tuned run's checkpoint needs, if --init_from names "
                          'such a checkpoint (default: the file that the run started from)')
    run.add_argument('--save_steps', type=bounded_number(int, at_least=0, at_most=10 ** 9), default=1000, effect=NONE,
                     help='number of training steps between two writes of last.pth; 0: only after each epoch')
    run.add_argument('--save_period', type=non_negative_int, default=0, effect=NONE,
                     help='number of epochs between two checkpoints epoch_<n>.pth; 0: none')
    run.add_argument('--keep', default='all', choices=['all', 'best', 'last'], effect=NONE,
                     help='checkpoints of a finished run; best: without last.pth, which is three times as large and '
                          'which a longer run would need; last: without best.pth')
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
    data.add_argument('--num_workers', type=number_of_workers, default=8, effect=NONE,
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
                           'it in proportion to their sizes. The run is a real one; --dry_run tries a run and keeps '
                           'nothing')
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
    model.add_argument('--freeze', nargs='+', default=None, metavar='PATTERN',
                       help="parameters that do not train: patterns of names in checkpoints, such as 'visual.*' or "
                            "'transformer.resblocks.[0-5].*' (default: none)")


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
                        help='factor on --lr for new parts: cross-modal encoder, classifier, mlm_head, itm_head; on '
                             'the backbone albef prd_head and mrtd_head (RaSa: 10)')
    solver.add_argument('--bias_lr_factor', type=non_negative_float, default=2.0, help='factor on --lr for biases')
    solver.add_argument('--momentum', type=fraction, default=0.9, help='momentum of SGD')
    solver.add_argument('--weight_decay', type=non_negative_float, default=4e-5,
                        help='weight decay of all parameters but biases')
    solver.add_argument('--weight_decay_bias', type=non_negative_float, default=0.0, help='weight decay of biases')
    solver.add_argument('--alpha', type=fraction_below_one, default=0.9, help='first beta of Adam and AdamW')
    solver.add_argument('--beta', type=fraction_below_one, default=0.999, help='second beta of Adam and AdamW')
    solver.add_argument('--lrscheduler', default='cosine',
                        choices=['step', 'exp', 'poly', 'cosine', 'linear',
                                 'epoch_cosine', 'step_cosine', 'step_linear', 'step_stairs'],
                        help='schedule of the learning rate; it changes after each epoch, and with step_... in each '
                             'step (TBPS-CLIP: step_cosine; APTM: step_linear, or step_stairs with two drops; RaSa: '
                             'epoch_cosine, a cosine by epoch after a warm-up in steps)')
    solver.add_argument('--milestones', type=positive_int, nargs='+', default=(20, 50),
                        help='epochs after which --gamma multiplies the learning rate, for --lrscheduler step')
    solver.add_argument('--gamma', type=non_negative_float, default=0.1,
                        help='factor on the learning rate at each milestone, for --lrscheduler step')
    solver.add_argument('--warmup_steps', type=non_negative_int, default=0,
                        help='number of warm-up steps, for --lrscheduler step_linear and epoch_cosine')
    solver.add_argument('--warmup_lr', type=non_negative_float, default=1e-5,
                        help='learning rate of all parameters in the warm-up steps of --lrscheduler epoch_cosine '
                             '(RaSa: 1e-5)')
    solver.add_argument('--warmup_factor', type=non_negative_float, default=0.1,
                        help='factor on the learning rate at the start of the warm-up epochs')
    solver.add_argument('--warmup_epochs', type=non_negative_int, default=5,
                        help='number of warm-up epochs, for all --lrscheduler but epoch_cosine, step_linear and '
                             'step_stairs')
    solver.add_argument('--warmup_method', default='linear', choices=['linear', 'constant'],
                        help='course of the learning rate during the warm-up epochs')
    solver.add_argument('--target_lr', type=non_negative_float, default=0.0,
                        help='learning rate at the end, for --lrscheduler cosine, epoch_cosine, step_cosine and poly')
    solver.add_argument('--power', type=non_negative_float, default=0.9,
                        help='base of the exponential, for --lrscheduler exp and poly')
    solver.add_argument('--clip_grad_norm', type=positive_float, default=None,
                        help='largest L2 norm of all gradients together; larger gradients are scaled down (default: no '
                             'limit)')
    solver.add_argument('--accumulate', type=positive_int, default=1,
                        help='number of batches whose gradients are averaged for one update; losses compare only the '
                             'samples of one batch')
    solver.add_argument('--ema', type=fraction_below_one, default=None, metavar='DECAY',
                        help='decay per update of an exponential moving average of the weights, which is evaluated and '
                             'saved instead of the weights, such as 0.999 (default: no average)')
    solver.add_argument('--early_stop', type=positive_int, default=None, metavar='EPOCHS',
                        effect=RESULT | CHANGEABLE_ON_RESUME | NOT_IN_RECIPE,
                        help='number of epochs without a better evaluation after which the run ends (default: it ends '
                             'after --num_epoch)')


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
    captions.add_argument('--mlm_masking', choices=['random', 'attention', 'noun', 'saliency'], default='random',
                          help='tokens to mask: random; those that the text encoder attends to (AGM); nouns and '
                               'adjectives more often (SEN); words that decided the similarity to the image in the '
                               'epoch before (GA-DMS)')
    captions.add_argument('--caption_filter', type=fraction, default=0.0,
                          help='fraction of the training captions that keep only nouns, adjectives and pronouns '
                               '(SEN: 0.2)')
    captions.add_argument('--weak_positive_rate', type=fraction, default=0.0,
                          help='probability that a training pair gets a random caption of the same person (RaSa: 0.1)')
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
