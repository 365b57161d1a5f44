"""What `pipeinfer.engine.backend` promises, as pytest tests that a plug-in runs by subclassing `BackendConformance`.

    class TestMine(BackendConformance):
        def backend(self):
            return MyBackend()
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import pytest

from pipeinfer.core.messages import TO_THE_END, KvOp, KvSeqCp, KvSeqRm
from pipeinfer.engine.backend import Backend, BackendFactory, BadModel, Batch, CellsFull, Hidden, ModelStage
from pipeinfer.testing.models import write_llama

CELLS, SEQUENCES = 64, 8
PROMPT = (5, 17, 200, 3, 44, 90, 121, 8, 250, 33, 71, 19)
START = len(PROMPT)
TREE_TOKENS = (7, 30, 31, 99, 150, 60, 61, 62)
TREES = {
    "chain": (-1, 0, 1, 2),
    "siblings": (-1, -1, -1, -1),
    "fork": (-1, 0, 0, 1, 2),
    "two roots": (-1, -1, 0, 1, 0, 2, 3, 3),
}
"""Trees as the parent of each node, -1 for the last prompt token."""

Opener: TypeAlias = Callable[..., "LocalStages"]


class BackendConformance:
    """Tests of one backend. A subclass gives `backend`, and the rest where the defaults do not fit it."""

    exact = True
    """Whether splitting a model leaves every bit of the logits as it was."""

    rtol = 1e-4
    """How far logits may lie apart where the same rows ran in other batches or cells, in units of the largest logit."""

    def backend(self) -> Backend:
        """A backend with its default options."""
        raise NotImplementedError("give the conformance kit a backend: def backend(self): return MyBackend()")

    def model(self, tmp_path: Path) -> str:
        """The name of a model with at least 3 layers and 257 tokens. Small: it is loaded some dozen times."""
        return str(write_llama(tmp_path / "model"))

    def loaded_bytes(self, load: Callable[[], ModelStage]) -> int | None:
        """How much memory the stage that `load` creates holds, or None to skip the memory test."""
        return None

    @pytest.fixture(scope="class")
    @classmethod
    def kept(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Kept"]:
        """What one test after another has."""
        kept = Kept(tmp_path_factory.mktemp("model"))
        yield kept
        kept.close()

    @pytest.fixture
    def name(self, kept: "Kept") -> str:
        kept.name = kept.name or self.model(kept.folder)
        return kept.name

    @pytest.fixture
    def pipeline(self, name: str, kept: "Kept") -> Iterator[Opener]:
        """Gives pipelines of the model, split into `stages`: opened, or cleared after another test."""
        lent: list[LocalStages] = []
        layers = self.backend().info(name).layers

        def open_pipeline(stages: int = 1, cells: int = CELLS) -> LocalStages:
            idle = kept.pipelines.setdefault((stages, cells), [])
            found = next((one for one in idle if one not in lent), None)
            if found is None:
                found = LocalStages(self.backend(), name, layers, stages, cells)
                idle.append(found)
            lent.append(found)
            return found

        yield open_pipeline
        for one in lent:
            one.clear()

    def assert_close(self, came: Hidden | None, expected: Hidden | None) -> None:
        assert came is not None
        assert expected is not None
        assert came.shape == expected.shape
        assert np.isfinite(came).all()
        assert np.abs(came - expected).max() <= self.rtol * np.abs(expected).max()

    def assert_split_equal(self, came: Hidden | None, whole: Hidden | None) -> None:
        self.assert_close(came, whole)
        if self.exact:
            np.testing.assert_array_equal(came, whole)

    def chain_logits(self, pipeline: "LocalStages", tokens: Sequence[int]) -> Hidden:
        """The logits after the last of `tokens`, computed on an empty pipeline, on their own and in one sequence."""
        pipeline.clear()
        return pipeline.run(chain(tokens, outputs=1))

    # Models ----------------------------------------------------------------------------------------------------------

    def test_info_agrees_with_what_is_loaded(self, name: str, pipeline: Opener) -> None:
        info = self.backend().info(name)
        assert info.vocabulary > 256
        assert info.vocabulary_digest
        assert info.context > 0
        assert info.layer_bytes > 0
        assert info.head_bytes > 0
        assert all(0 <= token < info.vocabulary for token in info.eos)
        first, last = pipeline(stages=2).stages
        hidden = first.forward(chain(PROMPT), None, never)
        assert hidden is not None
        assert hidden.shape == (START, info.hidden_size)
        assert hidden.dtype == np.float32
        logits = last.forward(chain(PROMPT, outputs=3), hidden, never)
        assert logits is not None
        assert logits.shape == (3, info.vocabulary)
        assert logits.dtype == np.float32

    def test_layers_out_of_range_are_a_bad_model(self, name: str) -> None:
        layers = self.backend().info(name).layers
        for wrong in ((-1, 1), (0, layers + 1), (2, 2), (2, 1), (layers, layers + 1)):
            with one_clear_line():
                self.backend().load(name, wrong, cells=CELLS, sequences=SEQUENCES)

    def test_a_model_that_is_not_there_is_a_bad_model(self, tmp_path: Path) -> None:
        missing = str(tmp_path / "no such model")
        with one_clear_line():
            self.backend().info(missing)
        with one_clear_line():
            self.backend().load(missing, (0, 1), cells=CELLS, sequences=SEQUENCES)
        with one_clear_line():
            self.backend().tokenizer(missing)

    def test_an_unknown_option_is_a_type_error(self) -> None:
        with pytest.raises(TypeError):
            cast(BackendFactory, type(self.backend()))(no_such_option=1)

    def test_the_tokenizer_gives_the_text_back(self, name: str) -> None:
        tokenizer = self.backend().tokenizer(name)
        text = "def double(x):\n    return 2 * x  # naïve"
        ids = tokenizer.encode(text, add_special=False)
        assert set(ids) <= set(tokenizer.encode(text))
        vocabulary = self.backend().info(name).vocabulary
        assert all(0 <= token < vocabulary for token in ids)
        assert tokenizer.decode(ids).strip() == text
        assert tokenizer.encode("", add_special=False) == []
        assert set(ids) <= set(tokenizer.tokens())

    def test_a_stage_holds_its_share_of_the_memory(self, name: str) -> None:
        layers = self.backend().info(name).layers

        def held(first: int, stop: int) -> int | None:
            return self.loaded_bytes(
                lambda: self.backend().load(name, (first, stop), cells=CELLS, sequences=SEQUENCES)
            )

        whole, first, last = held(0, layers), held(0, layers // 2), held(layers // 2, layers)
        if whole is None or first is None or last is None:
            pytest.skip("this backend does not say what a stage holds")
        assert first + last <= 1.2 * whole
        assert max(first, last) <= 0.75 * whole

    # Splits ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("stages", [2, 3, "all"])
    def test_a_split_gives_the_logits_of_the_whole(self, name: str, pipeline: Opener, stages: int | str) -> None:
        whole = pipeline()
        split = pipeline(stages=self.backend().info(name).layers if stages == "all" else int(stages))
        for batch in [chain(PROMPT), *chunks_of_1_to_8_rows()]:
            self.assert_split_equal(split.run(batch), whole.run(batch))

    def test_the_same_calls_give_the_same_bits(self, pipeline: Opener) -> None:
        one, other = pipeline(stages=2), pipeline(stages=2)
        for batch in [chain(PROMPT), *chunks_of_1_to_8_rows()]:
            np.testing.assert_array_equal(one.run(batch), other.run(batch))

    def test_a_chunk_gives_what_its_rows_give_one_by_one(self, pipeline: Opener) -> None:
        at_once = pipeline().run(chain(PROMPT))
        stepper = pipeline()
        steps = [stepper.run(chain([token], start=position)) for position, token in enumerate(PROMPT)]
        self.assert_close(at_once, np.concatenate(steps))

    def test_position_matters(self, name: str, pipeline: Opener) -> None:
        """Within one layer a row attends to a set of cells: only their positions tell the orders of a set apart."""
        one_layer = pipeline(stages=self.backend().info(name).layers).stages[0]
        there = one_layer.forward(chain([5, 17, 44]), None, never)
        one_layer.clear()
        back = one_layer.forward(chain([17, 5, 44]), None, never)
        assert there is not None
        assert back is not None
        assert np.abs(there[-1] - back[-1]).max() > 10 * self.rtol * np.abs(there[-1]).max()

    def test_only_the_last_rows_have_outputs(self, pipeline: Opener) -> None:
        stages = pipeline()
        everything = stages.run(chain(PROMPT))
        for outputs in range(START + 1):
            stages.clear()
            logits = stages.run(chain(PROMPT, outputs=outputs))
            assert len(logits) == outputs
            if outputs:
                self.assert_close(logits, everything[-outputs:])

    @pytest.mark.parametrize("stage", [0, 1], ids=["first stage", "last stage"])
    def test_results_stay_as_they_were_given(self, pipeline: Opener, stage: int) -> None:
        stages = pipeline(stages=2).stages
        hidden = None if stage == 0 else stages[0].forward(chain(PROMPT), None, never)
        result = stages[stage].forward(chain(PROMPT), hidden, never)
        assert result is not None
        copy = result.copy()
        stages[stage].forward(chain(reversed(PROMPT), start=START), hidden, never)
        np.testing.assert_array_equal(result, copy)

    # Trees -----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("parents", TREES.values(), ids=TREES.keys())
    def test_a_tree_gives_each_branch_what_it_has_alone(self, pipeline: Opener, parents: Sequence[int]) -> None:
        stages, alone = pipeline(stages=2), pipeline()
        stages.run(chain(PROMPT))
        branches = prepare_branches(stages, parents)
        rows = stages.run(tree(parents, branches))
        for node in range(len(parents)):
            expected = self.chain_logits(alone, [*PROMPT, *(TREE_TOKENS[step] for step in path(parents, node))])
            self.assert_close(rows[node : node + 1], expected)

    def test_a_row_sees_its_first_sequence(self, pipeline: Opener) -> None:
        stages = pipeline()
        stages.run(chain(PROMPT))
        stages.apply(KvSeqCp(0, 1, 0, TO_THE_END))
        stages.apply(KvSeqRm(1, 2, 5))
        for sequences in ((0, 1), (1, 0)):
            came = stages.run(Batch([50], [START], [sequences], 1))
            stages.apply(KvSeqRm(0, START, TO_THE_END))
            stages.apply(KvSeqRm(1, START, TO_THE_END))
            self.assert_close(came, stages.run(chain([50], start=START, sequence=sequences[0])))
            stages.apply(KvSeqRm(sequences[0], START, TO_THE_END))

    def test_an_accepted_branch_goes_on(self, pipeline: Opener) -> None:
        parents = TREES["two roots"]
        stages, alone = pipeline(), pipeline()
        for leaf in leaves(parents):
            stages.clear()
            stages.run(chain(PROMPT))
            branches = prepare_branches(stages, parents)
            stages.run(tree(parents, branches))
            for sequence in {0, *(tag for row in branches for tag in row)} - {branches[leaf][0]}:
                stages.apply(KvSeqRm(sequence, 0, TO_THE_END))
            tokens = [*PROMPT, *(TREE_TOKENS[step] for step in path(parents, leaf))]
            came = stages.run(chain([9], start=len(tokens), sequence=branches[leaf][0]))
            self.assert_close(came, self.chain_logits(alone, [*tokens, 9]))

    # KV operations ---------------------------------------------------------------------------------------------------

    def test_a_copied_sequence_goes_its_own_way(self, pipeline: Opener) -> None:
        stages, alone = pipeline(stages=2), pipeline()
        stages.run(chain(PROMPT))
        stages.apply(KvSeqCp(0, 1, 0, TO_THE_END))
        for step in range(1, 4):
            for sequence, token in ((0, 10 + step), (1, 20 + step)):
                came = stages.run(chain([token], start=START + step - 1, sequence=sequence))
                tokens = [*PROMPT, *(10 * (sequence + 1) + done for done in range(1, step + 1))]
                self.assert_close(came, self.chain_logits(alone, tokens))

    def test_a_copied_range_ends_before_its_stop(self, pipeline: Opener) -> None:
        stages = pipeline()
        stages.run(chain(PROMPT))
        stages.apply(KvSeqCp(0, 1, 0, 4))
        came = stages.run(chain([40, 41], start=4, sequence=1, outputs=1))
        self.assert_close(came, self.chain_logits(pipeline(), [*PROMPT[:4], 40, 41]))

    def test_a_removed_end_can_be_filled_again(self, pipeline: Opener) -> None:
        stages = pipeline(stages=2)
        stages.run(chain(PROMPT))
        stages.apply(KvSeqRm(0, 4, TO_THE_END))
        came = stages.run(chain([40, 41], start=4, outputs=1))
        self.assert_close(came, self.chain_logits(pipeline(), [*PROMPT[:4], 40, 41]))

    def test_removing_a_range_is_leaving_it_out_of_a_copy(self, pipeline: Opener) -> None:
        removed, copied = pipeline(), pipeline()
        for stages in (removed, copied):
            stages.run(chain(PROMPT))
        untouched = pipeline_logits(pipeline, chain(PROMPT), chain([50], start=START))
        removed.apply(KvSeqRm(0, 2, 5))
        copied.apply(KvSeqCp(0, 1, 0, 2))
        copied.apply(KvSeqCp(0, 1, 5, TO_THE_END))
        came = removed.run(chain([50], start=START))
        self.assert_close(came, copied.run(chain([50], start=START, sequence=1)))
        assert np.abs(came - untouched).max() > 100 * self.rtol * np.abs(untouched).max()

    def test_a_copy_outlives_its_source(self, pipeline: Opener) -> None:
        stages = pipeline()
        stages.run(chain(PROMPT))
        stages.apply(KvSeqCp(0, 3, 0, TO_THE_END))
        stages.apply(KvSeqRm(0, 0, TO_THE_END))
        stages.run(chain(reversed(PROMPT)))  # takes whatever cells are free
        came = stages.run(chain([50], start=START, sequence=3))
        self.assert_close(came, self.chain_logits(pipeline(), [*PROMPT, 50]))

    def test_rows_that_were_pruned_leave_nothing_behind(self, pipeline: Opener) -> None:
        """Of a run of two branches only one is computed: its results are those of the branch alone."""
        stages = pipeline(stages=2)
        stages.run(chain(PROMPT))
        for sequence in (1, 2):
            stages.apply(KvSeqCp(0, sequence, 0, TO_THE_END))
        came = stages.run(Batch((60, 61), (START, START + 1), ((2,), (2,)), 2))
        self.assert_close(came[-1:], self.chain_logits(pipeline(), [*PROMPT, 60, 61]))
        stages.apply(KvSeqCp(1, 3, 0, START + 2))  # the pruned branch's cells, which there are not
        came = stages.run(chain([70], start=START, sequence=3))
        self.assert_close(came, self.chain_logits(pipeline(), [*PROMPT, 70]))

    def test_clear_forgets_everything(self, pipeline: Opener) -> None:
        stages = pipeline(stages=2, cells=2 * START)
        first = stages.run(chain(PROMPT))
        stages.run(chain(PROMPT, start=START))
        stages.clear()
        stages.run(chain(reversed(PROMPT), sequence=1))  # lies where cells of sequence 0 were
        self.assert_close(stages.run(chain(PROMPT)), first)

    def test_a_stage_beside_another_has_its_weights_and_cells_of_its_own(self, pipeline: Opener) -> None:
        stages = pipeline(stages=2)
        if not all(hasattr(stage, "beside") for stage in stages.stages):
            pytest.skip("this backend has no stages beside another: exact stages hold one text")
        beside = [stage.beside() for stage in stages.stages]  # type: ignore[attr-defined]
        first = stages.run(chain(PROMPT))
        hidden = beside[0].forward(chain(reversed(PROMPT)), None, never)
        other = beside[1].forward(chain(reversed(PROMPT)), hidden, never)
        np.testing.assert_array_equal(other, pipeline(stages=2).run(chain(reversed(PROMPT))))
        for stage in beside:
            stage.close()
        went_on = stages.run(chain([50], start=START))
        stages.clear()
        np.testing.assert_array_equal(stages.run(chain(PROMPT)), first)
        np.testing.assert_array_equal(stages.run(chain([50], start=START)), went_on)

    # Cells -----------------------------------------------------------------------------------------------------------

    def test_too_many_rows_change_nothing(self, pipeline: Opener) -> None:
        stages = pipeline(cells=START + 2)
        stages.run(chain(PROMPT))
        with pytest.raises(CellsFull):
            stages.run(chain([50, 51, 52], start=START))
        came = stages.run(chain([50, 51], start=START, outputs=1))
        self.assert_close(came, self.chain_logits(pipeline(), [*PROMPT, 50, 51]))
        with pytest.raises(CellsFull):
            stages.run(chain([52], start=START + 2))

    def test_removed_cells_are_used_again(self, pipeline: Opener) -> None:
        stages, alone = pipeline(stages=2, cells=START + 3), pipeline()
        stages.run(chain(PROMPT))
        for step in range(8):
            came = stages.run(chain([step, 51, 52], start=START, outputs=1))
            self.assert_close(came, self.chain_logits(alone, [*PROMPT, step, 51, 52]))
            stages.apply(KvSeqRm(0, START, TO_THE_END))

    def test_a_cell_is_free_when_its_last_tag_is_gone(self, pipeline: Opener) -> None:
        stages = pipeline(cells=START)
        stages.run(chain(PROMPT))
        stages.apply(KvSeqCp(0, 1, 0, TO_THE_END))
        stages.apply(KvSeqRm(0, 0, TO_THE_END))
        with pytest.raises(CellsFull):
            stages.run(chain([1]))
        stages.apply(KvSeqRm(1, 0, TO_THE_END))
        stages.run(chain(PROMPT))

    # Cancellation ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("stage", [0, 1], ids=["first stage", "last stage"])
    def test_an_abort_at_any_check_leaves_the_cells_as_they_were(self, pipeline: Opener, stage: int) -> None:
        parents = TREES["fork"]
        stages = pipeline(stages=2, cells=START + len(parents))
        stages.run(chain(PROMPT))
        batch = tree(parents, prepare_branches(stages, parents))
        hidden = None if stage == 0 else stages.stages[0].forward(batch, None, never)
        cancelled = stages.stages[stage]
        others = chain(batch.tokens, start=START, outputs=0)

        looks = AbortAfter(after=None)
        expected = cancelled.forward(batch, hidden, looks)
        assert expected is not None
        assert looks.count > 0, "abort was never called: a cancelled run would be computed to its end"
        for check in range(looks.count):
            remove_rows(cancelled, batch)
            abort = AbortAfter(after=check)
            result = cancelled.forward(batch, hidden, abort)
            assert (result is None) == abort.came
            if result is not None:
                remove_rows(cancelled, batch)
            cancelled.forward(others, hidden, never)  # would find a cell or a tag that was left behind
            remove_rows(cancelled, others)
            self.assert_split_equal(cancelled.forward(batch, hidden, never), expected)


class LocalStages:
    """The stages of one model in this process, one after another."""

    def __init__(self, backend: Backend, model: str, layers: int, stages: int, cells: int) -> None:
        borders = [stage * layers // stages for stage in range(stages + 1)]
        self.stages: list[ModelStage] = [
            backend.load(model, (first, stop), cells=cells, sequences=SEQUENCES)
            for first, stop in pairwise(borders)
        ]

    def run(self, batch: Batch) -> Hidden:
        """Logits of the batch. Hidden states cross between stages as read-only bytes, as they do on a wire."""
        arrived: Hidden | None = None
        for stage in self.stages:
            result = stage.forward(batch, arrived, never)
            assert result is not None
            assert result.dtype == np.float32
            arrived = np.frombuffer(result.tobytes(), np.float32).reshape(result.shape)
        assert arrived is not None
        return arrived

    def apply(self, op: KvOp) -> None:
        for stage in self.stages:
            stage.apply(op)

    def clear(self) -> None:
        for stage in self.stages:
            stage.clear()

    def close(self) -> None:
        for stage in self.stages:
            stage.close()


class Kept:
    """The model of a class of tests, and its pipelines by stages and cells: opening them takes most of the time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = ""
        self.pipelines: dict[tuple[int, int], list[LocalStages]] = {}

    def close(self) -> None:
        for pipelines in self.pipelines.values():
            for pipeline in pipelines:
                pipeline.close()


