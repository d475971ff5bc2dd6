"""The Workers section: what it shows, and what it does to a dashboard that people own."""

from __future__ import annotations

import copy
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from monitoring import dashboard as d

MakeSettings = Callable[..., Settings]

COMMITTED = Path("ops/grafana/dashboard-sba.json")
EMPTY = {"title": "SBA"}
PARTS = ["4xx", "5xx", "timeout"]
ODD_QUEUES = ['quo"te', "back\\slash", "a.*", "/x/", "$queue", "größe"]


def section(dashboard: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the section's panels by id."""
    return {p["id"]: p for p in dashboard["panels"] if p["id"] in d.SECTION}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the section's panels without its row."""
    return [p for p in section(dashboard).values() if p["type"] != "row"]


def steps(thresholds: dict[str, Any]) -> list[tuple[str, float | None]]:
    """Return the thresholds as pairs of colour and value."""
    return [(step["color"], step["value"]) for step in thresholds["steps"]]


def test_committed_file_is_the_generated_one(settings: MakeSettings) -> None:
    generated = d.dumps(d.with_workers(d.load_dashboard(COMMITTED), settings()))
    assert COMMITTED.read_text(encoding="utf-8") == generated
    assert d.load_dashboard(COMMITTED)["title"] == "SBA"
    assert d.load_dashboard(COMMITTED)["uid"] == "sba"


def test_command_renders_the_section_into_a_file(tmp_path: Path) -> None:
    file = tmp_path / "dashboard.json"
    file.write_text(json.dumps({"title": "SBA", "uid": "sba"}), encoding="utf-8")
    command = [sys.executable, "-m", "monitoring.dashboard", str(file)]
    subprocess.run(command, check=True, timeout=60)
    assert section(json.loads(file.read_text())) == section(d.load_dashboard(COMMITTED))


@pytest.mark.parametrize(
    ("id_", "kind", "title", "unit", "queries"),
    [
        (d.THROUGHPUT, "timeseries", "Workers Throughput", "ops", {"throughput": ""}),
        (
            d.ERROR_RATE,
            "timeseries",
            "Workers Error Rate",
            "percentunit",
            {
                "error_rate": "",
                "error4xx_rate": " 4xx",
                "error5xx_rate": " 5xx",
                "timeout_rate": " timeout",
            },
        ),
        (d.QUEUE_DEPTH, "timeseries", "Queue Depth", "none", {"queue_depth": ""}),
        (d.QUEUE_LIMIT, "gauge", "Queue Depth against its limit", "none", {"queue_depth": ""}),
        (d.ACTIVE_JOBS, "stat", "Active Jobs", "none", {"active_jobs": ""}),
    ],
)
def test_panel_shows_worker_gauges_as_they_are(
    settings: MakeSettings, id_: int, kind: str, title: str, unit: str, queries: dict[str, str]
) -> None:
    chosen = settings(job="other-job", grafana={"datasourceUid": "mimir"})
    panel = section(d.with_workers(EMPTY, chosen))[id_]
    datasource = {"type": "prometheus", "uid": "mimir"}
    now = kind != "timeseries"
    assert (panel["type"], panel["title"], panel["datasource"]) == (kind, title, datasource)
    assert panel["fieldConfig"]["defaults"]["unit"] == unit
    assert panel["description"]
    assert panel["targets"] == [
        {
            "refId": ref,
            "datasource": datasource,
            "expr": f'sba_worker_{metric}{{job="other-job", queue_name=~"$queue"}}',
            "legendFormat": "{{queue_name}}" + suffix,
            "instant": now,
            "range": not now,
        }
        for ref, (metric, suffix) in zip("ABCD", queries.items(), strict=False)
    ]


def test_section_is_a_row_and_five_panels_in_the_reserved_range(settings: MakeSettings) -> None:
    dashboard = d.with_workers(EMPTY, settings())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert sorted(ids) == [9100, 9101, 9102, 9103, 9104, 9105]
    row = dashboard["panels"][0]
    assert (row["id"], row["type"], row["title"]) == (9100, "row", "Workers")
    assert "rate(" not in json.dumps(dashboard)


def test_panels_fill_the_grid_without_overlap(settings: MakeSettings) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in section(d.with_workers(EMPTY, settings())).values():
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        own = set(itertools.product(range(x, x + w), range(y, y + h)))
        assert not own & cells
        cells |= own
    height = max(y for _, y in cells) + 1
    assert cells == set(itertools.product(range(24), range(height)))


def test_error_rate_is_red_above_its_limit(settings: MakeSettings) -> None:
    panel = section(d.with_workers(EMPTY, settings(workers={"errorRate": 0.05})))[d.ERROR_RATE]
    defaults = panel["fieldConfig"]["defaults"]
    assert steps(defaults["thresholds"])[0][1] is None
    assert steps(defaults["thresholds"])[1:] == [("red", 0.05)]
    assert "dashed" in defaults["custom"]["thresholdsStyle"]["mode"]
    assert defaults["custom"]["axisSoftMax"] > 0.05
    assert "Red from 5 %." in panel["description"]


def test_only_parts_of_the_error_rate_are_thin_and_dashed(settings: MakeSettings) -> None:
    field = section(d.with_workers(EMPTY, settings()))[d.ERROR_RATE]["fieldConfig"]

    def looks(series: str) -> dict[str, Any]:
        found: dict[str, Any] = {"custom.lineWidth": field["defaults"]["custom"]["lineWidth"]}
        for override in field["overrides"]:
            assert override["matcher"]["id"] == "byRegexp"
            if re.search(override["matcher"]["options"].strip("/"), series):
                found.update({p["id"]: p["value"] for p in override["properties"]})
        return found

    assert looks("email") == {"custom.lineWidth": 2}
    assert looks("4xx") == {"custom.lineWidth": 2}
    for part in PARTS:
        look = looks(f"email {part}")
        assert look["custom.lineWidth"] == 1
        assert look["custom.lineStyle"]["fill"] == "dash"
    assert len({looks(f"email {part}")["color"]["fixedColor"] for part in PARTS}) == 3


def test_gauge_has_the_limits_of_every_queue(settings: MakeSettings) -> None:
    workers = {
        "queueDepth": {"warning": 10, "critical": 40},
        "queues": {name: {"warning": 200, "critical": 800} for name in ODD_QUEUES},
    }
    field = section(d.with_workers(EMPTY, settings(workers=workers)))[d.QUEUE_LIMIT]["fieldConfig"]
    assert steps(field["defaults"]["thresholds"]) == [("green", None), ("yellow", 10), ("red", 40)]
    assert field["defaults"]["max"] == 50
    overrides = field["overrides"]
    assert [o["matcher"]["options"] for o in overrides] == sorted(ODD_QUEUES)
    for override in overrides:
        assert override["matcher"]["id"] == "byName"
        values = {p["id"]: p["value"] for p in override["properties"]}
        assert steps(values["thresholds"]) == [("green", None), ("yellow", 200), ("red", 800)]
        assert values["max"] == 1000


def test_gauge_of_a_queue_that_must_be_empty_has_a_scale(settings: MakeSettings) -> None:
    workers = {"queueDepth": {"warning": 0, "critical": 0}}
    field = section(d.with_workers(EMPTY, settings(workers=workers)))[d.QUEUE_LIMIT]["fieldConfig"]
    assert field["defaults"]["max"] > field["defaults"]["min"]


def test_nothing_depends_on_the_version_of_grafana(settings: MakeSettings) -> None:
    dashboard = d.with_workers(EMPTY, settings())
    assert dashboard["schemaVersion"] == 36
    assert dashboard["refresh"] == "30s"
    assert dashboard["editable"] is False
    assert "hideFrom" not in json.dumps(dashboard)
    for panel in panels(dashboard):
        options, defaults = panel["options"], panel["fieldConfig"]["defaults"]
        if panel["type"] == "timeseries":
            assert options["legend"]["showLegend"] is True
            calcs = options["legend"]["calcs"]
        else:
            calcs = options["reduceOptions"]["calcs"]
        assert set(calcs) <= {"lastNotNull", "max"}
        assert defaults["color"]["mode"] in ("palette-classic", "thresholds", "fixed")


def test_every_panel_links_to_the_runbook(settings: MakeSettings) -> None:
    url = "https://runbook.example/sba#workers"
    with_url = d.with_workers(EMPTY, settings(grafana={"runbookUrl": url}))
    assert [[link["url"] for link in p["links"]] for p in panels(with_url)] == [[url]] * 5
    without = d.with_workers(EMPTY, settings())
    assert [p["links"] for p in panels(without)] == [[]] * 5


def test_queue_variable_lists_the_queues_of_the_job(settings: MakeSettings) -> None:
    chosen = settings(job="other-job", grafana={"datasourceUid": "mimir"})
    (queue,) = d.with_workers(EMPTY, chosen)["templating"]["list"]
    query = 'label_values(sba_worker_queue_depth{job="other-job"}, queue_name)'
    assert (queue["name"], queue["type"], queue["definition"]) == ("queue", "query", query)
    assert queue["query"]["query"] == query
    assert queue["datasource"] == {"type": "prometheus", "uid": "mimir"}
    assert (queue["multi"], queue["includeAll"], queue["allValue"]) == (True, True, ".+")


@pytest.mark.parametrize("job", ['a"b', "a\\", "a\nb", "größe", "a$queue", "${queue}"])
def test_job_is_escaped(settings: MakeSettings, promtool: str, tmp_path: Path, job: str) -> None:
    dashboard = d.with_workers(EMPTY, settings().model_copy(update={"job": job}))
    expressions = [t["expr"] for p in panels(dashboard) for t in p["targets"]]
    for expression in expressions:
        quoted = re.findall(r'job=("(?:[^"\\]|\\.)*"), queue_name=~"\$queue"}$', expression)
        assert [json.loads(text) for text in quoted] == [job]
        assert expression.count("$") == 1  # Grafana replaces any other one, too
    query = dashboard["templating"]["list"][0]["definition"]
    assert "$" not in query
    check_rules(
        promtool, tmp_path, [*expressions, query[len("label_values(") : -len(", queue_name)")]]
    )


def check_rules(promtool: str, folder: Path, expressions: list[str]) -> None:
    """Let promtool parse the expressions, with what Grafana makes of the variable."""
    values = (".+", r"(email|quo\\.te)")
    filled = [text.replace("$queue", value) for text in expressions for value in values]
    rules = [{"record": f"r{number}", "expr": text} for number, text in enumerate(filled)]
    file = folder / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


FOREIGN: dict[str, Any] = {
    "title": "Ours",
    "uid": "ours",
    "schemaVersion": 39,
    "refresh": "5m",
    "tags": ["x"],
    "panels": [
        {"id": 1, "type": "row", "title": "API", "gridPos": {"x": 0, "y": 0, "w": 24, "h": 1}},
        {"id": 2, "type": "table", "title": "T", "gridPos": {"x": 0, "y": 1, "w": 24, "h": 7}},
        {
            "id": 3,
            "type": "row",
            "collapsed": True,
            "gridPos": {"x": 0, "y": 8, "w": 24, "h": 1},
            "panels": [{"id": 4, "type": "text", "gridPos": {"x": 0, "y": 9, "w": 6, "h": 4}}],
        },
        {"id": 9200, "type": "text", "title": "no place"},
    ],
    "templating": {
        "list": [{"name": "env", "type": "custom"}, {"name": "queue", "type": "textbox"}],
        "note": "kept",
    },
}


def test_a_dashboard_of_others_keeps_all_that_is_theirs(settings: MakeSettings) -> None:
    before = copy.deepcopy(FOREIGN)
    after = d.with_workers(FOREIGN, settings())
    assert before == FOREIGN
    assert after["panels"][:4] == FOREIGN["panels"]
    assert [p["id"] in d.SECTION for p in after["panels"]] == [False] * 4 + [True] * 6
    assert after["panels"][4]["gridPos"]["y"] == 9  # below their last row
    variables = after["templating"]["list"]
    assert [v["name"] for v in variables] == ["env", "queue"]
    assert variables[0] == FOREIGN["templating"]["list"][0]
    assert variables[1]["type"] == "query"
    assert after["templating"]["note"] == "kept"
    touched = {"panels", "templating", "editable"}
    assert {k: v for k, v in after.items() if k not in touched} == {
        k: v for k, v in FOREIGN.items() if k not in touched
    }


def test_rendering_twice_changes_nothing(settings: MakeSettings) -> None:
    chosen = settings(grafana={"dashboardUid": "mine"})
    once = d.with_workers(FOREIGN, chosen)
    assert d.dumps(d.with_workers(once, chosen)) == d.dumps(once)


def test_new_limits_replace_the_old_section(settings: MakeSettings) -> None:
    old = d.with_workers(FOREIGN, settings(workers={"queues": {"gone": {}}}))
    new = settings(workers={"queueDepth": {"warning": 1, "critical": 2}})
    assert d.with_workers(old, new) == d.with_workers(FOREIGN, new)


def test_panels_that_were_moved_between_rows_are_found(settings: MakeSettings) -> None:
    clean = d.with_workers(EMPTY, settings())
    row, *ours = clean["panels"]
    theirs = {"id": 7, "type": "text", "gridPos": {"x": 0, "y": 3, "w": 6, "h": 4}}
    moved = {
        "title": "SBA",
        "panels": [
            {"id": 5, "type": "row", "collapsed": True, "panels": [ours[0]]},
            {**row, "collapsed": True, "panels": [*ours[1:], theirs]},
        ],
    }
    after = d.with_workers(moved, settings())["panels"]
    assert after[:2] == [{"id": 5, "type": "row", "collapsed": True, "panels": []}, theirs]
    assert [p["id"] for p in after[2:]] == [p["id"] for p in clean["panels"]]
    assert after[2]["gridPos"]["y"] == 7


@pytest.mark.parametrize(("uid", "expected"), [(None, "ours"), ("mine", "mine")])
def test_uid_is_the_files_unless_the_settings_say_otherwise(
    settings: MakeSettings, uid: str | None, expected: str
) -> None:
    chosen = settings(grafana={"dashboardUid": uid} if uid else {})
    assert d.with_workers(FOREIGN, chosen)["uid"] == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[]", "a JSON object is expected"),
        ('{"apiVersion": "dashboard.grafana.app/v1", "title": "x"}', "v2 or Kubernetes-style"),
        ('{"spec": {}, "title": "x"}', "v2 or Kubernetes-style"),
        ('{"elements": {}, "title": "x"}', "v2 or Kubernetes-style"),
        ('{"__inputs": [], "title": "x"}', "export for sharing"),
        ('{"dashboard": {"title": "x"}, "title": "x"}', "wraps the dashboard"),
        ("{}", "has no title"),
        ('{"title": " "}', "has no title"),
        ('{"title": "x", "rows": []}', "has rows"),
        ('{"title": "x", "panels": {}}', "panels that are no list"),
        ('{"title": "x", "panels": [1]}', "panels that are no list"),
        ('{"title": "x", "templating": {"list": {}}}', "templating.list"),
        ('{"title": "x", "templating": {"list": ["queue"]}}', "templating.list"),
    ],
)
def test_a_file_that_is_no_classic_dashboard_is_refused(
    tmp_path: Path, text: str | None, problem: str
) -> None:
    file = tmp_path / "dashboard.json"
    if text is not None:
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=re.escape(problem)) as refusal:
        d.load_dashboard(file)
    line = str(refusal.value)
    assert line.startswith(f"metrics-proxy:grafana.dashboard: {file} ")
    assert "\n" not in line


@pytest.mark.parametrize("text", ['{"title": "x"}', '{"title": "x", "templating": null}'])
def test_a_bare_dashboard_is_accepted(settings: MakeSettings, tmp_path: Path, text: str) -> None:
    file = tmp_path / "dashboard.json"
    file.write_text(text, encoding="utf-8")
    assert len(d.with_workers(d.load_dashboard(file), settings())["panels"]) == 6
