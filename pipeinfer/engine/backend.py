"""What a compute backend is: something that runs layers [i, j) of a model over cells with sequence tags.

A backend plug-in is an entry point in the group `pipeinfer.backends` naming a class that satisfies `Backend`.
`pipeinfer.testing.BackendConformance` checks all that is promised here; `backends/README.md` is the guide.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import KvOp
from pipeinfer.engine.chat import ChatTemplate

Hidden: TypeAlias = NDArray[np.float32]
AbortCheck: TypeAlias = Callable[[], bool]


class BadModel(ValueError):  # noqa: N818 - reads as what happened
    """The model cannot be used; the text says what was expected, what came and what to do. One line."""


class ModelInfo(msgspec.Struct, frozen=True):
    """What placement, vocabulary checks and cost models need to know of a model, without loading its weights.

    `vocabulary_digest` is equal for two models exactly when token ids mean the same text in both. `precision` is the
    coarsest arithmetic that a row meets, which says how much its logits may depend on the rows it is computed with: in
    "float32" never as much as another token; "bfloat16", "float16", "tf32" or a quantisation like "q8_0" may turn a tie
    (`pipeinfer.results.divergence`). Bytes are of the weights of the largest layer, of the output head (behind the last
    layer) and of the embedding (before the first), and of one layer's keys and values for one cell; 0 where not known.
    `eos` are all the tokens that end a text; `notes` what a user should know of the model, a line each.
    """

    architecture: str
    layers: int
    hidden_size: int
    vocabulary: int
    vocabulary_digest: str
    context: int
    layer_bytes: int
    head_bytes: int
    eos: tuple[int, ...] = ()
    precision: str = "float32"
    embedding_bytes: int = 0
    kv_bytes: int = 0
    notes: tuple[str, ...] = ()

    def stage_bytes(self, layers: tuple[int, int], cells: int) -> int:
        """What a stage holds: its layers' weights and KV cells, the embedding on the first, the head on the last."""
        start, stop = layers
        ends = [self.embedding_bytes] * (start == 0) + [self.head_bytes] * (stop == self.layers)
        # On a single stage the two may be one matrix.
        return (stop - start) * (self.layer_bytes + cells * self.kv_bytes) + max(ends, default=0)


class Batch(msgspec.Struct, frozen=True):
    """A micro-batch of R rows. Row r is tagged with `sequences[r]` and sees the cells and earlier rows of
    `sequences[r][0]` at positions up to its own. Parents stand before children. Only the last `outputs` rows need
    logits. `requests` is the request of each row, or of all where it has one entry, which says nothing to an engine."""

    tokens: Sequence[int]
    positions: Sequence[int]
    sequences: Sequence[tuple[int, ...]]
    outputs: int
    requests: Sequence[int] = (0,)


def context_of(positions: Sequence[int], requests: Sequence[int]) -> int:
    """The highest position that a batch's rows attend to, plus one; of several requests, those of all of them together,
    since the keys and values of each are read."""
    if len(requests) == 1:
        return positions[-1] + 1
    return sum(dict(zip(requests, positions, strict=True)).values()) + len(set(requests))


def chain(tokens: Sequence[int], start: int, outputs: int) -> Batch:
    """Rows of sequence 0 from position `start` on."""
    return Batch(tokens, range(start, start + len(tokens)), [(0,)] * len(tokens), outputs)


def check_batch(batch: Batch, hidden: Hidden | None, *, hidden_size: int, vocabulary: int | None) -> None:
    """For stages: raises ValueError for a batch that does not fit. `vocabulary` is None behind the first stage."""
    rows = len(batch.tokens)
    if not rows or rows != len(batch.positions) or rows != len(batch.sequences) or not all(batch.sequences):
        raise ValueError(f"expected one position and at least one sequence id for each of {rows} > 0 tokens, came"
                         f" {len(batch.positions)} positions and {len(batch.sequences)} tuples of sequence ids")
    if min(batch.positions) < 0:
        raise ValueError(f"expected positions from 0 on, came {min(batch.positions)}")
    if not 0 <= batch.outputs <= rows:
        raise ValueError(f"expected 0..{rows} output rows, came {batch.outputs}")
    if vocabulary is not None and not 0 <= min(batch.tokens) <= max(batch.tokens) < vocabulary:
        raise ValueError(f"expected token ids 0..{vocabulary - 1}, came {sorted(set(batch.tokens))}")
    if vocabulary is None and (hidden is None or hidden.shape != (rows, hidden_size)):
        came = "none" if hidden is None else f"shape {list(hidden.shape)}"
        raise ValueError(f"expected hidden states of shape [{rows}, {hidden_size}], came {came}")


