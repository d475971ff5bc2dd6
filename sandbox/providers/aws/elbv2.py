"""Network Load Balancers of the embedded AWS, their target groups and listeners."""

import re
from typing import Any, ClassVar

from pulumi.runtime.rpc import UNKNOWN

from sandbox.providers.aws.kind import AwsKind, from_tags, given, to_tags
from sandbox.providers.base import Existing, Problems, UserError, Values, known

NAME_LIMIT = 32
CODES = r"\d{3}(-\d{3})?(,\d{3}(-\d{3})?)*"


class _Balancing(AwsKind):
    @property
    def elb(self) -> Any:
        return self.session.client("elbv2")

    def tags_of(self, arn: str) -> dict[str, str]:
        """The tags of one of them."""
        return from_tags(self.elb.describe_tags(ResourceArns=[arn])["TagDescriptions"][0]["Tags"])

    def new_tags(self, inputs: Values) -> Values:
        tags = to_tags(self.session.tags(inputs))
        return {"Tags": tags} if tags else {}

    def retag_elb(self, it: Existing) -> None:
        self.retag(
            it,
            lambda tags: self.elb.add_tags(ResourceArns=[it.id], Tags=tags),
            lambda keys: self.elb.remove_tags(ResourceArns=[it.id], TagKeys=keys),
        )


def check_balancing_name(name: str) -> Problems:
    """Names of balancers and target groups."""
    if name == UNKNOWN:
        return
    if len(name) > NAME_LIMIT:
        yield "name", f"has {len(name)} characters, at most {NAME_LIMIT} are allowed"
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", name):
        yield "name", f"{name!r} may have letters, digits and hyphens, none at its ends"
    if name.startswith("internal-"):
        yield "name", "must not begin with internal-"


def attributes(found: list[dict[str, str]]) -> dict[str, str]:
    return {one["Key"]: str(one["Value"]) for one in found}


class LoadBalancer(_Balancing):
    """aws.lb.LoadBalancer of the type network."""

    type = "aws:lb/loadBalancer:LoadBalancer"
    missing = "LoadBalancerNotFound"
    replaces = frozenset({"name", "internal", "loadBalancerType"})
    updates = frozenset(
        {"enableCrossZoneLoadBalancing", "enableDeletionProtection", "ipAddressType"}
        | {"securityGroups", "subnets", "tags"}
    )
    computed = frozenset({"arn", "arnSuffix", "dnsName", "ipAddressType", "vpcId", "zoneId"})
    sets = frozenset({"securityGroups", "subnets"})
    defaults: ClassVar[Values] = {
        "enableCrossZoneLoadBalancing": False,
        "enableDeletionProtection": False,
    }
    autoname = "name"

    def check(self, inputs: Values) -> Problems:
        yield from check_balancing_name(inputs["name"])
        if (kind := inputs.get("loadBalancerType", "application")) not in ("network", UNKNOWN):
            yield "loadBalancerType", f"{kind} is not modelled by the sandbox"
        if not inputs.get("internal"):
            yield "internal", "a balancer for everybody is not modelled by the sandbox"
        if inputs.get("ipAddressType", "ipv4") not in ("ipv4", UNKNOWN):
            yield "ipAddressType", "is not modelled by the sandbox but for ipv4"
        if not inputs.get("subnets"):
            yield "subnets", "is required"

    def forces(self, state: Values, inputs: Values) -> set[str]:
        """Groups come at creation or never; a subnet cannot be taken away."""
        forced = set()
        old, new = (bool(one.get("securityGroups")) for one in (state, inputs))
        if old != new:
            forced.add("securityGroups")
        subnets = inputs.get("subnets", [])
        if known(subnets) and set(state.get("subnets", [])) - set(subnets):
            forced.add("subnets")
        return forced

    def create(self, inputs: Values) -> tuple[str, Values]:
        self._check_zones(inputs["subnets"])
        for group in inputs.get("securityGroups", []):
            self.ec2.describe_security_groups(GroupIds=[group])
        made = self.elb.create_load_balancer(
            Name=inputs["name"],
            Type="network",
            Scheme="internal",
            Subnets=inputs["subnets"],
            **given(SecurityGroups=inputs.get("securityGroups")),
            **self.new_tags(inputs),
        )["LoadBalancers"][0]["LoadBalancerArn"]
        self._set(made, inputs)
        return made, self.describe(made)

    def _check_zones(self, subnets: list[str]) -> None:
        zones = [self.session.subnet(one)["AvailabilityZone"] for one in subnets]
        if len(set(zones)) < len(zones):
            raise UserError(
                "subnets: a load balancer cannot be attached to multiple subnets in the same "
                "Availability Zone"
            )

    def _set(self, arn: str, inputs: Values) -> None:
        names = {
            "load_balancing.cross_zone.enabled": "enableCrossZoneLoadBalancing",
            "deletion_protection.enabled": "enableDeletionProtection",
        }
        wanted = [{"Key": k, "Value": str(inputs[v]).lower()} for k, v in names.items()]
        self.elb.modify_load_balancer_attributes(LoadBalancerArn=arn, Attributes=wanted)

    def describe(self, resource_id: str) -> Values:
        [found] = self.elb.describe_load_balancers(LoadBalancerArns=[resource_id])["LoadBalancers"]
        answer = self.elb.describe_load_balancer_attributes(LoadBalancerArn=resource_id)
        how = attributes(answer["Attributes"])
        return {
            "arn": resource_id,
            "arnSuffix": resource_id.partition("loadbalancer/")[2],
            "dnsName": found["DNSName"],
            "enableCrossZoneLoadBalancing": how["load_balancing.cross_zone.enabled"] == "true",
            "enableDeletionProtection": how["deletion_protection.enabled"] == "true",
            "internal": found["Scheme"] == "internal",
            "ipAddressType": found["IpAddressType"],
            "loadBalancerType": found["Type"],
            "name": found["LoadBalancerName"],
            "securityGroups": sorted(found.get("SecurityGroups", [])),
            "subnets": sorted(zone["SubnetId"] for zone in found["AvailabilityZones"]),
            "tagsAll": self.tags_of(resource_id),
            "vpcId": found["VpcId"],
            "zoneId": found["CanonicalHostedZoneId"],
        }

    def update(self, it: Existing) -> Values:
        """Other groups or more subnets; AWS has a call for each."""
        if sorted(it.inputs["subnets"]) != sorted(it.state["subnets"]):
            self._check_zones(it.inputs["subnets"])
            self.elb.set_subnets(LoadBalancerArn=it.id, Subnets=it.inputs["subnets"])
        if it.inputs.get("securityGroups", []) != it.state.get("securityGroups", []):
            self.elb.set_security_groups(
                LoadBalancerArn=it.id, SecurityGroups=it.inputs["securityGroups"]
            )
        self._set(it.id, it.inputs)
        self.retag_elb(it)
        return self.describe(it.id)

    def delete(self, it: Existing) -> None:
        """AWS refuses if it is protected; moto does not."""
        if (self.describe(it.id))["enableDeletionProtection"]:
            raise UserError(f"load balancer {it.id} is protected against deletion")
        self.elb.delete_load_balancer(LoadBalancerArn=it.id)


