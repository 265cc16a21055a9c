"""Classes of fuzz_http: redirects, most of which must lead nowhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from http_case import HOST_URI, START, Case, Made, head, some_bytes, whole
from http_servers import Pieces
from loopback import HOST

CODES = (b"301 Moved", b"302 Found", b"303 See", b"307 Temporary", b"308 Permanent")
PRIVATE = """127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 0x7f.0.0.1 0177.0.0.1 0 0.0.0.0 10.0.0.1 172.16.3.4 192.168.0.1 169.254.169.254 100.64.0.1 192.0.0.1
198.18.0.1 224.0.0.1 255.255.255.255 [::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [0:0:0:0:0:ffff:10.0.0.1] [64:ff9b::7f00:1] [2002:7f00:1::]
[fe80::1] [fd00::1] [ff02::1] [2001:db8::1] localhost LOCALHOST localhost. inside.example mixed.example INSIDE.example""".split()
SCHEMES = (
    "file:///etc/hostname",
    "ftp://media.example/x",
    "gopher://media.example/1",
    "javascript:alert(1)",
    "data:,x",
    "ws://media.example/",
    "unix:/run/x",
    "HTTPX://a/",
)
LOGINS = (
    "user:secret@media.example",
    "secret@media.example",
    ":secret@media.example",
    "media.example:80@127.0.0.1",
    "media.example\\@127.0.0.1",
    "a@b@127.0.0.1",
    "@media.example",
)
NOWHERE = (
    "http://[::1",
    "http://[",
    "http://]/",
    "http://media.example:99999/",
    "http://media.example:x/",
    "http://[::1]x/",
    "http://media.example[::1]/",
    "https://?",
    "https:///x",
)
NO_NAMES = (
    "http://.a/",
    "http://a..b/",
    "http://%zz/",
    "http://" + "a" * 300 + "/",
    "http://unknown.example/",
    "http://\xe9\xff/",
    "http://media.example%40127.0.0.1/",
    "http://[v1.x]/",
    "http://media.example\\.evil/",
    "http://a b/",
)
OWN = ("http:///gone", "gone", "./gone?x#y", "//media.example/gone")
"""Places on the same server, where nothing is."""
CONTROL = ("/a\x00b", "/a\x1bb", "/a\x7fb", "http://a\x01b/", "/a\tb")


def redirect(location: bytes, rng: random.Random) -> tuple[bytes, ...]:
    """The answer that leads on."""
    return (head(b"Location: " + location, b"Content-Length: 0", status=rng.choice(CODES)),)


def to(*locations: str) -> Callable[[random.Random], Made]:
    """A redirect to one of these addresses."""
    return lambda rng: Made({START: redirect(rng.choice(locations).encode("latin-1"), rng)})


def hosts(names: tuple[str, ...] | list[str]) -> Callable[[random.Random], Made]:
    """A redirect to one of these hosts, in several spellings."""

    def make(rng: random.Random) -> Made:
        port = rng.choice(("", ":80", ":8080", ":"))
        return to(f"{rng.choice(('http', 'https', 'HTTP'))}://{rng.choice(names)}{port}/x.png")(rng)

    return make


def spelled(location: bytes, path: str) -> Callable[[random.Random], Made]:
    """A redirect that leads to the body, at the path as it is asked for."""

    def make(rng: random.Random) -> Made:
        body = some_bytes(rng)
        return Made({START: redirect(location, rng), path: whole(body).answers[START]}, body)

    return make


def chain(steps: int, last: bytes | None = None) -> Callable[[random.Random], Made]:
    """Redirect after redirect, and then the body, or another address."""

    def make(rng: random.Random) -> Made:
        body = some_bytes(rng)
        places = [START, *(f"/{n}" for n in range(steps))]
        answers: dict[str, Pieces] = {here: redirect(there.encode(), rng) for here, there in pairwise(places)}
        answers[places[-1]] = whole(body).answers[START] if last is None else redirect(last, rng)
        return Made(answers, body)

    return make


def loop(rng: random.Random) -> Made:
    """Redirects that come back."""
    length = rng.randint(1, 4)
    places = [START, *(f"/{n}" for n in range(length - 1))]
    return Made({here: redirect(places[(n + 1) % length].encode(), rng) for n, here in enumerate(places)})


CONTROLS = (*range(9), 11, 12, *range(14, 32), 127)
"""Bytes that no address has, but for line ends, which end the header."""
ANY_BYTE = tuple(set(range(256)) - {10, 13})


def some_of(rng: random.Random, values: Sequence[int]) -> bytes:
    """Up to 30 of these bytes."""
    return bytes(rng.choices(values, k=rng.randint(1, 30)))


CLASSES: dict[str, Case] = {
    "redirect: to a path": Case(spelled(b"/there.png", "/there.png")),
    "redirect: to a relative path": Case(spelled(b"sub/../there.png?x=1", "/there.png?x=1")),
    "redirect: to another host": Case(spelled(b"http://other.example:8080/there.png#part", "/there.png")),
    "redirect: to the same host in other words": Case(spelled(f"//{HOST.upper()}./there.png".encode(), "/there.png")),
    "redirect: letters beyond ASCII": Case(spelled("/caf\u00e9 \u732b.png".encode(), "/caf%C3%A9%20%E7%8C%AB.png")),
    "redirect: five": Case(chain(5)),
    "redirect: six and more": Case(lambda rng: chain(rng.randint(6, 9))(rng), "bad_uri"),
    "redirect: a loop": Case(loop, "bad_uri"),
    "redirect: to itself": Case(to("http://", START, "#part", HOST_URI), "bad_uri"),
    "redirect: without a place": Case(lambda rng: Made({START: (head(b"Content-Length: 0", status=rng.choice(CODES)),)}), "http_other"),
    "redirect: to an empty place": Case(to("", " ", "\t"), "http_other"),
    "redirect: to nothing on the same server": Case(to(*OWN), "http_4xx"),
    "redirect: to a private address": Case(hosts(PRIVATE), "forbidden_address"),
    "redirect: to a private address in the end": Case(chain(3, b"http://169.254.169.254/latest/meta-data/"), "forbidden_address"),
    "redirect: to another scheme": Case(to(*SCHEMES), "bad_uri"),
    "redirect: with a login": Case(hosts(LOGINS), "bad_uri"),
    "redirect: to no address": Case(to(*NOWHERE), "bad_uri"),
    "redirect: to no name": Case(to(*NO_NAMES), "dns"),
    "redirect: control characters": Case(to(*CONTROL), "bad_uri"),
    "redirect: a line end inside": Case(lambda rng: Made({START: redirect(b"/a\r\nX-Other: 1\r\n b", rng)}), "http_4xx"),
    "redirect: to a server without TLS": Case(to(f"https://{HOST}/x.png"), "timeout", timeout_s=0.5),
    "redirect: a place of 60 000 characters": Case(to("/" + "a" * 60_000), "http_4xx"),
    "redirect: random bytes, and a control character": Case(
        lambda rng: Made({START: redirect(b"/" + some_of(rng, ANY_BYTE) + bytes([rng.choice(CONTROLS)]) + some_of(rng, ANY_BYTE) + b"x", rng)}), "bad_uri"
    ),
    "redirect: random bytes beyond ASCII": Case(lambda rng: Made({START: redirect(b"/" + some_of(rng, range(128, 256)), rng)}), "http_4xx"),
}
