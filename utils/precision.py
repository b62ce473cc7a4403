"""The precision of the forward pass."""
import functools

import torch

from utils.errors import UserError


@functools.lru_cache(maxsize=None)
def amp_dtype(choice, device):
    """Return the dtype of autocast for ``--amp``, None for float32.

    Args:
        choice: 'auto', 'bf16', 'fp16' or 'off'. 'auto' is bf16 if the GPU has it, else fp16; on the CPU it is off.
        device: the ``torch.device``.

    Raises:
        UserError: the device does not support the choice.
    """
    if choice == 'auto':
        if device.type != 'cuda':
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if choice == 'fp16' and device.type == 'cpu':
        raise UserError('--amp fp16 needs a GPU; on the CPU use --amp off (or bf16)')
    if choice != 'off' and device.type == 'mps':
        raise UserError(f'--amp {choice}: --device mps computes in float32; use --amp off')
    return {'bf16': torch.bfloat16, 'fp16': torch.float16, 'off': None}[choice]
