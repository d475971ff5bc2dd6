"""The Workers section: what the queues' gauges say now, and their history."""

from __future__ import annotations

from typing import Final

from config.settings import Limits, Settings
from monitoring import panels as p
from monitoring.panels import Json
from monitoring.text import selector

VARIABLE: Final = "sba_queue"
"""Of the queues that are shown; a name that no other dashboard has."""

GAUGE: Final = "sba_worker_queue_depth"
"""What the variable takes the names of the queues from."""

# Outside the first colours of the palette, and not red, which means too many.
_PARTS: Final = {"4xx": "#B5B8C0", "5xx": "#CA95E5", "timeout": "#B08968"}


def variable(settings: Settings, ref: str) -> Json:
    """Return the variable; `ref` is a free text that Grafana keeps with its query."""
    query = f"label_values({selector(GAUGE, job=settings.job)}, queue_name)"
    return {
        "type": "query",
        "name": VARIABLE,
        "label": "Queue",
        "description": "Queues of the workers. All includes those that appear later.",
        "datasource": p.datasource(settings),
        "query": {"query": query, "refId": ref},
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


def section(settings: Settings, y: int) -> list[Json]:
    """Return the row and its panels: what is true now in a strip on top, its history below."""
    limits = settings.workers
    # A bar needs 24 of a row's 38 pixels; from 16 rows on the panel scrolls, the fullest on top.
    strip = max(6, min(2 + round(0.63 * len(limits.queues)), 16))
    below = y + 1 + strip
    return [
        p.row(p.WORKERS, y),
        p.now(
            p.panel(
                settings,
                p.QUEUE_LIMIT,
                "bargauge",
                "Jobs waiting now, the fullest queue first, each on a scale of its own limits: "
                "yellow from its warning, red from its critical limit.",
                at=(0, y + 1, 14, strip),
                queries={f"sort_desc({_gauge(settings, 'queue_depth')})": "{{queue_name}}"},
                unit="none",  # "short" would make 1449 "1 K"
                decimals=0,
                color=p.BY_LEVEL,
                overrides=[
                    p.override("byName", queue, **_depth_scale(own))
                    for queue, own in sorted(limits.queues.items())
                ],
                **_depth_scale(limits.queue_depth),
            ),
            # Cells are dim in the colours of the scale: the limits are seen on every bar.
            displayMode="lcd",
            orientation="horizontal",
            showUnfilled=True,
            minVizWidth=8,
            minVizHeight=16,
        ),
        p.stat(
            p.panel(
                settings,
                p.ACTIVE_JOBS,
                "stat",
                "Jobs being worked on now. 0 while jobs are waiting: that queue has no worker.",
                at=(14, y + 1, 10, strip),
                queries={_gauge(settings, "active_jobs"): "{{queue_name}}"},
                unit="none",
                decimals=0,
                color=p.PLAIN,
            ),
        ),
        p.history(
            p.panel(
                settings,
                p.THROUGHPUT,
                "timeseries",
                "Jobs finished per second. The workers compute the rate; it is shown as it is.",
                at=(0, below, 8, 9),
                queries={_gauge(settings, "throughput"): "{{queue_name}}"},
                unit="ops",
                color=p.BY_SERIES,
            ),
        ),
        p.history(
            p.panel(
                settings,
                p.ERROR_RATE,
                "timeseries",
                "Share of jobs that failed: the total of a queue solid, its 4xx, 5xx and timeout "
                f"parts thin and dashed. Red from {limits.error_rate * 100:g} %.",
                at=(8, below, 8, 9),
                # The total first, so that a queue's colour is the same in all panels.
                queries={
                    _gauge(settings, "error_rate"): "{{queue_name}}",
                    _gauge(settings, "error4xx_rate"): "{{queue_name}} 4xx",
                    _gauge(settings, "error5xx_rate"): "{{queue_name}} 5xx",
                    _gauge(settings, "timeout_rate"): "{{queue_name}} timeout",
                },
                unit="percentunit",
                color=p.BY_SERIES,
                thresholds=p.thresholds("green", ("red", limits.error_rate)),
                overrides=[
                    p.override(
                        "byRegexp",
                        "/ (4xx|5xx|timeout)$/",
                        **{
                            "custom.lineWidth": 1,
                            "custom.fillOpacity": 0,
                            "custom.lineStyle": {"fill": "dash", "dash": [4, 4]},
                        },
                    ),
                    *(
                        p.override(
                            "byRegexp", f"/ {part}$/", color={"mode": "fixed", "fixedColor": color}
                        )
                        for part, color in _PARTS.items()
                    ),
                ],
            ),
            axisSoftMax=limits.error_rate * 2,
            thresholdsStyle={"mode": "dashed+area"},
        ),
        p.history(
            p.panel(
                settings,
                p.QUEUE_DEPTH,
                "timeseries",
                "Jobs waiting. Each queue's limits are on its bar above.",
                at=(16, below, 8, 9),
                queries={_gauge(settings, "queue_depth"): "{{queue_name}}"},
                unit="none",
                decimals=0,
                color=p.BY_SERIES,
            ),
        ),
    ]


def _gauge(settings: Settings, name: str) -> str:
    return selector(f"sba_worker_{name}", f'queue_name=~"${VARIABLE}"', job=settings.job)


def _depth_scale(limits: Limits) -> Json:
    """Return a scale on which the limits stand at the same places for every queue's bar."""
    steps = (("yellow", limits.warning), ("red", limits.critical))
    return {
        "max": max(limits.critical * 1.25, 1),
        "thresholds": p.thresholds("green", *steps),
    }
