"""What a preview shows of dashboard and alerts: the lines of what changes, by name."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import Settings
from monitoring import alerts, preview
from monitoring.classic import walk
from monitoring.dashboard import of_stack
from monitoring.panels import OWN

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings.model_construct(stack="", prometheus_cidrs=())
CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "error rate": (
        {"workers": {"errorRate": 0.05}},
        {"Workers Error Rate", "SbaErrorRateHigh"},
    ),
    "depth": (
        {"workers": {"queueDepth": {"warning": 7, "critical": 9}}},
        {"Queue Depth against its limit", "SbaQueueDepthHigh", "SbaQueueDepthCritical"},
    ),
    "a queue": (
        {"workers": {"queues": {"email": {"warning": 7, "critical": 9}}}},
        {"Queue Depth against its limit", "SbaQueueDepthHigh", "SbaQueueDepthCritical"},
    ),
    "who is told": ({"grafana": {"contactPoint": "on call"}}, {"in Grafana"}),
    "the alerts' source": ({"grafana": {"alertDatasourceUid": "mimir"}}, {"in Grafana"}),
    "a hold": ({"alerts": {"proxyDown": "9m"}}, {"SbaProxyDown"}),
    "the uid": (
        {"grafana": {"dashboardUid": "other"}},
        {"dashboard", *(alert.name for alert in alerts.alerts(SETTINGS))},
    ),
    "no dashboard": ({"grafana": {"enabled": False}}, set()),
}
"""What is set, and the panels and alerts of which lines change."""


def of(**config: Any) -> Settings:
    values = {"subnetId": "subnet-00000000", "prometheusCidrs": ["10.0.0.0/16"], **config}
    values |= {"apiCidrs": ["10.0.0.0/16"]}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    return Settings.parse("dev", texts, has_token=True)


def texts(settings: Settings) -> dict[str, str]:
    return preview.texts(settings, of_stack(settings, ROOT))


@pytest.mark.parametrize(("config", "names"), CHANGES.values(), ids=CHANGES)
def test_a_change_shows_the_panels_and_alerts_that_it_changes(
    config: dict[str, Any], names: set[str]
) -> None:
    before, after = texts(of()), texts(of(**config))
    lines = [
        line
        for name in after
        for line in difflib.ndiff(before[name].splitlines(), after[name].splitlines())
        if line[:2] in ("+ ", "- ")
    ]
    if names:
        assert {line[3:].partition("]")[0] for line in lines} == names
    else:
        assert after.keys() == {"alerts"}


def test_every_value_is_there_and_every_line_fits() -> None:
    settings = of()
    dashboard = of_stack(settings, ROOT)
    assert dashboard is not None
    told = texts(settings)
    for text in told.values():
        # a preview cuts at 150 characters
        assert max(map(len, text.splitlines())) <= preview.WIDTH
        # a text that can be read as one document is not compared by its lines
        with pytest.raises(yaml.YAMLError):
            list(yaml.safe_load_all(text))
        with pytest.raises(ValueError, match=r"\A(Extra data|Expecting value)"):
            json.loads(text)
    seen = "".join(
        "".join(line.partition("] ")[2].split()) for line in told["dashboard"].split("\n")
    )
    for panel in walk(dashboard["panels"]):
        assert f"[{panel['title']}] id: {panel['id']}" in told["dashboard"]
        for target in panel.get("targets", ()):
            assert "".join(target["expr"].split()) in seen
    assert len({line.partition("]")[0] for line in told["dashboard"].splitlines()}) > len(OWN)
    for rule in alerts.prometheus(settings, dashboard)["groups"][0]["rules"]:
        assert f"[{rule['alert']}] for: {rule['for']}\n" in told["alerts"]


def test_titles_of_people_are_no_document_either() -> None:
    """Whatever a panel is called, and a dashboard with nothing in it."""
    for title in ("1", "a: b", "x]\n- y", "", "#", "{}", '"'):
        panels = [{"id": 1, "title": title, "type": "text"}]
        text = preview.texts(of(), {"title": title, "panels": panels})["dashboard"]
        with pytest.raises(yaml.YAMLError):
            list(yaml.safe_load_all(text))
