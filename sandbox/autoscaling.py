"""A stand-in for what EC2 Auto Scaling does, beside the embedded AWS' records of the groups.

moto keeps a group and starts machines of it; it knows no health, no activities and no instance
refresh. Here a thread of the embedded AWS starts machines, zone by zone, ends those that are not
well, lets connections drain, and does the refresh: new machines first, the old ones when those are
well, none of the old ones if they are not. The words are those of AWS' activities where AWS' are
known.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import ClientError

PACE: Final = 30
"""Warm-up and draining take this much less time than in AWS. A health check's grace does not."""

HEALTH: Final = "health.json"
"""Beside the ready file: what the balancer found of its targets. Without it all are healthy."""

GROUP_TAG: Final = "aws:autoscaling:groupName"
VERSION_TAG: Final = "aws:ec2launchtemplate:version"
ENDED: Final = ("Successful", "Failed", "Cancelled", "RollbackSuccessful", "RollbackFailed")
TEMPLATE: Final = "You must use a valid fully-formed launch template."
STOPPED: Final = "in response to an EC2 health check indicating it has been terminated or stopped"
UNHEALTHY: Final = "in response to an ELB system health check failure"
MOVED: Final = "in response to a change of the group's subnets"


@dataclass
class Refresh:
    """One instance refresh."""

    wanted: dict[str, str]
    """The launch template that the group is to have."""
    preferences: dict[str, Any]
    warmup: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "Pending"
    reason: str = ""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended: datetime | None = None
    new: set[str] = field(default_factory=set)

    def end(self, status: str) -> None:
        self.status, self.ended = status, datetime.now(UTC)


def health(folder: Path, instance: str) -> dict[str, str]:
    """What the balancer found of an instance, as ELB describes it."""
    try:
        found = json.loads((folder / HEALTH).read_text())
    except FileNotFoundError:
        return {"State": "healthy"}
    started = {"State": "initial", "Reason": "Elb.RegistrationInProgress"}
    return dict(found.get(instance, started))


