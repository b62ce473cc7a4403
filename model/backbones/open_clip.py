"""The two-tower models of the open_clip library: SigLIP, EVA-CLIP, DFN and others (Ilharco et al., 2021)."""
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
from utils.paths import TOKENIZER
from utils.weight_names import to_own_names

logger = logging.getLogger('Pedestal.model')

DESCRIPTION = 'open_clip_config.json'   # next to a run's configs.yaml: model and preprocessing in the library's format
PREPROCESSING = ('mean', 'std', 'interpolation')
CLIP_VOCABULARY = 'clip'        # --vocab_file for CLIP's byte pairs, which come with the library
TOKENS = frozenset({'image_tokens', 'text_tokens', 'masked_text_tokens'})
CLIP_ONLY = "is for the CLIP of --backbone clip, and --backbone is open_clip: leave it out"


def library():
    try:
        import open_clip
    except ImportError:
        raise UserError('--backbone open_clip needs the open_clip library: pip install open_clip_torch') from None
    return open_clip


# -- model and description ---------------------------------------------------------------------------------------------

def parse(choice):
    """Split ``'ViT-B-16:laion2b_s34b_b88k'`` into model and tag or file; '' means random weights."""
    model, _, weights = choice.removeprefix('scratch:').partition(':')
    return model.replace('/', '-'), weights


def describe(args):
    """Return ``{'model_cfg': ..., 'preprocess_cfg': ...}`` of the model that ``args`` name.

    It is what the run has recorded, else what the library has.

    Raises:
        UserError: the library does not know the model.
    """
    if path := find_run_file(args, DESCRIPTION):
        return read_description(path)
    (model, weights), known = parse(args.pretrain_choice), library()
    config = known.get_model_config(model)
    if config is None:
        raise unknown_name_error('open_clip model', model, known.list_models())
    tag = known.get_pretrained_cfg(model, weights)
    if 'multimodal_cfg' in config:
        raise UserError(f'--pretrain_choice {model} has a text decoder next to its two encoders, which nothing here '
                        'trains: choose another model')
    if find_activation(args, config, tag)[0] == 'quick_gelu':
        config['quick_gelu'] = True
    if args.vocab_file == CLIP_VOCABULARY:
        if tag:
            raise UserError(f'--vocab_file {CLIP_VOCABULARY} is for random weights, and {model}:{weights} was trained '
                            'with its own tokenizer: leave it out')
        config['text_cfg'] = with_byte_pairs(model, config['text_cfg'])
    return {'model_cfg': config, 'preprocess_cfg': preprocessing_of(known, model, tag)}


def find_run_file(args, name):
    """Return the path of a file or folder that a run has recorded, or None."""
    is_trained = not args.training and args.checkpoint
    folders = [*([os.path.dirname(args.checkpoint)] if is_trained else []), args.output_dir]
    return next(filter(os.path.exists, (os.path.join(folder, name) for folder in folders)), None)


def with_byte_pairs(model, text_cfg):
    """Return the text settings with CLIP's vocabulary instead of another one. They are the same if it is CLIP's."""
    if has_byte_pairs(text_cfg):
        return text_cfg
    if 'hf_model_name' in text_cfg:
        raise UserError(f"--vocab_file {CLIP_VOCABULARY}: the text encoder of {model} is {text_cfg['hf_model_name']}, "
                        'which has its own vocabulary: choose another model')
    pairs = BytePairs()
    ends = {'eos_id': pairs.end_id} if 'eos_id' in text_cfg else {}
    return {**{key: value for key, value in text_cfg.items() if key != 'hf_tokenizer_name'},
            'vocab_size': pairs.vocab_size, **ends}


def find_activation(args, config, tag):
    """Return the activation that the weights were trained with, and what says so: tag, files next to them, or model."""
    model, weights = parse(args.pretrain_choice)
    named = 'quick_gelu' if config.get('quick_gelu') else 'gelu'
    if tag:
        return 'quick_gelu' if tag.get('quick_gelu') else named, f'the tag {weights} says so'
    activation, file = read_activation(weights) if weights else (None, None)
    if activation == 'gelu' != named:
        raise UserError(f'--pretrain_choice {model}:{weights}: the model has {named} and {file} says {activation}; '
                        f"name the model of these weights, such as {model.removesuffix('-quickgelu')}")
    return (activation, f'{file} says so') if activation else (named, f"assumed: open_clip's {model} has it")


