"""python -m bench: measure, and write docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

from bench import machine, program, report, servers
from bench.measure import Bench
from bench.targets import TARGETS, packages
from sandbox.machines.vm import image
from sandbox.machines.vm.machine import obstacle


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 minutes, not 10")
    quick = parser.parse_args().quick
    if reason := obstacle():
        sys.exit(f"bench: the machine's tree cannot be run here: {reason}")
    image.build()
    found: dict[str, Any] = {"command": "bench-quick" if quick else "bench"}
    load, began = _load(), time.monotonic()
    with Bench() as bench:
        started = [bench.start(name, target) for name, target in TARGETS.items()]
        found["memory"] = servers.memory(bench, started)
        found["scrapes"] = servers.scrapes(bench, started, 20 if quick else 240)
    with Bench() as bench:
        found["growth"] = servers.growth(bench, 5 if quick else 40)
    found["program"] = program.measure(1 if quick else 5)
    found |= machine.measure(3 if quick else 20)
    found |= {"seconds": time.monotonic() - began, "versions": _versions()}
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    found |= {"cpu": cpu[1] if cpu else platform.machine(), "cores": os.cpu_count()}
    found |= {"kernel": f"Linux {platform.release()}", "before": load, "after": _load()}
    report.write(found)
    missed = [what for what, value, most in report.goals(found) if value > most]
    print(f"{report.PAGE}: not met: {'; '.join(missed) or 'nothing'}")


def _load() -> str:
    """Of the last 1, 5 and 15 minutes."""
    return ", ".join(f"{load:.1f}" for load in os.getloadavg())


def _versions() -> str:
    """Of Debian's packages."""
    files = [*packages().glob("*.deb"), *image.build().packages.glob("*.deb")]
    wanted = r"(nginx|apache2-bin|haproxy|caddy|prometheus-exporter-exporter)_([^_]+)_"
    found = sorted(match.groups() for file in files if (match := re.match(wanted, file.name)))
    return ", ".join(f"{name} {version.replace('%3a', ':')}" for name, version in found)


if __name__ == "__main__":
    main()
