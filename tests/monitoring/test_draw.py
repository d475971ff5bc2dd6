"""Every query of the dashboard on a real Prometheus, and the picture that is drawn of it."""

from __future__ import annotations

import re
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image

from config.settings import Settings
from monitoring import dashboard as d
from monitoring.classic import dumps
from sandbox.draw import Prometheus, draw, main
from tests.monitoring import picture, samples

MakeSettings = Callable[..., Settings]
Run = Callable[[Path], AbstractContextManager[str]]

PROMISED = {
    "queue_name": samples.queues(3),
    "instance": samples.MACHINES,
    "endpoint": samples.ENDPOINTS,
    "reason": samples.REASONS,
    "secret": samples.VERSIONS,
    "version": samples.VERSIONS.values(),
    "sha256": ["9f86d081884c7d65" * 4],
    "build": ["60303ae22b99"],
}


def test_every_query_returns_what_its_legend_promises(
    settings: MakeSettings, promtool: str, prometheus: Run, tmp_path: Path
) -> None:
    samples.fill(promtool, tmp_path / "data", int(time.time()), queues=samples.queues(3), hours=0.5)
    (tmp_path / "prometheus.yml").write_text("{}")
    dashboard = d.with_sections({"title": "SBA"}, settings())
    with prometheus(tmp_path / "prometheus.yml") as url:
        source = Prometheus(urllib.parse.urlsplit(url).netloc)
        for panel in dashboard["panels"]:
            names: Counter[str] = Counter()
            for target in panel.get("targets", []):
                found = list(source.series(target))
                names.update(series.name for series in found)
                for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                    values = {series.labels.get(label) for series in found}
                    assert values == set(PROMISED[label]), (panel["title"], target["expr"])
            # no two lines have the same name
            assert set(names.values()) <= {1}, (panel["title"], names)


@pytest.mark.parametrize(
    ("missing", "queues"),
    [("sba_worker_timeout_rate", 1), ("metrics_proxy_reboot_required", 50)],
)
def test_a_picture_is_drawn_and_what_finds_nothing_is_named(
    settings: MakeSettings,
    promtool: str,
    prometheus: Run,
    tmp_path: Path,
    missing: str,
    queues: int,
) -> None:
    names = samples.queues(queues)
    fill = {"queues": names, "hours": 0.2, "without": missing}
    samples.fill(promtool, tmp_path / "data", int(time.time()), **fill)
    (tmp_path / "prometheus.yml").write_text("{}")
    limits = {"queues": {name: {"warning": 1, "critical": 2} for name in names}}
    dashboard = d.with_sections({"title": "SBA"}, settings(workers=limits))
    theirs = {
        "id": 1,
        "type": "text",
        "title": "Mine",
        "gridPos": {"x": 0, "y": 90, "w": 8, "h": 4},
    }
    dashboard["panels"] += [theirs, {"id": 2, "type": "row"}]
    file, picture = tmp_path / "dashboard.json", tmp_path / "dashboard.png"
    with prometheus(tmp_path / "prometheus.yml") as url:
        empty = draw(dashboard, url, picture)
        file.write_text(dumps(dashboard))
        with pytest.raises(SystemExit, match=missing):
            main(str(file), url, str(picture))
    assert len(empty) == 1
    assert missing in empty[0]
    with Image.open(picture) as image:
        assert image.format == "PNG"
        colors = image.convert("RGB").getcolors(1 << 24)
    assert len(colors) > 20


def test_the_projects_dashboard_is_drawn(tmp_path: Path) -> None:
    """`make picture`, with less to draw."""
    picture.main(str(tmp_path / "dashboard.png"), hours=0.2)
    assert (tmp_path / "dashboard.png").read_bytes().startswith(b"\x89PNG")
