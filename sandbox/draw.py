"""Draw a dashboard JSON from a running Prometheus: a preview of its panels, not Grafana.

`python -m sandbox.draw DASHBOARD PROMETHEUS_URL PNG` fails if a query of a panel finds nothing.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, Wedge
from PIL import Image

Json = dict[str, Any]

HOURS: Final = 6
INCHES: Final = 0.36
"""Of one grid row."""
LEGEND_ROWS: Final = 5
"""Grafana gives a legend below a chart about a third of the panel, and scrolls the rest."""
COLORS: Final = {"green": "#73BF69", "yellow": "#F2CC0C", "red": "#F2495C"}
PALETTE: Final = ["#73BF69", "#F2CC0C", "#8AB8FF", "#FF780A", "#F2495C", "#5794F2", "#B877D9"]
TEXT, DIM, LINE, PANEL, BACK = "#d0d0d8", "#8e8e96", "#2c3235", "#181b1f", "#111217"


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: its name, its points, and the field settings that Grafana would give it."""

    name: str
    times: Sequence[float]
    values: Sequence[float]
    field: Json
    color: str


@dataclass(frozen=True, kw_only=True)
class Prometheus:
    """A running Prometheus, asked for the last hours."""

    address: str
    end: float

    def series(self, target: Json) -> Iterator[tuple[str, list[tuple[float, float]]]]:
        """Yield the name and the points of every series of a target."""
        query = {"query": target["expr"].replace("$queue", ".+")}
        if target["instant"]:
            path, when = "query", {"time": self.end}
        else:
            path = "query_range"
            when = {"start": self.end - HOURS * 3600, "end": self.end, "step": 60}
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query | when)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            results = json.load(answer)["data"]["result"]
        for result in results:
            name = target["legendFormat"]
            for label in re.findall(r"{{(\w+)}}", name):
                name = name.replace(f"{{{{{label}}}}}", result["metric"].get(label, ""))
            points = result["values"] if "values" in result else [result["value"]]
            yield name, [(at, float(value)) for at, value in points]


def draw(dashboard: Json, prometheus: str, png: Path) -> list[str]:
    """Draw the dashboard and return the queries that found nothing."""
    source = Prometheus(address=urllib.parse.urlsplit(prometheus).netloc, end=time.time())
    panels = dashboard["panels"]
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    figure = Figure(figsize=(14, rows * INCHES + 0.2), facecolor=BACK)
    empty = []
    for panel in panels:
        grid = panel["gridPos"]
        inner = figure.add_axes(
            (
                grid["x"] / 24 + 0.003,
                1 - (grid["y"] + grid["h"]) * INCHES / figure.get_figheight() + 0.005,
                grid["w"] / 24 - 0.006,
                grid["h"] * INCHES / figure.get_figheight() - 0.01,
            )
        )
        inner.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
        inner.set_facecolor(BACK if panel["type"] == "row" else PANEL)
        for spine in inner.spines.values():
            spine.set(color=LINE, visible=panel["type"] != "row")
        y = 1 - 0.2 / grid["h"]
        inner.text(0.015, y, panel["title"], fontsize=9, va="top", color=TEXT, weight="bold")
        if panel["type"] == "row":
            continue
        lines = {target["expr"]: list(source.series(target)) for target in panel["targets"]}
        empty += [query for query, found in lines.items() if not found]
        series = list(_series(panel["fieldConfig"], list(itertools.chain(*lines.values()))))
        if series:
            _DRAW[panel["type"]](inner, series)
        else:
            inner.text(0.5, 0.5, "No data", color=DIM, ha="center", fontsize=14)
    note = f"A preview drawn from {dashboard['title']}'s JSON and Prometheus. Not Grafana."
    figure.text(0.997, 0.003, note, fontsize=8, ha="right", color=DIM)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100)
    with Image.open(picture) as image:  # 256 colours: a third of the size
        image.convert("RGB").quantize(256).save(png, optimize=True)
    return empty


def _series(config: Json, lines: list[tuple[str, list[tuple[float, float]]]]) -> Iterator[Series]:
    for number, (name, points) in enumerate(lines):
        defaults = config["defaults"]
        field = {**defaults, "custom": {**defaults.get("custom", {})}}
        for override in config["overrides"]:
            if _matches(override["matcher"], name):
                for property_ in override["properties"]:
                    custom = property_["id"].startswith("custom.")
                    place = field["custom"] if custom else field
                    place[property_["id"].removeprefix("custom.")] = property_["value"]
        mode = field["color"]["mode"]
        if mode == "fixed":
            color = {"text": TEXT}.get(fixed := field["color"]["fixedColor"], fixed)
        elif mode == "thresholds":
            color = _level(field, points[-1][1])
        else:
            color = PALETTE[number % len(PALETTE)]
        times, values = zip(*points, strict=True)
        yield Series(name=name, times=times, values=values, field=field, color=color)


def _matches(matcher: Json, name: str) -> bool:
    wanted = matcher["options"]
    if matcher["id"] == "byName":
        return bool(name == wanted)
    return re.search(wanted.strip("/"), name) is not None


def _level(field: Json, value: float) -> str:
    steps = field["thresholds"]["steps"]
    reached = [s for s in steps if s["value"] is None or value >= s["value"]]
    return COLORS[reached[-1]["color"]]


