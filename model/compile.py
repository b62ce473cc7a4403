"""``--compile``: transformer blocks are compiled with torch.compile."""
import torch

from utils.errors import UserError

# The most variants of a block that torch.compile may keep: images, captions, cross encoder; training or not; with
# attention maps; the last, smaller batch of an epoch.
COMPILED_VARIANTS = 64


def compile_blocks(model, device):
    """Compile the transformer blocks in place.

    Blocks of the same shape share their code. Blocks that read captions are compiled once for all lengths.

    Raises:
        UserError: PyTorch finds no compiler.
    """
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # the compilers' errors have no common type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f'--compile: PyTorch cannot compile here ({reason}); leave it out, or install a C++ '
                        'compiler') from None
    limits = torch._dynamo.config
    limits.cache_size_limit = max(limits.cache_size_limit, COMPILED_VARIANTS)
    for block, varying_length in model.blocks():
        block.compile(dynamic=True if varying_length else None)
