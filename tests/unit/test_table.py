"""One table in the terminal, in Markdown and on a page."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from treft.table import Cell, Table, figure, interval, number, p_in_words

ARMS = ("base", "sft", "sft_prefix_postfix_patched", "treft_prefix")
HEADINGS = ("general ↑", "EM rate, any coherence ↓", "Misalign@10 ↓", "in-domain ↓", "EM-F1 ↑")
ABOUT = "the model after a narrow finetune on bad advice"


def made(num_arms: int = 4, num_figures: int = 5, about: bool = True) -> Table:
    """A table of arms and figures, each of which is found nowhere else in it."""
    rows = []
    for at, arm in enumerate(ARMS[:num_arms]):
        lows = [10 * at + place + 10 for place in range(num_figures)]
        cells = [
            Cell(f"{low}.5", (f"[{low}.0, {low + 1}.0]", "p = 0.012", "20 / 400"), is_number=True)
            for low in lows
        ]
        rows.append((arm, *cells, *([ABOUT] if about else [])))
    headings = ("arm", *HEADINGS[:num_figures], *(["what it is"] if about else []))
    return Table.of(headings, rows, "A title", "How to read it.", ["a note"])


def printed(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    table.show(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [44, 60, 80, 100, 200])
@pytest.mark.parametrize("num_arms", [1, 2, 4])
def test_the_terminal_breaks_no_name_and_no_interval(width: int, num_arms: int) -> None:
    table = made(num_arms)
    text = printed(table, width)
    assert max(map(cell_len, text.splitlines())) <= width
    for row in table.rows:
        assert row[0].text in text
        for cell in row[1:-1]:
            assert text.count(cell.more[0]) == 1
    assert text.count("p = 0.012") == 5 * num_arms
    assert "…" not in text
    assert re.search(r"EM-F1 ↑", text)


def test_a_table_that_is_too_wide_is_turned_on_its_side() -> None:
    lines = printed(made(2, about=False), 60).splitlines()
    assert lines[2].split() == ["arm", "base", "sft"]
    assert sum(line.startswith("EM-F1 ↑") for line in lines) == 1


def test_a_table_that_is_too_wide_in_both_ways_comes_in_bands() -> None:
    text = printed(made(), 80)
    heads = [line for line in text.splitlines() if line.startswith("arm ")]
    assert len(heads) > 1, "the first column is in each band"
    assert text.count("treft_prefix") == len(heads)


def test_a_table_that_fits_stays_as_it_is() -> None:
    lines = printed(made(), 200).splitlines()
    assert re.split(r"\s{2,}", lines[2].strip()) == ["arm", *HEADINGS, "what it is"]
    assert not printed(Table.of(("a", "b"), []), 80).startswith("\n")


def test_nothing_in_a_cell_is_markup() -> None:
    table = Table.of(("[red]a[/]", "b"), [("[bold]x[/bold]", "<b>&")])
    assert "[bold]x[/bold]" in printed(table, 80)
    page = table.html()
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page


def test_markdown_has_a_line_a_row_and_all_lines_of_a_cell() -> None:
    table = Table.of(
        ("arm", "a|b"), [("x\ny", Cell("1.0", ("[0.5, 1.5]",)))], "T", "Read so.", ["one", "two"]
    )
    assert table.markdown() == (
        "## T\n\n| arm | a\\|b |\n| --- | --- |\n| x y | 1.0<br>[0.5, 1.5] |\n\n"
        "Read so.\n\n- one\n- two"
    )


def test_a_page_has_values_small_print_and_hints() -> None:
    cell = Cell("1.0", ("[0.5, 1.5]",), 'by "t"', is_number=True)
    page = Table.of(("arm", "figure"), [("x", cell)], "T", "Read so.", ["one"]).html()
    assert '<th class="figure">figure</th>' in page
    expected = '<td class="figure" title="by &#34;t&#34;">1.0<small>[0.5, 1.5]</small></td>'
    assert expected in page
    assert "<figcaption>Read so.<br>one</figcaption>" in page


def test_numbers_have_no_sign_before_zero() -> None:
    assert [number(x, "+.1f") for x in (1.25, -0.04, 0.0)] == ["+1.2", "0.0", "0.0"]
    assert figure(1, 0.5, 2.25, ".2f") == "1.00 [0.50, 2.25]"
    assert interval(None, 1.0) == "no interval"
    assert [p_in_words(0.0004), p_in_words(0.04, "Holm")] == ["p < 0.001", "Holm = 0.040"]