def preprocessing_of(known, model, tag):
    """Return mean, standard deviation and interpolation of a tag.

    Without a tag (a file, random weights) they are those that all tags of the model share, else CLIP's.
    """
    default = {'mean': known.OPENAI_DATASET_MEAN, 'std': known.OPENAI_DATASET_STD, 'interpolation': 'bicubic'}
    names = [] if tag else known.list_pretrained_tags_by_model(model)
    tags = [tag] if tag else [known.get_pretrained_cfg(model, name) for name in names]
    values = [{**default, **{key: value for key, value in one.items() if key in PREPROCESSING and value}}
              for one in tags]
    chosen = values[0] if values and all(one == values[0] for one in values) else default
    return {**chosen, 'interpolation': 'bilinear' if chosen['interpolation'] == 'bilinear' else 'bicubic'}


def read_description(path):
    try:
        with open(path, encoding='utf-8') as file:
            content = parse_json(file.read())
        content['model_cfg']['vision_cfg'], content['model_cfg']['text_cfg']
        preprocessing = {key: content['preprocess_cfg'][key] for key in PREPROCESSING}
        return {'model_cfg': content['model_cfg'], 'preprocess_cfg': preprocessing}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} describes no model of open_clip ({type(error).__name__}: {error}): delete it to take '
                        'the model of --pretrain_choice from the library') from None


def pretrained_file(model, weights):
    """Return the path of a file or of a tag's weights, which are downloaded if needed."""
    known, path = library(), os.path.expanduser(weights)
    tag = known.get_pretrained_cfg(model, weights)
    if not tag and not os.path.isfile(path):
        tags = [*known.list_pretrained_tags_by_model(model), 'a file']
        raise unknown_name_error(f'tag of {model}, and no file', weights, tags)
    try:
        return known.download_pretrained(tag) if tag else path
    except Exception as error:       # the library's network code raises nearly anything
        raise UserError(f'--pretrain_choice {model}:{weights}: open_clip cannot download the weights ({brief(error)}); '
                        f'give {model}:<file> if you have them, or {model} alone for random weights') from None


def brief(error):
    """Return an exception's message as one short line."""
    words = ' '.join(str(error).split()) or type(error).__name__
    return words if len(words) <= 160 else f'{words[:160]}...'


# -- captions ----------------------------------------------------------------------------------------------------------

class BytePairs:
    """The library's tokenizer of CLIP's byte pairs.

    As in IRRA, the last pair's id is the mask; the end has the largest id.
    """
    pad_id, continuation_ids = 0, frozenset()

    def __init__(self, **settings):
        from open_clip.tokenizer import SimpleTokenizer
        self.library = SimpleTokenizer(**settings)
        self.start_id, self.end_id = self.library.sot_token_id, self.library.eot_token_id
        self.mask_id, self.vocab_size = self.start_id - 1, self.library.vocab_size
        self.cache_key = f'open_clip pairs {sorted(settings.items())}'

    def encode(self, caption):
        return self.library.encode(caption)

    def encode_all(self, captions):
        return [self.encode(caption) for caption in captions]

    def add_special_tokens(self, ids, length):
        return truncate([self.start_id, *ids, self.end_id], length)

    def lengths(self, tokens):
        """Count the tokens of each caption, start and end included: [S, L] -> [S]."""
        return tokens.argmax(dim=1) + 1

    def decode(self, ids):
        return self.library.decode([int(number) for number in ids])


class HuggingFace:
    """The library's tokenizer of another vocabulary, such as SigLIP's. ``encode`` returns ids with the special ones.

    It has no mask: code that masks words relies on CLIP's order of ids.
    """
    mask_id, continuation_ids = None, frozenset()

    def __init__(self, name, **settings):
        try:
            from open_clip.tokenizer import HFTokenizer
            self.library = HFTokenizer(name, **settings)
        except ImportError:
            raise UserError(f'the tokenizer {name} needs the transformers library: pip install transformers') from None
        except Exception as error:     # network code raises nearly anything
            raise UserError(f"the tokenizer {name} is not in Hugging Face's cache and cannot be downloaded "
                            f"({brief(error)}): give the folder of its files with --vocab_file, download it on a "
                            f"machine with a network, or, for random weights, give --vocab_file {CLIP_VOCABULARY}, "
                            "CLIP's tokenizer") from None
        inner = self.library.tokenizer
        self.pad_id, self.end_id = inner.pad_token_id or 0, inner.eos_token_id
        self.start_id = inner.bos_token_id if inner.cls_token_id is None else inner.cls_token_id
        self.vocab_size = len(inner)
        words = json.dumps([name, sorted(settings.items()), sorted(inner.get_vocab().items())], default=str)
        self.cache_key = hashlib.sha256(words.encode()).hexdigest()[:16]

    def encode(self, caption):
        ids = self.library.tokenizer(self.library.clean_fn(caption)).input_ids
        separator = self.library.tokenizer.sep_token_id if self.library.strip_sep_token else None
        return [0 if separator is not None and number == separator else number for number in ids]

    def encode_all(self, captions):
        return [self.encode(caption) for caption in captions]

    def add_special_tokens(self, ids, length):
        return truncate(ids, length)

    def lengths(self, tokens):
        return (tokens != self.pad_id).sum(dim=1)

    def decode(self, ids):
        return self.library.tokenizer.decode([int(number) for number in ids], skip_special_tokens=True)


