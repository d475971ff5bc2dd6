"""What AWS is asked before any resource, and what each refusal looks like.

`deploy` fails when something is refused after a resource was registered.
"""

from __future__ import annotations

from typing import Any

import pulumi
import pytest

from tests.components.cloud import ANSWERS, ZONES, Answers
from tests.components.conftest import BASE, FLEET, Deploy

KEY = "arn:aws:kms:eu-central-1:123456789012:key/abc"
LIST = "pl-0123456789abcdef0"
AMI, GROUP = "ami-0123456789abcdef0", "sg-0123456789abcdef0"
SUBNET = BASE["subnetId"]
BY_GROUP = {"apiCidrs": None, "apiSecurityGroupId": GROUP}
PART = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:sba-secret"
THEIRS = {"adminToken": None, "adminTokenSecretArn": f"{PART}:admin::"}


def says(**answer: Any) -> Any:
    return lambda _: answer


def fails(text: str) -> Any:
    """Pulumi's mocks put the name of a property behind it, in parentheses: there is none."""

    def answer(_: object) -> dict[str, Any]:
        raise RuntimeError(text)

    return answer


def hidden(asked: dict[str, Any]) -> dict[str, Any]:
    """Somebody else's secret may not be seen; one's own is not there yet."""
    raise RuntimeError("AccessDeniedException: no" if "arn" in asked else "couldn't find resource")


def routes(**route: str) -> Any:
    return says(routes=[{"cidrBlock": "10.20.0.0/16", "gatewayId": "local"}, route])


def found(taken: str = "", own: str = "") -> Any:
    """The interfaces that have an address, and those of the stack."""

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        one = own if asked["filters"][0]["name"].startswith("tag:") else taken
        return {"ids": [one] if one else []}

    return answer


def under(key: str, arn: str = "") -> Any:
    """The secret of this ARN, or of any name, is encrypted with a key."""
    return lambda asked: {"arn": arn, "kmsKeyId": key if asked.get("arn", "") == arn else ""}


OURS = {
    "getNetworkInterfaces": found(own="eni-1"),
    "getNetworkInterface": says(
        subnetId="subnet-0123456789abcdef9", privateIp="10.20.0.9", tags={}
    ),
}
TAGS = {"Name": "proxy-dev", "pulumi:project": "metrics-proxy", "pulumi:stack": "dev"}
OUR_FLEET: Answers = {
    "getNetworkInterfaces": lambda asked: {
        "ids": list(ZONES)[:2] if asked["filters"][0]["name"].startswith("tag:") else []
    },
    "getNetworkInterface": lambda asked: {"subnetId": asked["id"], "tags": TAGS},
}
A, B, C = ZONES
PUBLIC = routes(cidrBlock="0.0.0.0/0", gatewayId="igw-1")


def offered_in(zone: str) -> Any:
    """A type that only one zone has."""

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        instance_type, where = (each["values"] for each in asked["filters"])
        return {"instanceTypes": instance_type if where == [zone] else []}

    return answer


def both_tables(asked: dict[str, Any]) -> dict[str, Any]:
    return {"ids": ["main" if "main" in asked["filters"][0]["name"] else "own"]}


def public(table: str) -> Any:
    """That table has a route to a gateway."""
    return lambda asked: (PUBLIC if asked["routeTableId"] == table else routes())(asked)


