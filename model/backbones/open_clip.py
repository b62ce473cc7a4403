"""The two-tower models of the open_clip library (SigLIP, EVA-CLIP, DFN, ...; Ilharco et al., 2021), which only this backbone needs."""
import copy
import hashlib
import json
import logging
import os

import torch
from torch import nn

from model.activation import read_activation
from model.backbones import Backbone
from model.backbones.clip import Clip
from model.clip_weights import DROPPED, load_entries, tensors_in
from utils.checkpoint import load_weights
from utils.errors import UserError, unknown_name_error
from utils.iotools import atomic_write, parse_json
from utils.image_stats import ImageStats
from utils.weight_names import to_own_names

logger = logging.getLogger('Pedestal.model')

DESCRIPTION = 'open_clip_config.json'   # beside a run's configs.yaml, in the library's own format: the model's shape and its images
PREPARED = ('mean', 'std', 'interpolation')
TOKENS = frozenset({'image_tokens', 'text_tokens', 'masked_text_tokens'})
OF_CLIP = "is for the CLIP of --backbone clip, and --backbone is open_clip: leave it out"


def library():
    try:
        import open_clip
    except ImportError:
        raise UserError('--backbone open_clip needs the open_clip library: pip install open_clip_torch') from None
    return open_clip


# ------------------------------------------------------------------------------------------------ which model, and what it looks like

def parse(choice):
    """``'ViT-B-16:laion2b_s34b_b88k'`` -> (model, tag or file). Without the second: '', random weights."""
    model, _, weights = choice.removeprefix('scratch:').partition(':')
    return model.replace('/', '-'), weights


def describe(args):
    """``{'model_cfg': ..., 'preprocess_cfg': ...}`` of the model that ``args`` name: as the run has recorded it, else as the library
    has it. Raises UserError for a model that it doesn't know."""
    checkpoint = getattr(args, 'checkpoint', None)
    for folder in [*([os.path.dirname(checkpoint)] if checkpoint else []), args.output_dir]:
        path = os.path.join(folder, DESCRIPTION)
        if os.path.isfile(path):
            return read_description(path)
    (model, weights), known = parse(args.pretrain_choice), library()
    config = known.get_model_config(model)
    if config is None:
        raise unknown_name_error('open_clip model', model, known.list_models())
    tag = known.get_pretrained_cfg(model, weights)
    if 'multimodal_cfg' in config:
        raise UserError(f'--pretrain_choice {model} has a text decoder beside its two towers, which nothing here trains: choose another '
                        'model')
    if activation(args, config, tag)[0] == 'quick_gelu':
        config['quick_gelu'] = True
    return {'model_cfg': config, 'preprocess_cfg': preparation(known, model, tag)}


def activation(args, config, tag):
    """(the activation that the weights were trained with, who says so): their tag, the files next to them, or the model."""
    model, weights = parse(args.pretrain_choice)
    named = 'quick_gelu' if config.get('quick_gelu') else 'gelu'
    if tag:
        return 'quick_gelu' if tag.get('quick_gelu') else named, f'the tag {weights} says so'
    found, file = read_activation(weights) if weights else (None, None)
    if found == 'gelu' != named:
        raise UserError(f'--pretrain_choice {model}:{weights}: the model has {named} and {file} says {found}; name the model '
                        f"that the weights are of, such as {model.removesuffix('-quickgelu')}")
    return (found, f'{file} says so') if found else (named, f"assumed: open_clip's {model} has it")


def preparation(known, model, tag):
    """The mean, deviation and interpolation of a tag. Without one (a file, random weights): what all tags of the model share, such as
    SigLIP's, else the library's usual ones, CLIP's."""
    usual = {'mean': known.OPENAI_DATASET_MEAN, 'std': known.OPENAI_DATASET_STD, 'interpolation': 'bicubic'}
    tags = [tag] if tag else [known.get_pretrained_cfg(model, name) for name in known.list_pretrained_tags_by_model(model)]
    found = [{**usual, **{key: value for key, value in one.items() if key in PREPARED and value}} for one in tags]
    chosen = found[0] if found and all(one == found[0] for one in found) else usual
    return {**chosen, 'interpolation': 'bilinear' if chosen['interpolation'] == 'bilinear' else 'bicubic'}


