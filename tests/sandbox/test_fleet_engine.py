"""A fleet under the real engine, and what the stand-in for Auto Scaling does with its group."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sandbox import aws
from sandbox.autoscaling import HEALTH
from sandbox.engine import Engine, ProgramError
from sandbox.processes import wait
from tests.sandbox.test_engine import changed, inventory

GROUP = "aws:autoscaling/group:Group"
TEMPLATE = "aws:ec2/launchTemplate:LaunchTemplate"
FAST = 1_000
"""Auto Scaling's warm-up and draining take this much less time."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A stack of two subnets, in zones of their own; nothing is deployed."""
    folder = tmp_path_factory.mktemp("fleet")
    process, account = aws.start(
        folder, region=aws.REGION, vpc_cidr="10.20.0.0/16", subnet_cidr="10.20.1.0/24", pace=FAST
    )
    try:
        made = Engine(folder, account)
        made.configure(
            {
                "aws:region": account.region,
                "subnetIds": [account.subnet_id, account.another_subnet("10.20.9.0/24")],
                "prometheusCidrs": ["10.20.2.0/24"],
                "apiSecurityGroupId": account.api_security_group_id,
                "instanceType": "t3.micro",
                "grafana": {"enabled": False},
            }
        )
        made.set_secret("adminToken", "engine-test-token")
        yield made
    finally:
        process.terminate()
        process.wait(20)


@dataclass
class Fleet:
    """A deployed stack, and its group as AWS tells of it."""

    engine: Engine

    @property
    def account(self) -> aws.Account:
        return aws.Account.read(self.engine.backend.parent / "aws.json")

    @property
    def scaling(self) -> Any:
        return self.account.client("autoscaling")

    @property
    def name(self) -> str:
        return str(self.engine.outputs()["autoscalingGroupName"])

    @property
    def group(self) -> dict[str, Any]:
        found = self.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])
        return dict(found["AutoScalingGroups"][0])

    def there(self) -> dict[str, str]:
        """Machine → zone, of those that stay."""
        return {
            it["InstanceId"]: it["AvailabilityZone"]
            for it in self.group["Instances"]
            if it["LifecycleState"] == "InService"
        }

    def refreshes(self) -> list[dict[str, Any]]:
        found = self.scaling.describe_instance_refreshes(AutoScalingGroupName=self.name)
        return list(found["InstanceRefreshes"])

    def activities(self) -> str:
        found = self.scaling.describe_scaling_activities(AutoScalingGroupName=self.name)
        return "\n".join(f"{it['Description']} {it['Cause']}" for it in found["Activities"])

    def tell(self, **states: str) -> None:
        """What a balancer would have found: instance → state; of all others nothing yet."""
        file = self.engine.backend.parent / HEALTH
        told = {key: {"State": it, "Description": f"is {it}"} for key, it in states.items()}
        file.with_suffix(".part").write_text(json.dumps(told))
        file.with_suffix(".part").replace(file)

    def all_well(self) -> None:
        (self.engine.backend.parent / HEALTH).unlink(missing_ok=True)

    def grace(self, seconds: int) -> None:
        self.scaling.update_auto_scaling_group(
            AutoScalingGroupName=self.name, HealthCheckGracePeriod=seconds
        )

    def settled(self, size: int = 2) -> bool:
        refreshes = self.refreshes()
        busy = refreshes and refreshes[0]["Status"] in ("Pending", "InProgress")
        return not busy and len(self.group["Instances"]) == len(self.there()) == size


@pytest.fixture(scope="module")
def fleet(engine: Engine) -> Iterator[Fleet]:
    """Deployed as the first of these tests leaves it."""
    engine.up()
    made = Fleet(engine)
    yield made
    made.all_well()
    engine.destroy()
    left = {k: v for k, v in inventory(made.account).items() if v}
    assert left == {}
    elb = made.account.client("elbv2")
    assert elb.describe_load_balancers()["LoadBalancers"] == []
    assert elb.describe_target_groups()["TargetGroups"] == []
    assert made.scaling.describe_auto_scaling_groups()["AutoScalingGroups"] == []
    assert made.account.client("ec2").describe_launch_templates()["LaunchTemplates"] == []


