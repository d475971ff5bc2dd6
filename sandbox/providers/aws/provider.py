"""A stand-in for `pulumi-resource-aws`: everything is kept in $AWS_ENDPOINT_URL, never in AWS.

What replaces a resource, what updates it and what is refused follows the documentation of the
Terraform provider that the real plugin wraps.
"""

import re

from botocore.exceptions import BotoCoreError, ClientError

from sandbox.providers import base
from sandbox.providers.aws import autoscaling, ec2, elbv2, iam, secretsmanager, vpc
from sandbox.providers.aws.kind import AwsKind, Session, from_tags
from sandbox.providers.base import UserError, Values

KINDS: tuple[type[AwsKind], ...] = (
    vpc.NetworkInterface,
    vpc.SecurityGroup,
    vpc.IngressRule,
    vpc.EgressRule,
    iam.Role,
    iam.RolePolicy,
    iam.InstanceProfile,
    secretsmanager.Secret,
    secretsmanager.SecretVersion,
    ec2.Instance,
    ec2.LaunchTemplate,
    elbv2.LoadBalancer,
    elbv2.TargetGroup,
    elbv2.Listener,
    autoscaling.Group,
)


class Aws(base.Provider):
    """The kinds above and the functions below."""

    package = "aws"
    settings = frozenset({"region", "defaultTags", "skipCredentialsValidation"})
    refusals = (UserError, ClientError, BotoCoreError)

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(self.config)
        self.kinds = {kind.type: kind(self.session) for kind in KINDS}
        self.functions = {
            "aws:ec2/getAmi:getAmi": (
                {"owners", "mostRecent", "filters", "nameRegex", "includeDeprecated"},
                self.get_ami,
            ),
            "aws:ec2/getInstanceType:getInstanceType": ({"instanceType"}, self.get_instance_type),
            "aws:ec2/getInstanceTypeOfferings:getInstanceTypeOfferings": (
                {"filters", "locationType"},
                self.get_instance_type_offerings,
            ),
            "aws:ec2/getManagedPrefixList:getManagedPrefixList": ({"id"}, self.get_prefix_list),
            "aws:ec2/getNetworkInterface:getNetworkInterface": ({"id"}, self.get_interface),
            "aws:ec2/getNetworkInterfaces:getNetworkInterfaces": (
                {"filters"},
                self.get_interfaces,
            ),
            "aws:ec2/getRouteTable:getRouteTable": ({"routeTableId"}, self.get_route_table),
            "aws:ec2/getRouteTables:getRouteTables": ({"filters", "vpcId"}, self.get_route_tables),
            "aws:ec2/getSecurityGroup:getSecurityGroup": ({"id"}, self.get_security_group),
            "aws:ec2/getSubnet:getSubnet": ({"id"}, self.get_subnet),
            "aws:index/getCallerIdentity:getCallerIdentity": (set(), self.get_caller_identity),
            "aws:index/getDefaultTags:getDefaultTags": (set(), self.get_default_tags),
            "aws:index/getPartition:getPartition": (set(), self.get_partition),
            "aws:index/getRegion:getRegion": (set(), self.get_region),
            "aws:secretsmanager/getSecret:getSecret": ({"arn", "name"}, self.get_secret),
        }

    def get_region(self, arguments: Values) -> Values:
        """aws.get_region."""
        region = self.session.region
        return {**arguments, "id": region, "region": region}

    def get_partition(self, arguments: Values) -> Values:
        """aws.get_partition."""
        dns = {"dnsSuffix": "amazonaws.com", "reverseDnsPrefix": "com.amazonaws"}
        return {**arguments, "id": "aws", "partition": "aws", **dns}

    def get_caller_identity(self, arguments: Values) -> Values:
        """aws.get_caller_identity."""
        who = self.session.identity
        account = {"id": who["Account"], "accountId": who["Account"]}
        return {**arguments, **account, "arn": who["Arn"], "userId": who["UserId"]}

    def get_default_tags(self, arguments: Values) -> Values:
        """aws.get_default_tags."""
        return {**arguments, "id": self.session.region, "tags": self.session.tags({})}

    def get_secret(self, arguments: Values) -> Values:
        """aws.secretsmanager.get_secret, by name or ARN (AWS takes a part of it, too)."""
        client = self.session.client("secretsmanager")
        wanted = arguments.get("arn") or arguments["name"]
        try:
            found = client.describe_secret(SecretId=wanted)
        except client.exceptions.ResourceNotFoundException:
            raise UserError(
                f"reading Secrets Manager Secret ({wanted}): couldn't find resource"
            ) from None
        known = {"id": found["ARN"], "arn": found["ARN"], "name": found["Name"]}
        return {**known, "kmsKeyId": found.get("KmsKeyId", "")}

    def get_subnet(self, arguments: Values) -> Values:
        """aws.ec2.get_subnet, by id."""
        subnet = self.session.subnet(arguments["id"])
        return {
            "id": subnet["SubnetId"],
            "arn": subnet["SubnetArn"],
            "vpcId": subnet["VpcId"],
            "cidrBlock": subnet["CidrBlock"],
            "availabilityZone": subnet["AvailabilityZone"],
            "availabilityZoneId": subnet["AvailabilityZoneId"],
            "availableIpAddressCount": subnet["AvailableIpAddressCount"],
            "mapPublicIpOnLaunch": subnet["MapPublicIpOnLaunch"],
            "ownerId": subnet["OwnerId"],
            "state": subnet["State"],
            "tags": from_tags(subnet.get("Tags", [])),
            "region": self.session.region,
        }

    def get_instance_type(self, arguments: Values) -> Values:
        """aws.ec2.get_instance_type."""
        name = arguments["instanceType"]
        known = {"id": name, "supportedArchitectures": self.session.architectures(name)}
        return {**arguments, **known, "region": self.session.region}

    def get_instance_type_offerings(self, arguments: Values) -> Values:
        """aws.ec2.get_instance_type_offerings."""
        offered = self.session.ec2.describe_instance_type_offerings(
            LocationType=arguments["locationType"], Filters=_filters(arguments)
        )["InstanceTypeOfferings"]
        names = ("InstanceType", "Location", "LocationType")
        types, locations, kinds = ([one[name] for one in offered] for name in names)
        known = {"instanceTypes": types, "locations": locations, "locationTypes": kinds}
        return {**arguments, **known, "id": self.session.region, "region": self.session.region}

    def get_prefix_list(self, arguments: Values) -> Values:
        """aws.ec2.get_managed_prefix_list, by id."""
        answer = self.session.ec2.describe_managed_prefix_lists(PrefixListIds=[arguments["id"]])
        if not (found := answer["PrefixLists"]):
            raise UserError("no matching EC2 Managed Prefix List found")
        known = {
            key: found[0].get(key[0].upper() + key[1:]) for key in ("addressFamily", "maxEntries")
        }
        return {**arguments, **known, "name": found[0]["PrefixListName"]}

    def get_interface(self, arguments: Values) -> Values:
        """aws.ec2.get_network_interface, by id."""
        found = self.session.interface(arguments["id"])
        known = {"description": found["Description"], "privateIp": found["PrivateIpAddress"]}
        known |= {"tags": from_tags(found["TagSet"])}
        return {**arguments, **known, "subnetId": found["SubnetId"], "vpcId": found["VpcId"]}

    def get_interfaces(self, arguments: Values) -> Values:
        """aws.ec2.get_network_interfaces."""
        found = self.session.ec2.describe_network_interfaces(Filters=_filters(arguments))
        ids = [one["NetworkInterfaceId"] for one in found["NetworkInterfaces"]]
        return {**arguments, "ids": ids, "id": self.session.region, "region": self.session.region}

    def get_route_table(self, arguments: Values) -> Values:
        """aws.ec2.get_route_table, by id."""
        table_id = arguments["routeTableId"]
        [found] = self.session.ec2.describe_route_tables(RouteTableIds=[table_id])["RouteTables"]
        routes = [
            {
                "cidrBlock": route.get("DestinationCidrBlock", ""),
                "gatewayId": route.get("GatewayId", ""),
                "natGatewayId": route.get("NatGatewayId", ""),
            }
            for route in found["Routes"]
        ]
        return {**arguments, "id": table_id, "vpcId": found["VpcId"], "routes": routes}

    def get_route_tables(self, arguments: Values) -> Values:
        """aws.ec2.get_route_tables."""
        filters = [*_filters(arguments), {"Name": "vpc-id", "Values": [arguments["vpcId"]]}]
        found = self.session.ec2.describe_route_tables(Filters=filters)["RouteTables"]
        ids = [one["RouteTableId"] for one in found]
        return {**arguments, "ids": ids, "id": self.session.region, "region": self.session.region}

    def get_security_group(self, arguments: Values) -> Values:
        """aws.ec2.get_security_group, by id."""
        group_id = arguments["id"]
        [found] = self.session.ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
        return {**arguments, "name": found["GroupName"], "vpcId": found["VpcId"]}

    def get_ami(self, arguments: Values) -> Values:
        """aws.ec2.get_ami."""
        images = self.session.ec2.describe_images(
            Owners=arguments.get("owners", []),
            Filters=_filters(arguments),
            IncludeDeprecated=arguments.get("includeDeprecated", False),
        )["Images"]
        pattern = arguments.get("nameRegex", "")
        images = [image for image in images if re.search(pattern, image["Name"])]
        if not images:
            raise UserError("getAmi: no AMI matches; change the filters")
        if len(images) > 1 and not arguments.get("mostRecent"):
            raise UserError(f"getAmi: {len(images)} AMIs match; add filters or set mostRecent")
        image = max(images, key=lambda one: str(one["CreationDate"]))
        return {
            **arguments,
            "id": image["ImageId"],
            "imageId": image["ImageId"],
            "name": image["Name"],
            "architecture": image["Architecture"],
            "creationDate": image["CreationDate"],
            "ownerId": image["OwnerId"],
            "rootDeviceName": image["RootDeviceName"],
            "state": image["State"],
            "region": self.session.region,
        }


def _filters(arguments: Values) -> list[Values]:
    return [{"Name": f["name"], "Values": f["values"]} for f in arguments.get("filters", [])]


if __name__ == "__main__":
    base.main(Aws())
