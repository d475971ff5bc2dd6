"""Classic dashboard JSON as people have it: read, checked, and written as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from config.settings import NAMESPACE, SettingsError

Json = dict[str, Any]

KEY: Final = f"{NAMESPACE}:grafana.dashboard"
"""What every refusal begins with."""


def load_dashboard(path: str | Path) -> Json:
    """Read a classic dashboard JSON; raise a `SettingsError` of one line for anything else."""
    try:
        dashboard = json.loads(
            Path(path).read_text(encoding="utf-8-sig"),
            parse_constant=_no_number,
            parse_float=_finite,
        )
        problem = next(_problems(dashboard), "")
        if not problem:
            return dict(dashboard)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError) as error:
        problem = f"is not JSON ({error})"
    raise SettingsError(f"{KEY}: {path} {problem}")


def dumps(dashboard: Mapping[str, Any], like: str = "") -> str:
    """Return the text of a dashboard file, in the form of the text `like`."""
    indent = re.search(r"\A\ufeff?{\n([ \t]+)", like)
    compact = bool(like) and "\n" not in like.strip()
    text = json.dumps(
        dashboard,
        indent=indent[1] if indent else None if compact else 2,
        separators=(",", ":") if compact else None,
        ensure_ascii=bool(like) and like.removeprefix("\ufeff").isascii(),
    )
    # UTF-8 has no halves of a character, which JavaScript cuts titles into: they stay escaped
    text = re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)
    mark = "\ufeff" if like.startswith("\ufeff") else ""
    end = "" if like and not like.endswith("\n") else "\n"
    return mark + text + end


def fill_inputs(dashboard: Json, datasource_uid: str) -> Json:
    """Return an export for sharing with its Prometheus data sources filled in."""
    names = [item["name"] for item in _used_inputs(dashboard)]
    if not names:
        return dashboard
    pattern = re.compile(r"\$\{(" + "|".join(map(re.escape, names)) + r")\}")
    return dict(_strings(dashboard, lambda text: pattern.sub(lambda _: datasource_uid, text)))


def walk(panels: object) -> Iterator[Json]:
    """Yield panels and, after each row, those in it."""
    for panel in panels if isinstance(panels, list) else ():
        yield panel
        yield from walk(panel.get("panels"))


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    return number if abs(number) != float("inf") else _no_number(text)


def _problems(dashboard: object) -> Iterator[str]:
    """Say why `dashboard` is no classic dashboard JSON."""
    if not isinstance(dashboard, dict):
        yield "is not a dashboard: a JSON object is expected"
        return
    if "apiVersion" in dashboard or "spec" in dashboard or "elements" in dashboard:
        yield "is a v2 or Kubernetes-style dashboard; export it as classic JSON"
    if isinstance(dashboard.get("dashboard"), dict):
        yield "wraps the dashboard, as the HTTP API does; keep the value of its key dashboard"
    title, uid = dashboard.get("title"), dashboard.get("uid")
    if not isinstance(title, str) or not title.strip():
        yield "has no title"
    if uid is not None and not (isinstance(uid, str) and re.fullmatch(r"[A-Za-z0-9_-]{0,40}", uid)):
        yield f"has the uid {json.dumps(uid)}: at most 40 letters, digits, - and _ are allowed"
    if dashboard.get("rows"):
        yield "has rows in place of panels, as before Grafana 5; save it with a newer one"
    yield from _panel_problems(dashboard.get("panels"), "panels")
    templating = dashboard.get("templating")
    if not isinstance(templating, dict | None):
        yield "has a templating that is no object"
    elif not _is_objects((templating or {}).get("list")):
        yield "has a templating.list that is no list of objects"
    elif not _is_objects(dashboard.get("__inputs")):
        yield "has __inputs that are no list of objects"
    else:
        for item in _used_inputs(dashboard):
            if (item.get("type"), item.get("pluginId")) != ("datasource", "prometheus"):
                yield (
                    f"is an export for sharing whose input {item['name']} is no Prometheus data "
                    "source; export it without that option"
                )


def _is_objects(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(v, dict) for v in value))


def _panel_problems(panels: object, place: str) -> Iterator[str]:
    if not isinstance(panels, list | None):
        yield f"has {place} that is no list"
        return
    for number, panel in enumerate(panels or ()):
        here = f"{place}[{number}]"
        if not isinstance(panel, dict):
            yield f"has {here} that is no object"
            continue
        grid = panel.get("gridPos", {})
        if not isinstance(grid, dict):
            yield f"has {here}.gridPos that is no object"
        elif any(not isinstance(grid.get(key, 0), int | float) for key in "xywh"):
            yield f"has {here}.gridPos that holds no numbers"
        yield from _panel_problems(panel.get("panels"), f"{here}.panels")


def _used_inputs(dashboard: Mapping[str, Any]) -> Iterator[Json]:
    """Yield the inputs that are used, but for those that have a variable of their name."""
    texts: list[str] = []
    _strings({k: v for k, v in dashboard.items() if k != "__inputs"}, texts.append)
    variables = ((dashboard.get("templating") or {}).get("list")) or []
    known = [variable.get("name") for variable in variables]
    for item in dashboard.get("__inputs") or ():
        name = item.get("name")
        used = any(f"${{{name}}}" in text for text in texts)
        if used and isinstance(name, str) and name not in known:
            yield item


def _strings(value: Any, change: Callable[[str], Any]) -> Any:
    """Return `value` with `change` applied to every text in it, keys aside."""
    if isinstance(value, dict):
        return {key: _strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_strings(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