def read_description(path):
    try:
        with open(path, encoding='utf-8') as file:
            content = parse_json(file.read())
        content['model_cfg']['vision_cfg'], content['model_cfg']['text_cfg']
        return {'model_cfg': content['model_cfg'], 'preprocess_cfg': {key: content['preprocess_cfg'][key] for key in PREPARED}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} describes no model of open_clip ({type(error).__name__}: {error}): delete it, and the library is asked '
                        'for the model that --pretrain_choice names') from None


def pretrained_file(model, weights):
    """The path of a tag's weights, downloaded if they aren't there, or of a file."""
    known, path = library(), os.path.expanduser(weights)
    tag = known.get_pretrained_cfg(model, weights)
    if not tag and not os.path.isfile(path):
        raise unknown_name_error(f'tag of {model}, and no file', weights, [*known.list_pretrained_tags_by_model(model), 'a file'])
    try:
        return known.download_pretrained(tag) if tag else path
    except Exception as error:       # the library's ways to the network raise nearly anything
        raise UserError(f'--pretrain_choice {model}:{weights}: open_clip cannot download the weights ({brief(error)}); give '
                        f'{model}:<file> if you have them, or {model} alone for random weights') from None


def brief(error):
    """An exception in one short line."""
    words = ' '.join(str(error).split()) or type(error).__name__
    return words if len(words) <= 160 else f'{words[:160]}...'


# --------------------------------------------------------------------------------------------------------------------- captions

class BytePairs:
    """The library's tokenizer of CLIP's byte pairs. The last pair's id is the mask's, as IRRA has it; the end has the largest id."""
    pad, continues = 0, frozenset()

    def __init__(self, **settings):
        from open_clip.tokenizer import SimpleTokenizer
        self.library = SimpleTokenizer(**settings)
        self.start, self.end = self.library.sot_token_id, self.library.eot_token_id
        self.mask, self.vocab_size = self.start - 1, self.library.vocab_size
        self.key = f'open_clip pairs {sorted(settings.items())}'

    def encode(self, caption):
        return self.library.encode(caption)

    def encode_all(self, captions):
        return [self.encode(caption) for caption in captions]

    def add_special_tokens(self, ids, length):
        return cut([self.start, *ids, self.end], length)

    def lengths(self, tokens):
        """How many tokens each caption has, start and end included: [S, L] -> [S]."""
        return tokens.argmax(dim=1) + 1

    def decode(self, ids):
        return self.library.decode([int(number) for number in ids])


class HuggingFace:
    """The library's tokenizer of another vocabulary, such as SigLIP's: ``encode`` gives ids with the special ones in their places. It
    has no mask, for what is content cannot be told from CLIP's order of ids."""
    mask, continues = None, frozenset()

    def __init__(self, name, **settings):
        try:
            from open_clip.tokenizer import HFTokenizer
            self.library = HFTokenizer(name, **settings)
        except ImportError:
            raise UserError(f'the tokenizer {name} needs the transformers library: pip install transformers') from None
        except Exception as error:     # the ways to the network raise nearly anything
            raise UserError(f"the tokenizer {name} is not in Hugging Face's cache and cannot be downloaded ({brief(error)}): fetch it "
                            "where there is a network, or choose a model with CLIP's own") from None
        inner = self.library.tokenizer
        self.pad, self.end = inner.pad_token_id or 0, inner.eos_token_id
        self.start = inner.bos_token_id if inner.cls_token_id is None else inner.cls_token_id
        self.vocab_size = len(inner)
        words = json.dumps([name, sorted(settings.items()), sorted(inner.get_vocab().items())], default=str)
        self.key = hashlib.sha256(words.encode()).hexdigest()[:16]

    def encode(self, caption):
        ids = self.library.tokenizer(self.library.clean_fn(caption)).input_ids
        return [0 if self.library.strip_sep_token and number == self.library.tokenizer.sep_token_id else number for number in ids]

    def encode_all(self, captions):
        return [self.encode(caption) for caption in captions]

    def add_special_tokens(self, ids, length):
        return cut(ids, length)

    def lengths(self, tokens):
        return (tokens != self.pad).sum(dim=1)

    def decode(self, ids):
        return self.library.tokenizer.decode([int(number) for number in ids], skip_special_tokens=True)


