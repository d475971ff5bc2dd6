"""What the program takes where it is deployed from: imports, a run under mocks, the engine."""

from __future__ import annotations

import asyncio
import json
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

import pulumi
from pulumi.runtime import MockResourceArgs

from bench.targets import with_endpoints
from config.settings import NAMESPACE
from sandbox import aws
from sandbox.engine import Engine
from sandbox.tools import ROOT
from tests.components.cloud import COMPUTED, Cloud

SDKS: Final = (
    "import pulumi, pulumi_tls, pulumiverse_grafana, pulumi_aws as aws\n"
    "aws.ec2, aws.iam, aws.secretsmanager, aws.vpc\n"
)
PROGRAM: Final = (
    f"{SDKS}import components\nfrom config import stack\nfrom host import cloud_config, proxy\n"
    "from monitoring import alerts, classic, dashboard, scrape\n"
)


class _Cloud(Cloud):
    """Mocks that check nothing: that would take more than the program."""

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        return f"{args.name}-id", {**args.inputs, "arn": args.name, **COMPUTED.get(args.typ, {})}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds: of CPU for imports and for the program under mocks, of time for the engine."""
    pairs = [(_imports(SDKS), _imports(PROGRAM)) for _ in range(rounds)]
    _under_mocks(2)  # with its imports
    return {
        "imports": {
            "the SDKs": median(sdks for sdks, _ in pairs),
            "the program, with them": median(program for _, program in pairs),
            "ratio": median(program / sdks for sdks, program in pairs),
        },
        "under mocks, endpoints": {
            f"{number}": median(_under_mocks(number) for _ in range(rounds))
            for number in (2, 20, 80)
        },
        "engine": _engine(),
    }


def _imports(what: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", what], cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _under_mocks(endpoints: int) -> float:
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.reset_options()
    pulumi.runtime.set_mocks(_Cloud({}), project=NAMESPACE, stack="dev", preview=False)
    settings = with_endpoints("nginx", endpoints)
    config = {
        "subnetId": settings.subnets[0],
        "prometheusCidrs": '["10.20.0.0/24"]',
        "apiCidrs": '["10.30.0.0/24"]',
        "adminToken": "token",
        "endpoints": json.dumps([e.model_dump(exclude={"ca"}) for e in settings.endpoints]),
    }
    secret = f"{NAMESPACE}:adminToken"
    pulumi.runtime.set_all_config({f"{NAMESPACE}:{k}": v for k, v in config.items()}, [secret])
    began = time.process_time()
    pulumi.runtime.test(lambda: runpy.run_path(f"{ROOT}/__main__.py") and None)()
    return time.process_time() - began


def _engine() -> dict[str, float]:
    found = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        process, account = aws.start(
            Path(name), region=aws.REGION, vpc_cidr="10.20.0.0/16", subnet_cidr="10.20.1.0/24"
        )
        try:
            engine = Engine(Path(name), account)
            config = {"aws:region": aws.REGION, "subnetId": account.subnet_id}
            config |= {"apiSecurityGroupId": account.api_security_group_id}
            config |= {"instanceType": "t3.micro"}
            engine.configure({**config, "prometheusCidrs": ["10.20.2.0/24"]})
            engine.set_secret("adminToken", "token")
            for what in ("preview", "up", "second preview"):
                began = time.monotonic()
                (engine.up if what == "up" else engine.preview)()
                found[what] = time.monotonic() - began
        finally:
            process.terminate()
            process.wait(20)
    return found
