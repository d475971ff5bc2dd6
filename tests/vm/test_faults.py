"""Every fault: what a real Prometheus lost at a scrape a second, and that it is over by itself."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from sandbox.machines.vm.machine import VirtualMachine
from sandbox.processes import wait
from sandbox.system import Sandbox
from tests.vm.faults import FAULTS, Fault, World

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
TARGETS = 'up{job=~"sba-api|sba-proxy"}'
SCRAPES = 3
"""Of three targets: a round."""


def samples(vm: Sandbox, since: float) -> list[float]:
    """The `up` of every scrape since a moment, of all three targets."""
    seconds = int(time.time() - since) + 2
    found = vm.query(f"{TARGETS}[{seconds}s]")
    return [float(up) for series in found for when, up in series["values"] if when >= since]


def healthy(since: float) -> str:
    """PromQL: both secrets were brought after a moment, and everything answers."""
    return (
        f"min(metrics_proxy_secret_last_success_timestamp_seconds) > {since}"
        f" and on() min({TARGETS}) == 1 and on() min(metrics_proxy_upstream_up) == 1"
        " and on() max(metrics_proxy_secret_sync_ok) == 1"
    )


@pytest.fixture(scope="module")
def seen() -> dict[str, tuple[int, float]]:
    """Fault → scrapes lost, seconds to recover."""
    return {}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(
    vm: Sandbox, machine: VirtualMachine, fault: Fault, seen: dict[str, tuple[int, float]]
) -> None:
    world = World(vm=vm, machine=machine)
    wait(lambda: vm.query(healthy(0)), "everything to be well before the fault", 90)
    heard, began = len(machine.console), time.time()
    with fault.cause(world):
        wait(lambda: vm.query(fault.metric), f"Prometheus to see {fault.metric}", 90)
        shown = time.time()
        wait(lambda: re.search(fault.says, machine.console[heard:]), f"{fault.says!r} to be said")
        wait(lambda: len(samples(vm, shown)) >= SCRAPES, "another round of scrapes")
    ended = time.time()
    wait(lambda: vm.query(healthy(ended)), "everything to be well again", 120)
    lost = samples(vm, began).count(0)
    seen[fault.name] = (lost, time.time() - ended)
    assert (lost == 0) if fault.loses == "none" else (lost > 0 or fault.loses == "a restart")


HEAD = """# Faults

For whoever wants to know what a failure costs.

Written by `tests/vm/test_faults.py`, which causes each of them on the booted machine. It checks
what a real Prometheus loses at one scrape a second (and a timeout of one), that the metric and the
console name the cause while it lasts, and that all is well again by itself. *A restart*: what fits
into the second that systemd waits before it starts the server again, or into a reboot. The numbers
are of one run on two busy cores, with a sync every two seconds: scrapes lost of three targets, and
seconds from the end of the cause to the first good sync with every target up.

*Console says* is a regular expression of what `aws ec2 get-console-output` would give. It is empty
where a fault is none to the machine (Secrets Manager slow, disk full), and for a name that moved:
the console then names an address that does not answer, and cannot know of another.

Others are tested elsewhere. Power that fails at several moments of the installation, and a package
mirror that refuses connections (`tests/vm/test_lifecycle.py`): nothing is served and no metric is
there, `up == 0`, until the power stays and the mirror is back; the console says what is installed
and `Could not connect to`, and the installation goes on by itself. A machine that somebody ends, or
that AWS refuses to start (`tests/sandbox/test_engine.py`): `pulumi up` says so, and the next one
brings it back at the same address. A second machine on the same network interface: EC2 refuses to
start it, so `pulumi up` fails and the first goes on (`tests/sandbox/test_providers.py`, against a
stand-in of EC2).

| fault | loses scrapes | metric that shows it | console says | lost | recovered |
|---|---|---|---|---|---|
"""


def row(fault: Fault) -> str:
    """What the table promises, and no run changes."""
    cells = [fault.name, fault.loses, f"`{fault.metric}`", f"`{fault.says}`" if fault.says else ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def test_the_document_says_what_was_seen(seen: dict[str, tuple[int, float]]) -> None:
    if len(seen) < len(FAULTS):
        return  # a part of the table was run
    text = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    if text.startswith(HEAD) and all(row(fault) in text for fault in FAULTS):
        return
    rows = [f"{row(f)} {seen[f.name][0]} | {seen[f.name][1]:.0f} s |\n" for f in FAULTS]
    DOCUMENT.write_text(HEAD + "".join(rows))
    raise AssertionError(f"{DOCUMENT} was out of date, and is written anew: commit it")