def test_a_fleet_is_deployed_and_changed(engine: Engine) -> None:
    assert set(engine.preview()) == {"create"}
    assert set(engine.up()) == {"create"}
    fleet = Fleet(engine)
    assert sorted(fleet.there().values()) == [f"{aws.REGION}a", f"{aws.REGION}b"]
    assert all(inventory(fleet.account).values())
    assert set(engine.preview()) == {"same"}
    assert set(engine.up(refresh=True)) == {"same"}
    first = fleet.there()

    # what the sync brings
    engine.configure({"prometheusCidrs": ["10.20.2.0/24", "10.20.3.0/24"]})
    assert not changed(engine) & {GROUP, TEMPLATE}
    engine.up()
    assert fleet.there() == first

    # what the machines are made of: a new version, and other machines of it in the same zones
    engine.configure({"syncInterval": 30})
    assert changed(engine) >= {GROUP, TEMPLATE}
    for settings in ({"syncInterval": 30}, {"server": "apache", "amiId": aws.BAKED["x86_64"]}):
        before = fleet.there()
        engine.configure(settings)
        assert "create" not in engine.up(), settings
        wait(fleet.settled, "the refresh to end")
        assert fleet.refreshes()[0]["Status"] == "Successful", fleet.refreshes()[0]
        assert not set(fleet.there()) & set(before)
        assert sorted(fleet.there().values()) == sorted(before.values())
    assert set(engine.preview()) == {"same"}


def test_new_machines_that_are_never_well_leave_the_old_ones_alone(fleet: Fleet) -> None:
    wait(fleet.settled, "two machines")
    old = fleet.there()
    fleet.tell(**dict.fromkeys(old, "healthy"))
    fleet.engine.configure({"syncInterval": 31})
    fleet.engine.up()
    wait(lambda: len(fleet.there()) == 4, "new machines beside the old")
    new = fleet.there().keys() - old.keys()
    # nobody has found anything of them yet: they are waited for
    assert fleet.refreshes()[0]["Status"] == "InProgress"
    fleet.tell(**dict.fromkeys(old, "healthy"), **dict.fromkeys(new, "unhealthy"))
    assert fleet.there().keys() >= old.keys()
    fleet.grace(0)
    wait(lambda: fleet.refreshes()[0]["Status"] == "Failed", "the refresh to fail")
    assert "is unhealthy" in fleet.refreshes()[0]["StatusReason"]
    wait(fleet.settled, "the new ones to be gone")
    assert fleet.there() == old
    # another version heals it
    fleet.all_well()
    fleet.engine.configure({"syncInterval": 32})
    fleet.engine.up()
    wait(fleet.settled, "the refresh to end")
    assert fleet.refreshes()[0]["Status"] == "Successful"
    assert not set(fleet.there()) & set(old)


def test_undoing_a_change_leaves_the_machines_that_serve_alone(fleet: Fleet) -> None:
    """Within the grace the group takes any machine for well, also one that never serves."""
    wait(fleet.settled, "two machines")
    fleet.grace(600)
    old = fleet.there()

    def broken(interval: int) -> set[str]:
        fleet.tell(**dict.fromkeys(old, "healthy"))
        fleet.engine.configure({"syncInterval": interval})
        fleet.engine.up()
        wait(lambda: len(fleet.there()) == 4, "new machines beside the old")
        new = fleet.there().keys() - old.keys()
        fleet.tell(**dict.fromkeys(old, "healthy"), **dict.fromkeys(new, "unhealthy"))
        return new

    broken(33)
    fleet.scaling.cancel_instance_refresh(AutoScalingGroupName=fleet.name)
    wait(fleet.settled, "the new ones to be gone")
    assert fleet.there() == old

    new = broken(34)
    fleet.engine.configure({"syncInterval": 32})
    fleet.engine.up()
    assert [it["Status"] for it in fleet.refreshes()[:2]] == ["InProgress", "Cancelled"]
    wait(
        lambda: len(fleet.there()) == 4 and not fleet.there().keys() & new, "others in their place"
    )
    assert fleet.there().keys() >= old.keys()
    fleet.all_well()
    wait(fleet.settled, "the refresh to end")
    assert fleet.refreshes()[0]["Status"] == "Successful"
    assert not set(fleet.there()) & set(old)


