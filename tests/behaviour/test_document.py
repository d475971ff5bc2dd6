"""docs/behaviour.md says what is found."""

from __future__ import annotations

import re

import pytest

from tests.behaviour import document
from tests.behaviour.conftest import Outcomes
from tests.behaviour.fuzz import Result

COMMAND = "make behaviour"


def test_the_document_says_what_is_found(
    request: pytest.FixtureRequest, outcomes: Outcomes, results: dict[str, Result]
) -> None:
    cases = document.cases(outcomes)
    fuzz = document.fuzz({kind: results[kind] for kind in document.COLUMNS})
    if request.config.getoption("--regenerate"):
        document.FILE.write_text(f"{cases}\n{fuzz}")
    written, _, numbers = document.FILE.read_text().partition("\n## Fuzz")
    assert written == cases, f"run: {COMMAND}"
    now, then = (re.findall(r"[\d,]+", text) for text in (fuzz.partition("## Fuzz")[2], numbers))
    assert len(now) == len(then), f"run: {COMMAND}"
    for found, said in zip(now, then, strict=True):
        a, b = (int(n.replace(",", "") or 0) for n in (found, said))
        # a few of those that the requirement's servers wait for reach the API or not
        assert abs(a - b) <= b / 50, f"{said} are {found} now; run: {COMMAND}"
