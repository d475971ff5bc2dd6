"""The policy in docs/aws.md is enough for whoever deploys, and no more than the account's own."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from sandbox import aws
from sandbox.engine import Engine, ProgramError
from tests.sandbox.test_engine import inventory

ROOT = Path(__file__).resolve().parents[2]
NUMBER = "123456789012"


def policy(*, fleet: bool = False) -> dict[str, Any]:
    """The policy of who deploys one machine, or a fleet."""
    page = (ROOT / "docs/aws.md").read_text().replace("ACCOUNT", NUMBER)
    found = re.findall(r"```json\n(.*?)```", page.replace("REGION", aws.REGION), re.DOTALL)
    document, more = map(json.loads, found)
    return {**document, "Statement": document["Statement"] + (more if fleet else [])}


def actions(statement: dict[str, Any]) -> list[str]:
    found = statement["Action"]
    return [found] if isinstance(found, str) else found


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[aws.Account]:
    process, account = aws.start(
        tmp_path_factory.mktemp("aws"),
        region=aws.REGION,
        vpc_cidr="10.20.0.0/16",
        subnet_cidr="10.20.1.0/24",
        pace=1_000,
    )
    yield account
    process.terminate()
    process.wait(20)


def deployer(account: aws.Account, name: str, document: dict[str, Any]) -> aws.Account:
    """The account as somebody with just this policy sees it."""
    iam = account.client("iam")
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="it", PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return dataclasses.replace(
        account, access_key_id=key["AccessKeyId"], secret_access_key=key["SecretAccessKey"]
    )


def configured(folder: Path, who: aws.Account) -> Engine:
    engine = Engine(folder, who)
    engine.configure(
        {
            "aws:region": who.region,
            "subnetId": who.subnet_id,
            "prometheusCidrs": ["10.20.2.0/24"],
            "apiSecurityGroupId": who.api_security_group_id,
            "instanceType": "t3.micro",
        }
    )
    engine.set_secret("adminToken", "engine-test-token")
    return engine


def test_whoever_deploys_needs_no_more_than_the_policy(
    account: aws.Account, tmp_path: Path
) -> None:
    engine = configured(tmp_path, deployer(account, "deployer", policy()))
    prefixes = account.client("ec2").create_managed_prefix_list(
        PrefixListName="aws", MaxEntries=5, AddressFamily="IPv4"
    )["PrefixList"]["PrefixListId"]
    boundary = f"arn:aws:iam::{NUMBER}:policy/boundary"
    engine.up()
    for change in (
        {"prometheusCidrs": ["10.20.3.0/24"], "httpsPrefixListIds": [prefixes]},
        {"permissionsBoundaryArn": boundary, "aws:defaultTags": {"tags": {"team": "sre"}}},
        {"permissionsBoundaryArn": None, "aws:defaultTags": {"tags": {"owner": "sre"}}},
        {"privateIp": "10.20.1.77", "recoveryWindowInDays": 7},
    ):
        engine.configure(change)
        assert set(engine.up()) > {"same"}
    # who may use a key is said there, too
    key = f"arn:aws:kms:{aws.REGION}:{NUMBER}:key/1"
    engine.configure({"kmsKeyArn": key})
    engine.set_secret("adminToken", "another-token")
    with pytest.raises(ProgramError, match="Access to KMS is not allowed"):
        engine.up()
    document = policy()
    allowed = ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"]
    document["Statement"].append({"Effect": "Allow", "Action": allowed, "Resource": key})
    account.client("iam").put_user_policy(
        UserName="deployer", PolicyName="it", PolicyDocument=json.dumps(document)
    )
    engine.up()
    assert set(engine.preview()) == {"same"}
    engine.destroy()
    left = {k: v for k, v in inventory(account).items() if v}
    assert set(left) == {"secrets"}
    assert all("DeletedDate" in secret for secret in left["secrets"])


def as_fleet(engine: Engine, account: aws.Account, number: int) -> None:
    """The same stack in two subnets, of which one is new, and with secrets of its own."""
    subnets = [account.subnet_id, account.another_subnet(f"10.20.{number}.0/24")]
    prefix = f"metrics-proxy/{number}"
    engine.configure({"subnetId": None, "subnetIds": subnets, "secretPrefix": prefix})


def test_whoever_deploys_a_fleet_needs_its_statements_and_no_more(
    account: aws.Account, tmp_path: Path
) -> None:
    engine = configured(tmp_path, deployer(account, "fleet", policy(fleet=True)))
    as_fleet(engine, account, 10)
    engine.up()
    for change in (
        {"prometheusCidrs": ["10.20.3.0/24"], "aws:defaultTags": {"tags": {"team": "sre"}}},
        {"syncInterval": 30, "aws:defaultTags": {"tags": {"owner": "sre"}}},
        # the one before may be under way
        {"syncInterval": 31},
    ):
        engine.configure(change)
        assert set(engine.up()) > {"same"}
    assert set(engine.preview()) == {"same"}
    engine.destroy()
    elb, scaling, ec2 = (account.client(it) for it in ("elbv2", "autoscaling", "ec2"))
    assert elb.describe_load_balancers()["LoadBalancers"] == []
    assert elb.describe_target_groups()["TargetGroups"] == []
    assert scaling.describe_auto_scaling_groups()["AutoScalingGroups"] == []
    assert ec2.describe_launch_templates()["LaunchTemplates"] == []


@pytest.mark.parametrize(("number", "sid"), [(11, "Balancer"), (12, "Fleet")])
def test_without_a_statement_there_is_no_fleet(
    account: aws.Account, tmp_path: Path, number: int, sid: str
) -> None:
    document = policy(fleet=True)
    assert sid in [s["Sid"] for s in document["Statement"]]
    document["Statement"] = [s for s in document["Statement"] if s["Sid"] != sid]
    engine = configured(tmp_path, deployer(account, f"fleet-without-{sid}", document))
    as_fleet(engine, account, number)
    with pytest.raises(ProgramError, match="not authorized"):
        engine.up()


@pytest.mark.parametrize("sid", [s["Sid"] for s in policy()["Statement"] if s["Sid"] != "PassRole"])
def test_without_a_statement_there_is_no_proxy(
    account: aws.Account, tmp_path: Path, sid: str
) -> None:
    document = policy()
    document["Statement"] = [s for s in document["Statement"] if s["Sid"] != sid]
    engine = configured(tmp_path, deployer(account, f"without-{sid}", document))
    engine.configure({"secretPrefix": f"metrics-proxy/{sid}"})
    with pytest.raises(ProgramError, match="not authorized"):
        engine.up()


def test_every_action_of_the_policy_is_one_of_aws() -> None:
    session = boto3.Session(region_name=aws.REGION)
    for statement in policy(fleet=True)["Statement"]:
        for action in actions(statement):
            service, _, name = action.partition(":")
            service = {"elasticloadbalancing": "elbv2"}.get(service, service)
            known = session.client(service).meta.service_model.operation_names
            pattern = name.replace("*", ".*")
            assert name == "PassRole" or any(re.fullmatch(pattern, one) for one in known), action
