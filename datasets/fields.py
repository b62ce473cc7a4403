"""The text fields of a training batch. To add a field, add one function to this file."""
import functools

import torch

from datasets.eda import augment_caption, load_synonyms
from datasets.masking import (
    MASK_PROBABILITY, descriptive_positions, mask_bert_tokens, mask_tokens, noun_mask_probabilities,
)
from datasets.side_texts import SECOND_CAPTIONS, draw_second_caption
from datasets.whole_word_masking import mask_whole_words

REPLACED_TOKEN_PROBABILITY = 0.3     # of a piece that RaSa's mrtd replaces

FIELDS = {}   # {name: function from a CaptionSample to a tensor}, in the order in which a sample's fields are computed


def field(function=None, *, uses_masking=False, uses_tags=False, side_text=''):
    """Register a function in :data:`FIELDS` under its own name.

    Args:
        function: from a :class:`CaptionSample` to a tensor.
        uses_masking: whether it reads ``sample.masked``. With ``--mlm_masking attention`` or ``saliency`` the model
            computes such a field, and samples do not have it.
        uses_tags: whether it reads ``sample.transform.attribute_groups`` or ``.parts_of_speech``. All captions are
            tagged at the start then.
        side_text: the annotation key of the side text that it reads, '' for none. Every training caption must have one
            then (:mod:`datasets.side_texts`).
    """
    if function is None:
        return functools.partial(field, uses_masking=uses_masking, uses_tags=uses_tags, side_text=side_text)
    function.uses_masking, function.uses_tags, function.side_text = uses_masking, uses_tags, side_text
    FIELDS[function.__name__] = function
    return function


class CaptionSample:
    """A training pair's caption in one epoch.

    Attributes:
        transform: the :class:`datasets.text.CaptionTransform`, with its settings.
        index: the pair's index in it.
        caption_index: the index of the pair whose caption the sample has: ``index``, unless ``--weak_positive_rate``
            draws another caption of the same person.
        rng: a ``random.Random``. A field that draws random numbers belongs at the end of this file, so that the fields
            before it do not depend on it.
        ids: int64 [L], the token ids, after ``--caption_filter`` and ``--txt_aug``.
        token_positions: the positions in the original caption of the tokens in ``ids``, a list or a slice of all.
    """

    def __init__(self, transform, index, rng):
        self.transform, self.index, self.rng = transform, index, rng
        self.caption_index = transform.draw_caption(index, rng)
        self.ids, self.token_positions = transform.tokens[self.caption_index].long(), slice(None)
        filter_rate = transform.masking.caption_filter
        if filter_rate and rng.random() < filter_rate:
            parts_of_speech = transform.parts_of_speech[self.caption_index]
            self.token_positions = descriptive_positions(self.ids.tolist(), parts_of_speech.tolist(), transform.mask_id)
            self.ids = self.select_tokens(self.ids)
        if transform.augment is not None:
            self.ids, self.token_positions = transform.augment(self)

    @property
    def image_id(self):
        """The image that the caption describes in the annotation."""
        return self.transform.samples[self.caption_index][1]

    @property
    def caption(self):
        """The caption as text."""
        return self.transform.samples[self.caption_index][3]

    @property
    def own_ids(self):
        """int64 [L], the token ids of the pair's own caption."""
        return self.transform.tokens[self.index].long()

    def side_text(self, key):
        """The caption's side text under an annotation key, '' if it has none (:mod:`datasets.side_texts`)."""
        side_texts = self.transform.side_texts.get(key)
        return '' if side_texts is None else side_texts[self.caption_index]

    def augment_further(self, caption):
        """Augment a further caption of the pair in the same way, with other random numbers: token ids, int64 [L]."""
        further = FurtherCaption(self, caption)
        return further.ids if self.transform.augment is None else self.transform.augment(further)[0]

    def select_tokens(self, values):
        """Select the values of the tokens in ``ids`` from the original caption's values [L], padded with zeros."""
        result = torch.zeros_like(values)
        selected = values[self.token_positions]
        result[:len(selected)] = selected
        return result

    @functools.cached_property
    def masked(self):
        """``(masked ids [L], labels [L])`` of :func:`datasets.masking.mask_tokens`."""
        transform, probabilities = self.transform, None
        masking = transform.masking
        if masking.mlm_masking == 'noun':
            parts_of_speech = self.select_tokens(transform.parts_of_speech[self.caption_index])
            probabilities = noun_mask_probabilities(parts_of_speech.tolist())
        masked = mask_tokens(self.ids.tolist(), self.rng, transform.mask_id, masking.masked_token_rate,
                             masking.masked_token_unchanged_rate, probabilities)
        return tuple(map(torch.tensor, masked))

    @functools.cached_property
    def masked_words(self):
        """``(masked ids [L], positions [M], labels [M])`` of :func:`datasets.whole_word_masking.mask_whole_words`."""
        tokenizer = self.transform.tokenizer
        masked = mask_whole_words(self.ids.tolist(), self.rng, tokenizer.mask_id, tokenizer.continuation_ids,
                                  tokenizer.vocab_size)
        return tuple(map(torch.tensor, masked))

    @functools.cached_property
    def masked_own_caption(self):
        """``(masked ids [L], labels [L])`` of the pair's own caption (:func:`datasets.masking.mask_bert_tokens`)."""
        masked = mask_bert_tokens(self.own_ids.tolist(), self.rng, self.transform.tokenizer, MASK_PROBABILITY)
        return tuple(map(torch.tensor, masked))


