"""ALBEF (Li et al., NeurIPS 2021): a ViT image encoder, and BERT as text and fusion encoder. RaSa and MARS use it."""
import os
from dataclasses import dataclass

from model import albef_weights, aptm_weights, shapes
from model.backbones.bert_fusion import BertFusionBackbone
from model.bert import BertShape
from model.bert_vocabulary import find_tokenizer
from model.shapes import BERT_LAYER, bert_sizes, count_layers, count_text_only_layers, with_positions
from model.vit import VisionTransformer
from utils.errors import UserError
from utils.image_stats import CLIP_STATS
from utils.option_types import add_boolean_option

PUBLISHED = 'albef-base'
DECODER = 'visual_decoder.blocks.'
UNDECAYED = ('.bias', 'LayerNorm.weight', 'norm.weight', 'norm1.weight', 'norm2.weight', 'norm3.weight')
RASA_LOSSES, MARS_LOSSES = 'cl+pitm+mlm+prd+mrtd', '+mae+attribute'


@dataclass
class AlbefShape:
    """The sizes of an ALBEF; ``configs/albef`` holds them by name."""
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vocab_size: int
    text_width: int
    text_layers: int
    fusion_layer: int
    text_heads: int
    mlp_width: int
    positions: int
    embed_dim: int
    decoder_layers: int = 4         # of the loss mae
    decoder_heads: int = 8
    decoder_positions: int = 577
    dropout: float = 0.1            # of BERT
    init_std: float = 0.02          # of the linear layers' weights before training

    def bert(self, full_ca):
        return BertShape(self.vocab_size, self.text_width, self.text_layers, self.fusion_layer, self.text_heads,
                         self.mlp_width, self.positions, self.vision_width, self.dropout, init_std=self.init_std,
                         full_ca=full_ca)


def read_shape(name):
    """Read the shape in ``configs/albef/<name>.yaml``."""
    return shapes.read_shape(name, AlbefShape, 'albef', 'ALBEF')


def shape_of(state, source='the state dict'):
    """Return the :class:`AlbefShape` of a state dict. Heads of the encoders are 64 wide, as in every ViT and BERT.

    The number of fusion layers is half of BERT's layers if all layers have cross-attention.
    """
    try:
        width, _, patch, _ = state['visual_encoder.patch_embed.proj.weight'].shape
        fusion_layer = count_text_only_layers(state) or count_layers(state, BERT_LAYER) // 2
        has_decoder = any(name.startswith(DECODER) for name in state)
        return AlbefShape(patch_size=patch, vision_width=width,
                          vision_layers=count_layers(state, 'visual_encoder.blocks.'), vision_heads=width // 64,
                          fusion_layer=fusion_layer,
                          decoder_layers=count_layers(state, DECODER) if has_decoder else AlbefShape.decoder_layers,
                          **bert_sizes(state))
    except KeyError as error:
        raise UserError(f'{source} is no ALBEF that Pedestal knows: it lacks {error.args[0]}') from None
    except (IndexError, ValueError):
        raise UserError(f'{source} is no ALBEF that Pedestal knows: its tensors have other dimensions') from None


