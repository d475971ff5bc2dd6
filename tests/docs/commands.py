"""Every command of README and docs, and how it is known to work."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.docs.pages import Command, pages

BY_HAND: Final = "tests/docs/test_by_hand.py"
DEMO: Final = "tests/docs/test_demo.py"
STACK: Final = "tests/docs/test_stack.py"


@dataclass(frozen=True)
class Run:
    """A test takes it from the page and runs it."""

    test: str


@dataclass(frozen=True)
class Checked:
    """It is not run here, but what it names is there: by `test_commands.py`, for its program."""

    program: str


@dataclass(frozen=True)
class Not:
    """It cannot be run here, nor looked at."""

    reason: str


How = Run | Checked | Not

MIRROR: Final = Not("asks Debian's mirror; the packages are there already")
SYSTEMD: Final = Not("needs systemd; the booted machine masks that unit, as tests/vm sees")

TABLE: Final[list[tuple[str, str, How]]] = [
    # by hand
    (r"ops/proxy/README\.md", r"apt-get .*", MIRROR),
    (r"ops/proxy/README\.md|docs/migration\.md", r"systemctl disable .*", SYSTEMD),
    (r"ops/proxy/README\.md", r"systemctl show .*", SYSTEMD),
    (r"ops/proxy/README\.md", r"(?s).*", Run(BY_HAND)),
    # an image
    (r"docs/image\.md", r"aws .*", Checked("aws")),
    (r"docs/image\.md", r"pulumi .*", Checked("pulumi")),
    (r"docs/image\.md", r".*", Run("sandbox/machines/vm/image.py")),
    (r"docs/migration\.md", r"promtool .*", Run("tests/monitoring/test_scrape.py")),
    # the sandbox
    (
        r"README\.md",
        r"(?s)(make demo|make down|\.venv/bin/python -m sandbox .*|curl .*)",
        Run(DEMO),
    ),
    (r".*", r"(?s)(\.venv/bin/)?python -m sandbox .*", Checked("sandbox")),
    (r"docs/runbook.*", r"curl .*", Run(DEMO)),
    (r".*", r"make .*", Checked("make")),
    (r".*", r"(?:\.venv/bin/)?python -m monitoring\.dashboard .*", Checked("monitoring.dashboard")),
    (r".*", r"GRAFANA_URL=… .* -m pytest -m .*", Checked("pytest")),
    (r".*", r"python3 -m venv .*", Not("asks the package index; tools/setup.sh does the same")),
    # the cloud
    (r".*", r"pulumi up --replace '\*\*::proxy-instance'", Run("tests/sandbox/test_engine.py")),
    (r".*", r"pulumi stack output \w+ > .*", Run(DEMO)),
    (r".*", r"pulumi stack output .* \| kubectl .*", Checked("pulumi")),
    (r".*", r"cp config/examples/\S+ config/", Run(STACK)),
    (r".*", r"pulumi (stack init|config rm|config set --secret) [\w.:]+", Run(STACK)),
    (r".*", r"pulumi config set ((?!--secret)--\w+ )*[\w.:]+ [^\s\"]\S*", Run(STACK)),
    (r".*", r"(?s)pulumi .*", Checked("pulumi")),
    (r".*", r"(?s)aws .*", Checked("aws")),
    # of others
    (
        r"docs/tls\.md",
        r"testssl .*",
        Not("testssl.sh is no tool of the project: run once, by hand"),
    ),
    (r"docs/decisions\.md", r"systemctl reload", Not("says how the program does it")),
    (r"docs/runbook.*", r"git log .*", Not("reads whoever's own history")),
]
"""Page, command, and how: the first row that fits is the command's. Patterns match as a whole."""


def row(command: Command) -> int:
    """The number of its row; `AssertionError` names a command that has none."""
    for number, (page, text, _) in enumerate(TABLE):
        if re.fullmatch(page, command.page) and re.fullmatch(text, command.text):
            return number
    raise AssertionError(f"{command}: in no row of tests/docs/commands.py")


def how(command: Command) -> How:
    return TABLE[row(command)][2]


def every(wanted: Callable[[How], bool] = lambda _: True) -> list[Command]:
    """The commands of all pages, in their order."""
    return [it for page in pages().values() for it in page.commands if wanted(how(it))]
