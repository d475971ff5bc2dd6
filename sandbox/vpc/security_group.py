"""A security group of the embedded EC2, as rules of the packet filter between machine and VPC.

They are enforced outside the machine, as in AWS: nothing inside can see or change them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sandbox.aws import Account
from sandbox.vpc.addresses import Zone
from sandbox.vpc.network import GATEWAY, METADATA, VPC_DNS

TIME: Final = "169.254.169.123"
ACCEPTED: Final = "ct state established,related"


def never_filtered(dns: str) -> tuple[str, ...]:
    """What the machine always reaches: DHCP, VPC DNS, metadata, time."""
    return (
        "udp dport 67",
        f"ip daddr {dns} meta l4proto {{ tcp, udp }} th dport 53",
        f"ip daddr {{ {METADATA}, {TIME} }}",
    )


def dhcp_answers(gateway: str) -> str:
    return f"ip saddr {gateway} udp sport 67 udp dport 68"


def read(account: Account, interface: str) -> list[dict[str, Any]]:
    """The rules of all groups of an interface, as EC2 describes them."""
    ec2 = account.client("ec2")
    [found] = ec2.describe_network_interfaces(NetworkInterfaceIds=[interface])["NetworkInterfaces"]
    return rules_of(ec2, [group["GroupId"] for group in found["Groups"]])


def rules_of(ec2: Any, groups: Sequence[str]) -> list[dict[str, Any]]:
    """The rules of these groups; none for no group."""
    if not groups:
        return []
    answer = ec2.describe_security_group_rules(
        Filters=[{"Name": "group-id", "Values": list(groups)}]
    )
    return list(answer["SecurityGroupRules"])


@dataclass(frozen=True, kw_only=True)
class Member:
    """An interface of a fleet's network, and the rules of its groups."""

    address: str
    groups: Sequence[str]
    rules: Sequence[Mapping[str, Any]]


def ruleset(rules: Iterable[Mapping[str, Any]]) -> str:
    """For `nft -f`: what no rule allows is dropped without a word.

    `ValueError` for a rule whose peer is no IPv4 range: the sandbox does not model others.
    """
    allowed = _allowed(rules, {}, ())
    out = [*never_filtered(VPC_DNS), *allowed[True]]
    into = [dhcp_answers(GATEWAY), *allowed[False]]
    return _table(
        _chain("from_machine", "prerouting", ['iifname != "vpc0" accept', *_accept(out)]),
        _chain("to_machine", "postrouting", ['oifname != "vpc0" accept', *_accept(into)]),
    )


def fleet_ruleset(
    machines: Sequence[Member], nodes: Sequence[Member], zones: Iterable[Zone]
) -> str:
    """The same for a fleet, and for the balancer's nodes, if they have a group.

    What a node passes on keeps its client's address, and still comes from the balancer's group.
    """
    peers: dict[str, list[str]] = {}
    for one in (*machines, *nodes):
        for group in one.groups:
            peers.setdefault(group, []).append(one.address)
    passed = [one.address for one in nodes]
    out, into, chains = [], [], []
    always = [line for zone in zones for line in never_filtered(zone.dns)]
    answers = [dhcp_answers(zone.gateway) for zone in zones]
    for number, one in enumerate(machines):
        allowed = _allowed(one.rules, peers, passed)
        out.append(f"ip saddr {one.address} jump out_{number}")
        into.append(f"ip daddr {one.address} jump in_{number}")
        chains.append(_chain(f"out_{number}", None, _accept([*always, *allowed[True]])))
        chains.append(_chain(f"in_{number}", None, _accept([*answers, *allowed[False]])))
    for number, one in enumerate(node for node in nodes if node.groups):
        allowed = _allowed(one.rules, peers, passed)
        # the service's DNS and DHCP answers have other addresses
        out.append(f"ip daddr {one.address} jump node_in_{number}")
        into.insert(0, f"ct original ip daddr {one.address} jump node_out_{number}")
        into.insert(0, f"ip saddr {one.address} jump node_out_{number}")
        chains.append(_chain(f"node_in_{number}", None, _accept(allowed[False])))
        lines = [f"{line} return" for line in (ACCEPTED, *allowed[True])]
        chains.append(_chain(f"node_out_{number}", None, [*lines, "counter drop"]))
    return _table(
        *chains,
        _chain("from_machine", "prerouting", [f"{ACCEPTED} accept", *out]),
        _chain("to_machine", "postrouting", [f"{ACCEPTED} accept", *into]),
    )


def _allowed(
    rules: Iterable[Mapping[str, Any]], peers: Mapping[str, Sequence[str]], passed: Sequence[str]
) -> dict[bool, list[str]]:
    """By direction (egress or not), what the rules let through."""
    allowed: dict[bool, list[str]] = {True: [], False: []}
    for rule in rules:
        egress, group = rule["IsEgress"], rule.get("ReferencedGroupInfo", {}).get("GroupId")
        side = "daddr" if egress else "saddr"
        if "CidrIpv4" in rule:
            found = [f"ip {side} {rule['CidrIpv4']}"]
        elif group in peers:
            found = [f"ip {side} {address}" for address in peers[group]]
            if not egress:
                found += [f"ct original ip daddr {a}" for a in peers[group] if a in passed]
        elif group and peers:
            continue  # nobody here has it
        else:
            found = []
        if not found or rule["IpProtocol"] not in ("tcp", "udp", "-1"):
            raise ValueError(f"a security group rule that the sandbox does not model: {dict(rule)}")
        for peer in found:
            port = f" {rule['IpProtocol']} dport {rule.get('FromPort')}-{rule.get('ToPort')}"
            allowed[egress].append(peer + ("" if rule["IpProtocol"] == "-1" else port))
    return allowed


def _accept(lines: Iterable[str]) -> list[str]:
    return [*(f"{line} accept" for line in (ACCEPTED, *lines)), "counter drop"]


def _chain(name: str, hook: str | None, lines: Iterable[str]) -> str:
    head = f"    type filter hook {hook} priority mangle\n" if hook else ""
    return f"  chain {name} {{\n{head}" + "".join(f"    {line}\n" for line in lines) + "  }\n"


def _table(*chains: str) -> str:
    text = "table inet security_group\ndelete table inet security_group\n"
    return text + "table inet security_group {\n" + "".join(chains) + "}\n"
