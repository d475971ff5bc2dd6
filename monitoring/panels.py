"""Panels as Grafana 9 to 13 read them: what all of the program's panels have in common.

Plain dicts; `tests/monitoring/grafana-schema` checks them against the types that Grafana publishes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from config.settings import Settings

Json = dict[str, Any]

WORKERS, THROUGHPUT, ERROR_RATE, QUEUE_DEPTH, QUEUE_LIMIT, ACTIVE_JOBS = range(9100, 9106)
LAST_SYNC, IN_SYNC, CERTIFICATE, REBOOT, SCRAPES = range(9189, 9194)
UPSTREAM_STATUS, UPSTREAM_SECONDS, SYNC_FAILURES, SECRETS, CONFIGURATION = range(9194, 9199)
PROXY: Final = 9199
"""The highest: Grafana numbers what people add from 9200 on. Panels to come go below 9189."""

# id → title, and the anchor of the panel's first alert in the runbook
OWN: Final = {
    WORKERS: ("Workers", ""),
    THROUGHPUT: ("Workers Throughput", "sbaworkerstalled"),
    ERROR_RATE: ("Workers Error Rate", "sbaerrorratehigh"),
    QUEUE_DEPTH: ("Queue Depth", "sbaqueuedepthhigh"),
    QUEUE_LIMIT: ("Queue Depth against its limit", "sbaqueuedepthhigh"),
    ACTIVE_JOBS: ("Active Jobs", "sbaworkerstalled"),
    PROXY: ("Proxy", ""),
    LAST_SYNC: ("Last Sync", "sbasyncstopped"),
    IN_SYNC: ("Secrets in Sync", "sbasyncfailing"),
    CERTIFICATE: ("Certificate", "sbacertificateexpiring"),
    REBOOT: ("Reboot", "sbarebootpending"),
    SCRAPES: ("Scrapes", "sbascrapefailing"),
    UPSTREAM_STATUS: ("Upstream Status", "sbaupstreamdown"),
    UPSTREAM_SECONDS: ("Upstream Duration", "sbaupstreamdown"),
    SYNC_FAILURES: ("Sync Failures", "sbasyncfailing"),
    SECRETS: ("Secrets in Use", "sbaversionrefused"),
    CONFIGURATION: ("Configuration in Use", "sbaversionrefused"),
}
"""The program's panels: a panel with one of these ids and its title is the program's."""

# By position, not by name: that mode is younger than Grafana 9, which fails on it.
BY_SERIES: Final = {"mode": "palette-classic"}
BY_LEVEL: Final = {"mode": "thresholds"}
PLAIN: Final = {"mode": "fixed", "fixedColor": "text"}
"""For what is neither good nor bad as such."""


def datasource(settings: Settings) -> Json:
    return {"type": "prometheus", "uid": settings.grafana.datasource_uid}


def row(id_: int, y: int) -> Json:
    return {
        "id": id_,
        "type": "row",
        "title": OWN[id_][0],
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
        "panels": [],
    }


def panel(
    settings: Settings,
    id_: int,
    kind: str,
    description: str,
    *,
    at: tuple[int, int, int, int],
    queries: Mapping[str, str],
    overrides: list[Json] | None = None,
    **defaults: Any,
) -> Json:
    """Return a panel at `x, y, w, h` of `queries`: expression → legend."""
    title, anchor = OWN[id_]
    url = settings.grafana.runbook_url
    links = [{"title": "Runbook", "url": f"{url}#{anchor}", "targetBlank": True}] if url else []
    return {
        "id": id_,
        "type": kind,
        "title": title,
        "description": description,
        "datasource": datasource(settings),
        "gridPos": dict(zip("xywh", at, strict=True)),
        "links": links,
        "targets": [
            {
                "refId": ref,
                "datasource": datasource(settings),
                "expr": expression,
                "legendFormat": legend,
                "instant": False,
                "range": True,
            }
            for ref, (expression, legend) in zip("ABCD", queries.items(), strict=False)
        ],
        "fieldConfig": {"defaults": {"min": 0, **defaults}, "overrides": overrides or []},
    }


def now(panel: Json, **options: Any) -> Json:
    """Show the present alone: over a range, a queue that is gone would keep its last value."""
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return _instant(panel) | {
        "options": {"reduceOptions": reduce, "orientation": "auto", **options}
    }


def stat(panel: Json) -> Json:
    """Show the present as a number or word for each series, below its name."""
    return now(
        panel,
        colorMode="value",
        graphMode="none",
        justifyMode="center",
        textMode="value_and_name",
    )


def table(panel: Json, columns: Mapping[str, str]) -> Json:
    """Show the present of one query: `columns` are its labels and `Value`, with their titles."""
    for target in panel["targets"]:
        target["format"] = "table"
    organize = {
        "excludeByName": {name: True for name in ("Time", "Value") if name not in columns},
        "indexByName": {name: index for index, name in enumerate(columns)},
        "renameByName": dict(columns),
    }
    return _instant(panel) | {
        "transformations": [{"id": "organize", "options": organize}],
        "options": {"frameIndex": 0, "showHeader": True},
    }


def history(panel: Json, *, sort: str = "Last *", **custom: Any) -> Json:
    """Show lines over a table of them, the highest on top: now (`Last *`), or ever (`Max`)."""
    panel["fieldConfig"]["defaults"]["custom"] = {
        "drawStyle": "line",
        "lineWidth": 2,
        "fillOpacity": 5,
        "showPoints": "never",
        "spanNulls": False,
        **custom,
    }
    legend = {
        "showLegend": True,
        "displayMode": "table",
        "placement": "bottom",
        "calcs": ["lastNotNull", "max"],
        "sortBy": sort,
        "sortDesc": True,
    }
    return panel | {"options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}}


def states(panel: Json, *, show: str) -> Json:
    """Show a bar for each series, coloured by the mapping of its value; `show`: auto or never.

    The legend has the mappings' texts only where the colour's mode is not that of thresholds.
    """
    panel["fieldConfig"]["defaults"]["custom"] = {"lineWidth": 0, "fillOpacity": 80}
    options = {
        "mergeValues": True,
        "showValue": show,
        "alignValue": "left",
        "rowHeight": 0.85,
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return panel | {"options": options}


def _instant(panel: Json) -> Json:
    for target in panel["targets"]:
        target.update(instant=True, range=False)
    return panel


def override(matcher: str, options: str, **properties: Any) -> Json:
    return {
        "matcher": {"id": matcher, "options": options},
        "properties": [{"id": id_, "value": value} for id_, value in properties.items()],
    }


def thresholds(base: str, *steps: tuple[str, float]) -> Json:
    """Return the colours of a value: `base` below the first step."""
    # Explicitly null: the first step's value is minus infinity, which JSON cannot say.
    first = {"color": base, "value": None}
    return {
        "mode": "absolute",
        "steps": [first, *({"color": color, "value": value} for color, value in steps)],
    }


def mappings(values: Mapping[int, tuple[str, str]], *ranges: tuple[int, int, str]) -> list[Json]:
    """Return what values look like: value → text and colour; from, to and colour."""
    options = {
        str(value): {"text": text, "color": color, "index": index}
        for index, (value, (text, color)) in enumerate(values.items())
    }
    return [
        {"type": "value", "options": options},
        *(
            {"type": "range", "options": {"from": low, "to": high, "result": {"color": color}}}
            for low, high, color in ranges
        ),
    ]
