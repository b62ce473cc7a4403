"""Pretrained weights of ALBEF's encoders: ALBEF's own, a ViT with timm's names, and BERT-base."""
import os

import torch

from model import aptm_weights
from model.vit import resize_pos_embed
from utils.errors import UserError

ALBEF_FILE = 'ALBEF.pth'
ALBEF_URL = f'https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/{ALBEF_FILE}'
POSITION_TABLES = 'visual_encoder.pos_embed', 'visual_encoder_m.pos_embed'      # of the encoder and its momentum copy


def albef_file():
    """Return the path of ALBEF's weights in torch hub's folder."""
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', ALBEF_FILE)
    if not os.path.isfile(path):
        raise UserError(f'there are no weights of ALBEF at {path}: put {ALBEF_URL} there, or give --pretrain_choice '
                        'their path, a checkpoint of RaSa or MARS, a ViT and a BERT as <ViT file>+<BERT folder>, or '
                        'scratch:albef-base for random weights')
    return path


def fit_positions(state, grid):
    """Return a state dict with position tables resized to the grid of patches (rows, columns)."""
    return {name: resize_pos_embed(value, grid) if name in POSITION_TABLES else value for name, value in state.items()}


def read_vit(path, grid):
    """Read a ViT with timm's names, such as DeiT's, under ALBEF's names, without the classifier."""
    state = {f'visual_encoder.{name}': value for name, value in aptm_weights.read_weights(path).items()
             if not name.startswith(('head.', 'fc_norm.', 'pre_logits.'))}
    return fit_positions(state, grid)
