"""The language model: frozen, in the recipe's dtype, with the new tokens' rows beside it.

Owns what the rest of the code asks of a language model (LanguageModelLike), and the causal ones of transformers behind it: loading, the input embedding
of old and new tokens, the hidden states and the logits. The signal tokens' rows are separate float32 parameters for input and head, tied neither to each
other nor to the base matrices, which stay bit-identical; they start at the mean row, as the model's own embedding scales
it, plus small seeded noise (equal rows could never be told apart).
Placeholder tokens own no row: they are replaced by features and cannot be emitted.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from infra.storage import read_json
from mmcore.chat.special_tokens import TokenTable
from mmcore.config import QUANTIZE, SpecialTokens
from mmcore.lm.families import LORA_TARGETS, check_family, longest_row
from mmcore.lm.lora_layers import routed
from mmcore.lm.probe import check_computes
from mmcore.lm.unpadded import Places, RowsCache, prepare, unpadded
from mmcore.runtime.devices import arithmetic
from mmcore.runtime.given_weights import check_finite, check_unquantised

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_NOISE = 0.1
"""Noise of the new rows, as a share of the base matrix's standard deviation."""


def check_length(tokens: int, longest: int) -> None:
    """Raises ValueError for a row of more tokens than the model reads (longest; 0: it does not say). Called before anything of the row's size is made."""
    if longest and tokens > longest:
        raise ValueError(f"a row has {tokens} tokens, the language model takes at most {longest}: use fewer turns or media tokens")


