"""Join several datasets: ``--dataset_name CUHK-PEDES+ICFG-PEDES``."""
from datasets.annotation import BaseDataset
from datasets.annotation_checks import SPLITS
from datasets.side_texts import SideTexts
from utils.errors import UserError


def joined_class(name, find_class):
    """Build the dataset class of several names joined with ``+``.

    Args:
        name: the value of ``--dataset_name``.
        find_class: a function from a dataset's name to its class.

    Raises:
        UserError: a name is empty or occurs twice.
    """
    names = name.split('+')
    repeated = [component for component in names if names.count(component) > 1]
    if repeated:
        raise UserError(f'--dataset_name {name} names {repeated[0]} twice: name each dataset once '
                        '(--dataset_shares sets their weights)')
    if '' in names:
        raise UserError(f'--dataset_name {name}: there is no dataset before or after a +')
    settings = {'__module__': 'joined', 'name': name, 'classes': tuple(map(find_class, names))}
    return type('Joined', (JoinedDataset,), settings)


class JoinedDataset(BaseDataset):
    """Several datasets joined for training. Identities and images of different components stay distinct.

    The val and test splits are those of the first component, which therefore chooses the best epoch. Training and
    test.py evaluate on each component.

    Attributes:
        classes: the components' classes.
        components: the datasets themselves.
        sizes: the number of training captions of each component; ``train`` holds them in this order.
        first_image_ids: the smallest image id of each component.
    """
    classes = ()

    def __init__(self, root='', verbose=True, splits=SPLITS, skip_broken=False):
        self.components = components = [cls(root, verbose=verbose, splits=splits, skip_broken=skip_broken)
                                        for cls in self.classes]
        self.dataset_dir = self.img_dir = root
        self.anno_path = ' + '.join(component.anno_path for component in components)
        self.sizes = [len(component.train) for component in components]
        self.train, self.first_image_ids = [], []
        first_pid = first_image_id = 0
        for component in components:
            self.first_image_ids.append(first_image_id)
            self.train += [(first_pid + pid, first_image_id + image_id, *rest)
                           for pid, image_id, *rest in component.train]
            first_pid += len(component.train_id_container)
            first_image_id = max((image_id for _, image_id, *_ in self.train), default=-1) + 1
        self.train_id_container = set(range(first_pid))
        first = components[0]
        self.val, self.test = first.val, first.test
        self.val_id_container, self.test_id_container = first.val_id_container, first.test_id_container
        self.val_annos, self.test_annos, self.image_path = first.val_annos, first.test_annos, first.image_path

    def attributes(self, split):
        """None, because the components' attributes can differ."""

    def evaluation_samples(self, split):
        return self.components[0].evaluation_samples(split)

    def side_texts(self, key):
        return SideTexts.join([component.side_texts(key) for component in self.components])


def first_dataset_name(name):
    """The name of the joined dataset that chooses the best epoch.

    >>> first_dataset_name('CUHK-PEDES+ICFG-PEDES')
    'CUHK-PEDES'
    """
    return name.split('+')[0]


def validate_dataset_shares(shares, sizes, args):
    """Raise :class:`UserError` if ``--dataset_shares`` does not fit datasets of these ``sizes``."""
    if sizes is None:
        raise UserError(f'--dataset_shares is for several datasets, and --dataset_name is {args.dataset_name}: '
                        'join them with +')
    if len(shares) != len(sizes):
        raise UserError(f'--dataset_shares has {len(shares)} numbers for the {len(sizes)} datasets of '
                        f'--dataset_name {args.dataset_name}')
    if args.sampler != 'random':
        raise UserError(f"--dataset_shares needs --sampler random, not {args.sampler}")
    if args.limit_train:
        raise UserError('--dataset_shares and --limit_train exclude each other: leave one of them out')