class AbortAfter:
    """An abort check that turns true at its call number `after`, and counts the calls."""

    def __init__(self, after: int | None) -> None:
        self._after = after
        self.count = 0
        self.came = False

    def __call__(self) -> bool:
        self.came = self._after is not None and self.count >= self._after
        self.count += 1
        return self.came


def never() -> bool:
    return False


@contextmanager
def one_clear_line() -> Iterator[None]:
    """Expects a BadModel whose text is a single line."""
    with pytest.raises(BadModel) as caught:
        yield
    text = str(caught.value)
    assert text.strip()
    assert "\n" not in text


def chain(tokens: Iterable[int], *, start: int = 0, sequence: int = 0, outputs: int | None = None) -> Batch:
    """Rows that follow one another in one sequence, from position `start`; all of them are output unless said."""
    tokens = tuple(tokens)
    rows = len(tokens)
    return Batch(tokens, tuple(range(start, start + rows)), ((sequence,),) * rows, rows if outputs is None else outputs)


def chunks_of_1_to_8_rows() -> Iterator[Batch]:
    position = START
    for rows in range(1, 9):
        yield chain(range(100 + position, 100 + position + rows), start=position)
        position += rows


def pipeline_logits(pipeline: Opener, *batches: Batch) -> Hidden:
    """The logits of the last batch on a fresh pipeline."""
    stages = pipeline()
    return [stages.run(batch) for batch in batches][-1]


