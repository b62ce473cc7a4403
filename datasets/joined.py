"""Several datasets as one: ``--dataset_name CUHK-PEDES+ICFG-PEDES``."""
from datasets.bases import SPLITS, BaseDataset
from utils.errors import UserError


def joined_class(name, known):
    """What ``name`` joins with ``+``, as a dataset to build; ``known``: name -> class of each. Raises :class:`UserError`."""
    names = name.split('+')
    again = [part for part in names if names.count(part) > 1]
    if again:
        raise UserError(f'--dataset_name {name} names {again[0]} twice: each is joined once (--dataset_shares gives one more weight)')
    if '' in names:
        raise UserError(f'--dataset_name {name}: there is no dataset before or behind a +')
    return type('Joined', (Joined,), {'__module__': 'joined', 'name': name, 'parts': tuple(map(known, names))})


class Joined(BaseDataset):
    """Trains on all of its parts; identities and images are kept apart, even where the parts give them the same numbers.

    Its val and test splits are those of the first part, which therefore chooses the best epoch. Training and test.py evaluate on each.

    Attributes:
        sizes: training captions of each part; ``train`` holds them in this order.
        first_images: the smallest image id of each part.
        built: the parts themselves.
    """
    parts = ()

    def __init__(self, root='', verbose=True, splits=SPLITS, skip_broken=False):
        self.components = built = [part(root, verbose=verbose, splits=splits, skip_broken=skip_broken) for part in self.parts]
        self.dataset_dir = self.img_dir = root
        self.anno_path = ' + '.join(part.anno_path for part in built)
        self.sizes = [len(part.train) for part in built]
        self.train, self.translated, self.first_image_ids, people, images = [], {}, [], 0, 0
        for part in built:
            self.first_image_ids.append(images)
            self.translated.update({(images + image, text): other for (image, text), other in part.back_translations().items()})
            self.train += [(people + pid, images + image, *rest) for pid, image, *rest in part.train]
            people += len(part.train_id_container)
            images = max((image for _, image, *_ in self.train), default=-1) + 1
        self.train_id_container = set(range(people))
        self.val, self.test = built[0].val, built[0].test
        self.val_id_container, self.test_id_container = built[0].val_id_container, built[0].test_id_container
        self.val_annos, self.test_annos, self.image_path = built[0].val_annos, built[0].test_annos, built[0].image_path

    def attributes(self, split):
        """None: the parts' attributes need not be the same."""

    def back_translations(self):
        """{(image_id, caption): back-translation} of the parts' training captions that have one."""
        return self.translated


def first_dataset_name(name):
    """The dataset of a joined one that chooses the best epoch.

    >>> first_dataset_name('CUHK-PEDES+ICFG-PEDES')
    'CUHK-PEDES'
    """
    return name.split('+')[0]


def validate_dataset_shares(shares, sizes, args):
    """Raise :class:`UserError` where ``--dataset_shares`` do not fit training captions of these ``sizes``."""
    if sizes is None:
        raise UserError(f'--dataset_shares is for several datasets, and --dataset_name is {args.dataset_name}: join them with +')
    if len(shares) != len(sizes):
        raise UserError(f'--dataset_shares has {len(shares)} numbers for the {len(sizes)} datasets of --dataset_name {args.dataset_name}')
    if args.sampler != 'random':
        raise UserError(f"--dataset_shares needs --sampler random, not {args.sampler}")
    if args.limit_train:
        raise UserError('--dataset_shares and --limit_train are not for one run: leave one of them out')
