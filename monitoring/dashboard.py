"""The Workers section of the Grafana dashboard, rendered into a dashboard that people own by hand.

`python -m monitoring.dashboard FILE` renders the section into FILE for the default settings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from config.settings import NAMESPACE, Limits, Settings, SettingsError

Json = dict[str, Any]

SECTION: Final = range(9100, 9200)
"""Panel ids that belong to the section; it is recognised by them, and alerts link to them."""

ROW, THROUGHPUT, ERROR_RATE, QUEUE_DEPTH, QUEUE_LIMIT, ACTIVE_JOBS = SECTION[:6]

SCHEMA_VERSION: Final = 36
"""Grafana 9's. Newer ones migrate it, and none of their migrations touches these panels."""


def load_dashboard(path: str | Path) -> Json:
    """Read a classic dashboard JSON; raise a `SettingsError` of one line for anything else."""
    try:
        dashboard = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except ValueError as error:
        problem = f"is not JSON ({error})"
    else:
        problem = _not_classic(dashboard)
        if not problem:
            return dict(dashboard)
    raise SettingsError(f"{NAMESPACE}:grafana.dashboard: {path} {problem}")


def _not_classic(dashboard: object) -> str:
    """Say why `dashboard` is no classic dashboard JSON, or nothing if it is one."""
    if not isinstance(dashboard, dict):
        return "is not a dashboard: a JSON object is expected"
    if "apiVersion" in dashboard or "spec" in dashboard or "elements" in dashboard:
        return "is a v2 or Kubernetes-style dashboard; export it as classic JSON"
    if "__inputs" in dashboard:
        return "is an export for sharing (it has __inputs); export it without that option"
    if isinstance(dashboard.get("dashboard"), dict):
        return "wraps the dashboard, as the HTTP API does; keep the value of its key dashboard"
    title = dashboard.get("title")
    if not isinstance(title, str) or not title.strip():
        return "has no title"
    if "rows" in dashboard:
        return "has rows in place of panels, as before Grafana 5; save it with a newer one"
    panels = dashboard.get("panels", [])
    if not isinstance(panels, list) or not all(isinstance(panel, dict) for panel in panels):
        return "has panels that are no list of objects"
    variables = (dashboard.get("templating") or {"list": []}).get("list")
    if not isinstance(variables, list) or not all(isinstance(v, dict) for v in variables):
        return "has a templating.list that is no list of objects"
    return ""


def with_workers(dashboard: Mapping[str, Any], settings: Settings) -> Json:
    """Return `dashboard` with the Workers section in it, in place of one that was there."""
    others = list(_others(dashboard.get("panels", [])))
    bottom = max(map(_bottom, others), default=0)
    templating = dashboard.get("templating") or {}
    result = {
        **dashboard,
        "editable": False,  # the next `pulumi up` would undo what is edited in Grafana
        "refresh": dashboard.get("refresh", "30s"),
        "schemaVersion": dashboard.get("schemaVersion", SCHEMA_VERSION),
        "templating": {**templating, "list": _variables(templating.get("list", []), settings)},
        "panels": [*others, *_section(settings, bottom)],
    }
    if settings.grafana.dashboard_uid is not None:
        result["uid"] = settings.grafana.dashboard_uid
    return result


def dumps(dashboard: Mapping[str, Any]) -> str:
    """Return the text of a dashboard file."""
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def _others(panels: list[Json]) -> Iterator[Json]:
    """Yield the panels that are not the section's.

    Collapsed rows hold their panels: what people moved into the Workers row comes out of it, and
    what they moved out of it into a row of theirs is dropped there.
    """
    for panel in panels:
        inner = list(_others(panel.get("panels") or []))
        if panel.get("id") in SECTION:
            yield from inner
        else:
            yield {**panel, "panels": inner} if "panels" in panel else panel


def _bottom(panel: Json) -> int:
    place = panel.get("gridPos") or {}
    return int(place.get("y", 0)) + int(place.get("h", 0))


