"""What every route that generates text shares: how tokens are chosen, answering whole or streamed, and the bill."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import model_loader
from llamafn.api.body import Field, Kind, either, integer, list_of, map_of, number
from llamafn.errors import ClientGone, DeadlinePassed, InvalidFields, InvalidSchema
from llamafn.settings import Settings
from llamafn.timeline import COLD_START
from llamafn.web import PING, Request, Response, event_stream, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llamafn.engine.constraint.schema import Constraint
    from llamafn.engine.engine import Engine
    from llamafn.engine.generation import Generation
    from llamafn.engine.sampling import Sampling

# How often a stream shows that it is alive while the model is fetched and loaded.
PING_SECONDS = 5.0
MAX_STOPS = 16
MAX_BIASES = 1024

NOT_EMPTY = Kind(
    lambda value: isinstance(value, str) and value != "",
    "a string that is not empty",
    {
        "type": "string",
        "minLength": 1,
    },
)
TOKEN_ID = Kind(
    lambda value: isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9,
    "the number of a token, in quotes",
    {"type": "string", "pattern": "^[0-9]{1,9}$"},
)

TEMPERATURE = Field("temperature", number(0, 2), "How free the choice of tokens is; 0 always takes the likeliest.")
SEED = Field("seed", integer(-(2**63), 2**63 - 1), "The same seed gives the same answer to the same request.")
STOP = Field(
    "stop",
    either(NOT_EMPTY, list_of(NOT_EMPTY, "strings", most=MAX_STOPS)),
    "The answer ends before the first of these; they are not part of it.",
)
SAMPLING = (
    TEMPERATURE,
    Field("top_p", number(0, 1), "Only the likeliest tokens whose probabilities add up to this; 1 is off."),
    Field("top_k", integer(0, 1_000_000), "Only so many of the likeliest tokens; 0 is off."),
    Field("min_p", number(0, 1), "Only tokens this likely, as a share of the likeliest one's; 0 is off."),
    SEED,
    STOP,
    Field("presence_penalty", number(-2, 2), "Taken from the logit of each token that is there already."),
    Field("frequency_penalty", number(-2, 2), "The same, for each time it is there."),
    Field("repeat_penalty", number(0.1, 2), "llama.cpp's own: divides the logits of tokens that are there; 1 is off."),
    Field(
        "logit_bias",
        map_of(number(-100, 100), "an object of token numbers and biases", key=TOKEN_ID, most=MAX_BIASES),
        "Added to the logits of tokens, by the numbers that this model gives them.",
    ),
)


def sampling(values: Mapping[str, Any], n_vocab: int, *, temperature: float) -> Sampling:
    """The choices of a request; `temperature` is for one that makes none.

    Raises:
        InvalidFields: a biased token is not in the vocabulary.
    """
    from llamafn.engine.sampling import Sampling

    biases = tuple((int(token), float(bias)) for token, bias in values.get("logit_bias", {}).items())
    beyond = [token for token, _ in biases if token >= n_vocab]
    if beyond:
        raise InvalidFields({"logit_bias": f"found token {beyond[0]}; this model has {n_vocab:,}, from 0 on"})
    names = ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty")
    chosen = {name: values[name] for name in names if name in values}
    if "top_k" in chosen:
        chosen["top_k"] = int(chosen["top_k"])
    return Sampling(
        temperature=values.get("temperature", temperature),
        logit_bias=biases,
        seed=int(values["seed"]) if "seed" in values else None,
        **chosen,
    )


def stops(values: Mapping[str, Any]) -> tuple[str, ...]:
    stop = values.get("stop", ())
    return (stop,) if isinstance(stop, str) else tuple(stop)


def constraint(schema: dict[str, Any] | None, param: str) -> Constraint | None:
    """What an answer has to keep to, if there is a schema; `param` is the field that it came in.

    Raises:
        InvalidSchema: it is none, or asks for what is not enforced.
    """
    if schema is None:
        return None
    from llamafn.engine.constraint.schema import compile_schema

    try:
        return compile_schema(schema)
    except InvalidSchema as error:
        error.param = param
        raise


def answer(
    request: Request,
    settings: Settings,
    *,
    start: Callable[[Engine], Generation],
    whole: Callable[[Generation, str], dict[str, Any]],
) -> Response:
    """The whole answer at once.

    Raises:
        HTTPError: of all kinds; DeadlinePassed if there is not a single token in time.
    """
    engine = _model(request, settings)
    with start(engine) as generation:
        request.record.generation = generation
        text = "".join(generation)
    _check(generation)
    ends_cold_start = _note_first_token(generation, request)
    headers = [("Server-Timing", COLD_START.server_timing())] if ends_cold_start else []
    return json_response(whole(generation, text), headers=headers)


def stream(
    request: Request,
    settings: Settings,
    *,
    start: Callable[[Engine], Generation],
    events: Callable[[Generation], Generator[Any, None, None]],
) -> Response:
    """An answer as it is written, behind headers that go out at once.

    What is wrong is said with a status of its own as long as that is possible: if the model is loaded, all but what
    happens on the way. While a cold start is under way it becomes an error event.
    """
    record = request.record
    record.streamed = True
    if model_loader.loaded() is not None:
        record.generation = start(_model(request, settings))
        record.generation.start()

    def run() -> Generator[Any, None, None]:
        yield PING
        if record.generation is None:
            record.cold = True
            while not model_loader.wait(settings, min(PING_SECONDS, request.deadline.remaining())):
                request.deadline.check("the model was loading")
                yield PING
            record.generation = start(_model(request, settings))
        with record.generation as generation:
            yield from events(generation)

    def close() -> None:
        if record.generation is not None:
            record.generation.close()

    # The headers go out at once: they hold what is known by now, and the log line and /health all of it.
    headers = [] if COLD_START.is_finished else [("Server-Timing", COLD_START.server_timing())]
    return event_stream(run(), record, close, headers)


def pieces(generation: Generation, request: Request) -> Generator[str, None, None]:
    """A generation's text for a stream; empty where there is none yet.

    Raises:
        DeadlinePassed, ClientGone: before the first token.
    """
    for piece in generation:
        _note_first_token(generation, request)
        yield piece
    _check(generation)


def usage(generation: Generation) -> dict[str, Any]:
    """What the answer cost, as OpenAI says it."""
    said: dict[str, Any] = {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "total_tokens": generation.prompt_tokens + generation.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    }
    if generation.forced_tokens:
        said["completion_tokens_details"] = {"forced_tokens": generation.forced_tokens}
    return said


def _model(request: Request, settings: Settings) -> Engine:
    record = request.record
    if record.cold is None:
        record.cold = model_loader.loaded() is None
    try:
        return model_loader.get_model(settings, request.deadline)
    finally:
        record.model_seconds = record.seconds() if record.cold else 0.0


def _note_first_token(generation: Generation, request: Request) -> bool:
    """Whether this answer's first token was the instance's first; its log line then says where the time went."""
    if generation.began_at is None or generation.first_token_at is None:
        return False
    if not COLD_START.finish(request.record.arrived_at, generation.began_at, generation.first_token_at):
        return False
    request.record.phases = COLD_START.to_json()
    return True


def _check(generation: Generation) -> None:
    if generation.finish_reason == "cancelled":
        raise ClientGone("The client left before its answer was whole.")
    if generation.finish_reason == "deadline" and not generation.completion_tokens:
        raise DeadlinePassed(
            "The request's time ran out while the prompt was read.",
            hint="Try again: what was read so far is kept. Or shorten the prompt.",
            retry_after=1,
        )