def test_by_default_the_machines_of_the_oldest_version_end_first(fleet: Fleet) -> None:
    """Why the group has another policy."""
    wait(fleet.settled, "two machines")
    old = fleet.there()
    fleet.tell(**dict.fromkeys(old, "healthy"))
    fleet.engine.configure({"syncInterval": 35})
    fleet.engine.up()
    wait(lambda: len(fleet.there()) == 4, "new machines beside the old")
    new = {it: zone for it, zone in fleet.there().items() if it not in old}
    fleet.scaling.update_auto_scaling_group(
        AutoScalingGroupName=fleet.name, TerminationPolicies=["Default"]
    )
    fleet.scaling.cancel_instance_refresh(AutoScalingGroupName=fleet.name)
    wait(fleet.settled, "two of them to be gone")
    assert fleet.there() == new
    # somebody else's hand is seen and undone
    fleet.engine.up(refresh=True)
    assert fleet.group["TerminationPolicies"] == ["NewestInstance"]
    fleet.all_well()
    wait(fleet.settled, "two machines")


def test_a_machine_that_is_ended_or_unwell_is_replaced_in_its_zone(fleet: Fleet) -> None:
    wait(fleet.settled, "two machines")
    fleet.grace(0)
    (killed, zone), (other, _) = sorted(fleet.there().items())
    fleet.account.client("ec2").stop_instances(InstanceIds=[killed])
    wait(lambda: killed not in fleet.there() and fleet.settled(), "another machine")
    assert other in fleet.there()
    assert zone in fleet.there().values()
    assert "EC2 health check indicating it has been terminated or stopped" in fleet.activities()

    # one that answers wrongly stays until another is well
    old = fleet.there()
    sick, well = sorted(old)
    fleet.tell(**{sick: "unhealthy", well: "healthy"})
    wait(lambda: len(fleet.there()) == 3, "another machine beside it")
    [new] = fleet.there().keys() - old.keys()
    assert fleet.there()[new] == old[sick]
    fleet.tell(**{sick: "unhealthy", well: "healthy", new: "healthy"})
    wait(fleet.settled, "the old one to be gone")
    assert fleet.there().keys() == {well, new}
    assert "ELB system health check failure" in fleet.activities()
    fleet.all_well()


