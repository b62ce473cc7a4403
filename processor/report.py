"""What test.py reports: the table, how far it can be trusted, and a file that says what produced it."""
import json
import logging
import os
import platform
from dataclasses import dataclass, field

import torch
import torchvision
from torch.utils.data import DataLoader

from datasets.synthpedes import baseline_similarities, is_synthetic
from model import build_model
from processor.evaluation import Evaluator, retrieval_results
from processor.independence import check_independence
from utils.checkpoint import read_checkpoint
from utils.comm import pick_device
from utils.errors import UserError
from utils.iotools import atomic_write, read_json
from utils.metrics import summary, table
from utils.options import as_dict
from utils.tables import METRICS

logger = logging.getLogger('Pedestal.test')

ONE_BY_ONE = 'the same, embedded one by one'


@dataclass
class Report:
    """An evaluation: ``tables`` is {how the samples were embedded: {task: summary}}, ``baselines`` {name: summary} of methods
    that learn nothing."""
    tables: dict = field(default_factory=dict)
    baselines: dict = field(default_factory=dict)
    independence: object = None
    lines: list = field(default_factory=list)
    produced_by: dict = field(default_factory=dict)

    @property
    def independent(self):
        return self.independence.holds

    @property
    def text(self):
        tables = [f'{how}\n{table(results)}' for how, results in self.tables.items()]
        if self.baselines:
            tables.append(f'without learning: colour words against the colours of ...\n{table(self.baselines)}')
        return '\n'.join([*tables, str(self.independence), *self.lines])


def load_trained(args, num_classes):
    """(the trained model on its device, the rest of its checkpoint) of ``args.checkpoint``."""
    checkpoint = read_checkpoint(args.checkpoint, hashed=True)
    classifier = checkpoint['model'].get('classifier.weight')
    if classifier is not None:  # over the identities that it was trained on, whatever it is tested on
        num_classes = len(classifier)
    model = build_model(args, num_classes, checkpoint.pop('model'))
    return model.to(pick_device(args.device)), checkpoint


def evaluate(args, model, img_loader, txt_loader, checkpoint):
    """Embed the test split (captions by length where that is exact), rank it, and check that no embedding depends on its
    neighbours. Where one does, or with ``args.one_by_one``, rank the embeddings of shuffled batches and of batches of one, too: what
    the table loses there came from the neighbours."""
    report = Report()
    qfeats, gfeats, qids, gids = embed_split(model, img_loader, txt_loader)
    how = f'{args.dataset_name} test: {len(qids)} captions, {len(gids)} images'
    report.tables[how] = retrieval_results(qfeats, gfeats, qids, gids, args.i2t)
    report.independence = check_independence(model, img_loader, txt_loader, (qfeats, gfeats))
    if args.one_by_one or not report.independent:
        for again, settings in ((f'the same, shuffled (seed {args.seed})', {'shuffle': True}), (ONE_BY_ONE, {'batch_size': 1})):
            loaders = [reordered(loader, args.seed, **settings) for loader in (img_loader, txt_loader)]
            report.tables[again] = retrieval_results(*embed_split(model, *loaders), args.i2t)
    ties = report.tables[how]['t2i']['ties']
    if ties:
        report.lines.append(f'ties decide the ranking of {ties} captions; equal similarities are ranked in gallery order')
    report.lines.append(how_chosen(args, checkpoint))
    report.produced_by = produced_by(args, checkpoint, img_loader.dataset, txt_loader.dataset)
    return report


def baselines(args, images, captions):
    """{name: summary} of what colour words against colours reach without learning, on synthetic pedestrians; else empty. ``images``
    and ``captions`` are datasets, or hold the same attributes."""
    if not is_synthetic(os.path.join(args.root_dir, args.dataset_name)):
        return {}
    similarities = baseline_similarities(captions.captions, images.img_paths)
    return {name: summary(torch.as_tensor(similarity), captions.caption_pids, images.image_pids)
            for name, similarity in similarities.items()}


