"""Draw a dashboard JSON from a running Prometheus: a preview of its panels, not Grafana.

`python -m sandbox.draw DASHBOARD PROMETHEUS_URL PNG` fails if a query of a panel finds nothing.
"""

from __future__ import annotations

import io
import itertools
import json
import math
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
from matplotlib.patches import Rectangle
from PIL import Image

from config.files import replace

Json = dict[str, Any]

HOURS: Final = 6
INCHES: Final = 0.36
"""Of one grid row."""
LEGEND_ROWS: Final = 5
"""Grafana gives a legend below a chart about a third of the panel, and scrolls the rest."""
BARS: Final = 24
"""Of a bar gauge before Grafana scrolls it."""
CELLS: Final = 48
COLORS: Final = {"green": "#73BF69", "yellow": "#F2CC0C", "orange": "#FF9830", "red": "#F2495C"}
PALETTE: Final = ["#73BF69", "#F2CC0C", "#8AB8FF", "#FF780A", "#F2495C", "#5794F2", "#B877D9"]
TEXT, DIM, LINE, PANEL, BACK = "#d0d0d8", "#8e8e96", "#2c3235", "#181b1f", "#111217"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A series as Prometheus has it, with its name from the legend."""

    name: str
    labels: dict[str, str]
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: its name, its points, and the field settings that Grafana would give it."""

    name: str
    labels: dict[str, str]
    times: Sequence[float]
    values: Sequence[float]
    field: Json
    color: str
    panel: Json


class Prometheus:
    """A running Prometheus, asked for what it has of the last hours."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.end = time.time()
        self.start = self.end - HOURS * 3600
        everything = self._ask("query_range", query='count({__name__!=""})', step=60)
        if everything:  # no empty hours before the first sample
            self.start = max(self.start, everything[0]["values"][0][0] - 60)

    def series(self, target: Json) -> Iterator[Found]:
        """Yield every series of a target."""
        query = re.sub(r"\$\w+", ".+", target["expr"])
        if target["instant"]:
            results = self._ask("query", query=query, time=self.end)
        else:
            step = max((self.end - self.start) / 360, 1)
            results = self._ask("query_range", query=query, step=step)
        for result in results:
            name = target["legendFormat"]
            for label in re.findall(r"{{(\w+)}}", name):
                name = name.replace(f"{{{{{label}}}}}", result["metric"].get(label, ""))
            points = result["values"] if "values" in result else [result["value"]]
            yield Found(
                name=name,
                labels=result["metric"],
                points=[(at, float(value)) for at, value in points],
            )

    def _ask(self, path: str, **question: Any) -> list[Json]:
        if path == "query_range":
            question |= {"start": self.start, "end": self.end}
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(question)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return list(json.load(answer)["data"]["result"])


def draw(dashboard: Json, prometheus: str, png: Path) -> list[str]:
    """Draw the dashboard and return the panels and queries that found nothing."""
    source = Prometheus(urllib.parse.urlsplit(prometheus).netloc)
    panels = [panel for panel in dashboard["panels"] if "gridPos" in panel]
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
        if panel["type"] not in _DRAW:  # a row, or somebody else's panel
            continue
        lines = {target["expr"]: list(source.series(target)) for target in panel["targets"]}
        empty += [f"{panel['title']}: {query}" for query, found in lines.items() if not found]
        series = list(_series(panel, list(itertools.chain(*lines.values()))))
        if series:
            _DRAW[panel["type"]](inner, series)
        else:
            inner.text(0.5, 0.5, "No data", color=DIM, ha="center", fontsize=14)
    note = f"A preview drawn from {dashboard['title']}'s JSON and Prometheus. Not Grafana."
    figure.text(0.997, 0.003, note, fontsize=8, ha="right", color=DIM)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100)
    small = io.BytesIO()
    with Image.open(picture) as image:  # 256 colours: a third of the size
        image.convert("RGB").quantize(256, kmeans=2).save(small, "PNG", optimize=True)
    replace(png, small.getvalue())
    return empty


def _series(panel: Json, lines: list[Found]) -> Iterator[Series]:
    for number, line in enumerate(lines):
        field = _field(panel["fieldConfig"], line.name)
        times, values = zip(*line.points, strict=True)
        yield Series(
            name=line.name,
            labels=line.labels,
            times=times,
            values=values,
            field=field,
            color=_color(field, values[-1], number),
            panel=panel,
        )


def _field(config: Json, name: str) -> Json:
    """The settings of a field: the defaults, and the overrides that match its name."""
    defaults = config["defaults"]
    field = {**defaults, "custom": {**defaults.get("custom", {})}}
    for override in config["overrides"]:
        if _matches(override["matcher"], name):
            for property_ in override["properties"]:
                custom = property_["id"].startswith("custom.")
                place = field["custom"] if custom else field
                place[property_["id"].removeprefix("custom.")] = property_["value"]
    return field


def _color(field: Json, value: float, number: int) -> str:
    if mapped := _mapping(field, value).get("color"):
        return COLORS[mapped]
    color = field.get("color", {"mode": "fixed", "fixedColor": "text"})
    if color["mode"] == "fixed":
        return TEXT if color["fixedColor"] == "text" else str(color["fixedColor"])
    thresholds = color["mode"] == "thresholds"
    return _level(field, value) if thresholds else PALETTE[number % len(PALETTE)]


def _mapping(field: Json, value: float) -> dict[str, str]:
    """What a value's first mapping says of its text and colour."""
    for mapping in field.get("mappings", ()):
        options = mapping["options"]
        if mapping["type"] == "value" and f"{value:g}" in options:
            return dict(options[f"{value:g}"])
        if mapping["type"] == "range" and options["from"] <= value <= options["to"]:
            return dict(options["result"])
    return {}


