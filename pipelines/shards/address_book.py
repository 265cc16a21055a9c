"""Address book: the whole addresses of media whose manifest shows them without their credentials.

Owns one directory of the stores that only its owner may read; it is in no artifact and no shard, and no mirror takes it. Input: addresses; output: the whole
address of one as shown. Raises FetchError where it is not on this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from infra.lock import exclusive
from infra.secrets import is_shown
from infra.storage import read_json, write_atomic
from pipelines.shards.errors import FetchError

PLACE, BOOK = "private", "addresses.json"


def keep_addresses(stores: Path, whole: Mapping[str, str]) -> None:
    """Add to the book: address as shown -> whole address."""
    if not whole:
        return
    stores.mkdir(parents=True, exist_ok=True)
    (stores / PLACE).mkdir(mode=0o700, exist_ok=True)
    with exclusive(stores / PLACE / "addresses.lock"):
        write_atomic(stores / PLACE / BOOK, json.dumps({**kept_addresses(stores), **whole}, indent=0, sort_keys=True))


def kept_addresses(stores: Path) -> dict[str, str]:
    """Address as shown -> whole address."""
    path = stores / PLACE / BOOK
    return dict(read_json(path)) if path.exists() else {}


def whole_address(uri: str, addresses: Mapping[str, str]) -> str:
    """What to fetch for a uri of a manifest. Raises FetchError (bad_uri) when its credentials were cut off and are not on this machine."""
    if not is_shown(uri):
        return uri
    if uri not in addresses:
        raise FetchError(
            "bad_uri", "the whole address, with its query, is not on this machine: run again with --force of the manifest step and of this shards step"
        )
    return addresses[uri]
