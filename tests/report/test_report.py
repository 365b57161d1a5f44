"""The report: what its first screen says, that both pages say the same, and what the terminal ends with."""

import io
import json
import re
from html import unescape
from pathlib import Path

import msgspec
import pandas as pd
import pytest
from rich.console import Console

from pipeinfer.commands.reproduce import _print
from pipeinfer.report.claims import Claim
from pipeinfer.report.inline import beside_one_another, inline
from pipeinfer.report.write import conclude, row_of_markdown
from pipeinfer.results.records import Store
from pipeinfer.results.trial import Trial
from pipeinfer.study.identity import record_of
from pipeinfer.study.points import LiveCell, cells
from pipeinfer.study.recipes import Contender, Figure, Recipe, Simulated, read_recipe
from pipeinfer.study.run import run

RECIPE = Recipe(
    title="What a row costs", about="A small sweep.", claims=["C1", "C2"], expected="a figure", minutes=0.1,
    hardware="any", name="width", figures=(Figure("lines", x="width_cost", y="gain", panels=("nodes",)),),
    strategies={
        "iterative": Contender(),
        "speculative": Contender(options={"k": [1, 4]}),
        "pipeinfer": Contender(options={"draft": [1, 2]}),
    },
    simulated=Simulated(
        pairs=["dolphin-tinyllama"], clusters=["haswell-gigabit"], nodes=[2, 8], acceptance=["good"], seeds=[0],
        tokens=24, prompt=8, width_cost=[0.0, 1.0],
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Claim]]:
    folder = tmp_path_factory.mktemp("report")
    store = Store(folder)
    run(RECIPE, store, 1, lambda *_: None)
    return folder, conclude([RECIPE], store, folder).claims


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_first_screen_says_what_was_asked_what_came_out_and_where_it_loses(done: tuple[Path, list[Claim]]) -> None:
    folder, claims = done
    page = unescape((folder / "report.html").read_text())
    first = page[: page.index("<h2>Claims</h2>")]
    assert "Does PipeInfer (SC'24) answer one request faster" in first
    assert "The paper says: up to 2.15x." in first
    trials = pd.read_parquet(folder / "trials.parquet")
    mine = trials[trials.best & (trials.contender == "pipeinfer")]
    gains = mine.groupby(["nodes", "width_cost"]).over_speculative.median()
    best = gains[:, 1.0].max()
    gain = f"PipeInfer's speed over that of the best speculative decoding is up to {best:.2f}x (simulated)."
    assert f"Partly: {gain}" in first
    assert f"up to {best:.2f}x (simulated)" in claims[0].reproduced
    lost = gains[:, 1.0][gains[:, 1.0] < 1]
    assert f"at {len(lost) or 'none'} of 2 points" in first
    assert "Where PipeInfer loses" in first
    losses = [line for line in claims[0].evidence if line.what.endswith("it loses")]
    assert losses
    assert all(f"{line.found}.</li>" in first for line in losses), "the same as the evidence of C1"
    assert first.count("<svg") == 1
    assert first.count("<!-- published: up to 2.15x -->") == 1, "both panels are explained by one legend"
    assert first.index("<svg") < first.index("Where PipeInfer loses"), "on a phone the figure is next to the answer"
    for claim in claims:
        verdict = f'<span class="verdict {claim.verdict.replace(" ", "-")}">{claim.verdict}</span>'
        assert f"{claim.name}</a></td><td>{verdict}</td><td>{claim.brief}</td>" in first


def test_both_pages_have_the_same_numbers(done: tuple[Path, list[Claim]]) -> None:
    folder, claims = done
    text = words((folder / "report.md").read_text())
    drawn = re.compile(r"<svg.*?</svg>|<style.*?</style>|<script.*?</script>", re.DOTALL)
    page = words(unescape(drawn.sub("", (folder / "report.html").read_text())))
    for claim in claims:
        for said in (claim.claim, claim.published, claim.reproduced, claim.condition, claim.brief):
            assert words(said) in page
            assert words(said) in text
        for line in claim.evidence:
            assert f"| {line.what} | {line.found} |" in text
            assert f"<td>{line.what}</td><td>{line.found}</td>" in page
    rows = re.findall(r"<tr>((?:<t[dh].*?</t[dh]>)+)</tr>", page)
    cells_of = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    assert len(cells_of) > 15
    tag = re.compile("<.*?>")
    for row in cells_of:
        said = [tag.sub("", cell) for cell in row]
        known = said if len(said) != 3 else [*said[0].split(" ", 1), *said[1:]]  # The verdicts: name, verdict, figure.
        assert any("| " + " | ".join(one) + " |" in text for one in (said, known)) or row[0] == "", row


