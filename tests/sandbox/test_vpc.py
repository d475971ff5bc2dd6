"""Security groups and the balancer as rules of the packet filter."""

from __future__ import annotations

import os

import pytest

from sandbox.vpc import security_group
from sandbox.vpc.balancer import Balancer, Target, codes
from sandbox.vpc.network import ZONES, Network


def test_a_rule_that_is_not_modelled_is_refused() -> None:
    rule = {"IsEgress": True, "IpProtocol": "tcp", "FromPort": 1, "ToPort": 2}
    with pytest.raises(ValueError, match="does not model"):
        security_group.ruleset([{**rule, "ReferencedGroupInfo": {"GroupId": "sg-1"}}])
    assert "ip daddr 10.0.0.0/8 tcp dport 1-2 accept" in security_group.ruleset(
        [{**rule, "CidrIpv4": "10.0.0.0/8"}]
    )


def rule(egress: bool, **peer: object) -> dict[str, object]:
    return {"IsEgress": egress, "IpProtocol": "tcp", "FromPort": 9446, "ToPort": 9446, **peer}


def test_what_a_node_passes_on_is_of_the_balancers_group() -> None:
    balancer, machines = ({"ReferencedGroupInfo": {"GroupId": it}} for it in ("sg-b", "sg-m"))
    text = security_group.fleet_ruleset(
        [
            security_group.Member(
                address="10.9.46.5", groups=["sg-m"], rules=[rule(False, **balancer)]
            )
        ],
        [
            security_group.Member(
                address="10.9.46.4",
                groups=["sg-b"],
                rules=[rule(True, **machines), rule(False, CidrIpv4="10.9.48.10/32")],
            )
        ],
        ZONES[:2],
    )
    chains = dict(part.split(" {", 1) for part in text.split("  chain ")[1:])
    assert "ip saddr 10.9.46.4 tcp dport 9446-9446 accept" in chains["in_0"]
    assert "ct original ip daddr 10.9.46.4 tcp dport 9446-9446 accept" in chains["in_0"]
    assert "10.9.48.10" not in chains["in_0"]
    assert "ip saddr 10.9.48.10/32 tcp dport 9446-9446 accept" in chains["node_in_0"]
    assert "ip daddr 10.9.46.5 tcp dport 9446-9446 return" in chains["node_out_0"]
    assert all("counter drop" in chains[it] for it in ("in_0", "out_0", "node_in_0", "node_out_0"))


def test_machines_that_come_and_go_do_not_change_their_routers_address() -> None:
    network, [zone] = Network(f"sandbox-{os.getpid()}"), ZONES[:1]

    def address() -> str:
        return (
            network.ip("vpc", "-o", "link", "show", zone.bridge).split("link/ether ")[1].split()[0]
        )

    try:
        network.make([zone])
        seen = {address()}
        for number in (1, 2):
            network.add(f"{number}")
            network.plug(f"02:00:00:00:00:0{number}", f"{number}", zone.bridge)
            seen.add(address())
        network.drop("1")
        assert {*seen, address()} == {"06:00:0a:09:2e:01"}
    finally:
        network.remove()


A, B = "eu-central-1a", "eu-central-1b"


def behind(*states: str, cross_zone: bool = False) -> Balancer:
    """A balancer of two zones, with a target in each."""
    targets = {
        f"i-{zone[-1]}": Target(
            instance=f"i-{zone[-1]}", address=f"10.9.{number}.5", zone=zone, state=state
        )
        for number, (zone, state) in enumerate(zip((A, B), states, strict=True))
    }
    nodes = {A: "10.9.0.4", B: "10.9.1.4"}
    return Balancer(
        name="b.elb", groups=[], cross_zone=cross_zone, port=9446, nodes=nodes, targets=targets
    )


@pytest.mark.parametrize(
    ("balancer", "ways", "names"),
    [
        (behind("healthy", "healthy"), ["0.4 → 0.5", "1.4 → 1.5"], ["0.4", "1.4"]),
        (behind("healthy", "unhealthy"), ["0.4 → 0.5"], ["0.4"]),
        (behind("healthy", "initial"), ["0.4 → 0.5"], ["0.4"]),
        (behind("initial", "initial"), [], ["0.4", "1.4"]),
        # all fail: AWS tries them all
        (behind("unhealthy", "unhealthy"), ["0.4 → 0.5", "1.4 → 1.5"], ["0.4", "1.4"]),
        (
            behind("unhealthy", "healthy", cross_zone=True),
            ["0.4 → 1.5", "1.4 → 1.5"],
            ["0.4", "1.4"],
        ),
    ],
    ids=lambda it: (
        " ".join(t.state for t in it.targets.values()) if isinstance(it, Balancer) else ""
    ),
)
def test_where_new_connections_go(balancer: Balancer, ways: list[str], names: list[str]) -> None:
    lines = [it.split() for it in balancer.rules().splitlines() if "dnat" in it and "daddr" in it]
    short = [f"{line[2][5:]} → {line[-1][5:]}" for line in lines]
    assert short == ways
    hosts = [line.split() for line in balancer.hosts().splitlines()]
    assert [address[5:] for address, name in hosts if name == "b.elb"] == names
    # a zone's own name is always there
    assert [name for _, name in hosts if name != "b.elb"] == [f"{A}.b.elb", f"{B}.b.elb"]


def test_connections_to_the_unhealthy_are_reset_and_no_others() -> None:
    reset = [it for it in behind("healthy", "unhealthy").rules().splitlines() if "reset" in it]
    assert reset
    assert all("ip daddr 10.9.1.5 " in line for line in reset)
    assert "reset" not in behind("healthy", "initial").rules()
    assert "reset" not in behind("unhealthy", "unhealthy").rules()


def test_a_target_changes_after_as_many_checks_as_declared() -> None:
    it = Target(instance="i-a", address="10.9.0.5", zone=A)
    seen = []
    for fault in ("", "", "503", "", "503", "503", "", ""):
        it.found(fault, 2, 2)
        seen.append(it.state)
    assert seen == ["initial", *["healthy"] * 4, "unhealthy", "unhealthy", "healthy"]


def test_codes_of_a_matcher() -> None:
    assert codes("204") == {204}
    assert codes("200-202,301") == {200, 201, 202, 301}
