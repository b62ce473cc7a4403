"""A run's encoders as the CLIP of Hugging Face's transformers, for run_scripts/export.py."""
import inspect
import json
import math
import os

import torch
import torch.nn.functional as F

from model.clip_weights import shape_of
from utils.errors import UserError
from utils.iotools import atomic_write

RESAMPLE = {'bilinear': 2, 'bicubic': 3}   # PIL's numbers, which the image processor's file holds
LARGEST = 1e-4


def as_clip(people, folder):
    """Write a folder for ``CLIPModel.from_pretrained``, with its tokenizer and image processor; returns what the comparison found."""
    transformers = import_transformers(is_oblong(people.args))
    model, args = people.model, people.args
    refuse_what_is_more_than_clip(people)
    clip = model.base_model
    shape = shape_of(clip.state_dict())
    config = transformers.CLIPConfig(
        projection_dim=clip.embed_dim, logit_scale_init_value=math.log(1 / args.temperature),
        text_config=dict(vocab_size=clip.vocab_size, max_position_embeddings=args.text_length, bos_token_id=people.tokenizer.start,
                         eos_token_id=people.tokenizer.end, pad_token_id=people.tokenizer.pad, projection_dim=clip.embed_dim,
                         **sizes(shape.text_width, shape.text_layers, clip.activation)),
        vision_config=dict(image_size=max(args.img_size), patch_size=clip.patch_size, projection_dim=clip.embed_dim,
                           **sizes(shape.vision_width, shape.vision_layers, clip.activation)))
    exported, state = transformers.CLIPModel(config).eval(), clip.state_dict()
    if is_oblong(args):
        state['visual.positional_embedding'] = square_table(state['visual.positional_embedding'], clip.grid)
    exported.load_state_dict(renamed(state, math.log(1 / args.temperature)))
    transformers.utils.logging.disable_progress_bar()
    exported.save_pretrained(folder)
    write_preparation(people, folder)
    for name in os.listdir(folder):                       # its weights are for their owner alone
        os.chmod(os.path.join(folder, name), 0o644)
    return compare(people, transformers.CLIPModel.from_pretrained(folder).eval())


def import_transformers(oblong=False):
    try:
        import transformers
    except ImportError:
        raise UserError('--to huggingface needs transformers: pip install transformers') from None
    if oblong and 'interpolate_pos_encoding' not in inspect.signature(transformers.CLIPModel.forward).parameters:
        raise UserError(f"transformers {transformers.__version__}'s CLIP reads square images alone: pip install -U transformers, "
                        'or --to onnx, which takes every run')
    return transformers


def refuse_what_is_more_than_clip(people):
    model, args = people.model, people.args
    reasons = {
        "it has another backbone than CLIP's": args.backbone != 'clip',
        'its backbone is a ResNet': args.backbone == 'clip' and not model.base_model.has_image_tokens,
        'a head refines its embeddings': model.refines, 'a head adds an embedding of its own': bool(model.parts),
        f"its images are {args.img_size[0]}x{args.img_size[1]} and patches of {people.model.base_model.patch_size} leave a rest":
            args.backbone == 'clip' and is_oblong(args) and any(side % people.model.base_model.patch_size for side in args.img_size),
        'its patches overlap': args.backbone == 'clip' and model.base_model.patch_size != model.base_model.stride_size}
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UserError(f"--to huggingface: this run is no plain CLIP ({'; '.join(found)}); --to onnx takes every run")


def is_oblong(args):
    return len(set(args.img_size)) > 1


def square_table(table, grid):
    """Position embeddings [1 + rows * cols, W] of oblong images -> [1 + side * side, W], side the longer of the two. transformers' CLIP
    holds square tables alone, and resizes them to an image's grid if it is told to (``interpolate_pos_encoding=True``). Of the tables
    that become ours then, this is the one with the least norm."""
    side, (rows, cols) = max(grid), grid
    patches = table[1:].double().view(rows, cols, -1)
    patches = torch.einsum('ar,rcw,bc->abw', enlarging(side, rows), patches, enlarging(side, cols))       # [side, side, W]
    return torch.cat([table[:1], patches.flatten(0, 1).to(table.dtype)])


def enlarging(side, length):
    """The [side, length] matrix that transformers' bicubic resizing from ``side`` to ``length`` undoes."""
    rows = torch.eye(side, dtype=torch.float64)[None, :, :, None]                                            # a row an image
    resized = F.interpolate(rows, size=(length, 1), mode='bicubic', align_corners=False)[0, :, :, 0]       # [side, length]
    return torch.linalg.pinv(resized.t())


