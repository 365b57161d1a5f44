"""Standard input, output and errors: whatever text comes, and however they were left by who started this process."""

import codecs
import os
import sys
from pathlib import Path

ESCAPED = "backslashreplace"
"""How a character is written that the stream's encoding lacks: the rest of the text is not lost with it."""


def prepare_streams() -> None:
    """Have the outputs take any text. Raises ValueError when standard output is closed.

    Input and errors that are closed get the null device, or the next file opened would take their place.
    """
    for number, stream in ((0, sys.stdin), (2, sys.stderr)):
        if stream is None:
            null_device(number)
    if sys.stdout is None:
        raise ValueError("standard output is closed: expected somewhere to write to")
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(errors=ESCAPED)


def null_device(number: int) -> None:
    """Point this file descriptor at it."""
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)


def read_text(file: Path) -> str:
    """The text of a file, or for `-` of standard input: the same bytes give the same text. Raises ValueError.

    UTF-8 with or without a byte order mark; line ends stay as they are.
    """
    try:
        content = _standard_input() if str(file) == "-" else file.read_bytes()
    except OSError as problem:
        raise ValueError(f"cannot read {_named(file)}: {problem.strerror}") from problem
    mark = codecs.BOM_UTF8 if content.startswith(codecs.BOM_UTF8) else b""
    try:
        return content[len(mark) :].decode()
    except UnicodeDecodeError as problem:
        at = len(mark) + problem.start
        raise ValueError(
            f"cannot read {_named(file)}: expected UTF-8 text, came byte 0x{content[at]:02x} at offset {at}"
        ) from problem


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise ValueError("cannot read standard input: it is closed")
    return sys.stdin.buffer.read()


def _named(file: Path) -> str:
    return "standard input" if str(file) == "-" else str(file)


def checked_argument(text: str, what: str) -> str:
    """`text` from the command line. Raises ValueError where its bytes are not text in the system's encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        byte = ord(text[problem.start]) & 0xFF
        at = len(os.fsencode(text[: problem.start]))
        raise ValueError(f"{what}: expected UTF-8 text, came byte 0x{byte:02x} at offset {at}") from problem
    return text
