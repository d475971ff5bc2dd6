"""The program in an account whose organisation forbids what it does by default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sandbox import aws
from sandbox.engine import Engine, ProgramError
from sandbox.organisation import BOUNDARY, NAMES, PATH, SECRETS, TAG
from tests.sandbox.test_engine import inventory

Allowed = tuple[Engine, aws.Account, dict[str, Any]]


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Allowed]:
    """An engine, an account under policies, and the settings that satisfy them."""
    folder = tmp_path_factory.mktemp("organisation")
    process, account = aws.start(
        folder,
        region="eu-central-1",
        vpc_cidr="10.20.0.0/16",
        subnet_cidr="10.20.1.0/24",
        organisation=True,
    )
    try:
        ec2 = account.client("ec2")
        prefixes = ec2.create_managed_prefix_list(
            PrefixListName="prometheus", MaxEntries=5, AddressFamily="IPv4"
        )["PrefixList"]["PrefixListId"]
        engine = Engine(folder, account)
        settings = {
            "aws:defaultTags": {"tags": {TAG: "1234"}},
            "pulumi:autonaming": {"pattern": f"{NAMES}${{stack}}-${{name}}-${{hex(4)}}"},
            "permissionsBoundaryArn": BOUNDARY,
            "iamPath": PATH,
            "secretPrefix": f"{SECRETS}metrics-proxy",
            "recoveryWindowInDays": 7,
            "httpsCidrs": ["10.20.0.0/16"],
            "prometheusPrefixListIds": [prefixes],
        }
        engine.configure(
            {
                "aws:region": account.region,
                "subnetId": account.subnet_id,
                "prometheusCidrs": ["10.20.2.0/24"],
                "apiSecurityGroupId": account.api_security_group_id,
                "instanceType": "t3.micro",
                **settings,
            }
        )
        engine.set_secret("adminToken", "engine-test-token")
        yield engine, account, settings
    finally:
        process.terminate()
        process.wait(20)


REFUSED = {
    "aws:defaultTags": "all is tagged",
    "pulumi:autonaming": "names begin as ours",
    "permissionsBoundaryArn": "roles have the boundary",
    "iamPath": "roles have the path",
    "secretPrefix": "secrets are named as ours",
    "httpsCidrs": "nothing is open to everywhere",
    "prometheusPrefixListIds": "ingress is by group or list",
}
"""Without this setting, it says."""


@pytest.mark.parametrize("key", REFUSED)
def test_each_setting_is_what_lets_the_program_through(allowed: Allowed, key: str) -> None:
    engine, _, settings = allowed
    # a name is free again after its recovery window
    engine.configure(
        {"secretPrefix": f"{SECRETS}without-{key.partition(':')[2] or key}", key: None}
    )
    try:
        with pytest.raises(ProgramError, match=REFUSED[key]):
            engine.up()
        engine.destroy()
    finally:
        engine.configure(settings)


def test_without_a_recovery_window_nothing_could_be_destroyed(allowed: Allowed) -> None:
    engine, _, settings = allowed
    engine.configure({"secretPrefix": f"{SECRETS}without-window", "recoveryWindowInDays": 0})
    engine.up()
    with pytest.raises(ProgramError, match="secrets can be restored"):
        engine.destroy()
    engine.configure({"recoveryWindowInDays": settings["recoveryWindowInDays"]})
    engine.up()
    engine.destroy()
    engine.configure(settings)


def test_a_machine_without_a_tagged_volume_does_not_start(allowed: Allowed) -> None:
    _, account, _ = allowed
    tags = [{"ResourceType": "instance", "Tags": [{"Key": TAG, "Value": "1234"}]}]
    with pytest.raises(ClientError, match="volumes are tagged"):
        account.client("ec2").run_instances(
            ImageId="ami-0bbbbbbbbbbbbbbb0", MinCount=1, MaxCount=1, TagSpecifications=tags
        )


def test_with_all_of_them_a_stack_lives(allowed: Allowed) -> None:
    engine, account, _ = allowed
    assert set(engine.up()) == {"create"}
    assert set(engine.preview()) == {"same"}
    found = inventory(account)
    names = [role["RoleName"] for role in found["roles"]]
    names += [profile["InstanceProfileName"] for profile in found["profiles"]]
    names += [group["GroupName"] for group in found["groups"]]
    assert len(names) == 3
    assert all(name.startswith(f"{NAMES}local-") for name in names)
    assert {role["Path"] for role in found["roles"] + found["profiles"]} == {PATH}
    assert {s["Name"] for s in found["secrets"] if "DeletedDate" not in s} == {
        f"{SECRETS}metrics-proxy/local/{name}" for name in ("admin-token", "bundle")
    }

    # the volume, and all that EC2 has, with the default tags
    volumes = account.client("ec2").describe_volumes()["Volumes"]
    mine = [*volumes, *found["instances"], *found["groups"]]
    mine += [{"Tags": one["TagSet"]} for one in found["interfaces"]]
    tags = [{tag["Key"]: tag["Value"] for tag in one["Tags"]} for one in mine]
    wanted = {TAG: "1234", "pulumi:project": "metrics-proxy", "pulumi:stack": "local"}
    assert len(tags) == 4
    assert all(wanted.items() <= each.items() for each in tags)

    engine.destroy()
    left = {k: v for k, v in inventory(account).items() if v and k != "secrets"}
    assert left == {}
    assert all("DeletedDate" in secret for secret in inventory(account)["secrets"])
