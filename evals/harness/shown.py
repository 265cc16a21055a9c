"""Shown: the images of a task's questions, from the document to the features the model is given.

Owns an image's identity, the images of the conditions blank and shuffled, and threads that decode and encode the images of the next
batches while the model answers. Input: documents as callables; output: features by image.

An image is known by the sha256 of its file's bytes where the document has them, else of the pixels as PNG. The bytes themselves go to the
encoder only where decoding them gives the very pixels that the task shows; else the shown pixels go, as PNG.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.harness.features import FeatureSource, KeptFeatures
from infra.step import AnyloomError
from mmcore.media.decode import MediaError, decode_image

CONDITIONS = ("right", "blank", "shuffled")
KEPT_BYTES = 512 * 2**20
"""Features that stay in memory, in bytes."""
Visuals = Callable[[], list[Any]]
"""Gives the images that a task shows with a document."""


@dataclass(frozen=True, slots=True)
class _Source:
    """How to get at an image again."""

    visuals: Visuals
    raw: Callable[[], bytes] | None


class ShownImages:
    """Images by identity; `encode` makes features of an image's bytes, `sources` are asked before it, `kept` remembers what it made."""

    def __init__(self, encode: Callable[[bytes], np.ndarray], sources: Sequence[FeatureSource] = (), kept: KeptFeatures | None = None, threads: int = 2):
        self._encode, self._sources, self._kept, self._threads = encode, (*sources, *([kept] if kept else [])), kept, threads
        self._source: dict[str, _Source] = {}
        self._bytes: dict[str, bytes] = {}
        self._features: dict[str, np.ndarray] = {}
        self._held = 0
        self._waiting: dict[str, Future[np.ndarray]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self.encoded = 0
        """Images that went through the encoder."""

    # ---- identity ---------------------------------------------------------------------------------------------------

    def known(self, where: str, visuals: Visuals, raws: Sequence[Callable[[], bytes]] = ()) -> str:
        """Identity of the image of one document, "" when it has none. raws: the document's image files.

        where: names the document in errors. Raises AnyloomError for a document that shows several images or other media.
        """
        if len(raws) == 1:
            sha = hashlib.sha256(raws[0]()).hexdigest()
            self._source.setdefault(sha, _Source(lambda: [_only(where, visuals())], raws[0]))
            return sha
        shown = visuals()
        return self._keep(_png(_only(where, shown))) if shown else ""

    def _keep(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        self._bytes[sha] = data
        return sha

    def under(self, own: list[str], condition: str, seed: int) -> list[str]:
        """The image each question gets under a condition.

        shuffled: one cycle through all distinct images in seeded order, so nobody keeps its own and every image is shown as often
        as another one's questions ask. blank: white, in the size of the image it replaces.
        """
        if condition == "right":
            return own
        distinct = sorted({sha for sha in own if sha})
        if condition == "shuffled":
            if len(distinct) == 1:
                raise AnyloomError("condition=shuffled needs questions about at least two different images")
            order = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
            other = dict(zip(order, order[1:] + order[:1], strict=True))
        else:
            other = {sha: self._blank(sha) for sha in distinct}
        return [other[sha] if sha else "" for sha in own]

    def _blank(self, sha: str) -> str:
        from PIL import Image

        raw = self._source[sha].raw if sha in self._source else None
        with Image.open(io.BytesIO(raw() if raw else self._bytes[sha])) as image:
            return self._keep(_png(Image.new("RGB", image.size, "white")))

    # ---- features ---------------------------------------------------------------------------------------------------

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Threads that prepare what `prepare` names live inside this context only."""
        with ThreadPoolExecutor(max_workers=max(1, self._threads), thread_name_prefix="media") as self._pool:
            try:
                yield
            finally:
                for future in self._waiting.values():
                    future.cancel()
                self._waiting, pool, self._pool = {}, self._pool, None
                pool.shutdown(cancel_futures=True)

    def prepare(self, shas: Iterable[str]) -> None:
        """Begin to decode and encode these images, unless they are at hand."""
        assert self._pool is not None
        for sha in shas:
            if sha and sha not in self._features and sha not in self._waiting:
                self._waiting[sha] = self._pool.submit(self._load, sha)

    def features(self, sha: str) -> np.ndarray:
        """[N, E] of one image, as soon as it is ready. Raises what decoding or encoding it raised."""
        if sha not in self._features:
            waiting = self._waiting.pop(sha, None)
            self._remember(sha, waiting.result() if waiting is not None else self._load(sha))
        return self._features[sha]

    def _remember(self, sha: str, features_NE: np.ndarray) -> None:
        self._features[sha] = features_NE
        self._held += features_NE.nbytes
        while self._held > KEPT_BYTES and len(self._features) > 1:
            self._held -= self._features.pop(next(iter(self._features))).nbytes

    def flush(self) -> None:
        """Write new features where they are kept."""
        if self._kept is not None:
            self._kept.flush()

    def forget(self) -> None:
        """Let go of the documents; features stay."""
        self._source.clear()
        self._bytes.clear()

    def _load(self, sha: str) -> np.ndarray:
        """Features of one image; runs in a thread, encodes one image at a time."""
        data = self._bytes[sha] if sha in self._bytes else self._shown_bytes(sha)
        address = sha if sha in self._bytes else hashlib.sha256(data).hexdigest()
        for source in self._sources:
            found = source.get(address)
            if found is not None:
                return found
        with self._lock:
            made = self._encode(data)
            self.encoded += 1
        if self._kept is not None:
            self._kept.add(address, made)
        return made

    def _shown_bytes(self, sha: str) -> bytes:
        """The file's own bytes where they decode to the pixels that are shown, else those pixels as PNG."""

        source = self._source[sha]
        (shown,) = source.visuals()
        shown = shown.convert("RGB")
        raw = source.raw() if source.raw is not None else b""
        try:
            same = np.array_equal(np.asarray(decode_image(raw)), np.asarray(shown))
        except MediaError:  # the task could show it, our own reader refuses the file: the shown pixels are what counts
            same = False
        return raw if same else _png(shown)


def _only(where: str, shown: list[Any]) -> Any:
    """The one image of a document."""
    if len(shown) != 1 or not hasattr(shown[0], "convert"):
        raise AnyloomError(f"{where}: the anyloom model takes one image per question, not {len(shown)} media")
    return shown[0]


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()
