"""Every cause of an alert, produced for real: Prometheus fires that alert and no other."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from config.settings import Settings
from monitoring.alerts import alerts
from sandbox import api
from sandbox.machines.vm.machine import VirtualMachine
from sandbox.processes import wait
from sandbox.system import Sandbox
from tests.certificates import DAY, self_signed
from tests.vm.faults import PROXY, SYNC, Cause, World, bundle, denied, revoked, token

TIMER = "metrics-proxy-sync.timer"
RULES = Path("ops/prometheus/rules.yml")

HOLD: Final = 5
"""Seconds for which a cause has to last here: longer than a sync that answers at once."""
PATIENT: Final = {"SbaScrapeFailing": 20, "SbaWorkerMetricsAbsent": 10}
"""Those that wait for another to be seen first, as they do by the table."""

NORMAL = {
    "queue_depth": 5.0,
    "throughput": 2.0,
    "active_jobs": 1.0,
    "error_rate": 0.001,
}
QUEUES = dict.fromkeys(("email", "reports", "sms", "webhooks"), NORMAL)
CERTIFICATES = {days: self_signed("prometheus-api.local", end=days * DAY) for days in (30, 7)}


def shortened(text: str) -> str:
    """The rules with seconds for minutes, and less patience."""
    document = yaml.safe_load(re.sub(r"\[(\d+)m\]", r"[\1s]", text))
    for rule in document["groups"][0]["rules"]:
        rule["for"] = f"{PATIENT.get(rule['alert'], HOLD)}s"
        if rule["alert"] == "SbaSyncStopped":
            rule["expr"], changed = re.subn(r"> \d+$", "> 15", rule["expr"])
            assert changed
    return str(yaml.safe_dump(document))


@contextmanager
def edited(vm: Sandbox, name: str, text: str) -> Iterator[None]:
    """Another text of one of Prometheus' files."""
    file, prometheus = vm.prometheus_folder / name, vm.process("prometheus")
    assert prometheus
    before = file.read_text()
    file.write_text(text)
    prometheus.signal(signal.SIGHUP)
    try:
        yield
    finally:
        file.write_text(before)
        prometheus.signal(signal.SIGHUP)


def behaves(**how: Any) -> Cause:
    @contextmanager
    def cause(world: World) -> Iterator[None]:
        api.behave(world.vm.api, **({"workers": QUEUES} | how))
        try:
            yield
        finally:
            api.behave(world.vm.api, workers=QUEUES)

    return cause


@contextmanager
def api_stopped(world: World) -> Iterator[None]:
    process = world.vm.process("api")
    assert process
    process.stop()
    try:
        yield
    finally:
        world.vm.sample_api()


def commands(cause: str, over: str) -> Cause:
    """Commands in the machine."""

    @contextmanager
    def run(world: World) -> Iterator[None]:
        done = world.machine.inside("sh", "-c", cause)
        assert done.returncode == 0, done.stderr
        try:
            yield
        finally:
            world.machine.inside("sh", "-c", over)

    return run


def certificate(days: int) -> Cause:
    pem, key = CERTIFICATES[days]
    return bundle(certificate=pem, key=key)


@dataclass(frozen=True, kw_only=True)
class Real:
    """A cause, and the alerts that it makes fire: name → their values of a label."""

    name: str
    cause: Cause
    fires: dict[str, tuple[str, set[str]]]


def one(alert: str, label: str = "alertname", *values: str) -> dict[str, tuple[str, set[str]]]:
    return {alert: (label, set(values) or {alert})}