LIMITS = {  # of a health check
    "interval": (5, 300),
    "timeout": (2, 120),
    "healthyThreshold": (2, 10),
    "unhealthyThreshold": (2, 10),
}


class TargetGroup(_Balancing):
    """aws.lb.TargetGroup of instances, for TCP."""

    type = "aws:lb/targetGroup:TargetGroup"
    missing = "TargetGroupNotFound"
    replaces = frozenset({"name", "port", "protocol", "targetType", "vpcId"})
    updates = frozenset({"deregistrationDelay", "healthCheck", "preserveClientIp", "tags"})
    computed = frozenset({"arn", "arnSuffix", "healthCheck", "preserveClientIp"})
    defaults: ClassVar[Values] = {"deregistrationDelay": 300, "targetType": "instance"}
    autoname = "name"

    def check(self, inputs: Values) -> Problems:
        yield from check_balancing_name(inputs["name"])
        for key in ("port", "protocol", "vpcId"):
            if inputs.get(key) is None:
                yield key, "is required for instances"
        if inputs.get("protocol", "TCP") not in ("TCP", UNKNOWN):
            yield "protocol", f"{inputs['protocol']} is not modelled by the sandbox"
        if inputs["targetType"] not in ("instance", UNKNOWN):
            yield "targetType", f"{inputs['targetType']} is not modelled by the sandbox"
        port, delay = inputs.get("port", 1), inputs["deregistrationDelay"]
        if known(port) and not 1 <= port <= 65_535:
            yield "port", f"must be 1 to 65535, not {port}"
        if known(delay) and not 0 <= delay <= 3_600:
            yield "deregistrationDelay", f"must be 0 to 3600, not {delay}"
        if inputs.get("preserveClientIp", "true") not in ("true", "false", UNKNOWN):
            yield "preserveClientIp", f"must be true or false, not {inputs['preserveClientIp']!r}"
        elif inputs.get("preserveClientIp") == "false":
            yield "preserveClientIp", "false is not modelled by the sandbox"
        yield from self._check_health(inputs.get("healthCheck", {}))

    @staticmethod
    def _check_health(check: Values) -> Problems:
        for key, (low, high) in LIMITS.items():
            value = check.get(key)
            if value is not None and known(value) and not low <= value <= high:
                yield f"healthCheck.{key}", f"must be {low} to {high}, not {value}"
        protocol, port = check.get("protocol", "TCP"), check.get("port", "traffic-port")
        if protocol not in ("HTTP", "HTTPS", "TCP", UNKNOWN):
            yield "healthCheck.protocol", f"must be HTTP, HTTPS or TCP, not {protocol!r}"
        if protocol == "TCP":
            for key in ("path", "matcher"):
                if check.get(key):
                    yield f"healthCheck.{key}", "is not for a health check of the protocol TCP"
        if port not in ("traffic-port", UNKNOWN) and not (
            port.isdigit() and 1 <= int(port) <= 65_535
        ):
            yield "healthCheck.port", f"must be traffic-port or a port, not {port!r}"
        path, matcher = check.get("path", "/"), check.get("matcher", "200")
        if path != UNKNOWN and not (path.startswith("/") and len(path) <= 1_024):
            yield "healthCheck.path", f"{path!r} must begin with / and have at most 1024 characters"
        if matcher != UNKNOWN:
            codes = [int(code) for code in re.findall(r"\d+", matcher)]
            if not re.fullmatch(CODES, matcher) or not all(200 <= code <= 599 for code in codes):
                yield "healthCheck.matcher", f"{matcher!r} must be codes of 200 to 599"
        timeout, interval = check.get("timeout", 0), check.get("interval", 300)
        if known([timeout, interval]) and timeout > interval:
            yield "healthCheck.timeout", f"{timeout} is longer than the interval, {interval}"

    def normal(self, key: str, value: Any) -> Any:
        """What is not said of a health check is chosen by AWS."""
        if key == "healthCheck" and isinstance(value, dict):
            return {**HEALTH_DEFAULTS, **value}
        return super().normal(key, value)

    @staticmethod
    def _health(check: Values) -> Values:
        wanted = {**HEALTH_DEFAULTS, **check}
        web = wanted["protocol"] != "TCP"
        return given(
            HealthCheckEnabled=True,
            HealthCheckProtocol=wanted["protocol"],
            HealthCheckPort=wanted["port"],
            HealthCheckIntervalSeconds=wanted["interval"],
            HealthCheckTimeoutSeconds=wanted.get("timeout", 6 if web else 10),
            HealthyThresholdCount=wanted["healthyThreshold"],
            UnhealthyThresholdCount=wanted["unhealthyThreshold"],
            HealthCheckPath=wanted.get("path", "/") if web else None,
            Matcher={"HttpCode": wanted.get("matcher", "200-399")} if web else None,
        )

    def create(self, inputs: Values) -> tuple[str, Values]:
        made = self.elb.create_target_group(
            Name=inputs["name"],
            Port=inputs["port"],
            Protocol=inputs["protocol"],
            TargetType=inputs["targetType"],
            VpcId=inputs["vpcId"],
            **self._health(inputs.get("healthCheck", {})),
            **self.new_tags(inputs),
        )["TargetGroups"][0]["TargetGroupArn"]
        self._set(made, inputs)
        return made, self.describe(made)

    def _set(self, arn: str, inputs: Values) -> None:
        wanted = {
            "deregistration_delay.timeout_seconds": str(inputs["deregistrationDelay"]),
            "preserve_client_ip.enabled": inputs.get("preserveClientIp", "true"),
        }
        self.elb.modify_target_group_attributes(
            TargetGroupArn=arn, Attributes=[{"Key": k, "Value": v} for k, v in wanted.items()]
        )

    def describe(self, resource_id: str) -> Values:
        [found] = self.elb.describe_target_groups(TargetGroupArns=[resource_id])["TargetGroups"]
        answer = self.elb.describe_target_group_attributes(TargetGroupArn=resource_id)
        how = attributes(answer["Attributes"])
        check = given(
            enabled=found["HealthCheckEnabled"],
            protocol=found["HealthCheckProtocol"],
            port=found["HealthCheckPort"],
            interval=found["HealthCheckIntervalSeconds"],
            timeout=found["HealthCheckTimeoutSeconds"],
            healthyThreshold=found["HealthyThresholdCount"],
            unhealthyThreshold=found["UnhealthyThresholdCount"],
            path=found.get("HealthCheckPath"),
            matcher=found.get("Matcher", {}).get("HttpCode"),
        )
        return {
            "arn": resource_id,
            "arnSuffix": resource_id.rpartition(":")[2],
            "deregistrationDelay": int(how["deregistration_delay.timeout_seconds"]),
            "healthCheck": check,
            "name": found["TargetGroupName"],
            "port": found["Port"],
            "preserveClientIp": how.get("preserve_client_ip.enabled", "true"),
            "protocol": found["Protocol"],
            "tagsAll": self.tags_of(resource_id),
            "targetType": found["TargetType"],
            "vpcId": found["VpcId"],
        }

    def read(self, it: Existing) -> Values | None:
        """Of a health check, what the program sets."""
        seen = super().read(it)
        if seen and (wanted := it.state.get("healthCheck")):
            seen["healthCheck"] = {k: seen["healthCheck"].get(k) for k in wanted}
        return seen

    def update(self, it: Existing) -> Values:
        self.elb.modify_target_group(
            TargetGroupArn=it.id, **self._health(it.inputs.get("healthCheck", {}))
        )
        self._set(it.id, it.inputs)
        self.retag_elb(it)
        return self.describe(it.id)

    def delete(self, it: Existing) -> None:
        """AWS refuses while a listener uses it, and so does moto."""
        self.elb.delete_target_group(TargetGroupArn=it.id)