class AutoScaling:
    """Brings every group as many machines as it wants."""

    def __init__(self, clients: Callable[[str], Any], folder: Path, pace: float = PACE) -> None:
        self._ec2 = clients("ec2")
        self._iam = clients("iam")
        self._folder = folder
        self._pace = pace
        self._lock = threading.RLock()

    def run(self) -> None:
        from moto.autoscaling.models import autoscaling_backends

        while True:
            for account in list(autoscaling_backends.values()):
                for backend in list(account.values()):
                    for group in list(backend.autoscaling_groups.values()):
                        try:
                            with self._lock:
                                self.step(group)
                        except Exception:  # the next group is none the worse
                            traceback.print_exc()
            time.sleep(0.2)

    def step(self, group: Any) -> None:
        """One look at a group."""
        now = time.monotonic()
        refresh = running(group)
        for one in list(group.instance_states):
            if one.leaves is not None:
                if now >= one.leaves or one.instance.state != "running":
                    self._end(group, one)
            elif fault := self._fault(group, one, now):
                new = refresh is not None and one.instance_id in refresh.new
                if refresh and new and not refresh.reason:
                    refresh.reason = f"{one.instance_id}: {self._why(one)}"
                gone = one.instance.state != "running"
                if gone or new or not group.starts_first or self._replaced(group, one):
                    self._leave(group, one, fault, gone=gone)
                else:
                    one.health_status = "Unhealthy"
        if refresh and refresh.status == "RollbackInProgress":
            self._roll_back(group, refresh)
        elif refresh:
            self._refresh(group, refresh, now)
        if not running(group):
            self._fit(group)

    # -- one machine -------------------------------------------------------------------------------

    def _fault(self, group: Any, one: Any, now: float) -> str | None:
        if one.instance.state != "running":
            return STOPPED
        young = now - one.since < group.health_check_grace_period
        if group.health_check_type == "ELB" and not young and self._state(one) == "unhealthy":
            return UNHEALTHY
        if one.instance.subnet_id not in subnets(group):
            return MOVED
        # what was found unhealthy once is replaced, and not looked at again
        return UNHEALTHY if one.health_status == "Unhealthy" else None

    def _replaced(self, group: Any, one: Any) -> bool:
        """Whether enough others are well, where the group wants them first."""
        well = [
            it
            for it in live(group)
            if it is not one
            and it.health_status == "Healthy"
            and it.instance.subnet_id in subnets(group)
            and self._state(it) == "healthy"
        ]
        return len(well) >= int(group.desired_capacity)

    def _state(self, one: Any) -> str:
        return health(self._folder, one.instance_id)["State"]

    def _why(self, one: Any) -> str:
        if one.instance.state != "running":
            return "it has been terminated or stopped"
        return health(self._folder, one.instance_id).get("Description", "Health checks failed")

    def _start(
        self, group: Any, template: dict[str, str], cause: str, beside: Iterable[Any]
    ) -> Any:
        """One more machine, in the zone that has the fewest of these; None if EC2 refuses it."""
        there = Counter(one.instance.subnet_id for one in beside)
        subnet = min(subnets(group), key=lambda one: there[one])
        activity = act(group, "Launching a new EC2 instance", cause)
        try:
            [made] = self._ec2.run_instances(
                MinCount=1,
                MaxCount=1,
                **self._arguments(template, subnet, group),
            )["Instances"]
        except ClientError as error:
            activity["StatusMessage"] = f"{error.response['Error']['Message']} Launching failed."
            finish(activity, "Failed")
            group.failed_at = time.monotonic()
            return None
        from moto.autoscaling.models import InstanceState

        instance = group.ec2_backend.get_instance(made["InstanceId"])
        instance.autoscaling_group = group
        instance.add_tags({GROUP_TAG: group.name, VERSION_TAG: template["Version"]})
        one: Any = InstanceState(instance)
        one.template, one.since, one.leaves = template, time.monotonic(), None
        for target_group in self._target_groups(group):
            target_group.register([{"Id": one.instance_id, "Port": target_group.port}])
        group.instance_states.append(one)
        activity["Description"] += f": {one.instance_id}"
        finish(activity, "Successful")
        return one

    def _arguments(self, template: dict[str, str], subnet: str, group: Any) -> dict[str, Any]:
        """A template as RunInstances takes it."""
        data = self._template(template)
        groups = data.pop("SecurityGroupIds", None)
        [card] = data.pop("NetworkInterfaces", None) or [{"DeviceIndex": 0}]
        card = {"DeleteOnTermination": True, **card, "SubnetId": subnet}
        if groups:
            card["Groups"] = groups
        for key in ("AssociatePublicIpAddress", "DeleteOnTermination"):
            if key in card:
                card[key] = card[key] in (True, "true")
        for disk in data.get("BlockDeviceMappings", ()):
            disk["Ebs"].setdefault("VolumeSize", 8)  # the image's; moto does not know it
        specifications = {one["ResourceType"]: one["Tags"] for one in data["TagSpecifications"]}
        own = [
            {"Key": tag["Key"], "Value": tag["Value"]}
            for tag in group.tags
            if tag["PropagateAtLaunch"] in (True, "true")
        ]
        if own:
            kept = [t for t in specifications.get("instance", []) if t["Key"] not in own]
            specifications["instance"] = kept + own
        data["TagSpecifications"] = [
            {"ResourceType": kind, "Tags": tags} for kind, tags in specifications.items() if tags
        ]
        return {**data, "NetworkInterfaces": [card]}

    def _template(self, template: dict[str, str]) -> dict[str, Any]:
        [found] = self._ec2.describe_launch_template_versions(
            LaunchTemplateId=template["LaunchTemplateId"], Versions=[template["Version"]]
        )["LaunchTemplateVersions"]
        data = dict(found["LaunchTemplateData"])
        data.setdefault("TagSpecifications", [])
        # of the template itself: moto adds it to what it starts
        data["TagSpecifications"] = [
            one for one in data["TagSpecifications"] if one["ResourceType"] != "launch-template"
        ]
        if data.get("UserData"):  # the SDK encodes it again
            data["UserData"] = base64.b64decode(data["UserData"])
        else:
            data.pop("UserData", None)
        return data

    def _leave(self, group: Any, one: Any, cause: str, *, gone: bool = False) -> None:
        """No new connection, and the end when the old ones had their time."""
        one.lifecycle_state, one.health_status = "Terminating", "Unhealthy" if gone else "Healthy"
        delays = [0]
        for target_group in self._target_groups(group):
            target_group.targets.pop(one.instance_id, None)
            delays.append(int(target_group.attributes["deregistration_delay.timeout_seconds"]))
        one.leaves = time.monotonic() + (0 if gone else max(delays) / self._pace)
        one.activity = act(
            group,
            f"Terminating EC2 instance: {one.instance_id}",
            f"an instance was taken out of service {cause}.",
        )
        one.activity["StatusCode"] = "WaitingForELBConnectionDraining"

    def _end(self, group: Any, one: Any) -> None:
        self._ec2.terminate_instances(InstanceIds=[one.instance_id])
        with contextlib.suppress(ValueError):
            group.instance_states.remove(one)
        finish(one.activity, "Successful")

    def _target_groups(self, group: Any) -> list[Any]:
        known = group.autoscaling_backend.elbv2_backend.target_groups
        return [known[arn] for arn in group.target_group_arns if arn in known]

    # -- how many ----------------------------------------------------------------------------------

    def _fit(self, group: Any) -> None:
        """As many as wanted; what is too many ends."""
        there, wanted = live(group), int(group.desired_capacity or 0)
        # a machine that is to be replaced is one more, as long as it is there
        wanted += min(
            sum(one.health_status == "Unhealthy" for one in there), int(group.max_size) - wanted
        )
        while len(there) > wanted:
            victim = self._victim(group, there)
            there.remove(victim)
            self._leave(
                group, victim, "in response to a difference between desired and actual capacity"
            )
        if len(there) < wanted and time.monotonic() - group.failed_at > 10:
            self._start(
                group,
                spec(group),
                "an instance was started in response to a difference between desired and actual "
                f"capacity, increasing the capacity from {len(there)} to {len(there) + 1}.",
                [one for one in there if one.health_status == "Healthy"],
            )

    @staticmethod
    def _victim(group: Any, there: list[Any]) -> Any:
        """The one that ends. What the balancer found counts only once the group has seen it."""
        if sick := [one for one in there if one.health_status == "Unhealthy"]:
            return sick[0]
        zones = Counter(one.availability_zone for one in there)
        most = max(zones.values())
        crowded = [one for one in there if zones[one.availability_zone] == most]
        if group.termination_policies == ["NewestInstance"]:
            return max(crowded, key=lambda one: one.since)
        # of another template first, then of the oldest version; AWS then draws lots
        template = spec(group)["LaunchTemplateId"]
        return min(
            crowded,
            key=lambda one: (
                one.template["LaunchTemplateId"] == template,
                int(one.template["Version"]),
                one.since,
            ),
        )

    def _refresh(self, group: Any, refresh: Refresh, now: float) -> None:
        there = live(group)
        new = [one for one in there if one.instance_id in refresh.new]
        old = [one for one in there if one.instance_id not in refresh.new]
        desired = int(group.desired_capacity)
        refresh.status = "InProgress"
        ready = [
            one
            for one in new
            if self._state(one) == "healthy" and now - one.since >= refresh.warmup / self._pace
        ]
        # one of the old for each of the new, in its zone if there is one
        for _ in range(len(ready) + len(old) - desired):
            zones = Counter(it.availability_zone for it in ready)
            zones.subtract(it.availability_zone for it in old)
            victim = max(old, key=lambda it: (zones[it.availability_zone], -it.since))
            old.remove(victim)
            self._leave(group, victim, "in response to an instance refresh")
        if not refresh.reason:
            room = math.floor(desired * int(refresh.preferences["MaxHealthyPercentage"]) / 100)
            for _ in range(min(desired - len(new), room - len(there))):
                made = self._start(
                    group,
                    refresh.wanted,
                    "an instance was launched in response to an instance refresh.",
                    new,
                )
                if made is None:
                    refresh.reason = group.activities[-1]["StatusMessage"]
                    break
                refresh.new.add(made.instance_id)
                new.append(made)
        if refresh.reason:
            refresh.reason = f"The replacement instances did not become healthy: {refresh.reason}"
            if refresh.preferences.get("AutoRollback"):
                refresh.status = "RollbackInProgress"
            else:
                refresh.end("Failed")
        elif not old and len(ready) >= desired:
            group.provided_launch_template_version = refresh.wanted["Version"]
            group.launch_template_version = refresh.wanted["Version"]
            refresh.end("Successful")

    def _roll_back(self, group: Any, refresh: Refresh) -> None:
        """What the refresh started is ended; what it ended comes back as the group has it.

        That is what was saved before the refresh: the provider saves the new template first, and
        what comes back is then as the new ones were (hashicorp/terraform-provider-aws#34189).
        """
        there = live(group)
        for one in [one for one in there if one.instance_id in refresh.new]:
            self._leave(group, one, "in response to an instance refresh rollback")
        there = live(group)
        if len(there) < int(group.desired_capacity):
            self._fit(group)
        elif all(self._state(one) == "healthy" for one in there):
            refresh.end("RollbackSuccessful")

    # -- what AWS refuses --------------------------------------------------------------------------

    def check(self, group: dict[str, Any]) -> None:
        """Sizes that fit each other, and a template that would start, if one is named."""
        low, high, desired = (int(group[key]) for key in ("min", "max", "desired"))
        if low > high:
            refuse("Max bound, {}, must be greater than or equal to min bound, {}", high, low)
        if not low <= desired <= high:
            refuse(
                "Desired capacity:{} must be between the specified min size:{} and max size:{}",
                desired,
                low,
                high,
            )
        if (template := group["template"]) is None:
            return
        try:
            data = self._template(template)
            found = self._ec2.describe_images(ImageIds=[data["ImageId"]])["Images"]
            if not found:  # moto's way to say that it was there once
                refuse(f"{TEMPLATE} The image id '[{{}}]' does not exist", data["ImageId"])
            kinds = self._ec2.describe_instance_types(InstanceTypes=[data["InstanceType"]])
            runs = kinds["InstanceTypes"][0]["ProcessorInfo"]["SupportedArchitectures"]
            if found[0]["Architecture"] not in runs:
                refuse(
                    f"{TEMPLATE} The architecture '{{}}' of the specified instance type does not "
                    "match the architecture '{}' of the specified AMI.",
                    ", ".join(runs),
                    found[0]["Architecture"],
                )
            if name := data.get("IamInstanceProfile", {}).get("Name"):
                self._iam.get_instance_profile(InstanceProfileName=name)
            if groups := data.get("SecurityGroupIds"):
                self._ec2.describe_security_groups(GroupIds=groups)
        except KeyError as error:
            refuse(f"{TEMPLATE} The launch template has no {{}}.", error.args[0])
        except ClientError as error:
            refuse(f"{TEMPLATE} {{}}", error.response["Error"]["Message"])

    def start_refresh(self, group: Any, asked: dict[str, Any]) -> str:
        """The id of a new refresh of a group."""
        from moto.autoscaling.exceptions import AutoscalingClientError

        with self._lock:
            if running(group):
                raise AutoscalingClientError(
                    "InstanceRefreshInProgress",
                    "An Instance Refresh is already in progress and blocks the execution of this "
                    "Instance Refresh.",
                )
            preferences = {"MinHealthyPercentage": 90, "MaxHealthyPercentage": 100}
            preferences |= asked.get("Preferences") or {}
            wanted = (asked.get("DesiredConfiguration") or {}).get("LaunchTemplate")
            if preferences.get("AutoRollback") and not wanted:
                refuse(
                    "The AutoRollback parameter cannot be set to true when the "
                    "DesiredConfiguration parameter is empty."
                )
            saved = spec(group)
            for one in (saved, wanted or saved):
                if preferences.get("AutoRollback") and not one["Version"].isdigit():
                    refuse(
                        "The AutoRollback parameter cannot be set to true with the launch template "
                        "version {}.",
                        one["Version"],
                    )
            if preferences["MinHealthyPercentage"] != 100:
                refuse(
                    "the sandbox models no refresh that ends a machine before the new one is "
                    "well: MinHealthyPercentage is {}",
                    preferences["MinHealthyPercentage"],
                )
            if not 100 < preferences["MaxHealthyPercentage"] <= 200:
                refuse(
                    "MaxHealthyPercentage must be above 100 and at most 200, not {}",
                    preferences["MaxHealthyPercentage"],
                )
            wanted = {key: wanted[key] for key in saved} if wanted else saved
            self.check(
                {
                    "min": group.min_size,
                    "max": group.max_size,
                    "desired": group.desired_capacity,
                    "template": wanted,
                }
            )
            warmup = preferences.get("InstanceWarmup", group.default_instance_warmup)
            if warmup is None:
                warmup = group.health_check_grace_period
            made = Refresh(wanted=wanted, preferences=preferences, warmup=float(warmup))
            self._fit(group)  # none too many, or there is no room for new ones
            group.refreshes.append(made)
            return made.id


