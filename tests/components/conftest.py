"""The whole program under Pulumi's mocks."""

from __future__ import annotations

import asyncio
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from pulumi.runtime.mocks import MockMonitor

from config.settings import NAMESPACE
from sandbox.engine import stack_file
from tests.components.cloud import ZONES, Answers, Cloud

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "the-admin-token"
BASE: dict[str, Any] = {
    "subnetId": "subnet-0123456789abcdef0",
    "prometheusCidrs": ["10.20.0.0/24", "10.20.8.0/24"],
    "apiCidrs": ["10.30.0.0/24"],
}

FLEET: dict[str, Any] = {"subnetId": None, "subnetIds": list(ZONES)[:2]}
"""What makes a fleet of the one machine."""

Deploy = Callable[..., Cloud]


@pytest.fixture
def deploy(engine: None, monkeypatch: pytest.MonkeyPatch) -> Deploy:
    """Run the program; keywords override the settings, `secret=False` stores the token plainly,
    `answers` are AWS' that differ."""
    del engine

    def run(
        values: dict[str, Any] | None = None,
        stack: str = "dev",
        secret: bool = True,
        answers: Answers | None = None,
        **over: Any,
    ) -> Cloud:
        cloud = Cloud(answers or {})
        config = {**({"adminToken": TOKEN, **BASE} if values is None else values), **over}
        monitor = MockMonitor(cloud)
        monkeypatch.setattr(monitor, "RegisterResource", cloud.recording(monitor.RegisterResource))
        pulumi.runtime.set_mocks(
            cloud, project=NAMESPACE, stack=stack, preview=False, monitor=monitor
        )
        pulumi.runtime.set_all_config(
            {
                key if ":" in key else f"{NAMESPACE}:{key}": value
                if isinstance(value, str)
                else json.dumps(value)
                for key, value in config.items()
                if value is not None
            },
            [f"{NAMESPACE}:adminToken"] if secret else [],
        )
        monkeypatch.setattr(
            pulumi, "export", lambda name, value: cloud.outputs.update({name: value})
        )
        try:
            pulumi.runtime.test(lambda: runpy.run_path(str(ROOT / "__main__.py")) and None)()
        except pulumi.RunError:
            assert not cloud.resources, "refused after a resource was registered"
            raise
        cloud.urns = sorted(monitor.get_registered_resources())
        assert len(cloud.urns) == len(cloud.resources), "two resources share a URN"
        outputs = {name: shown(value) for name, value in cloud.outputs.items()}
        cloud.outputs = {name: value for name, (value, _) in outputs.items()}
        cloud.secret_outputs = {name for name, (_, secret) in outputs.items() if secret}
        return cloud

    return run


def shown(value: pulumi.Input[Any]) -> tuple[Any, bool]:
    """The value of an output, and whether it is marked secret."""

    async def read() -> tuple[Any, bool]:
        output = pulumi.Output.from_input(value)
        return await output.future(), await output.is_secret()

    return asyncio.get_event_loop().run_until_complete(read())


def example(name: str) -> dict[str, Any]:
    """The config of an example of a stack file, with what its user puts in."""
    values = {
        "URL of Grafana": "https://grafana.example.com",
        "id of a private subnet": next(iter(ZONES)),
        "id of one in another zone": list(ZONES)[1],
        "network of Prometheus": "10.20.0.0/24",
        "network of the API": "10.30.0.0/24",
        "security group of the API": "sg-0123456789abcdef0",
        "domain of the API": "example.internal",
        "ARN of the token": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:t-a1b2c3",
        "name of a contact point": "on call",
        "URL of your copy": "https://wiki.example.com/runbook",
    }
    config = dict(yaml.safe_load(stack_file(name, values))["config"])
    if f"{NAMESPACE}:adminTokenSecretArn" not in config:
        config[f"{NAMESPACE}:adminToken"] = TOKEN
    return config
