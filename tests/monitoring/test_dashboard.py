"""The sections: what they show, and that nothing which could be shown is left out."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from monitoring import dashboard as d
from monitoring import panels as p
from monitoring.classic import dumps, load_dashboard
from monitoring.workers import VARIABLE
from tests.monitoring.conftest import FLEET

MakeSettings = Callable[..., Settings]

COMMITTED = Path("ops/grafana/dashboard-sba.json")
EMPTY = {"title": "SBA"}
PARTS = ["4xx", "5xx", "timeout"]
ODD_QUEUES = ['quo"te', "back\\slash", "a.*", "/x/", "$queue", "größe"]
WORKERS = {
    *("throughput", "error_rate", "error4xx_rate", "error5xx_rate", "timeout_rate"),
    *("queue_depth", "active_jobs"),
}


def panels(dashboard: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the panels by id, without rows."""
    return {p["id"]: p for p in dashboard["panels"] if p["type"] != "row"}


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in panels(dashboard).values() for target in panel["targets"]]


def steps(thresholds: dict[str, Any]) -> list[tuple[str, float | None]]:
    """Return the thresholds as pairs of colour and value."""
    return [(step["color"], step["value"]) for step in thresholds["steps"]]


def test_committed_file_is_the_generated_one(settings: MakeSettings) -> None:
    committed = load_dashboard(COMMITTED)
    generated = dumps(d.with_sections(committed, settings()))
    assert COMMITTED.read_text(encoding="utf-8") == generated
    assert (committed["title"], committed["uid"]) == ("SBA", "sba")
    # the file is the program's: the next `pulumi up` would undo what is edited in Grafana
    assert committed["editable"] is False
    assert committed["refresh"] == "30s"
    assert committed["schemaVersion"] == 36


@pytest.mark.parametrize(
    ("id_", "kind", "unit", "shown"),
    [
        (p.THROUGHPUT, "timeseries", "ops", {"sba_worker_throughput": "{{queue_name}}"}),
        (
            p.ERROR_RATE,
            "timeseries",
            "percentunit",
            {
                "sba_worker_error_rate": "{{queue_name}}",
                "sba_worker_error4xx_rate": "{{queue_name}} 4xx",
                "sba_worker_error5xx_rate": "{{queue_name}} 5xx",
                "sba_worker_timeout_rate": "{{queue_name}} timeout",
            },
        ),
        (p.QUEUE_DEPTH, "timeseries", "none", {"sba_worker_queue_depth": "{{queue_name}}"}),
        (p.QUEUE_LIMIT, "bargauge", "none", {"sba_worker_queue_depth": "{{queue_name}}"}),
        (p.ACTIVE_JOBS, "stat", "none", {"sba_worker_active_jobs": "{{queue_name}}"}),
    ],
)
def test_a_panel_shows_the_workers_gauges_as_they_are(
    settings: MakeSettings, id_: int, kind: str, unit: str, shown: dict[str, str]
) -> None:
    chosen = settings(job="other-api", grafana={"datasourceUid": "mimir"})
    panel = panels(d.with_sections(EMPTY, chosen))[id_]
    datasource = {"type": "prometheus", "uid": "mimir"}
    now = kind != "timeseries"
    assert (panel["type"], panel["datasource"]) == (kind, datasource)
    assert panel["fieldConfig"]["defaults"]["unit"] == unit
    selectors = [f'{metric}{{job="other-api", queue_name=~"$sba_queue"}}' for metric in shown]
    if id_ == p.QUEUE_LIMIT:
        selectors = [f"sort_desc({text})" for text in selectors]
    assert panel["targets"] == [
        {
            "refId": ref,
            "datasource": datasource,
            "expr": expression,
            "legendFormat": legend,
            "instant": now,
            "range": not now,
        }
        for ref, expression, legend in zip("ABCD", selectors, shown.values(), strict=False)
    ]


def test_every_panel_says_what_it_shows(settings: MakeSettings) -> None:
    dashboard = d.with_sections(EMPTY, settings())
    assert {panel["id"]: panel["title"] for panel in dashboard["panels"]} == {
        id_: title for id_, (title, _) in p.OWN.items()
    }
    for panel in panels(dashboard).values():
        assert panel["description"].endswith(".")
        assert "rate(" not in json.dumps(panel)


def test_what_people_add_in_grafana_gets_no_id_of_ours(settings: MakeSettings) -> None:
    """Grafana numbers a new panel, a copy and one without an id highest + 1."""
    highest = max(panel["id"] for panel in d.with_sections(EMPTY, settings())["panels"])
    assert highest == max(p.OWN) == 9199
    added = {"id": highest + 1, "type": "text", "title": p.OWN[p.QUEUE_DEPTH][0]}
    dashboard = d.with_sections(EMPTY, settings())
    dashboard["panels"].append(added)
    assert added in d.with_sections(dashboard, settings())["panels"]


