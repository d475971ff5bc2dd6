"""The program under the real engine, over the stand-in providers."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from config.settings import NAMESPACE
from sandbox import aws
from sandbox.engine import STACK, Engine, ProgramError
from sandbox.tools import ROOT, find

[NEW_MACHINE] = re.findall(r"pulumi up --replace '(.*)'", (ROOT / "README.md").read_text())
"""The machine's URN, as README has it."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("engine")
    process, account = aws.start(
        folder, region="eu-central-1", vpc_cidr="10.20.0.0/16", subnet_cidr="10.20.1.0/24"
    )
    try:
        engine = Engine(folder, account)
        engine.configure(
            {
                "aws:region": account.region,
                "subnetId": account.subnet_id,
                "prometheusCidrs": ["10.20.2.0/24"],
                "apiSecurityGroupId": account.api_security_group_id,
                "instanceType": "t3.micro",
            }
        )
        engine.set_secret("adminToken", "engine-test-token")
        yield engine
    finally:
        process.terminate()
        process.wait(20)


def inventory(account: aws.Account) -> dict[str, list[Any]]:
    """What the program may leave in the account; the seeded VPC's groups are not its own."""
    ec2, iam, secrets = (account.client(s) for s in ("ec2", "iam", "secretsmanager"))
    return {
        "instances": [
            i
            for r in ec2.describe_instances()["Reservations"]
            for i in r["Instances"]
            if i["State"]["Name"] != "terminated"
        ],
        "interfaces": ec2.describe_network_interfaces()["NetworkInterfaces"],
        "groups": [
            g
            for g in ec2.describe_security_groups()["SecurityGroups"]
            if g["GroupName"] not in ("default", "api")
        ],
        "roles": iam.list_roles()["Roles"],
        "profiles": iam.list_instance_profiles()["InstanceProfiles"],
        "secrets": secrets.list_secrets(IncludePlannedDeletion=True)["SecretList"],
    }