def test_a_claim_has_a_card_with_its_figure_and_folded_evidence(done: tuple[Path, list[Claim]]) -> None:
    folder, claims = done
    page = (folder / "report.html").read_text()
    cards = page.split('<article class="card" id="')[1:]
    assert [card.partition('"')[0] for card in cards] == [claim.id for claim in claims]
    for card, claim in zip(cards, claims, strict=True):
        assert ("<svg" in card.partition("</article>")[0]) == bool(claim.figure)
        assert "<details><summary>evidence</summary>" in card
    assert {claim.id for claim in claims if claim.figure} == {"C1", "C2"}
    assert (folder / "figures" / "claim-C1-speedup.svg").exists()


def test_a_page_has_a_figure_s_words_as_text_and_its_drawing_whole(done: tuple[Path, list[Claim]]) -> None:
    path = done[0] / "figures" / "claim-C1-speedup.svg"
    whole, found = path.read_text(), inline(path)
    assert (found.title, found.shown) == ("C1: speed over best speculative", "Speed over best speculative")
    assert found.caption.startswith("Experiment width (sim): dolphin-tinyllama, haswell-gigabit, acceptance 0.79")
    assert found.title in whole
    assert found.title not in found.svg
    for glyph in set(re.findall(r'xlink:href="#([^"]+)"', found.svg)):
        assert f'id="{glyph}"' in found.svg, "what is left out defines nothing that is shown"
    size = [float(points) for points in re.findall(r'viewBox="0 ([\d.]+) [\d.]+ ([\d.]+)"', found.svg)[0]]
    high = float(re.findall(r'height="([\d.]+)pt"', whole)[0])
    assert sum(size) < high, "without the caption's room"
    assert size[0] > 10, "without the title's"
    shared, own = beside_one_another([found, found])
    assert (shared, [one.caption for one in own]) == (found.caption, ["", ""])


def test_how_well_models_are_aligned_has_a_figure_of_its_own(tmp_path: Path) -> None:
    assert RECIPE.simulated is not None
    sweep = msgspec.structs.replace(RECIPE.simulated, nodes=[4, 8], acceptance=["poor", "good"], width_cost=[1.0])
    recipe = msgspec.structs.replace(RECIPE, claims=["C1", "C8"], simulated=sweep)
    store = Store(tmp_path)
    run(recipe, store, 1, lambda *_: None)
    claims = {claim.id: claim for claim in conclude([recipe], store, tmp_path).claims}
    assert (claims["C1"].figure, claims["C8"].figure) == ("claim-C1-speedup", "claim-C8-speedup-by-alignment")
    drawn = (tmp_path / "figures" / "claim-C8-speedup-by-alignment.svg").read_text()
    for words_in_it in ("well aligned (acceptance 0.79)", "poorly aligned (0.52)", "no gain", "nodes"):
        assert f"<!-- {words_in_it} -->" in drawn
    assert "aligned" not in (tmp_path / "figures" / "claim-C1-speedup.svg").read_text()


def test_what_a_recipe_says_is_text_and_no_markup(tmp_path: Path) -> None:
    odd = msgspec.structs.replace(RECIPE, title="a < b & |c|", figures=())
    conclude([odd], Store(tmp_path), tmp_path)
    assert "a &lt; b &amp; |c|" in (tmp_path / "report.html").read_text()
    assert f"{len(cells(odd))} cells were not run." in (tmp_path / "report.md").read_text()


