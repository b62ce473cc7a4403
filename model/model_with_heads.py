"""A module that holds the parts of a backbone and of heads under their own names."""
from torch import nn

from model.heads import HasTrainingOnlyParts, describe_head
from utils.errors import UserError


class ModelWithHeads(nn.Module):
    """Holds the parts of a backbone and of heads under the attribute names in their files.

    Parameters therefore have the official names: the encoders' are those of the backbone (``base_model.*`` for CLIP), a
    head's are the attribute names in its file. Neither the backbone nor the heads are submodules.

    Args:
        backbone: a :class:`~model.backbones.Backbone`.

    Attributes:
        heads: a tuple of :class:`~model.heads.Head`, which the subclass sets.
        frozen_names: the names of the parameters that only ``--freeze`` excludes from training.
        frozen_norms: a tuple of the batch norms that ``--freeze`` keeps in eval mode.
    """

    frozen_names, frozen_norms = frozenset(), ()

    def __init__(self, backbone):
        super().__init__()
        self._shared = {}
        self.__dict__['backbone'] = backbone     # not a submodule: its parts are registered under their own names
        self.register_parts(backbone)

    def shared(self, cls, *settings):
        """Return the only ``cls(*settings)`` of this model, for heads that share a part."""
        if cls not in self._shared:
            part = cls(*settings)
            self.register_parts(part)
            self._shared[cls] = settings, part
        first_settings, part = self._shared[cls]
        if first_settings != settings:
            raise UserError(f'{cls.__name__} is shared by heads with the settings {first_settings}, and another head '
                            f'gives {settings}: give the same settings, or build a part of its own')
        return part

    def register_parts(self, owner):
        """Register modules, parameters and buffers of a head, a shared part or the backbone under their own names."""
        shared = {id(part) for _, module in self._shared.values() for part in (module, *module.children())}
        for name, part in [*owner.named_children(), *owner.named_parameters(recurse=False)]:
            if id(part) not in shared:
                if owner is not self.backbone and (part is self or contains_module(part, self.backbone.encoder)):
                    raise UserError(f'{describe_head(owner)}.{name} is the model itself or its encoder: give the head '
                                    'a copy (copy.deepcopy) or parts of its own; hooks get the model as an argument')
                self._check_unused_name(owner, name)
                setattr(self, name, part)
        buffers = dict(owner.named_buffers(recurse=False))
        for name, buffer in buffers.items():
            self._check_unused_name(owner, name)
            self.register_buffer(name, buffer, persistent=name not in owner._non_persistent_buffers_set)
        if buffers:
            owner._buffers = self._buffers   # one dict, because moving the model or an assignment replaces its tensors

    def _check_unused_name(self, owner, name):
        if hasattr(self, name):
            raise UserError(f'{describe_head(owner)}.{name}: the model has another part with this name')

    def heads_with(self, mixin):
        """Return the heads of a mixin class, such as :class:`~model.heads.AddsEmbedding`."""
        return tuple(head for head in self.heads if isinstance(head, mixin))

    def parts_with(self, mixin):
        """Return the heads and the shared parts of a mixin class."""
        return (*self.heads_with(mixin), *(part for _, part in self._shared.values() if isinstance(part, mixin)))

    def heads_with_parameter(self, name):
        """Return the heads that own or share the parameter ``name``; none for parameters of the encoders."""
        module = getattr(self, name.split('.')[0])
        return [head for head in self.heads if any(module is part for part in parts_of(head))]

    @property
    def training_only(self):
        """The names in the state dict that only training needs (:class:`~model.heads.HasTrainingOnlyParts`)."""
        parts = tuple(f'{name}.' for part in self.parts_with(HasTrainingOnlyParts) for name in part.training_only_parts)
        return {name for name in self.state_dict() if f'{name}.'.startswith(parts)} if parts else set()

    def after_weights_loaded(self):
        """Call the heads' hooks after the weights of a new run are loaded."""
        for part in self.parts_with(HasTrainingOnlyParts):
            part.after_weights_loaded(self)

    def train(self, mode=True):
        """Set the mode of the heads also, because they are not submodules."""
        for part in [*self.heads, *(part for _, part in self._shared.values())]:
            part.training = mode
        super().train(mode)
        for norm in self.frozen_norms:
            norm.eval()
        return self

    def _apply(self, fn, recurse=True):
        """Move or cast parameters, and let the heads refer to the new ones."""
        super()._apply(fn, recurse)
        for head in self.heads:
            for name in head._parameters:
                head._parameters[name] = self._parameters[name]
        return self


def contains_module(part, module):
    """Whether a part (a module or a parameter) is or contains a module."""
    return isinstance(part, nn.Module) and any(inner is module for inner in part.modules())


def parts_of(head):
    """Return a head's modules and parameters, and those of the parts that it shares with other heads."""
    children = list(head.children())
    return [*children, *head.parameters(recurse=False), *(part for child in children for part in child.children())]