def check_layers(layers: tuple[int, int], count: int, model: str) -> None:
    """For backends: raises BadModel where `model`, of `count` layers, has no layers [i, j)."""
    first, stop = layers
    if not 0 <= first < stop <= count:
        raise BadModel(
            f"expected layers [i, j) with 0 <= i < j <= {count}, came [{first}, {stop}): split the layers of {model} "
            "among the stages"
        )


class ModelStage(Protocol):
    """Layers [i, j) of one model with their KV cells. The first stage embeds tokens, the last gives logits.

    A stage may also have `beside() -> ModelStage`: another one of the same layers and sizes, which shares the weights
    and has cells of its own; the two are never used at once, and this one is closed last. Raises BadModel where there
    is no room for it. With it, exact stages hold the texts of several requests.
    """

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> NDArray[np.float32] | None:
        """Run R rows; `hidden` is float32 [R, hidden_size] from the stage before, None on the first stage. It may be
        read-only memory.

        Gives hidden states [R, hidden_size], or on the last stage logits float32 [outputs, vocabulary]. The result
        belongs to the caller: later calls leave it as it is.
        `abort` is cheap; call it between layers or graph nodes. Once it is true: give the cells of this batch back and
        return None at once. Raises CellsFull when there are fewer free cells than rows (nothing is changed then).
        """

    def apply(self, op: KvOp) -> None:
        """kv_seq_cp / kv_seq_rm over positions [start, stop); stop -1 is "to the end"."""

    def clear(self) -> None:
        """Forget every cell."""

    def close(self) -> None:
        """Give memory back. The stage is not used afterwards."""


class CellsFull(RuntimeError):  # noqa: N818
    """More rows than free KV cells: the head's ledger should have prevented it."""


class Token(NamedTuple):
    """An entry of a vocabulary as its file writes it. `special`: it was added to the pieces that texts are cut into."""

    text: str
    special: bool


class Tokenizer(Protocol):
    """Text to ids and back, as the model's own engine does it."""

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """The ids of `text` with what the model's own engine puts around it, such as a token that begins every text:
        once, also where the text has it already. `add_special` False: the text alone. A special token that is written
        in the text is that token either way."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text, special tokens among it."""

    def tokens(self) -> Mapping[int, Token]:
        """Every entry by its id."""

    def chat_template(self) -> ChatTemplate | None:
        """How the model's makers write a conversation; None: it is not made for any. Raises BadModel."""


class Backend(Protocol):
    """Opens models. Constructed with the options of the command line or workload as keyword arguments; an option it
    does not know raises TypeError from its own signature, one out of range ValueError. An option `rank` is given by the
    rank that it is opened on.

    A backend whose models do not lie in the host's memory also has `device_bytes() -> int | None`: what is free where
    they lie, None where that is the host's memory after all. One whose models are files also has
    `weight_files(model) -> list[Path]`: those that hold its weights and are here; ranks that have others are refused.
    One with native code may have `trials(folder)`, by name how to get a backend and the Llama model in that folder for
    it, say in another quantisation, and `REINSTALL`, a command: `pipeinfer doctor` computes each and names the cure.
    One that takes long to import may have a static `prepare(models)`, which imports what loading these takes, in a
    process from which the ranks of a machine are forked: it starts no thread and looks for no device.
    """

    def info(self, model: str) -> ModelInfo:
        """Read the model's description only. Raises BadModel."""

    def load(self, model: str, layers: tuple[int, int], *, cells: int, sequences: int) -> ModelStage:
        """Create the stage of layers [i, j) with room for `cells` KV cells and sequence ids 0..sequences-1.

        Raises BadModel, also for layers that the model does not have.
        """

    def tokenizer(self, model: str) -> Tokenizer:
        """The model's own tokenizer. Raises BadModel."""


BackendFactory: TypeAlias = Callable[..., Any]
