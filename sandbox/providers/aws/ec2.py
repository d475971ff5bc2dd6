"""Instances and launch templates of the embedded AWS."""

import base64
import re
from typing import Any, ClassVar

from pulumi.runtime.rpc import UNKNOWN

from sandbox.providers.aws.kind import AwsKind, from_tags, given, pascal, to_tags
from sandbox.providers.base import Existing, Problems, Values, known

USER_DATA_LIMIT = 16_384  # bytes
SWITCH = ("enabled", "disabled")
METADATA_OPTIONS: dict[str, tuple[Any, ...]] = {
    "httpEndpoint": SWITCH,
    "httpProtocolIpv6": SWITCH,
    "httpPutResponseHopLimit": tuple(range(1, 65)),
    "httpTokens": ("optional", "required"),
    "instanceMetadataTags": SWITCH,
}
VOLUME_TYPES = ("gp2", "gp3", "io1", "io2", "sc1", "st1", "standard")
OF_THE_INTERFACE = (  # refused beside an interface of the program's own
    *("associatePublicIpAddress", "privateIp", "securityGroups", "sourceDestCheck", "subnetId"),
    "vpcSecurityGroupIds",
)


def check_machine(inputs: Values, data_key: str) -> Problems:
    """What an instance and a template have in common."""
    data = inputs.get(data_key, "")
    if data != UNKNOWN and (size := len(base64.b64decode(data))) > USER_DATA_LIMIT:
        yield data_key, f"has {size} bytes, at most {USER_DATA_LIMIT} are allowed"
    for key, value in inputs.get("metadataOptions", {}).items():
        if value not in (allowed := METADATA_OPTIONS[key]) and value != UNKNOWN:
            wanted = " or ".join(map(str, allowed)) if len(allowed) == 2 else "1 to 64"
            yield f"metadataOptions.{key}", f"must be {wanted}, not {value!r}"


