"""Tokenize, tag and mask captions."""
import random
from dataclasses import dataclass, fields

import torch
from torch.utils.data import Dataset

from datasets import array_cache
from datasets.array_cache import Strings, compute_key, get_captions, get_pids, load_or_make_arrays
from datasets.attributes import annotate_all, load_tagger
from datasets.captions import MAX_CAPTION_LENGTH
from datasets.fields import FIELDS, CaptionSample
from datasets.same_person import SamePersonCaptions, own_caption
from datasets.truncation import warn_of_truncation
from utils.errors import UserError, unknown_name_error
from utils.simple_tokenizer import default_tokenizer
from utils.wordpiece import WordPiece

# -- tokenization ------------------------------------------------------------------------------------------------------

def tokenize(caption, tokenizer, text_length=77, truncate=True):
    """Tokenize a caption to start, token ids, end and padding (0 for CLIP): int64 [text_length].

    A longer caption is truncated, and its last id is the end token.

    Raises:
        UserError: the caption has more than 10,000 characters, or it is too long and ``truncate`` is False.

    >>> from utils.simple_tokenizer import SimpleTokenizer
    >>> tokenize('a red coat', SimpleTokenizer(), text_length=8)
    tensor([49406,   320,   736,  7356, 49407,     0,     0,     0])
    """
    if len(caption) > MAX_CAPTION_LENGTH:
        raise UserError(f"caption of {len(caption):,} characters, and at most {MAX_CAPTION_LENGTH:,} are read: "
                        f"'{caption[:50]}...'")
    ids = tokenizer.encode(caption)
    if not truncate and (count := len(tokenizer.add_special_tokens(ids, MAX_CAPTION_LENGTH + 2))) > text_length:
        raise UserError(f"caption of {count} tokens is longer than the text length {text_length}: '{caption}'")
    ids = tokenizer.add_special_tokens(ids, text_length)
    result = torch.full((text_length,), getattr(tokenizer, 'pad_id', 0), dtype=torch.long)
    result[:len(ids)] = torch.tensor(ids)
    return result


def tokenize_all(captions, text_length, truncate=True, tokenizer=None, folder=None):
    """Tokenize all captions before workers start, which then share the result: int32 [S, L].

    The tokens of at least 50,000 captions are cached in ``folder``, memory-mapped. They are computed again if a
    caption, the vocabulary or the length changes (:func:`datasets.array_cache.load_or_make_arrays`).
    """
    tokenizer = tokenizer or default_tokenizer()

    def compute():
        tokens = torch.zeros(len(captions), text_length, dtype=torch.int32)
        for row, caption in zip(tokens, captions):
            row.copy_(tokenize(caption, tokenizer, text_length, truncate))
        return tokens
    if folder is None or len(captions) < array_cache.MIN_CACHED_CAPTIONS:
        return compute()
    strings = captions if isinstance(captions, Strings) else Strings.from_texts(captions)
    key = compute_key(strings.digest(), tokenizer.cache_key, text_length, truncate)
    return torch.from_numpy(load_or_make_arrays(folder, 'tokens', key, lambda: {'tokens': compute().numpy()})['tokens'])


def tokenize_samples(samples, tokenizer=None, text_length=77, truncate=True, folder=None):
    """Tokenize the captions of training pairs (:func:`tokenize_all`), and warn of truncated ones: int32 [S, L]."""
    captions, tokenizer = get_captions(samples), tokenizer or default_tokenizer()
    tokens = tokenize_all(captions, text_length, truncate, tokenizer, folder)
    warn_of_truncation(captions, tokens, tokenizer, 'training captions')
    return tokens


class TextDataset(Dataset):
    """The queries of an evaluation split: ``dataset[i]`` is ``(pid, token ids [L])``."""

    def __init__(self, caption_pids, captions, text_length=77, truncate=True, tokenizer=None, token_folder=None):
        self.caption_pids, self.captions = caption_pids, captions
        self.tokenizer = tokenizer or default_tokenizer()
        self.tokens = tokenize_all(captions, text_length, truncate, self.tokenizer, token_folder)
        warn_of_truncation(captions, self.tokens, self.tokenizer, 'queries')

    @property
    def lengths(self):
        """[S] tokens of each caption, start and end included."""
        return self.tokenizer.lengths(self.tokens)

    def __len__(self):
        return len(self.caption_pids)

    def __getitem__(self, index):
        return self.caption_pids[index], self.tokens[index].long()


# -- captions of training pairs ----------------------------------------------------------------------------------------

CAPTION_MASKINGS = 'inplace', 'clean'
MLM_MASKINGS = 'random', 'attention', 'noun', 'saliency'
MODEL_MASKINGS = 'attention', 'saliency'      # with these, the model masks captions, and data loader workers do not


