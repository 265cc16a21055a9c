"""Ranks: how the workers of a training step meet, as a config of Ray Train.

Ranks of one host meet in a file of the step's work directory and talk over loopback, so that nothing of them can be reached from the network. One rank alone
meets nobody. Ranks of several hosts meet as Ray Train has it: rank 0 opens a TCP store, and every rank ports of gloo or NCCL, on the network. Input: a
directory that the ranks of a host share. Output: an initialised torch.distributed group in every worker. Raises what torch raises when a rank does not come.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from ray.train.torch import TorchConfig

from infra.settings import loopback_ranks


@dataclass
class RanksConfig(TorchConfig):
    """How the ranks of one training run meet."""

    meet: str = ""
    """Directory for the files in which ranks of one host meet; it exists, and only the files of the last group are left in it."""

    @property
    def backend_cls(self) -> type[RanksBackend]:
        """The class that sets up the workers."""
        return RanksBackend


class RanksBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray's class for torch, which has no public name
    """Sets up the workers of a RanksConfig, each time that Ray Train starts them."""

    def on_start(self, worker_group: Any, backend_config: RanksConfig) -> None:
        """Called by Ray Train when the workers run, before the training function does."""
        workers = worker_group.get_workers()
        if len({(worker.metadata.hostname, worker.metadata.node_ip) for worker in workers}) > 1:
            super().on_start(worker_group, backend_config)
            return
        if len(workers) == 1:
            return
        import ray

        where = Path(backend_config.meet) / f"group-{secrets.token_hex(8)}"  # a file of its own: torch counts ranks in it
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        common = len(workers), str(where), backend_config.backend or ("nccl" if gpus else "gloo"), backend_config.timeout_s
        ray.get([worker_group.execute_single_async(rank, join, rank, *common) for rank in range(len(workers))])


def join(rank: int, world: int, where: str, backend: str, timeout_s: float) -> None:
    """Meet the other ranks of this host at the file `where`. backend: gloo or nccl."""
    loopback_ranks()
    store = torch.distributed.FileStore(where, world)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s))
