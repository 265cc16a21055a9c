"""Prefect plugin: `prefect deployment run train-stage3` instead of train-stage3/train-stage3.

Every deployment of ours is called like its flow (prefect.yaml), so the name of one is the name of both; Prefect's client wants FLOW/DEPLOYMENT.
Prefect loads this module through the entry point group `prefect.plugins`, where `[plugins] enabled = true` (prefect.toml) switches plugins on.
Output: both Prefect clients expand NAME to NAME/NAME before they ask the server. A full name is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from prefect.plugins import HookContext, register_hook


def full_name(name: str) -> str:
    """`train-stage3` -> `train-stage3/train-stage3`; FLOW/DEPLOYMENT stays."""
    return name if "/" in name else f"{name}/{name}"


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Called once by Prefect when it is imported. Sets no variables."""
    from prefect.client.orchestration import PrefectClient, SyncPrefectClient

    for client in (PrefectClient, SyncPrefectClient):
        if not hasattr(client.read_deployment_by_name, "__wrapped__"):
            client.read_deployment_by_name = _with_full_name(client.read_deployment_by_name)  # type: ignore[method-assign]


def _with_full_name(method: Callable[..., Any]) -> Callable[..., Any]:
    """read_deployment_by_name of either client; that of the asynchronous one returns a coroutine, which is passed on."""

    @wraps(method)
    def read_deployment_by_name(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        return method(self, full_name(name), *args, **kwargs)

    return read_deployment_by_name
