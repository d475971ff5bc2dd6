"""The machines that run the proxy."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pulumi
import pulumi_aws as aws

from components.preflight import Place
from components.proxy_network import Balancer, Interface
from config.settings import Settings

METADATA: Final[dict[str, Any]] = {
    "http_endpoint": "enabled",
    "http_tokens": "required",
    "http_put_response_hop_limit": 1,
}
"""How a machine may ask for its credentials: with a session's token, and from itself only."""

BOOT_SECONDS: Final = 600
"""From a fleet's machine's start until it has to be healthy: for a first boot, which installs the
packages, on a small machine and from a slow mirror."""

SETTLE_SECONDS: Final = BOOT_SECONDS + 120
"""How long a replacement has to be well before an old machine ends. For all of `BOOT_SECONDS`, Auto
Scaling takes any machine for well; what it finds after that has to count."""


@dataclass(frozen=True, kw_only=True)
class ProxyHostArgs:
    settings: Settings
    place: Place
    user_data: bytes
    """Compressed; shown to people by an output of the program."""
    profile: pulumi.Input[str]
    """The name of the instance profile whose role may read the two secrets."""

    @property
    def encoded(self) -> pulumi.Output[str]:
        """The user data as EC2 takes it; secret only to keep a page of base64 out of previews."""
        return pulumi.Output.secret(base64.b64encode(self.user_data).decode())


class ProxyHost(pulumi.ComponentResource):
    """What runs the proxy on its network's address; see its two kinds."""

    exports: Mapping[str, pulumi.Output[str]]
    """The stack's outputs that are of this kind only."""

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("metrics-proxy:index:ProxyHost", name, None, opts)


class Machine(ProxyHost):
    """Only what it is made of replaces the machine; old one first, as both need the interface."""

    instance_id: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        args: ProxyHostArgs,
        network: Interface,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(name, opts)
        settings = args.settings
        instance = aws.ec2.Instance(
            f"{name}-instance",
            ami=args.place.ami,
            instance_type=settings.instance_type,
            primary_network_interface=aws.ec2.InstancePrimaryNetworkInterfaceArgs(
                network_interface_id=network.interface_id
            ),
            iam_instance_profile=args.profile,
            user_data_base64=args.encoded,
            user_data_replace_on_change=True,
            metadata_options=aws.ec2.InstanceMetadataOptionsArgs(**METADATA),
            root_block_device=aws.ec2.InstanceRootBlockDeviceArgs(
                encrypted=True, volume_type="gp3"
            ),
            tags=settings.machine_tags,
            # the provider adds its default tags; those of `root_block_device` come after the start
            volume_tags=settings.machine_tags,
            opts=pulumi.ResourceOptions(
                parent=self,
                delete_before_replace=True,
                # AWS could change the type of a stopped machine, but not to another architecture
                replace_on_changes=["instanceType"],
                # a newer image is no reason to replace a machine
                ignore_changes=["ami"] if settings.ami_id is None else None,
            ),
        )
        self.instance_id = instance.id
        self.exports = {"instanceId": self.instance_id}
        self.register_outputs({"instance_id": self.instance_id})


class Fleet(ProxyHost):
    """One machine in each subnet, from one template: a new version of it replaces all of them.

    New ones start first, and an old one ends when a new one has been healthy for a while. Auto
    Scaling does that on its own, after the `up`.
    """

    autoscaling_group_name: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        args: ProxyHostArgs,
        network: Balancer,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(name, opts)
        settings, size = args.settings, len(args.settings.subnets)
        # of what Auto Scaling starts, the provider tags nothing
        tags = {**args.place.default_tags, **settings.machine_tags}
        template = aws.ec2.LaunchTemplate(
            f"{name}-template",
            image_id=args.place.ami,
            instance_type=settings.instance_type,
            iam_instance_profile=aws.ec2.LaunchTemplateIamInstanceProfileArgs(name=args.profile),
            user_data=args.encoded,
            metadata_options=aws.ec2.LaunchTemplateMetadataOptionsArgs(**METADATA),
            network_interfaces=[
                aws.ec2.LaunchTemplateNetworkInterfaceArgs(
                    device_index=0,
                    associate_public_ip_address="false",
                    delete_on_termination="true",
                    security_groups=[network.security_group_id],
                )
            ],
            block_device_mappings=[
                aws.ec2.LaunchTemplateBlockDeviceMappingArgs(
                    device_name=args.place.root_device,
                    ebs=aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgs(
                        encrypted="true", volume_type="gp3", delete_on_termination="true"
                    ),
                )
            ],
            tag_specifications=[
                aws.ec2.LaunchTemplateTagSpecificationArgs(resource_type=kind, tags=tags)
                for kind in ("instance", "volume", "network-interface")
            ],
            tags=settings.tags,
            opts=pulumi.ResourceOptions(
                parent=self,
                # another architecture needs its own image, which a mere new version would not get
                replace_on_changes=["instanceType"],
                # a newer image is no reason to replace the machines
                ignore_changes=["imageId"] if settings.ami_id is None else None,
            ),
        )
        always: dict[str, Any] = {"min_healthy_percentage": 100, "max_healthy_percentage": 200}
        group = aws.autoscaling.Group(
            f"{name}-group",
            min_size=size,
            desired_capacity=size,
            # room for as many new ones beside the old; AWS does not say whether it would need it
            max_size=2 * size,
            vpc_zone_identifiers=settings.subnet_ids,
            # a second machine in the same zone is no help where that zone's name asks for one
            availability_zone_distribution=aws.autoscaling.GroupAvailabilityZoneDistributionArgs(
                capacity_distribution_strategy="balanced-only"
            ),
            launch_template=aws.autoscaling.GroupLaunchTemplateArgs(
                id=template.id, version=template.latest_version.apply(str)
            ),
            target_group_arns=[network.target_group_arn],
            health_check_type="ELB",
            health_check_grace_period=BOOT_SECONDS,
            default_instance_warmup=SETTLE_SECONDS,
            # after a refresh that failed or was cancelled: by default the old ones end, which serve
            termination_policies=["NewestInstance"],
            # also where health checks fail: all of them may, for a reason that is none of theirs
            instance_maintenance_policy=aws.autoscaling.GroupInstanceMaintenancePolicyArgs(
                **always
            ),
            instance_refresh=aws.autoscaling.GroupInstanceRefreshArgs(
                strategy="Rolling",
                # the provider's own defaults are others than the group's policy
                preferences=aws.autoscaling.GroupInstanceRefreshPreferencesArgs(**always),
            ),
            # of a first `up`: as long as that takes, whatever was there before stays
            min_elb_capacity=size,
            wait_for_capacity_timeout=f"{SETTLE_SECONDS}s",
            tags=[
                aws.autoscaling.GroupTagArgs(key=key, value=value, propagate_at_launch=False)
                for key, value in {**args.place.default_tags, **settings.tags}.items()
            ],
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.autoscaling_group_name = group.name
        self.exports = {"autoscalingGroupName": self.autoscaling_group_name}
        self.register_outputs({"autoscaling_group_name": self.autoscaling_group_name})


def proxy_host(name: str, args: ProxyHostArgs, network: Interface | Balancer) -> Machine | Fleet:
    """The kind that belongs on the network."""
    if isinstance(network, Balancer):
        return Fleet(name, args, network)
    return Machine(name, args, network)
