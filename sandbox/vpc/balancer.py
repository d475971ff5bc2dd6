"""A stand-in for the Network Load Balancer, in the VPC's namespace: layer 4, by the packet filter.

Each zone has a node with an address in its subnet. A new connection to a node goes to a healthy
target of its zone (of all zones, if the balancer says so) and keeps its client's address; those
that are there stay where they are while their target drains, and are reset when it is unhealthy.
Targets are asked from the node of their zone, as the target group says, thirty times as often.
VPC DNS answers the balancer's name with the nodes that have a healthy target, and each zone's name
with its node. If every target fails, all of them are tried; AWS may do so for each zone alone (one
of its pages says so, another that it does not).

`python -m sandbox.vpc.balancer FOLDER` runs until it is terminated.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from sandbox.autoscaling import HEALTH, PACE
from sandbox.aws import Account
from sandbox.vpc.network import Network

STATE: Final = "balancer.json"
HOSTS: Final = "balancer-hosts"
DNS_PID: Final = "dns.pid"
TICK: Final = 0.5  # seconds
_NO_CHECK = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_NO_CHECK.check_hostname = False
_NO_CHECK.verify_mode = ssl.CERT_NONE


@dataclass(frozen=True, kw_only=True)
class Config:
    """Whose network, and whose balancer."""

    network: str
    account: str
    """The ready file of the embedded AWS."""

    def write(self, folder: Path) -> None:
        (folder / "balancer-config.json").write_text(json.dumps(asdict(self)))


@dataclass
class Target:
    """A registered machine, and what was found of it."""

    instance: str
    address: str
    zone: str
    state: str = "initial"
    why: str = ""
    row: int = 0
    """How many of the last checks ended alike: above zero well, below not."""
    due: float = 0
    asked: Future[str] | None = None

    def found(self, fault: str, healthy: int, unhealthy: int) -> None:
        """Count a check; the empty fault is none."""
        self.row = min(self.row, 0) - 1 if fault else max(self.row, 0) + 1
        if self.row <= -unhealthy:
            self.state, self.why = "unhealthy", fault
        elif self.row >= healthy:
            self.state, self.why = "healthy", ""

    def described(self) -> dict[str, str]:
        """As ELB describes it."""
        if self.state == "healthy":
            return {"State": "healthy"}
        reasons = {"initial": "Elb.InitialHealthChecking", "unhealthy": "Target.FailedHealthChecks"}
        text = f"Health checks failed: {self.why}" if self.why else "Initial health checks"
        return {"State": self.state, "Reason": reasons[self.state], "Description": text}


def codes(matcher: str) -> set[int]:
    """What `204` or `200-299,301` allow."""
    pairs = (part.partition("-") for part in matcher.split(","))
    return {code for low, _, high in pairs for code in range(int(low), int(high or low) + 1)}


def ask(network: Network, source: str, address: str, check: dict[str, Any]) -> str:
    """Do one health check; what was wrong, or nothing. TLS is not verified, as NLB does not."""
    port, seconds = check["port"], check["timeout"]
    try:
        with network.at("vpc"):
            made = socket.socket()
        with closing(made):
            made.settimeout(seconds)
            made.bind((source, 0))
            made.connect((address, port))
            if check["protocol"] == "TCP":
                return ""
            connection = http.client.HTTPConnection(address, port, timeout=seconds)
            tls = check["protocol"] == "HTTPS"
            connection.sock = _NO_CHECK.wrap_socket(made) if tls else made
            connection.request(
                "GET", check["path"], headers={"User-Agent": "ELB-HealthChecker/2.0"}
            )
            status = connection.getresponse().status
            connection.sock.close()
    except TimeoutError:
        return "it timed out"
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    return "" if status in codes(check["matcher"]) else f"it answered {status}"


@dataclass
class Balancer:
    """One balancer, as the embedded AWS has it on record."""

    name: str
    groups: Sequence[str]
    cross_zone: bool
    port: int
    nodes: dict[str, str] = field(default_factory=dict)
    """Zone → address."""
    targets: dict[str, Target] = field(default_factory=dict)
    check: dict[str, Any] = field(default_factory=dict)

    def pool(self, zone: str) -> list[Target]:
        """Where a node sends new connections."""
        well = [it for it in self.targets.values() if it.state == "healthy"]
        if not well:  # fail open
            well = [it for it in self.targets.values() if it.state == "unhealthy"]
        return [it for it in well if self.cross_zone or it.zone == zone]

    def serving(self) -> list[str]:
        """The nodes that have somewhere to send to."""
        return [address for zone, address in self.nodes.items() if self.pool(zone)]

    def rules(self) -> str:
        """For `nft -f`: the way of new connections, and the end of those to the unhealthy."""
        way, dead = [], []
        for zone, node in self.nodes.items():
            pool = self.pool(zone)
            if pool:
                choices = ", ".join(f"{n} : {it.address}" for n, it in enumerate(pool))
                to = f"jhash ip saddr . tcp sport mod {len(pool)} map {{ {choices} }}"
                to = to if len(pool) > 1 else pool[0].address
                way.append(f"ip daddr {node} tcp dport {self.port} dnat ip to {to}")
        if any(it.state == "healthy" for it in self.targets.values()):
            gone = [it.address for it in self.targets.values() if it.state == "unhealthy"]
            dead = [
                f"ct original ip daddr {node} ip daddr {address} reject with tcp reset"
                for node in self.nodes.values()
                for address in gone
            ]
        return (
            "table inet balancer\ndelete table inet balancer\ntable inet balancer {\n"
            "  chain way {\n    type nat hook prerouting priority dstnat\n"
            + "".join(f"    {line}\n" for line in way)
            + "  }\n  chain dead {\n    type filter hook forward priority filter\n"
            + "".join(f"    {line}\n" for line in dead)
            + "  }\n}\n"
        )

    def hosts(self) -> str:
        names = [f"{address} {self.name}\n" for address in self.serving() or self.nodes.values()]
        names += [f"{address} {zone}.{self.name}\n" for zone, address in self.nodes.items()]
        return "".join(names)


class Keeper:
    """Keeps the packet filter, DNS and what is told of the targets as they have to be."""

    def __init__(self, folder: Path) -> None:
        config = Config(**json.loads((folder / "balancer-config.json").read_text()))
        self._folder = folder
        self._health = Path(config.account).parent / HEALTH
        self._network = Network(config.network)
        account = Account.read(Path(config.account))
        self._ec2, self._elb = account.client("ec2"), account.client("elbv2")
        self._pool = ThreadPoolExecutor(16)
        self._kept: dict[str, Target] = {}
        self._written: dict[str, str] = {}
        self._addresses: set[str] = set()

    def run(self) -> None:
        self._write(self._folder / STATE, json.dumps({"nodes": {}, "serving": [], "targets": {}}))
        self._write(self._health, "{}")
        while True:
            try:
                self.step()
            except Exception:  # the embedded AWS may be busy, or another command at work
                traceback.print_exc()
            time.sleep(TICK)

    def step(self) -> None:
        balancer = self._read()
        if balancer is None:
            return
        for zone, node in balancer.nodes.items():
            if node not in self._addresses:
                # the node's interface in its subnet
                bridge = f"zone-{zone[-1]}"
                self._network.ip("vpc", "address", "add", f"{node}/24", "dev", bridge)
                self._addresses.add(node)
        self._check(balancer)
        if self._written.get("rules") != (rules := balancer.rules()):
            self._network.nft(rules)
            self._written["rules"] = rules
        if self._write(self._folder / HOSTS, balancer.hosts()):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((self._folder / DNS_PID).read_text()), signal.SIGHUP)
        told = {it.instance: it.described() for it in balancer.targets.values()}
        self._write(self._health, json.dumps(told))
        state = {
            "name": balancer.name,
            "groups": list(balancer.groups),
            "nodes": balancer.nodes,
            "serving": balancer.serving(),
        }
        self._write(self._folder / STATE, json.dumps(state))

    def _write(self, file: Path, text: str) -> bool:
        """At once, so that nobody reads half of it; whether it is another."""
        if self._written.get(str(file)) == text:
            return False
        part = file.with_suffix(".part")
        part.write_text(text)
        part.replace(file)
        self._written[str(file)] = text
        return True

    def _read(self) -> Balancer | None:
        """The balancer and its targets, as they are on record."""
        found = self._elb.describe_load_balancers()["LoadBalancers"]
        for one in found:
            arn = one["LoadBalancerArn"]
            for listener in self._elb.describe_listeners(LoadBalancerArn=arn)["Listeners"]:
                how = self._elb.describe_load_balancer_attributes(LoadBalancerArn=arn)
                crosses = {"Key": "load_balancing.cross_zone.enabled", "Value": "true"}
                balancer = Balancer(
                    name=one["DNSName"],
                    groups=one.get("SecurityGroups", []),
                    cross_zone=crosses in how["Attributes"],
                    port=listener["Port"],
                )
                pattern = f"ELB net/{arn.partition('/net/')[2]}"
                cards = self._ec2.describe_network_interfaces(
                    Filters=[{"Name": "description", "Values": [pattern]}]
                )["NetworkInterfaces"]
                for card in cards:
                    balancer.nodes[card["AvailabilityZone"]] = card["PrivateIpAddress"]
                self._targets(balancer, listener["DefaultActions"][0]["TargetGroupArn"])
                return balancer
        return None

    def _targets(self, balancer: Balancer, arn: str) -> None:
        [group] = self._elb.describe_target_groups(TargetGroupArns=[arn])["TargetGroups"]
        if group["Port"] != balancer.port:
            raise ValueError("a target group of another port is not modelled by the sandbox")
        port = group["HealthCheckPort"]
        balancer.check = {
            "protocol": group["HealthCheckProtocol"],
            "port": group["Port"] if port == "traffic-port" else int(port),
            "path": group.get("HealthCheckPath", "/"),
            "matcher": group.get("Matcher", {}).get("HttpCode", "200-399"),
            "timeout": group["HealthCheckTimeoutSeconds"],
            "interval": max(1, group["HealthCheckIntervalSeconds"] / PACE),
            "healthy": int(group["HealthyThresholdCount"]),
            "unhealthy": int(group["UnhealthyThresholdCount"]),
        }
        told = self._elb.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
        ids = [one["Target"]["Id"] for one in told]
        known = {}
        if ids:
            answer = self._ec2.describe_instances(InstanceIds=ids)["Reservations"]
            known = {i["InstanceId"]: i for r in answer for i in r["Instances"]}
        for instance in ids:
            there = known[instance]
            if there["State"]["Name"] != "running":
                continue
            fresh = Target(
                instance=instance,
                address=there["PrivateIpAddress"],
                zone=there["Placement"]["AvailabilityZone"],
            )
            balancer.targets[instance] = self._kept.get(instance, fresh)
        self._kept = dict(balancer.targets)

    def _check(self, balancer: Balancer) -> None:
        """Look at the checks that are done, begin those that are due."""
        now, check = time.monotonic(), balancer.check
        for it in balancer.targets.values():
            if it.asked is not None and it.asked.done():
                before, fault = it.state, it.asked.result()
                it.found(fault, check["healthy"], check["unhealthy"])
                it.asked = None
                if it.state != before:
                    print(f"{it.instance} in {it.zone} is {it.state} {it.why}".strip(), flush=True)
            if it.asked is None and now >= it.due and it.zone in balancer.nodes:
                it.due = now + check["interval"]
                source = balancer.nodes[it.zone]
                it.asked = self._pool.submit(ask, self._network, source, it.address, check)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of balancer-config.json; what it found is there")
    Keeper(parser.parse_args().folder).run()


if __name__ == "__main__":
    main()
