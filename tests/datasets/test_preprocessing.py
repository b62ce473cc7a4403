"""A preprocessing is one file in ``datasets/preprocessing/``, which is found by its name."""
import sys
import textwrap

import pytest
import torch
from torchvision.transforms.functional import normalize, rgb_to_grayscale, to_tensor

from datasets import build_dataloader, preprocessing
from datasets.preprocessing import build_preprocessing, preprocessing_names
from datasets.text import tokenize
from model.backbones.aptm import Aptm
from tests.support import options
from utils.errors import UserError
from utils.iotools import read_image
from utils.options import get_args
from utils.simple_tokenizer import default_tokenizer

GRAY = '''
    from torchvision import transforms as T

    from datasets.preprocessing.base import Preprocessing
    from utils.image_stats import ImageStats


    def reverse_words(sample):
        caption = ' '.join(reversed(sample.caption.split()))
        return sample.transform.tokenize(caption), sample.token_positions


    class Gray(Preprocessing):
        """Gray images, and captions from right to left."""

        def image_stats(self, dataset=None):
            return ImageStats((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), (0.0, 0.0, 0.0))

        def train_transform(self, image_stats):
            return T.Compose([T.Grayscale(3), self.test_transform(image_stats)])

        def caption_augmentation(self, side_texts):
            return reverse_words if self.args.txt_aug else None
'''


@pytest.fixture
def gray(tmp_path, monkeypatch):
    """A further folder of the package with the file gray.py."""
    folder = tmp_path / 'plugins'
    folder.mkdir()
    (folder / 'gray.py').write_text(textwrap.dedent(GRAY))
    monkeypatch.setattr(preprocessing, '__path__', [*preprocessing.__path__, str(folder)])
    yield
    sys.modules.pop('datasets.preprocessing.gray', None)


def settings(root, **changes):
    return options(**{**dict(root_dir=str(root), img_size=(40, 16), batch_size=8, num_workers=0, text_length=32,
                             loss_names='sdm'), **changes})


def test_the_files_are_the_choices():
    assert preprocessing_names() == ['albef', 'irra', 'tbps']
    with pytest.raises(UserError, match='--preparation'):
        get_args(['--preparation', 'gray'])


def test_a_new_preprocessing_is_one_file(gray, make_dataset, tmp_path):
    make_dataset()
    assert get_args(['--preparation', 'gray']).preparation == 'gray'

    def first_batch(cache):
        args = settings(tmp_path, preparation='gray', txt_aug=True, image_cache=cache)
        train, images, captions, _ = build_dataloader(args)
        return train.dataset.samples, next(iter(train)), images.dataset, next(iter(captions))[1]
    for cache in ('', str(tmp_path / 'cache')):
        samples, batch, gallery, queries = first_batch(cache)
        for image, ids, index in zip(batch['images'], batch['caption_ids'], batch['index'].tolist()):
            _, _, path, caption = samples[index]
            plain = to_tensor(rgb_to_grayscale(read_image(path), 3))         # the images have the size already
            assert torch.equal(image, normalize(plain, (0.5,) * 3, (0.2,) * 3))
            reversed_caption = ' '.join(reversed(caption.split()))
            assert torch.equal(ids, tokenize(reversed_caption, default_tokenizer(), 32))
        assert gallery.image_stats.mean == (0.5, 0.5, 0.5)
        assert queries[0].tolist()[:5] == tokenize('person 6 in view 0', default_tokenizer(), 32).tolist()[:5]


def test_another_backbone_must_be_passed(make_dataset, tmp_path):
    make_dataset()
    args = settings(tmp_path, backbone='aptm', pretrain_choice='scratch:aptm-tiny', loss_names='itc',
                    img_size=(96, 32), output_dir=str(tmp_path))
    with pytest.raises(UserError, match='^the data loaders are built for CLIP, and --backbone is aptm: pass its class'):
        build_dataloader(args)
    assert build_preprocessing(args, Aptm).image_stats('CUHK-PEDES').interpolation == 'bicubic'


def test_unknown_name(tmp_path):
    args = settings(tmp_path)
    args.preparation = 'tpbs'
    with pytest.raises(UserError, match="^unknown --preparation 'tpbs'; did you mean tbps"):
        build_preprocessing(args)