@pytest.mark.parametrize("queues", [0, 7, 8, 50])
def test_panels_fill_the_grid_without_overlap(settings: MakeSettings, queues: int) -> None:
    limits: dict[str, object] = {f"queue-{number}": {} for number in range(queues)}
    dashboard = d.with_sections(EMPTY, settings(workers={"queues": limits}))
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        own = set(itertools.product(range(x, x + w), range(y, y + h)))
        assert not own & cells
        cells |= own
    height = max(y for _, y in cells) + 1
    assert cells == set(itertools.product(range(24), range(height)))


def test_a_bar_for_each_queue_is_high_enough_to_read(settings: MakeSettings) -> None:
    """Grafana gives a bar its share of the panel, at least `minVizHeight`, and then scrolls."""
    for number in range(60):
        limits: dict[str, object] = {f"queue-{n}": {} for n in range(number)}
        panel = panels(d.with_sections(EMPTY, settings(workers={"queues": limits})))[p.QUEUE_LIMIT]
        height = panel["gridPos"]["h"] * 38 - 50
        assert panel["options"]["minVizHeight"] == 16
        assert panel["options"]["orientation"] == "horizontal"
        assert panel["gridPos"]["h"] <= 16
        scrolls = panel["gridPos"]["h"] == 16
        assert scrolls or height / max(number, 1) >= 16 + 6


def test_error_rate_is_red_above_its_limit(settings: MakeSettings) -> None:
    panel = panels(d.with_sections(EMPTY, settings(workers={"errorRate": 0.05})))[p.ERROR_RATE]
    defaults = panel["fieldConfig"]["defaults"]
    assert steps(defaults["thresholds"])[0][1] is None
    assert steps(defaults["thresholds"])[1:] == [("red", 0.05)]
    assert "dashed" in defaults["custom"]["thresholdsStyle"]["mode"]
    assert defaults["custom"]["axisSoftMax"] > 0.05
    assert "Red from 5 %." in panel["description"]


def test_only_parts_of_the_error_rate_are_thin_and_dashed(settings: MakeSettings) -> None:
    field = panels(d.with_sections(EMPTY, settings()))[p.ERROR_RATE]["fieldConfig"]

    def looks(series: str) -> dict[str, Any]:
        found: dict[str, Any] = {"custom.lineWidth": field["defaults"]["custom"]["lineWidth"]}
        for override in field["overrides"]:
            assert override["matcher"]["id"] == "byRegexp"
            if re.search(override["matcher"]["options"].strip("/"), series):
                found.update({prop["id"]: prop["value"] for prop in override["properties"]})
        return found

    assert looks("email") == {"custom.lineWidth": 2}
    assert looks("4xx") == {"custom.lineWidth": 2}
    for part in PARTS:
        look = looks(f"email {part}")
        assert look["custom.lineWidth"] == 1
        assert look["custom.lineStyle"]["fill"] == "dash"
    assert len({looks(f"email {part}")["color"]["fixedColor"] for part in PARTS}) == 3


def test_every_queue_has_a_bar_with_its_own_limits(settings: MakeSettings) -> None:
    workers = {
        "queueDepth": {"warning": 10, "critical": 40},
        "queues": {name: {"warning": 200, "critical": 800} for name in ODD_QUEUES},
    }
    field = panels(d.with_sections(EMPTY, settings(workers=workers)))[p.QUEUE_LIMIT]["fieldConfig"]
    assert steps(field["defaults"]["thresholds"]) == [("green", None), ("yellow", 10), ("red", 40)]
    assert field["defaults"]["max"] == 50
    overrides = field["overrides"]
    assert [o["matcher"]["options"] for o in overrides] == sorted(ODD_QUEUES)
    for override in overrides:
        assert override["matcher"]["id"] == "byName"
        values = {prop["id"]: prop["value"] for prop in override["properties"]}
        assert steps(values["thresholds"]) == [("green", None), ("yellow", 200), ("red", 800)]
        assert values["max"] == 1000


def test_the_bar_of_a_queue_that_must_be_empty_has_a_scale(settings: MakeSettings) -> None:
    workers = {"queueDepth": {"warning": 0, "critical": 0}}
    field = panels(d.with_sections(EMPTY, settings(workers=workers)))[p.QUEUE_LIMIT]["fieldConfig"]
    assert field["defaults"]["max"] > field["defaults"]["min"]


def test_the_last_sync_is_late_after_three_intervals(settings: MakeSettings) -> None:
    panel = panels(d.with_sections(EMPTY, settings(syncInterval=30)))[p.LAST_SYNC]
    thresholds = panel["fieldConfig"]["defaults"]["thresholds"]
    assert steps(thresholds) == [("green", None), ("yellow", 90), ("red", 390)]
    assert "every 30 s" in panel["description"]