def truncate(ids, length):
    """Truncate ids to ``length``, keeping the last one; None keeps all."""
    return list(ids) if length is None or len(ids) <= length else [*ids[:length - 1], ids[-1]]


def has_byte_pairs(text_cfg):
    return not text_cfg.get('hf_tokenizer_name')


def reads_padding(text_cfg):
    """Whether padding changes the embedding, as in SigLIP, so that captions must be as long as in pretraining."""
    sees_padding = text_cfg.get('no_causal_mask', False) or text_cfg.get('pool_type') == 'last'
    return 'hf_model_name' not in text_cfg and sees_padding


def refuse_length(args, text_cfg):
    most = text_cfg.get('context_length', 77)
    if args.text_length > most or args.text_length < most and reads_padding(text_cfg):
        how = 'exactly' if reads_padding(text_cfg) else 'at most'
        raise UserError(f'--text_length {args.text_length}: {parse(args.pretrain_choice)[0]} reads {how} {most} tokens '
                        f'per caption; give --text_length {most}')


# -- backbone ----------------------------------------------------------------------------------------------------------

class OpenClip(Backbone):
    """The models of the library open_clip, such as SigLIP, EVA-CLIP and ConvNeXt (``pip install open_clip_torch``).

    The first image token is the image's embedding. The others are the patches, projected as the embedding is. Text
    tokens are also projected. An encoder without tokens, such as a ConvNeXt, only returns the embedding. Parameters are
    named ``base_model.visual.*`` and ``base_model.text.*``, followed by the library's names.
    """

    name = 'open_clip'
    provides, joint_tokens, run_files = TOKENS, True, (DESCRIPTION, TOKENIZER)
    shared_options = ('vocab_file',)
    missing_reasons = {'image_attention': "open_clip's encoders give no attention maps",
                       'text_attention': "open_clip's encoders give no attention maps",
                       "CLIP's image encoder": "open_clip's encoders are not ours"}
    alternative = 'another model as --pretrain_choice'

    def __init__(self, config, img_size, model_name):
        super().__init__()
        self.base_model = build_encoders(config, img_size, model_name)
        visual, text = self.base_model.visual, self.base_model.text
        self.image_width = self.text_width = self.embed_dim = config['embed_dim']
        self.vocab_size, self.mask_id = text.vocab_size, text.vocab_size - 3      # of CLIP's byte pairs
        self.pooling = config['text_cfg'].get('pool_type', 'argmax')
        self.keeps_padding = reads_padding(config['text_cfg'])
        self.is_timm = hasattr(visual, 'trunk')
        if self.is_timm:
            self.has_patches = hasattr(visual.trunk, 'num_prefix_tokens')
        else:
            self.has_patches = getattr(visual, 'attn_pool', visual) is None
        self.has_words = getattr(text, 'cls_emb', text) is None
        self.missing_reasons = dict(self.missing_reasons)
        if not self.has_patches:
            self.missing_reasons['image_tokens'] = f'the image encoder of {model_name} returns one vector per image'
        if not self.has_words or not has_byte_pairs(config['text_cfg']):
            why = "its captions are not in CLIP's ids" if self.has_words else \
                'its text encoder returns one vector per caption'
            reason = f'{model_name} has none to give: {why}'
            self.missing_reasons.update(dict.fromkeys(('text_tokens', 'masked_text_tokens'), reason))
        self.provides = TOKENS - self.missing_reasons.keys()
        self.pretrained_scale = None

    # -- before a model exists -----------------------------------------------------------------------------------------

    @staticmethod
    def validate_options(args):
        for name, default in (('stride_size', 16), ('preparation', 'irra')):
            if getattr(args, name) != default:
                raise UserError(f'--{name} {getattr(args, name)} {CLIP_ONLY}')

    @classmethod
    def build(cls, args, state_dict=None):
        model, config = parse(args.pretrain_choice)[0], describe(args)['model_cfg']
        starts = args.training and state_dict is None
        path = cls.weights_file(args) if starts else None
        backbone = cls(config, args.img_size, model)
        if path is None:
            backbone.fit(args.img_size, model)
        else:
            backbone.load(path, args)
        logger.info('activation of the encoders: %s (%s)', *cls.describe_activation(args, config, starts))
        if starts and path is None:
            logger.warning('--pretrain_choice %s names no weights: the encoders start from random ones',
                           args.pretrain_choice)
        return backbone

    @classmethod
    def weights_file(cls, args):
        model, weights = parse(args.pretrain_choice)
        return pretrained_file(model, weights) if weights else None

    @staticmethod
    def choice_of_file(args, path):
        return f'{parse(args.pretrain_choice)[0]}:{path}'

    @staticmethod
    def describe_activation(args, config, starts):
        """Return the activation and what says so."""
        if starts:
            return find_activation(args, config, library().get_pretrained_cfg(*parse(args.pretrain_choice)))
        named = 'quick_gelu' if config.get('quick_gelu') else 'gelu'
        return named, f'the {DESCRIPTION} of the run, or open_clip, says so'

    def load(self, path, args):
        """Load the weights of a file in any layout that the library knows, and resize position tables to the images."""
        from open_clip.convert import convert_state_dict
        from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
        model = parse(args.pretrain_choice)[0]
        state = to_own_names(read_file(path, args.trust_archive), path)
        fitted = any(name.startswith('base_model.') for name in state)
        if fitted:      # weights of a run: its tables have their size already; --init_from loads its heads
            self.fit(args.img_size, model)
            prefix = 'base_model.'
            state = {name[len(prefix):]: value for name, value in state.items() if name.startswith(prefix)}
        try:
            state = convert_to_custom_text_state_dict(convert_state_dict(self.base_model, state))
            resize_pos_embed(state, self.base_model)
            resize_text_pos_embed(state, self.base_model)
        except Exception as error:      # the library raises many types for foreign files
            raise UserError(f'{path} does not fit {model} ({type(error).__name__}: {brief(error)})') from None
        scale = state.get('logit_scale')
        self.pretrained_scale = float(scale) if scale is not None and scale.numel() == 1 else None
        load_weights(self.base_model, {name: value for name, value in state.items() if not DROPPED.match(name)}, path)
        if not fitted:
            self.fit(args.img_size, model)

    def fit(self, img_size, model):
        """Resize the position tables of a timm encoder to the images, and check that it accepts them."""
        if not self.is_timm:
            return
        visual, mode = self.base_model.visual, self.training
        try:
            visual.set_input_size(tuple(img_size))
            with torch.no_grad():
                visual.eval()(torch.zeros(1, 3, *img_size))
        except Exception as error:      # each encoder raises its own
            raise UserError(f'--img_size {img_size[0]} {img_size[1]}: the image encoder of {model} takes no such '
                            f'images ({type(error).__name__}: {brief(error)})') from None
        finally:
            visual.train(mode)

    @staticmethod
    def tokenizer(args, captions=None):
        """Return the library's tokenizer. A new run records its model and the tokenizer of --vocab_file here."""
        description = describe(args)
        text = description['model_cfg']['text_cfg']
        refuse_length(args, text)
        settings = dict(text.get('tokenizer_kwargs') or {})
        settings.pop('reduction_mask', None)
        if has_byte_pairs(text):
            tokenizer = BytePairs(**settings)
        elif text.get('tokenizer_mode'):
            raise UserError(f"{parse(args.pretrain_choice)[0]} has the tokenizer mode {text['tokenizer_mode']}, which "
                            'is not supported here: choose another model')
        elif args.vocab_file == CLIP_VOCABULARY:
            raise UserError(f"--vocab_file {CLIP_VOCABULARY}: the run was trained with the tokenizer "
                            f"{text['hf_tokenizer_name']}: leave it out, or give the folder of its files")
        else:
            stored = find_run_file(args, TOKENIZER)
            uses_stored = stored and args.training and args.resume      # --vocab_file may have moved or changed
            given = '' if uses_stored else args.vocab_file
            tokenizer = HuggingFace(given or stored or text['hf_tokenizer_name'], **settings)
            if given and captions is not None:
                tokenizer.library.tokenizer.save_pretrained(os.path.join(args.output_dir, TOKENIZER))
            for name, default in (('caption_masking', 'clean'), ('mlm_masking', 'random'), ('caption_filter', 0.0)):
                if getattr(args, name) != default:
                    raise UserError(f"--{name} {getattr(args, name)} is for captions in CLIP's ids, and those of "
                                    f'{parse(args.pretrain_choice)[0]} have others: leave it out')
        if captions is not None:
            with atomic_write(os.path.join(args.output_dir, DESCRIPTION)) as file:
                json.dump(description, file, indent=1)
        return tokenizer

    @staticmethod
    def image_stats(args, dataset=None):
        """Return the model's statistics.

        Images are resized to ``--img_size`` without cropping; erasing fills the mean.
        """
        values = describe(args)['preprocess_cfg']
        return ImageStats(tuple(values['mean']), tuple(values['std']), (0.0, 0.0, 0.0), values['interpolation'])

    @staticmethod
    def matches_state_dict(state_dict):
        return any(name.startswith('base_model.text.') for name in state_dict)

    learning_rate = staticmethod(Clip.learning_rate)

    # -- encoding ------------------------------------------------------------------------------------------------------

    def encode_image(self, images, need_map=False):
        visual = self.base_model.visual
        if not self.has_patches:
            pooled = visual(images)
            return (pooled[0] if isinstance(pooled, tuple) else pooled)[:, None], None
        outputs = visual.forward_intermediates(images, indices=1, normalize_intermediates=True, output_fmt='NLC')
        patches = self.project_patches(outputs['image_intermediates'][0])
        return torch.cat([outputs['image_features'][:, None].to(patches.dtype), patches], dim=1), None

    def project_patches(self, patches):
        """Project patches like the embedding: [B, N, width] -> [B, N, embed_dim]."""
        visual = self.base_model.visual
        if not self.is_timm:
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
        """Pick the token at which the model pools. Pooling and projection commute."""
        if not self.has_words or self.pooling == 'first':
            return tokens[:, 0].float()
        if self.pooling == 'last':
            return tokens[:, -1].float()
        return tokens[torch.arange(tokens.shape[0], device=tokens.device), self.end_positions(ids)].float()

    def end_positions(self, ids):
        """Return the positions of the captions' ends: [B, L] -> [B]."""
        return (ids == self.base_model.text.eos_id).int().argmax(dim=1) if self.pooling == 'eos' else ids.argmax(dim=1)

    def lengths(self, ids):
        """Count tokens; the full length if padding is read or if that is unknown."""
        if self.keeps_padding or not self.has_words or self.pooling not in ('argmax', 'eos'):
            return torch.full((len(ids),), ids.shape[1])
        return self.end_positions(ids) + 1

    # -- speed and memory ----------------------------------------------------------------------------------------------

    def set_grad_checkpoint(self, enabled):
        if enabled:     # some encoders of the library cannot switch it off; it is off by default
            self.base_model.set_grad_checkpointing(True)

    def blocks(self):
        visual, text = self.base_model.visual, self.base_model.text
        if self.is_timm:
            image_blocks = getattr(visual.trunk, 'blocks', ())
        else:
            image_blocks = getattr(getattr(visual, 'transformer', None), 'resblocks', ())
        text_blocks = text.transformer.resblocks if self.has_words else ()
        return [(block, False) for block in image_blocks] + [(block, not self.keeps_padding) for block in text_blocks]

    def micro_batch_unsupported(self):
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self.base_model.modules()):
            return 'an encoder that normalizes over all of its images: leave it out or use a ViT as --pretrain_choice'
        return None


