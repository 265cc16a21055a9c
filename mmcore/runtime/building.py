"""One model at a time: transformers and diffusers swap parts of torch for all threads while they build or load a model.

They change its default type, its initialisers, how parameters are registered and the tying of weights. Steps of a run work side by side in threads: what
another thread builds meanwhile would come out empty, untied or of another type. Importing this module must not import torch, so that planning stays instant.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ALONE = threading.RLock()


@contextmanager
def building() -> Iterator[None]:
    """What is built or loaded inside waits until no other thread does so. Also a decorator."""
    with _ALONE:
        yield
