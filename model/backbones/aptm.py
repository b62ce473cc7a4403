"""APTM (Yang et al., ACM MM 2023): a Swin image encoder, and BERT as text and fusion encoder."""
import os
import re
from dataclasses import dataclass

from model import aptm_weights, shapes
from model.backbones.bert_fusion import BertFusionBackbone
from model.bert import BertShape
from model.bert_vocabulary import find_tokenizer
from model.shapes import BERT_LAYER, bert_sizes, count_layers, count_text_only_layers, with_positions
from model.swin import SwinTransformer, explain_misfit
from utils.errors import UserError
from utils.option_types import add_boolean_option, non_negative_float
from utils.image_stats import ImageStats

PUBLISHED = 'aptm-base'

# Mean and standard deviation of each dataset's training images, as in the reference implementation. Rounding to four
# digits moves mAP by 0.01.
STATISTICS = {
    'MALS': ((0.4416847, 0.41812873, 0.4237452), (0.3088255, 0.29743394, 0.301009)),
    'CUHK-PEDES': ((0.38901278, 0.3651612, 0.34836376), (0.24344306, 0.23738699, 0.23368555)),
    'ICFG-PEDES': ((0.30941582, 0.28956893, 0.30347288), (0.25849792, 0.24547698, 0.2366199)),
    'RSTPReid': ((0.27722597, 0.26065794, 0.3036557), (0.2609547, 0.2508087, 0.25293276)),
    'PA-100K': ((0.46485138, 0.45038012, 0.4632019), (0.25088054, 0.24609283, 0.24240193)),
}

CLEANED = ('ICFG-PEDES', 'RSTPReid')     # datasets whose captions are cleaned in evaluation only

LR_RULES = ('finetune', 'pretrain', 'none')
UNDECAYED = ('LayerNorm.weight', 'norm.weight', 'norm1.weight', 'norm2.weight')


@dataclass
class AptmShape:
    """The sizes of an APTM; ``configs/aptm`` holds them by name."""
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
        return BertShape(self.vocab_size, self.text_width, self.text_layers, self.fusion_layer, self.text_heads,
                         self.mlp_width, self.positions, self.image_width, self.dropout, init_std=self.init_std)


def read_shape(name):
    """Read the shape in ``configs/aptm/<name>.yaml``."""
    return shapes.read_shape(name, AptmShape, 'aptm', 'APTM')


def shape_of(state, source='the state dict'):
    """Return the :class:`AptmShape` of a state dict. Heads of the text encoder are 64 wide, as in every BERT."""
    try:
        width, _, patch, _ = state['vision_encoder.patch_embed.proj.weight'].shape
        stage_count = count_layers(state, 'vision_encoder.layers.')
        stages = [f'vision_encoder.layers.{stage}.blocks.' for stage in range(stage_count)]
        depths = [count_layers(state, stage) for stage in stages]
        tables = [state[f'{stage}0.attn.relative_position_bias_table'] for stage in stages]
        return AptmShape(patch_size=patch, vision_width=width, depths=tuple(depths),
                         vision_heads=tuple(table.shape[1] for table in tables),
                         window=(round(len(tables[0]) ** 0.5) + 1) // 2, fusion_layer=count_text_only_layers(state),
                         **bert_sizes(state))
    except KeyError as error:
        raise UserError(f'{source} is no APTM that Pedestal knows: it lacks {error.args[0]}') from None
    except (IndexError, ValueError):
        raise UserError(f'{source} is no APTM that Pedestal knows: its tensors have other dimensions') from None


