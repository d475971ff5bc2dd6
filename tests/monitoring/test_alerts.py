"""The alerts: each fires on its cause and nothing else does; every part of every rule counts."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from monitoring import alerts
from monitoring.dashboard import with_sections
from tests.monitoring.alert_cases import CASES, CONFIG, MINUTES, TABLE, Case
from tests.monitoring.alert_mutants import Rule, mutants
from tests.monitoring.fleet_cases import FLEET_CASES, FLEET_CONFIG, FLEET_TABLE

MakeSettings = Callable[..., Settings]

COMMITTED = Path("ops/prometheus/rules.yml")
LABELS = "alertname, severity, service, queue_name, endpoint, reason, instance, zone, threshold"

KINDS = {"one machine": (CONFIG, CASES), "fleet": (FLEET_CONFIG, FLEET_CASES)}
"""Settings of the rules, and the cases that they meet."""

each_kind = pytest.mark.parametrize("kind", KINDS)


def rules_of(settings: Settings) -> list[Rule]:
    return list(alerts.prometheus(settings)["groups"][0]["rules"])


def labelled(labels: Mapping[str, str]) -> str:
    return (
        "{" + ", ".join(f"{key}={json.dumps(text)}" for key, text in sorted(labels.items())) + "}"
    )


def samples(case: Case) -> list[dict[str, str]]:
    """The series of a case as promtool reads them; `stale` is what a failed scrape leaves."""

    def text(value: float | None) -> str:
        return "stale" if value is None else repr(value)

    return [
        {
            "series": f"{name}{labelled(dict(labels))}",
            "values": " ".join(text(line(minute)) for minute in range(MINUTES)),
        }
        for (name, labels), line in case.world.items()
    ]


def firing(case: Case, minute: int) -> list[dict[str, Any]]:
    """What fires in a minute, as promtool expects it."""
    return [
        {
            "labels": labelled(
                {
                    "alertname": name,
                    "severity": FLEET_TABLE[name][0],
                    "service": "sba-api",
                    **dict(labels),
                }
            ),
            "value": 1,
        }
        for (name, labels), (begin, end) in case.fires.items()
        if begin <= minute < end
    ]


def write_test(folder: Path, name: str, rules: list[Rule], tests: list[dict[str, Any]]) -> str:
    """Write a file for `promtool test rules`; return its name."""
    (folder / f"{name}.rules").write_text(json.dumps({"groups": [{"name": name, "rules": rules}]}))
    document = {"rule_files": [f"{name}.rules"], "evaluation_interval": "1m", "tests": tests}
    (folder / f"{name}.test").write_text(json.dumps(document))
    return f"{name}.test"


def run(promtool: str, folder: Path, *files: str) -> str:
    """Return what `promtool test rules` finds wrong, or nothing."""
    command = [promtool, "test", "rules", *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    return "" if done.returncode == 0 else (done.stdout + done.stderr).replace("\n\n", "")


@each_kind
def test_exactly_the_right_alerts_fire_at_every_minute_of_every_case(
    settings: MakeSettings, promtool: str, tmp_path: Path, kind: str
) -> None:
    config, cases = KINDS[kind]
    rules = rules_of(settings(**config))
    everything = f'count by ({LABELS}) (ALERTS{{alertstate="firing"}})  # '
    # Grafana fires on a value above 0: there is none below, at any time
    values = [f"count_over_time((({rule['expr']}) <= 0)[{MINUTES}m:1m])" for rule in rules]
    tests = [
        {
            "name": case.name,
            "interval": "1m",
            "input_series": samples(case),
            "promql_expr_test": [
                *(
                    {
                        "expr": everything + case.name,
                        "eval_time": f"{minute}m",
                        "exp_samples": firing(case, minute),
                    }
                    for minute in range(MINUTES)
                ),
                *(
                    {"expr": f"{it}  # {case.name}", "eval_time": f"{MINUTES - 1}m"}
                    for it in values
                ),
            ],
        }
        for case in cases
    ]
    said = run(promtool, tmp_path, write_test(tmp_path, "all", rules, tests))
    assert not said, said[:5_000]


def fired(case: Case, rule: Rule) -> dict[str, Any]:
    """Whether a mutant has fired for as many minutes as its original has to, and so labelled."""
    origin = rule["alert"].partition("__")[0]
    minutes: Counter[str] = Counter()
    for minute in range(MINUTES):
        for it in firing(case, minute):
            labels = it["labels"].replace(f'alertname="{origin}", ', "")
            minutes[labels] += labels != it["labels"]
    alerts_ = f'ALERTS{{alertname="{rule["alert"]}", alertstate="firing"}}'
    return {
        "expr": f"sum by ({LABELS.removeprefix('alertname, ')}) "
        f"(count_over_time({alerts_}[{MINUTES}m]))",
        "eval_time": f"{MINUTES - 1}m",
        "exp_samples": [{"labels": it, "value": n} for it, n in minutes.items() if n],
    }


def caught(
    promtool: str, folder: Path, rounds: Mapping[str, tuple[list[Rule], list[Case]]]
) -> set[str]:
    """The names of the mutants that fire otherwise than their originals in one of these cases.

    `rounds`: alert → its mutants and the cases that they meet.
    """
    files = []
    for name, (rules, cases) in rounds.items():
        tests = [
            {
                "interval": "1m",
                "input_series": samples(case),
                "promql_expr_test": [fired(case, rule) for rule in rules],
            }
            for case in cases
        ]
        files.append(write_test(folder, name, rules, tests))
    found = re.findall(r'(?:alertname=|rule: )\\?"?(Sba\w+)', run(promtool, folder, *files))
    return set(found)


@each_kind
def test_every_mutant_of_every_rule_is_caught(
    settings: MakeSettings, promtool: str, tmp_path: Path, kind: str
) -> None:
    config, all_cases = KINDS[kind]
    # of a fleet, those that differ from one machine's by more than the label that tells them apart
    one = [it["expr"].replace("instance", "zone") for it in rules_of(settings(**CONFIG))]
    same = one if kind == "fleet" else []
    rules = [rule for rule in rules_of(settings(**config)) if rule["expr"] not in same]
    alive = {rule["alert"]: mutants(rule) for rule in rules}
    assert sum(map(len, alive.values())) > {"one machine": 400, "fleet": 20}[kind]
    order = sorted(all_cases, key=lambda case: hashlib.sha256(case.name.encode()).digest())
    own = {name: [case for case in order if case.about == name] for name in alive}
    others = {name: [case for case in order if case.about != name] for name in alive}
    # most die in the first cases that they meet; in no order of the table, or those would be alike
    for cases, begin, end in (
        *((own, *part) for part in ((0, 2), (2, 5), (5, 10), (10, 20), (20, None))),
        *((others, *part) for part in ((0, 40), (40, None))),
    ):
        dead = caught(
            promtool,
            tmp_path,
            {name: (rules, cases[name][begin:end]) for name, rules in alive.items() if rules},
        )
        for name, rules in alive.items():
            alive[name] = [rule for rule in rules if rule["alert"] not in dead]
    survivors = [(rule["for"], rule["expr"]) for rules in alive.values() for rule in rules]
    assert not survivors, "\n\n".join(f"{hold}: {expr}" for hold, expr in survivors)


def test_a_rule_that_is_right_is_not_caught(
    settings: MakeSettings, promtool: str, tmp_path: Path
) -> None:
    rules = {rule["alert"]: rule for rule in rules_of(settings(**CONFIG))}
    rounds = {name: ([rule], CASES[:20]) for name, rule in rules.items()}
    assert not caught(promtool, tmp_path, rounds)


def test_the_committed_rules_are_the_generated_ones_with_the_defaults(
    settings: MakeSettings, promtool: str
) -> None:
    text = COMMITTED.read_text(encoding="utf-8")
    assert text == alerts.rules_file(settings())
    subprocess.run([promtool, "check", "rules", str(COMMITTED)], check=True, timeout=60)
    holds = {rule["alert"]: rule["for"] for rule in rules_of(settings())}
    expected = {name: f"{minutes}m" for name, (_, minutes) in TABLE.items()}
    assert holds == expected | {"SbaRebootPending": "24h"}


def test_the_command_writes_the_rules(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    command = [sys.executable, "-m", "monitoring.alerts", str(file)]
    subprocess.run(command, check=True, timeout=60)
    assert file.read_text() == COMMITTED.read_text()


def test_what_prometheus_says_of_an_alert(
    settings: MakeSettings, promtool: str, tmp_path: Path
) -> None:
    chosen = settings(**CONFIG, grafana={"runbookUrl": "https://wiki.example.com/runbook"})
    rules = alerts.prometheus(chosen, {"uid": "sba", "title": "SBA"})["groups"][0]["rules"]
    [case] = [it for it in CASES if it.name == "SbaQueueDepthHigh 150 email 151: fires"]
    expected = {
        "exp_labels": {
            "severity": "warning",
            "service": "sba-api",
            "queue_name": "email",
            "threshold": "150",
        },
        "exp_annotations": {
            "summary": "Queue email is filling up",
            "description": "151 jobs wait in email, more than 150.",
            "runbook_url": "https://wiki.example.com/runbook#sbaqueuedepthhigh",
            "dashboard": "sba",
            "panel": "Queue Depth",
        },
    }
    test = {
        "interval": "1m",
        "input_series": samples(case),
        "alert_rule_test": [
            {"eval_time": "20m", "alertname": "SbaQueueDepthHigh", "exp_alerts": [expected]}
        ],
    }
    assert not run(promtool, tmp_path, write_test(tmp_path, "annotations", rules, [test]))


def test_no_template_of_an_alert_fails(
    settings: MakeSettings, promtool: str, tmp_path: Path
) -> None:
    """No template fails, and none is left: promtool shows what it got where nothing is expected."""
    rules = rules_of(settings(**FLEET_CONFIG))
    tests = []
    for name in FLEET_TABLE:
        all_cases = (*FLEET_CASES, *CASES)
        case = next(it for it in all_cases if any(fires[0] == name for fires in it.fires))
        asked = {"eval_time": f"{MINUTES - 1}m", "alertname": name}
        tests.append({"interval": "1m", "input_series": samples(case), "alert_rule_test": [asked]})
    said = run(promtool, tmp_path, write_test(tmp_path, "said", rules, tests))
    assert all(f'alertname="{name}"' in said for name in FLEET_TABLE)
    for wrong in ("{{", "<error", "<no value>", "%!", "NaN"):
        assert wrong not in said


@pytest.mark.parametrize("stack", ["dev", "a-stack-of-36-characters-0123456789.x"])
def test_grafana_has_the_same_rules(settings: MakeSettings, stack: str) -> None:
    chosen = settings().model_copy(update={"stack": stack})
    dashboard = with_sections({"title": "SBA", "uid": "sba"}, chosen)
    rules = alerts.grafana(chosen, dashboard)
    for rule, theirs in zip(rules, rules_of(chosen), strict=True):
        assert rule["name"] == theirs["alert"]
        assert rule["for_"] == theirs["for"]
        assert rule["labels"] == theirs["labels"]
        models = [json.loads(it["model"]) for it in rule["datas"]]
        sources = [it["datasource_uid"] for it in rule["datas"]]
        assert models[0]["expr"] == theirs["expr"]
        assert models[0]["instant"] is True
        assert [it["ref_id"] for it in rule["datas"]] == [it["refId"] for it in models]
        assert sources == ["prometheus", "__expr__", "__expr__"]
        assert (models[1]["reducer"], models[1]["expression"]) == ("last", "A")
        assert (rule["condition"], models[2]["expression"]) == ("C", "$B > 0")
        # Grafana's templates have no $value
        assert not re.search(r"\$value\b(?!s)", str(rule["annotations"]))
        assert "runbook_url" not in rule["annotations"]
        assert "notification_settings" not in rule
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", rule["uid"])
        assert rule["no_data_state"] == "OK"
    assert len({rule["uid"] for rule in rules}) == len(rules)
    errors = [rule["name"] for rule in rules if rule["exec_err_state"] != "OK"]
    assert errors == ["SbaProxyDown"]


def test_stacks_in_one_grafana_have_uids_of_their_own(settings: MakeSettings) -> None:
    stacks = [settings().model_copy(update={"stack": stack}) for stack in ("dev", "prod")]
    uids = [{rule["uid"] for rule in alerts.grafana(it, {})} for it in stacks]
    assert not uids[0] & uids[1]


def test_a_rule_links_to_its_panel(settings: MakeSettings) -> None:
    chosen = settings(grafana={"runbookUrl": "https://wiki.example.com/r", "contactPoint": "ops"})
    dashboard = with_sections({"title": "SBA", "uid": "sba"}, chosen)
    titles = {str(panel["id"]): panel["title"] for panel in dashboard["panels"]}
    for rule in alerts.grafana(chosen, dashboard):
        said = rule["annotations"]
        assert said["runbook_url"] == f"https://wiki.example.com/r#{rule['name'].lower()}"
        assert (said["dashboard"], said["__dashboardUid__"]) == ("sba", "sba")
        assert titles[said["__panelId__"]] == said["panel"]
        assert rule["notification_settings"] == {"contact_point": "ops"}


def test_a_dashboard_without_a_uid_is_not_linked(settings: MakeSettings) -> None:
    for rule in alerts.grafana(settings(), with_sections({"title": "SBA"}, settings())):
        assert not {"dashboard", "__dashboardUid__", "__panelId__"} & rule["annotations"].keys()


def test_without_the_workers_endpoint_nobody_misses_its_metrics(settings: MakeSettings) -> None:
    one = [{"name": "api", "path": "/metrics", "upstream": "http://api:1/metrics"}]
    names = [rule["alert"] for rule in rules_of(settings(endpoints=one))]
    assert "SbaWorkerMetricsAbsent" not in names
    assert len(names) == len(TABLE) - 1


ODD = ['quo"te', "back\\slash", "a.*", "/x/", "$queue", "größe", "{{ x }}", "a\nb", "it's"]


def test_odd_names_of_queues_and_jobs_are_taken_as_they_are(
    settings: MakeSettings, promtool: str, tmp_path: Path
) -> None:
    queues = {name: {"warning": 7, "critical": 9} for name in ODD}
    chosen = settings(workers={"queues": queues})
    rules = rules_of(chosen)
    (tmp_path / "rules.yml").write_text(alerts.rules_file(chosen))
    checked = [promtool, "check", "rules", str(tmp_path / "rules.yml")]
    subprocess.run(checked, check=True, timeout=60)
    depth = [
        {
            "series": f"sba_worker_queue_depth{labelled({'job': 'sba-api', 'queue_name': name})}",
            "values": f"8x{MINUTES}",
        }
        for name in ODD
    ]
    expected = [
        {"labels": labelled({"queue_name": name, "threshold": "7"}), "value": 1} for name in ODD
    ]
    asked = 'count by (queue_name, threshold) (ALERTS{alertname=~"SbaQueue.*"})'
    test = {
        "interval": "1m",
        "input_series": depth,
        "promql_expr_test": [{"expr": asked, "eval_time": "20m", "exp_samples": expected}],
    }
    assert not run(promtool, tmp_path, write_test(tmp_path, "odd", rules, [test]))
