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
from monitoring import panels as p
from monitoring.classic import dumps, load_dashboard

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
    (p.WORKERS, ("collapsed",), "false", ALL),
    (p.THROUGHPUT, ("descripton",), "x", ALL),
    (p.THROUGHPUT, ("gridPos", "w"), "12", ALL),
    (p.THROUGHPUT, ("datasource",), "prometheus", ALL),
    (p.THROUGHPUT, ("links", 0, "targetBlank"), "true", ALL),
    (p.THROUGHPUT, ("targets", 0, "legendformat"), "x", ALL),
    (p.THROUGHPUT, ("options", "legend", "displayMode"), "tabel", ALL),
    (p.THROUGHPUT, ("options", "legend", "sortby"), "Max", ALL),
    (p.THROUGHPUT, ("options", "graphMode"), "area", ALL),
    (p.THROUGHPUT, (*DEFAULTS, "unit"), 1, ALL),
    (p.THROUGHPUT, (*DEFAULTS, "color", "mode"), "palette-classic-by-name", ("9",)),
    (p.THROUGHPUT, (*DEFAULTS, "custom", "lineWith"), 1, ALL),
    (p.ERROR_RATE, (*DEFAULTS, "custom", "thresholdsStyle", "mode"), "dash", ALL),
    (p.ERROR_RATE, (*DEFAULTS, "thresholds", "steps", 1, "value"), "0.01", ALL),
    (p.ERROR_RATE, ("fieldConfig", "overrides", 0, "matcher", "id"), "byregexp", ALL),
    (p.ERROR_RATE, ("fieldConfig", "overrides", 0, "properties", 0, "id"), "custom.width", ALL),
    (p.ERROR_RATE, ("fieldConfig", "overrides", 0, "properties", 0, "value"), "1", ALL),
    (p.QUEUE_LIMIT, ("fieldConfig", "overrides", 0, "properties", 0, "value"), "high", ALL),
    (p.QUEUE_LIMIT, ("options", "displayMode"), "retro", ALL),
    (p.QUEUE_LIMIT, ("options", "minVizHeight"), "16", ALL),
    (p.QUEUE_LIMIT, ("options", "sizing"), "auto", ("9",)),
    (p.SCRAPES, ("options", "showValue"), "sometimes", ALL),
    (p.SCRAPES, ("options", "perPage"), 20, ("9", "10")),
    (p.SCRAPES, (*DEFAULTS, "custom", "fillopacity"), 80, ALL),
    (p.SCRAPES, (*DEFAULTS, "mappings", 0, "type"), "values", ALL),
    (p.UPSTREAM_STATUS, (*DEFAULTS, "mappings", 1, "options", "from"), "200", ALL),
    (p.SECRETS, ("options", "frameindex"), 0, ALL),
    (p.SECRETS, ("transformations", 0, "id"), 7, ALL),
    (p.SECRETS, ("targets", 0, "format"), 7, ALL),
    (p.SECRETS, (*DEFAULTS, "custom"), {"hidden": True}, ("12", "13")),
    (p.ACTIVE_JOBS, ("options", "reduceOptions", "calcs"), "lastNotNull", ALL),
    (p.ACTIVE_JOBS, ("options", "colorMode"), "sparkline", ALL),
]


def planted(dashboard: dict[str, Any], plant: Plant) -> dict[str, Any]:
    """Return a copy of the dashboard with the error in it."""
    panel, where, value, _ = plant
    result = json.loads(dumps(dashboard))
    spot: Any = next((one for one in result["panels"] if one["id"] == panel), result)
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
    dashboard = d.deployable(load_dashboard(COMMITTED), rich)
    good = tmp_path / "good.json"
    good.write_text(dumps(dashboard))
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
