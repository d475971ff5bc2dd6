"""What the program asks of the cloud for a fleet: a load balancer, and a machine in each zone."""

from __future__ import annotations

import base64
import gzip
import re
from typing import Any

import pytest
import yaml

from tests.components.cloud import BALANCER, ZONES, Cloud, reveal
from tests.components.conftest import FLEET, Deploy
from tests.components.test_program import (
    CHANGES,
    EGRESS,
    GROUP,
    INGRESS,
    INSTANCE,
    INTERFACE,
    ancestors,
    bundle,
    inputs,
)
from tests.readme import settings_table

PROFILE = "aws:iam/instanceProfile:InstanceProfile"
TEMPLATE = "aws:ec2/launchTemplate:LaunchTemplate"
AUTOSCALING = "aws:autoscaling/group:Group"
LOAD_BALANCER = "aws:lb/loadBalancer:LoadBalancer"
TARGETS = "aws:lb/targetGroup:TargetGroup"
LISTENER = "aws:lb/listener:Listener"

MACHINES, NODES = "network-firewall-id", "network-balancer-firewall-id"
"""The two security groups."""


_DEPLOYED: dict[str, Cloud] = {}
"""What is only looked at is deployed once."""


@pytest.fixture
def fleet(deploy: Deploy) -> Cloud:
    if "fleet" not in _DEPLOYED:
        _DEPLOYED["fleet"] = deploy(**FLEET)
    return _DEPLOYED["fleet"]


@pytest.fixture
def one(deploy: Deploy) -> Cloud:
    """The same with one machine."""
    if "one" not in _DEPLOYED:
        _DEPLOYED["one"] = deploy()
    return _DEPLOYED["one"]


def test_it_has_nothing_of_one_machine(fleet: Cloud) -> None:
    assert not [*fleet.all(INSTANCE), *fleet.all(INTERFACE)]
    assert all("metrics-proxy:index:" in urn for urn in fleet.urns)


def test_one_machine_has_nothing_of_it(one: Cloud) -> None:
    kinds = {TEMPLATE, AUTOSCALING, LOAD_BALANCER, TARGETS, LISTENER}
    assert not kinds & {r.typ for r in one.resources}
    assert len(one.all(GROUP)) == 1
    assert "healthz" not in bundle(one)["configuration"]


def test_who_may_connect_to_whom(fleet: Cloud) -> None:
    def rules(kind: str) -> set[tuple[str, str, int, int]]:
        return {
            (
                it["securityGroupId"],
                it.get("cidrIpv4") or it["referencedSecurityGroupId"],
                it["fromPort"],
                it["toPort"],
            )
            for it in fleet.all(kind)
        }

    assert rules(INGRESS) == {
        (NODES, "10.20.0.0/24", 9446, 9446),
        (NODES, "10.20.8.0/24", 9446, 9446),
        (MACHINES, NODES, 9446, 9446),
    }
    assert rules(EGRESS) == {
        (NODES, MACHINES, 9446, 9446),
        (MACHINES, "0.0.0.0/0", 443, 443),
        (MACHINES, "10.30.0.0/24", 9464, 9464),
        (MACHINES, "10.30.0.0/24", 3002, 3002),
    }
    [interface] = fleet.only(TEMPLATE)["networkInterfaces"]
    assert interface["securityGroups"] == [MACHINES]
    assert fleet.only(LOAD_BALANCER)["securityGroups"] == [NODES]


def test_who_is_named_more_closely_is_let_through_the_load_balancer(deploy: Deploy) -> None:
    group = "sg-0123456789abcdef1"
    cloud = deploy(**FLEET, prometheusSecurityGroupId=group)
    peers = {(r["securityGroupId"], r["referencedSecurityGroupId"]) for r in cloud.all(INGRESS)}
    assert peers == {(NODES, group), (MACHINES, NODES)}


def test_the_load_balancer_is_internal_and_sends_to_the_machine_of_its_zone(fleet: Cloud) -> None:
    balancer = fleet.only(LOAD_BALANCER)
    assert (balancer["internal"], balancer["loadBalancerType"]) == (True, "network")
    assert balancer["enableCrossZoneLoadBalancing"] is False
    assert balancer["subnets"] == FLEET["subnetIds"]
    listener = fleet.only(LISTENER)
    assert (listener["protocol"], listener["port"]) == ("TCP", 9446)
    [action] = listener["defaultActions"]
    assert action == {"type": "forward", "targetGroupArn": "arn:network-machines"}
    targets = fleet.only(TARGETS)
    assert (targets["protocol"], targets["port"]) == ("TCP", 9446)
    assert targets["preserveClientIp"] == "true"
    check = targets["healthCheck"]
    assert (check["protocol"], check["path"], check["matcher"]) == ("HTTPS", "/healthz", "204")