def _shown(unit: str, value: float) -> str:
    if unit == "percentunit":
        return f"{value * 100:.2g} %"
    return f"{value:.3g} ops/s" if unit == "ops" else f"{value:.0f}"


def _timeseries(inner: Axes, found: list[Series]) -> None:
    defaults = found[0].field  # Grafana, too, takes axis and threshold lines from one series
    bottom = 0.21 + 0.06 * min(len(found), LEGEND_ROWS)
    axes = inner.inset_axes((0.09, bottom, 0.89, 0.88 - bottom), facecolor=PANEL)
    for line in found:
        custom = line.field["custom"]
        style = (0, custom["lineStyle"]["dash"]) if "lineStyle" in custom else "solid"
        width = custom["lineWidth"] * 0.7
        axes.plot(line.times, line.values, color=line.color, linewidth=width, linestyle=style)
        axes.fill_between(
            line.times, line.values, color=line.color, alpha=custom["fillOpacity"] / 100, lw=0
        )
    top = max(max(line.values) for line in found) * 1.1
    axes.set_ylim(0, max(top, defaults["custom"].get("axisSoftMax", 0)))
    if "thresholdsStyle" in defaults["custom"]:
        for step in defaults["thresholds"]["steps"][1:]:
            color = COLORS[step["color"]]
            axes.axhline(step["value"], color=color, linestyle="--", linewidth=1)
            axes.axhspan(step["value"], axes.get_ylim()[1], color=color, alpha=0.12, lw=0)
    axes.grid(color=LINE, linewidth=0.5)
    axes.tick_params(length=0, labelsize=7, labelcolor=DIM)
    first, last = axes.get_xlim()
    axes.set_xticks([at for at in range(int(first), int(last)) if at % 3600 == 0])
    axes.xaxis.set_major_formatter(lambda at, _: time.strftime("%H:%M", time.localtime(at)))
    unit = defaults["unit"]
    axes.yaxis.set_major_formatter(lambda value, _: _shown(unit, value).removesuffix(" ops/s"))
    for spine in axes.spines.values():
        spine.set_visible(False)
    _legend(inner, unit, found)


def _legend(inner: Axes, unit: str, found: list[Series]) -> None:
    last = sorted(found, key=lambda line: line.values[-1], reverse=True)
    y = 0.06 * min(len(last), LEGEND_ROWS)
    columns = ((0.76, "Last *"), (0.97, "Max"))
    for x, name in columns:
        inner.text(x, y + 0.06, name, fontsize=7, ha="right", color="#6E9FFF")
    for line in last[:LEGEND_ROWS]:
        inner.add_patch(Rectangle((0.02, y + 0.012), 0.03, 0.01, color=line.color))
        inner.text(0.06, y, line.name, fontsize=7.5, color=TEXT)
        for (x, _), value in zip(columns, (line.values[-1], max(line.values)), strict=True):
            inner.text(x, y, _shown(unit, value), fontsize=7.5, ha="right", color=TEXT)
        y -= 0.06
    if len(last) > LEGEND_ROWS:
        more = f"⌄ {len(last) - LEGEND_ROWS} more by scrolling"
        inner.text(0.06, 0.01, more, fontsize=6, color=DIM)


def _cells(inner: Axes, found: list[Series]) -> Iterator[tuple[Axes, Series]]:
    for number, line in enumerate(found):
        axes = inner.inset_axes((number / len(found), 0.02, 1 / len(found), 0.84))
        axes.axis("off")
        yield axes, line


def _gauge(inner: Axes, found: list[Series]) -> None:
    for axes, line in _cells(inner, found):
        axes.set(xlim=(-1.1, 1.1), ylim=(-0.9, 1.1), aspect="equal")
        field, value = line.field, line.values[-1]

        def angle(at: float, top: float = field["max"]) -> float:
            return 205 - 230 * min(at / top, 1)

        axes.add_patch(Wedge((0, 0), 0.88, angle(field["max"]), angle(0), width=0.28, color=LINE))
        axes.add_patch(Wedge((0, 0), 0.88, angle(value), angle(0), width=0.28, color=line.color))
        bounds = [*(step["value"] or 0 for step in field["thresholds"]["steps"]), field["max"]]
        for low, high in itertools.pairwise(bounds):
            axes.add_patch(
                Wedge((0, 0), 1, angle(high), angle(low), width=0.07, color=_level(field, low))
            )
        shown = _shown(field["unit"], value)
        axes.text(0, -0.1, shown, ha="center", fontsize=17, weight="bold", color=line.color)
        axes.text(0, -0.75, line.name, ha="center", fontsize=9, color=TEXT)


def _stat(inner: Axes, found: list[Series]) -> None:
    for axes, line in _cells(inner, found):
        shown = _shown(line.field["unit"], line.values[-1])
        axes.text(0.5, 0.62, line.name, ha="center", fontsize=9, color=TEXT)
        axes.text(0.5, 0.3, shown, ha="center", fontsize=24, weight="bold", color=line.color)


_DRAW: Final = {"timeseries": _timeseries, "gauge": _gauge, "stat": _stat}


def main(dashboard: str, prometheus: str, png: str) -> None:
    """Draw, and exit with the queries that found nothing if there are any."""
    empty = draw(json.loads(Path(dashboard).read_text(encoding="utf-8")), prometheus, Path(png))
    if empty:
        sys.exit("\n".join(["no data for:", *empty]))


if __name__ == "__main__":
    main(*sys.argv[1:])
