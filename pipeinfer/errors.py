"""What can go wrong with a session, each one line for the user. Bad models, splits and plug-ins have their own."""

CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160))}
"""How control characters are shown, which a terminal would obey."""


class LaunchError(Exception):
    """The ranks cannot be brought up as planned: the user can put it right."""


class RankRefuses(LaunchError):  # noqa: N818 - reads as what happened
    """One rank cannot be brought up as planned; names it."""

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(text)
        self.rank = rank


class RankLost(Exception):  # noqa: N818 - reads as what happened
    """A rank died or broke during a session; names it."""

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(text)
        self.rank = rank


def one_line(said: object) -> str:
    """What a problem says, without line breaks and without anything that a terminal would obey."""
    return " ".join(str(said).split()).translate(CONTROLS)
