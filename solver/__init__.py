from solver.build import build_optimizer  # noqa: F401
from solver.lr_scheduler import build_lr_scheduler  # noqa: F401