class Albef(BertFusionBackbone):
    """ALBEF (Li et al., NeurIPS 2021): a ViT for images, and BERT with fusion layers for captions.

    RaSa (IJCAI 2023) and MARS (ACM TOMM 2025) train it. Text tokens come from the lower layers of BERT. Caption and
    image together are read by all layers, from the caption's ids. Parameters have the official names:
    ``visual_encoder.*``, ``text_encoder.*``, ``vision_proj.*``, ``text_proj.*``.
    """

    name = 'albef'
    trims_to_longest = True
    shared_options = ('vocab_file',)
    image_encoder = 'ViT'
    accepted_files = 'a checkpoint of ALBEF, RaSa or MARS, <ViT file>+<BERT folder>'
    missing_reasons = {'image_attention': "ALBEF's encoders give no attention maps",
                       'text_attention': "ALBEF's encoders give no attention maps",
                       "CLIP's image encoder": "ALBEF's encoders are not CLIP's"}

    def __init__(self, shape, img_size, full_ca=False):
        super().__init__()
        if any(side % shape.patch_size for side in img_size):
            raise UserError(f'--img_size {img_size[0]} {img_size[1]}: height and width of the images must be multiples '
                            f"of {shape.patch_size}, ALBEF's patch size")
        self.visual_encoder = VisionTransformer(img_size, shape.patch_size, shape.vision_width, shape.vision_layers,
                                                shape.vision_heads, shape.init_std)
        self.build_text_encoder(shape, shape.bert(full_ca), shape.vision_width)

    # -- before a model exists -----------------------------------------------------------------------------------------

    @staticmethod
    def add_options(parser):
        add_boolean_option(parser, '--full_ca', False,
                           'cross-attention to the image in all layers of BERT (MARS), instead of in the upper half '
                           '(ALBEF, RaSa)')

    @classmethod
    def from_state_dict(cls, state_dict, args):
        return cls(shape_of(state_dict), args.img_size, full_ca=not count_text_only_layers(state_dict))

    @classmethod
    def load_pretrained(cls, args):
        choice = args.pretrain_choice
        if choice.startswith('scratch:'):
            shape = with_positions(read_shape(choice[len('scratch:'):]), args.text_length)
            return cls(shape, args.img_size, args.full_ca)
        if '+' in choice:
            backbone = cls(read_shape(PUBLISHED), args.img_size, args.full_ca)
            return backbone.load_vit_and_bert(*choice.split('+', 1)) if args.training else backbone
        if choice == PUBLISHED and not args.training:
            return cls(read_shape(PUBLISHED), args.img_size, args.full_ca)
        path = albef_weights.albef_file() if choice == PUBLISHED else cls.existing_file(choice)
        return cls.load_checkpoint(path, args)

    @classmethod
    def load_checkpoint(cls, path, args):
        """Build the backbone with the encoders of a checkpoint of ALBEF, RaSa or MARS, and keep its other weights.

        Raises:
            UserError: the checkpoint has cross-attention in more layers than ``--full_ca`` says, or a parameter is
                missing, unknown or of another size.
        """
        state = aptm_weights.read_weights(path)
        shape = shape_of(state, path)
        if not count_text_only_layers(state) and not args.full_ca:
            raise UserError(f'{path} has cross-attention in all layers of BERT, and --full_ca is off: give --full_ca, '
                            'or a checkpoint of ALBEF or RaSa')
        backbone = cls(shape, args.img_size, args.full_ca)
        if args.training:
            state, own = albef_weights.fit_positions(state, backbone.visual_encoder.grid), backbone.state_dict()
            encoders = {name: value for name, value in state.items() if name in own}
            backbone.head_weights = {name: value for name, value in state.items() if name not in own}
            aptm_weights.load_encoders(backbone, encoders, path, backbone.is_new_layer, family='ALBEF')
        return backbone

    def load_vit_and_bert(self, vit, bert):
        """Load the weights of a ViT and a BERT; projections and cross-attention keep their random ones."""
        bert_file = aptm_weights.bert_file(os.path.expanduser(bert))
        aptm_weights.refuse_other_activation(bert_file)
        state = {**albef_weights.read_vit(self.existing_file(vit), self.visual_encoder.grid),
                 **aptm_weights.from_bert(aptm_weights.read_weights(bert_file))}
        aptm_weights.load_encoders(self, state, f'{vit} and {bert}',
                                   lambda name: '.crossattention.' in name or '_proj.' in name[:12], family='ALBEF')
        return self

    def is_new_layer(self, name):
        """Whether a parameter is of the cross-attention that ``--full_ca`` adds to ALBEF."""
        number = name.removeprefix(BERT_LAYER).split('.')[0]
        return '.crossattention.' in name and int(number) < self.shape.fusion_layer

    @staticmethod
    def tokenizer(args, captions=None):
        """Return BERT's tokenizer (:func:`~model.bert_vocabulary.find_tokenizer`)."""
        return find_tokenizer(args, captions, read_shape)

    @staticmethod
    def image_stats(args, dataset=None):
        """Return CLIP's statistics with bicubic interpolation, as in the reference implementation of MARS."""
        return CLIP_STATS._replace(interpolation='bicubic')

    @staticmethod
    def matches_state_dict(state_dict):
        return 'visual_encoder.patch_embed.proj.weight' in state_dict

    @staticmethod
    def published_options(state_dict):
        is_mars = 'mask_token' in state_dict
        queue = {'moco_queue': state_dict['image_queue'].shape[1]} if 'image_queue' in state_dict else {}
        return {'loss_names': RASA_LOSSES + MARS_LOSSES * is_mars, 'full_ca': not count_text_only_layers(state_dict),
                **queue, 'pretrain_choice': PUBLISHED, 'preparation': 'albef', 'img_size': (384, 384),
                'text_length': 75, 'amp': 'off'}

    def learning_rate(self, name, args):
        """Return --lr, and no decay for biases and norms, the only parameters of one dimension."""
        return args.lr, 0.0 if name.endswith(UNDECAYED) else args.weight_decay

    # -- encoding ------------------------------------------------------------------------------------------------------

    def encode_image(self, images, need_map=False):
        return self.visual_encoder(images), None

    # -- speed and memory ----------------------------------------------------------------------------------------------

    def set_grad_checkpoint(self, enabled):
        self.visual_encoder.grad_checkpoint = self.text_encoder.grad_checkpoint = enabled

    def blocks(self):
        return ([(block, False) for block in self.visual_encoder.blocks]
                + [(layer, True) for layer in self.text_encoder.bert.encoder.layer])