class Aptm(BertFusionBackbone):
    """APTM (Yang et al., ACM MM 2023): a Swin transformer for images, and BERT with fusion layers for captions.

    Image tokens are the mean of the last stage's positions, followed by the positions. Text tokens come from the lower
    layers of BERT. Parameters have the official names: ``vision_encoder.*``, ``text_encoder.*``, ``vision_proj.*``,
    ``text_proj.*``.
    """

    name = 'aptm'
    image_encoder = 'Swin'
    accepted_files = 'a checkpoint, <Swin file>+<BERT folder>'
    missing_reasons = {'image_attention': "APTM's encoders give no attention maps",
                       'text_attention': "APTM's encoders give no attention maps",
                       "CLIP's image encoder": "APTM's encoders are not CLIP's"}

    def __init__(self, shape, img_size):
        super().__init__()
        reason = explain_misfit(img_size, shape.patch_size, len(shape.depths), shape.window)
        if reason:
            raise UserError(f'--img_size: {reason}')
        self.vision_encoder = SwinTransformer(img_size, shape.patch_size, shape.vision_width, shape.depths,
                                              shape.vision_heads, shape.window, shape.drop_path)
        self.build_text_encoder(shape, shape.bert, shape.image_width)

    # -- before a model exists -----------------------------------------------------------------------------------------

    @staticmethod
    def add_options(parser):
        parser.add_argument('--vocab_file', default='',
                            help="BERT's vocab.txt or its folder, for the backbones aptm and albef, or the folder of "
                                 "open_clip's tokenizer if it is not CLIP's, or clip for CLIP's tokenizer in an "
                                 "open_clip model with random weights (default: the one next to the weights; for "
                                 'scratch:<shape>, made from the training captions; else bert-base-uncased or '
                                 "open_clip's in Hugging Face's cache)")
        add_boolean_option(parser, '--rand_aug', False,
                           "APTM's augmentation of training images: random flips, RandAugment and random erasing")
        parser.add_argument('--lr_mult', type=non_negative_float, default=2.0,
                            help='factor on --lr for the layers that --lr_rule selects (APTM: 2)')
        parser.add_argument('--lr_rule', choices=LR_RULES, default='finetune',
                            help='layers whose learning rate has the factor --lr_mult; finetune: upper layers, '
                                 'projections and heads; pretrain: cross-attention; none: no layer')

    @classmethod
    def from_state_dict(cls, state_dict, args):
        return cls(shape_of(state_dict), args.img_size)

    @classmethod
    def load_pretrained(cls, args):
        choice = args.pretrain_choice
        if choice.startswith('scratch:'):
            return cls(with_positions(read_shape(choice[len('scratch:'):]), args.text_length), args.img_size)
        if choice == PUBLISHED or '+' in choice:
            backbone = cls(read_shape(PUBLISHED), args.img_size)
            return backbone.load_swin_and_bert(choice) if args.training else backbone
        state = aptm_weights.read_weights(cls.existing_file(choice))
        backbone = cls(shape_of(state, choice), args.img_size)
        if args.training:
            own = backbone.state_dict()
            backbone.head_weights = {name: value for name, value in state.items() if name not in own}
            aptm_weights.load_encoders(backbone, {name: value for name, value in state.items() if name in own}, choice)
        return backbone

    def load_swin_and_bert(self, choice):
        """Load the weights of Swin and BERT; projections and cross-attention keep their random ones."""
        swin, bert = choice.split('+', 1) if '+' in choice else (aptm_weights.swin_file(), aptm_weights.bert_folder())
        bert_file = aptm_weights.bert_file(os.path.expanduser(bert))
        aptm_weights.refuse_other_activation(bert_file)
        state = {**aptm_weights.from_swin(aptm_weights.read_weights(os.path.expanduser(swin))),
                 **aptm_weights.from_bert(aptm_weights.read_weights(bert_file))}
        aptm_weights.load_encoders(self, state, f'{swin} and {bert}',
                                   lambda name: '.crossattention.' in name or '_proj.' in name[:12])
        return self

    @staticmethod
    def tokenizer(args, captions=None):
        """Return BERT's tokenizer (:func:`~model.bert_vocabulary.find_tokenizer`)."""
        return find_tokenizer(args, captions, read_shape)

    @staticmethod
    def image_stats(args, dataset=None):
        """Return the statistics of a dataset's images, as in the reference implementation.

        Photos and datasets without published statistics get those of the first dataset that the run trains on, or
        those of CUHK-PEDES if that one has none either.
        """
        trained_on = (args.config.data.trained_on or args.dataset_name).split('+')[0]
        name = next((name for name in (dataset, trained_on) if name in STATISTICS), 'CUHK-PEDES')
        return ImageStats(*STATISTICS[name], fill=(0.0, 0.0, 0.0), interpolation='bicubic')

    @staticmethod
    def test_caption(dataset, caption):
        """Clean captions of ICFG-PEDES and RSTPReid: lower case, spaces in place of all but letters and digits."""
        if dataset not in CLEANED:
            return caption
        return ' '.join(re.sub('[^a-z0-9]+', ' ', caption.lower()).split()) or caption

    @staticmethod
    def matches_state_dict(state_dict):
        return 'vision_encoder.patch_embed.proj.weight' in state_dict

    @staticmethod
    def published_options(state_dict):
        losses = ['itc'] * ('temp' in state_dict) + ['itm'] * ('itm_head.0.weight' in state_dict)
        return {'loss_names': '+'.join(losses) or 'sdm', 'pretrain_choice': PUBLISHED, 'img_size': (384, 128),
                'text_length': 56, 'amp': 'off'}

    def learning_rate(self, name, args):
        factor = args.lr_mult if name.startswith(self.fast_prefixes(args.lr_rule)) else 1
        is_undecayed = 'bias' in name or name.endswith(UNDECAYED)
        return args.lr * factor, 0.0 if is_undecayed else args.weight_decay

    def fast_prefixes(self, rule):
        """Return the prefixes of parameters that learn at ``--lr_mult`` times the rate.

        In fine-tuning at the published size these are Swin's stages 2 and 3 and BERT's layers 4, 5, 10 and 11: the last
        two of each half.
        """
        shape = self.shape
        if rule == 'pretrain':
            fusion_layers = range(shape.fusion_layer, shape.text_layers)
            return tuple(f'{BERT_LAYER}{number}.crossattention.' for number in fusion_layers)
        if rule == 'none':
            return ()
        stages = len(shape.depths)
        last = [*range(shape.fusion_layer)[-2:], *range(shape.fusion_layer, shape.text_layers)[-2:]]
        return ('vision_proj.', 'text_proj.', 'itm_head.', 'text_encoder.cls.',
                *(f'vision_encoder.layers.{stage}.' for stage in range(stages)[-2:]),
                *(f'{BERT_LAYER}{number}.' for number in last))

    # -- encoding ------------------------------------------------------------------------------------------------------

    def encode_image(self, images, need_map=False):
        return self.vision_encoder(images), None

    # -- speed and memory ----------------------------------------------------------------------------------------------

    def set_grad_checkpoint(self, enabled):
        self.vision_encoder.grad_checkpoint = self.text_encoder.grad_checkpoint = enabled

    def blocks(self):
        return ([(block, False) for stage in self.vision_encoder.layers for block in stage.blocks]
                + [(layer, True) for layer in self.text_encoder.bert.encoder.layer])
