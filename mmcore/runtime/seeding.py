"""Seeded construction of modules: the same seed gives the same weights, whatever other threads draw meanwhile.

Steps of a run work side by side in threads, and torch's global generator is shared by all of them: seeding it would let one step's draws
shift another's weights. Inside `seeded` every random operation of this thread reads a private generator instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmcore.runtime.building import building


class _PrivateGenerator(TorchDispatchMode):
    """Hands its generator to every operation that takes one and was given none. Dispatch modes hold for one thread."""

    def __init__(self, seed: int):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags:
            func = _with_generator(func)
            kwargs["generator"] = kwargs.get("generator") or self.generator
        return func(*args, **kwargs)


def _with_generator(func: Any) -> Any:
    """The overload of a random operation that takes a generator. Raises RuntimeError when torch has none (dropout): it cannot be seeded here."""
    packet = func.overloadpacket
    own = func._overloadname
    names = [own, "generator"] if own == "default" else [own, f"{own}_generator", f"generator_{own}"]
    for name in names:
        overload = getattr(packet, name, None)
        if overload is not None and any(argument.name == "generator" for argument in overload._schema.arguments):
            return overload
    raise RuntimeError(f"{func} cannot be seeded privately: build without it, or draw with a torch.Generator of your own")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random operations of this thread read a generator of their own, seeded here: the stream torch.manual_seed(seed) would give."""
    with building(), _PrivateGenerator(seed):
        yield
