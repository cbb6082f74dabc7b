"""What every real download goes through: TLS, with an authority of the tests' own, and a proxy's tunnel."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from llamafn.errors import FetchFailed, FetchRefused
from llamafn.fetch import connection
from tests.fetch.conftest import Open, left_in
from tests.fetch.models import a_gguf
from tests.fetch.server import Answer, Asked, ScriptedServer
from tests.fetch.test_faults import fetch, refused
from tests.fetch.tunnel import tunnels

MODEL = a_gguf(12_000_000)
DIGEST = hashlib.sha256(MODEL).hexdigest()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SSL_CERT_FILE, as in a network with an authority of its own; and no proxy but a test's."""
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    for name in ("https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    connection.tls_context.cache_clear()
    yield
    connection.tls_context.cache_clear()


def serving(authority: trustme.CA, *names: str) -> ScriptedServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return ScriptedServer(context)


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[ScriptedServer]:
    with serving(authority, "127.0.0.1") as server:
        yield server


def test_ranges_come_over_several_connections(secure: ScriptedServer, open_: Open, target: Path) -> None:
    assert fetch(open_, secure.put("/model.gguf", MODEL), MODEL_SHA256=DIGEST) == MODEL

    assert len(secure.ranges_asked()) > 3
    assert left_in(target) == []


@pytest.mark.parametrize("then", ["reset", "stall", "close"])
def test_a_body_that_breaks_off_is_asked_for_again(then: str, secure: ScriptedServer, open_: Open) -> None:
    def breaks_off(asked: Asked) -> Answer:
        answer = secure.right_answer(asked)
        return answer._replace(cut=300_000, then=then) if asked.number in (2, 4) else answer

    secure.faults.append(breaks_off)

    stall = "0.3" if then == "stall" else "10"
    assert fetch(open_, secure.put("/model.gguf", MODEL), MODEL_SHA256=DIGEST, FETCH_STALL_SECONDS=stall) == MODEL


def test_the_hubs_token_does_not_follow_to_storage(authority: trustme.CA, secure: ScriptedServer, open_: Open) -> None:
    with serving(authority, "127.0.0.1") as storage:
        blob = storage.put("/blob", MODEL)
        headers = {"Location": blob, "X-Linked-Etag": f'"{DIGEST}"', "X-Linked-Size": str(len(MODEL))}
        secure.faults.append(lambda asked: Answer(302, headers))

        assert fetch(open_, "hf://owner/repo/model.gguf", HF_ENDPOINT=secure.url, HF_TOKEN="hf_secret") == MODEL

        assert secure.asked[0].headers["authorization"] == "Bearer hf_secret"
        assert not any("authorization" in asked.headers for asked in storage.asked)


def test_an_authority_that_nobody_knows_is_refused_at_once(open_: Open, target: Path) -> None:
    with serving(trustme.CA(), "127.0.0.1") as server:
        error = refused(open_, server.put("/model.gguf", MODEL))

        assert server.asked == []
    assert isinstance(error, FetchRefused)
    assert error.message.startswith("The certificate of 127.0.0.1 cannot be verified: ")
    assert "SSL_CERT_FILE" in (error.hint or "")
    assert left_in(target) == []
    assert not target.exists()


def test_another_hosts_certificate_is_refused(authority: trustme.CA, open_: Open) -> None:
    with serving(authority, "models.example") as server:
        error = refused(open_, server.put("/model.gguf", MODEL))

        assert server.asked == []
    assert isinstance(error, FetchRefused)
    assert "IP address mismatch" in error.message


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxys_tunnel_is_used(
    name: str, secure: ScriptedServer, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tunnels("farmer:agua&sol") as proxy:
        monkeypatch.setenv(name, f"http://farmer:agua%26sol@127.0.0.1:{proxy.port}")

        assert fetch(open_, secure.put("/model.gguf", MODEL), MODEL_SHA256=DIGEST) == MODEL

        assert set(proxy.asked) == {f"127.0.0.1:{secure.port}"}
    # What is for the proxy stays with the proxy.
    assert not any("proxy-authorization" in asked.headers for asked in secure.asked)


def test_no_proxy_is_asked_for_hosts_that_go_without_one(
    secure: ScriptedServer, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tunnels() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "example.com, 127.0.0.1")

        assert fetch(open_, secure.put("/model.gguf", MODEL)) == MODEL

        assert proxy.asked == []


def test_a_proxy_that_refuses_is_named_without_its_password(
    secure: ScriptedServer, open_: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with tunnels("farmer:agua") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://farmer:wrong@127.0.0.1:{proxy.port}")

        error = refused(open_, secure.put("/model.gguf", MODEL))

    assert isinstance(error, FetchFailed)
    assert f"the proxy 127.0.0.1:{proxy.port} (HTTPS_PROXY): Tunnel connection failed: 407" in error.message
    assert "wrong" not in caplog.text + error.message
    assert secure.asked == []


def test_a_proxy_that_is_not_there_is_named(
    secure: ScriptedServer, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as bound:  # but it does not listen
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{port}")

        error = refused(open_, secure.put("/model.gguf", MODEL))

    assert f"the proxy 127.0.0.1:{port} (HTTPS_PROXY): " in error.message


@pytest.mark.parametrize("address", ["socks5://a:secret@127.0.0.1:1080", "http://a:secret@:3128", "http://127.0.0.1:x"])
def test_a_proxy_of_another_kind_is_refused(
    address: str, secure: ScriptedServer, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)

    error = refused(open_, secure.put("/model.gguf", MODEL))

    assert isinstance(error, FetchRefused)
    assert "it must be http://host:port" in error.message
    assert "NO_PROXY" in (error.hint or "")
    assert "secret" not in error.message
