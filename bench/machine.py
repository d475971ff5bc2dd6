"""What the booted machine takes: a boot, rotations, the sync. Read only, but for its secrets."""

from __future__ import annotations

import json
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

ENDED: Final = "ExecMainExitTimestampMonotonic"
UNITS: Final = {
    **dict.fromkeys(("cloud-init-local", "cloud-init-network", "cloud-config"), ENDED),
    **dict.fromkeys(("install-metrics-proxy", "metrics-proxy-sync"), ENDED),
    "metrics-proxy": "ActiveEnterTimestampMonotonic",
}


def measure(rotations: int) -> dict[str, Any]:
    """Boot a machine, rotate its token, give it endpoints; all of it ends with this."""
    steps: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        sandbox = Sandbox(Path(folder), lambda what, seconds: steps.update({what: seconds}), "vm")
        try:
            sandbox.up()
            [boot] = (seconds for what, seconds in steps.items() if what.startswith("host"))
            return Booted(sandbox).measure(boot, rotations)
        finally:
            sandbox.down()


class Booted:
    """A sandbox whose machine serves."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox, self.aws = sandbox, sandbox.account.client("secretsmanager")

    def _show(self, unit: str, *keys: str) -> list[int]:
        """Numbers that systemd keeps of a unit."""
        machine = self.sandbox.machine
        assert isinstance(machine, VirtualMachine)  # noqa: S101
        text = machine.inside("systemctl", "show", *(f"-p{key}" for key in keys), unit).stdout
        values = dict(line.split("=") for line in text.splitlines())
        return [int(values[key]) for key in keys]

    def _run(self) -> dict[str, float]:
        """The next run of the sync that begins and ends."""
        unit, keys = "metrics-proxy-sync", ("ExecMainStartTimestampMonotonic", ENDED)
        [now] = self._show(unit, ENDED)
        wait(lambda: self._show(unit, ENDED) > [now], "the sync")
        start, end, cpu, peak = self._show(unit, *keys, "CPUUsageNSec", "MemoryPeak")
        return {"cpu": cpu / 1e9, "MB": peak / 2**20, "seconds": (end - start) / 1e6}

    def _at_rest(self) -> dict[str, float]:
        runs = [self._run() for _ in range(4)][1:]
        return {key: median(run[key] for run in runs) for key in runs[0]}

    def measure(self, boot: float, rotations: int) -> dict[str, Any]:
        [start] = self._show("", "UserspaceTimestampMonotonic")
        seconds = {unit: (self._show(unit, key)[0] - start) / 1e6 for unit, key in UNITS.items()}
        sync = {"nothing to do, 2 endpoints": self._at_rest()}
        taken = [self._rotate() for _ in range(rotations)]
        for number in (80, fit("nginx")):
            self._give(number)
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
