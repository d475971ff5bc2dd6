"""A security group of the embedded EC2, as rules of the packet filter between machine and VPC.

They are enforced outside the machine, as in AWS: nothing inside can see or change them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sandbox.aws import Account
from sandbox.vpc.network import GATEWAY, METADATA, VPC_DNS

NEVER_FILTERED: Final = (
    "udp dport 67",
    f"ip daddr {VPC_DNS} meta l4proto {{ tcp, udp }} th dport 53",
    f"ip daddr {{ {METADATA}, 169.254.169.123 }}",
)
"""What the machine always reaches: DHCP, VPC DNS, metadata, time."""

DHCP_ANSWERS: Final = f"ip saddr {GATEWAY} udp sport 67 udp dport 68"


def read(account: Account, interface: str) -> list[dict[str, Any]]:
    """The rules of all groups of an interface, as EC2 describes them."""
    ec2 = account.client("ec2")
    [found] = ec2.describe_network_interfaces(NetworkInterfaceIds=[interface])["NetworkInterfaces"]
    groups = [group["GroupId"] for group in found["Groups"]]
    answer = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": groups}])
    return list(answer["SecurityGroupRules"])


def ruleset(rules: Iterable[Mapping[str, Any]]) -> str:
    """For `nft -f`: what no rule allows is dropped without a word.

    `ValueError` for a rule whose peer is no IPv4 range: the sandbox does not model others.
    """
    allowed: dict[bool, list[str]] = {True: list(NEVER_FILTERED), False: [DHCP_ANSWERS]}
    for rule in rules:
        if "CidrIpv4" not in rule or rule["IpProtocol"] not in ("tcp", "udp", "-1"):
            raise ValueError(f"a security group rule that the sandbox does not model: {dict(rule)}")
        peer = f"ip {'daddr' if rule['IsEgress'] else 'saddr'} {rule['CidrIpv4']}"
        if rule["IpProtocol"] != "-1":
            peer += f" {rule['IpProtocol']} dport {rule['FromPort']}-{rule['ToPort']}"
        allowed[rule["IsEgress"]].append(peer)
    text = "table inet security_group\ndelete table inet security_group\n"
    text += "table inet security_group {\n"
    for egress, chain, hook in (
        (True, "from_machine", "prerouting"),
        (False, "to_machine", "postrouting"),
    ):
        interface = "iifname" if egress else "oifname"
        lines = [f'{interface} != "vpc0"', "ct state established,related", *allowed[egress]]
        accepted = "".join(f"    {line} accept\n" for line in lines)
        text += f"  chain {chain} {{\n    type filter hook {hook} priority mangle\n"
        text += f"{accepted}    counter drop\n  }}\n"
    return text + "}\n"