def embed_split(model, img_loader, txt_loader):
    """``(qfeats [Q, D], gfeats [G, D], qids [Q], gids [G])``"""
    return Evaluator(img_loader, txt_loader)._compute_embedding(model)


def reordered(loader, seed, **settings):
    """A loader of the same samples, shuffled by ``seed`` or in other batches."""
    return DataLoader(loader.dataset, **{
        'batch_size': loader.batch_size, 'num_workers': loader.num_workers, 'pin_memory': loader.pin_memory,
        'worker_init_fn': loader.worker_init_fn, 'generator': torch.Generator().manual_seed(seed), **settings})


def chosen_by(args, checkpoint):
    """The split whose Rank-1 chose the checkpoint's epoch; None for one that nothing chose (last.pth, epoch_<n>.pth)."""
    return None if 'step' in checkpoint else checkpoint.get('val_dataset', args.val_dataset)


def age(checkpoint):
    """How long a checkpoint was trained, in words; last.pth holds the epoch to go on with."""
    if 'step' not in checkpoint:
        return f"epoch {checkpoint.get('epoch', 'unknown')}"
    steps = f" and {checkpoint['step']} steps" if checkpoint['step'] else ''
    return f"epoch {checkpoint['epoch'] - 1}{steps}"


def how_chosen(args, checkpoint):
    """Which checkpoint this is, and which split chose it."""
    split = chosen_by(args, checkpoint)
    if split is None:
        return f'{args.checkpoint}: {age(checkpoint)}, chosen by no split'
    warning = ', the split it is tested on' if split == 'test' and args.trained_on == args.dataset_name else ''
    return f'{args.checkpoint}: {age(checkpoint)}, chosen by the {split} split of {args.trained_on}{warning}'


def produced_by(args, checkpoint, images, captions):
    """Everything that a figure hangs on."""
    return {
        'options': as_dict(args), 'checkpoint': os.path.abspath(args.checkpoint), 'checkpoint_sha256': checkpoint.get('sha256'),
        'trained_for': age(checkpoint), 'chosen_by_split': chosen_by(args, checkpoint),
        'trained_on': args.trained_on, 'dataset': args.dataset_name, 'images': len(images), 'captions': len(captions),
        'identities': len(set(map(int, images.image_pids))), 'seed': args.seed,
        'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'torchvision': torchvision.__version__},
        'machine': torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()}


def beside_checkpoint(args, name):
    """Where a result goes, without extension: the checkpoint's folder; the name says which checkpoint if it isn't best.pth, and
    which dataset if it is another one than it was trained on."""
    stem = os.path.splitext(os.path.basename(args.checkpoint))[0]
    parts = [name] + [stem] * (stem != 'best') + [args.dataset_name] * (args.dataset_name != args.trained_on)
    return os.path.join(os.path.dirname(args.checkpoint), '_'.join(parts))


def save_results(report, args):
    """``metrics.json`` beside the checkpoint (``metrics_<dataset>.json`` for another dataset than it was trained on)."""
    path = f"{beside_checkpoint(args, 'metrics')}.json"
    content = {'results': report.tables, 'baselines': report.baselines,
               'independence': {'holds': report.independent, **vars(report.independence)}, 'produced_by': report.produced_by}
    try:
        with atomic_write(path) as file:
            json.dump(content, file, indent=1, default=str)
    except UserError as error:
        logger.warning('the results are not saved: %s', error)


def read_results(path, checksum):
    """(dataset, {how: {task: summary}}, independent) that :func:`save_results` wrote; None if it is not whole or of another checkpoint."""
    try:
        content = read_json(path)
        of_this = content['produced_by']['checkpoint_sha256'] == checksum
        dataset, tables, independent = content['produced_by']['dataset'], content['results'], content['independence']['holds']
        whole = all(metric in table['t2i'] for table in tables.values() for metric in METRICS)
    except (UserError, KeyError, TypeError, AttributeError):  # there is none, or it is of another time or program
        return None
    return (dataset, tables, independent) if of_this and tables and whole and (independent or ONE_BY_ONE in tables) else None
