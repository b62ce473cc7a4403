"""What the forward pass computes in."""
import functools

import torch

from utils.errors import UserError


@functools.lru_cache(maxsize=None)
def amp_dtype(choice, device):
    """``--amp auto|bf16|fp16|off`` on a device -> the dtype of autocast, or None for float32. ``auto`` is bf16 where the GPU
    has it, else fp16, and off on the CPU."""
    if choice == 'auto':
        if device.type != 'cuda':
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if choice == 'fp16' and device.type == 'cpu':
        raise UserError('--amp fp16 needs a GPU; on the CPU use --amp off (or bf16)')
    if choice != 'off' and device.type == 'mps':
        raise UserError(f'--amp {choice}: --device mps computes in float32; use --amp off')
    return {'bf16': torch.bfloat16, 'fp16': torch.float16, 'off': None}[choice]