@dataclass(frozen=True)
class CaptionMasking:
    """The settings that select, filter and mask the captions of training pairs.

    Attributes:
        caption_masking: 'inplace': ``caption_ids`` are masked, as in IRRA's training, and ``mlm_ids`` equals them.
            'clean': ``caption_ids`` are not masked, and ``mlm_ids`` comes with ``mlm_labels``.
        mlm_masking: which tokens are masked. 'random': any. 'noun': mostly nouns and adjectives, as in SEN.
            'attention', 'saliency': the model masks (:mod:`model.heads.agm`, :mod:`model.heads.gadms`), and captions
            are not masked here.
        masked_token_rate, masked_token_unchanged_rate: see :func:`datasets.masking.mask_tokens`.
        caption_filter: the probability that a caption is reduced to its nouns, adjectives and pronouns (SEN), after
            truncation and before masking.
        weak_positive_rate: the probability that a pair gets a random caption of the same person (RaSa).
        attribute_tagger: the tagger of parts of speech (:func:`datasets.attributes.load_tagger`).

    Raises:
        UserError: ``caption_masking`` or ``mlm_masking`` is unknown.
    """
    caption_masking: str = 'clean'
    mlm_masking: str = 'random'
    masked_token_rate: float = 0.8
    masked_token_unchanged_rate: float = 0.1
    caption_filter: float = 0.0
    weak_positive_rate: float = 0.0
    attribute_tagger: str = 'textblob'

    def __post_init__(self):
        if self.caption_masking not in CAPTION_MASKINGS:
            raise unknown_name_error('caption masking', self.caption_masking, CAPTION_MASKINGS)
        if self.mlm_masking not in MLM_MASKINGS:
            raise unknown_name_error('mlm masking', self.mlm_masking, MLM_MASKINGS)

    @classmethod
    def from_options(cls, args):
        """Take the attributes from the options of the same names."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    @property
    def masks_in_place(self):
        return self.caption_masking == 'inplace'

    def masks_captions(self, requested):
        """Whether captions are masked here, if heads request these text fields."""
        reads_masked = any(FIELDS[name].uses_masking for name in requested)
        return self.mlm_masking not in MODEL_MASKINGS and (self.masks_in_place or reads_masked)

    def select_fields(self, requested):
        """The text fields of a sample, in the order in which they are computed, if heads request these."""
        names = {'caption_ids', *requested}
        if 'mlm_labels' in names and not self.masks_in_place:
            names.add('mlm_ids')
        masks_captions = self.masks_captions(requested)
        return [name for name, field in FIELDS.items() if name in names and (masks_captions or not field.uses_masking)]

    def needs_tags(self, requested):
        """Whether parts of speech are needed, if heads request these text fields."""
        return (self.caption_filter > 0 or self.mlm_masking == 'noun' and self.masks_captions(requested)
                or any(FIELDS[name].uses_tags for name in self.select_fields(requested)))


class CaptionTransform:
    """Computes the text fields of a training pair (:mod:`datasets.fields`): ``transform(index, seed)`` is a dict.

    Args:
        samples: the training pairs ``(pid, image_id, image path, caption)``.
        tokens: int32 [S, L], their token ids (:func:`tokenize_all`).
        tokenizer: the tokenizer that produced the ids.
        fields: names of the text fields that heads request.
        masking: the :class:`CaptionMasking`.
        augment: a function from a :class:`~datasets.fields.CaptionSample` to ``(ids [L], token positions)``, which
            augments a caption after the filter and before masking.
        labels: int8 [S, A], the attributes of each pair's image, for the field ``attribute_labels``.
        side_texts: ``{annotation key: SideTexts of the pairs}``, for ``augment`` and the fields that read them.
    """

    def __init__(self, samples, tokens, tokenizer, fields=(), masking=CaptionMasking(), augment=None, labels=None,
                 side_texts=None):
        self.samples, self.tokens, self.tokenizer = samples, tokens, tokenizer
        self.masking, self.augment, self.labels, self.side_texts = masking, augment, labels, side_texts or {}
        self.mask_id = tokenizer.mask_id
        rate = masking.weak_positive_rate
        self.draw_caption = SamePersonCaptions(get_pids(samples), rate) if rate else own_caption
        self.field_names, self.masks_captions = masking.select_fields(fields), masking.masks_captions(fields)
        if masking.needs_tags(fields):
            tagger = load_tagger(masking.attribute_tagger)
            tagging_tokenizer = tokenizer if isinstance(tokenizer, WordPiece) else default_tokenizer()
            self.attribute_groups, self.parts_of_speech = annotate_all(get_captions(samples), tagging_tokenizer,
                                                                       tagger, tokens.shape[1])

    def __call__(self, index, seed):
        sample = CaptionSample(self, index, random.Random(seed))
        return {name: FIELDS[name](sample) for name in self.field_names}

    def tokenize(self, caption):
        """Tokenize a caption, int64 [L]."""
        return tokenize(caption, self.tokenizer, self.tokens.shape[1])
