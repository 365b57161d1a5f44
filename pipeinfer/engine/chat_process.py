"""Renders one chat template. Run as a program of its own: a template is code of whoever made the model, and may compute
without end or fill the memory, which only a process's limits hold back.

Reads {"source", "variables", "cpu_s", "memory_bytes"} from standard input and writes {"text"} or {"error"} to standard
output, all JSON. What a template may use is what transformers gives it.
"""

import json
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_CHARACTERS = 4_000_000


class Refused(TemplateError):  # noqa: N818 - reads as what happened
    """The template says that these messages are not for it."""


class TooLong(TemplateError):  # noqa: N818
    """More text than any model reads."""


class GenerationTag(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it is only text."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """Refuses what is not safe when it is reached for; jinja's own first takes it for nothing."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"the attribute {attribute!r} of a {type(obj).__name__}")


def raise_exception(message: str) -> NoReturn:
    raise Refused(message)


def strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Unlike jinja's own it leaves <, > and & as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(source: str, variables: dict[str, Any]) -> str:
    """The text. Raises jinja2's TemplateError, and whatever Python raises inside a template."""
    world = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    world.filters["tojson"] = tojson
    world.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    pieces, length = [], 0
    for piece in world.from_string(source).generate(**variables):
        pieces.append(piece)
        length += len(piece)
        if length > MOST_CHARACTERS:
            raise TooLong(f"it writes more than {MOST_CHARACTERS} characters")
    return "".join(pieces)


def explained(problem: Exception) -> str:
    """What went wrong, to stand behind "the chat template ..."."""
    said = str(problem) or type(problem).__name__
    if isinstance(problem, Refused):
        return f"refuses these messages: {said}"
    if isinstance(problem, SecurityError):
        return f"reaches for what it may not: {said}"
    if isinstance(problem, TemplateSyntaxError):
        return f"cannot be read, line {problem.lineno}: {said}"
    if isinstance(problem, MemoryError):
        return "takes more memory than it is given"
    if isinstance(problem, TemplateError):
        return f"fails: {said}"
    return f"fails: {type(problem).__name__}: {said}"


def limit(cpu_s: int, memory_bytes: int) -> None:
    """Bound this process, where the system has limits."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (ImportError, ValueError, OSError):  # the parent's timeout is left
        return


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    limit(request["cpu_s"], request["memory_bytes"])
    try:
        answer = {"text": render(request["source"], request["variables"])}
    except Exception as problem:
        answer = {"error": explained(problem)}
    sys.stdout.buffer.write(json.dumps(answer).encode())


if __name__ == "__main__":
    main()
