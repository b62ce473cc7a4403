"""Build the optimizer: the learning rate and weight decay of each parameter follow from its name, in few groups."""
import torch

from model.backbones.clip import Clip
from model.loss_names import active_heads
from model.tunings import tuning_class
from utils.errors import UserError, unknown_name_error
from utils.options import complete

OPTIMIZERS = ('Adam', 'AdamW', 'SGD')


def parameter_settings(name, args, heads=None, backbone=None, dimensions=2):
    """Return (learning rate, weight decay) of a parameter.

    The backbone's rules come first (IRRA's for CLIP), then those of the heads that have the parameter. If heads that
    share a parameter disagree, the highest learning rate counts, in whatever order the heads are named. The rules of
    ``--tuning`` come last. ``--lr_rules`` can replace all these rules.

    Args:
        name: the parameter's name.
        args: the options.
        heads: the heads that have the parameter; None: all that the options name.
        backbone: the model's backbone; None: CLIP.
        dimensions: the number of dimensions of the parameter.
    """
    if args.lr_rules != 'irra':
        is_undecayed = dimensions < 2 or any(part in name for part in ('bias', 'ln', 'bn'))
        return args.lr, 0.0 if args.lr_rules == 'undecayed' and is_undecayed else args.weight_decay
    default = (backbone or Clip).learning_rate(name, args)
    settings = [head.learning_rate(name, *default, args) for head in (active_heads(args) if heads is None else heads)]
    settings = max((changed for changed in settings if changed != default), default=default)
    return tuning_class(args).learning_rate(name, *settings, args)


def parameter_groups(args, model):
    """Return the trainable parameters of a model, one group for each pair of learning rate and weight decay."""
    # A model of a user's own script may lack this method.
    heads_with_parameter = getattr(model, 'heads_with_parameter', lambda name: None)
    backbone, groups = getattr(model, 'backbone', None), {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            settings = parameter_settings(name, args, heads_with_parameter(name), backbone, parameter.ndim)
            groups.setdefault(settings, []).append(parameter)
    return [{'params': parameters, 'lr': lr, 'weight_decay': weight_decay}
            for (lr, weight_decay), parameters in groups.items()]


def build_optimizer(args, model):
    """Build Adam, AdamW or SGD, by ``args.optimizer`` in any case.

    Adam has an eps of 1e-3: the published recipes trained in half precision with it, and their results depend on it.
    AdamW has an eps of 1e-8. Both are fused: one kernel updates many parameters, and the gradient scaler need not wait
    for the GPU. SGD is not fused: if the scaler skips its first step, PyTorch leaves the fused momentum uninitialized.

    Raises:
        UserError: the optimizer is unknown, or no parameter trains.
    """
    args = complete(args)
    groups = parameter_groups(args, model)
    if not groups:
        if args.freeze:
            raise UserError(f"no parameter trains: --freeze {' '.join(args.freeze)} freezes all of them: leave out a "
                            'pattern')
        raise UserError(f'no parameter trains: --tuning {args.tuning} adds none with these options, and the losses '
                        f'{args.loss_names} have none: change its options (python train.py --help {args.tuning})')
    name = args.optimizer.lower()
    if name == 'adam':
        return torch.optim.Adam(groups, lr=args.lr, betas=(args.alpha, args.beta), eps=1e-3, fused=True)
    if name == 'adamw':
        return torch.optim.AdamW(groups, lr=args.lr, betas=(args.alpha, args.beta), eps=1e-8, fused=True)
    if name == 'sgd':
        return torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum)
    raise unknown_name_error('optimizer', args.optimizer, OPTIMIZERS)
