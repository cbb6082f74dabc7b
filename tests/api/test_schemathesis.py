"""Requests made up from /openapi.json: none may break the server, and each answer is as described."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import settings as hypothesis_settings
from schemathesis.specs.openapi import checks

from llamafn.api.description import describe
from llamafn.app import App
from llamafn.platforms.wsgi import application
from tests.api.asking import SETTINGS

# What is accepted is answered, for a moment.
SECONDS = 0.2
SETTINGS = SETTINGS._replace(request_timeout_seconds=SECONDS, deadline_margin_ms=0)
schema = schemathesis.openapi.from_dict(describe(SETTINGS))
schema.app = application(App(SETTINGS))

CHECKS = [
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
    checks.negative_data_rejection,
]


@pytest.mark.usefixtures("loaded")
@schema.parametrize()
@hypothesis_settings(max_examples=20)
def test_no_request_breaks_it(case: Any) -> None:
    response = case.call()
    assert response.elapsed < 1 + SECONDS, (response.status_code, response.content[:300], repr(case.body)[:3000])
    assert response.status_code in (200, 400, 405, 503), response.content
    if response.status_code != 405:
        case.validate_response(response, checks=CHECKS)
