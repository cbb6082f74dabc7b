"""The hub redirects to storage on another host, as Hugging Face does."""

from __future__ import annotations

import hashlib
from urllib.parse import parse_qs, urlsplit

import pytest

from llamafn.errors import FetchRefused
from tests.fetch.conftest import Open
from tests.fetch.models import a_gguf
from tests.fetch.server import Answer, Asked, ScriptedServer
from tests.fetch.test_faults import fetch, refused

MODEL = a_gguf(12_000_000)
DIGEST = hashlib.sha256(MODEL).hexdigest()
URI = "hf://owner/repo/sub/model.gguf"
RESOLVE = "/owner/repo/resolve/main/sub/model.gguf"


@pytest.fixture(autouse=True)
def hub(server: ScriptedServer, mirror: ScriptedServer) -> ScriptedServer:
    """Answers with a new signed address at every request; `mirror` is the storage and takes the last two."""
    signed = [0]

    def redirect(asked: Asked) -> Answer | None:
        if not asked.path.startswith("/owner/"):
            return Answer(404, {"X-Error-Message": "Entry not found"})
        signed[0] += 1
        return Answer(
            302,
            {
                "Location": f"{mirror.url}/storage/blob?Signature={signed[0]}",
                "X-Repo-Commit": "0123abc",
                "X-Linked-Etag": f'"{DIGEST}"',
                "X-Linked-Size": str(len(MODEL)),
            },
        )

    server.faults.append(redirect)
    mirror.put("/storage/blob", MODEL)
    return server


def hf(open_: Open, server: ScriptedServer, **settings: str) -> bytes:
    return fetch(open_, settings.pop("uri", URI), HF_ENDPOINT=server.url, **settings)


def test_one_request_to_the_hub_then_ranges_from_storage(
    server: ScriptedServer, mirror: ScriptedServer, open_: Open, caplog: pytest.LogCaptureFixture
) -> None:
    assert hf(open_, server, HF_TOKEN="hf_secret") == MODEL

    assert [(asked.method, asked.path) for asked in server.asked] == [("GET", RESOLVE)]
    assert server.asked[0].headers["authorization"] == "Bearer hf_secret"
    assert server.asked[0].headers["accept-encoding"] == "identity"
    # The token has not followed.
    assert len(mirror.asked) > 3
    assert not any("authorization" in asked.headers for asked in mirror.asked)
    # The digest was known, so nothing is said about content that could not be verified.
    assert caplog.records == []


def test_a_revision_with_a_slash(server: ScriptedServer, open_: Open) -> None:
    assert hf(open_, server, uri=URI + "@refs/pr/1") == MODEL
    assert server.asked[0].path == "/owner/repo/resolve/refs%2Fpr%2F1/sub/model.gguf"


def test_the_hubs_digest_is_compared(server: ScriptedServer, mirror: ScriptedServer, open_: Open) -> None:
    """Right size, wrong bytes: seen in the wild."""
    mirror.put("/storage/blob", a_gguf(12_000_000, seed=9))

    error = refused(open_, URI, HF_ENDPOINT=server.url)

    assert f"expected {DIGEST}" in error.message


def test_a_digest_that_is_not_the_hubs_ends_it_before_the_download(
    server: ScriptedServer, mirror: ScriptedServer, open_: Open
) -> None:
    error = refused(open_, URI, HF_ENDPOINT=server.url, MODEL_SHA256="0" * 64)

    assert f"the source says {DIGEST}" in error.message
    assert len(mirror.asked) == 1


def test_an_address_that_expires_is_asked_for_again(
    server: ScriptedServer, mirror: ScriptedServer, open_: Open
) -> None:
    def expires(asked: Asked) -> Answer | None:
        signature = parse_qs(urlsplit(asked.path).query)["Signature"]
        return Answer(403, {}, b"expired") if signature == ["1"] and asked.number > 3 else None

    mirror.faults.append(expires)

    assert hf(open_, server) == MODEL
    assert len(server.asked) >= 2


def test_an_address_that_is_refused_at_first_is_asked_for_again_once(
    server: ScriptedServer, mirror: ScriptedServer, open_: Open
) -> None:
    mirror.faults.append(lambda asked: Answer(403, {}) if asked.number == 1 else None)

    assert hf(open_, server) == MODEL
    assert len(server.asked) == 2


def test_403_for_ever(server: ScriptedServer, mirror: ScriptedServer, open_: Open) -> None:
    mirror.faults.append(lambda asked: Answer(403, {}))

    error = refused(open_, URI, HF_ENDPOINT=server.url)

    assert isinstance(error, FetchRefused)
    assert "answered 403" in error.message
    assert (len(server.asked), len(mirror.asked)) == (2, 2)


@pytest.mark.parametrize(
    ("status", "token", "hint"),
    [
        (401, "", "Set HF_TOKEN to a token"),
        (401, "hf_secret", "Check HF_TOKEN"),
        (403, "hf_secret", "accept its terms"),
        (404, "", "owner, repository, file name"),
    ],
)
def test_refusals_say_what_to_do(status: int, token: str, hint: str, server: ScriptedServer, open_: Open) -> None:
    server.faults.insert(0, lambda asked: Answer(status, {"X-Error-Message": "No."}))

    error = refused(open_, URI, HF_ENDPOINT=server.url, HF_TOKEN=token)

    assert f"{URI}@main: the hub answered {status}, 'No.'" in error.message
    assert hint in str(error.hint)
    assert "hf_secret" not in f"{error.message}{error.hint}"
    assert len(server.asked) == 1


def test_a_mirror_that_serves_the_file_itself_and_tells_nothing(server: ScriptedServer, open_: Open) -> None:
    server.faults.clear()
    server.put(RESOLVE, MODEL)

    assert hf(open_, server, HF_TOKEN="hf_secret") == MODEL
    # Its own host may want the token at every request.
    assert all(asked.headers["authorization"] == "Bearer hf_secret" for asked in server.asked)


def test_a_mirror_that_says_size_0(server: ScriptedServer, open_: Open) -> None:
    """The size counts that comes with the bytes."""
    redirect = server.faults.pop()

    def zero(asked: Asked) -> Answer | None:
        answer = redirect(asked)
        return answer and answer._replace(headers=answer.headers | {"X-Linked-Size": "0"})

    server.faults.append(zero)

    assert hf(open_, server) == MODEL


@pytest.mark.parametrize("uri", ["hf://owner/repo", "hf://owner//model.gguf", "hf://model.gguf"])
def test_a_uri_that_names_no_file(uri: str, open_: Open) -> None:
    with pytest.raises(FetchRefused, match="expected hf://owner/repo/file"):
        open_(uri)