def test_a_machine_is_closed(fleet: Cloud, one: Cloud) -> None:
    template = fleet.only(TEMPLATE)
    assert template["metadataOptions"] == one.only(INSTANCE)["metadataOptions"]
    assert template["metadataOptions"]["httpTokens"] == "required"
    [interface], [disk] = template["networkInterfaces"], template["blockDeviceMappings"]
    assert interface["associatePublicIpAddress"] == "false"
    assert disk["deviceName"] == "/dev/xvda"
    assert disk["ebs"] == {"encrypted": "true", "volumeType": "gp3", "deleteOnTermination": "true"}
    assert template["iamInstanceProfile"] == {"name": "the-profile"}
    assert "keyName" not in template


def test_a_machine_gets_the_same_user_data_as_one_alone(fleet: Cloud, one: Cloud) -> None:
    """But for what tells one build from another: the provider's tags are in a fleet's template."""
    given = [fleet.only(TEMPLATE)["userData"], one.only(INSTANCE)["userDataBase64"]]
    assert all(secret for _, secret in map(reveal, given))
    texts = [gzip.decompress(base64.b64decode(reveal(it)[0])).decode() for it in given]
    assert texts[0] != texts[1]
    assert len({re.sub('"build": "[0-9a-f]{12}"', "", text) for text in texts}) == 1


def test_a_machine_ends_when_another_is_well(fleet: Cloud) -> None:
    group = fleet.only(AUTOSCALING)
    sizes = [group[key] for key in ("minSize", "desiredCapacity", "minElbCapacity", "maxSize")]
    assert sizes == [2, 2, 2, 4]
    assert group["vpcZoneIdentifiers"] == FLEET["subnetIds"]
    # a number: what is not deployed is not started
    assert group["launchTemplate"] == {"id": "proxy-template-id", "version": "7"}
    assert group["targetGroupArns"] == ["arn:network-machines"]
    assert group["healthCheckType"] == "ELB"
    always = {"minHealthyPercentage": 100, "maxHealthyPercentage": 200}
    assert group["instanceMaintenancePolicy"] == always
    assert group["instanceRefresh"] == {"strategy": "Rolling", "preferences": always}
    # until the grace is over, a machine that is not healthy counts as if it were
    assert group["defaultInstanceWarmup"] > group["healthCheckGracePeriod"]
    # and of too many the old ones stay, which serve
    assert group["terminationPolicies"] == ["NewestInstance"]


def test_machines_start_when_they_can_be_seen_to_be_well(fleet: Cloud) -> None:
    before = ancestors(fleet, "proxy-group")
    assert {"network-listener", "network-machines", "proxy-template"} <= before
    assert {"secrets-policy", "secrets-profile"} <= before


OF_ONE_MACHINE = {"privateIp", "rebootTime", "subnetId"}


@pytest.mark.parametrize("key", sorted(CHANGES.keys() - {"subnetIds", *OF_ONE_MACHINE}))
def test_the_page_says_which_settings_replace_its_machines(
    fleet: Cloud, deploy: Deploy, key: str
) -> None:
    after = deploy(**{**FLEET, **CHANGES[key]})
    # another profile has another name, which is in the template
    replaced = inputs(fleet, TEMPLATE, PROFILE) != inputs(after, TEMPLATE, PROFILE)
    applies, _, fleets = settings_table()[key].applies.partition("; of a fleet: ")
    said = (fleets or applies).split(", ")
    assert replaced == bool({"new machine", "new machines"} & set(said))


def test_what_auto_scaling_starts_has_all_tags(fleet: Cloud) -> None:
    tags = {"pulumi:project": "metrics-proxy", "pulumi:stack": "dev", "cost-center": "42"}
    found = {it["resourceType"]: it["tags"] for it in fleet.only(TEMPLATE)["tagSpecifications"]}
    assert found.keys() == {"instance", "volume", "network-interface"}
    assert all(it == {**tags, "Name": "proxy-dev"} for it in found.values())
    group = fleet.only(AUTOSCALING)["tags"]
    assert {it["key"]: it["value"] for it in group} == tags
    assert not any(it["propagateAtLaunch"] for it in group)