def sizes(width, layers, activation):
    return dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // 64,
                hidden_act=activation)


def renamed(state, logit_scale):
    """OpenAI's parameters under transformers' names; q, k and v apart, projections transposed."""
    found = {'logit_scale': torch.tensor(logit_scale), 'visual_projection.weight': state['visual.proj'].t().contiguous(),
             'text_projection.weight': state['text_projection'].t().contiguous(),
             'text_model.embeddings.token_embedding.weight': state['token_embedding.weight'],
             'text_model.embeddings.position_embedding.weight': state['positional_embedding'],
             'vision_model.embeddings.class_embedding': state['visual.class_embedding'],
             'vision_model.embeddings.patch_embedding.weight': state['visual.conv1.weight'],
             'vision_model.embeddings.position_embedding.weight': state['visual.positional_embedding']}
    norms = {'ln_final': 'text_model.final_layer_norm', 'visual.ln_pre': 'vision_model.pre_layrnorm',
             'visual.ln_post': 'vision_model.post_layernorm'}
    parts = {'attn.out_proj': 'self_attn.out_proj', 'ln_1': 'layer_norm1', 'ln_2': 'layer_norm2', 'mlp.c_fc': 'mlp.fc1',
             'mlp.c_proj': 'mlp.fc2'}
    for name, value in state.items():
        part, _, kind = name.rpartition('.')
        if part in norms:
            found[f'{norms[part]}.{kind}'] = value
        elif 'resblocks.' in name:
            side, rest = name.split('transformer.resblocks.')
            layer, rest = rest.split('.', 1)
            layer = f"{'vision' if side else 'text'}_model.encoder.layers.{layer}"
            if rest.startswith('attn.in_proj_'):
                kind = rest.removeprefix('attn.in_proj_')
                found.update({f'{layer}.self_attn.{one}_proj.{kind}': third.clone() for one, third in zip('qkv', value.chunk(3))})
            else:
                part, _, kind = rest.rpartition('.')
                found[f'{layer}.{parts[part]}.{kind}'] = value
    return found


def write_preparation(people, folder):
    """The tokenizer's and the image processor's files."""
    from run_scripts.export import write_tokenizer
    pixels, (height, width) = people.model.pixels, people.args.img_size
    write_tokenizer(people.tokenizer, folder)
    tokens = {'bos_token': '<|startoftext|>', 'eos_token': '<|endoftext|>', 'unk_token': '<|endoftext|>', 'pad_token': '!'}
    files = {'tokenizer_config.json': {'tokenizer_class': 'CLIPTokenizer', 'model_max_length': people.args.text_length, **tokens},
             'special_tokens_map.json': tokens,
             'preprocessor_config.json': {
                 'image_processor_type': 'CLIPImageProcessor', 'do_resize': True, 'size': {'height': height, 'width': width},
                 'resample': RESAMPLE[pixels.interpolation], 'do_center_crop': False, 'do_rescale': True, 'rescale_factor': 1 / 255,
                 'do_normalize': True, 'image_mean': list(pixels.mean), 'image_std': list(pixels.std), 'do_convert_rgb': True}}
    for name, content in files.items():
        with atomic_write(os.path.join(folder, name)) as file:
            json.dump(content, file, indent=1)


@torch.no_grad()
def compare(people, exported):
    """What the exported model's embeddings differ by, in words; :class:`UserError` where that is too much."""
    from run_scripts.export import SENTENCES
    images = torch.randn(3, 3, *people.args.img_size, generator=torch.Generator().manual_seed(0))
    ids = people.tokens(SENTENCES)
    oblong = {'interpolate_pos_encoding': True} if is_oblong(people.args) else {}
    given = exported(input_ids=ids, pixel_values=images, **oblong)          # its embeddings are normalised by itself
    pairs = (people.embed(list(images)), given.image_embeds), (people.encode_captions(SENTENCES), given.text_embeds)
    image, text = ((1 - (mine * theirs).sum(dim=1)).abs().max().item() for mine, theirs in pairs)
    if not max(image, text) <= LARGEST:
        raise UserError(f"transformers' CLIP gives other embeddings: cosine distance {image:.1e} of images, {text:.1e} of captions; "
                        'nothing is written')
    told = f"transformers' embeddings are the model's: largest cosine distance {image:.1e} of images, {text:.1e} of captions"
    if oblong:
        told += (f'\nimages are {people.args.img_size[0]}x{people.args.img_size[1]}: call the model with interpolate_pos_encoding=True, '
                 'without which it takes square images alone and refuses others')
    return told
