"""The dashboard's queries on a real Prometheus that has the workers' gauges, drawn."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from config.settings import Settings
from monitoring import dashboard as d
from sandbox.draw import draw, main

GAUGES = [
    "throughput",
    "error_rate",
    "error4xx_rate",
    "error5xx_rate",
    "timeout_rate",
    "queue_depth",
    "active_jobs",
]


@pytest.mark.parametrize("missing", [None, "timeout_rate"])
def test_every_query_finds_the_queues_and_a_missing_gauge_is_named(
    settings: Callable[..., Settings],
    promtool: str,
    prometheus: Callable[[Path], AbstractContextManager[str]],
    tmp_path: Path,
    missing: str | None,
) -> None:
    now = int(time.time())
    lines = []
    for gauge in GAUGES:
        if gauge != missing:
            lines.append(f"# TYPE sba_worker_{gauge} gauge")
            lines += [
                f'sba_worker_{gauge}{{job="sba-api",queue_name="{queue}"}} 0.5 {now - ago}'
                for queue in ("email", "sms")
                for ago in range(600, -30, -30)
            ]
    samples = tmp_path / "samples.om"
    samples.write_text("\n".join([*lines, "# EOF\n"]))
    paths = [str(samples), str(tmp_path / "data")]
    fill = [promtool, "tsdb", "create-blocks-from", "openmetrics", *paths]
    subprocess.run(fill, check=True, timeout=60, capture_output=True)
    config = tmp_path / "prometheus.yml"
    config.write_text("{}")
    picture = tmp_path / "workers.png"
    limits = {"queues": {"sms": {"warning": 1, "critical": 2}}}
    dashboard = d.with_workers({"title": "SBA"}, settings(workers=limits))

    with prometheus(config) as url:
        empty = draw(dashboard, url, picture)
        if missing:
            file = tmp_path / "dashboard.json"
            file.write_text(d.dumps(dashboard))
            with pytest.raises(SystemExit, match=missing):
                main(str(file), url, str(picture))

    expected = [f'sba_worker_{missing}{{job="sba-api", queue_name=~"$queue"}}'] if missing else []
    assert empty == expected
    assert picture.read_bytes().startswith(b"\x89PNG")
