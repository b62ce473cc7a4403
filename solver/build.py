"""The optimizer: each parameter learns at the rate that the published rules give its name, in few groups."""
import torch

from model.heads import active_heads
from utils.errors import unknown

OPTIMIZERS = ('Adam', 'AdamW', 'SGD')


def parameter_settings(name, args, heads=None):
    """(lr, weight decay) of a parameter: IRRA's rules on its name, the later ones winning, then those of the ``heads`` that it belongs
    to (by default all that ``args`` ask for)."""
    lr, weight_decay = args.lr, args.weight_decay
    part, last = name.split('.')[0], name.split('.')[-1]
    if part.startswith(('cross_attn', 'cross_modal_transformer')):
        lr = args.lr * args.lr_factor
    if last.endswith('bias'):
        lr, weight_decay = args.lr * args.bias_lr_factor, args.weight_decay_bias
    if part in ('classifier', 'mlm_head', 'itm_head'):
        lr = args.lr * args.lr_factor
    for head in active_heads(args) if heads is None else heads:
        lr, weight_decay = head.learning_rate(name, lr, weight_decay, args)
    return lr, weight_decay


def parameter_groups(args, model):
    """The learning parameters of ``model`` in one group for each (lr, weight decay)."""
    owners_of = getattr(model, 'owners_of', lambda name: None)   # a script's own model does not say which head owns what
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            settings = parameter_settings(name, args, owners_of(name))
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
