"""The dashboard against the types that Grafana 9 to 13 publish, and errors planted to be found."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config.settings import Settings
from monitoring import dashboard as d

HERE = Path(__file__).parent / "grafana-schema"
CACHE = Path(".cache/grafana-schema")
COMMITTED = Path("ops/grafana/dashboard-sba.json")
ALL = ("9", "10", "11", "12", "13")

# What is planted: the panel's id or None for the dashboard, where, what, and who must see it.
Plant = tuple[int | None, tuple[str | int, ...], object, tuple[str, ...]]
DEFAULTS = ("fieldConfig", "defaults")
PLANTS: list[Plant] = [
    (None, ("schemaVersion",), "36", ALL),
    (None, ("refrsh",), "30s", ALL),
    (None, ("graphTooltip",), 3, ALL),
    (None, ("templating", "list", 0, "type"), "qury", ALL),
    (None, ("templating", "list", 0, "includeall"), True, ALL),
    (None, ("templating", "list", 0, "allowCustomValue"), True, ("9", "10")),
    (d.ROW, ("collapsed",), "false", ALL),
    (d.THROUGHPUT, ("descripton",), "x", ALL),
    (d.THROUGHPUT, ("gridPos", "w"), "12", ALL),
    (d.THROUGHPUT, ("datasource",), "prometheus", ALL),
    (d.THROUGHPUT, ("links", 0, "targetBlank"), "true", ALL),
    (d.THROUGHPUT, ("targets", 0, "legendformat"), "x", ALL),
    (d.THROUGHPUT, ("options", "legend", "displayMode"), "tabel", ALL),
    (d.THROUGHPUT, ("options", "legend", "sortby"), "Max", ALL),
    (d.THROUGHPUT, ("options", "graphMode"), "area", ALL),
    (d.THROUGHPUT, (*DEFAULTS, "unit"), 1, ALL),
    (d.THROUGHPUT, (*DEFAULTS, "color", "mode"), "palette-classic-by-name", ("9",)),
    (d.THROUGHPUT, (*DEFAULTS, "custom", "lineWith"), 1, ALL),
    (d.ERROR_RATE, (*DEFAULTS, "custom", "thresholdsStyle", "mode"), "dash", ALL),
    (d.ERROR_RATE, (*DEFAULTS, "thresholds", "steps", 1, "value"), "0.01", ALL),
    (d.ERROR_RATE, ("fieldConfig", "overrides", 0, "matcher", "id"), "byregexp", ALL),
    (d.ERROR_RATE, ("fieldConfig", "overrides", 0, "properties", 0, "id"), "custom.width", ALL),
    (d.ERROR_RATE, ("fieldConfig", "overrides", 0, "properties", 0, "value"), "1", ALL),
    (d.QUEUE_LIMIT, ("fieldConfig", "overrides", 0, "properties", 0, "value"), "high", ALL),
    (d.QUEUE_LIMIT, ("options", "shape"), "circle", ("9", "10", "11")),
    (d.ACTIVE_JOBS, ("options", "reduceOptions", "calcs"), "lastNotNull", ALL),
    (d.ACTIVE_JOBS, ("options", "colorMode"), "sparkline", ALL),
]


def planted(dashboard: dict[str, Any], plant: Plant) -> dict[str, Any]:
    """Return a copy of the dashboard with the error in it."""
    panel, where, value, _ = plant
    result = json.loads(d.dumps(dashboard))
    spot: Any = next((p for p in result["panels"] if p["id"] == panel), result)
    for key in where[:-1]:
        spot = spot[key]
    spot[where[-1]] = value
    return dict(result)


def install() -> None:
    """Bring the types into the cache; what the registry sends must match the lock file's hashes."""
    lock = (HERE / "package-lock.json").read_text()
    installed = CACHE / "installed.json"
    if installed.exists() and installed.read_text() == lock:
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(HERE / name, CACHE / name)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=CACHE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    installed.write_text(lock)


def check(files: list[Path]) -> list[dict[str, str]]:
    """Return the errors that the checker sees in the files."""
    command = ["node", str(HERE / "check.mjs"), str(CACHE), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_lock_file_names_no_registry_and_has_every_hash() -> None:
    text = (HERE / "package-lock.json").read_text()
    assert "resolved" not in text
    assert "://" not in text
    packages = json.loads(text)["packages"]
    assert all("integrity" in package for name, package in packages.items() if name)


def test_grafana_9_to_13_accept_the_dashboard_and_see_planted_errors(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    install()
    rich = settings(
        grafana={"runbookUrl": "https://runbook.example", "dashboardUid": "mine"},
        workers={"queues": {"email": {"warning": 500, "critical": 2000}}},
    )
    dashboard = d.with_workers(d.load_dashboard(COMMITTED), rich)
    good = tmp_path / "good.json"
    good.write_text(d.dumps(dashboard))
    bad = [tmp_path / f"bad{number}.json" for number in range(len(PLANTS))]
    for file, plant in zip(bad, PLANTS, strict=True):
        file.write_text(json.dumps(planted(dashboard, plant)))

    # All in one run: reading the types takes longer than checking a dashboard against them.
    errors = check([COMMITTED, good, *bad])

    seen = {(error.get("file"), error.get("part"), error["grafana"]) for error in errors}
    expected = {
        (str(file), "dashboard" if panel is None else f"panel {panel}", grafana)
        for file, (panel, _, _, versions) in zip(bad, PLANTS, strict=True)
        for grafana in versions
    }
    assert seen == expected, errors
