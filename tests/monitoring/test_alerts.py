"""The alerts: each fires on its cause and nothing else does; every part of every rule counts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from config.settings import Settings
from monitoring import alerts
from tests.monitoring.alert_cases import CASES, CONFIG, MINUTES, TABLE, Case

MakeSettings = Callable[..., Settings]
Rule = dict[str, Any]

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


def promtool_test(
    promtool: str, folder: Path, rules: list[Rule], tests: Iterable[dict[str, Any]]
) -> str:
    """Return what `promtool test rules` finds wrong, or nothing."""
    (folder / "rules.json").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    document = {"rule_files": ["rules.json"], "evaluation_interval": "1m", "tests": list(tests)}
    (folder / "tests.json").write_text(json.dumps(document))
    command = [promtool, "test", "rules", "tests.json"]
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
    said = promtool_test(promtool, tmp_path, rules, tests)
    assert not said, said[:5_000]
