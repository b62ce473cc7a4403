"""The text and fusion encoder of APTM and ALBEF: BERT (Devlin et al., NAACL 2019) with Hugging Face's parameter names.

The upper layers, or all of them, attend to the tokens of an image, as in ALBEF (Li et al., NeurIPS 2021).
"""
import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

HIDDEN = -10000.0   # added to the attention scores of padding


@dataclass
class BertShape:
    """The sizes of a BERT.

    The first ``fusion_layer`` of the ``layers`` read a text alone. The others also attend to image tokens of width
    ``image_width``. With ``full_ca`` the first ones attend to them also if there is an image (MARS, ACM TOMM 2025).
    """
    vocab_size: int = 30522
    width: int = 768
    layers: int = 12
    fusion_layer: int = 6
    heads: int = 12
    mlp_width: int = 3072
    positions: int = 512
    image_width: int = 1024
    dropout: float = 0.1
    eps: float = 1e-12
    init_std: float = 0.02
    full_ca: bool = False

    def attends_to_image(self, layer):
        """Whether a layer, by its number from 0, has cross-attention."""
        return self.full_ca or layer >= self.fusion_layer


class Embeddings(nn.Module):
    """Token ids [B, L] -> [B, L, D]."""

    def __init__(self, shape):
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(shape.positions, shape.width)
        self.token_type_embeddings = nn.Embedding(2, shape.width)
        self.LayerNorm = nn.LayerNorm(shape.width, eps=shape.eps)
        self.dropout = nn.Dropout(shape.dropout)
        self.register_buffer('position_ids', torch.arange(shape.positions)[None])

    def forward(self, ids):
        x = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(x + self.position_embeddings(self.position_ids[:, :ids.shape[1]])))


class SelfAttention(nn.Module):
    """Attention of [B, L, D] to [B, N, K] without the output projection."""

    def __init__(self, shape, source_width):
        super().__init__()
        self.heads, self.dropout = shape.heads, shape.dropout
        self.query = nn.Linear(shape.width, shape.width)
        self.key = nn.Linear(source_width, shape.width)
        self.value = nn.Linear(source_width, shape.width)

    def forward(self, x, source, mask=None):
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2)      # [B, heads, L or N, D/heads]
                             for part in (self.query(x), self.key(source), self.value(source)))
        if mask is not None:
            mask = mask.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, mask, self.dropout if self.training else 0.0)
        return mixed.transpose(1, 2).flatten(2)


class Output(nn.Module):
    """Projection, dropout, residual and LayerNorm, the end of every part of BERT."""

    def __init__(self, shape, width):
        super().__init__()
        self.dense = nn.Linear(width, shape.width)
        self.LayerNorm = nn.LayerNorm(shape.width, eps=shape.eps)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x, residual):
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    def __init__(self, shape, source_width):
        super().__init__()
        self.self = SelfAttention(shape, source_width)
        self.output = Output(shape, shape.width)

    def forward(self, x, source, mask=None):
        return self.output(self.self(x, source, mask), x)


class Intermediate(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.dense = nn.Linear(shape.width, shape.mlp_width)

    def forward(self, x):
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Self-attention, cross-attention (in fusion layers) and feed-forward part: [B, L, D] -> [B, L, D].

    Without ``image_tokens``, cross-attention is skipped. With ``first_only`` it computes the first token only,
    [B, 1, D], which is enough in a last layer.
    """

    def __init__(self, shape, fuses):
        super().__init__()
        self.attention = Attention(shape, shape.width)
        if fuses:
            self.crossattention = Attention(shape, shape.image_width)
        self.fuses = fuses
        self.intermediate = Intermediate(shape)
        self.output = Output(shape, shape.mlp_width)

    def forward(self, x, mask, image_tokens=None, first_only=False):
        x = self.attention(x[:, :1] if first_only else x, x, mask)
        if image_tokens is not None:
            x = self.crossattention(x, image_tokens)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.layer = nn.ModuleList([Layer(shape, shape.attends_to_image(number)) for number in range(shape.layers)])


class Bert(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.embeddings = Embeddings(shape)
        self.encoder = Encoder(shape)


class Transform(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.dense = nn.Linear(shape.width, shape.width)
        self.LayerNorm = nn.LayerNorm(shape.width, eps=shape.eps)

    def forward(self, x):
        return self.LayerNorm(F.gelu(self.dense(x)))


class Predictions(nn.Module):
    """Scores of all words: tokens [M, D] -> [M, V]. The weights are those of the word embeddings."""

    def __init__(self, shape, embeddings):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape.vocab_size))
        self.transform = Transform(shape)
        self.decoder = nn.Linear(shape.width, shape.vocab_size)
        self.decoder.weight, self.decoder.bias = embeddings.weight, self.bias

    def forward(self, x):
        return self.decoder(self.transform(x))


class TextEncoder(nn.Module):
    """BERT for a text alone (``encode``), for text tokens with image tokens (``fuse``), or for both at once (``read``).

    With ``full_ca``, ``read`` differs from ``fuse`` after ``encode``, because the lower layers attend to the image.

    ``ids`` are [B, L]. ``mask`` [B, L] is 1 at words and 0 at padding. ``image_tokens`` are [B, N, image width]. Each
    method returns tokens [B, L, D]; the first one represents the text.
    """

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.bert = Bert(shape)
        self.cls = nn.ModuleDict({'predictions': Predictions(shape, self.bert.embeddings.word_embeddings)})
        self.grad_checkpoint = False
        self.apply(functools.partial(initialize, std=shape.init_std))

    def encode(self, ids, mask):
        """Run the lower layers on a text."""
        return self._run(self.bert.encoder.layer[:self.shape.fusion_layer], self.bert.embeddings(ids), mask)

    def fuse(self, text_tokens, mask, image_tokens, first_only=False):
        """Run the upper layers on text and image tokens; with ``first_only`` on the first token only, [B, 1, D]."""
        return self._run(self.bert.encoder.layer[self.shape.fusion_layer:], text_tokens, mask, image_tokens, first_only)

    def read(self, ids, mask, image_tokens, first_only=False):
        """Run all layers on a text with image tokens; with ``first_only`` return the first token only, [B, 1, D]."""
        return self._run(self.bert.encoder.layer, self.bert.embeddings(ids), mask, image_tokens, first_only)

    def predict(self, tokens):
        """Score all words: tokens [M, D] -> [M, V]."""
        return self.cls['predictions'](tokens)

    def _run(self, layers, x, mask, image_tokens=None, first_only=False):
        mask = (1.0 - mask[:, None, None, :].float()) * HIDDEN          # [B, 1, 1, L]
        for layer in layers:
            settings = mask, image_tokens if layer.fuses else None, first_only and layer is layers[-1]
            if self.grad_checkpoint and self.training:
                x = checkpoint(layer, x, *settings, use_reentrant=False)
            else:
                x = layer(x, *settings)
        return x


def initialize(part, std):
    """Initialize weights from a normal with standard deviation ``std``; biases and the padding's embedding are 0."""
    if isinstance(part, (nn.Linear, nn.Embedding)):
        nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            with torch.no_grad():
                part.weight[part.padding_idx].zero_()
        elif isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
