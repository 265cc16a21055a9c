"""Where a model computes: the one place that asks whether there is a GPU.

Input: the number of GPUs a step was given; output: a torch device name. Refuses to know models, Ray and how GPUs are shared out.
"""

from __future__ import annotations

from infra.step import AnyloomError


def device_for(gpus: int) -> str:
    """`cuda` when the step was given GPUs, else `cpu`. Raises AnyloomError when torch cannot use the GPUs that were given."""
    if not gpus:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise AnyloomError(f"{gpus} GPU(s) are to be used, but torch sees none: install torch with CUDA and a driver, or set ANYLOOM_GPUS=0")
    return "cuda"
