"""APTM (Yang et al., ACM MM 2023): a Swin image encoder, BERT as text and fusion encoder, and embeddings of their first tokens."""
import logging
import os
import re
from dataclasses import MISSING, asdict, dataclass, fields

from torch import nn

from model import aptm_weights
from model.backbones import Backbone
from model.bert import BertShape, TextEncoder
from model.swin import SwinTransformer, misfit
from utils.errors import UserError, unknown_name_error
from utils.option_types import non_negative_float, add_boolean_option
from utils.image_stats import ImageStats
from utils.safe_yaml import read_yaml
from utils.wordpiece import make_vocabulary, read_vocabulary

logger = logging.getLogger('Pedestal.model')

SHAPES_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'configs', 'aptm', 'shapes')
PUBLISHED = 'aptm-base'
VOCABULARY = 'vocab.txt'     # beside a run's configs.yaml, where it was made of the captions

# Mean and standard deviation of each dataset's training images, as released. Rounding to four digits moves mAP by 0.01.
STATISTICS = {
    'MALS': ((0.4416847, 0.41812873, 0.4237452), (0.3088255, 0.29743394, 0.301009)),
    'CUHK-PEDES': ((0.38901278, 0.3651612, 0.34836376), (0.24344306, 0.23738699, 0.23368555)),
    'ICFG-PEDES': ((0.30941582, 0.28956893, 0.30347288), (0.25849792, 0.24547698, 0.2366199)),
    'RSTPReid': ((0.27722597, 0.26065794, 0.3036557), (0.2609547, 0.2508087, 0.25293276)),
    'PA-100K': ((0.46485138, 0.45038012, 0.4632019), (0.25088054, 0.24609283, 0.24240193)),
}

CLEANED = ('ICFG-PEDES', 'RSTPReid')     # whose captions the released evaluation cleans, and its training does not

LR_RULES = ('finetune', 'pretrain', 'none')
UNDECAYED = ('LayerNorm.weight', 'norm.weight', 'norm1.weight', 'norm2.weight')
TOKENS = frozenset({'image_tokens', 'text_tokens', 'masked_text_tokens', 'fusion'})


@dataclass
class AptmShape:
    """The numbers that make an APTM; ``configs/aptm/shapes`` holds them by name."""
    patch_size: int
    vision_width: int
    depths: tuple
    vision_heads: tuple
    window: int
    vocab_size: int
    text_width: int
    text_layers: int
    fusion_layer: int
    text_heads: int
    mlp_width: int
    positions: int
    embed_dim: int
    drop_path: float = 0.1
    dropout: float = 0.1        # of BERT
    init_std: float = 0.02      # of BERT's weights before training

    @property
    def image_width(self):
        return self.vision_width * 2 ** (len(self.depths) - 1)

    @property
    def bert(self):
        return BertShape(self.vocab_size, self.text_width, self.text_layers, self.fusion_layer, self.text_heads, self.mlp_width,
                         self.positions, self.image_width, self.dropout, init_std=self.init_std)


def read_shape(name):
    """The shape in ``configs/aptm/shapes/<name>.yaml``."""
    known = [os.path.splitext(file)[0] for file in os.listdir(SHAPES_FOLDER) if file.endswith('.yaml')]
    if name not in known:
        raise unknown_name_error('APTM shape', name, known)
    path = os.path.join(SHAPES_FOLDER, f'{name}.yaml')
    entries = read_yaml(path)
    names = {field.name for field in fields(AptmShape)}
    lacking = [field.name for field in fields(AptmShape) if field.default is MISSING and field.name not in entries]
    if lacking or set(entries) - names:
        raise UserError(f'{path} must hold exactly {", ".join(sorted(names))}')
    return AptmShape(**entries)


