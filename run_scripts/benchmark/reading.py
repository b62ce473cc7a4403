"""How quickly a training loader reads its images."""
import os

from datasets import build_dataloader
from datasets.build import worker_count
from datasets.synthpedes import generate
from run_scripts.benchmark import released_way
from run_scripts.benchmark.machine import timed
from run_scripts.benchmark.workload import recipe
from datasets.device_augmentation import augment_on_device


def make_dataset(root, ids):
    """In CUHK-PEDES' format; one further identity is for the test split, which loaders want."""
    generate(root, ids + 1, 4, size=(384, 128), format='CUHK-PEDES', val_ids=0, test_ids=1, progress=False)
    return {}


def measure_reading(kind, root, setting):
    """Epochs of a training loader, its batches brought to the device: from 'jpeg' files, from the image 'cache', from it and
    'finished' there, or the 'released' way."""
    cache = ['--image_cache', os.path.join(root, 'cache')] if kind in ('cache', 'finished') else []
    args = recipe(setting, '--root_dir', root, *cache)
    loader = build_dataloader(args)[0]
    samples = loader.dataset.dataset
    stored = sum(os.path.getsize(path) for _, _, path, _ in samples) / len(samples)
    if cache:
        stored = 3 * args.img_size[0] * args.img_size[1]
    if kind == 'released':
        loader = released_way.training_loader(samples, args.img_size, args.batch_size, worker_count(args))

    def epoch():
        passed = 0
        for batch in loader:
            passed += sum(value.nbytes for value in batch.values())
            batch = {name: value.to(setting.device, non_blocking=True) for name, value in batch.items()}
            if kind == 'finished':
                augment_on_device(batch['images'], batch['augmentation_params'])
        return passed
    timing, passed = timed(epoch, *setting.pace)      # its others are the loader's workers
    return {'seconds': timing['seconds'], 'samples': len(samples), 'workers': loader.num_workers,
            'stored_bytes': stored, 'passed_bytes': passed / len(samples)}
