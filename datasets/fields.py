"""The text fields of a training batch. To add a field, add one function to this file."""
import functools

import torch

from datasets.augmentation import augment_tbps_caption, perturb_tokens
from datasets.eda import augment_caption, load_synonyms
from datasets.masking import descriptive_positions, mask_tokens, noun_mask_probabilities
from datasets.whole_word_masking import mask_whole_words

FIELDS = {}   # {name: function from a CaptionSample to a tensor}, in the order in which a sample's fields are computed


def field(function=None, *, uses_masking=False, uses_tags=False):
    """Register a function in :data:`FIELDS` under its own name.

    Args:
        function: from a :class:`CaptionSample` to a tensor.
        uses_masking: whether it reads ``sample.masked``. With ``--mlm_masking attention`` the model computes such a
            field, and samples do not have it.
        uses_tags: whether it reads ``sample.dataset.attribute_groups`` or ``.parts_of_speech``. All captions are
            tagged at the start then.
    """
    if function is None:
        return functools.partial(field, uses_masking=uses_masking, uses_tags=uses_tags)
    function.uses_masking, function.uses_tags = uses_masking, uses_tags
    FIELDS[function.__name__] = function
    return function


class CaptionSample:
    """A training pair's caption in one epoch.

    Attributes:
        dataset: the :class:`datasets.bases.ImageTextDataset`, with its settings.
        index: the pair's index in it.
        rng: a ``random.Random``. A field that draws random numbers belongs at the end of this file, so that the fields
            before it do not depend on it.
        ids: int64 [L], the token ids, after ``--caption_filter`` and ``--txt_aug``.
        token_positions: the positions in the original caption of the tokens in ``ids``, a list or a slice of all.
    """

    def __init__(self, dataset, index, rng):
        self.dataset, self.index, self.rng = dataset, index, rng
        self.ids, self.token_positions = dataset.tokens[index].long(), slice(None)
        if dataset.caption_filter and rng.random() < dataset.caption_filter:
            self.token_positions = descriptive_positions(self.ids.tolist(), dataset.parts_of_speech[index].tolist(),
                                                         dataset.mask_id)
            self.ids = self.select_tokens(self.ids)
        if dataset.txt_aug and dataset.preprocessing == 'tbps':
            _, image_id, _, caption = dataset.dataset[index]
            back_translation = dataset.back_translations.get((image_id, caption), '')
            self.ids = dataset.tokenize_caption(augment_tbps_caption(caption, rng, back_translation))
        elif dataset.txt_aug:
            ids, remaining = perturb_tokens(self.ids.tolist(), rng, dataset.mask_id)
            positions = range(len(self.ids)) if self.token_positions == slice(None) else self.token_positions
            self.ids = torch.tensor(ids)
            self.token_positions = [positions[position] for position in remaining if position < len(positions)]

    @property
    def caption(self):
        """The caption as text."""
        return self.dataset.dataset[self.index][3]

    def select_tokens(self, values):
        """Select the values of the tokens in ``ids`` from the original caption's values [L], padded with zeros."""
        result = torch.zeros_like(values)
        selected = values[self.token_positions]
        result[:len(selected)] = selected
        return result

    @functools.cached_property
    def masked(self):
        """``(masked ids [L], labels [L])`` of :func:`datasets.masking.mask_tokens`."""
        dataset, probabilities = self.dataset, None
        if dataset.mlm_masking == 'noun':
            parts_of_speech = self.select_tokens(dataset.parts_of_speech[self.index])
            probabilities = noun_mask_probabilities(parts_of_speech.tolist())
        masked = mask_tokens(self.ids.tolist(), self.rng, dataset.mask_id, *dataset.mask_rates, probabilities)
        return tuple(map(torch.tensor, masked))

    @functools.cached_property
    def masked_words(self):
        """``(masked ids [L], positions [M], labels [M])`` of :func:`datasets.whole_word_masking.mask_whole_words`."""
        tokenizer = self.dataset.tokenizer
        masked = mask_whole_words(self.ids.tolist(), self.rng, tokenizer.mask_id, tokenizer.continuation_ids,
                                  tokenizer.vocab_size)
        return tuple(map(torch.tensor, masked))


@field
def caption_ids(sample):
    return sample.masked[0] if sample.dataset.masks_captions and sample.dataset.masks_in_place else sample.ids


@field(uses_masking=True)
def mlm_ids(sample):
    return sample.masked[0]


@field(uses_masking=True)
def mlm_labels(sample):
    return sample.masked[1]


@field(uses_tags=True)
def attributes_mask(sample):
    return sample.select_tokens(sample.dataset.attribute_groups[sample.index]).long()


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
    return sample.dataset.tokenize_caption(augment_caption(sample.caption, sample.rng, load_synonyms()))


@field
def attribute_labels(sample):
    """The image's attributes, int64 [A]: 1, 0, or -1 for unknown."""
    return sample.dataset.labels[sample.index].long()


@field
def prompt_seed(sample):
    """The seed that masks the attributes' prompts, once per batch (:class:`datasets.prompts.PromptCollator`)."""
    return torch.tensor(sample.rng.getrandbits(62))