@pytest.mark.parametrize(
    ("settings", "answers", "line"),
    [
        (
            THEIRS,
            {"getSecret": says(arn=f"{PART}-a1b2c3")},
            f'adminTokenSecretArn: "{PART}" is only a part of an ARN, which is {PART}-a1b2c3',
        ),
        (
            THEIRS,
            {"getSecret": fails("ResourceNotFoundException")},
            f'adminTokenSecretArn: "{PART}" is not found: ResourceNotFoundException',
        ),
        (
            {},
            {"getSubnet": fails("no matching subnet:\n\t* found")},
            f'subnetId: "{SUBNET}" is not found: no matching subnet: * found',
        ),
        (
            {},
            {"getRouteTable": PUBLIC},
            f'subnetId: "{SUBNET}" is a public subnet, in which the machine has no route out',
        ),
        (
            {},
            {"getRouteTables": both_tables, "getRouteTable": public("own")},
            f'subnetId: "{SUBNET}" is a public subnet, in which the machine has no route out',
        ),
        (
            {"instanceType": "t9.micro"},
            {"getInstanceType": fails("InvalidInstanceType: t9.micro")},
            'instanceType: "t9.micro" is not found: InvalidInstanceType: t9.micro',
        ),
        (
            {"instanceType": "mac2.metal"},
            {},
            'instanceType: "mac2.metal" is arm64_mac; Debian 13 needs arm64 or x86_64',
        ),
        (
            {},
            {"getInstanceTypeOfferings": says(instanceTypes=[])},
            'instanceType: "t4g.micro" is not offered in eu-central-1a, where the subnet is',
        ),
        (
            {},
            {"getAmi": fails("no results")},
            'amiId: "the newest image of Debian 13" is not found '
            "(where an account allows some images only, name one of them): no results",
        ),
        ({"amiId": AMI}, {"getAmi": fails("gone")}, f'amiId: "{AMI}" is not found: gone'),
        (
            {"amiId": AMI},
            {"getAmi": says(id=AMI, architecture="x86_64")},
            f'amiId: "{AMI}" is x86_64, and t4g.micro is arm64',
        ),
        (
            BY_GROUP,
            {"getSecurityGroup": fails("InvalidGroup.NotFound")},
            f'apiSecurityGroupId: "{GROUP}" is not found: InvalidGroup.NotFound',
        ),
        (
            BY_GROUP,
            {"getSecurityGroup": says(vpcId="vpc-2")},
            f'apiSecurityGroupId: "{GROUP}" is in vpc-2, and the subnet in vpc-1',
        ),
        (
            {"privateIp": "10.20.1.7"},
            {},
            'privateIp: "10.20.1.7" is not in the subnet, which is 10.20.0.0/24',
        ),
        *(
            (
                {"privateIp": f"10.20.0.{n}"},
                {},
                f'privateIp: "10.20.0.{n}" is one of the five addresses of 10.20.0.0/24 '
                "that AWS keeps for itself",
            )
            for n in (0, 1, 2, 3, 255)
        ),
        (
            {"privateIp": "10.20.0.7"},
            {"getNetworkInterfaces": found(taken="eni-1")},
            'privateIp: "10.20.0.7" is taken, by eni-1',
        ),
        (
            {"privateIp": "10.20.0.7"},
            {"getNetworkInterfaces": found(taken="eni-1", own="eni-2")},
            'privateIp: "10.20.0.7" is taken, by eni-1',
        ),
        *(
            (
                {**change, "protect": True},
                OURS,
                'protect: "true" keeps the interface with 10.20.0.9 in subnet-0123456789abcdef9: '
                "set subnetId and privateIp back, or protect to false",
            )
            for change in ({}, {"subnetId": "subnet-0123456789abcdef9", "privateIp": "10.20.0.7"})
        ),
        *(
            (
                {**change, "protect": True},
                OUR_FLEET,
                f'protect: "true" keeps the load balancer in {A} and {B}: '
                "set subnetIds back, or protect to false",
            )
            # the one machine may be in the subnet of a fleet's
            for change in ({}, {"subnetId": A}, {**FLEET, "subnetIds": [A, C]})
        ),
        (
            {**FLEET, "protect": True},
            OURS,
            'protect: "true" keeps the interface with 10.20.0.9 in subnet-0123456789abcdef9: '
            "set subnetId and privateIp back, or protect to false",
        ),
        (
            FLEET,
            {"getSubnet": fails("no matching subnet")},
            f'subnetIds: "{A}" is not found: no matching subnet',
        ),
        (
            {"subnetId": None, "subnetIds": [A, SUBNET]},
            {},
            f'subnetIds: "{SUBNET}" is in eu-central-1a, as {A} is',
        ),
        (
            FLEET,
            {"getSubnet": lambda it: ANSWERS["getSubnet"](it) | {"vpcId": f"vpc-{it['id'][-1]}"}},
            f'subnetIds: "{B}" is in vpc-b, and {A} in vpc-a',
        ),
        (
            FLEET,
            {"getRouteTables": says(ids=["own"]), "getRouteTable": PUBLIC},
            f'subnetIds: "{A}" is a public subnet, in which the machine has no route out',
        ),
        (
            FLEET,
            {"getInstanceTypeOfferings": offered_in("eu-central-1a")},
            'instanceType: "t4g.micro" is not offered in eu-central-1b, where the subnet is',
        ),
        (
            {"prometheusSecurityGroupId": GROUP},
            {"getSecurityGroup": says(vpcId="vpc-2")},
            f'prometheusSecurityGroupId: "{GROUP}" is in vpc-2, and the subnet in vpc-1',
        ),
        *(
            (
                {key: [LIST]},
                {"getManagedPrefixList": says(**answer)},
                f'{key}: "{LIST}" {problem}',
            )
            for key in ("prometheusPrefixListIds", "httpsPrefixListIds")
            for answer, problem in (
                ({"addressFamily": "IPv6", "maxEntries": 1}, "is of IPv6"),
                ({"addressFamily": "IPv4", "maxEntries": 61}, "has 61 entries, and a group 60"),
            )
        ),
        (
            {"prometheusPrefixListIds": [LIST]},
            {"getManagedPrefixList": fails("no matching EC2 Managed Prefix List found")},
            f'prometheusPrefixListIds: "{LIST}" is not found: '
            "no matching EC2 Managed Prefix List found",
        ),
        (
            THEIRS,
            {"getSecret": under(KEY, PART)},
            f'adminTokenSecretArn: "{PART}" is encrypted with {KEY}: set adminTokenKmsKeyArn',
        ),
        (
            {},
            {"getSecret": under(KEY)},
            f'kmsKeyArn: "(none)" leaves the secrets under {KEY}: AWS keeps a key; name one',
        ),
        (
            {"kmsKeyArn": f"{KEY}2"},
            {"getSecret": under(KEY)},
            f'kmsKeyArn: "{KEY}2" leaves what is under {KEY} unread: set previousKmsKeyArn to it',
        ),
        (
            {"kmsKeyArn": KEY},
            {"getSecret": fails("AccessDeniedException: no")},
            f'kmsKeyArn: "{KEY}" is not found: AccessDeniedException: no',
        ),
    ],
)
def test_what_aws_does_not_have_is_refused_before_any_resource(
    deploy: Deploy, settings: dict[str, Any], answers: Answers, line: str
) -> None:
    with pytest.raises(pulumi.RunError) as refused:
        deploy(answers=answers, **settings)
    assert str(refused.value).removesuffix(" ()") == f"metrics-proxy:{line}"


