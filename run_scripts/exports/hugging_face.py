"""Export a run's encoders as the CLIP of Hugging Face's transformers, for run_scripts/export.py."""
import inspect
import json
import math
import os

import torch
import torch.nn.functional as F

from model.clip_weights import shape_of
from run_scripts.exports import MAX_DISTANCE, TEST_SENTENCES
from run_scripts.exports.tokenizer import write_tokenizer
from utils.errors import UserError
from utils.iotools import atomic_write

RESAMPLE = {'bilinear': 2, 'bicubic': 3}   # PIL's numbers, which the image processor's file holds


def export_clip(people, folder):
    """Write a folder for ``CLIPModel.from_pretrained``, with its tokenizer and image processor.

    Args:
        people: the :class:`pedestal.People` of a run.
        folder: an existing folder.

    Returns:
        A sentence about the largest difference to the model's embeddings.

    Raises:
        UserError: the run is not a plain CLIP, or the exported embeddings differ.
    """
    transformers = import_transformers(is_oblong(people.args))
    require_plain_clip(people)
    args, clip = people.args, people.model.base_model
    state, logit_scale = clip.state_dict(), math.log(1 / args.temperature)
    shape = shape_of(state)
    config = transformers.CLIPConfig(
        projection_dim=clip.embed_dim, logit_scale_init_value=logit_scale,
        text_config=dict(vocab_size=clip.vocab_size, max_position_embeddings=args.text_length,
                         bos_token_id=people.tokenizer.start_id, eos_token_id=people.tokenizer.end_id,
                         pad_token_id=people.tokenizer.pad_id, projection_dim=clip.embed_dim,
                         **encoder_config(shape.text_width, shape.text_layers, clip.activation)),
        vision_config=dict(image_size=max(args.img_size), patch_size=clip.patch_size, projection_dim=clip.embed_dim,
                           **encoder_config(shape.vision_width, shape.vision_layers, clip.activation)))
    exported = transformers.CLIPModel(config).eval()
    if is_oblong(args):
        state['visual.positional_embedding'] = square_position_table(state['visual.positional_embedding'], clip.grid)
    exported.load_state_dict(rename_parameters(state, logit_scale))
    transformers.utils.logging.disable_progress_bar()
    exported.save_pretrained(folder)
    write_preprocessing(people, folder)
    for name in os.listdir(folder):                       # transformers makes its weights readable by the owner only
        os.chmod(os.path.join(folder, name), 0o644)
    return compare_embeddings(people, transformers.CLIPModel.from_pretrained(folder).eval())


def import_transformers(oblong=False):
    """Import transformers. ``oblong``: whether images are not square, which old versions do not support."""
    try:
        import transformers
    except ImportError:
        raise UserError('--to huggingface needs transformers: pip install transformers') from None
    if oblong and 'interpolate_pos_encoding' not in inspect.signature(transformers.CLIPModel.forward).parameters:
        raise UserError(f"--to huggingface: the CLIP of transformers {transformers.__version__} supports only square "
                        'images: pip install -U transformers, or use --to onnx, which supports every run')
    return transformers


def require_plain_clip(people):
    """Raise :class:`~utils.errors.UserError` if transformers' CLIP cannot represent a run's model."""
    model, args = people.model, people.args
    is_clip, (height, width) = args.backbone == 'clip', args.img_size
    patch = model.base_model.patch_size if is_clip else None
    reasons = {
        "its backbone is not CLIP's": not is_clip,
        'its backbone is a ResNet': is_clip and not model.base_model.has_image_tokens,
        'its encoders have a tuning; --to full --merge writes LoRA without one': args.tuning != 'none',
        'a head refines its embeddings': model.refines_embeddings,
        'a head adds an embedding of its own': bool(model.embedding_parts),
        f'its images of {height}x{width} are not a multiple of its patches of {patch}':
            is_clip and is_oblong(args) and any(side % patch for side in args.img_size),
        'its patches overlap': is_clip and patch != model.base_model.stride_size}
    reasons = [reason for reason, holds in reasons.items() if holds]
    if reasons:
        raise UserError(f"--to huggingface: this run is not a plain CLIP ({'; '.join(reasons)}); "
                        'use --to onnx, which supports every run')


def is_oblong(args):
    return len(set(args.img_size)) > 1


