"""Measure how fast a training loader reads its images."""
import os

from datasets import build_dataloader
from datasets.build import worker_count
from datasets.device_augmentation import augment_on_device
from datasets.synthpedes import generate
from model.backbones import backbone_class
from run_scripts.benchmark import reference
from run_scripts.benchmark.machine import measure_time
from run_scripts.benchmark.workload import recipe_options


def generate_dataset(root, ids):
    """Generate a dataset in CUHK-PEDES' format, with one further identity for the test split."""
    generate(root, ids + 1, 4, size=(384, 128), format='CUHK-PEDES', val_ids=0, test_ids=1, progress=False)
    return {}


def measure_reading(kind, root, setting):
    """Measure epochs of a training loader, up to batches on the device.

    Args:
        kind: 'jpeg' reads image files; 'cache' reads the image cache; 'finished' also augments on the device, from the
            cache; 'reference' reads as the reference implementation.
        root: the folder of the dataset.
        setting: a :class:`~run_scripts.benchmark.settings.Setting`.
    """
    uses_cache = kind in ('cache', 'finished')
    args = recipe_options(setting, '--root_dir', root,
                          *(['--image_cache', os.path.join(root, 'cache')] if uses_cache else []))
    loader = build_dataloader(args, backbone_class(args))[0]
    samples = loader.dataset.samples
    if uses_cache:
        stored_bytes = 3 * args.img_size[0] * args.img_size[1]
    else:
        stored_bytes = sum(os.path.getsize(path) for _, _, path, _ in samples) / len(samples)
    if kind == 'reference':
        loader = reference.build_training_loader(samples, args.img_size, args.batch_size, worker_count(args))

    def read_epoch():
        passed_bytes = 0
        for batch in loader:
            passed_bytes += sum(value.nbytes for value in batch.values())
            batch = {name: value.to(setting.device, non_blocking=True) for name, value in batch.items()}
            if kind == 'finished':
                augment_on_device(batch['images'], batch['augmentation_params'])
        return passed_bytes
    timing, passed_bytes = measure_time(read_epoch, *setting.pace)
    # Without timing['others']: the workers of the loader count as other processes.
    return {'seconds': timing['seconds'], 'samples': len(samples), 'workers': loader.num_workers,
            'stored_bytes': stored_bytes, 'passed_bytes': passed_bytes / len(samples)}
