"""The proxy's place in the network: an address that outlives the machine, and its firewall."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from components.preflight import INTERFACE
from config.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ProxyNetworkArgs:
    settings: Settings
    vpc_id: str


class ProxyNetwork(pulumi.ComponentResource):
    """A security group with one rule per peer, and the network interface that carries it."""

    interface_id: pulumi.Output[str]
    private_ip: pulumi.Output[str]

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
            opts=child,
        )
        for cidr in settings.prometheus_cidrs:
            aws.vpc.SecurityGroupIngressRule(
                f"{name}-from-{cidr}",
                security_group_id=group.id,
                description="Prometheus",
                cidr_ipv4=cidr,
                ip_protocol="tcp",
                from_port=settings.port,
                to_port=settings.port,
                opts=child,
            )

        def egress(
            role: str, description: str, port: int, cidr: str | None = None, protocol: str = "tcp"
        ) -> None:
            aws.vpc.SecurityGroupEgressRule(
                f"{name}-to-{role}",
                security_group_id=group.id,
                description=description,
                ip_protocol=protocol,
                from_port=port,
                to_port=port,
                opts=child,
                cidr_ipv4=cidr,
                referenced_security_group_id=None if cidr else settings.api_security_group_id,
            )

        # Amazon's own DNS, IMDS and the time service are not subject to security groups.
        egress("https", "AWS APIs and Debian packages", 443, "0.0.0.0/0")
        for server in settings.dns_servers or ():
            for protocol in ("tcp", "udp"):
                egress(f"dns-{server}-{protocol}", "DNS", 53, f"{server}/32", protocol)
        for port in sorted({endpoint.port for endpoint in settings.endpoints}):
            for cidr in settings.api_cidrs or ():
                egress(f"{cidr}-{port}", "The API", port, cidr)
            if settings.api_security_group_id is not None:
                egress(f"api-{port}", "The API", port)
        interface = aws.ec2.NetworkInterface(
            f"{name}-interface",
            subnet_id=settings.subnet_id,
            private_ips=None if settings.private_ip is None else [settings.private_ip],
            security_groups=[group.id],
            description=INTERFACE,
            opts=pulumi.ResourceOptions(parent=self, protect=settings.protect),
        )
        self.interface_id = interface.id
        self.private_ip = interface.private_ip
        self.register_outputs({"interface_id": self.interface_id, "private_ip": self.private_ip})