def _matches(matcher: Json, name: str) -> bool:
    wanted = matcher["options"]
    if matcher["id"] == "byName":
        return bool(name == wanted)
    return re.search(wanted.strip("/"), name) is not None


def _level(field: Json, value: float) -> str:
    steps = field["thresholds"]["steps"]
    reached = [s for s in steps if s["value"] is None or value >= s["value"]]
    return COLORS[reached[-1]["color"]]


def _shown(field: Json, value: float) -> str:
    """A value as Grafana writes it, by and large."""
    if text := _mapping(field, value).get("text"):
        return text
    unit = field.get("unit", "none")
    if unit == "s":
        for factor, name in ((86400, "day"), (3600, "hour"), (60, "min")):
            if value >= factor:
                return f"{value / factor:.3g} {name}"
        return f"{value:.3g} s" if value >= 1 or not value else f"{value * 1000:.3g} ms"
    if unit == "percentunit":
        return f"{value * 100:.2g} %"
    if unit == "ops":
        return f"{value:.3g} ops/s"
    return f"{value:.0f} {unit.partition('suffix:')[2].strip()}".strip()


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
    axes.set_ylim(0, max(top, defaults["custom"].get("axisSoftMax", 0)) or 1)
    if "thresholdsStyle" in defaults["custom"]:
        for step in defaults["thresholds"]["steps"][1:]:
            color = COLORS[step["color"]]
            axes.axhline(step["value"], color=color, linestyle="--", linewidth=1)
            axes.axhspan(step["value"], axes.get_ylim()[1], color=color, alpha=0.12, lw=0)
    axes.grid(color=LINE, linewidth=0.5)
    _time_axis(axes, found)
    axes.yaxis.set_major_formatter(lambda value, _: _shown(defaults, value).removesuffix(" ops/s"))
    axes.yaxis.set_visible(defaults["custom"].get("axisPlacement") != "hidden")
    _legend(inner, defaults, found)


def _time_axis(axes: Axes, found: list[Series]) -> None:
    axes.tick_params(length=0, labelsize=7, labelcolor=DIM)
    first = min(line.times[0] for line in found)
    # a minute at least: around a single sample matplotlib would show years
    last = max(first + 60, *(line.times[-1] for line in found))
    axes.set_xlim(first, last)
    every = next((step for step in (60, 300, 600, 1800) if last - first < 8 * step), 3600)
    axes.set_xticks([at for at in range(int(first), int(last)) if at % every == 0])
    axes.xaxis.set_major_formatter(lambda at, _: time.strftime("%H:%M", time.localtime(at)))
    for spine in axes.spines.values():
        spine.set_visible(False)


def _states(inner: Axes, found: list[Series]) -> None:
    axes = inner.inset_axes((0.42, 0.16, 0.56, 0.72), facecolor=PANEL)
    seen: dict[str, str] = {}
    for number, line in enumerate(found):
        runs = itertools.groupby(zip(line.times, line.values, strict=True), lambda point: point[1])
        ends = [*line.times[1:], line.times[-1] + 1]
        until = dict(zip(line.times, ends, strict=True))
        for value, points in runs:
            times = [at for at, _ in points]
            color = _color(line.field, value, number)
            text = _shown(line.field, value)
            seen[text] = color
            axes.barh(
                -number, until[times[-1]] - times[0], 0.8, times[0], color=color, alpha=0.8, lw=0
            )
            wide = until[times[-1]] - times[0] > (line.times[-1] - line.times[0]) / 8
            if wide and line.panel["options"]["showValue"] != "never":
                axes.text(times[0], -number, f" {text}", fontsize=7, va="center", color=BACK)
    axes.set_yticks([-number for number in range(len(found))], [line.name for line in found])
    axes.set_ylim(0.6 - len(found), 0.6)
    axes.margins(x=0)
    _time_axis(axes, found)
    for number, (text, color) in enumerate(seen.items()):
        inner.add_patch(Rectangle((0.02 + number * 0.3, 0.042), 0.025, 0.012, color=color))
        inner.text(0.055 + number * 0.3, 0.03, text, fontsize=7.5, color=TEXT)


