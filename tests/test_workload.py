"""Workload files: what they hold, and how they are refused."""

from pathlib import Path

import pytest

from pipeinfer import workload
from pipeinfer.workload import FileEntry, WorkloadError, load

PAIRS = workload.names("pairs", "pair")


@pytest.mark.parametrize("name", PAIRS)
def test_the_published_parameter_count_follows_from_the_dimensions(name: str) -> None:
    pair = workload.pair(name)
    for model in (pair.target, pair.draft):
        assert model.counted_parameters == pytest.approx(model.parameters, rel=0.005), model.title


@pytest.mark.parametrize("name", PAIRS)
def test_sizes_are_what_their_kind_of_quantisation_gives(name: str) -> None:
    pair = workload.pair(name)
    assert pair.target.quantised_gb * 8e9 / pair.target.parameters == pytest.approx(3.85, rel=0.01)
    assert pair.draft.quantised_gb * 8e9 / pair.draft.parameters == pytest.approx(4.85, rel=0.01)


def test_the_six_pairs_of_the_paper_are_there() -> None:
    pairs = [workload.pair(name) for name in PAIRS]
    assert {(pair.target.title.split()[0], pair.draft.title.split(" (")[0]) for pair in pairs} == {
        ("Dolphin", "TinyLlama 1.1B"), ("Dolphin", "Orca 2 7B"), ("Goliath", "Xwin-LM 7B"), ("Goliath", "Xwin-LM 13B"),
        ("Falcon", "Falcon 7B"), ("Falcon", "Falcon 40B"),
    }  # fmt: skip


@pytest.mark.parametrize("name", workload.names("clusters", "cluster"))
def test_every_cluster_loads_and_says_where_its_figures_come_from(name: str) -> None:
    cluster = workload.cluster(name)
    assert all(node.source for node in cluster.nodes)
    assert cluster.link.source


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: workload.cluster("haswell-gigbit"), 'no cluster "haswell-gigbit"; did you mean "haswell-gigabit"?'),
        (lambda: workload.pair("dolphin"), 'no pair "dolphin"'),
    ],
)
def test_an_unknown_name_gets_the_nearest_known_one(call, message: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        call()
    assert str(caught.value).startswith(message)


class Inner(FileEntry, frozen=True):
    """A nested table."""

    width: int = 1


class Outer(FileEntry, frozen=True):
    """A file."""

    title: str
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('titel = "x"', ': unknown key "titel"; did you mean "title"? there are: inner, title'),
        ('title = "x"\n[inner]\nwidht = 2', ': inner: unknown key "widht"; did you mean "width"? there are: width'),
        ('title = "x"\n[inner]\nwidth = "2"', ": inner.width: expected `int`, got `str`"),
        ("", ": object missing required field `title`"),
        ("title = ", ": not TOML: "),
    ],
)
def test_a_bad_file_is_one_line_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "some.toml"
    path.write_text(text)
    with pytest.raises(WorkloadError) as caught:
        load(path, Outer)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"none\.toml: cannot be read: No such file"):
        load(tmp_path / "none.toml", Outer)
