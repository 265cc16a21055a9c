"""Secrets: addresses as they may be stored and printed.

Owns what counts as a credential in an address: who logs in (`user:password@`, `KEY:SECRET@`), the query and the fragment, where signed addresses carry their
signatures. Input: addresses or texts with addresses; output: the same without. Raises nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

MARK = "?address="
"""Before the digest of the whole address, in the place of the query."""
HIDDEN = "***@"
"""In the place of who logs in."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|//")
_SHOWN = re.compile(r"\?address=[0-9a-f]{16}$")
_LOGIN_IN_TEXT = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"<>@]*@(?=[^\s'\"<>/@]*)")
_QUERY_IN_TEXT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>?#]*)[?#](?!address=[0-9a-f]{16}\b)[^\s'\"<>]*")


def shown_address(uri: str) -> str:
    """An address without login, query and fragment; where it had any, with a digest of the whole one, so that two that differ still do.

    What is no address (a relative path) and what is shown already comes back as it is.
    """
    if not _SCHEME.match(uri) or _SHOWN.search(uri):
        return uri
    bare = _without_login(re.split(r"[?#]", uri, maxsplit=1)[0], uri)
    return uri if bare == uri else f"{bare}{MARK}{_digest(uri)}"


def shown_template(template: str) -> str:
    """A template of addresses or paths, with columns in braces, without login, query and fragment; where it had any, with a digest of the whole one.

    Unlike an address it may begin with a column (`{uri}?signature=...`, `{scheme}://user:password@host/{name}`).
    """
    shown = shown_address(template)
    if shown != template or _SHOWN.search(template):
        return shown
    bare = re.split(r"[?#]", template, maxsplit=1)[0]
    if "://" in bare and "@" in bare:
        bare = HIDDEN + bare.rpartition("@")[2]
    return template if bare == template else f"{bare}{MARK}{_digest(template)}"


def shown_values(value: Any) -> Any:
    """Options as JSON, every text in them as `shown_template` shows it."""
    if isinstance(value, str):
        return shown_template(value)
    if isinstance(value, Mapping):
        return {name: shown_values(item) for name, item in value.items()}
    return [shown_values(item) for item in value] if isinstance(value, (list, tuple)) else value


def is_shown(uri: str) -> bool:
    """True for what shown_address has shortened."""
    return _SHOWN.search(uri) is not None


def without_login(url: str) -> str:
    """An address for messages: without login, query and fragment."""
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    return _without_login(bare, url) if _SCHEME.match(url) else url


def without_secrets(text: str) -> str:
    """A text, such as a message of a library, with every address in it cut down in the same way."""
    return _QUERY_IN_TEXT.sub(r"\1", _LOGIN_IN_TEXT.sub(rf"\1{HIDDEN}", text))


def _without_login(bare: str, whole: str) -> str:
    """bare: the address before its query. Of http, a login ends at the last @ before the path; of anything else at the last @ (a secret key may hold a slash).
    Where the host is not one, as when a password holds `?` or `/`, nothing of the address is left but its scheme."""
    scheme = re.match(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?[/\\]*", bare)
    start = scheme.group(0) if scheme else ""
    rest = bare[len(start) :]
    if not start.lower().startswith(("http:", "https:", "//")):
        _, found, place = rest.rpartition("@")
        return f"{start}{HIDDEN}{place}" if found else start + (HIDDEN if "@" in whole[len(bare) :] and ":" in rest else rest)
    authority, slash, path = rest.partition("/")
    _, found, host = authority.rpartition("@")
    if not re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?", host):
        return start + HIDDEN
    return f"{start}{HIDDEN if found else ''}{host}{slash}{path}"


def _digest(whole: str) -> str:
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:16]
