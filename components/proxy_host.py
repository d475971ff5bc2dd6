"""The machine that runs the proxy."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from config.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ProxyHostArgs:
    settings: Settings
    ami: str
    """The machine's image, as `preflight.ask` gives it."""
    user_data: bytes
    """Compressed; shown to people by an output of the program."""
    interface_id: pulumi.Input[str]
    instance_profile: pulumi.Input[str]
    """The name of the profile whose role may read the two secrets."""


class ProxyHost(pulumi.ComponentResource):
    """Only what it is made of replaces the machine; old one first, as both need the interface."""

    instance_id: pulumi.Output[str]

    def __init__(
        self, name: str, args: ProxyHostArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("metrics-proxy:index:ProxyHost", name, None, opts)
        settings = args.settings
        instance = aws.ec2.Instance(
            f"{name}-instance",
            ami=args.ami,
            instance_type=settings.instance_type,
            primary_network_interface=aws.ec2.InstancePrimaryNetworkInterfaceArgs(
                network_interface_id=args.interface_id
            ),
            iam_instance_profile=args.instance_profile,
            # secret only to keep a page of base64 out of every preview
            user_data_base64=pulumi.Output.secret(base64.b64encode(args.user_data).decode()),
            user_data_replace_on_change=True,
            metadata_options=aws.ec2.InstanceMetadataOptionsArgs(
                http_endpoint="enabled", http_tokens="required", http_put_response_hop_limit=1
            ),
            root_block_device=aws.ec2.InstanceRootBlockDeviceArgs(
                encrypted=True, volume_type="gp3"
            ),
            tags=(tags := {"Name": f"{name}-{settings.stack}", **settings.tags}),
            # the provider adds its default tags; those of `root_block_device` come after the start
            volume_tags=tags,
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
        self.register_outputs({"instance_id": self.instance_id})
