"""What can go wrong with a session, each one line for the user. Bad models, splits and plug-ins have their own."""


class LaunchError(Exception):
    """The ranks cannot be brought up as planned: the user can put it right."""


class RankLost(Exception):  # noqa: N818 - reads as what happened
    """A rank died or broke during a session; names it."""

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(text)
        self.rank = rank


def one_line(said: object) -> str:
    """What a problem says, without line breaks."""
    return " ".join(str(said).split())
