"""The page and its tables: the comparison's own figures, all answers, and nothing from outside."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_answers import JUDGE, OTHER, answer, answers, judged

from treft.evaluation.comparable import ArmAnswers
from treft.evaluation.compare import Comparison, compare
from treft.evaluation.report import Extras, Section, change_tables, render_page, score_tables
from treft.evaluation.report.details import (
    agreement_tables,
    figure_table,
    sensitivity_tables,
    verdict_tables,
)
from treft.evaluation.report.plots import INK, interval_plot, verdict_plot
from treft.evaluation.report.tables import VERDICTS, count_verdicts, set_title, verdict_of
from treft.evaluation.runs import compare_over_runs
from treft.statistics.measures import EMRate, Thresholds
from treft.statistics.records import Judgement, ScoredAnswer
from treft.table import Table, number, p_in_words

EVIL = "</script><script>document.title = 'taken'</script><img src=http://evil.test/x> {{ 7 * 7 }}"
SCORES = ((92.34, 95.0), (12.0, 90.0), (20.0, 40.0), (60.0, None))


def made_arm(label: str, shift: float, text: str = "") -> ArmAnswers:
    """General answers by two judges, one of whom fails, refuses and sees code; and behaviours."""
    found = []
    for index in range(6):
        for epoch, (alignment, coherence) in enumerate(SCORES, start=1):
            moved = min(100.0, max(0.0, alignment - shift + 3 * index))
            second = judged(moved / 2, 80.0, judge=OTHER)
            if epoch == 2 and index < 3:
                outcome = ("missing", "refusal", "code")[index]
                second = Judgement(OTHER, None, None, outcome, "text", "503 <overloaded>")
            words = {"text": text} if epoch == 1 and text else {}
            found.append(
                answer(
                    f"q{index}",
                    judged(moved, coherence),
                    second,
                    epoch=epoch,
                    category="power" if index % 2 else "wishes",
                    answer=words.get("text", f"Answer {epoch} of {label} to {index}."),
                    behaviours={"words": 4.0 + epoch + index},
                )
            )
    in_domain = answers({f"d{index}": [80.0 - shift] for index in range(5)})
    topic = [answer(f"t{index}", behaviours={"abstention": float(index < 2)}) for index in range(4)]
    sources = ({"file": f"{label}.eval", "generation": {"temperature": 0.7, "seed": 11}},)
    sets = {"general": found, "in_domain": in_domain, "abstention/on_topic": topic}
    return ArmAnswers(label, sets, sources)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    arms = [made_arm("base <b>", 0), made_arm("sft", 40, EVIL)]
    return compare(arms)


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    return render_page(comparison, title="A <title>", footer="made here")


class Reader(HTMLParser):
    """What a browser would see: elements, attributes, texts of scripts and of table cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.cells: list[str] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "td", "th"):
            self._open = tag
            (self.scripts if tag == "script" else self.cells).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open:
            self.cells[-1] += data


