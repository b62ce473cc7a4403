"""``from model import build_model``, as IRRA's scripts have it. Importing the package alone does not import PyTorch."""
from utils.options import complete


def build_model(args, num_classes, state_dict=None, weights_to_load=None):
    """Complete the options and build the model that they describe (:func:`model.build.build_model`)."""
    from model import build
    return build.build_model(complete(args), num_classes, state_dict, weights_to_load)
