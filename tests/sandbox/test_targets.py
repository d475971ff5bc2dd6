"""The Makefile's targets for a stack, as CI calls them: Pulumi's own command, the real engine."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from runpy import run_path
from typing import Any

import grpc
import pytest
from pulumi.automation._server import LanguageServer
from pulumi.runtime.proto import language_pb2_grpc
from typing_extensions import override

from sandbox import aws
from sandbox.engine import STACK
from sandbox.tools import ROOT
from tests.sandbox.test_deployer import actions, configured, deployer, policy

LATER = (datetime.now(UTC) + timedelta(days=4 * 365 + 20)).isoformat()
"""In the CA's last year, and after the leaf's end."""


class LanguageHost(LanguageServer):
    """The Automation API's, for a CLI that looks for `pulumi-language-python`.

    Pulumi's own comes with its release, not with the Go module that `make setup` builds.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(self.program)
        self.engine = folder / "engine"
        self.server = grpc.server(ThreadPoolExecutor(4))
        language_pb2_grpc.add_LanguageRuntimeServicer_to_server(self, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        plugin = folder / "pulumi-language-python"
        plugin.write_text(
            f'#!/bin/sh\nfor last; do :; done; echo "$last" > {self.engine}\n'
            f"echo {port}; exec sleep 600\n"
        )
        plugin.chmod(0o755)
        self.server.start()

    @staticmethod
    def program() -> None:
        run_path(str(ROOT / "__main__.py"), run_name="__main__")

    @override
    def Run(self, request: Any, context: Any) -> Any:
        request.args.insert(0, self.engine.read_text().strip())
        return super().Run(request, context)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[LanguageHost]:
    folder = tmp_path / "host"
    folder.mkdir()
    host = LanguageHost(folder)
    yield host
    host.server.stop(None).wait()


@pytest.fixture
def account(tmp_path: Path) -> Iterator[aws.Account]:
    process, account = aws.start(
        tmp_path, region=aws.REGION, vpc_cidr="10.20.0.0/16", subnet_cidr="10.20.1.0/24"
    )
    yield account
    process.terminate()
    process.wait(20)


def unattended() -> dict[str, Any]:
    """What docs/ci.md says: to read, of the deployer's policy, and to write the bundle."""
    document = copy.deepcopy(policy())
    for statement in document["Statement"]:
        read = ("Get", "List", "Describe")
        statement["Action"] = [
            one for one in actions(statement) if one.partition(":")[2].startswith(read)
        ]
    document["Statement"] = [one for one in document["Statement"] if one["Action"]]
    write = ["secretsmanager:PutSecretValue", "secretsmanager:UpdateSecretVersionStage"]
    bundle = f"arn:aws:secretsmanager:{aws.REGION}:*:secret:metrics-proxy/*/bundle*"
    document["Statement"].append({"Effect": "Allow", "Action": write, "Resource": bundle})
    return document


def test_a_stack_is_deployed_compared_and_renewed(
    account: aws.Account, host: LanguageHost, tmp_path: Path
) -> None:
    engine = configured(tmp_path, account)
    by_itself = deployer(account, "unattended", unattended())

    def make(target: str, who: aws.Account = by_itself, now: str = LATER) -> tuple[int, str]:
        path = os.pathsep.join([str(host.engine.parent), engine.environment["PATH"]])
        environment = {**engine.environment, **who.environment(), "PATH": path}
        done = subprocess.run(
            ["make", "-f", str(ROOT / "Makefile"), target, f"STACK={STACK}"],
            cwd=engine.project,
            env={**os.environ, **environment, "SANDBOX_TLS_NOW": now},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def resources() -> dict[str, tuple[str | None, str | None]]:
        """Each one's id, and when it changed last."""
        [state] = engine.backend.glob(f".pulumi/stacks/*/{STACK}.json")
        found = json.loads(state.read_text())["checkpoint"]["latest"]["resources"]
        return {one["urn"].split("::")[-1]: (one.get("id"), one.get("modified")) for one in found}

    def renewed() -> set[str]:
        before = resources()
        code, text = make("renew")
        assert code == 0, text
        after = resources()
        assert after.keys() == before.keys()
        return {name for name, was in before.items() if after[name] != was}

    code, text = make("deploy", account, datetime.now(UTC).isoformat())
    assert code == 0, text

    # a renewal that is due is no drift, and hides none
    code, text = make("drift")
    assert code == 0, text
    ec2 = account.client("ec2")
    rules = ec2.describe_security_group_rules()["SecurityGroupRules"]
    [rule] = [one for one in rules if one.get("CidrIpv4") == "10.20.2.0/24"]
    known = ("IpProtocol", "FromPort", "ToPort", "CidrIpv4")
    theirs = {**{key: rule[key] for key in known}, "Description": "by hand"}
    ec2.modify_security_group_rules(
        GroupId=rule["GroupId"],
        SecurityGroupRules=[
            {"SecurityGroupRuleId": rule["SecurityGroupRuleId"], "SecurityGroupRule": theirs}
        ],
    )
    code, text = make("drift")
    assert code != 0
    assert "by hand" in text
    assert "1 to update" in text
    assert "tls-" not in text

    # what nobody has approved does not come with a certificate
    engine.configure({"prometheusCidrs": ["10.20.2.0/24", "10.20.3.0/24"]})
    before = resources()
    code, text = make("renew")
    assert code != 0
    assert "no changes were expected" in text
    assert resources() == before

    # a change elsewhere stays where it is
    engine.configure({"prometheusCidrs": ["10.20.2.0/24"], "workers": {"errorRate": 0.05}})
    assert renewed() == {"tls-ca", "tls-leaf", "secrets-bundle-value"}
    assert renewed() == set()
