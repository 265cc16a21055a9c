"""Prefect app: Prefect's server as uvicorn serves it for a run and for the stack, for the host names that it is known by alone.

A page in a browser can give any name to this machine's address (DNS rebinding); its requests carry that name. Input: the environment of the process
(infra.settings.server_hosts). Output: the ASGI app.
"""

from __future__ import annotations

from typing import Any

from prefect.server.api.server import create_app as prefect_app
from starlette.middleware.trustedhost import TrustedHostMiddleware

from infra.settings import server_hosts


def create_app() -> Any:
    """Factory for uvicorn."""
    app = prefect_app()
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=server_hosts(), www_redirect=False)
    return app
