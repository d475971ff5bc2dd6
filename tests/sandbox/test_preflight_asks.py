"""What is asked before any resource, answered by the stand-in provider over the embedded AWS."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pulumi
import pytest
from pulumi.runtime import MockCallArgs, MockResourceArgs, Mocks

from components import ask, preflight, secret_names
from components.preflight import newest_debian
from config.settings import Settings, SettingsError
from sandbox import aws
from sandbox.providers.aws.kind import to_tags
from sandbox.providers.aws.provider import Aws

Refusal = Callable[..., str]


class Invokes(Mocks):
    """Functions only."""

    def __init__(self) -> None:
        self.provider = Aws()

    def new_resource(self, args: MockResourceArgs) -> tuple[str, dict[str, Any]]:
        raise AssertionError(f"unexpected resource {args.typ}")

    def call(self, args: MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        accepted, function = self.provider.functions[args.token]
        assert set(args.args) <= accepted
        try:
            return function(dict(args.args)), []
        except self.provider.refusals as error:
            return {}, [("", str(error))]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[aws.Account]:
    process, account = aws.start(
        tmp_path_factory.mktemp("aws"),
        region="eu-central-1",
        vpc_cidr="10.20.0.0/16",
        subnet_cidr="10.20.1.0/24",
    )
    yield account
    process.terminate()
    process.wait(20)


@pytest.fixture
def refusal(account: aws.Account, engine: None, monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """What is refused of settings, or nothing."""
    del engine
    for name, value in account.environment().items():
        monkeypatch.setenv(name, value)

    def refused(**changes: object) -> str:
        config = {
            "subnetId": account.subnet_id,
            "prometheusCidrs": ["10.20.2.0/24"],
            "apiSecurityGroupId": account.api_security_group_id,
            **changes,
        }
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in config.items()}
        pulumi.runtime.set_mocks(Invokes(), project="metrics-proxy", stack="dev")
        try:
            own = "adminTokenSecretArn" not in texts
            settings = Settings.parse("dev", texts, has_token=own)
            place = ask(settings, secret_names(settings)[1])
        except SettingsError as error:
            return str(error)
        assert (place.region, place.vpc_id) == (account.region, account.vpc_id)
        return ""

    return refused


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"subnetId": "subnet-00000000"}, '"subnet-00000000" is not found: .*InvalidSubnetID'),
        ({"instanceType": "t9.micro"}, '"t9.micro" is not found: .*InvalidInstanceType'),
        ({"instanceType": "mac2.metal"}, '"mac2.metal" is arm64_mac'),
        ({"amiId": "ami-00000000"}, '"ami-00000000" is not found: getAmi: no AMI matches'),
        ({"amiId": "ami-0bbbbbbbbbbbbbbb0"}, '"ami-0b+0" is x86_64, and t4g.micro is arm64'),
        ({"prometheusSecurityGroupId": "sg-00000000"}, '"sg-0+" is not found: .*InvalidGroup'),
        ({"apiSecurityGroupId": "sg-00000000"}, '"sg-00000000" is not found: .*InvalidGroup'),
        ({"privateIp": "10.20.2.7"}, '"10.20.2.7" is not in the subnet, which is 10.20.1.0/24'),
        ({"privateIp": "10.20.1.3"}, '"10.20.1.3" is one of the five'),
    ],
)
def test_what_the_account_does_not_have_is_refused(
    refusal: Refusal, changes: dict[str, str], line: str
) -> None:
    pattern = rf"metrics-proxy:{next(iter(changes))}: {line}.*"
    assert re.fullmatch(pattern, refusal(**changes))


def test_a_part_of_an_arn_that_looks_whole_is_refused(
    account: aws.Account, refusal: Refusal
) -> None:
    client = account.client("secretsmanager")
    arn = client.create_secret(Name="sba/my-secret", SecretString="{}")["ARN"]
    assert refusal(adminTokenSecretArn=f"{arn}:admin::") == ""
    line = refusal(adminTokenSecretArn=arn[:-7])
    assert line.startswith("metrics-proxy:adminTokenSecretArn: ")
    assert line.endswith(f"is only a part of an ARN, which is {arn}")
    assert "couldn't find resource" in refusal(adminTokenSecretArn=arn[:-6] + "000000")


def test_what_the_account_has_is_accepted(refusal: Refusal) -> None:
    assert refusal() == ""
    assert refusal(instanceType="t3.micro", amiId="ami-0bbbbbbbbbbbbbbb0") == ""
    assert refusal(privateIp="10.20.1.4") == ""


def test_the_newest_release_is_taken_and_an_account_may_hide_them_all(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dailies and developers' builds are newer; allowed AMIs leave out of an answer what is not."""
    assert refusal() == ""  # ... and logs in
    assert newest_debian(["arm64"]).id == "ami-0bbbbbbbbbbbbbbb1"
    monkeypatch.setattr(preflight, "DEBIAN", aws.ACCOUNT)  # an account that has others only
    assert refusal().startswith(
        'metrics-proxy:amiId: "the newest image of Debian 13" is not found '
        "(where an account allows some images only, name one of them): "
    )
    assert refusal(amiId=aws.BAKED["arm64"]) == ""


def test_a_type_is_offered_in_some_zones_only(account: aws.Account, refusal: Refusal) -> None:
    ec2 = account.client("ec2")
    found = {}
    for zone, cidr in (("eu-central-1a", "10.20.10.0/24"), ("eu-central-1b", "10.20.11.0/24")):
        made = ec2.create_subnet(VpcId=account.vpc_id, CidrBlock=cidr, AvailabilityZone=zone)
        found[zone] = refusal(subnetId=made["Subnet"]["SubnetId"], instanceType="f2.6xlarge")
    assert found == {
        "eu-central-1a": 'metrics-proxy:instanceType: "f2.6xlarge" is not offered in '
        "eu-central-1a, where the subnet is",
        "eu-central-1b": "",
    }