def test_all_else_has_the_tags_of_the_stack(fleet: Cloud) -> None:
    tags = {"pulumi:project": "metrics-proxy", "pulumi:stack": "dev"}
    for kind in (TEMPLATE, LOAD_BALANCER, TARGETS, LISTENER, GROUP, INGRESS, EGRESS):
        assert all(it["tags"] == tags for it in fleet.all(kind)), kind


def test_a_newer_image_alone_replaces_no_machine(fleet: Cloud, deploy: Deploy) -> None:
    assert list(fleet.requests["proxy-template"].ignoreChanges) == ["imageId"]
    named = deploy(**FLEET, amiId="ami-12345678")
    assert named.only(TEMPLATE)["imageId"] == "ami-12345678"
    assert list(named.requests["proxy-template"].ignoreChanges) == []


def test_what_the_sync_brings_leaves_the_machines_alone(fleet: Cloud, deploy: Deploy) -> None:
    endpoints = [{"name": "x", "path": "/x", "upstream": "http://other:80/x"}]
    after = deploy(**FLEET, endpoints=endpoints, prometheusCidrs=["10.99.0.0/24"])
    for kind in (TEMPLATE, AUTOSCALING):
        assert inputs(fleet, kind) == inputs(after, kind)
    assert bundle(fleet)["configuration"] != bundle(after)["configuration"]


@pytest.mark.parametrize("server", ["nginx", "apache"])
def test_the_subnets_of_the_load_balancer_may_ask_for_the_health(
    deploy: Deploy, server: str
) -> None:
    text = bundle(deploy(**FLEET, server=server))["configuration"]
    assert "10.20.1.0/24" in text
    assert "10.20.2.0/24" not in text


def test_the_certificate_names_every_name_of_the_load_balancer(fleet: Cloud) -> None:
    request = fleet.only("tls:index/certRequest:CertRequest")
    zones = [f"eu-central-1{zone}.{BALANCER}" for zone in "ab"]
    assert request["dnsNames"] == ["prometheus-api.local", BALANCER, *zones]
    assert "ipAddresses" not in request


def test_the_load_balancer_is_protected_in_the_interfaces_place(deploy: Deploy) -> None:
    requests = deploy(**FLEET, protect=True).requests
    names = sorted(name for name, request in requests.items() if request.protect)
    assert names[0] == "network-balancer"
    assert len(names) == 5


def test_the_outputs(fleet: Cloud, one: Cloud) -> None:
    outputs = fleet.outputs
    assert outputs["proxyUrl"] == f"https://{BALANCER}:9446"
    assert outputs["loadBalancerDnsName"] == BALANCER
    assert outputs["autoscalingGroupName"] == "the-group"
    assert outputs["proxyTargets"] == [
        {"address": f"eu-central-1{zone}.{BALANCER}:9446", "zone": f"eu-central-1{zone}"}
        for zone in "ab"
    ]
    assert outputs["securityGroupId"] == MACHINES
    assert one.outputs.keys() - outputs.keys() == {"privateIp", "instanceId"}
    assert outputs.keys() - one.outputs.keys() == {"loadBalancerDnsName", "autoscalingGroupName"}


def test_prometheus_asks_the_load_balancer_and_each_machine(fleet: Cloud) -> None:
    api, own = yaml.safe_load(fleet.outputs["scrapeConfig"])["scrape_configs"]
    assert {t for it in api["static_configs"] for t in it["targets"]} == {f"{BALANCER}:9446"}
    found: list[dict[str, Any]] = own["static_configs"]
    assert [(it["targets"], it["labels"]) for it in found] == [
        ([it["address"]], {"zone": it["zone"]}) for it in fleet.outputs["proxyTargets"]
    ]
    for job in (api, own):
        assert job["tls_config"]["server_name"] == "prometheus-api.local"


def test_a_fleet_may_have_more_than_two_zones(deploy: Deploy) -> None:
    cloud = deploy(subnetId=None, subnetIds=list(ZONES))
    assert cloud.only(AUTOSCALING)["desiredCapacity"] == 3
    assert len(cloud.outputs["proxyTargets"]) == 3