class Instance(AwsKind):
    """aws.ec2.Instance, on an interface of its own or in a subnet."""

    type = "aws:ec2/instance:Instance"
    missing = "InvalidInstanceID.NotFound"
    replaces = frozenset(
        {"ami", "associatePublicIpAddress", "keyName", "primaryNetworkInterface", "privateIp"}
        | {"subnetId"}
    )
    # another type of the same architecture stops and starts the machine, and so does user data
    updates = frozenset(
        {"disableApiStop", "disableApiTermination", "iamInstanceProfile", "instanceType"}
        | {"metadataOptions", "rootBlockDevice", "sourceDestCheck", "tags", "userDataBase64"}
        | {"userDataReplaceOnChange", "volumeTags", "vpcSecurityGroupIds"}
    )
    computed = frozenset(
        {"arn", "associatePublicIpAddress", "availabilityZone", "disableApiStop"}
        | {"disableApiTermination", "instanceState", "keyName", "metadataOptions"}
        | {"primaryNetworkInterfaceId", "privateDns", "privateIp", "publicDns", "publicIp"}
        | {"rootBlockDevice", "sourceDestCheck", "subnetId", "vpcSecurityGroupIds"}
    )
    volatile = frozenset({"instanceState", "publicDns", "publicIp"})
    sets = frozenset({"vpcSecurityGroupIds"})
    defaults: ClassVar[Values] = {"userDataReplaceOnChange": False}

    def check(self, inputs: Values) -> Problems:
        """What the provider or EC2 would refuse and what can be known before."""
        for key in ("ami", "instanceType"):
            if inputs.get(key) is None:
                yield key, "is required (launch templates are not modelled by the sandbox)"
        own = inputs.get("primaryNetworkInterface")
        for key in OF_THE_INTERFACE:
            if own is not None and inputs.get(key) is not None:
                yield key, "belongs to the interface when primaryNetworkInterface is given"
        if own is None and inputs.get("subnetId") is None:
            yield "subnetId", "or primaryNetworkInterface is required: there is no default VPC"
        yield from check_machine(inputs, "userDataBase64")
        if inputs.get("rootBlockDevice", {}).get("volumeType", "gp3") not in VOLUME_TYPES:
            yield "rootBlockDevice.volumeType", f"must be one of {', '.join(VOLUME_TYPES)}"

    def forces(self, state: Values, inputs: Values) -> set[str]:
        """User data if it says so, another architecture, another encryption of the disk."""
        forced = {"userDataBase64"} if inputs["userDataReplaceOnChange"] else set()
        types = [one.get("instanceType") for one in (state, inputs)]
        if types[0] != types[1] and None not in types and known(types):
            old, new = (set(self.session.architectures(str(one))) for one in types)
            if not old & new:
                forced.add("instanceType")
        was, is_to_be = ((one.get("rootBlockDevice") or {}) for one in (state, inputs))
        if any(is_to_be.get(k, was.get(k)) != was.get(k) for k in ("encrypted", "kmsKeyId")):
            forced.add("rootBlockDevice")
        return forced

    def create(self, inputs: Values) -> tuple[str, Values]:
        disk = {"deleteOnTermination": True, "volumeSize": 8, **inputs.get("rootBlockDevice", {})}
        disk.pop("tags", None)
        options, profile = inputs.get("metadataOptions"), inputs.get("iamInstanceProfile")
        if profile:
            self.session.client("iam").get_instance_profile(InstanceProfileName=profile)
        device = self.session.image(inputs["ami"])["RootDeviceName"]
        data = inputs.get("userDataBase64")
        tags = [
            {
                "ResourceType": kind,
                "Tags": to_tags(self.session.tags({"tags": inputs.get(key, {})})),
            }
            for kind, key in (("instance", "tags"), ("volume", "volumeTags"))
        ]
        made = self.ec2.run_instances(
            ImageId=inputs["ami"],
            InstanceType=inputs["instanceType"],
            MinCount=1,
            MaxCount=1,
            NetworkInterfaces=[self._interface(inputs)],
            BlockDeviceMappings=[{"DeviceName": device, "Ebs": pascal(disk)}],
            **given(
                MetadataOptions=options and pascal(options),
                IamInstanceProfile=profile and {"Name": profile},
                UserData=data and base64.b64decode(data),  # the SDK encodes it again
                KeyName=inputs.get("keyName"),
                DisableApiStop=inputs.get("disableApiStop"),
                DisableApiTermination=inputs.get("disableApiTermination"),
            ),
            # with the default tags on volumes too: terraform-provider-aws merges them
            TagSpecifications=[one for one in tags if one["Tags"]],
        )["Instances"][0]["InstanceId"]
        return made, self.describe(made) or {}

    def _interface(self, inputs: Values) -> Values:
        if (own := inputs.get("primaryNetworkInterface")) is None:
            return given(
                DeviceIndex=0,
                SubnetId=inputs["subnetId"],
                Groups=inputs.get("vpcSecurityGroupIds"),
                PrivateIpAddress=inputs.get("privateIp"),
                AssociatePublicIpAddress=inputs.get("associatePublicIpAddress"),
                DeleteOnTermination=True,
            )
        return {"DeviceIndex": 0, "NetworkInterfaceId": own["networkInterfaceId"]}

    def describe(self, resource_id: str) -> Values | None:
        [reservation] = self.ec2.describe_instances(InstanceIds=[resource_id])["Reservations"]
        [found] = reservation["Instances"]
        if found["State"]["Name"] == "terminated":
            return None
        # the groups stand on the interface only
        interface = self.session.interface(found["NetworkInterfaces"][0]["NetworkInterfaceId"])
        answer = self.ec2.describe_instance_attribute(InstanceId=resource_id, Attribute="userData")
        data = answer.get("UserData", {}).get("Value", "")
        options = {key[0].lower() + key[1:]: one for key, one in found["MetadataOptions"].items()}
        return {
            "ami": found["ImageId"],
            "arn": self.session.arn(f"instance/{resource_id}"),
            "availabilityZone": interface["AvailabilityZone"],
            "iamInstanceProfile": found.get("IamInstanceProfile", {}).get("Arn", "").split("/")[-1],
            "instanceState": found["State"]["Name"],
            "instanceType": found["InstanceType"],
            "metadataOptions": {key: options[key] for key in METADATA_OPTIONS},
            "primaryNetworkInterfaceId": interface["NetworkInterfaceId"],
            "privateDns": found["PrivateDnsName"],
            "privateIp": interface["PrivateIpAddress"],
            "publicDns": found.get("PublicDnsName", ""),
            "publicIp": found.get("PublicIpAddress", ""),
            "subnetId": interface["SubnetId"],
            "tagsAll": from_tags(found.get("Tags", [])),
            "userDataBase64": data,
            "volumeTags": self._volume_tags(found),
            "vpcSecurityGroupIds": sorted(group["GroupId"] for group in interface["Groups"]),
        }

    def _volume_tags(self, found: Values) -> Values:
        """Without the default ones, as the provider tells them."""
        volumes = [one["Ebs"]["VolumeId"] for one in found["BlockDeviceMappings"]]
        default = self.session.tags({})
        tags = from_tags(self.ec2.describe_volumes(VolumeIds=volumes)["Volumes"][0].get("Tags", []))
        return {key: value for key, value in tags.items() if default.get(key) != value}

    def read(self, it: Existing) -> Values | None:
        """Options that the program does not set are none of its business."""
        seen = super().read(it)
        if seen and (set_ones := it.state.get("metadataOptions")):
            seen["metadataOptions"] = {key: seen["metadataOptions"][key] for key in set_ones}
        return seen

    def update(self, it: Existing) -> Values:
        """In place, with a stop and a start where EC2 demands it."""
        changed = {key for key in self.updates if it.inputs.get(key) != it.state.get(key)}
        if changed & {"instanceType", "userDataBase64"}:
            self.ec2.stop_instances(InstanceIds=[it.id])
            if "instanceType" in changed:
                self._modify(it.id, "instanceType", {"Value": it.inputs["instanceType"]})
            if "userDataBase64" in changed:
                data = base64.b64decode(it.inputs.get("userDataBase64", ""))
                self._modify(it.id, "userData", {"Value": data})
            self.ec2.start_instances(InstanceIds=[it.id])
        for key in sorted(changed & {"disableApiStop", "disableApiTermination", "sourceDestCheck"}):
            if key in it.inputs:
                self._modify(it.id, key, {"Value": it.inputs[key]})
        if "vpcSecurityGroupIds" in changed and it.inputs.get("vpcSecurityGroupIds"):
            self.ec2.modify_network_interface_attribute(
                NetworkInterfaceId=it.state["primaryNetworkInterfaceId"],
                Groups=it.inputs["vpcSecurityGroupIds"],
            )
        if "metadataOptions" in changed:
            # all of them: moto forgets what the call does not name, EC2 keeps it
            options = {**(self.describe(it.id) or {})["metadataOptions"]}
            options |= it.inputs.get("metadataOptions", {})
            self.ec2.modify_instance_metadata_options(InstanceId=it.id, **pascal(options))
        if "volumeTags" in changed:
            [reservation] = self.ec2.describe_instances(InstanceIds=[it.id])["Reservations"]
            devices = reservation["Instances"][0]["BlockDeviceMappings"]
            volumes = [one["Ebs"]["VolumeId"] for one in devices]
            old, new = (one.get("volumeTags") or {} for one in (it.state, it.inputs))
            if gone := [{"Key": key} for key in old.keys() - new.keys()]:
                self.ec2.delete_tags(Resources=volumes, Tags=gone)
            self.ec2.create_tags(Resources=volumes, Tags=to_tags(self.session.tags({"tags": new})))
        if "iamInstanceProfile" in changed:
            self._associate(it.id, it.inputs.get("iamInstanceProfile"))
        self.retag_ec2(it)
        return self.describe(it.id) or {}

    def _modify(self, resource_id: str, key: str, value: Any) -> None:
        self.ec2.modify_instance_attribute(InstanceId=resource_id, **pascal({key: value}))

    def _associate(self, resource_id: str, profile: str | None) -> None:
        where = [{"Name": "instance-id", "Values": [resource_id]}]
        answer = self.ec2.describe_iam_instance_profile_associations(Filters=where)
        for old in answer["IamInstanceProfileAssociations"]:
            self.ec2.disassociate_iam_instance_profile(AssociationId=old["AssociationId"])
        if profile:
            self.ec2.associate_iam_instance_profile(
                InstanceId=resource_id, IamInstanceProfile={"Name": profile}
            )

    def delete(self, it: Existing) -> None:
        """EC2 refuses if it is protected, and so does moto."""
        self.ec2.terminate_instances(InstanceIds=[it.id])


