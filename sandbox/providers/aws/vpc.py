"""Network interfaces and security groups of the embedded AWS."""

import ipaddress
import re
from typing import Any, ClassVar

from pulumi.runtime.rpc import UNKNOWN

from sandbox.providers.aws.kind import AwsKind, from_tags, given
from sandbox.providers.base import Existing, Problems, UserError, Values, known

DESCRIPTION_LIMIT = 255


class NetworkInterface(AwsKind):
    """aws.ec2.NetworkInterface with one private address."""

    type = "aws:ec2/networkInterface:NetworkInterface"
    missing = "InvalidNetworkInterfaceID.NotFound"
    replaces = frozenset({"subnetId"})
    updates = frozenset({"description", "privateIps", "securityGroups", "sourceDestCheck", "tags"})
    computed = frozenset(
        {"arn", "macAddress", "ownerId", "privateDnsName", "privateIp", "privateIps"}
        | {"securityGroups", "interfaceType"}
    )
    sets = frozenset({"privateIps", "securityGroups"})
    defaults: ClassVar[Values] = {"sourceDestCheck": True}

    def check(self, inputs: Values) -> Problems:
        addresses = inputs.get("privateIps", [])
        if not known(addresses):
            return
        if len(addresses) > 1:
            yield "privateIps", "more than one address is not modelled by the sandbox"
        for index, address in enumerate(addresses):
            try:
                ipaddress.IPv4Address(address)
            except ValueError:
                yield f"privateIps[{index}]", f"{address!r} is no IPv4 address"

    def forces(self, state: Values, inputs: Values) -> set[str]:
        """The primary address cannot change."""
        addresses = inputs.get("privateIps") or [state["privateIp"]]
        return set() if state["privateIp"] in addresses else {"privateIps"}

    def create(self, inputs: Values) -> tuple[str, Values]:
        """At the address given, else at the lowest free one."""
        subnet = self.session.subnet(inputs["subnetId"])
        usable = [str(one) for one in ipaddress.IPv4Network(subnet["CidrBlock"])]
        usable = usable[4:-1]  # AWS keeps the first four and the last
        taken = {
            one["PrivateIpAddress"]: one["NetworkInterfaceId"]
            for one in self.session.interfaces("subnet-id", inputs["subnetId"])
        }
        free = (address for address in usable if address not in taken)
        address = next(iter(inputs.get("privateIps", [])), None) or next(free)
        if address not in usable:
            raise UserError(f"privateIps: {address} is no usable address of {subnet['CidrBlock']}")
        if address in taken:
            raise UserError(f"privateIps: {address} is in use by {taken[address]}")
        groups = inputs.get("securityGroups") or None
        for group in self.ec2.describe_security_groups(GroupIds=groups or [])["SecurityGroups"]:
            if groups and group["VpcId"] != subnet["VpcId"]:
                raise UserError(f"securityGroups: {group['GroupId']} is not of the subnet's VPC")
        made = self.ec2.create_network_interface(
            SubnetId=inputs["subnetId"],
            PrivateIpAddress=address,
            **given(Description=inputs.get("description"), Groups=groups),
            **self.specification("network-interface", inputs),
        )["NetworkInterface"]["NetworkInterfaceId"]
        if not inputs["sourceDestCheck"]:
            self._modify(made, SourceDestCheck={"Value": False})
        return made, self.describe(made)

    def describe(self, resource_id: str) -> Values:
        found = self.session.interface(resource_id)
        return {
            "arn": self.session.arn(f"network-interface/{resource_id}"),
            "description": found["Description"],
            "interfaceType": found["InterfaceType"],
            "macAddress": found["MacAddress"],
            "ownerId": found["OwnerId"],
            "privateDnsName": found.get("PrivateDnsName", ""),
            "privateIp": found["PrivateIpAddress"],
            "privateIps": [found["PrivateIpAddress"]],
            "securityGroups": sorted(group["GroupId"] for group in found["Groups"]),
            "sourceDestCheck": found["SourceDestCheck"],
            "subnetId": found["SubnetId"],
            "tagsAll": from_tags(found["TagSet"]),
        }

    def update(self, it: Existing) -> Values:
        """One call for each attribute, as EC2 demands."""
        self._modify(it.id, Description={"Value": it.inputs.get("description", "")})
        self._modify(it.id, SourceDestCheck={"Value": it.inputs["sourceDestCheck"]})
        if it.inputs.get("securityGroups"):
            self._modify(it.id, Groups=it.inputs["securityGroups"])
        self.retag_ec2(it)
        return {}

    def _modify(self, resource_id: str, **attribute: Any) -> None:
        self.ec2.modify_network_interface_attribute(NetworkInterfaceId=resource_id, **attribute)

    def delete(self, it: Existing) -> None:
        """EC2 refuses while a machine uses it; moto does not."""
        if self.session.interface(it.id)["Status"] == "in-use":
            raise UserError(f"network interface {it.id} is in use, so it cannot be deleted")
        self.ec2.delete_network_interface(NetworkInterfaceId=it.id)


