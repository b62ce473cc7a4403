"""CLIP (Radford et al., ICML 2021), as IRRA and the methods that follow it use it."""
import torch

from model.activation import ACTIVATIONS, resolve_activation
from model.backbones import Backbone
from model.clip_model import ResidualAttentionBlock, Transformer
from model.clip_weights import build_clip, clip_without_values, empty_clip, shape_named, shape_of, weights_file
from utils.image_stats import CLIP_STATS
from utils.option_types import Effect, open_fraction
from utils.simple_tokenizer import default_tokenizer

TOKENS = frozenset({'image_tokens', 'text_tokens', 'masked_text_tokens', 'image_attention', 'text_attention',
                    "CLIP's image encoder"})


def dropout_rate(text):
    return 0.0 if float(text) == 0 else open_fraction(text)


class Clip(Backbone):
    """CLIP (Radford et al., ICML 2021): a ViT or a ResNet for images, and a transformer for captions.

    Tokens are projected into the space of the embeddings. Parameters are named ``base_model.*``.
    """

    name = 'clip'
    provides, joint_tokens = TOKENS, True
    missing_reasons = dict.fromkeys(('image_tokens', 'image_attention', "CLIP's image encoder"),
                                    'a ResNet returns one vector per image')
    alternative = 'a ViT as --pretrain_choice'

    def __init__(self, clip):
        super().__init__()
        self.base_model = clip
        self.image_width = self.text_width = self.embed_dim = clip.embed_dim
        self.vocab_size, self.mask_id = clip.vocab_size, clip.vocab_size - 3      # below start and end
        self.provides = TOKENS if clip.has_image_tokens else TOKENS - self.missing_reasons.keys()

    @staticmethod
    def add_options(parser):
        parser.add_argument('--text_dropout', type=dropout_rate, default=0.0,
                            help="dropout rate of the text encoder's attention in training (TBPS-CLIP: 0.05)")
        parser.add_argument('--text_positions', choices=['first', 'interpolated', 'stretched'],
                            default='first',
                            help="position embeddings of captions if --text_length differs from the pretrained CLIP's; "
                                 'first: its first ones; interpolated: all, interpolated linearly (TBPS-CLIP); '
                                 'stretched: its first 20 and four for each other one (Long-CLIP: --text_length 248)')
        parser.add_argument('--activation', choices=['auto', *ACTIVATIONS], default='auto',
                            effect=Effect.RESULT | Effect.RUN,
                            help="activation function of CLIP's encoders; auto: as in the configs.yaml, "
                                 'open_clip_config.json or config.json next to the weights, else quick_gelu')

    @classmethod
    def build(cls, args, state_dict=None):
        activation = resolve_activation(args)
        backbone = cls(cls.build_encoders(args, state_dict, activation))
        backbone.resolved_options = {'activation': activation, 'stride_size': args.stride_size}
        return backbone

    @staticmethod
    def build_encoders(args, state_dict, activation):
        """Build the :class:`~model.clip_model.CLIP` of :meth:`build`."""
        sizes = args.img_size, args.stride_size, args.text_length
        if state_dict is not None and not args.training:
            prefix = 'base_model.'
            clip = {name[len(prefix):]: value for name, value in state_dict.items() if name.startswith(prefix)}
            return empty_clip(shape_of(clip), *sizes, activation)
        if not args.training:
            return empty_clip(shape_named(args.pretrain_choice, args.trust_archive), *sizes, activation)
        if state_dict is not None:
            clip = clip_without_values(args.pretrain_choice, state_dict, args.config.model.weights, *sizes, activation)
        else:
            clip = build_clip(args.pretrain_choice, *sizes, args.trust_archive, text_positions=args.text_positions,
                              activation=activation)
        for block in clip.transformer.resblocks:
            block.attn.dropout = args.text_dropout
        return clip

    @classmethod
    def weights_file(cls, args):
        return weights_file(args.pretrain_choice)

    @staticmethod
    def tokenizer(args, captions=None):
        return default_tokenizer()

    @staticmethod
    def image_stats(args, dataset=None):
        return CLIP_STATS

    @staticmethod
    def matches_state_dict(state_dict):
        return 'base_model.token_embedding.weight' in state_dict

    @staticmethod
    def learning_rate(name, args):
        """Apply IRRA's rules; later ones override earlier ones."""
        lr, weight_decay = args.lr, args.weight_decay
        part, last = name.split('.')[0], name.split('.')[-1]
        if part.startswith(('cross_attn', 'cross_modal_transformer')):
            lr = args.lr * args.lr_factor
        if last.endswith('bias'):
            lr, weight_decay = args.lr * args.bias_lr_factor, args.weight_decay_bias
        if part in ('classifier', 'mlm_head', 'itm_head'):
            lr = args.lr * args.lr_factor
        return lr, weight_decay

    @property
    def encoder(self):
        return self.base_model

    def encode_image(self, images, need_map=False, routing=None):
        return self.base_model.encode_image(images, need_map, routing)

    def encode_text(self, ids, need_map=False, routing=None):
        return self.base_model.encode_text(ids, need_map, routing)

    def image_embedding(self, tokens):
        """The class token."""
        return tokens[:, 0].float()

    def text_embedding(self, tokens, ids):
        """The end-of-text token, which has the largest id."""
        return tokens[torch.arange(tokens.shape[0], device=tokens.device), ids.argmax(dim=-1)].float()

    def lengths(self, ids):
        return ids.argmax(dim=1) + 1     # id 0 is padding and also a word

    def set_grad_checkpoint(self, enabled):
        for part in self.modules():
            if isinstance(part, Transformer):
                part.grad_checkpoint = enabled

    def blocks(self):
        image_modules = set(self.base_model.visual.modules())
        return [(part, part not in image_modules)
                for part in self.modules() if isinstance(part, ResidualAttentionBlock)]

    def tunable_blocks(self):
        text = {'text': self.base_model.transformer.resblocks}
        is_resnet = not self.base_model.has_image_tokens
        return text if is_resnet else {'image': self.base_model.visual.transformer.resblocks, **text}

    def freeze_patches(self):
        self.base_model.visual.conv1.requires_grad_(False)

    def micro_batch_unsupported(self):
        if self.base_model.has_image_tokens:
            return None
        return 'a ResNet, which normalizes over all of its images: leave it out or use a ViT as --pretrain_choice'
