"""A table told once and shown in three places: the terminal, Markdown and a page.

A cell has a value and further lines (its interval, a p-value, numbers behind it). In the terminal
no name and no interval is ever broken: headings and texts wrap at spaces, a table that is still too
wide is turned on its side, and one too wide that way is shown in bands of columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from rich.box import HORIZONTALS
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

ABSENT = "–"
"""Stands where there is no value."""

GAP = 2
"""Columns of the terminal between two columns of a table."""

UNBROKEN = re.compile(r"\S*\[[^\]]*\]\S*|\w+ [<=] \S+|\S+(?: [↑↓])?")
"""What no line break goes through: an interval, a p-value, a word with the arrow behind it."""

LEAST_TEXT = 20
"""Columns of the terminal that a text gets at least, if it is as long."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: The value.
        more: Further lines, in small print on a page: interval, p-value, numbers.
        hint: What a page shows on demand.
        is_number: Whether the cell is set to the right.
    """

    text: str
    more: tuple[str, ...] = ()
    hint: str = ""
    is_number: bool = False

    @property
    def lines(self) -> tuple[str, ...]:
        """All lines of the cell."""
        return (self.text, *self.more)


@dataclass(frozen=True)
class Table:
    """A table with what is needed to read it.

    Attributes:
        title: What stands above it; may be empty.
        caption: How it is read.
        headings: One for each column.
        rows: Cells, as many in each row as there are headings.
        notes: What stands below it.
    """

    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        headings: Iterable[str],
        rows: Iterable[Iterable[Cell | str]],
        title: str = "",
        caption: str = "",
        notes: Iterable[str] = (),
    ) -> Table:
        """Returns a table of cells; a plain string is a cell of text.

        Args:
            headings: One for each column.
            rows: Cells or strings, as many in each row as there are headings.
            title: What stands above the table.
            caption: How it is read.
            notes: What stands below it.
        """
        cells = tuple(
            tuple(Cell(one) if isinstance(one, str) else one for one in row) for row in rows
        )
        return cls(title, caption, tuple(headings), cells, tuple(notes))

    def markdown(self) -> str:
        """Returns the table in Markdown, with its title as a heading of the second level."""
        lines = [self.headings, ("---",) * len(self.headings)]
        lines += [tuple("<br>".join(cell.lines) for cell in row) for row in self.rows]
        grid = "\n".join(f"| {' | '.join(map(_markdown, line))} |" for line in lines)
        title = f"## {self.title}" if self.title else ""
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join(filter(None, (title, grid, self.caption, notes)))

    def html(self) -> Markup:
        """Returns the table as an element of a page, with all text escaped."""
        head = Markup("").join(
            _element("th", Cell(heading, is_number=any(row[at].is_number for row in self.rows)))
            for at, heading in enumerate(self.headings)
        )
        body = Markup("\n").join(
            Markup("<tr>{}</tr>").format(
                Markup("").join(_element("td" if at else "th", cell) for at, cell in enumerate(row))
            )
            for row in self.rows
        )
        below = Markup("<br>").join(filter(None, (self.caption, *self.notes)))
        return Markup(
            '<figure>{}<div class="wide"><table><thead><tr>{}</tr></thead>\n'
            "<tbody>\n{}\n</tbody></table></div>{}</figure>"
        ).format(_around("h3", self.title), head, body, _around("figcaption", below))

    def show(self, console: Console) -> None:
        """Prints the table to a terminal of any width; no text is read as markup."""
        if self.title:
            console.print(Text(f"\n{self.title}", style="italic"))
        bands = _fitted(self.headings, self.rows, console.width)
        for at, (headings, rows) in enumerate(bands):
            if at:
                console.print()
            console.print(_drawn(headings, rows, console.width))
        for line in filter(None, (self.caption, *self.notes)):
            console.print(Text(line, style="dim"))


def number(value: float, form: str = ".1f") -> str:
    """Returns a number as `form` has it, without a sign before zero."""
    text = format(value, form)
    return format(0.0, form.lstrip("+")) if float(text) == 0 else text


def interval(low: float | None, high: float | None, form: str = ".1f") -> str:
    """Returns `[low, high]`, or that there is none."""
    if low is None or high is None:
        return "no interval"
    return f"[{number(low, form)}, {number(high, form)}]"


def figure(value: float, low: float | None, high: float | None, form: str = ".1f") -> str:
    """Returns a value with its interval in one line, such as `12.3 [10.1, 14.5]`."""
    return f"{number(value, form)} {interval(low, high, form)}"


def p_in_words(p_value: float, name: str = "p") -> str:
    """Returns `p = 0.031`: three decimals, or that it is below 0.001."""
    return f"{name} < 0.001" if p_value < 0.001 else f"{name} = {p_value:.3f}"


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _element(tag: str, cell: Cell) -> Markup:
    kind = Markup(' class="figure"') if cell.is_number else ""
    hint = Markup(' title="{}"').format(cell.hint) if cell.hint else ""
    small = Markup("").join(_around("small", line) for line in cell.more)
    return Markup("<{0}{1}{2}>{3}{4}</{0}>").format(Markup(tag), kind, hint, cell.text, small)


def _around(tag: str, text: str) -> Markup:
    """Returns an element around text, which may be markup; nothing around nothing."""
    return Markup("<{0}>{1}</{0}>").format(Markup(tag), text) if text else Markup("")


Rows = Sequence[Sequence[Cell]]


def _fitted(
    headings: Sequence[str], rows: Rows, width: int
) -> Iterator[tuple[Sequence[str], Rows]]:
    """Yields the table as it is, on its side, or in bands of columns, whichever is first to fit."""
    if _fits(headings, rows, width) or not rows:
        yield headings, rows
        return
    turned = [headings[0], *(row[0].text for row in rows)]
    columns = [
        [Cell(heading), *(row[at] for row in rows)]
        for at, heading in enumerate(headings[1:], start=1)
    ]
    if columns and _fits(turned, columns, width):
        yield turned, columns
        return
    start = 1
    while start < len(headings):
        end = start + 1
        while end < len(headings) and _fits(*_band(headings, rows, start, end + 1), width):
            end += 1
        yield _band(headings, rows, start, end)
        start = end


def _band(headings: Sequence[str], rows: Rows, start: int, end: int) -> tuple[Sequence[str], Rows]:
    """Returns the first column beside some of the others."""
    kept = [0, *range(start, end)]
    return [headings[at] for at in kept], [[row[at] for at in kept] for row in rows]


def _fits(headings: Sequence[str], rows: Rows, width: int) -> bool:
    least, _ = _least_and_wanted(headings, rows)
    return sum(least) + GAP * (len(least) - 1) <= width


def _least_and_wanted(headings: Sequence[str], rows: Rows) -> tuple[list[int], list[int]]:
    """Returns what each column needs broken where it may be, and not broken at all."""
    least, wanted = [], []
    for at, heading in enumerate(headings):
        cells = [row[at] for row in rows]
        texts = [line for cell in cells if not cell.is_number for line in cell.lines]
        lines = [heading, *(line for cell in cells for line in cell.lines)]
        parts = [part for line in lines for part in UNBROKEN.findall(line)]
        least.append(max(_longest(parts), min(_longest(texts), LEAST_TEXT)))
        wanted.append(_longest(lines))
    return least, wanted


def _longest(lines: Iterable[str]) -> int:
    return max((cell_len(part) for line in lines for part in line.split("\n")), default=0)


def _drawn(headings: Sequence[str], rows: Rows, width: int) -> RichTable:
    widths = _widths(headings, rows, width)
    many = any(
        cell.more or cell_len(cell.text) > most
        for row in rows
        for cell, most in zip(row, widths, strict=True)
    )
    shown = RichTable(
        box=HORIZONTALS,
        show_lines=many,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for at, (heading, most) in enumerate(zip(headings, widths, strict=True)):
        is_number = any(row[at].is_number for row in rows)
        head = _text(Cell(heading, is_number=is_number), most)
        shown.add_column(head, width=most, overflow="fold")
    for row in rows:
        shown.add_row(*(_text(cell, most) for cell, most in zip(row, widths, strict=True)))
    return shown


def _widths(headings: Sequence[str], rows: Rows, width: int) -> list[int]:
    """Returns the least width of each column, and what is over where it saves most breaks."""
    widths, wanted = _least_and_wanted(headings, rows)
    over = width - sum(widths) - GAP * (len(widths) - 1)
    while over > 0 and widths != wanted:
        lacking = [want - has for want, has in zip(wanted, widths, strict=True)]
        # A short lack is filled first: an interval beside its value before a long description.
        at = min((lack, at) for at, lack in enumerate(lacking) if lack)[1]
        given = min(over, lacking[at])
        widths[at] += given
        over -= given
    return widths


def _text(cell: Cell, width: int) -> Text:
    lines = (part for line in cell.lines for part in _wrapped(line, width))
    return Text("\n".join(lines), justify="right" if cell.is_number else "left")


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Yields lines of at most so many columns, unless a part that cannot be broken is longer."""
    for paragraph in text.split("\n"):
        line = ""
        for part in UNBROKEN.findall(paragraph):
            if line and cell_len(line) + 1 + cell_len(part) > width:
                yield line
                line = part
            else:
                line = f"{line} {part}" if line else part
        yield line
