"""The preprocessing of RaSa (Bai et al., IJCAI 2023) and MARS (Ergasti et al., ACM TOMM 2025), after ALBEF."""
import re

from datasets.preprocessing.base import Preprocessing
from datasets.transforms import build_transforms, sample_augmentation
from utils.errors import UserError
from utils.wordpiece import WordPiece

MAX_WORDS = 75
MAX_PIECES = 512            # positions of BERT
BLOCK = 10_000              # captions that are encoded at a time

MARKS = re.compile(r"""[,.'!?"()*#:;~]""")
SEPARATORS = re.compile('[-/]')


def clean_caption(caption):
    """Clean a caption as ALBEF does: lower case, without marks, at most 75 words.

    Example:
        >>> clean_caption("The man's T-shirt is black/white.")
        'the mans t shirt is black white'
    """
    text = SEPARATORS.sub(' ', MARKS.sub('', caption.lower())).replace('<person>', 'person')
    return ' '.join(text.split()[:MAX_WORDS])


class CleaningWordPiece(WordPiece):
    """BERT's tokenizer, after :func:`clean_caption`."""

    def encode(self, caption):
        return super().encode(clean_caption(caption))

    def encode_all(self, captions):
        return super().encode_all(map(clean_caption, captions))

    def encode_with_offsets(self, caption):
        return super().encode_with_offsets(clean_caption(caption))

    @property
    def cache_key(self):
        return f'{super().cache_key} as ALBEF'


class Albef(Preprocessing):
    """Images are resized and mirrored, without other augmentation. Captions are cleaned.

    Training captions are not cut after their 75th word, and evaluation cuts them to ``--text_length`` word pieces.
    """

    augments_on_device = True

    def train_transform(self, image_stats):
        return build_transforms(self.img_size, aug=False, is_train=True, image_stats=image_stats)

    def sample_augmentation(self, seed):
        return sample_augmentation(self.img_size, False, seed)

    def tokenizer(self, captions=None):
        # A vocabulary that is built from the training captions is built from cleaned ones.
        cleaned = None if captions is None else lambda: map(clean_caption, captions())
        tokenizer = super().tokenizer(cleaned)
        if not isinstance(tokenizer, WordPiece):
            raise UserError(f"--preparation albef is for BERT's word pieces, and --backbone {self.args.backbone} has "
                            'other tokens: give --backbone albef, or another --preparation')
        return CleaningWordPiece(tokenizer.pieces)

    def train_text_length(self, captions, tokenizer):
        """The number of tokens of the longest training caption, at most BERT's 512 and at least ``--text_length``."""
        blocks = (captions[start:start + BLOCK] for start in range(0, len(captions), BLOCK))
        longest = max(len(ids) + 1 for block in blocks for ids in tokenizer.encode_all(block))
        return max(self.args.text_length, min(longest, MAX_PIECES))
