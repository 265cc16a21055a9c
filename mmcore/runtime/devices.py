"""Where a model computes, and in which type: the one place that asks whether there is a GPU and what the CPU can multiply.

Input: the number of GPUs a step was given, or a type; output: a torch device name, or the type to compute in.
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


def arithmetic(dtype: str, device: str) -> str:
    """The type that weights of `dtype` (float32, bfloat16, float16) are computed in on `device` (`cpu`, `cuda`, `cuda:1`): dtype, or float32 on a CPU without
    instructions for it.

    There torch multiplies half-width numbers one by one: with AVX2 alone bfloat16 does 17 GFLOP/s on two cores forwards and 1 backwards, float32 110
    (torch 2.14). Every bfloat16 and float16 number is a float32 number too, so the frozen weights stay what they are and only the rounding of sums differs.
    """
    if dtype == "float32" or not device.startswith("cpu"):
        return dtype
    import torch

    if not torch.backends.mkldnn.is_available():
        return "float32"
    native = {"bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported, "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported}
    return dtype if native[dtype]() else "float32"


def out_of_memory(error: BaseException) -> bool:
    """True for what torch and Python raise when a device or the host has no memory left."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(said in str(error) for said in ("can't allocate memory", "bad_alloc"))


def is_of_one_medium(error: BaseException) -> bool:
    """False for what the device itself raises: nothing it says later is about the medium."""
    return out_of_memory(error) or not (
        type(error).__name__ == "AcceleratorError" or any(said in str(error) for said in ("CUDA", "cuDNN", "CUBLAS", "NCCL", "new thread"))
    )
