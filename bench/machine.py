"""What the booted machine takes: a boot, rotations, the sync. Read only, but for its secrets."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.servers import fit
from bench.targets import with_endpoints
from host import proxy
from sandbox import api
from sandbox.machines.vm.machine import VirtualMachine
from sandbox.processes import wait
from sandbox.system import Sandbox

SYNC: Final = "metrics-proxy-sync"
ENDED: Final = "ExecMainExitTimestampMonotonic"
UNITS: Final = {
    **dict.fromkeys(("cloud-init-local", "cloud-init-network", "cloud-config"), ENDED),
    **dict.fromkeys(("install-metrics-proxy", SYNC), ENDED),
    "metrics-proxy": "ActiveEnterTimestampMonotonic",
}


def measure(rotations: int) -> dict[str, Any]:
    """Boot a machine, rotate its token, give it endpoints; replace those of a fleet."""
    steps: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        sandbox = Sandbox(Path(folder), lambda what, seconds: steps.update({what: seconds}), "vm")
        try:
            sandbox.up()
            [boot] = (seconds for what, seconds in steps.items() if what.startswith("host"))
            found = Booted(sandbox).measure(boot, rotations)
        finally:
            sandbox.down()
    return {**found, "replacement": {"both machines": _replace()}}


def _replace() -> dict[str, float]:
    """Seconds until a fleet of two has other machines and no old one; scrapes that failed."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        sandbox = Sandbox(Path(folder), host="vm", machines=2)
        try:
            sandbox.up()
            assert sandbox.fleet
            fleet, began = sandbox.fleet, time.time()
            old = {it.instance for it in fleet.members()}
            sandbox.engine.configure({"syncInterval": 3})
            sandbox.up()
            wait(
                lambda: not old & {it.instance for it in fleet.members()}, "the old ones' end", 400
            )
            seconds = time.time() - began
            up = sandbox.query(f'up{{job="sba-api"}}[{int(seconds)}s]')
            values = [value for series in up for _, value in series["values"]]
            return {"s": seconds, "scrapes": len(values), "failed": values.count("0")}
        finally:
            sandbox.down()


class Booted:
    """A sandbox whose machine serves."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox, self.aws = sandbox, sandbox.account.client("secretsmanager")
        assert isinstance(sandbox.machine, VirtualMachine)
        self.machine = sandbox.machine

    def _show(self, unit: str, *keys: str) -> list[int]:
        """Numbers that systemd keeps of a unit, or of itself."""
        wanted = [*(f"-p{key}" for key in keys), *([unit] if unit else [])]
        text = self.machine.inside("systemctl", "show", *wanted).stdout
        values = dict(line.split("=") for line in text.splitlines())
        return [int(values[key]) for key in keys]

    def _end(self) -> dict[str, float]:
        """Of the run of the sync that is going on, or was the last: seconds of CPU, and of time."""
        wait(lambda: self._show(SYNC, ENDED) != [0], "the sync to end")
        start, end, cpu = self._show(SYNC, "ExecMainStartTimestampMonotonic", ENDED, "CPUUsageNSec")
        return {"cpu": cpu / 1e9, "seconds": (end - start) / 1e6}

    def _at_rest(self) -> dict[str, float]:
        """Of three whole runs, and megabytes at most."""
        runs = []
        for _ in range(4):
            self._end()
            wait(lambda: self._show(SYNC, ENDED) == [0], "the sync to begin")
            status = self.machine.root / f"proc/{self._show(SYNC, 'MainPID')[0]}/status"
            peak = 0.0
            with contextlib.suppress(OSError):
                while found := re.search(r"VmHWM:\s+(\d+)", status.read_text()):
                    peak = int(found[1]) / 1024
                    time.sleep(0.01)
            runs.append({"MB": peak, **self._end()})
        return {key: median(run[key] for run in runs[1:]) for key in runs[0]}

    def measure(self, boot: float, rotations: int) -> dict[str, Any]:
        [start] = self._show("", "UserspaceTimestampMonotonic")
        stamps = {unit: self._show(unit, key)[0] for unit, key in UNITS.items()}
        # 0 of a unit that is at work again
        seconds = {unit: (stamp - start) / 1e6 for unit, stamp in stamps.items() if stamp}
        sync = {"nothing to do, 2 endpoints": self._at_rest()}
        taken, runs = [], []
        for _ in range(rotations):
            taken.append(self._rotate())
            runs.append(self._end())
        sync["a token"] = {key: median(run[key] for run in runs) for key in runs[0]}
        place, secret = self.machine.addresses, self.sandbox.engine.outputs()["tokenSecretArn"]
        for number in (80, fit("nginx", f"{place.api_name}:9464", secret)):
            self._give(number)
            sync[f"a configuration, {number} endpoints"] = self._end()
            sync[f"nothing to do, {number} endpoints"] = self._at_rest()
        token = {
            "median": median(seconds for seconds, _ in taken),
            "slowest": max(seconds for seconds, _ in taken),
            "failed": sum(failed for _, failed in taken),
            "rotations": rotations,
        }
        return {
            "boot": {"seconds": {**seconds, "first 200": boot}},
            "rotation": {"token": token},
            "sync": sync,
        }

    def _rotate(self) -> tuple[float, int]:
        """A new token: seconds to the first scrape with it, and scrapes that failed meanwhile."""
        folder, token, failed = self.sandbox.api, secrets.token_urlsafe(32), 0
        api.accept(folder, [*api.accepted(folder), api.digest(token)])
        secret, began = self.sandbox.engine.outputs()["tokenSecretArn"], time.monotonic()
        self.aws.put_secret_value(SecretId=secret, SecretString=token)
        with (folder / "requests.jsonl").open() as log:
            log.seek(0, 2)
            while time.monotonic() - began < 60:
                failed += self.sandbox.get("/metrics")[0] != 200
                # the sync's own probes have it earlier, and come from nobody
                lines = [line for line in log if "X-Forwarded-For" in line]
                if any(api.digest(token)[:12] in line for line in lines):
                    break
        return time.monotonic() - began, failed

    def _give(self, number: int) -> None:
        """So many endpoints, as the program would; they are in use after this."""
        place, secret = self.sandbox.machine.addresses, self.sandbox.engine.outputs()
        [name] = (secret["bundleSecretArn"],)
        bundle = json.loads(self.aws.get_secret_value(SecretId=name)["SecretString"])
        settings = with_endpoints("nginx", number, 9446, f"{place.api_name}:9464")
        settings = settings.model_copy(update={"prometheus_cidrs": (place.prometheus_cidr,)})
        bundle |= proxy.bundle(settings, bundle["token"]["secret"])
        self.aws.put_secret_value(SecretId=name, SecretString=json.dumps(bundle))
        wait(lambda: self.sandbox.get(f"/more-{number - 1}")[0] == 200, "the endpoints", 120)