def test_no_state_of_the_proxy_is_a_bare_number(settings: MakeSettings) -> None:
    """0 and 1 have words, and bad ones are not green."""
    bad = {p.SCRAPES: "0", p.IN_SYNC: "0", p.REBOOT: "1", p.UPSTREAM_STATUS: "0"}
    for id_, panel in panels(d.with_sections(EMPTY, settings())).items():
        mappings = panel["fieldConfig"]["defaults"].get("mappings")
        assert (mappings is not None) == (id_ in bad), panel["title"]
        if mappings:
            options = mappings[0]["options"]
            assert options[bad[id_]]["color"] != "green"
            assert all(option["text"] and option["color"] for option in options.values())
            # by thresholds, the legend of a state timeline would not have the words
            assert panel["fieldConfig"]["defaults"]["color"]["mode"] == "fixed"


def test_nothing_depends_on_the_version_of_grafana(settings: MakeSettings) -> None:
    dashboard = d.with_sections(EMPTY, settings())
    # What Grafana's migrations from 36 on would touch: none of it.
    assert "hideFrom" not in json.dumps(dashboard)
    assert "displayMode" not in json.dumps(
        [panel["fieldConfig"] for panel in panels(dashboard).values()]
    )
    for panel in panels(dashboard).values():
        legend = panel["options"].get("legend")
        assert legend is None or legend["showLegend"] is True
        color = panel["fieldConfig"]["defaults"].get("color")
        assert color is None or color["mode"] in ("palette-classic", "thresholds", "fixed")


def test_every_panel_links_to_its_place_in_the_runbook(settings: MakeSettings) -> None:
    url = "https://runbook.example/sba"
    with_url = panels(d.with_sections(EMPTY, settings(grafana={"runbookUrl": url})))
    for id_, panel in with_url.items():
        assert [link["url"] for link in panel["links"]] == [f"{url}#{p.OWN[id_][1]}"]
        assert p.OWN[id_][1]
    without = panels(d.with_sections(EMPTY, settings()))
    assert not any(panel["links"] for panel in without.values())


def test_queue_variable_lists_the_queues_of_the_job(settings: MakeSettings) -> None:
    chosen = settings(job="other-job", grafana={"datasourceUid": "mimir"})
    (queue,) = d.with_sections(EMPTY, chosen)["templating"]["list"]
    query = 'label_values(sba_worker_queue_depth{job="other-job"}, queue_name)'
    assert (queue["name"], queue["type"], queue["definition"]) == ("sba_queue", "query", query)
    assert queue["query"]["query"] == query
    assert queue["datasource"] == {"type": "prometheus", "uid": "mimir"}
    assert (queue["multi"], queue["includeAll"], queue["allValue"]) == (True, True, ".+")


@pytest.mark.parametrize("job", ['a"b', "a\\", "a\nb", "größe", "a$queue", "${queue}"])
def test_job_is_escaped(settings: MakeSettings, promtool: str, tmp_path: Path, job: str) -> None:
    dashboard = d.with_sections(EMPTY, settings().model_copy(update={"job": job}))
    expressions = queries(dashboard)
    for expression in expressions:
        quoted = re.findall(r'job=("(?:[^"\\]|\\.)*")', expression)
        assert {json.loads(text) for text in quoted} <= {job, f"{job}-proxy"}
        assert quoted
        # Grafana replaces any other one, too
        assert expression.replace(f"${VARIABLE}", "").count("$") == 0
    query = dashboard["templating"]["list"][0]["definition"]
    assert "$" not in query
    check_rules(
        promtool, tmp_path, [*expressions, query[len("label_values(") : -len(", queue_name)")]]
    )


def check_rules(promtool: str, folder: Path, expressions: list[str]) -> None:
    """Let promtool parse the expressions, with what Grafana makes of the variable."""
    values = (".+", r"(email|quo\\.te)")
    filled = {text.replace(f"${VARIABLE}", value) for text in expressions for value in values}
    rules = [{"record": f"r{number}", "expr": text} for number, text in enumerate(filled)]
    file = folder / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_all_that_the_workers_and_the_sync_export_is_shown(settings: MakeSettings) -> None:
    text = " ".join(queries(d.with_sections(EMPTY, settings())))
    shown = {prefix: set(re.findall(rf"{prefix}_(\w+)", text)) for prefix in PREFIXES}
    assert shown["sba_worker"] == WORKERS
    source = Path("host/sync.py").read_text()
    exported = set(re.findall(r"""\bshow\(\s*["'](\w+)["']""", source))
    assert exported >= {"secret_info", "sync_failed"}
    assert shown["metrics_proxy"] == exported


def test_a_fleets_machines_are_told_apart_by_their_zones(settings: MakeSettings) -> None:
    one, fleet = (
        json.dumps(panels(d.with_sections(EMPTY, it))) for it in (settings(), settings(**FLEET))
    )
    assert re.search(r"\bzone\b", one) is None
    assert re.search(r"\binstance\b", fleet) is None
    # but for the endpoints, of which a fleet's load balancer is asked
    assert fleet.count("{{zone}}") == one.count("{{instance}}") - 1


PREFIXES = ("sba_worker", "metrics_proxy")
