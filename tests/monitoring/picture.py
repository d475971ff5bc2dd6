"""`make picture`: the dashboard in the project, over hours of sample values.

`python -m tests.monitoring.picture PNG` fails if a query of a panel finds nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from sandbox import draw
from sandbox.tools import ROOT, prometheus
from tests.monitoring import samples
from tests.monitoring.server import serve


def main(png: str, hours: float = 6) -> None:
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "prometheus.yml"
        config.write_text("{}")
        samples.fill(
            prometheus("promtool"),
            config.parent / "data",
            int(time.time()),
            queues=samples.queues(3),
            hours=hours,
        )
        with serve(prometheus(), config) as url:
            draw.main(str(ROOT / "ops" / "grafana" / "dashboard-sba.json"), url, png)


if __name__ == "__main__":
    main(*sys.argv[1:])
