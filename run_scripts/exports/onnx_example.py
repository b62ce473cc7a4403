"""Rank photos for a description, with the exported encoders and without PyTorch.

    pip install onnxruntime numpy pillow ftfy regex
    python example.py "a woman in a red coat" photo_1.jpg photo_2.jpg

It prints the cosine similarity and the path of each photo, the best one first. config.json next to this file says how
photos and captions are prepared.
"""
import json
import os
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FOLDER = os.path.dirname(os.path.abspath(__file__))
RESIZE = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}


def main(description, *paths):
    with open(os.path.join(FOLDER, 'config.json'), encoding='utf-8') as file:
        config = json.load(file)
    images = np.stack([read_image(path, config['image']) for path in paths])                # [B, 3, H, W]
    ids = np.array([tokenize(description, config['text'])], dtype=np.int64)                 # [1, L]
    similarities = embed('image', images) @ embed('text', ids)[0]                           # [B]
    for index in np.argsort(-similarities, kind='stable'):
        print(f'{similarities[index]:.4f} {paths[index]}')


def embed(side, inputs):
    """Embed a batch of images or captions: float32 [B, D], of length 1."""
    session = onnxruntime.InferenceSession(os.path.join(FOLDER, f'{side}_encoder.onnx'),
                                           providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def read_image(path, config):
    """Read a photo as the encoder expects it: resized and normalized, float32 [3, H, W]."""
    image = ImageOps.exif_transpose(Image.open(path)).convert('RGB')
    image = image.resize((config['width'], config['height']), RESIZE[config['resize']])
    pixels = (np.asarray(image, dtype=np.float32) / 255 - config['mean']) / config['std']
    return pixels.transpose(2, 0, 1).astype(np.float32)


def tokenize(caption, config):
    """Convert a caption to ids: the start, its tokens, the end and padding."""
    sys.path.insert(0, FOLDER)
    import simple_tokenizer
    tokenizer = getattr(simple_tokenizer, config['class'])(os.path.join(FOLDER, simple_tokenizer.MERGES_FILE))
    ids = tokenizer.add_special_tokens(tokenizer.encode(caption), config['length'])
    return ids + [config['pad']] * (config['length'] - len(ids))


if __name__ == '__main__':
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
