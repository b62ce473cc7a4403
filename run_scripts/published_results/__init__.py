"""The published results of configs/published, and which of them a run belongs to. Several tools share it."""
import os
import re

from model.loss_names import parse_loss_names
from run_scripts import ROOT
from utils.declarations import retry_with_pytorch
from utils.options import build_test_parser, parse_test_options, read_yaml
from utils.tables import METRICS

PUBLISHED = os.path.join(ROOT, 'configs', 'published')


@retry_with_pytorch
def read_run_options(folder, overrides, program='reproduce_tables.py'):
    """Read the options of a run's test, with further words of the command line."""
    words = ['--config_file', os.path.join(folder, 'configs.yaml'), *overrides]
    return parse_test_options(build_test_parser(program, ''), words)


def read_published_rows(dataset):
    """The rows of configs/published/<dataset>.yaml; [] if there is no such file."""
    path = os.path.join(PUBLISHED, f'{dataset.lower()}.yaml')
    return read_yaml(path)['results'] if os.path.exists(path) else []


def published_metrics(row):
    """``{metric: percent}`` of a published row, without the metrics that it does not report; {} for an empty row."""
    return {metric: value for metric, value in zip(METRICS, row.get('values', ())) if value is not None}


def published_row(args):
    """The published row with a run's dataset, initial weights, backbone, tuning, PHP parts and losses, or {}."""
    rows = read_published_rows(args.dataset_name)
    initial = initial_clip(args, {row['start'] for row in rows if 'start' in row})
    losses = set(parse_loss_names(args.loss_names, args.backbone, args.tuning))
    backbones = ['ViT-B/16'] * bool(initial) + [backbone_name(args.pretrain_choice)]
    for row in rows:
        loss_names = [row[key] for key in ('loss_names', 'also') if key in row]
        tuning = row.get('tuning', 'none')
        has_losses = any(set(parse_loss_names(names, tuning=tuning)) == losses for names in loss_names)
        is_php_ablation = not loss_names and row['key'] == 'php'     # an ablation of PHP's parts has no losses
        if (tuning == args.tuning and row.get('start') == initial and row.get('noisy_rate', 0) == args.noisy_rate
                and php_parts(row) == args.php_parts and row['backbone'] in backbones
                and (has_losses or is_php_ablation)):
            return row
    return {}


def initial_clip(args, names):
    """The pedestrian CLIP that a run started from: one of ``names`` in --init_from or --pretrain_choice; else None."""
    words = re.split('[^a-z]+', f'{args.init_from} {args.pretrain_choice}'.lower())
    return next((name for name in sorted(names) if name.lower() in words), None)


def unpublished_reason(args):
    """Why a run has no published row."""
    path = os.path.join('configs', 'published', f'{args.dataset_name.lower()}.yaml')
    if not os.path.exists(os.path.join(ROOT, path)):
        return f'nothing is published on {args.dataset_name}'
    parts = f' and PHP {args.php_parts}' if args.php_parts else ''
    tuning = '' if args.tuning == 'none' else f', --tuning {args.tuning}'
    return f'no row in {path} with these losses, {args.pretrain_choice}{tuning}{parts}'


def php_parts(row):
    return row.get('php_parts', 'crfm+efp' if row['key'] == 'php' else None)


def backbone_name(pretrain_choice):
    """OpenAI's name of a backbone, also for a file such as ``weights/ViT-B-16.pt``."""
    if not pretrain_choice.endswith(('.pt', '.safetensors')):
        return pretrain_choice
    return re.sub(r'^(ViT-[BL])-(\d+)', r'\1/\2', os.path.splitext(os.path.basename(pretrain_choice))[0])
