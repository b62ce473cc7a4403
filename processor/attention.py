"""Where a model looks, of a photo and a caption: what the pedestal library and run_scripts/attention.py show."""
import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from processor.runs import embed_queries

PIECES = 24, 8   # of a photo, hidden one after the other: rows and columns of IRRA's patches
NAMED = 3        # words behind the title of a head's map


class Look(NamedTuple):
    """Where a model looks.

    Attributes:
        similarity: of the photo and the caption, a cosine.
        maps: ``[(title, [rows, cols])]`` over the photo: the attention of the embedding's token in the last block, what heads read
            (:meth:`model.heads.Head.attention_maps`), each with the words that it weighs most, and what hiding a piece takes away.
        words: ``[(word, [rows, cols] or None, what leaving it out takes away)]``: the patches that each of the caption's tokens attends to
            in the cross encoder or, without one, the cosines of its token and theirs; None where tokens cannot be compared.
    """
    similarity: float
    maps: list
    words: list


def look(people, image, caption):
    """The :class:`Look` of a :class:`pedestal.People` at a photo as it reads it, [3, H, W], and a caption."""
    pair = Pair(people, image, caption)
    maps = [*pair.of_last_block(), *pair.of_heads(), ('hidden here, it falls by', pair.fall())]
    return Look(pair.similarity, maps, [(word, rows, loss) for (word, rows), loss in zip(pair.of_words(), pair.left_out())])


class Pair:
    """A photo and a caption, and what a model makes of them."""

    def __init__(self, people, image, caption):
        self.people, self.model, self.backbone = people, people.model, people.model.backbone
        self.image, self.ids = image, people.tokens([caption])                                       # [3, H, W], [1, L]
        self.own, self.query = people.embed([image])[0], people.encode_captions([caption])[0]        # [D] each
        self.similarity = float(self.own @ self.query)
        self.words = range(1, int(self.backbone.lengths(self.ids)[0]) - (people.tokenizer.end in self.ids[0].tolist()))

    @functools.cached_property
    @torch.no_grad()
    def encoded(self):
        """((image tokens, its attention), (the caption's tokens, its attention)); attention is None where the backbone gives none."""
        device, gives = self.people.device, self.backbone.gives
        with self.model.autocast():
            of_image = self.backbone.encode_image(self.image[None].to(device), 'image_attention' in gives)
            return of_image, self.backbone.encode_text(self.ids.to(device), 'text_attention' in gives)

    @property
    def has_tokens(self):
        return {'image_tokens', 'image_attention', 'text_tokens'} <= self.backbone.gives

    def over_the_photo(self, weights):
        """[N] of patches -> [rows, cols]."""
        return weights.float().cpu().view(self.backbone.encoder.grid)

    def of_last_block(self):
        if 'image_attention' not in self.backbone.gives:
            return []
        (_, attended), _ = self.encoded
        return [('the embedding looks at', self.over_the_photo(attended[0, 0, 1:]))]

    @torch.no_grad()
    def of_heads(self):
        if not self.has_tokens:
            return []
        found, ((patches, of_image), (tokens, of_text)) = [], self.encoded
        for head in self.model.heads:
            with self.model.autocast():
                on_photo = head.attention_maps('image', patches, None, of_image)
                on_words = head.attention_maps('text', tokens, self.ids.to(tokens.device), of_text)
            found += [(self.titled(title, on_words.get(title)), self.over_the_photo(rows[0])) for title, rows in on_photo.items()]
        return found

    def titled(self, title, weights):
        """A map's title with the words of largest weight [1, L], in the caption's order."""
        weights = {} if weights is None else {place: float(weights[0, place]) for place in self.words}
        best = sorted((place for place in weights if weights[place] > 0), key=lambda place: -weights[place])[:NAMED]
        return f'{title}: {" ".join(self.word(place) for place in sorted(best))}' if best else title

    def word(self, place):
        return self.people.tokenizer.decode([int(self.ids[0, place])]).strip()

    def fall(self):
        """[rows, cols]: what each piece's hiding, under the mean colour, takes away from the similarity."""
        height, width = self.image.shape[1:]
        rows, cols = min(PIECES[0], height), min(PIECES[1], width)
        hidden = self.image.repeat(rows * cols, 1, 1, 1)                                     # [rows * cols, 3, H, W]
        for number, one in enumerate(hidden):
            row, col = divmod(number, cols)
            one[:, row * height // rows:(row + 1) * height // rows, col * width // cols:(col + 1) * width // cols] = 0
        return (self.similarity - self.people.embed(list(hidden)) @ self.query).view(rows, cols)

    @torch.no_grad()
    def of_words(self):
        """[(word, [rows, cols] or None)] of the caption's tokens between start and end."""
        words = [self.word(place) for place in self.words]
        if not self.has_tokens:
            return [(word, None) for word in words]
        model, ((patches, _), (tokens, _)) = self.model, self.encoded
        with model.autocast():
            if hasattr(model, 'cross_attn'):
                _, maps = model.cross_attn(model.ln_pre_t(tokens), *[model.ln_pre_i(patches)] * 2, need_map=True)      # [1, L, N]
            else:
                maps = F.normalize(tokens.float(), dim=-1) @ F.normalize(patches.float(), dim=-1).transpose(1, 2)
        return [(word, self.over_the_photo(maps[0, place, 1:])) for word, place in zip(words, self.words)]

    def left_out(self):
        """What each token's leaving out takes away from the similarity."""
        ids, pad = self.ids[0], self.people.tokenizer.pad
        without = [F.pad(torch.cat([ids[:place], ids[place + 1:]]), (0, 1), value=pad) for place in self.words]
        if len(without) < 2:
            return [0.0] * len(without)
        return (self.similarity - F.normalize(embed_queries(self.model, torch.stack(without)), dim=1) @ self.own).tolist()