BOTH = ("endpoint", "api", "workers")
CAUSES = [
    Real(
        name="queues fill up, jobs fail, a worker stalls",
        cause=behaves(
            workers={
                "email": NORMAL | {"queue_depth": 101.0},
                "reports": NORMAL | {"queue_depth": 501.0},
                "sms": NORMAL | {"error_rate": 0.02},
                "webhooks": NORMAL | {"throughput": 0.0, "active_jobs": 0.0},
            }
        ),
        fires={
            **one("SbaQueueDepthHigh", "queue_name", "email"),
            **one("SbaQueueDepthCritical", "queue_name", "reports"),
            **one("SbaErrorRateHigh", "queue_name", "sms"),
            **one("SbaWorkerStalled", "queue_name", "webhooks"),
        },
    ),
    Real(
        name="the exporter shows no queue",
        cause=behaves(workers={}),
        fires=one("SbaWorkerMetricsAbsent"),
    ),
    Real(
        name="the proxy is stopped",
        # its sync, too, which would start it again
        cause=commands(*(f"systemctl {it} {TIMER} {SYNC} {PROXY}" for it in ("stop", "start"))),
        fires=one("SbaProxyDown"),
    ),
    Real(name="the API is stopped", cause=api_stopped, fires=one("SbaUpstreamDown", *BOTH)),
    Real(name="the token is revoked", cause=revoked, fires=one("SbaTokenRejected", *BOTH)),
    Real(
        name="a Content-Type that Prometheus refuses",
        cause=behaves(content_type="application/octet-stream"),
        fires=one("SbaScrapeFailing", *BOTH),
    ),
    Real(
        name="the machine may not read its secrets",
        cause=denied,
        fires=one("SbaSyncFailing", "reason", "fetch_bundle", "fetch_token"),
    ),
    Real(
        name="a secret that is no token",
        cause=token("no token"),
        fires=one("SbaVersionRefused", "reason", "token_invalid"),
    ),
    Real(
        name="a configuration that the server refuses",
        cause=bundle(configuration="nonsense"),
        fires=one("SbaVersionRefused", "reason", "test"),
    ),
    Real(
        name="the sync is stopped",
        cause=commands(*(f"systemctl {it} {TIMER}" for it in ("stop", "start"))),
        fires=one("SbaSyncStopped"),
    ),
    Real(
        name="the certificate ends in 30 days",
        cause=certificate(30),
        fires=one("SbaCertificateExpiring"),
    ),
    Real(
        name="the certificate ends in 7 days",
        cause=certificate(7),
        fires=one("SbaCertificateEnding"),
    ),
    Real(
        name="an update waits for a reboot",
        cause=commands("touch /run/reboot-required", "rm /run/reboot-required"),
        fires=one("SbaRebootPending"),
    ),
]


@pytest.fixture(scope="module")
def watched(vm: Sandbox) -> Iterator[Sandbox]:
    """The sandbox with rules that soon fire, and an API that does as it is told."""
    scrape = yaml.safe_load((vm.prometheus_folder / "metrics-proxy.yml").read_text())
    for job in scrape["scrape_configs"]:
        job["tls_config"]["ca"] += "".join(pem for pem, _ in CERTIFICATES.values())
    with contextlib.ExitStack() as stack:
        api.behave(vm.api, workers=QUEUES)
        stack.callback(partial(api.behave, vm.api))
        stack.enter_context(edited(vm, "metrics-proxy.yml", yaml.safe_dump(scrape)))
        stack.enter_context(edited(vm, "rules.yml", shortened(RULES.read_text())))
        yield vm


def state(vm: Sandbox, name: str) -> list[dict[str, str]]:
    """The alerts in a state: `pending` or `firing`."""
    return [it["metric"] for it in vm.query(f'ALERTS{{alertstate="{name}"}}')]


def quiet(vm: Sandbox) -> bool:
    up = vm.query("count(up == 1) == 3")
    return bool(up) and not state(vm, "pending") and not state(vm, "firing")


@pytest.mark.parametrize("real", CAUSES, ids=lambda real: real.name)
def test_a_cause_fires_its_alert_and_no_other(
    watched: Sandbox, machine: VirtualMachine, real: Real
) -> None:
    vm = watched
    wait(partial(quiet, vm), "no alert to be pending", 120)
    began = time.time()
    with real.cause(World(vm=vm, machine=machine)):
        wait(
            lambda: real.fires.keys() <= {it["alertname"] for it in state(vm, "firing")},
            f"{', '.join(real.fires)} to fire",
            90,
        )
        # whatever else it makes pending either fires or is told apart
        wait(lambda: not state(vm, "pending"), "nothing to be pending any more", 90)
    wait(partial(quiet, vm), "the alert to be over", 120)
    seconds = int(time.time() - began)
    seen = vm.query(f'count_over_time(ALERTS{{alertstate="firing"}}[{seconds}s])')
    fired: dict[str, tuple[str, set[str]]] = {}
    for it in (found["metric"] for found in seen):
        label, _ = real.fires.get(it["alertname"], ("alertname", set()))
        values = fired.setdefault(it["alertname"], (label, set()))[1]
        values.add(it[label])
    assert fired == real.fires


def test_every_alert_is_produced() -> None:
    settings = Settings.model_construct(stack="", subnet_id="", prometheus_cidrs=())
    assert {name for real in CAUSES for name in real.fires} == {it.name for it in alerts(settings)}
