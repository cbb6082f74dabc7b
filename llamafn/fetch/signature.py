"""AWS Signature Version 4 of a request without a query.

botocore's signer would do, but its import takes longer than everything else between a cold start and the first byte
asked for (figures: docs/decisions.md). The tests compare every signature with botocore's.
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

EMPTY_BODY = hashlib.sha256(b"").hexdigest()


class Credentials(NamedTuple):
    access_key: str
    secret_key: str
    session_token: str | None

    def __repr__(self) -> str:
        return f"Credentials({self.access_key!r}, ...)"


def sign(
    method: str,
    url: str,
    headers: Mapping[str, str],
    credentials: Credentials,
    region: str,
    body_digest: str = EMPTY_BODY,
    now: float | None = None,
) -> dict[str, str]:
    """`headers` with those that S3 wants to see. All of them are signed; others may be sent beside them unsigned.

    `url` must be encoded already, every byte but letters, digits, `-._~/`; `body_digest` is the body's SHA-256 in
    hexadecimal; `now` is in seconds since 1970.
    """
    parts = urlsplit(url)
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    signed = {
        **headers,
        "x-amz-content-sha256": body_digest,
        "x-amz-date": moment,
    }
    if credentials.session_token:
        signed["x-amz-security-token"] = credentials.session_token
    canonical = {name.lower(): " ".join(value.split()) for name, value in signed.items()}
    canonical["host"] = parts.netloc
    names = ";".join(sorted(canonical))
    request = "\n".join(
        [
            method,
            parts.path or "/",
            "",  # no query
            *(f"{name}:{canonical[name]}" for name in sorted(canonical)),
            "",
            names,
            body_digest,
        ]
    )
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{credentials.secret_key}".encode()
    for step in (*scope.split("/"), to_sign):
        key = hmac.digest(key, step.encode(), "sha256")
    signed["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
    )
    return signed
