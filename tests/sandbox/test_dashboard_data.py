"""The deployed dashboard's queries on the sandbox's Prometheus, and its picture."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sandbox.__main__ import main
from sandbox.api import QUEUES
from sandbox.processes import wait
from sandbox.system import Sandbox
from tests.monitoring.test_dashboard import WORKERS


def deployed(sandbox: Sandbox) -> dict[str, Any]:
    [file] = sandbox.engine.provisioning.glob("dashboards/*/*.json")
    return dict(json.loads(file.read_text()))


def exported(sandbox: Sandbox) -> set[str]:
    """The names in the proxy's own document."""
    return set(re.findall(r"^metrics_proxy_(\w+)", sandbox.proxy_metrics() or "", re.M))


def queries(dashboard: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Panel, query and legend."""
    return [
        (panel["title"], target["expr"].replace("$sba_queue", ".+"), target["legendFormat"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


def test_all_that_is_exported_is_shown(sandbox: Sandbox) -> None:
    text = " ".join(query for _, query, _ in queries(deployed(sandbox)))
    assert set(re.findall(r"sba_worker_(\w+)", text)) == WORKERS
    assert set(re.findall(r"metrics_proxy_(\w+)", text)) == exported(sandbox)


def test_every_query_returns_what_its_legend_promises(sandbox: Sandbox) -> None:
    endpoints = [endpoint["name"] for endpoint in sandbox.contract()["endpoints"]]
    outputs = sandbox.engine.outputs()
    promised = {
        "queue_name": set(QUEUES),
        "instance": {f"{outputs['privateIp']}:{sandbox.proxy()['port']}"},
        "endpoint": set(endpoints),
        "secret": {"token", "bundle"},
    }
    seen: set[tuple[str, str]] = set()
    for title, query, legend in queries(deployed(sandbox)):
        found = wait(partial(sandbox.query, query), f"{title}: {query}")
        labels = re.findall(r"{{(\w+)}}", legend)
        assert labels
        for label in labels:
            values = {series["metric"].get(label) for series in found}
            assert None not in values
            assert values == promised.get(label, values), (title, query)
        names = [legend, *(tuple(series["metric"][label] for label in labels) for series in found)]
        assert set(Counter(names).values()) == {1}, (title, "two lines have one name")
        seen.add((title, legend))
    assert len(seen) >= 17


def test_the_variable_lists_the_queues(sandbox: Sandbox) -> None:
    [variable] = deployed(sandbox)["templating"]["list"]
    definition = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
    assert definition
    metric, label = definition.groups()
    assert {series["metric"][label] for series in sandbox.query(metric)} == set(QUEUES)


def test_the_preview_is_drawn_and_says_what_has_no_data(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "dashboard.png"
    command = ["--folder", str(sandbox.folder), "dashboard-preview", "--output", str(picture)]
    assert main(command) == 0
    told = capsys.readouterr()
    assert told.out == f"{picture}: a preview, not Grafana\n"
    assert told.err == ""
    assert picture.read_bytes().startswith(b"\x89PNG")

    [file] = sandbox.engine.provisioning.glob("dashboards/*/*.json")
    text = file.read_text()
    try:
        file.write_text(text.replace("sba_worker_active_jobs", "sba_worker_idle_jobs"))
        assert main(command) == 1
    finally:
        file.write_text(text)
    assert "no data for Active Jobs: sba_worker_idle_jobs{" in capsys.readouterr().err
