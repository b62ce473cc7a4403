"""Momentum encoders: copies whose weights follow those of the encoders slowly (MoCo: He et al., CVPR 2020)."""
import copy

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model.heads import HasTrainingOnlyParts


def make_momentum_copy(module):
    """Return a copy of a module that the optimizer does not train."""
    return copy.deepcopy(module).requires_grad_(False)


def copy_weights(momentum_copy, module):
    """Set all weights and buffers of a momentum copy to those of the original."""
    momentum_copy.load_state_dict(module.state_dict())


def update_momentum_copy(momentum_copy, module, momentum):
    """Move each parameter of a momentum copy towards the original's, in place (MoCo, eq. 2). Buffers do not change.

    Args:
        momentum_copy: the copy, from :func:`make_momentum_copy`.
        module: the original.
        momentum: fraction of its weights that the copy keeps, 0 to 1.

    Example:
        >>> layer = nn.LayerNorm(1)                     # its weight is 1
        >>> slow = make_momentum_copy(layer)
        >>> _ = nn.init.constant_(layer.weight, 5.0)
        >>> update_momentum_copy(slow, layer, momentum=0.75)
        >>> slow.weight.item()
        2.0
    """
    update = get_ema_multi_avg_fn(momentum)
    update(list(momentum_copy.parameters()), list(module.parameters()), None)


class MomentumEncoder(HasTrainingOnlyParts, nn.Module):
    """A momentum copy of the backbone that several heads share.

    A head gets it by ``self.momentum = model.shared(MomentumEncoder, model, 0.995)`` and needs no hook, because the
    model calls those of shared parts, once per step. In checkpoints, the copy of the backbone's part ``<name>`` has the
    name ``<name>_m``, as in ALBEF (Li et al., NeurIPS 2021).

    Args:
        model: the model that is being built.
        momentum: fraction of its weights that the copy keeps in each update.
        updates_before_forward: whether the copy follows before each step's forward pass (ALBEF), instead of after the
            optimizer's step (MoCo).

    Attributes:
        backbone: the copy, a :class:`~model.backbones.Backbone`. Call it without gradient, and in
            ``encoded.shard.per_rank_rng()`` if it has dropout.

    Example:
        ::

            with torch.no_grad(), encoded.shard.per_rank_rng():
                backbone = self.momentum.backbone
                image = backbone.image_embedding(backbone.encode_image(images)[0])        # [b, D]
    """

    def __init__(self, model, momentum, updates_before_forward=False):
        super().__init__()
        self.rate, self.updates_before_forward = momentum, updates_before_forward
        self.__dict__['backbone'] = make_momentum_copy(model.backbone)   # not a submodule: its parts have other names
        for name, part in self.backbone.named_children():
            self.add_module(f'{name}_m', part)
        self.training_only_parts = tuple(name for name, _ in self.named_children())

    def after_weights_loaded(self, model):
        copy_weights(self.backbone, model.backbone)

    def before_forward(self, model):
        if self.updates_before_forward:
            update_momentum_copy(self.backbone, model.backbone, self.rate)

    def after_step(self, model):
        if not self.updates_before_forward:
            update_momentum_copy(self.backbone, model.backbone, self.rate)