def refuse(text: str, *values: Any) -> None:
    from moto.autoscaling.exceptions import ValidationError

    raise ValidationError(text.format(*values))


def live(group: Any) -> list[Any]:
    """The machines of a group that are not on their way out."""
    return [one for one in group.instance_states if one.leaves is None]


def subnets(group: Any) -> list[str]:
    """Where its machines are to be."""
    return str(group.vpc_zone_identifier).split(",")


def running(group: Any) -> Refresh | None:
    """The refresh that is under way."""
    refreshes = group.refreshes
    return refreshes[-1] if refreshes and refreshes[-1].status not in ENDED else None


def spec(group: Any) -> dict[str, str]:
    """The launch template that a group has on record."""
    template = group.ec2_launch_template
    return {"LaunchTemplateId": template.id, "Version": str(group.launch_template_version)}


def act(group: Any, description: str, cause: str) -> dict[str, Any]:
    """A new activity of a group."""
    now = datetime.now(UTC)
    activity = {
        "ActivityId": str(uuid.uuid4()),
        "AutoScalingGroupName": group.name,
        "Description": description,
        "Cause": f"At {now:%Y-%m-%dT%H:%M:%SZ} {cause}",
        "StartTime": now,
        "StatusCode": "InProgress",
        "Progress": 50,
        "Details": "{}",
    }
    group.activities.append(activity)
    return activity


