"""Auto Scaling groups of the embedded AWS."""

import time
from datetime import UTC, datetime
from typing import Any, ClassVar

from pulumi.runtime.rpc import UNKNOWN

from sandbox.providers.aws.kind import AwsKind, check_name, given, pascal
from sandbox.providers.base import Existing, Problems, UnreadyError, UserError, Values, known

PREFERENCES = frozenset(
    {"autoRollback", "instanceWarmup", "maxHealthyPercentage", "minHealthyPercentage"}
)

DEFAULT = ["Default"]
"""The termination policies of a group that names none."""


def now() -> datetime:
    """As AWS tells of a moment: in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


class Group(AwsKind):
    """aws.autoscaling.Group of a launch template, behind target groups."""

    type = "aws:autoscaling/group:Group"
    missing = "ValidationError"
    replaces = frozenset({"name"})
    updates = frozenset(
        {"availabilityZoneDistribution", "defaultInstanceWarmup", "desiredCapacity"}
        | {"forceDelete", "healthCheckGracePeriod", "instanceMaintenancePolicy", "minElbCapacity"}
        | {"healthCheckType", "instanceRefresh", "launchTemplate", "maxSize", "minSize", "tags"}
        | {"targetGroupArns", "terminationPolicies", "vpcZoneIdentifiers"}
        | {"waitForCapacityTimeout", "waitForElbCapacity"}
    )
    computed = frozenset(
        {"arn", "availabilityZones", "desiredCapacity", "healthCheckType", "vpcZoneIdentifiers"}
    )
    sets = frozenset({"targetGroupArns", "vpcZoneIdentifiers"})
    defaults: ClassVar[Values] = {
        "forceDelete": False,
        "healthCheckGracePeriod": 300,
        "waitForCapacityTimeout": "10m",
    }
    autoname = "name"

    @property
    def scaling(self) -> Any:
        return self.session.client("autoscaling")

    def derive(self, _: Values) -> Values | None:
        """Its tags are a list of their own, and default tags do not reach it."""
        return None

    def check(self, inputs: Values) -> Problems:
        yield from check_name(inputs["name"], 255, r"[\w .=,@/+-]+")
        low, high = inputs["minSize"], inputs["maxSize"]
        wanted = inputs.get("desiredCapacity", low)
        if known([low, high, wanted]) and not low <= wanted <= high:
            yield "desiredCapacity", f"{wanted} must be between minSize, {low}, and maxSize, {high}"
        if inputs.get("healthCheckType", "EC2") not in ("EC2", "ELB", UNKNOWN):
            yield "healthCheckType", f"must be EC2 or ELB, not {inputs['healthCheckType']!r}"
        template = inputs.get("launchTemplate")
        if template is None:
            yield "launchTemplate", "is required (nothing else is modelled by the sandbox)"
        elif ("id" in template) == ("name" in template):
            yield "launchTemplate", "must have one of id and name"
        if not inputs.get("vpcZoneIdentifiers"):
            yield "vpcZoneIdentifiers", "is required: there is no default VPC"
        timeout = inputs["waitForCapacityTimeout"]
        if timeout != UNKNOWN and (not timeout.endswith(("s", "m", "h")) and timeout != "0"):
            yield "waitForCapacityTimeout", f"{timeout!r} is no duration"
        spread = inputs.get("availabilityZoneDistribution", {})
        strategy = spread.get("capacityDistributionStrategy", "balanced-only")
        if strategy not in ("balanced-best-effort", "balanced-only", UNKNOWN):
            yield (
                "availabilityZoneDistribution.capacityDistributionStrategy",
                f"must be balanced-best-effort or balanced-only, not {strategy!r}",
            )
        order = inputs.get("terminationPolicies", DEFAULT)
        if known(order) and order not in (DEFAULT, ["NewestInstance"]):
            yield "terminationPolicies", f"{order} is not modelled by the sandbox"
        policy = inputs.get("instanceMaintenancePolicy")
        if policy is not None:
            yield from self._check_percentages("instanceMaintenancePolicy", policy)
        refresh = inputs.get("instanceRefresh")
        if refresh is not None:
            yield from self._check_refresh(refresh, template or {})

    @staticmethod
    def _check_refresh(refresh: Values, template: Values) -> Problems:
        path = "instanceRefresh"
        if refresh["strategy"] not in ("Rolling", UNKNOWN):
            yield f"{path}.strategy", f"must be Rolling, not {refresh['strategy']!r}"
        if refresh.get("triggers"):
            yield f"{path}.triggers", "is not modelled by the sandbox"
        preferences = refresh.get("preferences", {})
        path += ".preferences"
        for key in sorted(preferences.keys() - PREFERENCES):
            yield f"{path}.{key}", "is not modelled by the sandbox"
        yield from Group._check_percentages(path, preferences)
        version = template.get("version", "$Default")
        if preferences.get("autoRollback") and str(version).startswith("$"):
            yield f"{path}.autoRollback", f"needs a numbered version of the template, not {version}"
        warmup = preferences.get("instanceWarmup", "0")
        if warmup != UNKNOWN and not warmup.isdigit():
            yield f"{path}.instanceWarmup", f"{warmup!r} is no number of seconds"

    @staticmethod
    def _check_percentages(path: str, given: Values) -> Problems:
        low: Any = given.get("minHealthyPercentage")
        high: Any = given.get("maxHealthyPercentage")
        for key, value, allowed in (("min", low, (0, 100)), ("max", high, (100, 200))):
            if value is not None and known(value) and not allowed[0] <= value <= allowed[1]:
                limits = " to ".join(map(str, allowed))
                yield f"{path}.{key}HealthyPercentage", f"must be {limits}, not {value}"
        if high is not None and low is None:
            yield f"{path}.minHealthyPercentage", "is required beside maxHealthyPercentage"
        elif None not in (low, high) and known([low, high]) and high - low > 100:
            yield f"{path}.maxHealthyPercentage", "may be at most 100 above minHealthyPercentage"

    @staticmethod
    def _template(inputs: Values) -> Values:
        template = inputs["launchTemplate"]
        return given(
            LaunchTemplateId=template.get("id"),
            LaunchTemplateName=template.get("name"),
            Version=template.get("version", "$Default"),
        )

    @staticmethod
    def _tags(name: str, inputs: Values) -> list[Values]:
        return [
            {"ResourceId": name, "ResourceType": "auto-scaling-group", **pascal(tag)}
            for tag in inputs.get("tags", [])
        ]

    def _settings(self, inputs: Values) -> Values:
        policy = inputs.get("instanceMaintenancePolicy")
        spread = inputs.get("availabilityZoneDistribution")
        return given(
            AvailabilityZoneDistribution=spread and pascal(spread),
            InstanceMaintenancePolicy=policy and pascal(policy),
            MinSize=inputs["minSize"],
            MaxSize=inputs["maxSize"],
            DesiredCapacity=inputs.get("desiredCapacity"),
            DefaultInstanceWarmup=inputs.get("defaultInstanceWarmup"),
            HealthCheckGracePeriod=inputs["healthCheckGracePeriod"],
            HealthCheckType=inputs.get("healthCheckType", "EC2"),
            LaunchTemplate=self._template(inputs),
            TerminationPolicies=inputs.get("terminationPolicies", DEFAULT),
            VPCZoneIdentifier=",".join(inputs["vpcZoneIdentifiers"]),
        )

    def create(self, inputs: Values) -> tuple[str, Values]:
        name, began = inputs["name"], now()
        self.scaling.create_auto_scaling_group(
            AutoScalingGroupName=name,
            **self._settings(inputs),
            **given(TargetGroupARNs=inputs.get("targetGroupArns")),
            Tags=self._tags(name, inputs),
        )
        self._wait_for_capacity(name, inputs, began)
        return name, self.describe(name) or {}

    def _wait_for_capacity(
        self, name: str, inputs: Values, began: datetime, *, updated: bool = False, overlap: int = 0
    ) -> None:
        """As the provider does, in its words: for enough machines; after an update, for so many.

        `overlap`: for how many of AWS' seconds a refresh keeps more. Here they are shorter, and
        whoever waits less than these waits in vain.
        """
        timeout = inputs["waitForCapacityTimeout"]
        units = {"s": 1, "m": 60, "h": 3_600}
        seconds = 0 if timeout == "0" else int(timeout[:-1]) * units[timeout[-1]]
        deadline = time.monotonic() + seconds
        size: Any = inputs.get("desiredCapacity", inputs["minSize"])
        behind: Any = inputs.get("waitForElbCapacity", 0)
        if not behind and not updated:
            behind = inputs.get("minElbCapacity", 0)
        failed = f"waiting for Auto Scaling Group ({name}) capacity satisfied:"
        while seconds:
            answer = self.scaling.describe_scaling_activities(AutoScalingGroupName=name)
            for one in answer["Activities"]:
                if one["StatusCode"] == "Failed" and one["StartTime"] >= began:
                    raise UnreadyError(
                        f"{failed} scaling activity ({one['ActivityId']}): Failed: "
                        f"{one['StatusMessage']}",
                        name,
                    )
            there, healthy = self._capacity(name)
            missed = [
                f"want {'exactly' if updated else 'at least'} {want} healthy instance(s) {where}, "
                f"have {have}"
                for want, have, where in (
                    (size, there, "in Auto Scaling Group"),
                    (behind, healthy, "registered to Load Balancer"),
                )
                if have < want or (updated and have > want > 0)
            ]
            in_vain, over = overlap >= seconds, time.monotonic() > deadline
            if not missed and (over or not in_vain):
                return
            if missed and (over or (in_vain and there > size)):
                raise UnreadyError(
                    f"{failed} timeout while waiting for state to become 'ok' (last state: "
                    f"'{missed[0]}', timeout: {timeout})",
                    name,
                )
            time.sleep(0.2)

    def _capacity(self, name: str) -> tuple[int, int]:
        """The machines in service, and those of which no target group knows anything bad."""
        found = self._found(name)
        there = [
            one["InstanceId"]
            for one in found["Instances"]
            if (one["HealthStatus"], one["LifecycleState"]) == ("Healthy", "InService")
        ]
        bad = {
            one["Target"]["Id"]
            for arn in found["TargetGroupARNs"]
            for one in self.session.client("elbv2").describe_target_health(TargetGroupArn=arn)[
                "TargetHealthDescriptions"
            ]
            if one["TargetHealth"]["State"] != "healthy"
        }
        return len(there), len(set(there) - bad)

    def _found(self, name: str) -> Values:
        answer = self.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])
        return dict(next(iter(answer["AutoScalingGroups"]), {}))

    def describe(self, resource_id: str) -> Values | None:
        found = self._found(resource_id)
        if not found:
            return None
        template = found["LaunchTemplate"]
        return {
            "arn": found["AutoScalingGroupARN"],
            "availabilityZones": sorted(found["AvailabilityZones"]),
            "defaultInstanceWarmup": found.get("DefaultInstanceWarmup"),
            "desiredCapacity": found["DesiredCapacity"],
            "healthCheckGracePeriod": found["HealthCheckGracePeriod"],
            "healthCheckType": found["HealthCheckType"],
            "launchTemplate": {
                "id": template["LaunchTemplateId"],
                "name": template["LaunchTemplateName"],
                "version": template["Version"],
            },
            "maxSize": found["MaxSize"],
            "minSize": found["MinSize"],
            "name": resource_id,
            "tags": sorted(
                (
                    {
                        "key": t["Key"],
                        "value": t["Value"],
                        "propagateAtLaunch": t["PropagateAtLaunch"],
                    }
                    for t in found["Tags"]
                ),
                key=lambda tag: str(tag["key"]),
            ),
            "targetGroupArns": sorted(found["TargetGroupARNs"]),
            "terminationPolicies": None if (t := found["TerminationPolicies"]) == DEFAULT else t,
            "vpcZoneIdentifiers": sorted(found["VPCZoneIdentifier"].split(",")),
        }

    def normal(self, key: str, value: Any) -> Any:
        """AWS tells a template's id and its name; tags have no order."""
        if key == "tags" and isinstance(value, list):
            return sorted(value, key=lambda tag: str(tag["key"]))
        if key == "launchTemplate" and isinstance(value, dict):
            return {k: v for k, v in value.items() if k != "name" or "id" not in value}
        return super().normal(key, value)

    def read(self, it: Existing) -> Values | None:
        """Of a template, what the program sets."""
        seen = super().read(it)
        if seen and (wanted := it.state.get("launchTemplate")):
            seen["launchTemplate"] = {k: seen["launchTemplate"][k] for k in wanted}
        return seen

    def update(self, it: Existing) -> Values:
        """The group first, then the machines if its template is another: the provider's order.

        Only who wants another number of machines waits for them.
        """
        old, new, began = it.state, it.inputs, now()
        self.scaling.update_auto_scaling_group(AutoScalingGroupName=it.id, **self._settings(new))
        keys = {tag["key"] for tag in new.get("tags", [])}
        gone = [tag for tag in old.get("tags", []) if tag["key"] not in keys]
        if gone:
            self.scaling.delete_tags(Tags=self._tags(it.id, {"tags": gone}))
        if keys:
            self.scaling.create_or_update_tags(Tags=self._tags(it.id, new))
        was, is_to_be = (set(one.get("targetGroupArns", [])) for one in (old, new))
        for name, arns in (("attach", is_to_be - was), ("detach", was - is_to_be)):
            if arns:
                call = getattr(self.scaling, f"{name}_load_balancer_target_groups")
                call(AutoScalingGroupName=it.id, TargetGroupARNs=sorted(arns))
        overlap = 0
        if "instanceRefresh" in new and (
            self.normal("launchTemplate", old["launchTemplate"])
            != self.normal("launchTemplate", new["launchTemplate"])
        ):
            self._refresh(it)
            overlap = new.get("defaultInstanceWarmup") or new["healthCheckGracePeriod"]
        if any(old.get(key) != new.get(key) for key in ("minSize", "desiredCapacity")):
            self._wait_for_capacity(it.id, new, began, updated=True, overlap=overlap)
        return self.describe(it.id) or {}

    def _refresh(self, it: Existing) -> None:
        """Not waited for; one that is under way is cancelled."""
        refresh = it.inputs["instanceRefresh"]
        preferences = pascal(refresh.get("preferences", {}))
        if "InstanceWarmup" in preferences:
            preferences["InstanceWarmup"] = int(preferences["InstanceWarmup"])
        wanted = {"LaunchTemplate": self._template(it.inputs)}
        asked = {
            "AutoScalingGroupName": it.id,
            "Strategy": refresh["strategy"],
            "Preferences": preferences,
            **({"DesiredConfiguration": wanted} if preferences.get("AutoRollback") else {}),
        }
        faults = self.scaling.exceptions
        try:
            self.scaling.start_instance_refresh(**asked)
        except faults.InstanceRefreshInProgressFault:
            self.scaling.cancel_instance_refresh(AutoScalingGroupName=it.id)
            self.scaling.start_instance_refresh(**asked)

    def delete(self, it: Existing) -> None:
        """Its machines first, and their connections before them."""
        if not self._found(it.id):
            return
        self.scaling.update_auto_scaling_group(
            AutoScalingGroupName=it.id, MinSize=0, MaxSize=0, DesiredCapacity=0
        )
        deadline = time.monotonic() + 300
        while self._found(it.id)["Instances"]:
            if time.monotonic() > deadline:
                raise UserError(f"waiting for Auto Scaling Group ({it.id}) drain: timeout")
            time.sleep(0.2)
        self.scaling.delete_auto_scaling_group(AutoScalingGroupName=it.id)
