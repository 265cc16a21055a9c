"""Ledger of a training stage: the records that its rows cannot hold, with their reasons.

Input: LeftOut samples. Output: ledger.parquet, written only where there are any, and what the run says of them at its end. Raises nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from infra.storage import write_parquet
from mmcore.stores.left_out import LEFT_OUT, LeftOut
from mmcore.training.fitting import ledger_lines

if TYPE_CHECKING:
    from mmcore.chat.chat import Chat

LEDGER = "ledger.parquet"
SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "source", "status", "reason", "detail")])
"""status: cut or left_out; reason: one of mmcore.training.fitting.REASONS, or of mmcore.stores.shards.REASONS."""


def write_ledger(lost: Sequence[LeftOut], output: Path) -> None:
    """A row for each of the samples, if there are any."""
    if lost:
        write_parquet(pa.Table.from_pylist([asdict(one) for one in lost], SCHEMA), output / LEDGER)


def left_out(lost: Sequence[LeftOut], samples: Mapping[str, Sequence[Any]], chat: Chat | None) -> dict[str, list[str]]:
    """{"left_out": lines} for the end of the run; nothing where every record is read whole. samples: those that fit, by dataset."""
    total = sum(map(len, samples.values())) + sum(one.status == LEFT_OUT for one in lost)
    lines = ledger_lines(lost, total)
    unread = sum(bool(sample.system) for rows in samples.values() for sample in rows) if chat is not None and not chat.template.system else 0
    if chat is not None and unread:
        lines.append(f"the turn of the system of {unread} of {total} records: the chat template {chat.template_name} has none")
    return {"left_out": lines} if lines else {}