def square_position_table(table, grid):
    """Position embeddings of a square image from those of an oblong one.

    transformers' CLIP holds only square tables. With ``interpolate_pos_encoding=True`` it resizes them to an image's
    grid. Several square tables give the oblong one after that, and this is the one with the smallest norm.

    Args:
        table: [1 + rows * cols, W].
        grid: (rows, cols).

    Returns:
        [1 + side * side, W]; side is the larger of rows and cols.
    """
    side, (rows, cols) = max(grid), grid
    patches = table[1:].double().view(rows, cols, -1)
    patches = torch.einsum('ar,rcw,bc->abw', inverse_resizing(side, rows), patches, inverse_resizing(side, cols))
    return torch.cat([table[:1], patches.flatten(0, 1).to(table.dtype)])


def inverse_resizing(side, length):
    """The [side, length] matrix whose effect transformers' bicubic resizing from ``side`` to ``length`` undoes."""
    rows = torch.eye(side, dtype=torch.float64)[None, :, :, None]                                   # a row per image
    resized = F.interpolate(rows, size=(length, 1), mode='bicubic', align_corners=False)[0, :, :, 0]  # [side, length]
    return torch.linalg.pinv(resized.t())


def encoder_config(width, layers, activation):
    return dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                num_attention_heads=width // 64, hidden_act=activation)


def rename_parameters(state, logit_scale):
    """OpenAI's parameters under transformers' names. Splits q, k and v, and transposes the projections."""
    renamed = {'logit_scale': torch.tensor(logit_scale),
               'visual_projection.weight': state['visual.proj'].t().contiguous(),
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
            renamed[f'{norms[part]}.{kind}'] = value
        elif 'resblocks.' in name:
            side, rest = name.split('transformer.resblocks.')
            layer, rest = rest.split('.', 1)
            layer = f"{'vision' if side else 'text'}_model.encoder.layers.{layer}"
            if rest.startswith('attn.in_proj_'):
                kind = rest.removeprefix('attn.in_proj_')
                for projection, third in zip('qkv', value.chunk(3)):
                    renamed[f'{layer}.self_attn.{projection}_proj.{kind}'] = third.clone()
            else:
                part, _, kind = rest.rpartition('.')
                renamed[f'{layer}.{parts[part]}.{kind}'] = value
    return renamed


def write_preprocessing(people, folder):
    """Write the files of the tokenizer and the image processor."""
    stats, (height, width) = people.model.image_stats, people.args.img_size
    write_tokenizer(people.tokenizer, folder)
    tokens = {'bos_token': '<|startoftext|>', 'eos_token': '<|endoftext|>', 'unk_token': '<|endoftext|>',
              'pad_token': '!'}
    files = {
        'tokenizer_config.json': {
            'tokenizer_class': 'CLIPTokenizer', 'model_max_length': people.args.text_length, **tokens},
        'special_tokens_map.json': tokens,
        'preprocessor_config.json': {
            'image_processor_type': 'CLIPImageProcessor', 'do_resize': True, 'size': {'height': height, 'width': width},
            'resample': RESAMPLE[stats.interpolation], 'do_center_crop': False, 'do_rescale': True,
            'rescale_factor': 1 / 255, 'do_normalize': True, 'image_mean': list(stats.mean),
            'image_std': list(stats.std), 'do_convert_rgb': True}}
    for name, content in files.items():
        with atomic_write(os.path.join(folder, name)) as file:
            json.dump(content, file, indent=1)


@torch.no_grad()
def compare_embeddings(people, exported):
    """Compare the embeddings of the exported model with the run's.

    Returns:
        A sentence about the largest difference.

    Raises:
        UserError: the difference is too large.
    """
    height, width = people.args.img_size
    images = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    ids = people.tokenize(TEST_SENTENCES)
    oblong = {'interpolate_pos_encoding': True} if is_oblong(people.args) else {}
    outputs = exported(input_ids=ids, pixel_values=images, **oblong)          # transformers normalizes its embeddings
    pairs = ((people.embed_images(list(images)), outputs.image_embeds),
             (people.encode_captions(TEST_SENTENCES), outputs.text_embeds))
    image_distance, text_distance = ((1 - (ours * theirs).sum(dim=1)).abs().max().item() for ours, theirs in pairs)
    if not max(image_distance, text_distance) <= MAX_DISTANCE:
        raise UserError(f"--to huggingface: transformers' CLIP gives other embeddings: cosine distance "
                        f'{image_distance:.1e} of images, {text_distance:.1e} of captions; nothing is written')
    sentence = (f"transformers' embeddings equal the model's: largest cosine distance {image_distance:.1e} of images, "
                f'{text_distance:.1e} of captions')
    if oblong:
        sentence += (f'\nimages are {height}x{width}: call the model with interpolate_pos_encoding=True; '
                     'without it, it rejects images that are not square')
    return sentence
