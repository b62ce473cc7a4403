"""Explain the similarity of an image and a caption with maps over the image and with words.

:meth:`pedestal.People.explain` and run_scripts/attention.py use this module.
"""
import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.heads import DrawsAttentionMaps
from processor.runs import embed_queries

OCCLUSION_GRID = 24, 8   # rows and columns of the occlusion map: IRRA's patches of a 384x128 image
TITLE_WORDS = 3          # words in the title of a head's map


class Explanation(NamedTuple):
    """Why an image and a caption are similar.

    Attributes:
        similarity: the cosine similarity of the image and the caption.
        maps: ``[(title, [rows, columns])]`` over the image:

            - the attention of the class token in the last block;
            - what heads read (:class:`model.heads.DrawsAttentionMaps`), each with the words of largest weight;
            - how much the similarity drops if a part of the image is hidden.
        words: ``[(word, [rows, columns] or None, drop)]`` for each token of the caption. The map over the image is the
            token's attention in the cross encoder. Without a cross encoder it holds the cosine similarities of the
            token and the patches. It is None if they cannot be compared. ``drop`` is how much the similarity drops
            without the word.
    """
    similarity: float
    maps: list
    words: list


def explain(people, image, caption):
    """Explain the similarity of an image and a caption.

    Args:
        people: a :class:`pedestal.People`.
        image: [3, H, W], as ``people.load_image`` returns it.
        caption: a text.

    Returns:
        An :class:`Explanation`.
    """
    pair = ImageCaptionPair(people, image, caption)
    maps = [*pair.last_block_maps(), *pair.head_maps(), ('similarity drop if hidden', pair.occlusion_map())]
    words = [(word, patches, drop) for (word, patches), drop in zip(pair.word_maps(), pair.word_drops())]
    return Explanation(pair.similarity, maps, words)


class ImageCaptionPair:
    """An image and a caption, with their embeddings and tokens.

    Attributes:
        image: [3, H, W], normalized.
        ids: [1, L] token ids of the caption.
        image_embedding, text_embedding: [D] each, normalized.
        similarity: their cosine similarity.
        positions: the positions of the caption's tokens between start and end token.
    """

    def __init__(self, people, image, caption):
        self.people, self.model, self.backbone = people, people.model, people.model.backbone
        self.image, self.ids = image, people.tokenize([caption])
        self.image_embedding = people.embed_images([image])[0]
        self.text_embedding = people.encode_captions([caption])[0]
        self.similarity = float(self.image_embedding @ self.text_embedding)
        has_end = people.tokenizer.end_id in self.ids[0].tolist()
        self.positions = range(1, int(self.backbone.lengths(self.ids)[0]) - has_end)

    @functools.cached_property
    @torch.no_grad()
    def encoded(self):
        """``((image tokens, attention), (text tokens, attention))``; an attention is None if the backbone has none."""
        device, provides = self.people.device, self.backbone.provides
        with self.model.autocast():
            encoded_image = self.backbone.encode_image(self.image[None].to(device), 'image_attention' in provides)
            return encoded_image, self.backbone.encode_text(self.ids.to(device), 'text_attention' in provides)

    @property
    def has_tokens(self):
        return {'image_tokens', 'image_attention', 'text_tokens'} <= self.backbone.provides

    def to_grid(self, weights):
        """Arrange weights of patches, [N] -> [rows, columns]."""
        return weights.float().cpu().view(self.backbone.encoder.grid)

    def last_block_maps(self):
        if 'image_attention' not in self.backbone.provides:
            return []
        (_, attention), _ = self.encoded
        return [('attention of the embedding', self.to_grid(attention[0, 0, 1:]))]

    @torch.no_grad()
    def head_maps(self):
        if not self.has_tokens:
            return []
        (patches, image_attention), (tokens, text_attention) = self.encoded
        maps = []
        for head in self.model.heads_with(DrawsAttentionMaps):
            with self.model.autocast():
                image_maps = head.attention_maps('image', patches, None, image_attention)
                word_weights = head.attention_maps('text', tokens, self.ids.to(tokens.device), text_attention)
            maps += [(self.format_title(title, word_weights.get(title)), self.to_grid(weights[0]))
                     for title, weights in image_maps.items()]
        return maps

    def format_title(self, title, weights):
        """Add the words of largest weight to the title of a map, in the caption's order; ``weights`` [1, L] or None."""
        weights = {} if weights is None else {position: float(weights[0, position]) for position in self.positions}
        positive = (position for position in weights if weights[position] > 0)
        best = sorted(positive, key=lambda position: -weights[position])[:TITLE_WORDS]
        return f'{title}: {" ".join(self.decode_word(position) for position in sorted(best))}' if best else title

    def decode_word(self, position):
        return self.people.tokenizer.decode([int(self.ids[0, position])]).strip()

    def occlusion_map(self):
        """Compute how much the similarity drops if a cell of the image has the mean color: [rows, columns]."""
        height, width = self.image.shape[1:]
        rows, columns = min(OCCLUSION_GRID[0], height), min(OCCLUSION_GRID[1], width)
        occluded = self.image.repeat(rows * columns, 1, 1, 1)                                # [rows * columns, 3, H, W]
        for number, image in enumerate(occluded):
            row, column = divmod(number, columns)
            top, bottom = row * height // rows, (row + 1) * height // rows
            left, right = column * width // columns, (column + 1) * width // columns
            image[:, top:bottom, left:right] = 0
        similarities = self.people.embed_images(list(occluded)) @ self.text_embedding
        return (self.similarity - similarities).view(rows, columns)

    @torch.no_grad()
    def word_maps(self):
        """Return ``[(word, [rows, columns] or None)]`` for the caption's tokens between start and end token."""
        words = [self.decode_word(position) for position in self.positions]
        if not self.has_tokens:
            return [(word, None) for word in words]
        model, ((patches, _), (tokens, _)) = self.model, self.encoded
        with model.autocast():
            if hasattr(model, 'cross_attn'):
                keys = model.ln_pre_i(patches)
                _, maps = model.cross_attn(model.ln_pre_t(tokens), keys, keys, need_map=True)      # [1, L, N]
            else:
                maps = F.normalize(tokens.float(), dim=-1) @ F.normalize(patches.float(), dim=-1).transpose(1, 2)
        return [(word, self.to_grid(maps[0, position, 1:])) for word, position in zip(words, self.positions)]

    def word_drops(self):
        """Return how much the similarity drops without each token of the caption."""
        ids, pad = self.ids[0], self.people.tokenizer.pad_id
        shortened = [F.pad(torch.cat([ids[:position], ids[position + 1:]]), (0, 1), value=pad)
                     for position in self.positions]
        if len(shortened) < 2:
            return [0.0] * len(shortened)
        embeddings = F.normalize(embed_queries(self.model, torch.stack(shortened)), dim=1)
        return (self.similarity - embeddings @ self.image_embedding).tolist()
