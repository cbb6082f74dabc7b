"""GET /v1/models: the one there is."""

from __future__ import annotations

from llamafn.api.openai.common import model_name
from llamafn.settings import Settings
from llamafn.web import Request, Response, json_response


def models(request: Request, settings: Settings) -> Response:
    """The model's name. Never loads it."""
    return json_response(
        {
            "object": "list",
            "data": [{"id": model_name(settings), "object": "model", "created": 0, "owned_by": "llamafn"}],
        }
    )