def cut(ids, length):
    """Ids without those before the last that are too many; ``length`` None: all."""
    return list(ids) if length is None or len(ids) <= length else [*ids[:length - 1], ids[-1]]


def has_byte_pairs(text_cfg):
    return not text_cfg.get('hf_tokenizer_name')


def reads_padding(text_cfg):
    """Whether what stands behind a caption's end is part of its embedding, as in SigLIP, so that captions are as long as in training."""
    return 'hf_model_name' not in text_cfg and (text_cfg.get('no_causal_mask', False) or text_cfg.get('pool_type') == 'last')


def refuse_length(args, text_cfg):
    most = text_cfg.get('context_length', 77)
    if args.text_length > most or args.text_length < most and reads_padding(text_cfg):
        how = 'exactly' if reads_padding(text_cfg) else 'at most'
        raise UserError(f'--text_length {args.text_length}: {parse(args.pretrain_choice)[0]} reads {how} {most} tokens a caption; give '
                        f'--text_length {most}')


# --------------------------------------------------------------------------------------------------------------------- the backbone

class OpenClip(Backbone):
    """The library's own towers; the parameters are ``base_model.visual.*`` and ``base_model.text.*`` with its names behind that.

    The first image token is the image's embedding, and the others are the patches, projected as the embedding is; text tokens are
    projected, too. A tower without tokens, such as a ConvNeXt, gives the embedding alone.
    """

    name = 'open_clip'
    provides, joint_tokens = TOKENS, True
    missing_reasons = {**dict.fromkeys(('image_attention', 'text_attention'), "open_clip's encoders give no attention maps"),
             "CLIP's image encoder": "open_clip's encoders are not ours"}
    alternative = 'another model as --pretrain_choice'

    def __init__(self, config, img_size, model_name):
        super().__init__()
        self.base_model = towers(config, img_size, model_name)
        visual, text = self.base_model.visual, self.base_model.text
        self.image_width = self.text_width = self.embed_dim = config['embed_dim']
        self.vocab_size, self.mask_id = text.vocab_size, text.vocab_size - 3      # of CLIP's byte pairs, below start and end
        self.pooling, self.keeps_padding = config['text_cfg'].get('pool_type', 'argmax'), reads_padding(config['text_cfg'])
        self.timm = hasattr(visual, 'trunk')
        self.has_patches = hasattr(visual.trunk, 'num_prefix_tokens') if self.timm else getattr(visual, 'attn_pool', visual) is None
        self.has_words = getattr(text, 'cls_emb', text) is None
        self.missing_reasons = dict(self.missing_reasons)
        if not self.has_patches:
            self.missing_reasons['image_tokens'] = f'the image encoder of {model_name} gives one vector an image'
        if not self.has_words or not has_byte_pairs(config['text_cfg']):
            why = "its captions are not in CLIP's ids" if self.has_words else 'its text encoder gives one vector a caption'
            self.missing_reasons.update(dict.fromkeys(('text_tokens', 'masked_text_tokens'), f'{model_name} has none to give: {why}'))
        self.provides = TOKENS - self.missing_reasons.keys()
        self.pretrained_scale = None

    # -- before there is a model ------------------------------------------------------------------------------------------------

    @staticmethod
    def validate_options(args):
        for name, usual in (('stride_size', 16), ('preparation', 'irra')):
            if getattr(args, name) != usual:
                raise UserError(f'--{name} {getattr(args, name)} {OF_CLIP}')

    @classmethod
    def build(cls, args, state_dict=None):
        (model, weights), config = parse(args.pretrain_choice), describe(args)['model_cfg']
        starts = args.training and state_dict is None
        path = pretrained_file(model, weights) if starts and weights else None
        backbone = cls(config, args.img_size, model)
        if path is None:
            backbone.fit(args.img_size, model)
        else:
            backbone.load(path, args)
        logger.info('activation of the encoders: %s (%s)', *cls.activation_in_words(args, config, starts))
        if starts and path is None:
            logger.warning('--pretrain_choice %s names no weights: the encoders start from random ones', args.pretrain_choice)
        return backbone

    @staticmethod
    def activation_in_words(args, config, starts):
        """(the activation, who says so)"""
        if starts:
            return activation(args, config, library().get_pretrained_cfg(*parse(args.pretrain_choice)))
        named = 'quick_gelu' if config.get('quick_gelu') else 'gelu'
        return named, f'the {DESCRIPTION} of the run, or open_clip, says so'

    def load(self, path, args):
        """Take the weights of a file, whichever of the library's dialects it speaks; position tables are fitted to the images."""
        from open_clip.convert import convert_state_dict
        from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
        model = parse(args.pretrain_choice)[0]
        state = to_own_names(read_file(path, args.trust_archive), path)
        fitted = any(name.startswith('base_model.') for name in state)
        if fitted:      # of a run: tables have their size already, and the heads' parameters are for --init_from
            self.fit(args.img_size, model)
            state = {name[len('base_model.'):]: value for name, value in state.items() if name.startswith('base_model.')}
        try:
            state = convert_to_custom_text_state_dict(convert_state_dict(self.base_model, state))
            resize_pos_embed(state, self.base_model)
            resize_text_pos_embed(state, self.base_model)
        except Exception as error:      # what a foreign file breaks, the library says in many ways
            raise UserError(f'{path} does not fit {model} ({type(error).__name__}: {brief(error)})') from None
        scale = state.get('logit_scale')
        self.pretrained_scale = float(scale) if scale is not None and scale.numel() == 1 else None
        load_weights(self.base_model, {name: value for name, value in state.items() if not DROPPED.match(name)}, path)
        if not fitted:
            self.fit(args.img_size, model)

    def fit(self, img_size, model):
        """Fit the position tables of a timm tower to the images, and see that it takes them."""
        if not self.timm:
            return
        visual, learns = self.base_model.visual, self.training
        try:
            visual.set_input_size(tuple(img_size))
            with torch.no_grad():
                visual.eval()(torch.zeros(1, 3, *img_size))
        except Exception as error:      # every tower has its own
            raise UserError(f'--img_size {img_size[0]} {img_size[1]}: the image encoder of {model} takes no such images '
                            f'({type(error).__name__}: {brief(error)})') from None
        finally:
            visual.train(learns)

    @staticmethod
    def tokenizer(args, captions=None):
        """The library's. A new run records its model here, in its folder, before anything else is made of it."""
        description = describe(args)
        text = description['model_cfg']['text_cfg']
        refuse_length(args, text)
        settings = {key: value for key, value in (text.get('tokenizer_kwargs') or {}).items() if key != 'reduction_mask'}
        if has_byte_pairs(text):
            tokenizer = BytePairs(**settings)
        elif text.get('tokenizer_mode'):
            raise UserError(f"{parse(args.pretrain_choice)[0]} frames captions in a way of its own ({text['tokenizer_mode']}), which is "
                            'not built here: choose another model')
        else:
            tokenizer = HuggingFace(text['hf_tokenizer_name'], **settings)
            for name, usual in (('caption_masking', 'clean'), ('mlm_masking', 'random'), ('caption_filter', 0.0)):
                if getattr(args, name, usual) != usual:
                    raise UserError(f"--{name} {getattr(args, name)} is for captions in CLIP's ids, and those of "
                                    f'{parse(args.pretrain_choice)[0]} have others: leave it out')
        if captions is not None:
            with atomic_write(os.path.join(args.output_dir, DESCRIPTION)) as file:
                json.dump(description, file, indent=1)
        return tokenizer

    @staticmethod
    def pixels(args, dataset=None):
        """Images are squeezed into ``--img_size``, whatever the library crops; what is erased in training has the mean's colour."""
        found = describe(args)['preprocess_cfg']
        return ImageStats(tuple(found['mean']), tuple(found['std']), (0.0, 0.0, 0.0), found['interpolation'])

    @staticmethod
    def matches_state_dict(state_dict):
        return any(name.startswith('base_model.text.') for name in state_dict)

    learning_rate = staticmethod(Clip.learning_rate)

    # -- encoding ---------------------------------------------------------------------------------------------------------------

    def encode_image(self, images, need_map=False):
        visual = self.base_model.visual
        if not self.has_patches:
            pooled = visual(images)
            return (pooled[0] if isinstance(pooled, tuple) else pooled)[:, None], None
        found = visual.forward_intermediates(images, indices=1, normalize_intermediates=True, output_fmt='NLC')
        patches = self.project_patches(found['image_intermediates'][0])
        return torch.cat([found['image_features'][:, None].to(patches.dtype), patches], dim=1), None

    def project_patches(self, patches):
        """[B, N, width] -> [B, N, embed_dim], by what projects the embedding."""
        visual = self.base_model.visual
        if not self.timm:
            return patches if visual.proj is None else patches @ visual.proj
        return visual.head(visual.trunk.head(visual.trunk.fc_norm(patches)))

    def encode_text(self, ids, need_map=False):
        text, length = self.base_model.text, ids.shape[1]
        if not self.has_words:
            return text(ids)[:, None], None
        x = text.token_embedding(ids) + text.positional_embedding[:length]                       # [B, L, width]
        x = text.transformer(x, attn_mask=None if text.attn_mask is None else text.attn_mask[:length, :length])
        tokens, project = text.ln_final(x), text.text_projection
        if project is not None:
            tokens = project(tokens) if isinstance(project, nn.Linear) else tokens @ project     # [B, L, embed_dim]
        return tokens, None

    def image_embedding(self, tokens):
        return tokens[:, 0].float()

    def text_embedding(self, tokens, ids):
        """The token at which the model pools; pooling and projecting can be exchanged."""
        if not self.has_words or self.pooling == 'first':
            return tokens[:, 0].float()
        if self.pooling == 'last':
            return tokens[:, -1].float()
        return tokens[torch.arange(tokens.shape[0], device=tokens.device), self.ends(ids)].float()

    def ends(self, ids):
        """The places of the captions' ends: [B, L] -> [B]."""
        return (ids == self.base_model.text.eos_id).int().argmax(dim=1) if self.pooling == 'eos' else ids.argmax(dim=1)

    def lengths(self, ids):
        """Where padding is read, or nobody knows, captions are as long as they come."""
        if self.keeps_padding or not self.has_words or self.pooling not in ('argmax', 'eos'):
            return torch.full((len(ids),), ids.shape[1])
        return self.ends(ids) + 1

    # -- the switches for speed and memory ----------------------------------------------------------------------------------------

    def set_grad_checkpoint(self, enabled):
        if enabled:     # some towers of the library cannot switch it off, and it is off
            self.base_model.set_grad_checkpointing(True)

    def blocks(self):
        visual, text = self.base_model.visual, self.base_model.text
        of_images = getattr(visual.trunk if self.timm else getattr(visual, 'transformer', None), 'blocks' if self.timm else 'resblocks', ())
        of_words = text.transformer.resblocks if self.has_words else ()
        return [*((block, False) for block in of_images), *((block, not self.keeps_padding) for block in of_words)]

    def micro_batch_unsupported(self):
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self.base_model.modules()):
            return 'an encoder that normalises over all of its images: leave it out or use a ViT as --pretrain_choice'
        return None


def towers(config, img_size, model_name):
    """The library's model with random weights, without its temperature: the heads have one. timm's towers have their own size until
    they are fitted, the others the images'."""
    config = copy.deepcopy(config)
    config.pop('custom_text', None)     # one layout for all: captions' parameters are text.*
    config['vision_cfg'].update(image_size=img_size[0] if img_size[0] == img_size[1] else tuple(img_size), timm_model_pretrained=False)
    config['text_cfg']['hf_model_pretrained'] = False
    try:
        model = library().CustomTextCLIP(**config)
    except Exception as error:      # an architecture's own reasons, a library that it needs, a download that fails
        raise UserError(f'open_clip cannot build {model_name} for images of {img_size[0]} x {img_size[1]} ({type(error).__name__}: '
                        f'{brief(error)})') from None
    model.logit_scale = model.logit_bias = None
    return model


def read_file(path, trust_archive):
    """A state dict, by the door that runs no code; a run's own is under ``model``."""
    try:
        return tensors_in(load_entries(path, trust_archive), path)
    except (UserError, MemoryError):
        raise
    except Exception as error:      # unpickling arbitrary bytes raises nearly anything
        raise UserError(f'{path} is truncated or no file of weights ({type(error).__name__})') from None