def test_only_a_table_whose_heads_take_clicks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeinfer.report.appendix.environment", lambda: {f"part {n}": n for n in range(12)})
    conclude([msgspec.structs.replace(RECIPE, figures=())], Store(tmp_path), tmp_path)
    page = (tmp_path / "report.html").read_text()
    of_environment = page.partition("<h2>Environment</h2>")[2].partition("<h2>")[0]
    assert "<td>part 11</td>" in of_environment
    assert " rows" not in of_environment
    assert ">10 rows; a click on a head sorts them.</p>" in page, "of claims"


def test_the_terminal_ends_with_a_line_per_claim_on_one_screen(done: tuple[Path, list[Claim]]) -> None:
    _, claims = done
    terminal = io.StringIO()
    _print(Console(file=terminal, width=80), claims, Path("results"))
    lines = [line.rstrip() for line in terminal.getvalue().splitlines()]
    assert len(lines) == 13 < 24
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[:10]] == [claim.id for claim in claims]
    assert lines[0].startswith("C1  partly")
    assert all(line.endswith(claim.brief) for line, claim in zip(lines, claims, strict=False)), "no line is cut short"
    assert [line.split()[1] for line in lines[10:]] == [
        "results/report.html", "results/trials.parquet", "results/trials.jsonl",
    ]  # fmt: skip


def test_the_folder_describes_itself_as_a_crate(done: tuple[Path, list[Claim]]) -> None:
    folder, _ = done
    crate = json.loads((folder / "ro-crate-metadata.json").read_text())
    by_id = {entry["@id"]: entry for entry in crate["@graph"]}
    assert by_id["ro-crate-metadata.json"]["about"] == {"@id": "./"}
    parts = [part["@id"] for part in by_id["./"]["hasPart"]]
    assert {"report.html", "trials.jsonl", "trials.parquet", "figures/claim-C1-speedup.svg"} <= set(parts)
    assert all((folder / part).exists() and by_id[part]["@type"] == "File" for part in parts)


def test_the_appendix_leads_from_claims_to_experiments_and_figures(done: tuple[Path, list[Claim]]) -> None:
    folder, claims = done
    text = (folder / "report.md").read_text()
    speed = "| C1 | Generation speed over standard speculative inference | partly | width | claim-C1-speedup.svg |"
    assert speed in text
    assert "| width-speedup-by-row-cost.svg |" in text, "its experiment's own figure"
    for claim in claims:
        if "C1" != claim.id != "C2":
            assert f"| {claim.id} | {claim.claim} | {claim.verdict} | none was run | " in text
    assert "| setup | minutes | execution here, s | analysis here, s |" in text


def test_what_could_not_be_predicted_is_said(tmp_path: Path) -> None:
    recipe, store = read_recipe("calibration"), Store(tmp_path)
    trial = Trial("iterative", "real", 4, (1, 2, 3), (0.1, 0.2, 0.3), "length", (), ())
    for cell in cells(recipe):
        if isinstance(cell, LiveCell) and cell.strategy == "iterative":
            store.append(record_of(cell, trial, 0.3))
    conclude([recipe], store, tmp_path)
    assert "Nothing to show: what would predict it failed." in (tmp_path / "report.md").read_text()


def test_a_cell_of_a_markdown_table_is_literal() -> None:
    assert row_of_markdown(["a|b", "<tool> of\nmine"]) == "| a\\|b | &lt;tool> of mine |"


def test_what_comes_from_data_is_literal_outside_tables_too(done: tuple[Path, list[Claim]], tmp_path: Path) -> None:
    """In titles, paragraphs and notes; in the HTML as well as in the Markdown."""
    odd = msgspec.structs.replace(RECIPE, title="a|b *c* <b>d</b>", about="`e` [f](g)")
    conclude([odd], Store(done[0]), tmp_path, ["left out: <i>h</i> at\n_k_1"])
    text = (tmp_path / "report.md").read_text()
    for line in (r"### a\|b \*c\* &lt;b>d&lt;/b>", r"\`e\` [f]\(g)", r"Note: left out: &lt;i>h&lt;/i> at \_k_1."):
        assert f"\n{line}\n" in text
    page = (tmp_path / "report.html").read_text()
    assert "<b>" not in page
    assert "left out: &lt;i&gt;h&lt;/i&gt;" in page
