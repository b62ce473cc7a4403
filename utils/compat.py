"""Names that only scripts of IRRA's users import. Each keeps its import path: IRRA's module imports it from here."""
from easydict import EasyDict

from utils.evaluation_options import run_options
from utils.safe_yaml import read_yaml


def load_train_configs(path):
    """Read a run's ``configs.yaml`` as options: ``args.lr`` and ``args['lr']``.

    The run may be of Pedestal or of a reference implementation. An option that the file lacks gets the value that the
    run's code used. A key that is no option of Pedestal stays, for other code that reads it.
    """
    known = vars(run_options(path))
    other = {name: value for name, value in read_yaml(path).items() if name not in known and name != 'batch_fields'}
    return EasyDict({**other, **known})
