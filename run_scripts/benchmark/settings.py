"""The parts of the benchmark, its sizes, and the variants of training. This module does not import PyTorch."""
from dataclasses import dataclass

PART_NAMES = ['step', 'peers', 'memory', 'profile', 'processes', 'data', 'encode', 'rank']


@dataclass(frozen=True)
class Setting:
    """The sizes, the device and the precision of a benchmark.

    Attributes:
        shape: the name of a model's shape in configs/clip.
        batch_size: captions per training step.
        batches: the number of different batches.
        steps: the number of steps in a repeat.
        repeats: the number of repeats of each measurement.
        images, captions: the numbers of samples to encode.
        ids: the number of identities in the dataset to read; each has 4 images.
        rankings: ``((name, queries, gallery images, identities), ...)``.
        patience: the total seconds of a measurement after which there is no further repeat.
        quick: whether this is the small setting of --quick.
        device, amp: as train.py's options.
    """
    shape: str
    batch_size: int
    batches: int
    steps: int
    repeats: int
    images: int
    captions: int
    ids: int
    rankings: tuple
    patience: float = 60
    quick: bool = False
    device: str = 'cpu'
    amp: str = 'auto'

    @property
    def on_gpu(self):
        return self.device.startswith('cuda')

    @property
    def pace(self):
        """The last arguments of :func:`~run_scripts.benchmark.machine.measure_time`."""
        return self.device, self.repeats, self.patience


@dataclass(frozen=True)
class Variant:
    """A variant of training.

    Attributes:
        name: its name in the tables.
        flags: further options of train.py.
        switch: a function of :mod:`run_scripts.benchmark.switches`; None for the full Pedestal.
        is_reference: whether the reference implementation trains.
        uses_image_cache: whether batches are those of the image cache.
        gpu_only: whether it changes nothing on a CPU.
    """
    name: str
    flags: tuple = ()
    switch: object = None
    is_reference: bool = False
    uses_image_cache: bool = False
    gpu_only: bool = False


OURS = Variant('ours')
RANKINGS = (('CUHK-PEDES', 6156, 3074, 1000), ('ICFG-PEDES', 19848, 19848, 1000), ('RSTPReid', 2000, 1000, 200),
            ('100k images', 1000, 100_000, 10_000), ('1M images', 1000, 1_000_000, 100_000))
ON_GPU = Setting('ViT-B/16', batch_size=64, batches=20, steps=20, repeats=5, images=4096, captions=6156, ids=800,
                 rankings=RANKINGS)
ON_CPU = Setting('ViT-B/16', batch_size=8, batches=4, steps=1, repeats=5, images=32, captions=128, ids=160,
                 rankings=RANKINGS)
QUICK = Setting('tiny', batch_size=8, batches=4, steps=1, repeats=5, images=64, captions=256, ids=40, patience=3,
                quick=True, rankings=(('RSTPReid', 2000, 1000, 200), ('100k images', 100, 100_000, 10_000)))