class FurtherCaption(CaptionSample):
    """A further caption of a pair, which ``transform.augment`` augments also. It has no side texts."""
    caption = ''

    def __init__(self, sample, caption):
        self.transform, self.index, self.caption_index = sample.transform, sample.index, sample.caption_index
        self.rng, self.caption = sample.rng, caption
        self.ids, self.token_positions = self.transform.tokenize(caption), slice(None)

    def side_text(self, key):
        return ''


@field
def caption_ids(sample):
    transform = sample.transform
    return sample.masked[0] if transform.masks_captions and transform.masking.masks_in_place else sample.ids


@field(uses_masking=True)
def mlm_ids(sample):
    return sample.masked[0]


@field(uses_masking=True)
def mlm_labels(sample):
    return sample.masked[1]


@field(uses_tags=True)
def attributes_mask(sample):
    """The number of the attribute that each token of ``caption_ids`` belongs to, int64 [L]; 0: none."""
    return sample.select_tokens(sample.transform.attribute_groups[sample.caption_index]).long()


@field
def bert_mlm_ids(sample):
    return sample.masked_words[0]


@field
def bert_mlm_positions(sample):
    return sample.masked_words[1]


@field
def bert_mlm_labels(sample):
    return sample.masked_words[2]


@field
def eda_ids(sample):
    """Token ids of the caption after easy data augmentation (:mod:`datasets.eda`), int64 [L]."""
    return sample.transform.tokenize(augment_caption(sample.caption, sample.rng, load_synonyms()))


@field
def attribute_labels(sample):
    """The image's attributes, int64 [A]: 1, 0, or -1 for unknown."""
    return sample.transform.labels[sample.index].long()


@field
def prompt_seed(sample):
    """The seed that masks the attributes' prompts, once per batch (:class:`datasets.prompts.PromptCollator`)."""
    return torch.tensor(sample.rng.getrandbits(62))


@field(side_text=SECOND_CAPTIONS)
def second_caption_ids(sample):
    """Token ids of a second caption, drawn again in each epoch (ICL, CVPR 2025), int64 [L].

    ``--txt_aug`` augments it as the caption, with other random numbers. ``--caption_filter`` does not apply to it.
    """
    return sample.augment_further(draw_second_caption(sample.side_text(SECOND_CAPTIONS), sample.rng))


@field
def own_caption_ids(sample):
    """Token ids of the pair's own caption, int64 [L]. ``caption_ids`` can be another one of the same person."""
    return sample.own_ids


@field
def replaced(sample):
    """Whether ``caption_ids`` differ from the pair's own caption: 1 or 0, int64 (RaSa)."""
    return (sample.ids != sample.own_ids).any().long()


@field
def own_mlm_ids(sample):
    """The pair's own caption with masked word pieces, int64 [L] (ALBEF)."""
    return sample.masked_own_caption[0]


@field
def own_mlm_labels(sample):
    """The original ids of the masked word pieces, int64 [L]; -100: not masked."""
    return sample.masked_own_caption[1]


@field
def own_mrtd_ids(sample):
    """The pair's own caption, masked for the momentum model that replaces pieces, int64 [L] (RaSa)."""
    return torch.tensor(mask_bert_tokens(sample.own_ids.tolist(), sample.rng, sample.transform.tokenizer,
                                         REPLACED_TOKEN_PROBABILITY)[0])
