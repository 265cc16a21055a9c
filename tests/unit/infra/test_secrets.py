"""Secrets: no part of a credential is left of an address, and addresses that differ still do."""

from __future__ import annotations

import pytest

from infra.remote import Remote
from infra.secrets import shown_address, without_login, without_secrets
from infra.step import AnyloomError

LOGINS = ["s3cret", "AK:s3cret", "AK:s3/cret", "me:p@s3cret", "me:s3?cret", "me:s3#cret", "s3cret:"]
PARTS = ("s3cret", "s3/cret", "cret", "s3?")
QUERIES = ["X-Amz-Signature=s3cret&X-Amz-Credential=s3cret", "sig=s3cret", "token=s3cret?x", "a=1#s3cret"]


@pytest.mark.parametrize("scheme", ["http", "https", "HTTPS", "s3", "gs", "ftp", "az"])
def test_nothing_of_a_credential_is_left(scheme):
    addresses = [f"{scheme}://{login}@host.example:80/a/b@2x.png" for login in LOGINS]
    addresses += [f"{scheme}://host.example/a.png?{query}" for query in QUERIES] + [f"{scheme}://host.example/a.png#access_token=s3cret"]
    shown = [shown_address(address) for address in addresses]
    assert not [text for text in shown if any(part in text for part in PARTS)]
    assert len(set(shown)) == len(addresses) and [shown_address(text) for text in shown] == shown
    assert not [a for a in addresses if any(part in without_login(a) for part in PARTS)]


@pytest.mark.parametrize(
    "uri", ["media/a.png", "a?b#c.png", "me@home/x.png", "https://host/a@2x.png", "http://[::1]:80/x", "http://host:8080", "https://host/~a/ü b.png", ""]
)
def test_addresses_without_credentials_stay(uri):
    assert shown_address(uri) == uri


def test_messages_of_libraries_are_cut_down():
    text = "Cannot GET 's3://AK:s3cret@bucket/k' nor https://h/x?X-Amz-Signature=s3cret, (http://me:s3cret@h:80/y) but a@b.c is left"
    assert without_secrets(text) == "Cannot GET 's3://***@bucket/k' nor https://h/x (http://***@h:80/y) but a@b.c is left"


def test_a_remote_with_credentials_names_none(tmp_path):
    with pytest.raises(AnyloomError) as caught:
        Remote("nosuch://AK:s3cret@bucket/x?sig=s3cret")
    assert "s3cret" not in str(caught.value) and "nosuch://***@bucket/x" in str(caught.value)
