"""Measure a training step of ours next to those of Hugging Face's and open_clip's CLIP, in turns.

All train CLIP's contrastive loss with fused Adam on the same batch, from random weights. Each is a process of its own.
They take turns, so that a change of the machine's load affects all of them.
"""
import contextlib
import importlib.util
import itertools
import statistics
import time

import torch
from torch import nn

from model.clip_weights import shape_named
from run_scripts.benchmark.child import measure_in_turns
from run_scripts.benchmark.machine import measure_time
from run_scripts.benchmark.workload import TrainingSteps, recipe_options, synthetic_batches
from utils import precision
from utils.machine import peak_bytes

WARM_UP = 2     # steps; the peak of memory is constant from the second on
TRAINED_RESOLUTION = 224    # of position tables that Hugging Face's CLIP interpolates to the images
END_OF_TEXT = 49407


class Peer:
    """A library with a CLIP of its own.

    Attributes:
        name: its name in the tables.
        package: the package to import, and the name that pip knows.
    """

    def __init__(self, name, package, pip_name, build_loss):
        self.name, self.package, self.pip_name, self.build_loss = name, package, pip_name, build_loss

    @property
    def is_installed(self):
        return importlib.util.find_spec(self.package) is not None


class HuggingFaceLoss(nn.Module):
    """The contrastive loss of ``transformers.CLIPModel``."""

    def __init__(self, shape, args):
        super().__init__()
        from transformers import CLIPConfig, CLIPModel
        text = dict(vocab_size=shape.vocab_size, hidden_size=shape.text_width, num_hidden_layers=shape.text_layers,
                    intermediate_size=4 * shape.text_width, num_attention_heads=shape.text_heads,
                    max_position_embeddings=args.text_length, eos_token_id=END_OF_TEXT)
        vision = dict(hidden_size=shape.vision_width, num_hidden_layers=shape.vision_layers,
                      intermediate_size=4 * shape.vision_width, num_attention_heads=shape.vision_heads,
                      image_size=TRAINED_RESOLUTION, patch_size=shape.vision_patch_size)
        self.model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape.embed_dim))

    def forward(self, images, ids):
        """[B, 3, H, W], [B, L] -> the loss."""
        return self.model(input_ids=ids, pixel_values=images, interpolate_pos_encoding=True, return_loss=True).loss


class OpenClipLoss(nn.Module):
    """The contrastive loss of ``open_clip.CLIP``."""

    def __init__(self, shape, args):
        super().__init__()
        import open_clip
        vision = dict(image_size=tuple(args.img_size), layers=shape.vision_layers, width=shape.vision_width,
                      patch_size=shape.vision_patch_size, head_width=shape.vision_width // shape.vision_heads)
        text = dict(context_length=args.text_length, vocab_size=shape.vocab_size, width=shape.text_width,
                    heads=shape.text_heads, layers=shape.text_layers)
        self.model, self.loss = open_clip.CLIP(shape.embed_dim, vision, text, quick_gelu=True), open_clip.ClipLoss()

    def forward(self, images, ids):
        """[B, 3, H, W], [B, L] -> the loss."""
        return self.loss(*self.model(images, ids))


PEERS = (Peer('Hugging Face', 'transformers', 'transformers', HuggingFaceLoss),
         Peer('open_clip', 'open_clip', 'open_clip_torch', OpenClipLoss))


class PeerSteps:
    """Training steps of a peer's model with random weights.

    Args:
        peer: a :class:`Peer`.
        args: the options of our model: device, precision, shape, sizes, and whether to compile.
    """

    def __init__(self, peer, args):
        self.device = torch.device(args.device)
        self.dtype = precision.amp_dtype(args.amp, self.device)
        torch.manual_seed(args.seed)
        self.loss = peer.build_loss(shape_named(args.pretrain_choice), args).to(self.device).train()
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=args.lr, eps=1e-3, fused=True)
        if args.compile:
            self.loss.compile()

    def __call__(self, batch):
        images, ids = (batch[name].to(self.device, non_blocking=True) for name in ('images', 'caption_ids'))
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=self.dtype) if self.dtype else contextlib.nullcontext():
            loss = self.loss(images, ids)
        loss.backward()
        self.optimizer.step()
        return loss


def build_turn(peer, flags, setting):
    """Build a variant's training, and run its warm-up.

    Args:
        peer: a :class:`Peer`; None for ours.
        flags: further options of train.py.
        setting: a :class:`~run_scripts.benchmark.settings.Setting`.

    Returns:
        A function that runs the steps of a turn, and returns ``{'seconds': [...], 'others': load, 'cpu_seconds': ...,
        'peak_bytes': ...}``. The CPU seconds, of all threads, show a difference also on a busy machine.
    """
    args = recipe_options(setting, '--loss_names', 'itc', *flags)
    batches, initial_bytes = itertools.cycle(synthetic_batches(setting)), peak_bytes(setting.device)
    step = PeerSteps(peer, args) if peer else TrainingSteps(args)

    def run_steps():
        for batch in itertools.islice(batches, setting.steps):
            step(batch)

    def measure_turn(warm_up=0):
        start = time.process_time()
        timing, _ = measure_time(run_steps, setting.device, 1, setting.patience, warm_up)
        return {**timing, 'cpu_seconds': time.process_time() - start,
                'peak_bytes': peak_bytes(setting.device) - initial_bytes}
    measure_turn(WARM_UP)
    return measure_turn


def measure_peers(flags, setting):
    """Measure ours and each :class:`Peer` in turns, and return a row for each.

    ``ratio`` of a row is the median over turns of its seconds by ours in the same turn.
    """
    variants = {'ours': None, **{peer.name: peer for peer in PEERS if peer.is_installed}}
    turns = measure_in_turns(list_turns(variants, flags, setting), setting.repeats)
    missing = [{'way': peer.name, 'not_installed': peer.pip_name} for peer in PEERS if not peer.is_installed]
    return [build_row(name, turns, setting) for name in variants] + missing


def list_turns(variants, flags, setting):
    """The arguments of :func:`measure_in_turns` for variants, ``{name: Peer or None}``."""
    return {name: (build_turn, peer, flags, setting) for name, peer in variants.items()}


def build_row(name, turns, setting):
    """Build the row of a variant from the dicts of all turns, ``{name: [dict, ...]}``."""
    errors = [turn for turn in turns[name] if 'error' in turn]
    if errors:
        return {'way': name, **errors[0]}
    seconds = [turn['seconds'][0] for turn in turns[name]]
    ours = [turn['seconds'][0] for turn in turns['ours'] if 'seconds' in turn]
    ratios = [second / own for second, own in zip(seconds, ours)]
    return {'way': name, 'seconds': seconds, 'others': max(turn['others'] for turn in turns[name]),
            'cpu_seconds': [turn['cpu_seconds'] for turn in turns[name]],
            'samples': setting.batch_size * setting.steps, 'steps': setting.steps,
            'peak_bytes': max(turn['peak_bytes'] for turn in turns[name]),
            **({'ratio': statistics.median(ratios)} if ratios else {})}