def packed_mask(query_segments_BT: torch.Tensor, key_segments_BL: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [B, 1, T, L] of packed rows; the T queries are the last T of the L keys.

    A query sees earlier (or its own) keys of the prefix (segment 0) and of its own segment. Padding (segment -1) is seen by padding only.
    """
    num_queries, num_keys = query_segments_BT.shape[1], key_segments_BL.shape[1]
    device = query_segments_BT.device
    order = torch.arange(num_keys, device=device)[None] <= torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    query, key = query_segments_BT[:, :, None], key_segments_BL[:, None, :]
    allowed = ((key == query) | ((key == 0) & (query > 0))) & order
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask[:, None]


def _embedding_scale(base: Any) -> float:
    """What the model's own embedding multiplies its rows by (Gemma: the square root of the width); 1 for most."""
    embedding = base.get_input_embeddings()
    weight_VD = embedding.weight.detach()
    ids = torch.arange(min(64, len(weight_VD)), device=weight_VD.device)
    with torch.no_grad():
        out, rows = embedding(ids), weight_VD[ids]
    if torch.equal(out, rows) or not bool(rows.any()):
        return 1.0
    return float(out.float().norm() / rows.float().norm())


def _rows(matrix_VD: torch.Tensor, count: int, seed: int, scale: float = 1.0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    matrix = matrix_VD.detach().float()
    if scale != 1:
        matrix = matrix * scale
    noise = torch.randn(count, matrix.shape[1], generator=generator).to(matrix.device)
    return nn.Parameter(matrix.mean(0) + _NOISE * float(matrix.std()) * noise)


class LanguageModel(nn.Module):
    """A causal LM of transformers plus the rows of the signal tokens.

    base: LlamaForCausalLM or a like model (frozen here); counts: signal tokens per modality; seed: noise of the new rows.
    """

    def __init__(self, base: Any, counts: SpecialTokens, seed: int = 0):
        super().__init__()
        check_family(base.config)
        self.base = base.eval().requires_grad_(False)
        self._unpadded = prepare(base)
        self.table = TokenTable(base.get_input_embeddings().weight.shape[0], counts)
        self.new_input_rows = _rows(base.get_input_embeddings().weight, self.table.num_signals, 2 * seed, _embedding_scale(base))
        self.new_head_rows = _rows(base.get_output_embeddings().weight, self.table.num_signals, 2 * seed + 1)
        kind = str(getattr(base.config, "model_type", ""))
        if kind not in LORA_TARGETS:  # those are tested
            check_computes(self, kind, packed_mask)

    def train(self, mode: bool = True) -> LanguageModel:
        """The frozen base stays in evaluation mode: its dropout (OPT has some) would make its states random."""
        super().train(mode)
        self.base.eval()
        return self

    @property
    def head(self) -> nn.Module:
        """The frozen output layer of the base vocabulary."""
        head: nn.Module = self.base.get_output_embeddings()
        return head

    @property
    def width(self) -> int:
        """D."""
        return int(self.base.get_input_embeddings().weight.shape[1])

    @property
    def longest(self) -> int:
        """Tokens of the longest row that the model has been made for; 0 when it does not say."""
        return longest_row(self.base.config)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the frozen weights and of the hidden states."""
        dtype: torch.dtype = self.base.get_input_embeddings().weight.dtype
        return dtype

    def embed(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Token ids -> embeds_BTD; placeholders get the row of token 0, to be overwritten. Raises ValueError for an id that no token has."""
        base, signals = self.table.base, self.table.num_signals
        known = base + len(self.table.names)
        if ids_BT.numel() and not 0 <= int(ids_BT.min()) <= int(ids_BT.max()) < known:
            odd = int(ids_BT.min()) if int(ids_BT.min()) < 0 else int(ids_BT.max())
            raise ValueError(f"token id {odd} is unknown: the language model has {base} tokens and {known - base} new ones")
        embeds = self.base.get_input_embeddings()(torch.where(ids_BT < base, ids_BT, 0))
        is_signal = (ids_BT >= base) & (ids_BT < base + signals)
        if signals and bool(is_signal.any()):
            rows = functional.embedding(torch.where(is_signal, ids_BT - base, 0), self.new_input_rows)
            embeds = torch.where(is_signal[..., None], rows.to(embeds.dtype), embeds)
        return embeds

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
        """Last hidden states (after the final norm); with a cache, keys and values are appended to it.

        positions count from 0 (a family's own offset, as OPT's, is added inside). routes: of the tokens through LoRA adapters per modality; seeds: of
        the adapters' dropout in training. real: tokens that are no padding; the others get states of 0, or any.
        Raises ValueError for a position beyond what the model has been made for.
        """
        if positions_BT.numel():
            check_length(int(positions_BT.max()) + 1, self.longest)
        places = Places.of(real_BT) if real_BT is not None and self._unpadded else None
        if places is not None:
            embeds_BTD, positions_BT = places.real(embeds_BTD), places.real(positions_BT)
            routes_BTA = None if routes_BTA is None else places.real(routes_BTA)
            seeds_BT = None if seeds_BT is None else places.real(seeds_BT)
        with routed(self.base, routes_BTA, seeds_BT), unpadded(places):
            outputs = self.base.base_model(
                inputs_embeds=embeds_BTD,
                attention_mask=mask_B1TL,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        hidden: torch.Tensor = outputs.last_hidden_state
        return hidden if places is None else places.padded(hidden)

    def new_cache(self) -> Any:
        """An empty key-value cache."""
        return RowsCache()

    def base_logits(self, hidden_PD: torch.Tensor) -> torch.Tensor:
        """Float32 logits of the base vocabulary, [P, V]."""
        logits: torch.Tensor = self.head(hidden_PD.to(self.dtype))
        return logits.float()

    def logits(self, hidden_PD: torch.Tensor) -> torch.Tensor:
        """Float32 logits of base vocabulary and signal tokens, [P, V+S]."""
        return torch.cat([self.base_logits(hidden_PD), hidden_PD.float() @ self.new_head_rows.T], -1)


@contextmanager
def own_code_refused(directory: Path) -> Iterator[None]:
    """Around the opening of a transformers directory, which runs none of its code: raises ValueError in one line when it cannot be opened and names some."""
    try:
        yield
    except ValueError as error:
        for path in (directory / "config.json", directory / "tokenizer_config.json"):
            if path.is_file() and "auto_map" in read_json(path):
                named = f"{directory.name}/{path.name} names code of its own (auto_map)"
                raise ValueError(f"{named}, which is never run here: take a model of a family that transformers knows") from error
        raise


def longest_of(directory: Path) -> int:
    """Tokens of the longest row that a language model reads, from its config alone; 0 when it does not say. Raises ValueError for one that needs code of its
    own."""
    from transformers import AutoConfig

    with own_code_refused(directory):
        return longest_row(AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False))


def load_tokenizer(directory: Path) -> Any:
    """The LM's own tokenizer, from local files only. Raises ValueError for one that needs code of its own."""
    from transformers import AutoTokenizer

    with own_code_refused(directory):
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def _quantization(quantize: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of from_pretrained for frozen linear layers in 4 or 8 bit (NF4 and LLM.int8: arXiv 2305.14314, 2208.07339).

    Raises ValueError without a CUDA device or without bitsandbytes.
    """
    if not quantize:
        return {}
    if quantize not in QUANTIZE:
        raise ValueError(f"quantize {quantize!r} is unknown: use 4bit, 8bit or nothing")
    if not torch.cuda.is_available():
        raise ValueError(f"quantize={quantize} needs a CUDA GPU, and there is none here: leave quantize empty")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"quantize={quantize} needs bitsandbytes: pip install bitsandbytes, or leave quantize empty")
    from transformers import BitsAndBytesConfig

    if quantize == "4bit":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def load_lm(directory: Path, dtype: str, counts: SpecialTokens, seed: int = 0, quantize: str = "", device: str = "cpu") -> LanguageModel:
    """A frozen LM from a transformers directory, eager attention (faster than SDPA at short rows on CPU).

    quantize: `4bit` or `8bit` stores the linear layers so, on a CUDA device; embeddings and head stay in dtype. device: where it will compute, which may
    want another type (mmcore.runtime.devices.arithmetic); it is not moved there.
    Raises ValueError for an unknown dtype, a quantisation that this machine cannot do, weights that are quantised already or not finite, or a family that
    cannot be used or needs code of its own.
    """
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise ValueError(f"model dtype {dtype!r} is unknown: use {', '.join(DTYPES)}")
    quantized = _quantization(quantize, DTYPES[dtype])
    check_unquantised(directory)
    computed_in = dtype if quantized else arithmetic(dtype, device)
    with own_code_refused(directory):
        base = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=DTYPES[computed_in],
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **quantized,
        )
    check_finite(base.named_parameters(), directory)
    return LanguageModel(base, counts, seed)
