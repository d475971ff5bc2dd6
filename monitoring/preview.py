"""Dashboard and alerts as text: outputs of the stack, whose changed lines a preview shows.

Of JSON and YAML a preview shows all that is around a change, a thousand lines of it, and panels and
rules by number.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from config.settings import Settings
from monitoring import alerts
from monitoring.classic import walk

WIDTH: Final = 140
"""Characters of a line: a preview shows 150."""


def texts(settings: Settings, dashboard: Mapping[str, Any] | None) -> dict[str, str]:
    """The outputs: a line for each value, which names the panel or the alert that has it."""
    rules = alerts.prometheus(settings, dashboard)["groups"][0]["rules"]
    grafana = settings.grafana
    told = {"contactPoint": grafana.contact_point, "datasourceUid": grafana.alert_datasource}
    outputs = {
        "alerts": _lines("in Grafana", told if grafana.enabled and grafana.alerts else None)
        + "".join(_lines(rule["alert"], rule) for rule in rules)
    }
    if dashboard is not None:
        rest = {key: value for key, value in dashboard.items() if key != "panels"}
        panels = [
            _lines(str(panel.get("title")), {k: v for k, v in panel.items() if k != "panels"})
            for panel in walk(dashboard.get("panels"))
        ]
        outputs["dashboard"] = "".join([_lines("dashboard", rest), *panels])
    return outputs


def _lines(title: str, value: Any) -> str:
    """The values of one thing. In brackets: text that is YAML is not compared by its lines."""
    name = f"[{' '.join(title.split())[:60]}] "
    lines = [
        part
        for path, text in _values("", value)
        for line in text.splitlines() or [""]
        for part in textwrap.wrap(f"{path}: {line}", WIDTH - len(name), break_on_hyphens=False)
    ]
    return "".join(f"{name}{line}\n" for line in lines)


def _values(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value and path != "gridPos":
        for key, item in value.items():
            yield from _values(f"{path}.{key}" if path else key, item)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _values(f"{path}[{index}]", item)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)
