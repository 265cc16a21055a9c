"""The known language models: what they are, under which licence, what that permits, and the sizes that fix their parameter count.

Owns facts in one literal table, no code that loads anything; importing it loads no library. All are of the LLaMA layout (a gated feed-forward network, RMS
norms, no biases). Licences are those that the publisher's model card names for the weights. A directory of your own has the licence its publisher gave
it, whatever this table says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownLm:
    """One published language model. D: width."""

    arch: str
    """Recipe.weights.lm."""
    name: str
    licence: str
    """SPDX name where there is one."""
    commercial: str
    """Commercial use: starts with yes or no."""
    published: str
    """Its publisher's name on the model hub."""
    vocabulary: int
    """Rows of the embedding matrix."""
    width: int
    """D."""
    layers: int
    heads: int
    """Attention heads."""
    key_width: int
    """Outputs of k_proj and v_proj."""
    ffn: int
    """Inner width of the feed-forward network."""
    tied: bool
    """The head is the embedding matrix."""

    @property
    def parameters(self) -> int:
        """Exact parameter count of the base, without anything added."""
        layer = 2 * self.width * self.width + 2 * self.width * self.key_width + 3 * self.width * self.ffn + 2 * self.width
        return (1 if self.tied else 2) * self.vocabulary * self.width + self.layers * layer + self.width

    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """Linear layers of one block: name -> (inputs, outputs)."""
        width, ffn = self.width, self.ffn
        attention = {"q_proj": (width, width), "k_proj": (width, self.key_width), "v_proj": (width, self.key_width), "o_proj": (width, width)}
        return attention | {"gate_proj": (width, ffn), "up_proj": (width, ffn), "down_proj": (ffn, width)}


_LLAMA_7B: dict[str, Any] = {"vocabulary": 32000, "width": 4096, "layers": 32, "heads": 32, "key_width": 4096, "ffn": 11008, "tied": False}
CATALOGUE: tuple[KnownLm, ...] = (
    KnownLm(
        arch="SmolLM2-135M-Instruct",
        name="SmolLM2 135M Instruct",
        licence="Apache-2.0",
        commercial="yes",
        published="HuggingFaceTB/SmolLM2-135M-Instruct",
        vocabulary=49152,
        width=576,
        layers=30,
        heads=9,
        key_width=192,
        ffn=1536,
        tied=True,
    ),
    KnownLm(
        arch="vicuna-7b-v1.5",
        name="Vicuna 7B v1.5",
        licence="Llama 2 Community License",
        commercial="yes, up to 700 million users a month",
        published="lmsys/vicuna-7b-v1.5",
        **_LLAMA_7B,
    ),
    KnownLm(
        arch="vicuna-7b-v0",
        name="Vicuna 7B v0",
        licence="LLaMA licence (non-commercial)",
        commercial="no",
        published="lmsys/vicuna-7b-delta-v0, added to LLaMA 7B",
        **_LLAMA_7B,
    ),
    KnownLm(
        arch="tiny-llama",
        name="toy Llama",
        licence="Apache-2.0",
        commercial="yes",
        published="random weights made from a seed",
        vocabulary=259,
        width=64,
        layers=2,
        heads=4,
        key_width=32,
        ffn=160,
        tied=True,
    ),
)


def known_lm(arch: str) -> KnownLm | None:
    """The entry of a recipe's weights.lm; None: not known."""
    return {entry.arch: entry for entry in CATALOGUE}.get(arch)