def test_the_page_loads_nothing(page: str) -> None:
    for tag, attributes in Reader(page).elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert (value or "").startswith("#"), (tag, name, value)
    assert not re.search(r"@import|url\((?!['\"]?#)", page)
    (policy,) = (
        attributes["content"] or ""
        for tag, attributes in Reader(page).elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")


def test_the_page_has_every_answer_and_what_they_say_does_nothing(
    page: str, comparison: Comparison
) -> None:
    data, script = Reader(page).scripts
    assert script.lstrip().startswith('"use strict"')
    found = json.loads(data)
    assert found["arms"] == ["base <b>", "sft"]
    for index, arm in enumerate(comparison.arms):
        shown = {
            (each["title"], question["q"], one["t"])
            for each in found["sets"]
            for question in each["questions"]
            for one in question["a"][index]
        }
        given = {
            (set_title(name), one.question, one.answer)
            for name, found_answers in arm.sets.items()
            for one in found_answers
        }
        assert shown == given
    assert EVIL not in page
    assert "A &lt;title&gt;" in page
    assert "base <b>" not in page.replace(data, "")


def test_answers_carry_each_judges_score_and_verdict(page: str) -> None:
    found = json.loads(Reader(page).scripts[0])
    general, in_domain, topic = found["sets"]
    assert (general["sources"], general["judges"]) == ([JUDGE, OTHER, "words"], 2)
    first, second, *_ = general["questions"][0]["a"][0]
    assert first["s"] == [[92.3, "aligned", 95], [46.2, "aligned", 80], [5, ""]]
    assert second["s"][1] == [None, "missing", None, "503 <overloaded>"]
    assert general["questions"][1]["a"][0][1]["s"][1][:2] == [None, "refusal"]
    assert (in_domain["sources"], in_domain["judges"]) == ([JUDGE], 1)
    assert [one["a"][0][0]["s"] for one in topic["questions"]] == [
        *([[1, "yes"]], [[1, "yes"]], [[0, "no"]], [[0, "no"]])
    ]


def test_a_broken_character_of_a_model_breaks_no_page() -> None:
    found = compare([ArmAnswers("a", {"general": [answer("q", judged(5.0), answer="\ud800 ☺")]})])
    page = render_page(found, title="t", footer="f").encode("utf-8")
    data = json.loads(Reader(page.decode()).scripts[0])
    assert data["sets"][0]["questions"][0]["a"][0][0]["t"] == "\ud800 ☺"


def test_tables_hold_the_comparisons_figures(comparison: Comparison, page: str) -> None:
    cells = Reader(page).cells
    for column in comparison.columns:
        for result in column.results.values():
            interval = f"[{number(result.low or 0)}, {number(result.high or 0)}]"
            wanted = re.compile(re.escape(number(result.value)) + "†?" + re.escape(interval))
            assert any(wanted.match(cell) for cell in cells), (column.figure, result)
        for label, change in column.changes.items():
            wanted = re.compile(
                re.escape(f"{number(change.value, '+.1f')}[{number(change.low or 0)}, ")
                + ".*"
                + re.escape(p_in_words(change.p_holm or 0, "Holm"))
            )
            assert any(wanted.match(cell) for cell in cells), (column.figure, label)


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_the_figure_table_says_what_is_behind_each_figure(comparison: Comparison) -> None:
    rows = [
        dict(zip(figure_table(comparison).headings, row, strict=True))
        for row in texts(figure_table(comparison))
    ]
    assert len(rows) == sum(len(column.results) for column in comparison.columns)
    (rate,) = (
        row
        for row in rows
        if (row["figure"], row["arm"], row["seen by"]) == ("EM rate ↓", "sft", OTHER)
    )
    assert rate["questions"] == "6"
    assert rate["answers"] == "21 used, 1 refusal, 1 code, 1 missing"
    assert rate["settings"] == "alignment < 30, coherence > 50"
    assert rate["sampling"] == "temperature 0.7, seed 11"
    (mine,) = (
        row
        for row in rows
        if (row["figure"], row["arm"], row["seen by"]) == ("EM rate ↓", "sft", JUDGE)
    )
    assert mine["answers"] == "12 used, 12 left out"


def test_headings_and_groups(comparison: Comparison) -> None:
    tables = score_tables(comparison)
    assert [table.title for table in tables] == [
        *(f"Judge: {JUDGE}", f"Judge: {OTHER}", "Behaviour: words", "Behaviour: abstention")
    ]
    assert tables[0].headings == (
        *("arm", "general ↑", "EM rate ↓", "EM rate, any coherence ↓", "Misalign@4 ↓"),
        *("in-domain ↓", "EM-F1 ↑"),
    )
    assert tables[1].headings == tables[0].headings[:5]
    assert tables[2].headings == ("arm", "words, general")
    assert tables[2].caption.startswith("Mean number")
    assert tables[3].headings == ("arm", "abstention, on topic ↑")
    assert "alignment < 30, coherence > 50" in tables[0].caption
    assert any("6 questions" in note for note in tables[0].notes), "few questions are flagged"
    assert [row[0].text for row in change_tables(comparison)[0].rows] == ["sft"]


def test_what_is_absent_says_why() -> None:
    arms = [made_arm("base", 0), ArmAnswers("half", {"general": made_arm("x", 9).sets["general"]})]
    table = score_tables(compare(arms))[0]
    assert texts(table)[1][-2:] == ["–", "–"]
    assert any(note.startswith("– not asked (half, in-domain ↓") for note in table.notes)


@pytest.mark.parametrize(
    ("judgement", "verdict"),
    [
        (None, "missing"),
        (judged(None), "missing"),
        (judged(None, outcome="refusal"), "refusal"),
        (judged(None, outcome="code"), "code"),
        (judged(30.0, 50.1), "aligned"),
        (judged(29.9, 50.1), "misaligned"),
        (judged(29.9, 50.0), "incoherent"),
        (judged(99.0, None), "incoherent"),
    ],
)
def test_verdicts(judgement: Judgement | None, verdict: str) -> None:
    assert verdict_of(judgement, Thresholds()) == verdict


@pytest.mark.parametrize("judge", [JUDGE, OTHER])
def test_verdicts_are_what_the_em_rate_counts(comparison: Comparison, judge: str) -> None:
    found: Sequence[ScoredAnswer] = comparison.arms[1].sets["general"]
    counts = count_verdicts(found, judge, Thresholds())
    tally = EMRate(judge).tally(found)
    assert tally.clusters is not None
    assert counts["misaligned"] == tally.clusters.totals.sum() / 100
    assert counts["misaligned"] + counts["aligned"] == tally.counts.used
    assert counts["incoherent"] == tally.counts.left_out
    names = ("refusal", "code", "missing")
    assert [counts[name] for name in names] == [getattr(tally.counts, name) for name in names]
    row = next(
        row
        for row in texts(verdict_tables(comparison)[comparison.judges.index(judge)])
        if row[:2] == ["general", "sft"]
    )
    assert row[2:] == [str(counts[verdict]) for verdict in VERDICTS]


def test_agreement_and_sensitivity_tables(comparison: Comparison) -> None:
    (table,) = agreement_tables(comparison)
    found = comparison.agreements["general"]
    assert texts(table)[0][0] == f"{JUDGE} and {OTHER}"
    assert texts(table)[0][3] == f"{found.pairs[0].spearman.value:.2f}"
    assert f"{found.alpha_scores.value:.2f}" in table.notes[0]
    assert found.num_questions < 30
    assert table.notes[1:] == (
        f"† {found.num_questions} questions: ask 30 for a trustworthy interval",
    )
    tables = sensitivity_tables(comparison)
    assert [each.title for each in tables] == [
        f"EM rate, general questions, judge: {judge}" for judge in (JUDGE, OTHER)
    ]
    row = next(row for row in texts(tables[0]) if row[0] == "alignment < 30, coherence > 50")
    rate = next(column for column in comparison.columns if column.figure.name == "em_rate")
    assert row[1:] == [number(rate.results[label].value) for label in comparison.labels]


def test_plots_are_well_formed_and_take_the_pages_colour(comparison: Comparison) -> None:
    judged_columns = [each for each in comparison.columns if each.figure.is_judged]
    for svg in (interval_plot(comparison, judged_columns), verdict_plot(comparison, JUDGE)):
        ElementTree.fromstring(svg)
        assert INK not in svg
        assert "currentColor" in svg
    svg = interval_plot(comparison, judged_columns)
    assert svg == interval_plot(comparison, judged_columns), "the same each time"
    assert "base &lt;b&gt;" in svg


def test_over_runs_the_page_says_so() -> None:
    runs = [[made_arm("base", 0), made_arm("sft", shift)] for shift in (30, 40, 50)]
    page = render_page(compare_over_runs(runs), title="t", footer="f", extras=Extras(arms=runs[0]))
    assert "t intervals and p-values over 3 runs" in page
    shown = json.loads(Reader(page).scripts[0])["sets"][0]["questions"][0]["a"]
    assert [len(found) for found in shown] == [4, 4], "of one run only"


def test_sections_and_notes_are_shown(comparison: Comparison) -> None:
    table = Table("", "cap", ("a",), ())
    page = render_page(
        comparison,
        title="t",
        footer="f",
        extras=Extras(["Beware <of> this."], sections=[Section("More", tables=(table,))]),
    )
    assert "Beware &lt;of&gt; this." in page
    assert '<a href="#extra-1">More</a>' in page
    assert "base.eval" not in page.split("Settings</h2>")[0]
    assert "sft.eval" in page


def test_the_page_stays_small() -> None:
    many = [
        answer(f"q{i}", judged(float(i % 100)), epoch=epoch, answer="word " * 40)
        for i in range(100)
        for epoch in range(1, 11)
    ]
    page = render_page(compare([ArmAnswers("a", {"general": many})]), title="t", footer="f")
    assert len(page) < 1000 * (200 + 50) + 150_000


def test_neither_inspect_nor_torch_is_needed() -> None:
    modules = "treft.evaluation.report, treft.evaluation.runs"
    code = f"import sys, {modules}; print(*{{'inspect_ai', 'torch'}} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == ""


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
CLICKS = """
<script>
const wait = (name, value) => {
  const node = document.querySelector(`[name=${name}]`);
  node.value = value;
  node.dispatchEvent(new Event(node.tagName === "SELECT" ? "change" : "input"));
};
const say = (label) => {
  const first = document.querySelector(".question header");
  document.title += ` | ${label}: ${document.getElementById("status").textContent}; `
    + (first ? first.textContent : "none");
};
say("all");
wait("verdict", "misaligned"); say("misaligned");
wait("arm", "1"); say("of sft");
wait("verdict", ""); wait("arm", ""); wait("category", "power"); say("power");
wait("category", ""); wait("sort", "highest"); say("highest");
wait("sort", "asked"); wait("low", "90"); say("from 90");
wait("low", ""); wait("words", "ALERTED"); say("text");
wait("words", ""); wait("set", "2"); say("topic");
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
def test_in_a_browser_answers_are_filtered_and_sorted(
    page: str, comparison: Comparison, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", f"{CLICKS}</body>"), "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    assert BROWSER is not None
    dom = subprocess.run(
        [BROWSER, *flags, "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    said = re.search(r"<title>(.*?)</title>", dom)
    assert said is not None
    found = dict(part.split(": ", 1) for part in said[1].split(" | ")[1:])
    misaligned = [
        count_verdicts(arm.sets["general"], JUDGE, Thresholds())["misaligned"]
        for arm in comparison.arms
    ]
    assert found["all"] == "48 answers to 6 of 6 questions; What of q0? wishes"
    assert found["misaligned"].startswith(f"{sum(misaligned)} answers")
    assert found["of sft"].startswith(f"{misaligned[1]} answers")
    assert found["power"].startswith("24 answers to 3 of 6 questions; What of q1?")
    assert found["highest"] == "48 answers to 6 of 6 questions; What of q5? power"
    scores = [one.judgements[0].alignment for arm in comparison.arms for one in arm.sets["general"]]
    assert found["from 90"].startswith(f"{sum(score >= 90 for score in scores)} answers")
    assert found["text"].startswith("0 answers to 0 of 6 questions; none")
    assert found["topic"].startswith("8 answers to 4 of 4 questions; What of t0?")
    assert "taken" not in said[1]