def test_what_auto_scaling_refuses(fleet: Fleet) -> None:
    wait(fleet.settled, "two machines")
    group, scaling = fleet.group, fleet.scaling
    name = {"AutoScalingGroupName": group["AutoScalingGroupName"]}
    template = {
        "LaunchTemplateId": group["LaunchTemplate"]["LaunchTemplateId"],
        "Version": group["LaunchTemplate"]["Version"],
    }
    sizes = {"MinSize": 1, "MaxSize": 2}
    more = {**sizes, "LaunchTemplate": template, "VPCZoneIdentifier": group["VPCZoneIdentifier"]}
    rolling = {"MinHealthyPercentage": 100, "MaxHealthyPercentage": 200}
    ec2 = fleet.account.client("ec2")
    # nobody looks at what a template names before a group wants it
    broken = {
        **template,
        "Version": str(
            ec2.create_launch_template_version(
                LaunchTemplateId=template["LaunchTemplateId"],
                LaunchTemplateData={"ImageId": "ami-00000000", "InstanceType": "t3.micro"},
            )["LaunchTemplateVersion"]["VersionNumber"]
        ),
    }
    for call, asked, code, words in (
        (
            "update_auto_scaling_group",
            {**name, "LaunchTemplate": broken},
            "ValidationError",
            "fully-formed launch template.*ami-00000000.*not exist",
        ),
        (
            "start_instance_refresh",
            {
                **name,
                "Preferences": rolling,
                "DesiredConfiguration": {"LaunchTemplate": broken},
            },
            "ValidationError",
            "fully-formed launch template.*ami-00000000.*not exist",
        ),
        ("create_auto_scaling_group", {**name, **more}, "AlreadyExists", "already exists"),
        ("delete_auto_scaling_group", name, "ResourceInUse", "while there are instances"),
        ("update_auto_scaling_group", {**name, "MinSize": 9}, "ValidationError", "Max bound"),
        ("update_auto_scaling_group", {**name, "DesiredCapacity": 9}, "ValidationError", "between"),
        (
            "update_auto_scaling_group",
            {**name, "LaunchTemplate": {**template, "Version": "99"}},
            "ValidationError",
            "fully-formed launch template",
        ),
        ("cancel_instance_refresh", name, "ActiveInstanceRefreshNotFound", "No in progress"),
        (
            "start_instance_refresh",
            {**name, "Preferences": {**rolling, "AutoRollback": True}},
            "ValidationError",
            "DesiredConfiguration parameter is empty",
        ),
        (
            "start_instance_refresh",
            {
                **name,
                "Preferences": {**rolling, "AutoRollback": True},
                "DesiredConfiguration": {"LaunchTemplate": {**template, "Version": "$Latest"}},
            },
            "ValidationError",
            "version",
        ),
    ):
        with pytest.raises(ClientError, match=words) as refused:
            getattr(scaling, call)(**asked)
        assert refused.value.response["Error"]["Code"] == code, call


def test_a_rollback_brings_back_what_the_group_had_on_record(fleet: Fleet) -> None:
    """As when the group is not given the new template first, which the provider does."""
    wait(fleet.settled, "two machines")
    fleet.grace(0)
    old, group = fleet.there(), fleet.group
    fleet.tell(**dict.fromkeys(old, "healthy"))
    template = {
        "LaunchTemplateId": group["LaunchTemplate"]["LaunchTemplateId"],
        "Version": "1",
    }
    assert group["LaunchTemplate"]["Version"] != "1"
    asked = {
        "AutoScalingGroupName": group["AutoScalingGroupName"],
        "DesiredConfiguration": {"LaunchTemplate": template},
        "Preferences": {
            "MinHealthyPercentage": 100,
            "MaxHealthyPercentage": 200,
            "AutoRollback": True,
        },
    }
    fleet.scaling.start_instance_refresh(**asked)
    with pytest.raises(ClientError, match="already in progress"):
        fleet.scaling.start_instance_refresh(**asked)
    wait(lambda: len(fleet.there()) == 4, "new machines beside the old")
    new = fleet.there().keys() - old.keys()
    fleet.tell(**dict.fromkeys(old, "healthy"), **dict.fromkeys(new, "unhealthy"))
    wait(lambda: fleet.refreshes()[0]["Status"] == "RollbackSuccessful", "the rollback")
    wait(fleet.settled, "the new ones to be gone")
    assert fleet.there() == old
    assert fleet.group["LaunchTemplate"] == group["LaunchTemplate"]
    fleet.all_well()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"subnetIds": ["A", "A"]}, "subnetIds"),
        ({"subnetId": "A"}, "subnetId"),
    ],
)
def test_a_refusal_is_one_line(engine: Engine, settings: dict[str, Any], words: str) -> None:
    account = aws.Account.read(engine.backend.parent / "aws.json")
    before = engine.config_file.read_text()
    engine.configure(json.loads(json.dumps(settings).replace('"A"', f'"{account.subnet_id}"')))
    try:
        with pytest.raises(ProgramError, match=words) as refused:
            engine.preview()
    finally:
        engine.config_file.write_text(before)
    assert "\n" not in str(refused.value)


