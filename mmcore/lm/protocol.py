"""The protocol of a language model: all that the rest of this package asks of one.

Input: token ids and media embeddings. Output: states and logits. Raises ValueError, as its members say. mmcore.lm.language_model has the implementation.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from mmcore.chat.special_tokens import TokenTable


class LanguageModelLike(Protocol):
    """What AnyModel, the cache of rows being written, the losses and stage 2's states ask of a language model: an nn.Module with these members.

    Nothing here asks for attention, for one stack of layers or for a class of transformers. The state of a position predicts the next token and depends on
    the tokens that the mask lets the position see; a recurrent model or one of encoder and decoder gets it in its own way, and keeps what it has read in a
    cache of its own. Shape letters: B rows, T their last tokens, L all their tokens, P positions, D width, V base vocabulary, S signal tokens, A adapters.
    """

    @property
    def table(self) -> TokenTable:
        """Ids of the new tokens behind the V of the base vocabulary."""
        ...

    @property
    def base(self) -> nn.Module:
        """The frozen network; LoRA goes into its linear layers."""
        ...

    @property
    def head(self) -> nn.Module:
        """Frozen output layer [.., D] -> [.., V]. A plain nn.Linear is also computed in chunks of its rows (mmcore.lm.token_nll)."""
        ...

    @property
    def new_input_rows(self) -> torch.Tensor:
        """[S, D] float32 parameter, the input embeddings of the signal tokens."""
        ...

    @property
    def new_head_rows(self) -> torch.Tensor:
        """[S, D] float32 parameter, their rows of the head."""
        ...

    @property
    def width(self) -> int:
        """D."""
        ...

    @property
    def longest(self) -> int:
        """Tokens of the longest row that it reads; 0 without a limit."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the frozen weights, and of embeddings and mask."""
        ...

    def embed(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """embeds_BTD of token ids; what placeholders get is overwritten. Raises ValueError for an id that no token has."""
        ...

    def hidden(
        self,
        embeds_BTD: torch.Tensor,
        mask_B1TL: torch.Tensor,
        positions_BT: torch.Tensor,
        cache: Any = None,
        routes_BTA: torch.Tensor | None = None,
        seeds_BT: torch.Tensor | None = None,
        real_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """hidden_BTD of the T tokens; mask: 0 where a token may be seen, a huge negative number where not. cache: of new_cache, holds the L - T tokens before
        and takes these up; None: T is L. routes, seeds: of adapters per modality and of their dropout (mmcore.lm.lora_layers); or None. real: False where a
        token is padding, whose state nobody reads; None: nowhere. Raises ValueError for a row that is too long."""
        ...

    def new_cache(self) -> Any:
        """An empty cache for rows of which `hidden` will be given some tokens after the others."""
        ...

    def base_logits(self, hidden_PD: torch.Tensor) -> torch.Tensor:
        """Float32 logits [P, V] of the base vocabulary."""
        ...

    def logits(self, hidden_PD: torch.Tensor) -> torch.Tensor:
        """Float32 logits [P, V+S] of base vocabulary and signal tokens."""
        ...