@pytest.mark.parametrize("question", ["getRegion", "getCallerIdentity"])
def test_without_region_or_credentials_one_line_says_what_to_do(
    deploy: Deploy, question: str
) -> None:
    with pytest.raises(pulumi.RunError) as refused:
        deploy(answers={question: fails("no valid\ncredential sources")})
    assert str(refused.value).removesuffix(" ()") == (
        "aws: set aws:region and log in (AWS_PROFILE, ...): no valid credential sources"
    )


@pytest.mark.parametrize("question", sorted(set(ANSWERS) - {"getSecret", "getDefaultTags"}))
def test_a_question_that_may_not_be_asked_is_one_line(deploy: Deploy, question: str) -> None:
    settings = {**BY_GROUP, "privateIp": "10.20.0.7", "httpsPrefixListIds": [LIST]}
    with pytest.raises(pulumi.RunError, match="AccessDenied: .* not authorized") as refused:
        deploy(answers={question: fails("AccessDenied:\n you are\n not authorized")}, **settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "answers"),
    [
        # the proxy's own address, from the second `up` on
        (
            {"privateIp": "10.20.0.7"},
            {**OURS, "getNetworkInterfaces": found(taken="eni-1", own="eni-1")},
        ),
        ({"protect": True}, {}),
        ({"privateIp": "10.20.0.9", "subnetId": "subnet-0123456789abcdef9"}, OURS),
        ({"protect": True, "subnetId": "subnet-0123456789abcdef9"}, OURS),
        ({"subnetId": "subnet-0123456789abcdef1"}, OURS),
        (
            {"protect": True, "subnetId": "subnet-0123456789abcdef9", "privateIp": "10.20.0.9"},
            {**OURS, "getNetworkInterfaces": found(taken="eni-1", own="eni-1")},
        ),
        # AWS tells no number of entries of its own lists
        ({"httpsPrefixListIds": [LIST]}, {"getManagedPrefixList": says(addressFamily="IPv4")}),
        ({"kmsKeyArn": KEY}, {"getSecret": under("")}),
        ({"kmsKeyArn": KEY}, {"getSecret": under(KEY)}),
        ({"kmsKeyArn": KEY}, {"getSecret": under("abc")}),
        ({"kmsKeyArn": KEY}, {"getSecret": fails("couldn't find resource")}),
        ({"kmsKeyArn": f"{KEY}2", "previousKmsKeyArn": KEY}, {"getSecret": under(KEY)}),
        ({**THEIRS, "adminTokenKmsKeyArn": KEY}, {"getSecret": under("alias/x", PART)}),
        ({**THEIRS, "kmsKeyArn": KEY}, {"getSecret": says(arn=PART, kmsKeyId=KEY)}),
        ({"privateIp": "10.20.0.4"}, {}),
        ({"privateIp": "10.20.0.254"}, {}),
        ({"amiId": AMI}, {"getAmi": says(id=AMI, architecture="arm64")}),
        (BY_GROUP, {}),
        (THEIRS, {}),
        (THEIRS, {"getSecret": hidden}),
        # only one network outside goes to the gateway, and a subnet without any table has no route
        ({}, {"getRouteTable": routes(cidrBlock="198.51.100.0/24", gatewayId="igw-1")}),
        ({}, {"getRouteTables": says(ids=[])}),
        (FLEET, {}),
        (FLEET, OURS),
        ({}, OUR_FLEET),
        ({**FLEET, "protect": True}, {}),
        ({**FLEET, "protect": True}, OUR_FLEET),
        ({**FLEET, "subnetIds": list(ZONES), "protect": True}, OUR_FLEET),
        ({}, {"getRouteTables": both_tables, "getRouteTable": public("main")}),
    ],
)
def test_what_is_there_is_accepted(
    deploy: Deploy, settings: dict[str, Any], answers: Answers
) -> None:
    assert deploy(answers=answers, **settings).resources