def shape_of(state, source='the state dict'):
    """The :class:`AptmShape` that a state dict has. Heads of the text encoder are 64 wide, as all of BERT's."""
    try:
        width, _, patch, _ = state['vision_encoder.patch_embed.proj.weight'].shape
        depths = [count(state, f'vision_encoder.layers.{stage}.blocks.') for stage in range(count(state, 'vision_encoder.layers.'))]
        tables = [state[f'vision_encoder.layers.{stage}.blocks.0.attn.relative_position_bias_table'] for stage in range(len(depths))]
        layers, text = count(state, 'text_encoder.bert.encoder.layer.'), 'text_encoder.bert.'
        fusion = sum(f'{text}encoder.layer.{number}.crossattention.self.key.weight' not in state for number in range(layers))
        words = state[f'{text}embeddings.word_embeddings.weight']
        return AptmShape(
            patch_size=patch, vision_width=width, depths=tuple(depths), vision_heads=tuple(table.shape[1] for table in tables),
            window=(round(len(tables[0]) ** 0.5) + 1) // 2, vocab_size=len(words), text_width=words.shape[1], text_layers=layers,
            fusion_layer=fusion, text_heads=words.shape[1] // 64, mlp_width=len(state[f'{text}encoder.layer.0.intermediate.dense.bias']),
            positions=len(state[f'{text}embeddings.position_embeddings.weight']), embed_dim=len(state['vision_proj.bias']))
    except KeyError as error:
        raise UserError(f'{source} is no APTM that Pedestal knows: it lacks {error.args[0]}') from None
    except (IndexError, ValueError):
        raise UserError(f'{source} is no APTM that Pedestal knows: its tensors have other dimensions') from None


def count(state, prefix):
    """How many numbers follow ``prefix`` in the names."""
    numbers = {name[len(prefix):].split('.')[0] for name in state if name.startswith(prefix)}
    if not numbers:
        raise KeyError(prefix + '*')
    return len(numbers)


