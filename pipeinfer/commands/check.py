"""`pipeinfer generate --check`: the same request once more, one token at a time on a single stage."""

import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import typer

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.engine.sampling import Sampling
from pipeinfer.results.divergence import Divergence, divergence
from pipeinfer.results.trial import Trial

DIFFERENT = 1
"""Exit code for token ids that differ where no tie explains it."""


class Check(msgspec.Struct, frozen=True):
    """How the token ids of a trial compare with those of plain decoding."""

    tokens: int
    divergence: Divergence | None

    @property
    def passed(self) -> bool:
        return self.divergence is None or self.divergence.is_tie

    @property
    def text(self) -> str:
        if self.divergence is None:
            return f"check: the same {self.tokens} token ids as one by one on a single stage"
        how = "part at a tie" if self.passed else "differ"
        return f"check: the token ids {how} from those one by one on a single stage: {self.divergence.text}"

    @property
    def summary(self) -> dict[str, Any]:
        """For `--json`."""
        return {"passed": self.passed, "divergence": msgspec.to_builtins(self.divergence)}

    def conclude(self) -> None:
        """Say it on standard error, and end with an exit code of its own where the tokens are wrong."""
        print(self.text, file=sys.stderr)
        if not self.passed:
            raise typer.Exit(DIFFERENT)


def check(plan: Plan, prompt: Sequence[int], sampling: Sampling, trial: Trial) -> Check:
    """Generate as many tokens again and compare. The ranks of `plan` have to be free: nobody else uses them."""
    count = len(trial.token_ids)
    if not count:
        return Check(0, None)
    with Cluster(single_stage(plan)) as cluster:
        reference = cluster.generate(
            prompt, Iterative(), max_tokens=count, sampling=sampling, stop_ids=(), margins=True
        )  # fmt: skip
    return Check(count, divergence(trial, reference))


def single_stage(plan: Plan) -> Plan:
    """The target alone and whole on the first rank, as fast as it goes."""
    return msgspec.structs.replace(
        plan, draft=None, stages=1, layers=None, draft_layers=None, profile=None, workers=plan.workers[:1], trace=False,
        cpu_share=1.0, bandwidth_bps=float("inf"), latency_s=0.0,
    )  # fmt: skip