def _variables(variables: list[Json], settings: Settings) -> list[Json]:
    queue = _queue_variable(settings)
    names = [variable.get("name") for variable in variables]
    if queue["name"] not in names:
        return [*variables, queue]
    return [queue if name == queue["name"] else v for name, v in zip(names, variables, strict=True)]


def _queue_variable(settings: Settings) -> Json:
    query = f"label_values(sba_worker_queue_depth{{job={_quoted(settings.job)}}}, queue_name)"
    return {
        "type": "query",
        "name": "queue",
        "label": "Queue",
        "description": "Queues of the workers. All includes those that appear later.",
        "datasource": _datasource(settings),
        "query": {"query": query, "refId": "queue"},
        "definition": query,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "refresh": 2,  # on every change of the time range
        "sort": 1,
        "hide": 0,
        "regex": "",
        "options": [],
        "skipUrlSync": False,
    }


def _section(settings: Settings, y: int) -> list[Json]:
    """Return the row and its panels: what is true now in a strip on top, its history below."""
    limits = settings.workers
    rate = f"{limits.error_rate * 100:g} %"
    return [
        {
            "id": ROW,
            "type": "row",
            "title": "Workers",
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
            "panels": [],
        },
        _now(
            _panel(
                settings,
                QUEUE_LIMIT,
                "gauge",
                "Queue Depth against its limit",
                "Jobs waiting now, on a scale of the queue's own limits: yellow from its warning, "
                "red from its critical limit.",
                at=(0, y + 1, 14, 6),
                metrics={"queue_depth": "{{queue_name}}"},
                unit="none",  # "short" would make 1449 "1 K"
                decimals=0,
                color={"mode": "thresholds"},
                overrides=[
                    _override("byName", queue, **_depth_scale(own))
                    for queue, own in sorted(limits.queues.items())
                ],
                **_depth_scale(limits.queue_depth),
            ),
            showThresholdLabels=False,
            showThresholdMarkers=True,
        ),
        _now(
            _panel(
                settings,
                ACTIVE_JOBS,
                "stat",
                "Active Jobs",
                "Jobs being worked on now. 0 while jobs are waiting: that queue has no worker.",
                at=(14, y + 1, 10, 6),
                metrics={"active_jobs": "{{queue_name}}"},
                unit="none",
                decimals=0,
                color={"mode": "fixed", "fixedColor": "text"},  # no number of these is bad as such
            ),
            colorMode="value",
            graphMode="none",
            justifyMode="center",
            textMode="value_and_name",
        ),
        _history(
            _panel(
                settings,
                THROUGHPUT,
                "timeseries",
                "Workers Throughput",
                "Jobs finished per second. The workers compute the rate; it is shown as it is.",
                at=(0, y + 7, 8, 9),
                metrics={"throughput": "{{queue_name}}"},
                unit="ops",
                color=_BY_QUEUE,
            ),
        ),
        _history(
            _panel(
                settings,
                ERROR_RATE,
                "timeseries",
                "Workers Error Rate",
                "Share of jobs that failed: the total of a queue solid, its 4xx, 5xx and timeout "
                f"parts thin and dashed. Red from {rate}.",
                at=(8, y + 7, 8, 9),
                # The total first, so that a queue's colour is the same in all panels.
                metrics={
                    "error_rate": "{{queue_name}}",
                    "error4xx_rate": "{{queue_name}} 4xx",
                    "error5xx_rate": "{{queue_name}} 5xx",
                    "timeout_rate": "{{queue_name}} timeout",
                },
                unit="percentunit",
                color=_BY_QUEUE,
                thresholds=_thresholds(("red", limits.error_rate)),
                overrides=[
                    _override(
                        "byRegexp",
                        "/ (4xx|5xx|timeout)$/",
                        **{
                            "custom.lineWidth": 1,
                            "custom.fillOpacity": 0,
                            "custom.lineStyle": {"fill": "dash", "dash": [4, 4]},
                        },
                    ),
                    *(
                        _override(
                            "byRegexp", f"/ {part}$/", color={"mode": "fixed", "fixedColor": color}
                        )
                        for part, color in _PARTS.items()
                    ),
                ],
            ),
            axisSoftMax=limits.error_rate * 2,
            thresholdsStyle={"mode": "dashed+area"},
        ),
        _history(
            _panel(
                settings,
                QUEUE_DEPTH,
                "timeseries",
                "Queue Depth",
                "Jobs waiting. Each queue's limits are on its gauge.",
                at=(16, y + 7, 8, 9),
                metrics={"queue_depth": "{{queue_name}}"},
                unit="none",
                decimals=0,
                color=_BY_QUEUE,
            ),
        ),
    ]


