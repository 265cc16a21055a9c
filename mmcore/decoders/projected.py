"""An output projector's tokens and a decoder's streams: who gets which tokens, in both directions.

Owns the layout: the tokens of a projector are those of the decoder's streams one after the other; every stream but the last takes the number of tokens
that its contract says, the last one what is left, at most its own number. The projector is as wide as the widest stream; a narrower one takes the first
channels of its tokens (AudioLDM2: 768 and 1024). Input: a contract and tensors; output: tensors. Importing this module must not import torch.

Shape letters: B batch, Q tokens of the projector, C its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from infra.step import AnyloomError
from mmcore.decoders.contract import DecoderContract

if TYPE_CHECKING:
    import torch


def check_projector(contract: DecoderContract, queries: int, width: int) -> None:
    """Raises AnyloomError, with both numbers, when a projector of `queries` tokens of `width` channels cannot drive the decoder."""
    *fixed, last = contract.streams
    before, widest = sum(stream.tokens for stream in fixed), max(stream.width for stream in contract.streams)
    rest = queries - before
    fits = 1 <= rest <= last.tokens if last.any_length else rest == last.tokens
    if fits and width == widest:
        return
    least = before + (1 if last.any_length else last.tokens)
    most = before + last.tokens
    wanted = f"{most} tokens" if least == most else f"{least} to {most} tokens"
    names = " then ".join(f"{stream.tokens} of '{stream.name}'" for stream in contract.streams)
    raise AnyloomError(
        f"the output projector of {contract.modality} makes {queries} tokens of width {width}, but {contract.family} takes {wanted} of width {widest} "
        f"({names}): set queries and out of {contract.modality} in output_projectors"
    )


def token_counts(contract: DecoderContract, queries: int) -> list[int]:
    """Tokens of each stream when the projector makes `queries`."""
    fixed = [stream.tokens for stream in contract.streams[:-1]]
    return [*fixed, queries - sum(fixed)]


def streams_of(contract: DecoderContract, conditioning_BQC: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A projector's output -> one tensor per stream, what Decoder.condition takes; gradients pass through. Raises AnyloomError as check_projector does."""
    queries, width = conditioning_BQC.shape[1:]
    check_projector(contract, queries, width)
    edges = [0, *accumulate(token_counts(contract, queries))]
    places = zip(contract.streams, pairwise(edges), strict=True)
    return tuple(conditioning_BQC[:, start:stop, : stream.width] for stream, (start, stop) in places)


def joined(contract: DecoderContract, streams: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None], queries: int, width: int) -> list[torch.Tensor]:
    """What the decoder's own text encoders made of B texts -> what a projector should make of each: [at most queries, width].

    Tokens that a mask leaves out are cut, and so are those beyond the projector's; channels that a stream does not have are zero.
    Raises AnyloomError as check_projector does.
    """
    import torch

    check_projector(contract, queries, width)
    counts = token_counts(contract, queries)
    rows = []
    for item in range(len(streams[0])):
        parts = []
        for stream, mask, count in zip(streams, masks, counts, strict=True):
            kept = stream[item] if mask is None else stream[item][mask[item].bool()]
            parts.append(torch.nn.functional.pad(kept[:count], (0, width - stream.shape[-1])))
        rows.append(torch.cat(parts))
    return rows
