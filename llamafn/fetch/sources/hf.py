"""Hugging Face and its mirrors: `hf://owner/repo/file.gguf@revision`.

The first request asks for bytes at once: the redirect that answers it carries what a HEAD would tell.
"""

from __future__ import annotations

from urllib.parse import quote

from llamafn.errors import FetchRefused
from llamafn.fetch.connection import Reply
from llamafn.fetch.sources import Headers
from llamafn.fetch.sources.https import HTTPSSource
from llamafn.settings import Settings


class HuggingFaceSource(HTTPSSource):
    def __init__(self, uri: str, settings: Settings) -> None:
        path, _, revision = uri.removeprefix("hf://").partition("@")
        owner, _, rest = path.partition("/")
        repo, _, file = rest.partition("/")
        if not (owner and repo and file):
            raise FetchRefused(
                f"MODEL={uri!r} does not name a file: expected hf://owner/repo/file.gguf, with @revision or without."
            )
        revision = revision or "main"
        super().__init__(f"{settings.hf_endpoint}/{owner}/{repo}/resolve/{quote(revision, safe='')}/{quote(file)}")
        self.shown = f"hf://{owner}/{repo}/{file}@{revision}"
        self._token = settings.hf_token

    def request(self, method: str = "GET") -> tuple[str, Headers]:
        url, headers = super().request(method)
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return url, headers

    def digest(self, reply: Reply) -> str | None:
        for headers in (*reply.redirects, reply.headers):
            etag = headers.get("X-Linked-Etag", "").strip('"').lower()
            # Small files, which are not in LFS, have a Git digest of 40 digits there.
            if len(etag) == 64 and set(etag) <= set("0123456789abcdef"):
                return etag
        return None

    def refusal(self, reply: Reply) -> FetchRefused:
        token = "Check HF_TOKEN: it" if self._token else "Set HF_TOKEN to a token that"
        hint = {
            401: f"The repository is private, gated or does not exist. {token} must have the right to read it.",
            403: f"The repository may be gated: accept its terms on the hub. {token} must have the right to read it.",
            404: "Check owner, repository, file name (capitals count) and revision in MODEL.",
        }.get(reply.status)
        said = reply.headers.get("X-Error-Message")
        return FetchRefused(f"{self.shown}: the hub answered {reply.status}{f', {said!r}' if said else ''}.", hint=hint)