TAGGED = ("instance", "network-interface", "spot-instances-request", "volume")


class LaunchTemplate(AwsKind):
    """aws.ec2.LaunchTemplate: a new version for every change but the tags.

    EC2 looks at what a template names when a machine or a group is made of it, not before.
    """

    type = "aws:ec2/launchTemplate:LaunchTemplate"
    missing = "InvalidLaunchTemplateId.NotFound"
    replaces = frozenset({"name"})
    data = frozenset(
        {"blockDeviceMappings", "iamInstanceProfile", "imageId", "instanceType"}
        | {"metadataOptions", "networkInterfaces", "tagSpecifications", "userData"}
        | {"vpcSecurityGroupIds"}
    )
    updates = data | {"description", "tags", "updateDefaultVersion"}
    computed = frozenset({"arn", "defaultVersion", "latestVersion"})
    volatile = frozenset({"defaultVersion", "latestVersion"})
    sets = frozenset({"vpcSecurityGroupIds"})
    autoname = "name"

    def check(self, inputs: Values) -> Problems:
        name = inputs["name"]
        if name != UNKNOWN and not re.fullmatch(r"[a-zA-Z0-9().\-/_]{3,128}", name):
            yield "name", f"{name!r} must have 3 to 128 letters, digits or ().-/_"
        yield from check_machine(inputs, "userData")
        for index, one in enumerate(inputs.get("tagSpecifications", [])):
            if one.get("resourceType") not in (*TAGGED, UNKNOWN):
                allowed = ", ".join(TAGGED)
                yield f"tagSpecifications[{index}].resourceType", f"must be one of {allowed}"
        for index, one in enumerate(inputs.get("blockDeviceMappings", [])):
            disk = one.get("ebs", {})
            path = f"blockDeviceMappings[{index}]"
            if disk.get("volumeType", "gp3") not in (*VOLUME_TYPES, UNKNOWN):
                yield f"{path}.ebs.volumeType", f"must be one of {', '.join(VOLUME_TYPES)}"
            if disk.get("encrypted", "true") not in ("true", "false", UNKNOWN):
                yield f"{path}.ebs.encrypted", "must be true or false"
        cards = inputs.get("networkInterfaces", [])
        if cards and inputs.get("vpcSecurityGroupIds"):
            yield "vpcSecurityGroupIds", "belong to the interface when networkInterfaces are given"
        if len(cards) > 1:
            yield "networkInterfaces", "more than one is not modelled by the sandbox"

    def _data(self, inputs: Values) -> Values:
        disks = [
            {
                **given(DeviceName=one.get("deviceName")),
                "Ebs": {
                    key: value == "true" if key in ("Encrypted", "DeleteOnTermination") else value
                    for key, value in pascal(one.get("ebs", {})).items()
                },
            }
            for one in inputs.get("blockDeviceMappings", [])
        ]
        cards = []
        for one in inputs.get("networkInterfaces", []):
            card = {"DeviceIndex": 0, **pascal(one)}
            if "SecurityGroups" in card:
                card["Groups"] = card.pop("SecurityGroups")
            for key in ("AssociatePublicIpAddress", "DeleteOnTermination"):
                if key in card:
                    card[key] = card[key] == "true"
            cards.append(card)
        options, profile = inputs.get("metadataOptions"), inputs.get("iamInstanceProfile")
        return given(
            ImageId=inputs.get("imageId"),
            InstanceType=inputs.get("instanceType"),
            UserData=inputs.get("userData"),
            BlockDeviceMappings=disks or None,
            NetworkInterfaces=cards or None,
            MetadataOptions=options and pascal(options),
            IamInstanceProfile=profile and pascal(profile),
            SecurityGroupIds=inputs.get("vpcSecurityGroupIds"),
            TagSpecifications=[
                {"ResourceType": one["resourceType"], "Tags": to_tags(one.get("tags", {}))}
                for one in inputs.get("tagSpecifications", [])
            ]
            or None,
        )

    def create(self, inputs: Values) -> tuple[str, Values]:
        made = self.ec2.create_launch_template(
            LaunchTemplateName=inputs["name"],
            LaunchTemplateData=self._data(inputs),
            **given(VersionDescription=inputs.get("description")),
            **self.specification("launch-template", inputs),
        )["LaunchTemplate"]["LaunchTemplateId"]
        return made, self.describe(made) or {}

    def describe(self, resource_id: str) -> Values | None:
        """What a version holds is as this program wrote it: versions never change."""
        found = self.ec2.describe_launch_templates(LaunchTemplateIds=[resource_id])
        if not (templates := found["LaunchTemplates"]):
            return None  # moto's way to say that it is not there
        # moto tells a template's tags as they were at first
        own = [{"Name": "resource-id", "Values": [resource_id]}]
        tags = self.ec2.describe_tags(Filters=own)["Tags"]
        return {
            "arn": self.session.arn(f"launch-template/{resource_id}"),
            "defaultVersion": templates[0]["DefaultVersionNumber"],
            "latestVersion": templates[0]["LatestVersionNumber"],
            "name": templates[0]["LaunchTemplateName"],
            "tagsAll": from_tags(tags),
        }

    def update(self, it: Existing) -> Values:
        if any(it.inputs.get(k) != it.state.get(k) for k in (*self.data, "description")):
            made = self.ec2.create_launch_template_version(
                LaunchTemplateId=it.id,
                LaunchTemplateData=self._data(it.inputs),
                **given(VersionDescription=it.inputs.get("description")),
            )["LaunchTemplateVersion"]["VersionNumber"]
            if it.inputs.get("updateDefaultVersion"):
                self.ec2.modify_launch_template(LaunchTemplateId=it.id, DefaultVersion=str(made))
        self.retag_ec2(it)
        return self.describe(it.id) or {}

    def delete(self, it: Existing) -> None:
        self.ec2.delete_launch_template(LaunchTemplateId=it.id)