def _legend(inner: Axes, field: Json, found: list[Series]) -> None:
    by_max = found[0].panel["options"]["legend"]["sortBy"] == "Max"
    last = sorted(found, key=lambda s: (by_max and max(s.values), s.values[-1]), reverse=True)
    y = 0.06 * min(len(last), LEGEND_ROWS)
    columns = ((0.76, "Last *"), (0.97, "Max"))
    for x, name in columns:
        inner.text(x, y + 0.06, name, fontsize=7, ha="right", color="#6E9FFF")
    for line in last[:LEGEND_ROWS]:
        inner.add_patch(Rectangle((0.02, y + 0.012), 0.03, 0.01, color=line.color))
        inner.text(0.06, y, line.name, fontsize=7.5, color=TEXT)
        for (x, _), value in zip(columns, (line.values[-1], max(line.values)), strict=True):
            inner.text(x, y, _shown(field, value), fontsize=7.5, ha="right", color=TEXT)
        y -= 0.06
    if len(last) > LEGEND_ROWS:
        more = f"⌄ {len(last) - LEGEND_ROWS} more by scrolling"
        inner.text(0.06, 0.01, more, fontsize=6, color=DIM)


def _below_title(inner: Axes) -> float:
    return float(1 - 26 / inner.get_window_extent().height)


def _bars(inner: Axes, found: list[Series]) -> None:
    """An LCD of cells for each series; they are dim in the colours of its scale above its value."""
    shown, top = found[:BARS], _below_title(inner)
    height = (top - 0.03) / len(shown)
    size = 9.0 if len(shown) < 10 else 7.5
    for number, line in enumerate(shown):
        y = top - (number + 1) * height
        inner.text(0.02, y + height * 0.4, line.name, fontsize=size, va="center", color=TEXT)
        for cell in range(CELLS):
            at = line.field["max"] * cell / CELLS
            lit = line.values[-1] > at
            inner.add_patch(
                Rectangle(
                    (0.2 + 0.66 * cell / CELLS, y + height * 0.12),
                    0.66 / CELLS * 0.75,
                    height * 0.64,
                    color=_level(line.field, at),
                    alpha=1 if lit else 0.18,
                    lw=0,
                )
            )
        inner.text(
            0.98,
            y + height * 0.4,
            _shown(line.field, line.values[-1]),
            fontsize=size * 1.4,
            va="center",
            ha="right",
            weight="bold",
            color=line.color,
        )
    if len(found) > BARS:
        inner.text(0.02, 0.005, f"⌄ {len(found) - BARS} more by scrolling", fontsize=6, color=DIM)


def _stat(inner: Axes, found: list[Series]) -> None:
    columns = math.ceil(math.sqrt(len(found) * 2)) if len(found) > 5 else len(found)
    rows = math.ceil(len(found) / columns)
    for number, line in enumerate(found):
        row, column = divmod(number, columns)
        height = _below_title(inner) / rows
        place = (column / columns, (rows - row - 1) * height, 1 / columns, height)
        axes = inner.inset_axes(place)
        axes.axis("off")
        text = _shown(line.field, line.values[-1])
        small = 1 if rows == 1 else 0.6
        axes.text(0.5, 0.66, line.name, ha="center", fontsize=9 * small, color=TEXT)
        size = (24 if len(text) < 8 else 18) * small
        axes.text(0.5, 0.24, text, ha="center", fontsize=size, weight="bold", color=line.color)


def _table(inner: Axes, found: list[Series]) -> None:
    panel = found[0].panel
    columns = panel["transformations"][0]["options"]["renameByName"]
    fields = {name: _field(panel["fieldConfig"], title) for name, title in columns.items()}
    heads = list(columns.values())
    cells = [
        [
            _shown(field, line.values[-1]) if name == "Value" else line.labels[name]
            for name, field in fields.items()
        ]
        for line in found
    ]
    widths = [max(map(len, column)) + 2 for column in zip(heads, *cells, strict=True)]
    room = int(inner.get_window_extent().width / 5.8)  # characters
    while sum(widths) > room:
        widths[widths.index(max(widths))] -= 1
    for number, row in enumerate([heads, *cells]):
        x, y = 0.015, _below_title(inner) - 0.08 - number * 0.1
        for text, width in zip(row, widths, strict=True):
            cut = text if len(text) < width else f"{text[: width - 3]}…"
            inner.text(x, y, cut, fontsize=7.5, color=TEXT if number else "#6E9FFF")
            x += width / room
        inner.axhline(y - 0.03, color=LINE, linewidth=0.5)


_DRAW: Final = {
    "timeseries": _timeseries,
    "bargauge": _bars,
    "stat": _stat,
    "state-timeline": _states,
    "table": _table,
}


def main(dashboard: str, prometheus: str, png: str) -> None:
    """Draw, and exit with the queries that found nothing if there are any."""
    empty = draw(json.loads(Path(dashboard).read_text(encoding="utf-8")), prometheus, Path(png))
    if empty:
        sys.exit("\n".join(["no data for:", *empty]))


if __name__ == "__main__":
    main(*sys.argv[1:])
