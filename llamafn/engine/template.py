"""The model's own chat template: a Jinja2 program inside the GGUF, which came from somewhere on the internet.

So it runs in Jinja2's sandbox, and within a time limit. The environment offers what Hugging Face's does:
https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from llamafn.errors import BadRequest, ModelUnavailable

# What llama.cpp assumes of a model that brings none.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TIME_LIMIT_SECONDS = 2.0
# The longest string or list that a template may build by repeating one.
LENGTH_LIMIT = 1 << 24

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled template.

    Raises:
        ModelUnavailable: the source is not a template.
    """

    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        source = source or CHATML
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
            names = jinja2.meta.find_undeclared_variables(self._environment.parse(source))
        except jinja2.TemplateError as error:
            raise ModelUnavailable(
                f"The model's chat template cannot be compiled: {error}",
                hint="The GGUF's tokenizer.chat_template is damaged or needs a newer Jinja2: use another build of it.",
            ) from error
        self._bos = bos
        self._eos = eos
        # In the one format of calls that we read, that of Qwen2.5 and of Hermes: <tool_call>{"name", "arguments"}.
        self.takes_tools = "tools" in names and "<tool_call>" in source

    def render(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> str:
        """The prompt's text, up to where the assistant's answer begins.

        Raises:
            BadRequest: the template refuses these messages, say two of one role in a row, or takes too long.
        """
        self._environment.start_clock()
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._eos,
            )
        except (jinja2.TemplateError, _TooLong, ArithmeticError, LookupError, TypeError, ValueError) as error:
            # A template is a program: what it raises depends on the messages it was given.
            raise BadRequest(
                f"The model's chat template refuses these messages: {error or type(error).__name__}",
                hint="Most templates want one system message at most, first, then user and assistant in turn.",
            ) from error
        except RecursionError as error:
            raise BadRequest("The model's chat template recurses without end over these messages.") from error


class _TooLong(Exception):
    """The template used up its time, or was about to build something huge."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it is a plain block."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, with a clock that is read in every round of every loop."""

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation])
        self.filters["tojson"] = _to_json  # Jinja's own escapes for HTML
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self._render = threading.local()  # several requests may render at the same time

    def start_clock(self) -> None:
        self._render.ends_at = time.monotonic() + TIME_LIMIT_SECONDS

    def read_clock(self) -> str:
        if time.monotonic() > self._render.ends_at:
            raise _TooLong(f"it ran for more than {TIME_LIMIT_SECONDS:g} s")
        return ""

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        """Put `{{ environment.read_clock() }}` first in every loop and macro; no template can reach that name."""
        tree = super()._parse(source, name, filename)
        loops: list[Any] = [*tree.find_all(jinja2.nodes.For), *tree.find_all(jinja2.nodes.Macro)]
        for node in loops:
            read_clock = jinja2.nodes.EnvironmentAttribute("read_clock")
            node.body.insert(0, jinja2.nodes.Output([jinja2.nodes.Call(read_clock, [], [], None, None)]))
        jinja2.nodes.Node.set_environment(tree, self)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise _TooLong("it uses the operator **")
        for text, times in ((left, right), (right, left)):
            if isinstance(times, int) and hasattr(text, "__len__") and len(text) * times > LENGTH_LIMIT:
                raise _TooLong(f"it repeats something more than {LENGTH_LIMIT} long")
        return super().call_binop(context, operator, left, right)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
