"""S3 and its likes: `s3://bucket/key`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from urllib.parse import quote, urlsplit

from llamafn.errors import FetchRefused
from llamafn.fetch.connection import Reply
from llamafn.fetch.signature import EMPTY_BODY, Credentials, sign
from llamafn.fetch.sources import Headers
from llamafn.settings import Settings


class S3Bucket:
    """A bucket: its address, the credentials and the region. What one request learns of them, the next one knows."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.is_anonymous = settings.s3_anonymous
        self._settings = settings
        self._endpoint = settings.aws_endpoint_url_s3 or settings.s3_endpoint_url
        self._style = settings.s3_addressing_style
        self._region = settings.aws_region or settings.aws_default_region
        self._credentials: Callable[[], Credentials] | None = None

    def signed(
        self, method: str, key: str, headers: Headers | None = None, body_digest: str = EMPTY_BODY
    ) -> tuple[str, Headers]:
        """Address and headers of a request for an object, signed with all of `headers` unless it is anonymous.

        Raises:
            FetchRefused: there are no credentials.
        """
        headers = headers or {}
        if not self.is_anonymous and self._credentials is None:
            self._credentials, region = _find_credentials(self._settings, region_too=self._region is None)
            self._region = self._region or region
        region = self._region or "us-east-1"
        url = self._url(key, region)
        if self._credentials is None:
            return url, headers
        return url, sign(method, url, headers, self._credentials(), region, body_digest)

    def adapts(self, reply: Reply) -> bool:
        """S3 answers 301 or 400 to a request signed for the wrong region, and names the right one."""
        region = reply.headers.get("x-amz-bucket-region")
        if reply.status not in (301, 400) or region in (None, self._region):
            return False
        self._region = region
        return True

    def _url(self, key: str, region: str) -> str:
        key = quote(key, safe="/-._~")
        endpoint = self._endpoint
        style = self._style
        if endpoint is None:
            suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
            endpoint = f"https://s3.{region}.{suffix}"
            if style == "auto":
                # A dot in the bucket's name would not fit Amazon's wildcard certificate.
                style = "path" if "." in self.name else "virtual"
        if style == "virtual":
            parts = urlsplit(endpoint)
            return f"{parts.scheme}://{self.name}.{parts.netloc}{parts.path}/{key}"
        return f"{endpoint}/{self.name}/{key}"


class S3Source:
    def __init__(self, uri: str, settings: Settings) -> None:
        bucket, _, self._key = uri.removeprefix("s3://").partition("/")
        if not self._key:
            raise FetchRefused(f"MODEL={uri!r} does not name an object: expected s3://bucket/key.")
        self.shown = uri
        self._bucket = S3Bucket(bucket, settings)

    def request(self, method: str = "GET") -> tuple[str, Headers]:
        return self._bucket.signed(method, self._key)

    def pin(self, etag: str) -> Headers:
        return {"If-Match": etag}

    def digest(self, reply: Reply) -> str | None:
        digest = reply.headers.get("x-amz-meta-sha256", "").strip().lower()
        return digest if len(digest) == 64 and set(digest) <= set("0123456789abcdef") else None

    def ask_digest(self, send: Callable[[str, str, Headers], Reply]) -> str | None:
        """S3 tells the checksum of an object with a HEAD, never with a range of it.

        A COMPOSITE checksum is one of its parts' checksums, so it says nothing about the bytes in file order.
        https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
        """
        url, headers = self._bucket.signed("HEAD", self._key, {"x-amz-checksum-mode": "ENABLED"})
        with send("HEAD", url, headers) as reply:
            if reply.status != 200 or reply.headers.get("x-amz-checksum-type") != "FULL_OBJECT":
                return None
            try:
                digest = base64.b64decode(reply.headers.get("x-amz-checksum-sha256", ""), validate=True)
            except binascii.Error:
                return None
            return digest.hex() if len(digest) == 32 else None

    def adapts(self, reply: Reply) -> bool:
        return self._bucket.adapts(reply)

    def refusal(self, reply: Reply) -> FetchRefused:
        code = error_code(reply)
        hints = {
            "NoSuchBucket": f"There is no bucket {self._bucket.name!r}. Check MODEL, region and endpoint.",
            "NoSuchKey": f"There is no object {self._key!r} in {self._bucket.name!r}. Check the key in MODEL.",
            "SignatureDoesNotMatch": "Check AWS_SECRET_ACCESS_KEY.",
            "InvalidAccessKeyId": "Check AWS_ACCESS_KEY_ID.",
            "ExpiredToken": "The session token has expired: get new credentials.",
            "InvalidToken": "Check AWS_SESSION_TOKEN.",
            "RequestTimeTooSkewed": "Set this machine's clock.",
        }
        hint = hints.get(code)
        if hint is None and reply.status in (401, 403):
            anonymous = " The request was anonymous." if self._bucket.is_anonymous else ""
            hint = (
                f"Either the credentials may not read it (s3:GetObject on this key), or there is no such key: "
                f"without s3:ListBucket S3 answers 403 for both.{anonymous}"
            )
        elif hint is None and reply.status == 404:
            hint = "Check bucket and key in MODEL."
        return FetchRefused(
            f"{self.shown}: S3 answered {reply.status}{f' {code}' if code else ''}.",
            hint=hint,
        )


def error_code(reply: Reply) -> str:
    """S3's own word for what is wrong, such as NoSuchKey; empty if it says none. Reads the body."""
    return reply.error_body().partition("<Code>")[2].partition("</Code>")[0]


def _find_credentials(settings: Settings, *, region_too: bool) -> tuple[Callable[[], Credentials], str | None]:
    """From the environment; else botocore's chain: profile, SSO, container (also Lambda SnapStart), instance.

    The environment comes first in botocore's chain as well, so that its import is spared where nothing else would be
    found.
    """
    if settings.aws_access_key_id and settings.aws_secret_access_key:
        credentials = Credentials(
            settings.aws_access_key_id, settings.aws_secret_access_key, settings.aws_session_token
        )
        return lambda: credentials, None
    try:
        import botocore.exceptions
        import botocore.session
    except ModuleNotFoundError as error:
        raise FetchRefused(
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set, and botocore, which finds credentials elsewhere, "
            "is not installed.",
            hint="Set them, or S3_ANONYMOUS=1 for a public bucket, or deploy what ./build package --with-boto3 makes.",
        ) from error
    try:
        session = botocore.session.get_session()
        found = session.get_credentials()
        region = session.get_config_variable("region") if region_too else None
    except botocore.exceptions.BotoCoreError as error:
        raise _no_credentials(error) from error

    def current() -> Credentials:
        """A role's credentials last for hours; botocore gets new ones before they end."""
        try:
            frozen = found.get_frozen_credentials() if found is not None else None
        except botocore.exceptions.BotoCoreError as error:
            raise _no_credentials(error) from error
        if frozen is None or not frozen.access_key or not frozen.secret_key:
            raise FetchRefused(
                "There are no AWS credentials, and S3_ANONYMOUS is not set.",
                hint="Give the function a role, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or S3_ANONYMOUS=1 "
                "for a public bucket.",
            )
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)

    return current, region


def _no_credentials(error: Exception) -> FetchRefused:
    return FetchRefused(f"No AWS credentials: {error}", hint="Or S3_ANONYMOUS=1 for a public bucket.")
