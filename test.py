"""Evaluate a run's best checkpoint, ours or a published one's: ``python test.py --config_file <run>/configs.yaml``."""
import argparse
import logging
import os

import torch

from datasets import build_dataloader
from datasets.synthpedes import baseline_similarities, is_synthetic
from model import build_model
from processor.report import evaluate, save_results
from utils.checkpoint import read_checkpoint
from utils.comm import pick_device
from utils.errors import UserError, run
from utils.logger import setup_logger
from utils.metrics import summary
from utils.options import Parser, run_options

logger = logging.getLogger('Pedestal.test')
DEPENDENT = 3  # exit status where embeddings depend on their neighbours in the batch


def main(argv=None):
    args = test_args(argv)
    setup_logger('Pedestal', save_dir='', if_train=False)
    device = pick_device(args.device)
    checkpoint = read_checkpoint(args.checkpoint)
    img_loader, txt_loader, num_classes = build_dataloader(args)
    classifier = checkpoint['model'].get('classifier.weight')
    if classifier is not None:  # over the identities that it was trained on, whatever it is tested on
        num_classes = len(classifier)
    model = build_model(args, num_classes, checkpoint.pop('model')).to(device)
    report = evaluate(args, model, img_loader, txt_loader, checkpoint)
    report.baselines = baselines(args, img_loader.dataset, txt_loader.dataset)
    print(report.text)
    save_results(report, args)
    return 0 if report.independent else DEPENDENT


def test_args(argv=None):
    """The run's options, with what the command line changes: where the data and the checkpoint are, how to compute."""
    parser = Parser(prog='test.py', description=__doc__)
    parser.add_argument('--config_file', required=True, help="a run's configs.yaml")
    parser.add_argument('--checkpoint', default=None, help='instead of the best.pth beside it')
    parser.add_argument('--dataset_name', default=None, help='test on another dataset than the run was trained on')
    parser.add_argument('--root_dir', default=None, help="the folder with the datasets' folders")
    parser.add_argument('--i2t', action='store_true', help='image-to-text retrieval, too')
    parser.add_argument('--one_by_one', action='store_true', help='also embed everything in batches of one')
    parser.add_argument('--test_batch_size', type=int, default=None)
    parser.add_argument('--num_workers', type=int, default=None)
    parser.add_argument('--device', default=None, help='auto, cpu, cuda or cuda:<n>')
    parser.add_argument('--amp', default=None, choices=['auto', 'bf16', 'fp16', 'off'])
    given = parser.parse(argv)

    args = run_options(given.config_file)
    args.training = False
    args.trained_on = args.dataset_name
    for name, value in vars(given).items():
        if value is not None or not hasattr(args, name):
            setattr(args, name, value)
    args.checkpoint = given.checkpoint or find_checkpoint(given.config_file, args.output_dir)
    return args


def find_checkpoint(config_file, output_dir):
    """best.pth beside the configs.yaml, or in the folder that it names."""
    candidates = [os.path.join(folder, 'best.pth') for folder in (os.path.dirname(config_file), output_dir)]
    for path in candidates:
        if os.path.isfile(path):
            return path
    raise UserError(f"no best.pth: neither {' nor '.join(candidates)} is there; name one with --checkpoint")


def baselines(args, images, captions):
    """{name: summary} of what colour words against colours reach without learning, on synthetic pedestrians; else empty."""
    if not is_synthetic(os.path.join(args.root_dir, args.dataset_name)):
        return {}
    similarities = baseline_similarities(captions.captions, images.img_paths)
    return {name: summary(torch.as_tensor(similarity), captions.caption_pids, images.image_pids)
            for name, similarity in similarities.items()}


if __name__ == '__main__':
    run(main)
