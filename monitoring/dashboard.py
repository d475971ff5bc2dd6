"""The program's sections, rendered into a Grafana dashboard that people own by hand.

`python -m monitoring.dashboard [--remove] FILE` renders them into FILE for the default settings, or
takes them out again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from config.files import replace
from config.settings import NAMESPACE, Settings, SettingsError
from monitoring import proxy, workers
from monitoring.classic import KEY, Json, dumps, fill_inputs, load_dashboard, walk
from monitoring.panels import OWN

_SECTIONS: Final = (workers.section, proxy.section)

_PLACES: Final = ("panels", "templating", "templating.list")
"""What the sections are put into, and what a dashboard may lack or have as null."""


def of_stack(settings: Settings, folder: Path) -> Json | None:
    """Return what Grafana is given of the file that `settings` name, below `folder`."""
    if not settings.grafana.enabled:
        return None
    return deployable(load_dashboard(folder / settings.grafana.dashboard), settings)


def deployable(dashboard: Json, settings: Settings) -> Json:
    """Return what Grafana is given: the sections, and what the settings say of the whole."""
    result = with_sections(fill_inputs(dashboard, settings.grafana.datasource_uid), settings)
    if settings.grafana.dashboard_uid is not None:
        result["uid"] = settings.grafana.dashboard_uid
    return result


def with_sections(dashboard: Mapping[str, Any], settings: Settings) -> Json:
    """Return `dashboard` with the sections below what is in it, in place of those that were there.

    All that is not the program's stays as it is: raises a `SettingsError` where a panel or a
    variable is in the way.
    """
    clean = without_sections(dashboard)
    panels, templating = clean.get("panels") or [], clean.get("templating") or {}
    variables = templating.get("list") or []
    for panel in walk(panels):
        if title := _own_title(panel):
            raise SettingsError(
                f"{KEY}: the panel {panel.get('title')!r} has the id {panel['id']}, which is "
                f"that of the program's {title!r}; give it another id"
            )
    names = [variable.get("name") for variable in variables]
    if workers.VARIABLE in names:
        raise SettingsError(
            f"{KEY}: its variable {workers.VARIABLE!r} has the name of the program's; rename it"
        )
    uid = settings.grafana.datasource_uid
    if uid.startswith("$") and uid[2:-1] not in names:
        raise SettingsError(
            f"{NAMESPACE}:grafana.datasourceUid: {uid} is no variable of the dashboard"
        )
    panels = [*panels]
    for section in _SECTIONS:
        panels += section(settings, max(map(_bottom, panels), default=0))
    variable = workers.variable(settings, " ".join(["queue", *_gaps(clean)]))
    return {
        **clean,
        "panels": panels,
        "templating": {**templating, "list": [*variables, variable]},
    }


def without_sections(dashboard: Mapping[str, Any]) -> Json:
    """Return `dashboard` as it was before `with_sections`, but for what people did since."""
    result = dict(dashboard)
    if panels := dashboard.get("panels"):
        result["panels"] = list(_others(panels))
    variables = (dashboard.get("templating") or {}).get("list") or []
    for variable in filter(_is_own_variable, variables):
        rest = [other for other in variables if not _is_own_variable(other)]
        result["templating"] = {**result["templating"], "list": rest}
        for gap in str(variable["query"].get("refId")).split()[1:]:
            _make_gap(result, *gap.split(":"))
    return result


def _gaps(dashboard: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is missing or null of `_PLACES`, to be kept with the variable's query."""
    for place in _PLACES:
        above, _, key = place.rpartition(".")
        holder = dashboard.get(above) if above else dashboard
        if holder is not None and holder.get(key) is None:
            yield f"{place}:{'null' if key in holder else 'missing'}"


def _make_gap(dashboard: Json, place: str, kind: str) -> None:
    """Undo what filled a gap, unless people have put something there since."""
    above, _, key = place.rpartition(".")
    holder = dashboard[above] if above else dashboard
    if holder.get(key) in ([], {"list": []}):
        holder[key] = None
        if kind == "missing":
            del holder[key]


def _others(panels: list[Json]) -> Iterator[Json]:
    """Yield the panels that are not the program's.

    Collapsed rows hold their panels: what people moved into a row of ours comes out of it, and what
    they moved out of it into a row of theirs is dropped there.
    """
    for panel in panels:
        inner = list(_others(panel.get("panels") or []))
        if (title := _own_title(panel)) and title == panel.get("title"):
            yield from inner
        else:
            yield {**panel, "panels": inner} if inner != (panel.get("panels") or []) else panel


def _own_title(panel: Json) -> str | None:
    """The title of the program's panel with this id: Grafana's pages compare ids as text, too."""
    try:
        return OWN[int(panel["id"])][0]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _is_own_variable(variable: Json) -> bool:
    query = variable.get("query")
    return (
        variable.get("name") == workers.VARIABLE
        and isinstance(query, dict)
        and workers.GAUGE in str(query.get("query"))
    )


def _bottom(panel: Json) -> int:
    place = panel.get("gridPos") or {}
    return math.ceil(float(place.get("y", 0)) + float(place.get("h", 0)))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.dashboard",
        description="Render the program's sections into a dashboard, for the default settings.",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--remove", action="store_true", help="take the sections out again")
    options = parser.parse_args(arguments)
    # The sections need none of the required settings, and their defaults for the rest.
    settings = Settings.model_construct(stack="", subnet_id="", prometheus_cidrs=())
    try:
        dashboard = load_dashboard(options.file)
        result = (
            without_sections(dashboard) if options.remove else with_sections(dashboard, settings)
        )
    except SettingsError as error:
        sys.exit(str(error))
    replace(options.file, dumps(result, like=options.file.read_bytes().decode()))


if __name__ == "__main__":
    main()
