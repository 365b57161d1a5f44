"""Does `pipeinfer compare` flag a pipeline that is 10 % slower, and pass one that is not, on this machine as it is now?

    python tests/benchmarks/compare_power.py FOLDER [COMPARISONS]

The emulated pipeline generates in turns: as it is, again as it is, and with every wait 10 % longer. Each comparison
has `REPETITIONS` turns of its own; its results stay in FOLDER.
"""

import sys
from pathlib import Path
from typing import Any

from pipeinfer.cluster.launch import Cluster
from pipeinfer.plugins import open_strategy
from pipeinfer.results.compare import compare
from pipeinfer.results.records import Record, encode, stamped
from pipeinfer.results.trial import Trial

REPETITIONS = 15
COMPARISONS = 20
TOKENS = 16
SLOWDOWN = 1.1
WAITS = {"layer_s": 1e-3, "draft_s": 4e-3}
CONFIG: dict[str, Any] = {"backend": "emulated", "stages": 3, "tokens": TOKENS, **WAITS}
STRATEGIES = ("iterative", "pipeinfer")
PROMPT = "one two three four five six seven eight"


def main(folder: Path, comparisons: int) -> None:
    """Compare that many times, and say how often each verdict was right."""
    passed = flagged = 0
    with opened(1) as usual, opened(SLOWDOWN) as slower:
        for number in range(comparisons):
            here = folder / f"{number}"
            here.mkdir(parents=True, exist_ok=True)
            for turn in range(REPETITIONS):
                sides = [("base", usual), ("same", usual), ("slower", slower)]
                for side, cluster in sides if turn % 2 == 0 else sides[::-1]:
                    generate(cluster, here / f"{side}.jsonl")
            same = compare(here / "base.jsonl", here / "same.jsonl")
            worse = compare(here / "base.jsonl", here / "slower.jsonl")
            passed += not same.worse
            flagged += bool(worse.worse)
            print(f"{number}: {text(same)} | {text(worse)}", flush=True)
    print(f"{passed} of {comparisons} comparisons with itself pass; the slowdown is flagged in {flagged}")


def opened(factor: float) -> Cluster:
    """The pipeline with every wait that much longer, warmed up."""
    options = {name: seconds * factor for name, seconds in WAITS.items()}
    cluster = Cluster(backend="emulated", backend_options=options, stages=3)
    for strategy in STRATEGIES:
        trial(cluster, strategy)
    return cluster


def generate(cluster: Cluster, file: Path) -> None:
    """One repetition of every strategy, appended."""
    with file.open("ab") as out:
        for strategy in STRATEGIES:
            record = Record(
                config_hash=strategy,
                config={"strategy": strategy, **CONFIG},
                fidelity="emulated",
                seed=0,
                trial=trial(cluster, strategy),
                environment=stamped(),
            )
            out.write(encode(record))


def trial(cluster: Cluster, strategy: str) -> Trial:
    prompt = cluster.tokenizer.encode(PROMPT)
    return cluster.generate(prompt, open_strategy(strategy, {}), max_tokens=TOKENS, stop_ids=())


def text(comparison: Any) -> str:
    """The ratios, those that count against the head marked."""
    return " ".join(f"{row.ratio:.3f}{'!' if row in comparison.worse else ''}" for row in comparison.rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else COMPARISONS)
