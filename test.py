"""Evaluate a run's best checkpoint, ours or a published one's: ``python test.py --config_file <run>/configs.yaml``."""
import os
import signal

if __name__ == '__main__':  # until run() below takes over: Ctrl-C while PyTorch loads ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch

from datasets import build_dataloader
from datasets.synthpedes import baseline_similarities, is_synthetic
from processor.moe_report import moe_report, refuse_without_experts
from processor.report import beside_checkpoint, evaluate, load_trained, save_results
from utils.errors import run
from utils.logger import setup_logger
from utils.metrics import summary
from utils.options import parse_test_options, build_test_parser

DEPENDENT = 3  # exit status where embeddings depend on their neighbours in the batch


def main(argv=None):
    parser = build_test_parser('test.py', __doc__)
    parser.add_argument('--moe_report', action='store_true', help="also report how PHP's experts are used: table, JSON and figure")
    args = parse_test_options(parser, argv)
    setup_logger('Pedestal', save_dir='', if_train=False)
    img_loader, txt_loader, num_classes = build_dataloader(args)
    model, checkpoint = load_trained(args, num_classes)
    if args.moe_report:
        refuse_without_experts(model)
    report = evaluate(args, model, img_loader, txt_loader, checkpoint)
    report.baselines = baselines(args, img_loader.dataset, txt_loader.dataset)
    save_results(report, args)
    print(report.text)
    if args.moe_report:
        print(moe_report(model, img_loader, txt_loader, beside_checkpoint(args, 'moe_report')))
    return 0 if report.independent else DEPENDENT


def baselines(args, images, captions):
    """{name: summary} of what colour words against colours reach without learning, on synthetic pedestrians; else empty."""
    if not is_synthetic(os.path.join(args.root_dir, args.dataset_name)):
        return {}
    similarities = baseline_similarities(captions.captions, images.img_paths)
    return {name: summary(torch.as_tensor(similarity), captions.caption_pids, images.image_pids)
            for name, similarity in similarities.items()}


if __name__ == '__main__':
    run(main)
