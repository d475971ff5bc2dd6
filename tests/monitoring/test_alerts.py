"""The alerts: each fires on its cause and nothing else does; every part of every rule counts."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from config.settings import Settings
from monitoring import alerts
from tests.monitoring.alert_cases import CASES, CONFIG, MINUTES, TABLE, Case
from tests.monitoring.alert_mutants import Rule, mutants

MakeSettings = Callable[..., Settings]

COMMITTED = Path("ops/prometheus/rules.yml")
LABELS = "alertname, severity, service, queue_name, endpoint, reason, instance, threshold"


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
                    "severity": TABLE[name][0],
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


def test_exactly_the_right_alerts_fire_at_every_minute_of_every_case(
    settings: MakeSettings, promtool: str, tmp_path: Path
) -> None:
    rules = rules_of(settings(**CONFIG))
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
        for case in CASES
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


def test_every_mutant_of_every_rule_is_caught(
    settings: MakeSettings, promtool: str, tmp_path: Path
) -> None:
    alive = {rule["alert"]: mutants(rule) for rule in rules_of(settings(**CONFIG))}
    assert sum(map(len, alive.values())) > 500
    order = sorted(CASES, key=lambda case: hashlib.sha256(case.name.encode()).digest())
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
