"""What is wrong with a request, in the shape in which OpenAI's clients read it."""

from typing import Any

from pipeinfer.errors import one_line

MOST_SAID = 400
"""Characters of a message; it may quote what a stranger sent."""


class Refusal(Exception):  # noqa: N818 - reads as what happened
    """An answer with this HTTP status instead of the one that was asked for; `param` is the field at fault."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        said = one_line(self)
        said = said if len(said) <= MOST_SAID else said[: MOST_SAID - 3] + "..."
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": said, "type": kind, "param": self.param, "code": self.code}}


TYPES = {401: "authentication_error", 429: "rate_limit_error"}
