"""What the benchmark computes on: IRRA's recipe at some size, its model with random weights, and synthetic batches."""
import os
import random
from dataclasses import dataclass

import torch

from datasets.bases import TextDataset, default_tokenizer
from datasets.masking import mask_tokens
from datasets.transforms import sample_augmentation
from datasets.device_augmentation import augment_on_device
from model import build_model
from model.build import total_loss
from processor.processor import LOOK_EVERY
from processor.step import Step
from run_scripts import ROOT
from run_scripts.benchmark import released_way
from solver import build_optimizer
from utils.options import get_args
from utils.batch_shard import WHOLE_BATCH
from utils.seeding import derive_seed, seed_all
from utils.simple_tokenizer import MASK

RECIPE = os.path.join(ROOT, 'configs', 'irra', 'cuhk-pedes.yaml')
IDENTITIES = 11003      # of CUHK-PEDES' training split
WORDS = ('a the man woman is wearing with and of in his her has black white red blue grey green short long hair shirt jacket coat dress '
         'jeans trousers shorts shoes sneakers boots bag backpack carrying walking forward hand over shoulder while looking down').split()


@dataclass(frozen=True)
class Setting:
    """The sizes, the device and the precision."""
    shape: str              # of configs/clip
    batch_size: int
    batches: int            # different ones
    steps: int              # that are timed together
    repeats: int
    images: int             # that are encoded
    captions: int
    ids: int                # in the dataset that is read, with 4 images each
    rankings: tuple         # (name, queries, gallery, identities)
    patience: float = 60    # seconds of measuring after which nothing is repeated further
    quick: bool = False
    device: str = 'cpu'
    amp: str = 'auto'

    @property
    def on_gpu(self):
        return torch.device(self.device).type == 'cuda'

    @property
    def pace(self):
        return self.device, self.repeats, self.patience


@dataclass(frozen=True)
class Way:
    """A way to train: flags of train.py, or a function that takes an optimisation out of our trainer again."""
    name: str
    flags: tuple = ()
    switch: object = None
    released: bool = False
    cached: bool = False      # batches as the image cache yields them
    gpu_only: bool = False    # it does nothing on a CPU


def recipe(setting, *flags):
    """The options of IRRA's recipe."""
    return get_args(['--config_file', RECIPE, '--pretrain_choice', f'scratch:{setting.shape}', '--batch_size', str(setting.batch_size),
                     '--device', setting.device, '--amp', setting.amp, *flags])


def new_model(args):
    seed_all(args.seed)
    return build_model(args, IDENTITIES).to(args.device)


class Training:
    """Steps of a new model, whose losses are read as often as a run reads them."""

    def __init__(self, args, switch=None):
        self.args, self.model = args, new_model(args).train()
        self.step = Step(self.model, build_optimizer(args, self.model), args.micro_batch)
        self.look_every = LOOK_EVERY if torch.device(args.device).type == 'cuda' else 1
        self.done, self.unseen = 0, []
        if switch:
            switch(self)

    def __call__(self, batch, shard=WHOLE_BATCH):
        self.done += 1
        seed_all(derive_seed(self.args.seed, 1, self.done))
        results = self.step(batch, shard)
        self.names = ('loss', *results)
        self.unseen.append(torch.stack([total_loss(results), *results.values()]))
        if self.done % self.look_every == 0:
            self.look()

    def look(self):
        """Read the results of the steps since the last look; ``latest`` is {name: value} of the newest."""
        self.latest = dict(zip(self.names, torch.stack(self.unseen).tolist()[-1]))
        self.unseen = []


def new_released_model(args):
    """With the weights of ours; in half precision on a GPU."""
    model = released_way.ReleasedIRRA(args, new_model(args))
    return model.half_weights() if torch.device(args.device).type == 'cuda' else model


def synthetic_batches(setting, way=Way('ours')):
    """Batches as the way's training loader yields them; all ways get the same."""
    args, rng, generator = recipe(setting), random.Random(0), torch.Generator().manual_seed(0)
    batches = []
    for _ in range(setting.batches):
        ids, labels = masked_captions(args.batch_size, args.text_length, rng)
        images = torch.randint(256, (args.batch_size, 3, *args.img_size), generator=generator, dtype=torch.uint8)
        views = torch.stack([sample_augmentation(args.img_size, args.img_aug, rng.getrandbits(60)) for _ in range(args.batch_size)])
        batch = {'pids': torch.randint(IDENTITIES, (args.batch_size,), generator=generator), 'image_ids': torch.arange(args.batch_size),
                 'caption_ids': ids, 'mlm_labels': labels}
        batch.update({'images': images, 'augmentation_params': views} if way.cached else {'images': augment_on_device(images, views)})
        batch.update({'mlm_ids': ids.clone()} if way.released else {})
        batches.append({name: pinned(value, setting) for name, value in batch.items()})
    return batches


def pinned(tensor, setting):
    """As loaders hand it over where there is a GPU."""
    return tensor.pin_memory() if setting.on_gpu else tensor


def captions(number, rng):
    """Sentences of 20 to 40 words, each of which is one token."""
    return [' '.join(rng.choices(WORDS, k=rng.randint(20, 40))) for _ in range(number)]


def masked_captions(number, text_length, rng):
    """(token ids, labels), [number, L] each, masked in place as the recipe has it."""
    tokens = TextDataset([0] * number, captions(number, rng), text_length).tokens
    masked = [mask_tokens(ids, rng, default_tokenizer().encoder[MASK]) for ids in tokens.tolist()]
    return torch.tensor([ids for ids, _ in masked]), torch.tensor([labels for _, labels in masked])
