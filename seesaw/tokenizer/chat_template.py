"""Chat templates: messages become the text that the model was trained on.

Templates come with models from strangers, so they run in jinja2's immutable sandbox. The
environment is the one that Hugging Face's templates expect (trimmed blocks, `break`, `tojson`
without HTML escapes, `raise_exception`, `strftime_now`, `{% generation %}`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from seesaw.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplate:
    """A compiled template. `place` says where it is from. ConfigError where it does not compile."""

    def __init__(self, source: str, place: str) -> None:
        from jinja2 import TemplateError

        self.source, self.place = source, place
        try:
            self._template: Template = _environment().from_string(source)
        except (TemplateError, RecursionError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"chat template of {place}: {error or type(error).__name__}. Expected a Jinja "
                "template; pass a good one with --chat-template FILE."
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        special_tokens: Mapping[str, str],
    ) -> str:
        """The chat as text. Raises RequestError where the template cannot take the messages."""
        try:
            return self._template.render(
                messages=[_plain(index, message) for index, message in enumerate(messages)],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **special_tokens,
            )
        except RequestError:
            raise
        # A template can fail in as many ways as a program: all of them are this request's.
        except Exception as error:
            raise RequestError(
                f"messages: the model's chat template refuses them: {error or type(error).__name__}"
                f" (template of {self.place}). Check roles and their order.",
                param="messages",
            ) from error


def _plain(index: int, message: object) -> dict[str, Any]:
    """A message with its content as text: lists of text parts are joined by line breaks."""
    place = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(
            f"{place}: got {type(message).__name__}, expected an object with role and content.",
            param=place,
        )
    content = message.get("content")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
            for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise RequestError(
                f"{place}.content: got a part that is not text, expected parts "
                '{"type": "text", "text": ..}. Other kinds are not supported.',
                param=f"{place}.content",
            )
        content = "\n".join(map(str, parts))
    if not isinstance(content, str):
        raise RequestError(
            f"{place}.content: got {type(content).__name__}, expected text.",
            param=f"{place}.content",
        )
    return {**message, "content": content}


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's part for training: here it is only its body."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment
