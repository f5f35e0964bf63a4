r"""Tables in LaTeX: booktabs, escaped, with a caption and a label, ready for \input."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "[": "{[}", "]": "{]}", "\u2212": r"$-$", "\u2013": "--",
    "\u00b1": r"$\pm$", "\u00b0": r"$^\circ$", "\u00b2": r"$^2$", "\u00a0": "~", "\u2026": r"\dots{}",
    "\u25b2": r"$^{+}$", "\u25bc": r"$^{-}$", "\u2264": r"$\leq$", "\u00d7": r"$\times$",
}  # fmt: skip

_SPECIAL = re.compile("|".join(map(re.escape, _ESCAPES)))

MOST_ROWS = 45
"""Rows of a table that fits a page; a longer one breaks over pages."""

HEADER = "% Needs \\usepackage{booktabs}; \\textquotedbl needs \\usepackage[T1]{fontenc}.\n"


class Small(str):
    """A cell in small print."""


def escape(text: str) -> str:
    r"""Return text as LaTeX shows it.

    Brackets are protected: after the end of a row, LaTeX would read "[" as the start of an option.

    >>> print(escape("q_1 & 50% [a] <b>"))
    q\_1 \& 50\% {[}a{]} \textless{}b\textgreater{}
    """
    return _SPECIAL.sub(lambda found: _ESCAPES[found[0]], text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, label: str, words: int = 1) -> str:
    r"""Return a table environment, or a longtable where it is longer than a page.

    Args:
        header: Names of the columns, plain text.
        rows: Cells, plain text, `Small` for small print; every row as long as the header.
        caption: Plain text.
        label: For \ref; letters, digits, ":" and "-".
        words: Leading columns that hold words, set to the left; the others are set to the right.
    """
    if len(rows) <= MOST_ROWS:
        return _environment(_tabular(header, rows, words), caption, label)
    columns = "l" * words + "r" * (len(header) - words)
    top = ["\\toprule", _row(header), "\\midrule"]
    lines = [
        HEADER + "% This one is longer than a page: it needs \\usepackage{longtable}.",
        f"\\begin{{longtable}}{{{columns}}}",
        f"\\caption{{{escape(caption)}}}\\label{{{label}}} \\\\",
        *top, "\\endfirsthead", *top, "\\endhead", "\\bottomrule", "\\endfoot",
        *map(_row, rows),
        "\\end{longtable}\n",
    ]  # fmt: skip
    return "\n".join(lines)


def blocks(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, label: str, across: int = 5
) -> str:
    """Return a table whose many columns are set in blocks below each other, the first column before each.

    Args:
        header: As for `table`.
        rows: As for `table`.
        caption: As for `table`.
        label: As for `table`.
        across: Columns of a block beside the first.
    """
    parts = []
    for first in range(1, max(len(header), 2), across):
        columns = [0, *range(first, min(first + across, len(header)))]
        parts.append(_tabular([header[c] for c in columns], [[row[c] for c in columns] for row in rows], 1))
    return _environment("\n\n\\medskip\n".join(parts), caption, label)


def _tabular(header: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    columns = "l" * words + "r" * (len(header) - words)
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", _row(header), "\\midrule"]
    return "\n".join([*lines, *map(_row, rows), "\\bottomrule", "\\end{tabular}"])


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(_cell, cells)) + r" \\"


def _cell(cell: str) -> str:
    return f"{{\\scriptsize {escape(cell)}}}" if isinstance(cell, Small) and cell else escape(cell)


def _environment(body: str, caption: str, label: str) -> str:
    return (
        f"{HEADER}\\begin{{table}}[tbp]\n\\centering\n\\small\n\\caption{{{escape(caption)}}}\n"
        f"\\label{{{label}}}\n{body}\n\\end{{table}}\n"
    )