class SecurityGroup(AwsKind):
    """aws.ec2.SecurityGroup without inline rules."""

    type = "aws:ec2/securityGroup:SecurityGroup"
    missing = "InvalidGroup.NotFound"
    replaces = frozenset({"name", "description", "vpcId"})
    updates = frozenset({"revokeRulesOnDelete", "tags"})
    computed = frozenset({"arn", "ownerId", "vpcId"})
    defaults: ClassVar[Values] = {"description": "Managed by Pulumi", "revokeRulesOnDelete": False}
    autoname = "name"

    def check(self, inputs: Values) -> Problems:
        for key in ("name", "description"):
            value = inputs[key]
            if value == UNKNOWN:
                continue
            if not 0 < len(value) <= DESCRIPTION_LIMIT:
                yield key, f"must have 1 to {DESCRIPTION_LIMIT} characters"
            if not re.fullmatch(r"[A-Za-z0-9 ._\-:/()#,@\[\]+=&;{}!$*]*", value):
                yield key, "has a character that EC2 does not allow"
        if inputs["name"].startswith("sg-"):
            yield "name", "must not begin with sg-"

    def create(self, inputs: Values) -> tuple[str, Values]:
        """Without AWS's allow-all egress rule."""
        made = self.ec2.create_security_group(
            GroupName=inputs["name"],
            Description=inputs["description"],
            **given(VpcId=inputs.get("vpcId")),
            **self.specification("security-group", inputs),
        )["GroupId"]
        everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
        self.ec2.revoke_security_group_egress(GroupId=made, IpPermissions=[everything])
        return made, self.describe(made)

    def describe(self, resource_id: str) -> Values:
        found = self.ec2.describe_security_groups(GroupIds=[resource_id])["SecurityGroups"][0]
        return {
            "arn": self.session.arn(f"security-group/{resource_id}"),
            "description": found["Description"],
            "name": found["GroupName"],
            "ownerId": found["OwnerId"],
            "tagsAll": from_tags(found.get("Tags", [])),
            "vpcId": found["VpcId"],
        }

    def update(self, it: Existing) -> Values:
        """Only the tags are AWS's."""
        self.retag_ec2(it)
        return {}

    def delete(self, it: Existing) -> None:
        """EC2 refuses while anything refers to it; moto does not."""
        rules = self.ec2.describe_security_group_rules()["SecurityGroupRules"]
        users = [one["NetworkInterfaceId"] for one in self.session.interfaces("group-id", it.id)]
        users += [
            rule["GroupId"]
            for rule in rules
            if rule.get("ReferencedGroupInfo", {}).get("GroupId") == it.id != rule["GroupId"]
        ]
        if users:
            raise UserError(
                f"security group {it.id} is in use by {', '.join(users)}, so it cannot be deleted"
            )
        self.ec2.delete_security_group(GroupId=it.id)


SOURCES = {  # our name -> EC2's, with the list in which a new rule has it
    "cidrIpv4": ("CidrIpv4", "IpRanges", "CidrIp"),
    "cidrIpv6": ("CidrIpv6", "Ipv6Ranges", "CidrIpv6"),
    "prefixListId": ("PrefixListId", "PrefixListIds", "PrefixListId"),
    "referencedSecurityGroupId": ("ReferencedGroupId", "UserIdGroupPairs", "GroupId"),
}
PROTOCOLS = {"all": "-1", "6": "tcp", "17": "udp", "1": "icmp", "58": "icmpv6"}


