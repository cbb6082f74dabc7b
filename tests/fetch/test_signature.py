"""Our signature is botocore's."""

from __future__ import annotations

import hashlib
import string
import time
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as TheirCredentials
from hypothesis import given
from hypothesis import strategies as st

from llamafn.fetch.signature import Credentials, sign

KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
NAMES = st.text(string.ascii_letters + string.digits + "/+=", min_size=1, max_size=60)


@given(
    key=KEYS,
    method_and_body=st.sampled_from([("GET", b""), ("HEAD", b""), ("PUT", b""), ("PUT", b"a snapshot")]),
    access=NAMES,
    secret=NAMES,
    token=st.none() | NAMES,
    checksum=st.booleans(),
    port=st.sampled_from(["", ":9000"]),
)
def test_it_is_botocores(
    key: str,
    method_and_body: tuple[str, bytes],
    access: str,
    secret: str,
    token: str | None,
    checksum: bool,
    port: str,
) -> None:
    url = f"https://bucket.s3.eu-west-1.amazonaws.com{port}/{quote(key, safe='/-._~')}"
    headers = {"x-amz-checksum-mode": "ENABLED"} if checksum else {}
    method, body = method_and_body

    digest = hashlib.sha256(body).hexdigest()
    ours = sign(method, url, headers, Credentials(access, secret, token), "eu-west-1", digest)

    with pytest.MonkeyPatch.context() as patch:
        # Their signer reads the clock; it gets our moment.
        moment = time.strptime(ours["x-amz-date"], "%Y%m%dT%H%M%SZ")
        patch.setattr("botocore.auth.get_current_datetime", lambda: _datetime(moment))
        request = AWSRequest(method, url, headers=headers, data=body)
        S3SigV4Auth(TheirCredentials(access, secret, token), "s3", "eu-west-1").add_auth(request)
    assert ours["Authorization"] == request.headers["Authorization"]


def _datetime(moment: time.struct_time) -> object:
    import datetime

    return datetime.datetime(*moment[:6])


def test_credentials_do_not_show_themselves() -> None:
    assert "hidden" not in repr(Credentials("AKIA", "hidden", "hidden too"))
