"""The proxy's place in the network: an address that outlives the machines, and their firewall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from components.preflight import Place
from config.settings import ANYWHERE, HEALTH_PATH, Settings

Rule = aws.vpc.SecurityGroupIngressRule | aws.vpc.SecurityGroupEgressRule

DRAIN_SECONDS = 300
"""From when a machine gets no new connection to its end: for load balancers' nodes to learn of it,
and for the connections that Prometheus keeps open between scrapes."""


@dataclass(frozen=True, kw_only=True)
class ProxyNetworkArgs:
    settings: Settings
    place: Place


class ProxyNetwork(pulumi.ComponentResource):
    """An address, and the machines' security group with one rule per peer; see its two kinds."""

    address: pulumi.Output[str]
    """Where Prometheus connects: an IP address or a DNS name."""
    zones: Mapping[str, pulumi.Output[str]]
    """The zones of a fleet, each with the name by which its machine is asked."""
    ip_addresses: Sequence[pulumi.Output[str]] = ()
    dns_names: Sequence[pulumi.Output[str]] = ()
    """All that a client may call the proxy by, beside `server_name`."""
    exports: Mapping[str, pulumi.Output[str]]
    """The stack's outputs that are of this kind only."""
    security_group_id: pulumi.Output[str]
    """The machines'; the API's own group may name it."""

    def __init__(
        self, name: str, args: ProxyNetworkArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("metrics-proxy:index:ProxyNetwork", name, None, opts)
        self._name, self._settings, self._vpc_id = name, args.settings, args.place.vpc_id
        self._child = pulumi.ResourceOptions(parent=self)
        settings = args.settings
        # never to change: a new description replaces the group
        text = "Metrics proxy: Prometheus in; the API, AWS and Debian out"
        self.group = group = self._group("firewall", text)
        self.security_group_id = group.id
        # Amazon's own DNS, IMDS and the time service are not subject to security groups.
        out = {(443, peer): "AWS APIs and Debian packages" for peer in settings.https}
        ports = sorted({endpoint.port for endpoint in settings.endpoints})
        out |= {(port, peer): "The API" for port in ports for peer in settings.api}
        for (port, peer), text in out.items():
            whom = {ANYWHERE: "https", settings.api_security_group_id: f"api-{port}"}
            role = f"to-{whom.get(peer[1], f'{peer[1]}-{port}')}"
            self._rule(aws.vpc.SecurityGroupEgressRule, group, role, text, port, peer)
        for server in settings.dns_servers or ():
            for protocol in ("tcp", "udp"):
                role, peer = f"to-dns-{server}-{protocol}", ("cidr_ipv4", f"{server}/32")
                self._rule(aws.vpc.SecurityGroupEgressRule, group, role, "DNS", 53, peer, protocol)

    def _group(self, role: str, description: str) -> aws.ec2.SecurityGroup:
        return aws.ec2.SecurityGroup(
            f"{self._name}-{role}",
            vpc_id=self._vpc_id,
            description=description,
            tags=self._settings.tags,
            opts=self._child,
        )

    def _rule(
        self,
        kind: type[Rule],
        group: aws.ec2.SecurityGroup,
        role: str,
        text: str,
        port: int,
        peer: tuple[str, pulumi.Input[str]],
        protocol: str = "tcp",
    ) -> None:
        kind(
            f"{self._name}-{role}",
            security_group_id=group.id,
            description=text,
            ip_protocol=protocol,
            from_port=port,
            to_port=port,
            tags=self._settings.tags,
            opts=self._child,
            **{peer[0]: peer[1]},
        )

    def _admit_prometheus(self, group: aws.ec2.SecurityGroup) -> None:
        for peer in self._settings.prometheus:
            kind, role = aws.vpc.SecurityGroupIngressRule, f"from-{peer[1]}"
            self._rule(kind, group, role, "Prometheus", self._settings.port, peer)


class Interface(ProxyNetwork):
    """The address of one machine: a network interface that outlives it."""

    interface_id: pulumi.Output[str]
    private_ip: pulumi.Output[str]

    def __init__(
        self, name: str, args: ProxyNetworkArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__(name, args, opts)
        settings = args.settings
        self._admit_prometheus(self.group)
        interface = aws.ec2.NetworkInterface(
            f"{name}-interface",
            subnet_id=settings.subnet_id,
            private_ips=None if settings.private_ip is None else [settings.private_ip],
            security_groups=[self.group.id],
            # may change: it is updated in place
            description="Metrics proxy: the address that Prometheus has; it outlives the machine",
            tags=settings.tags,
            opts=pulumi.ResourceOptions(parent=self, protect=settings.protect),
        )
        self.interface_id = interface.id
        self.private_ip = self.address = interface.private_ip
        self.zones, self.ip_addresses = {}, [self.private_ip]
        self.exports = {"privateIp": self.private_ip}
        self.register_outputs(
            {
                "interface_id": self.interface_id,
                "private_ip": self.private_ip,
                "security_group_id": self.security_group_id,
            }
        )


class Balancer(ProxyNetwork):
    """The address of a fleet: a Network Load Balancer, with a node in each zone.

    Each node sends to the machine of its own zone only, so that a zone's name asks that machine.
    The machines admit nobody else.
    """

    target_group_arn: pulumi.Output[str]
    """What machines belong to. The balancer asks each whether it may have connections."""

    def __init__(
        self, name: str, args: ProxyNetworkArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__(name, args, opts)
        settings, port = args.settings, args.settings.port
        # never to change: a new description replaces the group
        group = self._group("balancer-firewall", "Metrics proxy: Prometheus in; the machines out")
        self._admit_prometheus(group)
        # health checks need the rule out, too, but none in
        out, into = aws.vpc.SecurityGroupEgressRule, aws.vpc.SecurityGroupIngressRule
        machines, balancer = (("referenced_security_group_id", g.id) for g in (self.group, group))
        self._rule(out, group, "to-machines", "The machines", port, machines)
        self._rule(into, self.group, "from-balancer", "The load balancer", port, balancer)
        load_balancer = aws.lb.LoadBalancer(
            f"{name}-balancer",
            load_balancer_type="network",
            internal=True,
            subnets=settings.subnet_ids,
            # one that was made without a group can never get one
            security_groups=[group.id],
            enable_cross_zone_load_balancing=False,
            tags=settings.tags,
            opts=pulumi.ResourceOptions(parent=self, protect=settings.protect),
        )
        target_group = aws.lb.TargetGroup(
            f"{name}-machines",
            vpc_id=args.place.vpc_id,
            protocol="TCP",
            port=port,
            # the servers go by it
            preserve_client_ip="true",
            deregistration_delay=DRAIN_SECONDS,
            health_check=aws.lb.TargetGroupHealthCheckArgs(
                protocol="HTTPS",
                path=HEALTH_PATH,
                matcher="204",
                interval=10,
                timeout=6,
                healthy_threshold=2,
                unhealthy_threshold=2,
            ),
            tags=settings.tags,
            opts=self._child,
        )
        listener = aws.lb.Listener(
            f"{name}-listener",
            load_balancer_arn=load_balancer.arn,
            protocol="TCP",
            port=port,
            default_actions=[
                aws.lb.ListenerDefaultActionArgs(type="forward", target_group_arn=target_group.arn)
            ],
            tags=settings.tags,
            opts=pulumi.ResourceOptions.merge(
                self._child,
                # a target group is of one load balancer at a time, and a new one may come
                pulumi.ResourceOptions(delete_before_replace=True),
            ),
        )
        self.address = load_balancer.dns_name
        self.zones = {
            subnet.zone: pulumi.Output.concat(subnet.zone, ".", self.address)
            for subnet in args.place.subnets
        }
        self.dns_names = [self.address, *self.zones.values()]
        self.exports = {"loadBalancerDnsName": self.address}
        # of what is behind no listener, no machine is ever healthy
        self.target_group_arn = pulumi.Output.all(target_group.arn, listener.arn)[0]
        self.register_outputs(
            {
                "address": self.address,
                "target_group_arn": self.target_group_arn,
                "security_group_id": self.security_group_id,
            }
        )


def proxy_network(name: str, args: ProxyNetworkArgs) -> Interface | Balancer:
    """The kind that the settings ask for."""
    return (Balancer if args.settings.subnet_ids else Interface)(name, args)
