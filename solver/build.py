"""The optimizer: each parameter learns at the rate that the published rules give its name, in few groups."""
import torch

from model.backbones.clip import Clip
from model.heads import active_heads
from utils.errors import unknown

OPTIMIZERS = ('Adam', 'AdamW', 'SGD')


def parameter_settings(name, args, heads=None, backbone=None, dimensions=2):
    """(lr, weight decay) of a parameter: the backbone's rules on its name (IRRA's for CLIP), then those of the ``heads`` that it belongs to
    (by default all that ``args`` ask for). Where heads that share a part say different rates, the highest counts, in whatever order
    they are named. ``--lr_rules`` may set these aside; ``dimensions``: of the parameter."""
    if args.lr_rules != 'irra':
        undecayed = args.lr_rules == 'undecayed' and (dimensions < 2 or any(part in name for part in ('bias', 'ln', 'bn')))
        return args.lr, 0.0 if undecayed else args.weight_decay
    usual = (backbone or Clip).learning_rate(name, args)
    said = [head.learning_rate(name, *usual, args) for head in (active_heads(args) if heads is None else heads)]
    return max((settings for settings in said if settings != usual), default=usual)


def parameter_groups(args, model):
    """The learning parameters of ``model`` in one group for each (lr, weight decay)."""
    owners_of = getattr(model, 'owners_of', lambda name: None)   # a script's own model does not say which head owns what
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            settings = parameter_settings(name, args, owners_of(name), getattr(model, 'backbone', None), parameter.ndim)
            groups.setdefault(settings, []).append(parameter)
    return [{'params': parameters, 'lr': lr, 'weight_decay': weight_decay} for (lr, weight_decay), parameters in groups.items()]


def build_optimizer(args, model):
    """Adam (eps 1e-3, which the released training in half precision needed and its results depend on), AdamW (eps 1e-8) or
    SGD, by ``args.optimizer`` in any case.

    The first two are fused: one kernel for many parameters, and the gradient scaler needn't wait for the GPU. Fused SGD is left alone:
    where the scaler skips its first step, PyTorch leaves its momentum uninitialised.
    """
    groups = parameter_groups(args, model)
    name = args.optimizer.lower()
    if name == 'adam':
        return torch.optim.Adam(groups, lr=args.lr, betas=(args.alpha, args.beta), eps=1e-3, fused=True)
    if name == 'adamw':
        return torch.optim.AdamW(groups, lr=args.lr, betas=(args.alpha, args.beta), eps=1e-8, fused=True)
    if name == 'sgd':
        return torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum)
    raise unknown('optimizer', args.optimizer, OPTIMIZERS)
