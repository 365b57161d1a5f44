"""In how many tokens at a time the prompt goes down the pipeline.

Chunks follow one another through the stages, so a prompt of P tokens in c chunks of n takes, on S stages,

    (S + c - 1) * t(n)          t(n) = t(1 row) * (FIXED_ROWS + n) / (FIXED_ROWS + 1)

where a chunk's fixed cost (a stage's weights read once, a message, the calls of every layer) is as much as the compute
of FIXED_ROWS rows. Larger chunks fill the pipeline later, smaller ones pay the fixed cost more often; the least is at

    n = sqrt(P * FIXED_ROWS / (S - 1))

and a chunk below FIXED_ROWS would be mostly fixed cost. Of stages that share cores no more compute at once than there
are cores: those count for S, and where the draft takes the rest of a core it is a fraction. Chunks that cannot overlap
only cost.
"""

import math
from typing import Literal, TypeAlias

PromptChunk: TypeAlias = int | Literal["auto", "whole"]
"""Tokens per chunk; "auto" chooses as above, "whole" sends the prompt in one piece."""

FIXED_ROWS = 24
"""Measured on a CPU with the built-in target: about 30 in numpy, 40 in llama.cpp, more in torch. Around its least the
time is flat, and the lower end of what was measured keeps deep pipelines filled."""

MOST_ROWS = 512
"""No chunk is larger unless it is asked for: attention keeps a score for each row and cell."""


def chunk_size(asked: PromptChunk, prompt: int, at_once: float) -> int:
    """Tokens per chunk for a prompt of that many tokens, where so many stages can compute at once; with "auto" the
    chunks are as good as equal."""
    if asked == "whole":
        return prompt
    if asked != "auto":
        return asked
    most = math.sqrt(prompt * FIXED_ROWS / (at_once - 1)) if at_once > 1 else MOST_ROWS
    size = min(MOST_ROWS, max(FIXED_ROWS, most))
    chunks = max(1, round(prompt / size), -(-prompt // MOST_ROWS))
    return -(-prompt // chunks)
