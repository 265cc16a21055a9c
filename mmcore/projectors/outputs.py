"""Output projectors: hidden states of a signal block -> the tensor that drives a decoder.

Input is the hidden state plus the signal token's input row at each signal position, after NExT-GPT (github.com/NExT-GPT/NExT-GPT, ICML 2024).
Kinds: `transformer`, an encoder-decoder with learned queries; `nextgpt`, the same with exactly the layers of that repository (its parameter
counts); `nextgpt_legacy`, for its public checkpoint; `linear`. There the queries start equal (std 0) and have no positions; here they
start at std 0.02 plus sinusoidal positions, so no two outputs are tied (`nextgpt_legacy` has no positions: it was trained without).
The output is `mean + scale * network`: mean and scale are buffers fitted to the training targets, so that the untrained projector is
the mean predictor. Its input is standardised per position and channel, by buffers fitted to the training states (`nextgpt_legacy` excepted): a language
model's last states share a few huge channels, beside which what a caption changes is a hundredth of their length.

Shape letters: W inner width; Q queries and C channels of the conditioning; otherwise as everywhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import nn

from mmcore.config import OutputProjectorSpec
from mmcore.runtime.seeding import seeded

_STD = 0.02
_LEAST, _TINY = 0.1, 1e-6
"""Least spread that a channel is divided by, as a share of the mean spread, and at all."""


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Position table [length, width] of "Attention Is All You Need" (arXiv 1706.03762, section 3.5)."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates[None]
    return torch.stack([angles.sin(), angles.cos()], -1).reshape(length, -1)[:, :width]


def _small(out: nn.Linear) -> None:
    """Start a last layer so that `mean + scale * network` is close to the mean."""
    nn.init.normal_(out.weight, std=_STD / math.sqrt(out.in_features))
    nn.init.zeros_(out.bias)


class OutputProjector(nn.Module, ABC):
    """hidden_BSD + embeds_SD -> conditioning_BQC. num_signals: S. A kind adds its layers and `network`."""

    standardises = True
    """False: states enter as they are."""
    in_mean_SD: torch.Tensor
    in_std_SD: torch.Tensor
    mean_QC: torch.Tensor
    scale: torch.Tensor

    def __init__(self, spec: OutputProjectorSpec, in_width: int, num_signals: int):
        super().__init__()
        self.num_signals = num_signals
        self.register_buffer("in_mean_SD", torch.zeros(num_signals, in_width))
        self.register_buffer("in_std_SD", torch.ones(num_signals, in_width))
        self.register_buffer("mean_QC", torch.zeros(spec.queries, spec.out))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, mean_QC: torch.Tensor, scale: float) -> None:
        """Set the mean conditioning and the standard deviation around it, both from the training targets."""
        self.mean_QC.copy_(mean_QC)
        self.scale.fill_(scale)

    @torch.no_grad()
    def fit_input(self, chunks: Iterable[torch.Tensor], embeds_SD: torch.Tensor) -> None:
        """Set what the input is standardised with, from chunks [b, S, D] of training states. Channels that hardly vary are not blown up."""
        if not self.standardises:
            return
        count, sum_SD, squares_SD = 0, torch.zeros_like(self.in_mean_SD).double(), torch.zeros_like(self.in_mean_SD).double()
        for chunk_BSD in chunks:
            states_BSD = chunk_BSD.double() + embeds_SD.double()
            count, sum_SD, squares_SD = count + len(states_BSD), sum_SD + states_BSD.sum(0), squares_SD + states_BSD.square().sum(0)
        std_SD = (squares_SD / count - (sum_SD / count).square()).clamp(min=0).sqrt()
        self.in_mean_SD.copy_(sum_SD / count)
        self.in_std_SD.copy_(std_SD.clamp(min=max(_LEAST * float(std_SD.mean()), _TINY)))

    @abstractmethod
    def network(self, states_BSD: torch.Tensor) -> torch.Tensor:
        """Standardised sums of hidden states and input rows -> [B, Q, C] in units of `scale` around the mean."""

    def forward(self, hidden_BSD: torch.Tensor, embeds_SD: torch.Tensor) -> torch.Tensor:
        """hidden states at the signal positions and the signal tokens' input rows -> conditioning_BQC (float32).

        Raises ValueError when the number of positions is not the number of signal tokens.
        """
        if hidden_BSD.shape[1] != self.num_signals:
            raise ValueError(f"a signal block has {self.num_signals} tokens, {hidden_BSD.shape[1]} hidden states were given")
        states_BSD = (hidden_BSD.float() + embeds_SD.float() - self.in_mean_SD) / self.in_std_SD
        return self.mean_QC + self.scale * self.network(states_BSD)


class TransformerProjector(OutputProjector):
    """LayerNorm, Linear D -> W, encoder, decoder over Q queries, Linear W -> C. in_width: D."""

    signal_positions_SW: torch.Tensor
    query_positions_QW: torch.Tensor

    def __init__(self, spec: OutputProjectorSpec, in_width: int, num_signals: int):
        super().__init__(spec, in_width, num_signals)
        self.norm = nn.LayerNorm(in_width)
        self.into = nn.Linear(in_width, spec.width)
        encoder = nn.TransformerEncoderLayer(spec.width, spec.heads, spec.ffn, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        decoder = nn.TransformerDecoderLayer(spec.width, spec.heads, spec.ffn, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(encoder, spec.layers, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, spec.layers, norm=nn.LayerNorm(spec.width))
        self.queries_QW = nn.Parameter(_STD * torch.randn(spec.queries, spec.width))
        self.out = nn.Linear(spec.width, spec.out)
        _small(self.out)
        self.register_buffer("signal_positions_SW", sinusoids(num_signals, spec.width), persistent=False)
        self.register_buffer("query_positions_QW", sinusoids(spec.queries, spec.width), persistent=False)

    def network(self, states_BSD: torch.Tensor) -> torch.Tensor:
        states_BSW = self.into(self.norm(states_BSD)) + self.signal_positions_SW
        queries = (self.queries_QW + self.query_positions_QW).expand(len(states_BSW), -1, -1)
        return self.out(self.decoder(queries, self.encoder(states_BSW)))


class NextGptProjector(OutputProjector):
    """Linear D -> W, torch's nn.Transformer (pre-norm, ReLU, a norm after encoder and decoder), Linear W -> C: the reference's layers. in_width: D."""

    positions = True
    signal_positions_SW: torch.Tensor
    query_positions_QW: torch.Tensor

    def __init__(self, spec: OutputProjectorSpec, in_width: int, num_signals: int):
        super().__init__(spec, in_width, num_signals)
        self.into = nn.Linear(in_width, spec.width)
        encoder = nn.TransformerEncoderLayer(spec.width, spec.heads, spec.ffn, dropout=0.0, batch_first=True, norm_first=True)
        decoder = nn.TransformerDecoderLayer(spec.width, spec.heads, spec.ffn, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(encoder, spec.layers, norm=nn.LayerNorm(spec.width), enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, spec.layers, norm=nn.LayerNorm(spec.width))
        for parameter in (*self.encoder.parameters(), *self.decoder.parameters()):
            if parameter.dim() > 1:  # the layers are copies of one: draw each anew, as nn.Transformer does
                nn.init.xavier_uniform_(parameter)
        self.queries_QW = nn.Parameter(_STD * torch.randn(spec.queries, spec.width))
        self.out = nn.Linear(spec.width, spec.out)
        _small(self.out)
        self.register_buffer("signal_positions_SW", sinusoids(num_signals, spec.width) * self.positions, persistent=False)
        self.register_buffer("query_positions_QW", sinusoids(spec.queries, spec.width) * self.positions, persistent=False)

    def network(self, states_BSD: torch.Tensor) -> torch.Tensor:
        queries = (self.queries_QW + self.query_positions_QW).expand(len(states_BSD), -1, -1)
        return self.out(self.decoder(queries, self.encoder(self.into(states_BSD) + self.signal_positions_SW)))


class LegacyNextGptProjector(NextGptProjector):
    """NextGptProjector without positions, and on states as they are, as the public checkpoint was trained."""

    positions, standardises = False, False


class LinearOutputProjector(OutputProjector):
    """One Linear D -> C at every signal position. Q = S: nothing else, as in the reference; another Q: learned mixtures of the S outputs. in_width: D."""

    def __init__(self, spec: OutputProjectorSpec, in_width: int, num_signals: int):
        super().__init__(spec, in_width, num_signals)
        self.out = nn.Linear(in_width, spec.out)
        _small(self.out)
        mixed = spec.queries != num_signals
        self.mix_QS = nn.Parameter(1 / num_signals + _STD * torch.randn(spec.queries, num_signals)) if mixed else None

    def network(self, states_BSD: torch.Tensor) -> torch.Tensor:
        outputs_BSC = self.out(states_BSD)
        return outputs_BSC if self.mix_QS is None else self.mix_QS @ outputs_BSC


KINDS: dict[str, type[TransformerProjector | NextGptProjector | LinearOutputProjector]] = {
    "linear": LinearOutputProjector,
    "nextgpt": NextGptProjector,
    "nextgpt_legacy": LegacyNextGptProjector,
    "transformer": TransformerProjector,
}
"""kind -> class."""


def build_output_projector(spec: OutputProjectorSpec, in_width: int, num_signals: int, seed: int) -> OutputProjector:
    """A seeded projector. Raises ValueError for an unknown kind."""
    if spec.kind not in KINDS:
        raise ValueError(f"output projector kind {spec.kind!r} is unknown; there are: {', '.join(sorted(KINDS))}")
    with seeded(seed):
        return KINDS[spec.kind](spec, in_width, num_signals)
