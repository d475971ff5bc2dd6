"""Both runbooks have what the table of alerts says, and nothing that is not there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from config.settings import Settings
from host import sync
from monitoring.alerts import REFUSED, alerts
from monitoring.panels import OWN
from sandbox.api import GAUGES
from tests.monitoring.conftest import FLEET

MakeSettings = Callable[..., Settings]

PARTS = {
    "runbook.md": ["What it means:", "Look at:", "Do:"],
    "runbook.id.md": ["Artinya:", "Lihat:", "Lakukan:"],
}
METRICS = {f"sba_worker_{name}" for name in GAUGES} | {
    f"metrics_proxy_{name}"
    for name in re.findall(r'show\("(\w+)"', Path(sync.__file__).read_text())
}


def sections(text: str) -> dict[str, str]:
    """Title → text of every section."""
    parts = re.split(r"(?m)^## (.+)$", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def anchor(title: str) -> str:
    """As GitHub and Grafana's readers make it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


@pytest.fixture(params=PARTS)
def book(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Name and text of a runbook."""
    return request.param, (Path("docs") / request.param).read_text()


def test_every_alert_has_its_section(settings: MakeSettings, book: tuple[str, str]) -> None:
    name, text = book
    found = sections(text)
    table = list(alerts(settings(**FLEET)))
    assert [title for title in found if title.startswith("Sba")] == [it.name for it in table]
    for alert in table:
        section = found[alert.name].strip().splitlines()
        assert section[0] == f"{alert.severity} · {alert.hold} · {OWN[alert.panel][0]}"
        assert [re.findall(r"^- \*\*(.+?)\*\*", line) for line in section[2:]] == [
            [part] for part in PARTS[name]
        ]


def test_the_annotation_leads_to_the_section(settings: MakeSettings, book: tuple[str, str]) -> None:
    titles = {anchor(title) for title in sections(book[1])}
    assert {it.name.lower() for it in alerts(settings(**FLEET))} <= titles
    links = re.findall(r"\]\(([^)]*)\)", book[1])
    assert links
    for link in links:
        file, _, place = link.partition("#")
        assert not file or (Path("docs") / file).exists()
        assert not place or place in titles


def test_both_have_the_same_sections_commands_and_numbers() -> None:
    english, indonesian = ((Path("docs") / name).read_text() for name in PARTS)
    ours, theirs = sections(english), sections(indonesian)
    assert len(ours) == len(theirs)
    for (title, here), there in zip(ours.items(), theirs.values(), strict=True):
        for pattern in (r"`[^`]+`", r"\b\d+\b", r"\bSba\w+", r"\]\((?!#)\S+\)"):
            assert sorted(re.findall(pattern, here)) == sorted(re.findall(pattern, there)), title


def test_every_metric_is_one_and_every_reason_has_its_words(book: tuple[str, str]) -> None:
    found = sections(book[1])
    assert set(re.findall(r"\b(?:sba_worker|metrics_proxy)_\w+", book[1])) <= METRICS
    for reason in sync.REASONS:
        title = "SbaVersionRefused" if reason in REFUSED else "SbaSyncFailing"
        assert f"`{reason}`" in found[title]
