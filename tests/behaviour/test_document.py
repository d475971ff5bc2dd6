"""docs/behaviour.md says what is found."""

from __future__ import annotations

import re

from tests.behaviour import document
from tests.behaviour.conftest import Outcomes
from tests.behaviour.fuzz import Result

COMMAND = "run: make behaviour"


def numbers(table: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", table)]


def test_the_document_says_what_is_found(outcomes: Outcomes, results: dict[str, Result]) -> None:
    cases, table = document.case_tables(outcomes), document.fuzz_table(results)
    written = document.FILE.read_text()
    assert written.startswith(cases), COMMAND
    for said, found in zip(numbers(written[len(cases) :]), numbers(table), strict=True):
        # whether a few requests that are never completed reach the API is a matter of timing
        assert abs(said - found) <= said / 50, f"{said} are {found} now; {COMMAND}"
