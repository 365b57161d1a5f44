"""Plug-in lookup, on distributions that exist only in a temporary folder."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeinfer import plugins
from pipeinfer.plugins import BACKENDS, STRATEGIES, TRANSPORTS, BrokenPlugin, UnknownPlugin
from pipeinfer.runtime.transports import TransportError, open_transport

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution with entry points, modules and metadata lines on the path."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, entry_points: str, metadata: str = "", **modules: str) -> None:
        for module, source in modules.items():
            (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n{metadata}")
        (info / "entry_points.txt").write_text(entry_points)

    return put


def test_a_plug_in_is_loaded_by_name(install: Install) -> None:
    install("stranger", "[pipeinfer.backends]\nabacus = stranger_abacus:Abacus", stranger_abacus="class Abacus: pass")
    assert plugins.load(BACKENDS, "abacus").__name__ == "Abacus"
    assert "abacus" in plugins.names(BACKENDS)
    assert "abacus" not in plugins.names(STRATEGIES)


def test_nothing_is_imported_before_it_is_named(install: Install) -> None:
    install("stranger", "[pipeinfer.backends]\nloud = stranger_loud:Loud", stranger_loud="raise SystemExit")
    assert "loud" in plugins.names(BACKENDS)


def test_an_unknown_name_gets_the_nearest_and_the_list(install: Install) -> None:
    install("stranger", "[pipeinfer.backends]\nabacus = stranger_abacus:Abacus\nzebra = stranger_abacus:Abacus")
    with pytest.raises(UnknownPlugin, match=r'^no backend "abbacus"; did you mean "abacus"\? installed: .*zebra'):
        plugins.load(BACKENDS, "abbacus")
    with pytest.raises(UnknownPlugin, match=r'^no backend "qqqqqq"; installed: abacus, '):
        plugins.load(BACKENDS, "qqqqqq")


def test_without_any_metadata_the_checkout_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda **_: ())
    monkeypatch.setattr("sys.path", [*sys.path, "/somewhere/else"])  # what was found so far is not looked for again
    with pytest.raises(UnknownPlugin, match=r"`pip install -e \.`"):
        plugins.load(TRANSPORTS, "tcp")


@pytest.mark.parametrize(
    ("metadata", "remedy"),
    [
        ("Provides-Extra: abacus\n", r"pip install stranger\[abacus\]"),
        ('Provides-Extra: fast\nRequires-Dist: bead-works>=3; extra == "fast"\n', r"pip install stranger\[fast\]"),
        ("", "pip install bead_works"),
    ],
)
def test_a_missing_dependency_names_what_to_install(install: Install, metadata: str, remedy: str) -> None:
    install(
        "stranger",
        "[pipeinfer.backends]\nabacus = stranger_beads:Abacus",
        metadata,
        stranger_beads="import bead_works.frame",
    )
    with pytest.raises(BrokenPlugin, match=f'^backend "abacus" does not load: .*bead_works.*; run `{remedy}`$'):
        plugins.load(BACKENDS, "abacus")


@pytest.mark.parametrize("source", ["1 / 0", "syntax error", "Other = 1", "raise OSError('no\\nlibrary')"])
def test_a_plug_in_that_fails_otherwise_says_how_in_one_line(install: Install, source: str) -> None:
    module = f"stranger_{abs(hash(source))}"
    install("stranger", f"[pipeinfer.transports]\npigeon = {module}:Pigeon", **{module: source})
    with pytest.raises(BrokenPlugin, match=r'^transport "pigeon" does not load: \w+: .*$') as broken:
        plugins.load(TRANSPORTS, "pigeon")
    assert "\n" not in str(broken.value)


def test_a_plug_in_whose_module_is_gone_is_to_be_reinstalled(install: Install) -> None:
    install("stranger", "[pipeinfer.strategies]\nluck = stranger_gone:Luck")
    with pytest.raises(BrokenPlugin, match="reinstall stranger"):
        plugins.load(STRATEGIES, "luck")


def test_two_distributions_may_not_share_a_name(install: Install) -> None:
    install("one", "[pipeinfer.backends]\nabacus = one:Abacus")
    install("two", "[pipeinfer.backends]\nabacus = two:Abacus")
    with pytest.raises(BrokenPlugin, match="offered by one and two; uninstall all but one"):
        plugins.load(BACKENDS, "abacus")


def test_installed_lists_each_with_its_state(install: Install) -> None:
    install(
        "stranger",
        "[pipeinfer.backends]\na = stranger_a:A\nb = stranger_b:B\nc = stranger_c:C",
        stranger_a="class A: pass",
        stranger_b="import bead_works",
        stranger_c="1 / 0",
    )
    assert [plugin for plugin in plugins.installed() if plugin.distribution == "stranger"] == [
        (BACKENDS, "a", "stranger", "1.2", "ok"),
        (BACKENDS, "b", "stranger", "1.2", "missing bead_works; run `pip install bead_works`"),
        (BACKENDS, "c", "stranger", "1.2", "broken: ZeroDivisionError: division by zero"),
    ]


def test_a_uri_opens_a_transport_by_its_scheme(install: Install) -> None:
    install(
        "stranger",
        "[pipeinfer.transports]\npigeon = stranger_pigeon:Pigeon",
        stranger_pigeon="def Pigeon(address, rank, *, seeds): return address, rank, seeds",
    )
    opened: object = open_transport("pigeon://loft", 3, seeds=7)
    assert opened == ("pigeon://loft", 3, 7)
    with pytest.raises(TypeError, match="corn"):
        open_transport("pigeon://loft", 3, seeds=7, corn=1)
    with pytest.raises(UnknownPlugin, match='did you mean "pigeon"'):
        open_transport("pidgeon://loft", 3)
    with pytest.raises(TransportError, match="is not a transport address"):
        open_transport("loft", 3)


FAULTY = """
class Faulty:
    def __init__(self, count: int, where: str | None = None):
        if count:
            len(count)
"""


def test_a_wrong_option_is_the_user_s_and_a_fault_inside_is_not(install: Install) -> None:
    install("stranger", "[pipeinfer.backends]\nfaulty = stranger_faulty:Faulty", stranger_faulty=FAULTY)
    with pytest.raises(ValueError, match=r"^backend \"faulty\": missing a required argument: 'count'$"):
        plugins.open_backend("faulty", {})
    with pytest.raises(ValueError, match="where = 5: expected text"):
        plugins.open_backend("faulty", {"count": 0, "where": 5})
    assert plugins.open_backend("faulty", {"count": 0, "where": None}) is not None
    with pytest.raises(TypeError, match="has no len"):
        plugins.open_backend("faulty", {"count": 1})
