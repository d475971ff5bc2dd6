"""The proxy's place in the network: an address that outlives the machine, and its firewall."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from config.settings import ANYWHERE, Peer, Settings

Rule = aws.vpc.SecurityGroupIngressRule | aws.vpc.SecurityGroupEgressRule


@dataclass(frozen=True, kw_only=True)
class ProxyNetworkArgs:
    settings: Settings
    vpc_id: str


class ProxyNetwork(pulumi.ComponentResource):
    """A security group with one rule per peer, and the network interface that carries it."""

    interface_id: pulumi.Output[str]
    private_ip: pulumi.Output[str]
    security_group_id: pulumi.Output[str]
    """The machine's; the API's own group may name it."""

    def __init__(
        self, name: str, args: ProxyNetworkArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("metrics-proxy:index:ProxyNetwork", name, None, opts)
        settings = args.settings
        child = pulumi.ResourceOptions(parent=self)
        group = aws.ec2.SecurityGroup(
            f"{name}-firewall",
            vpc_id=args.vpc_id,
            # never to change: a new description replaces the group
            description="Metrics proxy: Prometheus in; the API, AWS and Debian out",
            tags=settings.tags,
            opts=child,
        )
        self.security_group_id = group.id

        def rule(
            kind: type[Rule], role: str, text: str, port: int, peer: Peer, protocol: str = "tcp"
        ) -> None:
            kind(
                f"{name}-{role}",
                security_group_id=group.id,
                description=text,
                ip_protocol=protocol,
                from_port=port,
                to_port=port,
                tags=settings.tags,
                opts=child,
                **{peer[0]: peer[1]},
            )

        for peer in settings.prometheus:
            ingress = aws.vpc.SecurityGroupIngressRule
            rule(ingress, f"from-{peer[1]}", "Prometheus", settings.port, peer)
        # Amazon's own DNS, IMDS and the time service are not subject to security groups.
        out = {(443, peer): "AWS APIs and Debian packages" for peer in settings.https}
        ports = sorted({endpoint.port for endpoint in settings.endpoints})
        out |= {(port, peer): "The API" for port in ports for peer in settings.api}
        for (port, peer), text in out.items():
            whom = {ANYWHERE: "https", settings.api_security_group_id: f"api-{port}"}
            role = f"to-{whom.get(peer[1], f'{peer[1]}-{port}')}"
            rule(aws.vpc.SecurityGroupEgressRule, role, text, port, peer)
        for server in settings.dns_servers or ():
            for protocol in ("tcp", "udp"):
                role, peer = f"to-dns-{server}-{protocol}", ("cidr_ipv4", f"{server}/32")
                rule(aws.vpc.SecurityGroupEgressRule, role, "DNS", 53, peer, protocol)
        interface = aws.ec2.NetworkInterface(
            f"{name}-interface",
            subnet_id=settings.subnet_id,
            private_ips=None if settings.private_ip is None else [settings.private_ip],
            security_groups=[group.id],
            # may change: it is updated in place
            description="Metrics proxy: the address that Prometheus has; it outlives the machine",
            tags=settings.tags,
            opts=pulumi.ResourceOptions(parent=self, protect=settings.protect),
        )
        self.interface_id = interface.id
        self.private_ip = interface.private_ip
        self.register_outputs(
            {
                "interface_id": self.interface_id,
                "private_ip": self.private_ip,
                "security_group_id": self.security_group_id,
            }
        )