# By position, not by name: that mode is younger than Grafana 9, which fails on it.
_BY_QUEUE: Final = {"mode": "palette-classic"}

# Outside the first colours of the palette, and not red, which means too many.
_PARTS: Final = {"4xx": "#B5B8C0", "5xx": "#CA95E5", "timeout": "#B08968"}


def _panel(
    settings: Settings,
    id_: int,
    kind: str,
    title: str,
    description: str,
    *,
    at: tuple[int, int, int, int],
    metrics: Mapping[str, str],
    overrides: list[Json] | None = None,
    **defaults: Any,
) -> Json:
    """Return a panel of worker gauges (`metrics`: name without prefix → legend), as they are."""
    selector = f'{{job={_quoted(settings.job)}, queue_name=~"$queue"}}'
    runbook = settings.grafana.runbook_url
    return {
        "id": id_,
        "type": kind,
        "title": title,
        "description": description,
        "datasource": _datasource(settings),
        "gridPos": dict(zip("xywh", at, strict=True)),
        "links": [{"title": "Runbook", "url": runbook, "targetBlank": True}] if runbook else [],
        "targets": [
            {
                "refId": ref,
                "datasource": _datasource(settings),
                "expr": f"sba_worker_{metric}{selector}",
                "legendFormat": legend,
                "instant": False,
                "range": True,
            }
            for ref, (metric, legend) in zip("ABCD", metrics.items(), strict=False)
        ],
        "fieldConfig": {"defaults": {"min": 0, **defaults}, "overrides": overrides or []},
    }


def _now(panel: Json, **options: Any) -> Json:
    """Show the present alone: over a range, a queue that is gone would keep its last value."""
    for target in panel["targets"]:
        target.update(instant=True, range=False)
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return panel | {"options": {"reduceOptions": reduce, "orientation": "auto", **options}}


def _history(panel: Json, **custom: Any) -> Json:
    """Show lines over a table of them, the highest on top."""
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
        "sortBy": "Last *",
        "sortDesc": True,
    }
    return panel | {"options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}}


def _override(matcher: str, options: str, **properties: Any) -> Json:
    return {
        "matcher": {"id": matcher, "options": options},
        "properties": [{"id": id_, "value": value} for id_, value in properties.items()],
    }


def _depth_scale(limits: Limits) -> Json:
    """Return a scale on which the limits stand at the same places for every queue's gauge."""
    steps = (("yellow", limits.warning), ("red", limits.critical))
    return {"max": max(limits.critical * 1.25, 1), "thresholds": _thresholds(*steps)}


def _thresholds(*steps: tuple[str, float]) -> Json:
    # Explicitly null: the first step's value is minus infinity, which JSON cannot say.
    base = {"color": "green", "value": None}
    return {
        "mode": "absolute",
        "steps": [base, *({"color": color, "value": value} for color, value in steps)],
    }


def _datasource(settings: Settings) -> Json:
    return {"type": "prometheus", "uid": settings.grafana.datasource_uid}


def _quoted(text: str) -> str:
    """Return a PromQL string: JSON's escapes are valid there, and Grafana replaces any `$name`."""
    return json.dumps(text, ensure_ascii=False).replace("$", r"\u0024")


def main(path: str) -> None:
    """Render the section into the dashboard at `path`, for the default settings."""
    # The section needs none of the required settings, and their defaults for the rest.
    settings = Settings.model_construct(stack="", subnet_id="", prometheus_cidrs=())
    Path(path).write_text(dumps(with_workers(load_dashboard(path), settings)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
