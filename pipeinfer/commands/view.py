"""What `pipeinfer generate` shows while it works, and when it is done."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeinfer.commands.output import console
from pipeinfer.core.effects import Stop
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.engine.text_stream import TextStream
from pipeinfer.errors import CONTROLS
from pipeinfer.results.metrics import summary
from pipeinfer.results.trial import Trial

REFRESH_S = 0.1

SHOWN = {code: shown for code, shown in CONTROLS.items() if chr(code) not in "\n\t"}
"""A model may write what a terminal would obey."""


@contextmanager
def starting() -> Iterator[None]:
    """Say so on a terminal while the ranks come up, which takes seconds."""
    terminal = console(errors=True)
    if not terminal.is_terminal:
        yield
        return
    with terminal.status("starting the ranks"):
        yield


class View:
    """Collects the text and shows nothing: for `--json`."""

    def __init__(self, stream: TextStream, prompt: str) -> None:
        self.stream = stream
        self.prompt = prompt
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.finish()
        self.close()

    def on_tokens(self, tokens: tuple[int, ...]) -> Stop | None:
        """Take committed tokens."""
        stop = self.stream.feed(tokens)
        self.show()
        return stop

    def show(self) -> None:
        """The text has grown."""

    def close(self) -> None:
        """No more text comes, whether all went well or not."""

    def print_summary(self, trial: Trial, conclusion: str = "") -> None:
        """A short table on standard error, so that standard output holds the text alone; then what the strategy says
        of itself, beside what was measured."""
        values = summary(trial)
        console(errors=True).print(summary_table(values))
        if conclusion:
            console(errors=True).print(f"{conclusion}, {_number(values['tokens_per_second'])} measured")


class PlainView(View):
    """Standard output is a file or a pipe: write the text as it comes."""

    def __init__(self, stream: TextStream, prompt: str) -> None:
        super().__init__(stream, prompt)
        self._written = 0

    def show(self) -> None:
        # Noted first: an interrupt in the middle of the write must not have it written again.
        grown = self.stream.text[self._written :]
        self._written += len(grown)
        sys.stdout.write(grown)
        sys.stdout.flush()

    def close(self) -> None:
        self.show()
        if self._written:
            sys.stdout.write("\n")
            sys.stdout.flush()


class LiveView(View):
    """Standard output is a terminal: the text, and under it a line with speed and acceptance that keeps changing."""

    def __init__(self, stream: TextStream, prompt: str, scheduler: Callable[[], Scheduler | None]) -> None:
        super().__init__(stream, prompt)
        self._scheduler = scheduler
        self._console = console()
        self._live = Live(console=self._console, transient=True, auto_refresh=False, vertical_overflow="visible")
        self._drawn = 0.0

    def __enter__(self) -> Self:
        super().__enter__()
        self._live.start()
        return self

    def show(self) -> None:
        now = time.monotonic()
        if now - self._drawn < REFRESH_S:
            return
        self._drawn = now
        count = len(self.stream.tokens)
        speed = count / max(now - self._start, 1e-9)
        line = f"{count} tokens  {speed:.1f} tokens/s  {self._acceptance()}"
        lines = self._text().wrap(self._console, self._console.width)[-max(1, self._console.height - 3) :]
        self._live.update(Group(Text("\n").join(lines), Text(line, style="dim")), refresh=True)

    def close(self) -> None:
        self._live.stop()
        self._console.print(self._text())

    def _text(self) -> Text:
        text = Text(self.prompt.translate(SHOWN), style="bold")
        text.append(self.stream.text.translate(SHOWN), style="not bold")
        return text

    def _acceptance(self) -> str:
        scheduler = self._scheduler()
        generations = scheduler.generations.values() if scheduler is not None else ()
        finished = [run for one in generations for run in one.runs if run.finished_at is not None]
        drafted = sum(run.drafted for run in finished)
        return f"{sum(run.accepted for run in finished) / drafted:.0%} of drafts accepted" if drafted else ""


def summary_table(values: dict[str, Any]) -> Table:
    """The figures of one generation for a person."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    runs, itl = values["runs"], values["itl_s"]
    table.add_row("strategy", f"{values['strategy']}, {values['fidelity']}, ended by {values['reason']}")
    table.add_row("speed", f"{_number(values['tokens_per_second'])} tokens/s for {len(values['token_ids'])} tokens")
    table.add_row("first token", f"{_milliseconds(values['ttft_s'])} after the request, {_prompt(values)}")
    table.add_row("between tokens", "  ".join(f"{name} {_milliseconds(value)}" for name, value in itl.items()))
    if values["acceptance_rate"] is not None:
        rate, length = values["acceptance_rate"], values["acceptance_length"]
        table.add_row("drafts", f"{rate:.0%} accepted, {_number(length)} tokens per verified run")
    table.add_row("runs", f"{runs['submitted']} submitted, {runs['verified']} verified, {runs['cancelled']} cancelled")
    for rank in values["ranks"]:
        first, stop = rank["layers"]
        busy, memory = f"busy {rank['busy_s']:.2f} s", f"peak {rank['peak_memory'] / 2**20:.0f} MiB"
        table.add_row(f"rank {rank['rank']}", f"{rank['role']} layers {first}-{stop - 1}, {busy}, {memory}")
    return table


def _prompt(values: dict[str, Any]) -> str:
    """`prompt of 200 tokens in 4 chunks of 50`."""
    chunks, size = values["runs"]["prompt"], values["prompt_chunk"]
    sent = "one piece" if chunks == 1 else f"{chunks} chunks of {size}"
    return f"prompt of {values['prompt_tokens']} tokens in {sent}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e3:.1f} ms"
