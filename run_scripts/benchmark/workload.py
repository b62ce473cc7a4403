"""The workload of the benchmark: IRRA's recipe at several sizes, a model with random weights, and synthetic batches."""
import os
import random

import torch

from datasets.bases import TextDataset
from datasets.device_augmentation import augment_on_device
from datasets.masking import mask_tokens
from datasets.transforms import sample_augmentation
from model import build_model
from model.build import total_loss
from processor.pending_metrics import FLUSH_PERIOD
from processor.build import build_step
from run_scripts import ROOT
from run_scripts.benchmark import reference
from run_scripts.benchmark.settings import OURS
from solver import build_optimizer
from utils.batch_shard import WHOLE_BATCH
from utils.options import get_args
from utils.seeding import derive_seed, seed_all
from utils.simple_tokenizer import MASK, default_tokenizer

RECIPE = os.path.join(ROOT, 'configs', 'irra.yaml')
IDENTITIES = 11003      # of CUHK-PEDES' training split
WORDS = ('a the man woman is wearing with and of in his her has black white red blue grey green short long hair shirt '
         'jacket coat dress jeans trousers shorts shoes sneakers boots bag backpack carrying walking forward hand over '
         'shoulder while looking down').split()


def recipe_options(setting, *flags):
    """The options of IRRA's recipe."""
    return get_args(['--config_file', RECIPE, '--pretrain_choice', f'scratch:{setting.shape}',
                     '--batch_size', str(setting.batch_size), '--device', setting.device, '--amp', setting.amp, *flags])


def build_training_model(args):
    """A model with random weights that depend only on the seed."""
    seed_all(args.seed)
    return build_model(args, IDENTITIES).to(args.device)


def build_reference_model(args):
    """The reference implementation with the weights of :func:`build_training_model`; in half precision on a GPU."""
    model = reference.ReferenceIRRA(args, build_training_model(args))
    return model.convert_weights_to_half() if torch.device(args.device).type == 'cuda' else model


class TrainingSteps:
    """Training steps of a new model. They read the losses from the device as often as a run does.

    Attributes:
        latest: ``{name: value}`` of the newest step that was read.
    """

    def __init__(self, args, switch=None):
        self.args, self.model = args, build_training_model(args).train()
        self.step = build_step(self.model, build_optimizer(args, self.model), args.micro_batch)
        self.flush_period = FLUSH_PERIOD if torch.device(args.device).type == 'cuda' else 1
        self.step_count, self.pending_metrics = 0, []
        if switch:
            switch(self)

    def __call__(self, batch, shard=WHOLE_BATCH):
        self.step_count += 1
        seed_all(derive_seed(self.args.seed, 1, self.step_count))
        results = self.step(batch, shard)
        self.names = ('loss', *results)
        self.pending_metrics.append(torch.stack([total_loss(results), *results.values()]))
        if self.step_count % self.flush_period == 0:
            self.flush_metrics()

    def flush_metrics(self):
        """Read the losses of the steps since the last call."""
        self.latest = dict(zip(self.names, torch.stack(self.pending_metrics).tolist()[-1]))
        self.pending_metrics = []


def synthetic_batches(setting, variant=OURS):
    """Batches as the variant's training loader yields them, with the same content for all variants."""
    args, rng, generator = recipe_options(setting), random.Random(0), torch.Generator().manual_seed(0)
    batches = []
    for _ in range(setting.batches):
        ids, labels = random_masked_captions(args.batch_size, args.text_length, rng)
        images = torch.randint(256, (args.batch_size, 3, *args.img_size), generator=generator, dtype=torch.uint8)
        params = torch.stack([sample_augmentation(args.img_size, args.img_aug, rng.getrandbits(60))
                              for _ in range(args.batch_size)])
        batch = {'pids': torch.randint(IDENTITIES, (args.batch_size,), generator=generator),
                 'image_ids': torch.arange(args.batch_size), 'caption_ids': ids, 'mlm_labels': labels}
        if variant.uses_image_cache:
            batch.update(images=images, augmentation_params=params)
        else:
            batch.update(images=augment_on_device(images, params))
        if variant.is_reference:
            batch['mlm_ids'] = ids.clone()
        batches.append({name: pin_memory(value, setting) for name, value in batch.items()})
    return batches


def pin_memory(tensor, setting):
    """A tensor in pinned memory if there is a GPU, as data loaders pass it."""
    return tensor.pin_memory() if setting.on_gpu else tensor


def random_captions(count, rng):
    """Sentences of 20 to 40 words. Each word is one token."""
    return [' '.join(rng.choices(WORDS, k=rng.randint(20, 40))) for _ in range(count)]


def random_masked_captions(count, text_length, rng):
    """``(token ids [count, L], labels [count, L])`` of captions that are masked in place, as in the recipe."""
    tokens = TextDataset([0] * count, random_captions(count, rng), text_length).tokens
    masked = [mask_tokens(ids, rng, default_tokenizer().encoder[MASK]) for ids in tokens.tolist()]
    return torch.tensor([ids for ids, _ in masked]), torch.tensor([labels for _, labels in masked])
