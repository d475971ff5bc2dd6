"""docs/behaviour.md: what the suite found, side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.behaviour import cases, fuzz
from tests.behaviour.cases import Case, Outcome
from tests.behaviour.corpus import COUNT, KEPT, SEED
from tests.behaviour.fuzz import EVERY, Result
from tests.behaviour.proxies import OURS, REQUIRED
from tests.behaviour.table import CASES

FILE: Final = Path(__file__).parents[2] / "docs/behaviour.md"
COLUMNS: Final = (*OURS, *REQUIRED)
TITLES: Final = "nginx | Apache | required nginx | required Apache"

_HELD: Final = """## Connections that never finish

1,100 of them at once, each opened anew when the server has closed it, from an address that is let
in, and two scrapes a second meanwhile, each with a connection of its own and a patience of 10 s.
`tests/behaviour/test_limits.py` does that at both servers. The numbers are of one run by hand on
Debian 13's servers, two busy cores, 20 s each: scrapes that failed, and how long the slowest of the
others took. *Before*: 512 connections for each nginx worker, 128 threads of Apache, 10 s for a
handshake and for a header.

| held | nginx before | nginx | Apache before | Apache |
| --- | --- | --- | --- | --- |
| at three bytes of a handshake | 37 of 39 | 0 of 40, 0.04 s | 39 of 40 | 0 of 39, 1.6 s |
| at half a header | 15 of 40 | 0 of 40, 0.03 s | 39 of 40 | 0 of 39, 1.6 s |
| memory they take | 60 MB | 90 MB | 20 MB | 190 MB |

nginx did as well with 3,800 (240 MB), where two workers end; Apache with 1,450 (230 MB), and with
3,000 of them 14 of 39 scrapes failed.
"""

NONE: Final = "-"
"""A case that a proxy has not."""

_HEAD: Final = """# Behaviour

For whoever judges what reaches the API, and who else gets an answer.

Written by `make behaviour` from what `tests/behaviour` found; a test fails where it does not hold.

Every case was sent as raw bytes to nginx and Apache, started as the sandbox starts them, and to
the two configurations that the requirement sketched, made to load (`tests/behaviour/required/`).
Debian 13's own nginx and Apache, run in the tree that the declared machine boots from, give the
same answers as those of the machine that wrote this, and let as little of the fuzz through.
The configurations for people without Pulumi (`ops/proxy/`) answer as the others of their server
do; they have no `/metrics/proxy`.

A cell is the status of the answer, or how the connection ended (`open`: it was still waiting when
we gave up; `cut`: less came than was announced). Behind an arrow is what reached the API and
should not have: another method or path, a body, a header that is not listed, or a request without
the token. From nginx and Apache, only a GET or HEAD of a listed document ever reached it, with
the token, no body and only listed headers.
"""


def _table(rows: list[str], *titles: str) -> list[str]:
    head = " | ".join(titles)
    return [f"| {head} |", "|" + " --- |" * (head.count("|") + 1), *rows, ""]


def _cell(case: Case, kind: str, outcomes: Mapping[str, Mapping[Case, Outcome]]) -> str:
    return _escaped(str(outcomes[kind][case])) if kind in case.kinds else NONE


def _escaped(text: str) -> str:
    """Text for a cell, in ASCII."""
    text = text.replace("|", "\\|")
    return re.sub(r"[^ -~→]", lambda found: f"\\x{ord(found[0]):02x}", text)


def case_tables(outcomes: Mapping[str, Mapping[Case, Outcome]]) -> str:
    """The document as far as it is the same in every run."""
    lines = [_HEAD]
    for group in dict.fromkeys(case.group for case in CASES):
        rows = [
            f"| {_escaped(case.name)} | "
            + " | ".join(_cell(case, kind, outcomes) for kind in COLUMNS)
            + f" | {case.why} |"
            for case in CASES
            if case.group == group
        ]
        lines += [f"## {group}\n", *_table(rows, "case", TITLES, "why nginx and Apache differ")]
    return "\n".join([*lines, _HELD, ""])


def fuzz_table(all_results: Mapping[str, Result]) -> str:
    """The numbers of the fuzz."""
    results = {kind: all_results[kind] for kind in COLUMNS}
    rows = {
        "sent": [r.sent for r in results.values()],
        "scrapes in between that got the document": [r.scrapes["200"] for r in results.values()],
        "reached the API": [len(r.reached) for r in results.values()],
        "**of those, forbidden**": [r.forbidden()["any"] for r in results.values()],
        "with another method": [r.forbidden()["method"] for r in results.values()],
        "with another path or a query": [r.forbidden()["target"] for r in results.values()],
        "with a body": [r.forbidden()["body"] for r in results.values()],
        "with other headers": [r.forbidden()["headers"] for r in results.values()],
        "**answers with the token in them**": [len(r.leaks) for r in results.values()],
    }
    text = [f"| {name} | " + " | ".join(f"{n:,}" for n in row) + " |" for name, row in rows.items()]
    head = f"""## Fuzz

{COUNT:,} different requests, generated by hypothesis from the seed {SEED}, and those that once
passed (`tests/behaviour/{KEPT.name}`); the same ones for every server; a scrape after every
{EVERY} of them.
"""
    return "\n".join([head, *_table(text, "requests", TITLES)])


def main() -> None:
    """Run every case and the fuzz, and write down what is found: `make behaviour`."""
    tables = case_tables(cases.run(CASES))
    FILE.write_text(tables + fuzz_table({kind: fuzz.run(kind) for kind in COLUMNS}))


if __name__ == "__main__":
    main()
