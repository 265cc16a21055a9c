"""The libraries behind decoders, imported by one thread at a time.

diffusers and transformers find their classes lazily, module by module. Steps run side by side in threads, and two threads that first ask for classes of
diffusers at once can meet in each other's half-imported modules: one of them then gets "cannot import name". Whoever is about to open or make a part of a
decoder calls `load_libraries` first.
"""

from __future__ import annotations

import threading

_LOCK = threading.Lock()
_CLASSES = {
    "transformers": ("BertModel", "CLIPTextModel", "ClapModel", "GPT2LMHeadModel", "RobertaTokenizer", "SpeechT5HifiGan", "T5EncoderModel", "T5Tokenizer"),
    "diffusers": ("AutoencoderKL", "DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler", "UNet2DConditionModel", "UNet3DConditionModel"),
}
"""What most decoders are made of; asking for a class imports its module and all that this one needs."""


def load_libraries() -> None:
    """Import what decoders are made of, unless it is there already. Any number of threads may call it."""
    import importlib

    with _LOCK:
        for library, names in _CLASSES.items():
            module = importlib.import_module(library)
            for name in names:
                getattr(module, name)