def path(parents: Sequence[int], node: int) -> list[int]:
    """The nodes from the root to `node`."""
    return [] if node < 0 else [*path(parents, parents[node]), node]


def leaves(parents: Sequence[int]) -> list[int]:
    return [node for node in range(len(parents)) if node not in parents]


def prepare_branches(stages: LocalStages, parents: Sequence[int]) -> list[tuple[int, ...]]:
    """Copy the prompt, in sequence 0, to one sequence per leaf; gives each node those of the leaves below it."""
    tags: list[tuple[int, ...]] = [()] * len(parents)
    for sequence, leaf in enumerate(leaves(parents), start=1):
        stages.apply(KvSeqCp(0, sequence, 0, TO_THE_END))
        for node in path(parents, leaf):
            tags[node] += (sequence,)
    return tags


def tree(parents: Sequence[int], sequences: Sequence[tuple[int, ...]]) -> Batch:
    positions = [START + len(path(parents, node)) - 1 for node in range(len(parents))]
    return Batch(TREE_TOKENS[: len(parents)], positions, sequences, len(parents))


def remove_rows(stage: ModelStage, batch: Batch) -> None:
    for sequence in {sequence for row in batch.sequences for sequence in row}:
        stage.apply(KvSeqRm(sequence, START, TO_THE_END))