def build_encoders(config, img_size, model_name):
    """Build the library's model with random weights and without its temperature, because heads have one.

    timm's encoders have their own image size until they are fitted.
    """
    config = copy.deepcopy(config)
    config.pop('custom_text', None)     # one layout for all models: parameters of the text encoder are text.*
    image_size = img_size[0] if img_size[0] == img_size[1] else tuple(img_size)
    config['vision_cfg'].update(image_size=image_size, timm_model_pretrained=False)
    config['text_cfg']['hf_model_pretrained'] = False
    try:
        model = library().CustomTextCLIP(**config)
    except Exception as error:      # reasons of the architecture, a missing library, a failed download
        raise UserError(f'open_clip cannot build {model_name} for images of {img_size[0]} x {img_size[1]} '
                        f'({type(error).__name__}: {brief(error)})') from None
    model.logit_scale = model.logit_bias = None
    return model


def read_file(path, trust_archive):
    """Read a state dict without running code; the checkpoint of a run has it under ``model``."""
    try:
        return tensors_in(load_entries(path, trust_archive), path)
    except (UserError, MemoryError):
        raise
    except Exception as error:      # unpickling arbitrary bytes raises nearly anything
        raise UserError(f'{path} is truncated or no file of weights ({type(error).__name__})') from None