def finish(activity: dict[str, Any], status: str) -> None:
    activity |= {"StatusCode": status, "Progress": 100, "EndTime": datetime.now(UTC)}


def mend(auto_scaling: Callable[[], AutoScaling], folder: Path) -> Iterator[tuple[Any, str, Any]]:
    """What takes the place of moto's: owner, name, and the new one."""
    from moto.autoscaling.exceptions import AutoscalingClientError
    from moto.autoscaling.models import AutoScalingBackend, FakeAutoScalingGroup, InstanceState
    from moto.autoscaling.responses import AutoScalingResponse
    from moto.core.responses import ActionResult
    from moto.elbv2.models import ELBv2Backend, FakeTargetGroup

    create, update = (
        AutoScalingBackend.create_auto_scaling_group,
        AutoScalingBackend.update_auto_scaling_group,
    )
    delete = AutoScalingBackend.delete_auto_scaling_group

    def set_desired_capacity(self: Any, wanted: int | None) -> None:
        """A record; the thread does the rest."""
        self.desired_capacity = self.min_size if wanted is None else wanted

    def asked(backend: Any, group: Any, given: dict[str, Any]) -> dict[str, Any]:
        def value(key: str, attribute: str) -> Any:
            return getattr(group, attribute, None) if given.get(key) is None else given[key]

        template, found = given.get("launch_template") or {}, None
        if template:
            if name := template.get("LaunchTemplateName"):
                template_id = backend.ec2_backend.get_launch_template_by_name(name).id
            else:
                template_id = template["LaunchTemplateId"]
            version = template.get("Version") or "$Default"
            found = {"LaunchTemplateId": template_id, "Version": version}
        low = value("min_size", "min_size")
        return {
            "min": low,
            "max": value("max_size", "max_size"),
            "desired": low if (d := value("desired_capacity", "desired_capacity")) is None else d,
            "template": found,
        }

    def create_group(self: Any, name: str, **given: Any) -> Any:
        if name in self.autoscaling_groups:
            raise AutoscalingClientError(
                "AlreadyExists",
                "AutoScalingGroup by this name already exists - A group with the name "
                f"{name} already exists",
            )
        auto_scaling().check(asked(self, None, given))
        return create(self, name=name, **given)

    def update_group(self: Any, name: str, **given: Any) -> Any:
        if name in self.autoscaling_groups:
            auto_scaling().check(asked(self, self.autoscaling_groups[name], given))
        return update(self, name=name, **given)

    begin = FakeAutoScalingGroup.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        self.activities, self.refreshes, self.failed_at = [], [], 0.0
        self.default_instance_warmup, self.starts_first = None, False
        begin(self, *arguments, **options)
        # AWS' default is moto's for 0, too
        self.health_check_grace_period = options["health_check_period"]

    def delete_group(self: Any, group_name: str) -> None:
        group = self.autoscaling_groups.get(group_name)
        if group and group.instance_states:
            raise AutoscalingClientError(
                "ResourceInUse",
                "You cannot delete an AutoScalingGroup while there are instances or pending Spot "
                "instance request(s) still in the group.",
            )
        delete(self, group_name)

    response_create = AutoScalingResponse.create_auto_scaling_group
    response_update = AutoScalingResponse.update_auto_scaling_group

    def keep_more(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """moto forgets it."""

        def respond(self: Any) -> Any:
            answer = original(self)
            group = self.autoscaling_backend.autoscaling_groups[
                self._get_param("AutoScalingGroupName")
            ]
            if (warmup := self._get_int_param("DefaultInstanceWarmup")) is not None:
                group.default_instance_warmup = None if warmup == -1 else warmup
            if policy := self._get_param("InstanceMaintenancePolicy"):
                group.starts_first = int(policy["MaxHealthyPercentage"]) > 100
            if policies := self._get_param("TerminationPolicies"):
                group.termination_policies = policies
            return answer

        return respond

    def named(self: Any) -> Any:
        name = self._get_param("AutoScalingGroupName")
        groups = self.autoscaling_backend.autoscaling_groups
        if name not in groups:
            refuse("AutoScalingGroup name not found - AutoScalingGroup '{}' not found", name)
        return groups[name]

    def describe_activities(self: Any) -> Any:
        groups = self.autoscaling_backend.autoscaling_groups
        name = self._get_param("AutoScalingGroupName")
        wanted = [groups[name]] if name in groups else [] if name else list(groups.values())
        found = [activity for group in wanted for activity in reversed(group.activities)]
        return ActionResult({"Activities": found})

    def start_refresh(self: Any) -> Any:
        made = auto_scaling().start_refresh(named(self), self._get_params())
        return ActionResult({"InstanceRefreshId": made})

    def cancel_refresh(self: Any) -> Any:
        refresh = running(named(self))
        if refresh is None:
            raise AutoscalingClientError(
                "ActiveInstanceRefreshNotFound",
                "No in progress or pending Instance Refresh found for Auto Scaling group "
                f"{self._get_param('AutoScalingGroupName')}",
            )
        refresh.end("Cancelled")
        return ActionResult({"InstanceRefreshId": refresh.id})

    def describe_refreshes(self: Any) -> Any:
        group = named(self)
        wanted = self._get_param("InstanceRefreshIds", [])
        found = [
            {
                "InstanceRefreshId": one.id,
                "AutoScalingGroupName": group.name,
                "Status": one.status,
                "StatusReason": one.reason or None,
                "StartTime": one.began,
                "EndTime": one.ended,
                "PercentageComplete": 100 if one.status == "Successful" else 0,
                "Preferences": one.preferences,
                "DesiredConfiguration": {"LaunchTemplate": one.wanted},
            }
            for one in reversed(group.refreshes)
            if not wanted or one.id in wanted
        ]
        return ActionResult({"InstanceRefreshes": found})

    template = property(
        lambda self: {
            **self.template,
            "LaunchTemplateName": self.auto_scaling_group.ec2_launch_template.name,
        }
    )

    health_for = FakeTargetGroup.health_for

    def target_health(self: Any, target: dict[str, Any], backend: Any) -> Any:
        """As the balancer found it."""
        told = health_for(self, target, backend)
        if target["Id"] in self.targets:
            found = health(folder, target["Id"])
            told.status, told.reason = found["State"], found.get("Reason")
            told.description = found.get("Description")
        return told

    create_balancer, drop_balancer = (
        ELBv2Backend.create_load_balancer,
        ELBv2Backend.delete_load_balancer,
    )

    def make_balancer(self: Any, **given: Any) -> Any:
        """A Network Load Balancer has its own form of name, and an address in each subnet."""
        made: Any = create_balancer(self, **given)
        if made.type == "network":
            del self.load_balancers[made.arn]
            made.arn = made.arn.replace("/app/", "/net/")
            self.load_balancers[made.arn] = made
            self.tagging_service.tag_resource(made.arn, given.get("tags") or [])
            made.dns_name = (
                f"{made.name}-{made.arn.rpartition('/')[2]}.elb.{self.region_name}.amazonaws.com"
            )
            made.state = "active"
            place(self, made)
        return made

    def owner(arn: str) -> str:
        """What the interfaces of a balancer's addresses are called."""
        return f"ELB net/{arn.partition('/net/')[2]}"

    def place(self: Any, made: Any) -> None:
        """An address in each subnet that has none yet."""
        own = owner(made.arn)
        has = {it.subnet.id for it in self.ec2_backend.enis.values() if it.description == own}
        for subnet in made.subnets:
            if subnet.id not in has:
                self.ec2_backend.create_network_interface(
                    subnet,
                    subnet.get_available_subnet_ip(instance=made),
                    group_ids=made.security_groups or None,
                    description=own,
                )

    set_subnets = ELBv2Backend.set_subnets

    def another_subnet(self: Any, arn: str, *given: Any, **named: Any) -> Any:
        """AWS takes none away from a Network Load Balancer; the provider does not ask for it."""
        answer = set_subnets(self, arn, *given, **named)
        place(self, self.load_balancers[arn])
        return answer

    def drop(self: Any, arn: str) -> None:
        """Its addresses go with it."""
        own = owner(arn)
        for card in [it for it in self.ec2_backend.enis.values() if it.description == own]:
            card.subnet.del_subnet_ip(card.private_ip_address)
            self.ec2_backend.delete_network_interface(card.id)
        drop_balancer(self, arn)

    modify = ELBv2Backend.modify_target_group

    def modify_target_group(self: Any, arn: str, *rest: Any, **given: Any) -> Any:
        """moto keeps a matcher of HTTP target groups only; one of TCP may be asked over HTTPS."""
        made = modify(self, arn, *rest, **given)
        if given.get("http_codes"):
            made.matcher = {"HttpCode": given["http_codes"]}
        return made

    yield FakeAutoScalingGroup, "__init__", init
    yield FakeAutoScalingGroup, "set_desired_capacity", set_desired_capacity
    yield AutoScalingBackend, "create_auto_scaling_group", create_group
    yield AutoScalingBackend, "update_auto_scaling_group", update_group
    yield AutoScalingBackend, "delete_auto_scaling_group", delete_group
    yield AutoScalingBackend, "notify_terminate_instances", lambda *_: None
    yield AutoScalingBackend, "update_attached_target_groups", lambda *_: None
    yield AutoScalingBackend, "update_attached_elbs", lambda *_: None
    yield InstanceState, "launch_template", template
    for name, method in {
        "create_auto_scaling_group": keep_more(response_create),
        "update_auto_scaling_group": keep_more(response_update),
        "describe_scaling_activities": describe_activities,
        "start_instance_refresh": start_refresh,
        "cancel_instance_refresh": cancel_refresh,
        "describe_instance_refreshes": describe_refreshes,
    }.items():
        yield AutoScalingResponse, name, method
    yield FakeTargetGroup, "health_for", target_health
    yield ELBv2Backend, "create_load_balancer", make_balancer
    yield ELBv2Backend, "set_subnets", another_subnet
    yield ELBv2Backend, "delete_load_balancer", drop
    yield ELBv2Backend, "modify_target_group", modify_target_group