def test_a_stack_lives_from_preview_to_destroy(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = aws.Account.read(engine.backend.parent / "aws.json")
    assert set(engine.preview()) == {"create"}
    assert set(engine.up()) == {"create"}
    assert all(inventory(account).values())
    assert set(engine.preview()) == {"same"}
    assert set(engine.up()) == {"same"}
    machine = engine.outputs()["instanceId"]

    # what the sync brings: no replacement, and the diff can be read
    engine.configure({"prometheusCidrs": ["10.20.2.0/24", "10.20.3.0/24"]})
    lines: list[str] = []
    engine.preview(lines.append, diff=True)
    text = "\n".join(lines)
    assert "aws:secretsmanager/secretVersion:SecretVersion" in text  # a new version of the bundle
    assert "aws:ec2/instance:Instance" not in text
    assert any("+" in line and "allow 10.20.3.0/24;" in line for line in text.splitlines()), text
    engine.up()
    assert engine.outputs()["instanceId"] == machine

    # the token is somebody else's from now on
    theirs = account.client("secretsmanager").create_secret(Name="sba/token", SecretString="{}")
    engine.configure({"adminToken": None, "adminTokenSecretArn": f"{theirs['ARN']}:admin::"})
    changes = engine.up()
    assert (changes.get("delete"), changes.get("update"), changes.get("replace")) == (2, 1, 1)
    assert engine.outputs()["instanceId"] == machine
    assert engine.outputs()["tokenSecretArn"] == theirs["ARN"]

    # a newer image is no reason for a new machine, but it comes with one that is asked for
    with monkeypatch.context() as patch:
        patch.setattr("components.preflight.newest_debian", lambda _: "ami-0aaaaaaaaaaaaaaa0")
        assert set(engine.preview()) == {"same"}
        address = engine.outputs()["privateIp"]
        assert engine.up(replace=[NEW_MACHINE]).get("replace") == 1
        [instance] = inventory(account)["instances"]
        assert instance["ImageId"] == "ami-0aaaaaaaaaaaaaaa0"
        assert engine.outputs()["privateIp"] == address
    machine = engine.outputs()["instanceId"]

    # the machine is ended by somebody else: another one, at the same address
    account.client("ec2").terminate_instances(InstanceIds=[machine])
    assert engine.up(refresh=True).get("create") == 1
    assert engine.outputs()["instanceId"] != machine
    assert engine.outputs()["privateIp"] == address
    assert set(engine.preview()) == {"same"}
    machine = engine.outputs()["instanceId"]

    # AWS refuses to start the new machine, when the old one has ended; the next `up` heals
    for interval, code in (
        (31, "InsufficientInstanceCapacity"),
        (32, "InvalidNetworkInterface.InUse"),
    ):
        [interface] = inventory(account)["interfaces"]
        account.client("ec2").create_tags(
            Resources=[interface["NetworkInterfaceId"]],
            Tags=[{"Key": aws.REFUSED_ONCE, "Value": code}],
        )
        engine.configure({"syncInterval": interval})
        with pytest.raises(ProgramError, match=rf"\({code}\).*RunInstances"):
            engine.up()
        assert inventory(account)["instances"] == []
        assert engine.up()
        assert engine.outputs()["privateIp"] == address
        assert engine.outputs()["instanceId"] != machine
        assert set(engine.preview()) == {"same"}
        machine = engine.outputs()["instanceId"]

    # what the machine is made of: a new machine at the same address
    engine.configure({"syncInterval": 30})
    assert engine.up().get("replace") == 1
    assert engine.outputs()["instanceId"] != machine
    assert engine.outputs()["privateIp"] == address
    engine.configure({"instanceType": "t3.small"})
    assert engine.preview().get("replace") == 1

    # another architecture: the new machine has its image
    engine.configure({"instanceType": "t4g.micro"})
    assert engine.up().get("replace") == 1
    [instance] = inventory(account)["instances"]
    assert instance["ImageId"] == "ami-0bbbbbbbbbbbbbbb1"

    engine.configure({"adminTokenSecretArn": None})
    engine.set_secret("adminToken", "engine-test-token")
    engine.destroy()
    assert [secret["ARN"] for secret in inventory(account).pop("secrets")] == [theirs["ARN"]]
    assert {k: v for k, v in inventory(account).items() if v and k != "secrets"} == {}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("server", "caddy", 'metrics-proxy:server: "caddy" should be '),
        ("colour", "red", 'metrics-proxy:colour: "(hidden)" is no setting'),
        ("subnetId", "subnet-00000000", 'metrics-proxy:subnetId: "subnet-00000000" is not found: '),
        (
            "grafana",
            {"dashboard": "ops/grafana/missing.json"},
            "metrics-proxy:grafana.dashboard: ",
        ),
    ],
)
def test_a_refusal_is_one_line(engine: Engine, key: str, value: Any, message: str) -> None:
    before = engine.config_file.read_text()
    engine.configure({key: value})
    try:
        with pytest.raises(ProgramError) as refused:
            engine.preview()
    finally:
        engine.config_file.write_text(before)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_plain_token_is_refused(engine: Engine) -> None:
    before = engine.config_file.read_text()
    engine.configure({"adminToken": "plain-token-value"})
    try:
        with pytest.raises(ProgramError, match="stored in plain text") as refused:
            engine.preview()
    finally:
        engine.config_file.write_text(before)
    assert "plain-token-value" not in str(refused.value)


def test_what_pulumi_config_set_writes_is_a_setting_or_a_line(engine: Engine) -> None:
    def put(key: str, value: str, *options: str) -> None:
        command = [
            find("pulumi"),
            "config",
            "set",
            "--stack",
            STACK,
            "--path",
            *options,
            key,
            value,
        ]
        environment = {**os.environ, **engine.environment}
        subprocess.run(command, cwd=engine.project, env=environment, check=True)

    before = engine.config_file.read_text()
    try:
        put("metrics-proxy:workers.errorRate", "0.05")
        assert engine.config[f"{NAMESPACE}:workers"] == {"errorRate": "0.05"}
        put("metrics-proxy:grafana.dashboardUid", "12345")
        with pytest.raises(ProgramError) as refused:
            engine.preview()
        assert str(refused.value) == (
            "metrics-proxy:grafana.dashboardUid: 12345 should be text: "
            "write it in quotes, or set it with --type string"
        )
        put("metrics-proxy:grafana.dashboardUid", "12345", "--type", "string")
        assert engine.preview()
    finally:
        engine.config_file.write_text(before)