class Aptm(Backbone):
    """Image tokens are the mean of the last stage's places and those; text tokens are the lower BERT layers'. The parameters have the
    released names: ``vision_encoder.*``, ``text_encoder.*``, ``vision_proj.*``, ``text_proj.*``.

    ``fuse``, ``read`` and ``predict`` are for heads with a pass of their own: the fusion layers, and words from their tokens.
    """

    name = 'aptm'
    provides = TOKENS
    missing_reasons = {**dict.fromkeys(('image_attention', 'text_attention'), "APTM's encoders give no attention maps"),
             "CLIP's image encoder": "APTM's encoders are not CLIP's"}

    def __init__(self, shape, img_size):
        super().__init__()
        reason = misfit(img_size, shape.patch_size, len(shape.depths), shape.window)
        if reason:
            raise UserError(f'--img_size: {reason}')
        self.shape, self.pad, self.mask_id = shape, 0, None
        self.vision_encoder = SwinTransformer(img_size, shape.patch_size, shape.vision_width, shape.depths, shape.vision_heads,
                                              shape.window, shape.drop_path)
        self.text_encoder = TextEncoder(shape.bert)
        self.vision_proj = nn.Linear(shape.image_width, shape.embed_dim)
        self.text_proj = nn.Linear(shape.text_width, shape.embed_dim)
        self.image_width, self.text_width, self.embed_dim = shape.image_width, shape.text_width, shape.embed_dim
        self.vocab_size = shape.vocab_size
        self.head_weights = {}      # of a whole model's checkpoint that training starts from: the heads' parameters

    # -- before there is a model ------------------------------------------------------------------------------------------------

    @staticmethod
    def add_options(parser):
        parser.add_argument('--vocab_file', default='', help="BERT's vocab.txt or its folder; '': the run's own, made of the captions for "
                            "a scratch: shape, or bert-base-uncased in Hugging Face's cache")
        add_boolean_option(parser, '--rand_aug', False, "APTM's augmentation of training images: flips, RandAugment, erasing")
        parser.add_argument('--lr_mult', type=non_negative_float, default=2.0, help='on lr for some layers of APTM, see --lr_rule')
        parser.add_argument('--lr_rule', choices=LR_RULES, default='finetune',
                            help='which layers of APTM have --lr_mult: upper layers, projections and heads (finetune), or cross-attention '
                            '(pretrain)')

    @staticmethod
    def validate_options(args):
        """Masking and filtering of captions by CLIP's ids are CLIP's: here the loss mlm masks a copy of its own."""
        for name, usual in (('caption_masking', 'clean'), ('mlm_masking', 'random'), ('caption_filter', 0.0)):
            if getattr(args, name) != usual:
                raise UserError(f"--{name} {getattr(args, name)} is for captions in CLIP's ids, and --backbone is aptm, whose mlm "
                                'masks whole words: leave it out')

    @classmethod
    def build(cls, args, state_dict=None):
        # A whole model's file can bring heads that the weights to come lack.
        has_file = args.training and os.path.isfile(os.path.expanduser(args.pretrain_choice))
        backbone = cls.started(args) if state_dict is None or has_file else cls(shape_of(state_dict), args.img_size)
        backbone.refuse_vocabulary(args)
        logger.info('activation of the encoders: gelu (Swin and BERT have no other)')
        return backbone

    def refuse_vocabulary(self, args):
        """Raise UserError where the vocabulary has words that the model hasn't."""
        try:
            words = self.tokenizer(args).vocab_size
        except UserError:      # there is none, which whoever reads captions says
            return
        if words > self.vocab_size:
            raise UserError(f'the vocabulary has {words:,} word pieces, and the model {self.vocab_size:,}: name the vocabulary that its '
                            'weights were trained with by --vocab_file')

    @classmethod
    def started(cls, args):
        """With the weights of ``args.pretrain_choice``."""
        choice = args.pretrain_choice
        if choice.startswith('scratch:'):
            return cls(longer(read_shape(choice[len('scratch:'):]), args.text_length), args.img_size)
        if choice == PUBLISHED or '+' in choice:
            backbone = cls(read_shape(PUBLISHED), args.img_size)
            return backbone.from_two_files(choice) if args.training else backbone
        state = aptm_weights.read_weights(existing(choice))
        backbone = cls(shape_of(state, choice), args.img_size)
        if args.training:
            own = backbone.state_dict()
            backbone.head_weights = {name: value for name, value in state.items() if name not in own}
            aptm_weights.load_encoders(backbone, {name: value for name, value in state.items() if name in own}, choice)
        return backbone

    def from_two_files(self, choice):
        """Swin's and BERT's own weights; the projections and cross-attention stay as they were made."""
        swin, bert = choice.split('+', 1) if '+' in choice else (aptm_weights.swin_file(), aptm_weights.bert_folder())
        bert_file = aptm_weights.bert_file(os.path.expanduser(bert))
        aptm_weights.refuse_other_activation(bert_file)
        state = {**aptm_weights.from_swin(aptm_weights.read_weights(os.path.expanduser(swin))),
                 **aptm_weights.from_bert(aptm_weights.read_weights(bert_file))}
        aptm_weights.load_encoders(self, state, f'{swin} and {bert}', lambda name: '.crossattention.' in name or '_proj.' in name[:12])
        return self

    @staticmethod
    def tokenizer(args, captions=None):
        """BERT's vocabulary: the file that is named, the run's own, that of the weights it starts from, one made of the training captions
        for a ``scratch:`` shape, or bert-base-uncased's. A new run keeps a copy of what is not to be had everywhere."""
        if args.vocab_file:
            return read_vocabulary(os.path.expanduser(args.vocab_file))
        files = [file for file in (getattr(args, 'checkpoint', ''), getattr(args, 'init_from', ''), args.pretrain_choice)
                 if file and os.path.isfile(os.path.expanduser(file))]
        folders = [args.output_dir, *(os.path.dirname(os.path.expanduser(file)) for file in files)]
        for path in (os.path.join(folder, VOCABULARY) for folder in folders):
            if os.path.isfile(path):
                found = read_vocabulary(path)
                if captions is not None and path != os.path.join(args.output_dir, VOCABULARY):
                    found.save(os.path.join(args.output_dir, VOCABULARY))
                return found
        if args.pretrain_choice.startswith('scratch:') and captions is not None:
            made = make_vocabulary(captions(), read_shape(args.pretrain_choice[len('scratch:'):]).vocab_size)
            made.save(os.path.join(args.output_dir, VOCABULARY))
            return made
        if args.pretrain_choice.startswith('scratch:'):
            raise UserError(f"there is no vocabulary: neither {' nor '.join(os.path.join(folder, VOCABULARY) for folder in folders)} is "
                            'there; name the one that the run was trained with by --vocab_file')
        return read_vocabulary(aptm_weights.bert_folder())

    @staticmethod
    def image_stats(args, dataset=None):
        """Each dataset's images have that dataset's statistics, as released.

        Photos, and datasets without published statistics, have those of the first dataset that the run trains on, or
        CUHK-PEDES' if that one has none either.
        """
        trained_on = (getattr(args, 'trained_on', None) or args.dataset_name).split('+')[0]
        name = next((name for name in (dataset, trained_on) if name in STATISTICS), 'CUHK-PEDES')
        return ImageStats(*STATISTICS[name], fill=(0.0, 0.0, 0.0), interpolation='bicubic')

    @staticmethod
    def test_caption(dataset, caption):
        """As released: of ICFG-PEDES and RSTPReid in lower case, with spaces for all but letters and digits."""
        if dataset not in CLEANED:
            return caption
        return ' '.join(re.sub('[^a-z0-9]+', ' ', caption.lower()).split()) or caption

    @staticmethod
    def matches_state_dict(state_dict):
        return 'vision_encoder.patch_embed.proj.weight' in state_dict

    @staticmethod
    def released_options(state_dict):
        losses = ['itc'] * ('temp' in state_dict) + ['itm'] * ('itm_head.0.weight' in state_dict)
        return {'loss_names': '+'.join(losses) or 'sdm', 'pretrain_choice': PUBLISHED, 'img_size': (384, 128), 'text_length': 56,
                'amp': 'off'}

    def learning_rate(self, name, args):
        bare = 'bias' in name or name.endswith(UNDECAYED)
        return args.lr * (args.lr_mult if name.startswith(self.multiplied(args.lr_rule)) else 1), 0.0 if bare else args.weight_decay

    def multiplied(self, rule):
        """What the names of parameters begin with that learn at ``--lr_mult`` times the rate. Of the published sizes these are, in
        fine-tuning, Swin's stages 2 and 3 and BERT's layers 4, 5, 10 and 11: the last two of each half."""
        shape, layer = self.shape, 'text_encoder.bert.encoder.layer.'
        if rule == 'pretrain':
            return tuple(f'{layer}{number}.crossattention.' for number in range(shape.fusion_layer, shape.text_layers))
        if rule == 'none':
            return ()
        stages, last = len(shape.depths), [*range(shape.fusion_layer)[-2:], *range(shape.fusion_layer, shape.text_layers)[-2:]]
        return ('vision_proj.', 'text_proj.', 'itm_head.', 'text_encoder.cls.',
                *(f'vision_encoder.layers.{stage}.' for stage in range(stages)[-2:]), *(f'{layer}{number}.' for number in last))

    # -- encoding ---------------------------------------------------------------------------------------------------------------

    def encode_image(self, images, need_map=False):
        return self.vision_encoder(images), None

    def encode_text(self, ids, need_map=False):
        return self.text_encoder.encode(ids, self.mask_of(ids)), None

    def mask_of(self, ids):
        """1 at words and 0 at padding: [B, L] -> [B, L]."""
        return (ids != self.pad).long()

    def image_embedding(self, tokens):
        return self.vision_proj(tokens[:, 0]).float()

    def text_embedding(self, tokens, ids):
        return self.text_proj(tokens[:, 0]).float()

    def lengths(self, ids):
        return (ids != self.pad).sum(dim=1)

    def fuse(self, text_tokens, mask, image_tokens, first_only=False):
        """A caption's tokens with an image's: [B, L, text_width], [B, L], [B, N, image_width] -> [B, L, text_width], or [B, 1, text_width]
        where the first is all that is read."""
        return self.text_encoder.fuse(text_tokens, mask, image_tokens, first_only)

    def read(self, ids, mask, image_tokens):
        """All layers on a caption's ids: [B, L], [B, L], [B, N, image_width] -> [B, L, text_width]."""
        return self.text_encoder.read(ids, mask, image_tokens)

    def predict(self, tokens):
        """[M, text_width] -> the words' scores [M, vocab_size]"""
        return self.text_encoder.predict(tokens)

    # -- the switches for speed and memory ----------------------------------------------------------------------------------------

    def set_grad_checkpoint(self, enabled):
        self.vision_encoder.grad_checkpoint = self.text_encoder.grad_checkpoint = enabled

    def blocks(self):
        return ([(block, False) for stage in self.vision_encoder.layers for block in stage.blocks]
                + [(layer, True) for layer in self.text_encoder.bert.encoder.layer])


def longer(shape, text_length):
    """The shape with room for captions of ``text_length`` tokens."""
    return AptmShape(**{**asdict(shape), 'positions': max(shape.positions, text_length)})


def existing(choice):
    path = os.path.expanduser(choice)
    if not os.path.isfile(path):
        raise UserError(f'--pretrain_choice: there is no file {choice}; the backbone aptm takes a checkpoint, <Swin file>+<BERT folder>, '
                        f'{PUBLISHED}, or scratch:<shape> of configs/aptm/shapes')
    return path