def test_a_group_of_another_vpc_is_refused(account: aws.Account, refusal: Refusal) -> None:
    ec2 = account.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.99.0.0/16")["Vpc"]["VpcId"]
    group = ec2.create_security_group(GroupName="api", Description="API", VpcId=vpc)["GroupId"]
    assert refusal(apiSecurityGroupId=group) == (
        f'metrics-proxy:apiSecurityGroupId: "{group}" is in {vpc}, '
        f"and the subnet in {account.vpc_id}"
    )


def test_an_address_is_taken_by_anything_but_the_stack(
    account: aws.Account, refusal: Refusal
) -> None:
    ec2 = account.client("ec2")
    made = {}
    for address, stack in (("10.20.1.77", "prod"), ("10.20.1.78", "dev")):
        tags = {"pulumi:project": "metrics-proxy", "pulumi:stack": stack}
        made[stack] = ec2.create_network_interface(
            SubnetId=account.subnet_id,
            PrivateIpAddress=address,
            TagSpecifications=[{"ResourceType": "network-interface", "Tags": to_tags(tags)}],
        )["NetworkInterface"]["NetworkInterfaceId"]
    assert refusal(privateIp="10.20.1.77") == (
        f'metrics-proxy:privateIp: "10.20.1.77" is taken, by {made["prod"]}'
    )
    assert refusal(privateIp="10.20.1.78") == ""
    # protected, it is not given up for another address
    assert refusal(protect=True) == ""
    assert refusal(protect=True, privateIp="10.20.1.78") == ""
    assert "keeps the interface with 10.20.1.78" in refusal(protect=True, privateIp="10.20.1.79")
    ec2.delete_network_interface(NetworkInterfaceId=made["dev"])


def test_a_prefix_list_is_there_and_short_enough(account: aws.Account, refusal: Refusal) -> None:
    ec2 = account.client("ec2")
    lists = [
        ec2.create_managed_prefix_list(
            PrefixListName=f"{family}-{entries}", MaxEntries=entries, AddressFamily=family
        )["PrefixList"]["PrefixListId"]
        for family, entries in (("IPv4", 40), ("IPv4", 40), ("IPv6", 1))
    ]
    assert refusal(httpsPrefixListIds=lists[:1], prometheusPrefixListIds=lists[1:2]) == ""
    assert refusal(httpsPrefixListIds=lists[:2]) == (
        f'metrics-proxy:httpsPrefixListIds: "{lists[1]}" has 40 entries, and a group 60'
    )
    assert refusal(prometheusPrefixListIds=lists[2:]).endswith(" is of IPv6")
    assert "is not found" in refusal(httpsPrefixListIds=["pl-0123456789abcdef0"])


def test_a_key_that_the_machine_could_not_use_is_refused(
    account: aws.Account, refusal: Refusal
) -> None:
    client = account.client("secretsmanager")
    old, new = (f"arn:aws:kms:eu-central-1:123456789012:key/{one}" for one in ("old", "new"))
    theirs = client.create_secret(Name="sba/keyed", SecretString="{}", KmsKeyId=old)["ARN"]
    assert refusal(adminTokenSecretArn=theirs).endswith(
        f"is encrypted with {old}: set adminTokenKmsKeyArn"
    )
    assert refusal(adminTokenSecretArn=theirs, adminTokenKmsKeyArn=old) == ""
    assert refusal(kmsKeyArn=old) == ""
    client.create_secret(Name="metrics-proxy/dev/bundle", SecretString="{}", KmsKeyId=old)
    assert refusal().startswith(f'metrics-proxy:kmsKeyArn: "(none)" leaves the secrets under {old}')
    assert refusal(kmsKeyArn=new).endswith(f"{old} unread: set previousKmsKeyArn to it")
    assert refusal(kmsKeyArn=new, previousKmsKeyArn=old) == ""
    assert refusal(kmsKeyArn=old) == ""
    client.delete_secret(SecretId="metrics-proxy/dev/bundle", ForceDeleteWithoutRecovery=True)


def test_a_public_subnet_is_known_by_its_own_table_or_the_main_one(
    account: aws.Account, refusal: Refusal
) -> None:
    ec2, vpc = account.client("ec2"), account.vpc_id
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    [main] = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    own = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    default = {"DestinationCidrBlock": "0.0.0.0/0", "GatewayId": gateway}
    public = (
        f'metrics-proxy:subnetId: "{account.subnet_id}" is a public subnet, '
        "in which the machine has no route out"
    )
    ec2.create_route(RouteTableId=main["RouteTableId"], **default)
    assert refusal() == public
    link = ec2.associate_route_table(RouteTableId=own, SubnetId=account.subnet_id)
    assert refusal() == ""
    ec2.create_route(RouteTableId=own, **default)
    assert refusal() == public
    ec2.delete_route(RouteTableId=main["RouteTableId"], DestinationCidrBlock="0.0.0.0/0")
    ec2.disassociate_route_table(AssociationId=link["AssociationId"])


@pytest.mark.parametrize(
    ("unset", "said"),
    [
        (["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], "Unable to locate credentials"),
        (["AWS_REGION", "AWS_DEFAULT_REGION"], "no region"),
    ],
)
def test_without_credentials_or_region_one_line_says_what_to_do(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch, unset: list[str], said: str
) -> None:
    for name in unset:
        monkeypatch.delenv(name)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps what it has found once
    line = refusal()
    assert line.startswith("aws: set aws:region and log in (AWS_PROFILE, ...): ")
    assert said in line
