"""The batch fields: what a training sample carries of its caption. A new field is one function here, and nothing else changes."""
import functools

import torch

from datasets.augmentation import perturb_tokens, augment_tbps_caption
from datasets.eda import augment_caption, load_synonyms
from datasets.masking import descriptive_positions, mask_tokens, noun_mask_probabilities
from datasets.whole_word_masking import mask_whole_words

FIELDS = {}   # name: function of a CaptionSample that returns a tensor, in the order in which a sample's fields are made


def field(function=None, *, uses_masking=False, uses_tags=False):
    """Put a function into :data:`FIELDS` under its own name.

    Args:
        masks: it reads ``sample.masked``; with ``--mlm_masking attention`` the model makes such a field, and no sample has it.
        tags: it reads ``sample.dataset.attributes`` or ``.parts``, for which all captions are tagged at start.
    """
    if function is None:
        return functools.partial(field, uses_masking=uses_masking, uses_tags=uses_tags)
    function.uses_masking, function.uses_tags = masks, tags
    FIELDS[function.__name__] = function
    return function


class CaptionSample:
    """A training pair's caption as one epoch sees it.

    Attributes:
        dataset: the :class:`datasets.bases.ImageTextDataset`, with its settings.
        index: the pair's place in it.
        rng: a ``random.Random``, for whatever the sample draws. A field that draws stands at the end of this file, so that
            the fields before it are the same without it.
        ids: int64 [L], the token ids, cut down where ``--caption_filter`` says so, and with words masked, replaced and removed with
            ``--txt_aug``.
    """

    def __init__(self, dataset, index, rng):
        self.dataset, self.index, self.rng = dataset, index, rng
        self.ids, self.token_positions = dataset.tokens[index].long(), slice(None)
        if dataset.caption_filter and rng.random() < dataset.caption_filter:
            self.token_positions = descriptive_positions(self.ids.tolist(), dataset.parts[index].tolist(), dataset.mask_id)
            self.ids = self.select_tokens(self.ids)
        if dataset.txt_aug and dataset.preprocessing == 'tbps':
            _, image_id, _, caption = dataset.dataset[index]
            self.ids = dataset.tokenize_caption(augment_tbps_caption(caption, rng, dataset.back_translations.get((image_id, caption), '')))
        elif dataset.txt_aug:
            disturbed, left = perturb_tokens(self.ids.tolist(), rng, dataset.mask_id)
            places = range(len(self.ids)) if self.token_positions == slice(None) else self.token_positions
            self.ids, self.token_positions = torch.tensor(disturbed), [places[place] for place in left if place < len(places)]

    @property
    def caption(self):
        """The caption as text."""
        return self.dataset.dataset[self.index][3]

    def select_tokens(self, row):
        """What is left of a row [L], which says something of each token, where the caption was cut down: the rest is zeros."""
        result = torch.zeros_like(row)
        values = row[self.token_positions]
        result[:len(values)] = values
        return result

    @functools.cached_property
    def masked(self):
        """``(masked ids [L], labels [L])``: see :func:`datasets.masking.mask_tokens`."""
        dataset = self.dataset
        chances = noun_mask_probabilities(self.select_tokens(dataset.parts[self.index]).tolist()) if dataset.mlm_masking == 'noun' else None
        return tuple(map(torch.tensor, mask_tokens(self.ids.tolist(), self.rng, dataset.mask_id, *dataset.mask_rates, chances)))


    @functools.cached_property
    def masked_words(self):
        """``(masked ids [L], places [M], labels [M])``: see :func:`datasets.whole_word_masking.mask_whole_words`."""
        tokenizer = self.dataset.tokenizer
        return tuple(map(torch.tensor, mask_whole_words(self.ids.tolist(), self.rng, tokenizer.mask, tokenizer.continues,
                                                        tokenizer.vocab_size)))


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
    return sample.select_tokens(sample.dataset.attributes[sample.index]).long()


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
    """Of the caption as easy data augmentation changes it (:mod:`datasets.eda`)."""
    return sample.dataset.tokenize_caption(augment_caption(sample.caption, sample.rng, load_synonyms()))


@field
def attribute_labels(sample):
    """int64 [A]: 1, 0, or -1 for unknown."""
    return sample.dataset.labels[sample.index].long()


@field
def prompt_seed(sample):
    """What the words of the attributes' prompts are masked by, once a batch: see :class:`datasets.prompts.PromptCollator`."""
    return torch.tensor(sample.rng.getrandbits(62))