def test_another_architecture_and_another_subnet(fleet: Fleet) -> None:
    """The template needs another image; a target group is of one load balancer at a time."""
    wait(fleet.settled, "two machines")
    engine, account = fleet.engine, fleet.account
    fleet.grace(600)
    before = fleet.there()
    # the image that is there has packages of the other architecture
    engine.configure({"instanceType": "t4g.micro", "amiId": None})
    engine.up()
    wait(fleet.settled, "the refresh to end")
    assert not set(fleet.there()) & set(before)
    assert {it["Architecture"] for it in inventory(account)["instances"]} == {"arm64"}

    address = engine.outputs()["loadBalancerDnsName"]
    engine.configure(
        {"subnetIds": [account.subnet_id, account.another_subnet("10.20.8.0/24", "c")]}
    )
    engine.up()
    assert engine.outputs()["loadBalancerDnsName"] != address
    assert set(engine.preview()) == {"same"}
    wait(fleet.settled, "two machines")
    assert sorted(fleet.there().values()) == [f"{aws.REGION}a", f"{aws.REGION}c"]


def test_one_machine_becomes_a_fleet_and_ends_when_that_is_well(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a stack beside the fleet's."""
    wait(fleet.settled, "two machines")
    config = fleet.engine.config
    subnets = config.pop("metrics-proxy:subnetIds")
    del config["metrics-proxy:adminToken"]
    one = Engine(fleet.engine.backend.parent, fleet.account, "one")
    one.configure({**config, "subnetId": subnets[0]})
    one.set_secret("adminToken", "engine-test-token")

    def state(machine: str) -> str:
        found = fleet.account.client("ec2").describe_instances(InstanceIds=[machine])
        return str(found["Reservations"][0]["Instances"][0]["State"]["Name"])

    try:
        one.up()
        machine = one.outputs()["instanceId"]
        one.configure({"subnetId": None, "subnetIds": subnets})
        fleet.tell()  # nothing of anybody
        # the package has a function of that name
        monkeypatch.setattr(import_module("components.proxy_host"), "SETTLE_SECONDS", 3)
        with pytest.raises(ProgramError, match=r"want at least 2 .* Load Balancer, have 0"):
            one.up()
        assert state(machine) == "running"
        # the group is made, and not waited for again
        assert set(one.up()) <= {"same", "update", "delete"}
        assert state(machine) == "terminated"
        assert len(Fleet(one).there()) == 2
    finally:
        fleet.all_well()
        one.destroy()


def test_another_zone_is_a_change_of_its_own(fleet: Fleet) -> None:
    """The provider waits for so many machines; a refresh has more for longer than it waits."""
    wait(fleet.settled, "two machines")
    engine, before = fleet.engine, fleet.there()
    address = engine.outputs()["loadBalancerDnsName"]
    two = engine.config["metrics-proxy:subnetIds"]
    [zone] = set("abc") - {it[-1] for it in before.values()}
    three = [*two, fleet.account.another_subnet("10.20.7.0/24", zone)]
    engine.configure({"subnetIds": three})
    assert TEMPLATE not in changed(engine)
    engine.up()
    assert engine.outputs()["loadBalancerDnsName"] == address
    assert fleet.there().items() > before.items()
    assert sorted(fleet.there().values()) == [f"{aws.REGION}{zone}" for zone in "abc"]

    engine.configure({"subnetIds": two})
    engine.up()
    wait(fleet.settled, "two machines")
    assert fleet.there() == before

    engine.configure({"subnetIds": three, "syncInterval": 36})
    with pytest.raises(ProgramError, match=r"want exactly 3 healthy instance\(s\).*, have [456]"):
        engine.up()
    # what it waited for in vain goes on, and the next one does not wait
    engine.up()
    assert set(engine.preview()) == {"same"}
    wait(lambda: fleet.settled(3), "the refresh to end")
    assert not fleet.there().keys() & before.keys()
    assert sorted(fleet.there().values()) == [f"{aws.REGION}{zone}" for zone in "abc"]
