"""Output projectors: hidden states of a signal block -> the tensor that drives a decoder.

An encoder-decoder transformer with learned queries, after NExT-GPT (github.com/NExT-GPT/NExT-GPT, ICML 2024), whose queries all
start equal (std 0) and have no positions; here queries start at std 0.02 plus sinusoidal positions, so no two outputs are tied.
The output is `mean + scale * network`: mean and scale are buffers fitted to the training targets, so that the untrained projector is
the mean predictor. Refuses to know losses and decoders.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from mmcore.config import OutputProjectorSpec
from mmcore.seeding import seeded


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Position table [length, width] of "Attention Is All You Need" (arXiv 1706.03762, section 3.5)."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates[None]
    return torch.stack([angles.sin(), angles.cos()], -1).reshape(length, -1)[:, :width]


class TransformerProjector(nn.Module):
    """hidden_BSD + embeds_SD -> conditioning_BQC. in_width: D; num_signals: S."""

    mean_QC: torch.Tensor
    scale: torch.Tensor
    signal_positions_SW: torch.Tensor
    query_positions_QW: torch.Tensor

    def __init__(self, spec: OutputProjectorSpec, in_width: int, num_signals: int):
        super().__init__()
        self.norm = nn.LayerNorm(in_width)
        self.into = nn.Linear(in_width, spec.width)
        encoder = nn.TransformerEncoderLayer(spec.width, spec.heads, spec.ffn, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        decoder = nn.TransformerDecoderLayer(spec.width, spec.heads, spec.ffn, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(encoder, spec.layers, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, spec.layers, norm=nn.LayerNorm(spec.width))
        self.queries_QW = nn.Parameter(0.02 * torch.randn(spec.queries, spec.width))
        self.out = nn.Linear(spec.width, spec.out)
        nn.init.normal_(self.out.weight, std=0.02 / math.sqrt(spec.width))
        nn.init.zeros_(self.out.bias)
        self.register_buffer("signal_positions_SW", sinusoids(num_signals, spec.width), persistent=False)
        self.register_buffer("query_positions_QW", sinusoids(spec.queries, spec.width), persistent=False)
        self.register_buffer("mean_QC", torch.zeros(spec.queries, spec.out))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, mean_QC: torch.Tensor, scale: float) -> None:
        """Set the mean conditioning and the standard deviation around it, both from the training targets."""
        self.mean_QC.copy_(mean_QC)
        self.scale.fill_(scale)

    def forward(self, hidden_BSD: torch.Tensor, embeds_SD: torch.Tensor) -> torch.Tensor:
        """hidden states at the signal positions and the signal tokens' input rows -> conditioning_BQC (float32).

        Raises ValueError when the number of positions is not the number of signal tokens.
        """
        if hidden_BSD.shape[1] != len(self.signal_positions_SW):
            raise ValueError(f"a signal block has {len(self.signal_positions_SW)} tokens, {hidden_BSD.shape[1]} hidden states were given")
        states = self.into(self.norm(hidden_BSD.float() + embeds_SD.float())) + self.signal_positions_SW
        queries = (self.queries_QW + self.query_positions_QW).expand(len(states), -1, -1)
        return self.mean_QC + self.scale * self.out(self.decoder(queries, self.encoder(states)))


KINDS = {"transformer": TransformerProjector}


def build_output_projector(spec: OutputProjectorSpec, in_width: int, num_signals: int, seed: int) -> TransformerProjector:
    """A seeded projector. Raises ValueError for an unknown kind."""
    if spec.kind not in KINDS:
        raise ValueError(f"output projector kind {spec.kind!r} is unknown; there are: {', '.join(sorted(KINDS))}")
    with seeded(seed):
        return KINDS[spec.kind](spec, in_width, num_signals)
