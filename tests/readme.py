"""The table of the settings in docs/configuration.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).resolve().parents[1] / "docs/configuration.md"


class Row(NamedTuple):
    """The cells beside a key, without marks; one with a dash is empty."""

    meaning: str
    default: str
    applies: str


def settings_table() -> dict[str, Row]:
    """Every row by its key; none twice."""
    table = PAGE.read_text().partition("| key | meaning | default | applies by |\n")[2]
    lines = table.partition("\n\n")[0].splitlines()[1:]
    rows = {}
    for line in lines:
        found = re.fullmatch(r"\| `([\w.]+)` \| (.+) \| (.+) \| (.+) \|", line)
        assert found, line
        assert found[1] not in rows, line
        cells = (cell.replace("`", "").replace("\N{EN DASH}", "") for cell in found.groups()[1:])
        rows[found[1]] = Row(*cells)
    return rows
