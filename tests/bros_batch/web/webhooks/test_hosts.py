"""Which hosts webhooks may call, and that nothing else than what was checked is called."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bros_batch.settings import Settings, SettingsError
from bros_batch.web.webhooks import call as calls
from bros_batch.web.webhooks.call import Answer, call
from bros_batch.web.webhooks.hosts import HostError, WebhookHosts, is_public
from bros_batch.webhook_url import check_webhook_url
from tests.bros_batch.web.webhooks.receiver import Receiver

PRIVATE = (
    "127.0.0.1", "127.255.0.9", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "100.100.100.200", "168.63.129.16", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
    "::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "2002:a00:1::", "2002:7f00:1::1",
    "2001:0:4136:e378:8000:63bf:f5ff:fffe",
)  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_of_the_internet_are_private(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_other_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


async def allowed(host: str, *entries: str) -> bool:
    try:
        return bool(await WebhookHosts(entries).addresses(host, 80))
    except HostError as error:
        assert error.is_final
        return False


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "LOCALHOST", "127.1", "2130706433", "0x7f000001", "[::1]"]
)
async def test_spellings_of_this_machine_are_refused_unless_they_are_named(host: str) -> None:
    host = host.strip("[]")
    assert not await allowed(host, "public")
    assert await allowed(host, "public", "127.0.0.0/8", "::1")


async def test_names_are_allowed_by_name_and_by_what_they_are_below() -> None:
    assert await allowed("localhost", "LocalHost")
    assert not await allowed("localhost", "*.localhost", "calhost", "local", "10.0.0.0/8")
    assert WebhookHosts(["*.corp.example"])._allows("a.b.corp.example.", ipaddress.ip_address("10.0.0.1"))
    assert not WebhookHosts(["*.corp.example"])._allows(
        "corp.example.evil.test", ipaddress.ip_address("10.0.0.1")
    )
    assert await allowed("1.1.1.1", "public")
    assert not await allowed("1.1.1.1", "hooks.example.com"), "without 'public', only what is named"


async def test_a_name_that_does_not_exist_is_told_from_a_lookup_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for code, is_final in ((socket.EAI_NONAME, True), (socket.EAI_AGAIN, False)):

        def fails(*_: object, code: int = code, **__: object) -> None:
            raise socket.gaierror(code, "x")

        monkeypatch.setattr(socket, "getaddrinfo", fails)
        with pytest.raises(HostError, match=r"hooks\.test, which is not known") as caught:
            await WebhookHosts(["public"]).addresses("hooks.test", 80)
        assert caught.value.is_final is is_final


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.com/hook", "begin with https://"),
        ("example.com/hook", "begin with https://"),
        ("https:///hook", "name a host"),
        ("https://user:secret@example.com/", "no user and password"),
        ("https://example.com/#part", "no fragment"),
        ("https://example.com:0/", "port"),
        ("https://example.com:99999/", "is not a URL"),
        ("https://[::1/", "is not a URL"),
        ("https://exämple.com/", "ASCII"),
        ("https://example.com/a b", "printable"),
        ("https://example.com/\r\nHost: evil", "printable"),
        (f"https://example.com/{'x' * 3000}", "2,048"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_webhook_url(url)


def test_the_setting_rejects_what_means_nothing() -> None:
    assert Settings(webhook_hosts="public, hooks.internal,10.1.2.3").webhook_hosts[1:] == (
        "hooks.internal",
        "10.1.2.3",
    )
    with pytest.raises(SettingsError, match=r"BROS_WEBHOOK_HOSTS.*https://x.test"):
        Settings(webhook_hosts="https://x.test")


async def test_the_address_that_was_checked_is_called_whatever_the_name_leads_to() -> None:
    receiver = Receiver()
    with receiver.serving() as url:
        named = url.replace("127.0.0.1", "no-such-host.invalid")
        assert await call(named, [("content-type", "text/plain")], b"hello", ["127.0.0.1"]) == Answer(200)
    ((body, headers),) = receiver.calls
    assert body == "hello"
    assert headers["host"].startswith("no-such-host.invalid:")


async def test_the_next_address_is_tried_when_one_does_not_connect() -> None:
    receiver = Receiver()
    with receiver.serving() as url:
        assert (await call(url, [], b"", ["::1", "127.0.0.1"])).is_success
        answer = await call(url.replace("http://", "https://"), [], b"", ["127.0.0.1"])
    assert answer.status is None
    assert "SSL" in (answer.problem or "")
    assert (await call(url, [], b"", ["127.0.0.1"])).status is None, "it is not served any more"


@contextmanager
def sending(head: bytes, endless: bytes) -> Iterator[str]:
    """A server that answers each connection with `head`, and then with `endless` again and again."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(head)
            try:
                while not done.wait(0.02 if len(endless) < 100 else 0):
                    connection.sendall(endless)
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        done.set()
        thread.join()
        listener.close()


async def test_an_answer_without_end_is_not_read() -> None:
    with sending(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n", b"x" * 65536) as url:
        assert await call(url, [], b"{}", ["127.0.0.1"]) == Answer(200)


@pytest.mark.parametrize(
    "endless", [b"x", b"a: b\r\n", b"y" * 65536], ids=["slow line", "slow head", "huge head"]
)
async def test_a_head_without_end_is_given_up(endless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "TIMEOUT_S", 0.5)
    with sending(b"HTTP/1.1 200 OK\r\n", endless) as url:
        answer = await call(url, [], b"{}", ["127.0.0.1"])
    assert answer.status is None and answer.problem