HEALTH_DEFAULTS: Values = {
    "enabled": True,
    "healthyThreshold": 3,
    "interval": 30,
    "port": "traffic-port",
    "protocol": "TCP",
    "unhealthyThreshold": 3,
}


class Listener(_Balancing):
    """aws.lb.Listener that forwards TCP to one target group."""

    type = "aws:lb/listener:Listener"
    missing = "ListenerNotFound"
    replaces = frozenset({"loadBalancerArn"})
    updates = frozenset({"defaultActions", "port", "protocol", "tags"})
    computed = frozenset({"arn"})

    def check(self, inputs: Values) -> Problems:
        for key in ("port", "protocol"):
            if inputs.get(key) is None:
                yield key, "is required for a network balancer"
        if inputs.get("protocol", "TCP") not in ("TCP", UNKNOWN):
            yield "protocol", f"{inputs['protocol']} is not modelled by the sandbox"
        port = inputs.get("port", 1)
        if known(port) and not 1 <= port <= 65_535:
            yield "port", f"must be 1 to 65535, not {port}"
        actions = inputs.get("defaultActions", [])
        if actions != UNKNOWN and len(actions) != 1:
            yield "defaultActions", f"a network balancer's listener has one, not {len(actions)}"
        for index, action in enumerate(actions if isinstance(actions, list) else []):
            if action["type"] not in ("forward", UNKNOWN):
                yield f"defaultActions[{index}].type", "must be forward for a network balancer"
            if not action.get("targetGroupArn"):
                yield f"defaultActions[{index}].targetGroupArn", "is required"
            for key in sorted(action.keys() - {"type", "targetGroupArn"}):
                yield f"defaultActions[{index}].{key}", "is not modelled by the sandbox"

    @staticmethod
    def _actions(inputs: Values) -> list[Values]:
        return [
            {"Type": "forward", "TargetGroupArn": one["targetGroupArn"]}
            for one in inputs["defaultActions"]
        ]

    def create(self, inputs: Values) -> tuple[str, Values]:
        self._refuse_shared(inputs)
        made = self.elb.create_listener(
            LoadBalancerArn=inputs["loadBalancerArn"],
            Port=inputs["port"],
            Protocol=inputs["protocol"],
            DefaultActions=self._actions(inputs),
            **self.new_tags(inputs),
        )["Listeners"][0]["ListenerArn"]
        return made, self.describe(made)

    def _refuse_shared(self, inputs: Values) -> None:
        wanted = {one["targetGroupArn"] for one in inputs["defaultActions"]}
        for balancer in self.elb.describe_load_balancers()["LoadBalancers"]:
            arn = balancer["LoadBalancerArn"]
            for listener in self.elb.describe_listeners(LoadBalancerArn=arn)["Listeners"]:
                used = {one["TargetGroupArn"] for one in listener["DefaultActions"]}
                if arn != inputs["loadBalancerArn"] and used & wanted:
                    raise UserError(
                        "TargetGroupAssociationLimit: The following target groups cannot be "
                        f"associated with more than one load balancer: {', '.join(used & wanted)}"
                    )

    def describe(self, resource_id: str) -> Values:
        [found] = self.elb.describe_listeners(ListenerArns=[resource_id])["Listeners"]
        actions = [
            {"type": one["Type"], "targetGroupArn": one["TargetGroupArn"]}
            for one in found["DefaultActions"]
        ]
        return {
            "arn": resource_id,
            "defaultActions": actions,
            "loadBalancerArn": found["LoadBalancerArn"],
            "port": found["Port"],
            "protocol": found["Protocol"],
            "tagsAll": self.tags_of(resource_id),
        }

    def update(self, it: Existing) -> Values:
        self.elb.modify_listener(
            ListenerArn=it.id,
            Port=it.inputs["port"],
            Protocol=it.inputs["protocol"],
            DefaultActions=self._actions(it.inputs),
        )
        self.retag_elb(it)
        return self.describe(it.id)

    def delete(self, it: Existing) -> None:
        self.elb.delete_listener(ListenerArn=it.id)