class _Rule(AwsKind):
    missing = "InvalidSecurityGroupRuleId.NotFound"
    replaces = frozenset({"securityGroupId"})
    updates = frozenset({*SOURCES, "description", "fromPort", "toPort", "ipProtocol", "tags"})
    computed = frozenset({"arn", "securityGroupRuleId"})
    direction: ClassVar[str]

    def check(self, inputs: Values) -> Problems:
        sources = [key for key in SOURCES if inputs.get(key) is not None]
        if len(sources) != 1:
            yield "", f"exactly one of {', '.join(SOURCES)} must be given, not {len(sources)}"
        for key, network in (
            ("cidrIpv4", ipaddress.IPv4Network),
            ("cidrIpv6", ipaddress.IPv6Network),
        ):
            cidr = inputs.get(key)
            if cidr is None or cidr == UNKNOWN:
                continue
            try:
                network(cidr)  # refuses host bits
                if "/" not in cidr:
                    yield key, f"{cidr!r} has no prefix length"
            except ValueError as error:
                yield key, str(error)
        if len(inputs.get("description", "")) > DESCRIPTION_LIMIT:
            yield "description", f"must have at most {DESCRIPTION_LIMIT} characters"
        ports = [inputs.get("fromPort"), inputs.get("toPort")]
        if known([inputs["ipProtocol"], *ports]):
            yield from self._check_ports(self.normal("ipProtocol", inputs["ipProtocol"]), *ports)

    @staticmethod
    def _check_ports(protocol: str, low: int | None, high: int | None) -> Problems:
        if protocol == "-1":
            if (low, high) != (None, None):
                yield "fromPort", "and toPort must not be given when ipProtocol is -1"
        elif protocol not in PROTOCOLS.values():
            yield "ipProtocol", f"{protocol!r} is not modelled by the sandbox"
        elif low is None or high is None:
            yield "fromPort", f"and toPort are required when ipProtocol is {protocol}"
        elif protocol in ("tcp", "udp") and not 0 <= low <= high <= 65_535:
            yield "fromPort", f"{low} to {high} is no range of ports"

    def normal(self, key: str, value: Any) -> Any:
        """Protocols by name."""
        return PROTOCOLS.get(value, value) if key == "ipProtocol" else value

    def forces(self, state: Values, inputs: Values) -> set[str]:
        """The kind of source cannot change."""
        old, new = ({key for key in SOURCES if one.get(key)} for one in (state, inputs))
        return old ^ new

    def create(self, inputs: Values) -> tuple[str, Values]:
        permission = {
            "IpProtocol": self.normal("ipProtocol", inputs["ipProtocol"]),
            **given(FromPort=inputs.get("fromPort"), ToPort=inputs.get("toPort")),
        }
        for key, (_, ranges, name) in SOURCES.items():
            if inputs.get(key):
                one = given(**{name: inputs[key]}, Description=inputs.get("description"))
                permission[ranges] = [one]
        rule = getattr(self.ec2, f"authorize_security_group_{self.direction}")(
            GroupId=inputs["securityGroupId"],
            IpPermissions=[permission],
            **self.specification("security-group-rule", inputs),
        )["SecurityGroupRules"][0]["SecurityGroupRuleId"]
        return rule, self.describe(rule)

    def describe(self, resource_id: str) -> Values:
        found = self.ec2.describe_security_group_rules(SecurityGroupRuleIds=[resource_id])
        [rule] = found["SecurityGroupRules"]
        ports = {"fromPort": rule["FromPort"], "toPort": rule["ToPort"]}
        return {
            **({} if rule["IpProtocol"] == "-1" else ports),
            "arn": self.session.arn(f"security-group-rule/{resource_id}"),
            "cidrIpv4": rule.get("CidrIpv4"),
            "cidrIpv6": rule.get("CidrIpv6"),
            "description": rule.get("Description"),
            "ipProtocol": rule["IpProtocol"],
            "prefixListId": rule.get("PrefixListId"),
            "referencedSecurityGroupId": rule.get("ReferencedGroupInfo", {}).get("GroupId"),
            "securityGroupId": rule["GroupId"],
            "securityGroupRuleId": resource_id,
            "tagsAll": from_tags(rule.get("Tags", [])),
        }

    def read(self, it: Existing) -> Values | None:
        """moto forgets the description of a rule that names a group."""
        seen = super().read(it)
        if seen and seen.get("referencedSecurityGroupId") and not seen.get("description"):
            seen.pop("description", None)
        return seen

    def update(self, it: Existing) -> Values:
        """In place, so that there is no moment without the rule."""
        rule = given(
            IpProtocol=self.normal("ipProtocol", it.inputs["ipProtocol"]),
            FromPort=it.inputs.get("fromPort", -1),
            ToPort=it.inputs.get("toPort", -1),
            Description=it.inputs.get("description"),
            **{names[0]: it.inputs.get(key) for key, names in SOURCES.items()},
        )
        self.ec2.modify_security_group_rules(
            GroupId=it.inputs["securityGroupId"],
            SecurityGroupRules=[{"SecurityGroupRuleId": it.id, "SecurityGroupRule": rule}],
        )
        self.retag_ec2(it)
        return {}

    def delete(self, it: Existing) -> None:
        revoke = getattr(self.ec2, f"revoke_security_group_{self.direction}")
        revoke(GroupId=it.state["securityGroupId"], SecurityGroupRuleIds=[it.id])


class IngressRule(_Rule):
    """aws.vpc.SecurityGroupIngressRule."""

    type = "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"
    direction = "ingress"


class EgressRule(_Rule):
    """aws.vpc.SecurityGroupEgressRule."""

    type = "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule"
    direction = "egress"
