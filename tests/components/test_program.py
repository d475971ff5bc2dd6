"""What the program asks of the cloud."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pulumi
import pytest
import yaml

from tests.components.cloud import Cloud, reveal
from tests.components.conftest import TOKEN, Deploy, stack_file
from tests.leaks import holds
from tests.readme import settings_table

INSTANCE = "aws:ec2/instance:Instance"
INTERFACE = "aws:ec2/networkInterface:NetworkInterface"
GROUP = "aws:ec2/securityGroup:SecurityGroup"
INGRESS = "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"
EGRESS = "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule"
SECRET = "aws:secretsmanager/secret:Secret"
VERSION = "aws:secretsmanager/secretVersion:SecretVersion"
POLICY = "aws:iam/rolePolicy:RolePolicy"
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:sba/token-a1b2c3"


def user_data(cloud: Cloud) -> str:
    text, secret = reveal(cloud.only(INSTANCE)["userDataBase64"])
    assert secret, "a page of base64 is no news to who reads a preview"
    data = base64.b64decode(text)
    assert len(data) <= 16_384
    return gzip.decompress(data).decode()


def ancestors(cloud: Cloud, name: str) -> set[str]:
    """The names of all that a resource waits for."""
    names = {urn: urn.rsplit("::", 1)[1] for urn in cloud.urns}
    found: set[str] = set()
    waiting = [name]
    while waiting:
        more = {names[urn] for urn in cloud.requests[waiting.pop()].dependencies if urn in names}
        waiting += more - found
        found |= more
    return found


def bundle(cloud: Cloud) -> dict[str, Any]:
    for inputs in cloud.all(VERSION):
        text, secret = reveal(inputs["secretString"])
        if text.startswith("{"):
            assert secret
            return dict(json.loads(text))
    raise AssertionError("no bundle")


@pytest.mark.parametrize("stack", ["dev", "staging", "prod"])
def test_every_stack_file_deploys(deploy: Deploy, stack: str) -> None:
    cloud = deploy(stack_file(stack), stack=stack)
    assert len(cloud.all(INSTANCE)) == 1
    assert len(cloud.all("grafana:oss/dashboard:Dashboard")) == 1


def test_every_resource_belongs_to_a_component(deploy: Deploy) -> None:
    cloud = deploy()
    assert all("metrics-proxy:index:" in urn for urn in cloud.urns)


def test_the_token_is_in_one_secret_and_nowhere_else(deploy: Deploy) -> None:
    cloud = deploy()
    holders = [r for r in cloud.resources if TOKEN in json.dumps(r.inputs)]
    assert [r.typ for r in holders] == [VERSION]
    assert reveal(holders[0].inputs["secretString"]) == (TOKEN, True)


def test_the_token_stays_a_secret_output(deploy: Deploy) -> None:
    deploy()
    from config import stack

    _, token = stack.load()
    seen: list[bool] = []

    def ask() -> None:
        async def read() -> None:
            assert token is not None
            seen.append(await token.is_secret())

        pulumi.Output.from_input(read())

    pulumi.runtime.test(ask)()
    assert seen == [True]


def test_the_bundle_is_what_the_sync_reads(deploy: Deploy) -> None:
    document = bundle(deploy())
    assert set(document) == {"certificate", "key", "configuration", "endpoints", "token"}
    assert document["token"] == {"secret": "metrics-proxy/dev/admin-token"}
    assert document["certificate"] == "LEAF"
    assert [e["name"] for e in document["endpoints"]] == ["api", "workers"]


def test_the_role_may_read_two_secrets_and_no_more(deploy: Deploy) -> None:
    key = "arn:aws:kms:eu-central-1:123456789012:key/abc"
    policy = json.loads(deploy(kmsKeyArn=key).only(POLICY)["policy"])
    assert policy["Statement"] == [
        {
            "Effect": "Allow",
            "Action": "secretsmanager:GetSecretValue",
            "Resource": ["arn:secrets-token", "arn:secrets-bundle"],
        },
        {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": key},
    ]


def test_somebody_elses_secret_is_read_and_not_made(deploy: Deploy) -> None:
    cloud = deploy(adminToken=None, adminTokenSecretArn=ARN)
    assert [s["name"] for s in cloud.all(SECRET)] == ["metrics-proxy/dev/bundle"]
    [statement] = json.loads(cloud.only(POLICY)["policy"])["Statement"]
    assert statement["Resource"] == [ARN, "arn:secrets-bundle"]
    assert bundle(cloud)["token"] == {"secret": ARN}
    assert cloud.outputs["tokenSecretArn"] == ARN


def test_a_key_in_somebody_elses_secret_is_the_syncs_business_only(deploy: Deploy) -> None:
    cloud = deploy(adminToken=None, adminTokenSecretArn=f"{ARN}:admin::")
    [statement] = json.loads(cloud.only(POLICY)["policy"])["Statement"]
    assert statement["Resource"] == [ARN, "arn:secrets-bundle"]
    assert bundle(cloud)["token"] == {"secret": ARN, "key": "admin"}
    assert cloud.outputs["tokenSecretArn"] == ARN


@pytest.mark.parametrize("token", [{}, {"adminToken": None, "adminTokenSecretArn": ARN}])
def test_the_bundle_names_a_secret_that_can_be_read_and_has_a_value(
    deploy: Deploy, token: dict[str, Any]
) -> None:
    cloud = deploy(**token)
    before = ancestors(cloud, "secrets-bundle-value")
    assert "secrets-policy" in before
    assert ("secrets-token-value" in before) == (not token)


def test_the_machine_starts_when_it_may_read_its_secrets(deploy: Deploy) -> None:
    assert {"secrets-policy", "secrets-profile"} <= ancestors(deploy(), "proxy-instance")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adminTokenSecretArn", ARN.replace("eu-central-1", "eu-west-1")),
        ("kmsKeyArn", "arn:aws:kms:eu-west-1:123456789012:key/abc"),
    ],
)
def test_what_is_in_another_region_is_refused(deploy: Deploy, key: str, value: str) -> None:
    own = {} if key == "kmsKeyArn" else {"adminToken": None}
    with pytest.raises(pulumi.RunError, match=rf"^metrics-proxy:{key}: .* is in eu-west-1, and"):
        deploy(**own, **{key: value})


def test_the_machine_is_closed(deploy: Deploy) -> None:
    machine = deploy().only(INSTANCE)
    assert machine["metadataOptions"] == {
        "httpEndpoint": "enabled",
        "httpTokens": "required",
        "httpPutResponseHopLimit": 1,
    }
    assert machine["rootBlockDevice"] == {"encrypted": True, "volumeType": "gp3"}
    assert machine["primaryNetworkInterface"] == {"networkInterfaceId": "network-interface-id"}
    assert machine["userDataReplaceOnChange"] is True
    assert machine["ami"] == "ami-debian13"
    assert "keyName" not in machine


def test_the_firewall_is_wired_and_opens_one_port(deploy: Deploy) -> None:
    cloud = deploy()
    assert cloud.only(INTERFACE)["securityGroups"] == ["network-firewall-id"]
    ingress = [(r["cidrIpv4"], r["fromPort"], r["toPort"]) for r in cloud.all(INGRESS)]
    assert sorted(ingress) == [("10.20.0.0/24", 9446, 9446), ("10.20.8.0/24", 9446, 9446)]
    egress = {(r["cidrIpv4"], r["fromPort"], r["toPort"]) for r in cloud.all(EGRESS)}
    assert egress == {
        ("0.0.0.0/0", 443, 443),
        ("10.30.0.0/24", 9464, 9464),
        ("10.30.0.0/24", 3002, 3002),
    }
    rules = cloud.all(INGRESS) + cloud.all(EGRESS)
    assert {r["securityGroupId"] for r in rules} == {"network-firewall-id"}


def test_the_api_may_be_named_by_its_security_group(deploy: Deploy) -> None:
    cloud = deploy(apiCidrs=None, apiSecurityGroupId="sg-0123456789abcdef0")
    peers = {(r.get("referencedSecurityGroupId"), r["fromPort"]) for r in cloud.all(EGRESS)}
    assert peers == {(None, 443), ("sg-0123456789abcdef0", 9464), ("sg-0123456789abcdef0", 3002)}


def test_dns_servers_are_reached_by_both_protocols(deploy: Deploy) -> None:
    def rules(cloud: Cloud) -> set[tuple[str, str, int, int]]:
        keys = ("cidrIpv4", "ipProtocol", "fromPort", "toPort")
        return {tuple(rule[key] for key in keys) for rule in cloud.all(EGRESS)}

    servers = ["10.20.0.53", "10.20.1.53"]
    added = rules(deploy(dnsServers=servers)) - rules(deploy())
    assert added == {(f"{s}/32", p, 53, 53) for s in servers for p in ("tcp", "udp")}


def test_what_the_sync_brings_leaves_the_machine_alone(deploy: Deploy) -> None:
    before = deploy()
    after = deploy(
        endpoints=[{"name": "x", "path": "/x", "upstream": "http://other:80/x"}],
        prometheusCidrs=["10.99.0.0/24"],
        adminToken=None,
        adminTokenSecretArn=ARN,
    )
    assert user_data(before) == user_data(after)
    assert bundle(before)["configuration"] != bundle(after)["configuration"]
    assert bundle(before)["token"] != bundle(after)["token"]


CHANGES: dict[str, dict[str, Any]] = {
    "subnetId": {"subnetId": "subnet-0123456789abcdef1"},
    "prometheusCidrs": {"prometheusCidrs": ["10.99.0.0/24"]},
    "apiCidrs": {"apiCidrs": ["10.99.0.0/24"]},
    "apiSecurityGroupId": {"apiCidrs": None, "apiSecurityGroupId": "sg-0123456789abcdef0"},
    "adminToken": {"adminToken": "another-token"},
    "adminTokenSecretArn": {"adminToken": None, "adminTokenSecretArn": ARN},
    "endpoints": {"endpoints": [{"name": "x", "path": "/x", "upstream": "http://other:80/x"}]},
    "server": {"server": "apache"},
    "serverName": {"serverName": "proxy.example.com"},
    "port": {"port": 9447},
    "instanceType": {"instanceType": "t4g.small"},
    "amiId": {"amiId": "ami-12345678"},
    "privateIp": {"privateIp": "10.20.0.77"},
    "kmsKeyArn": {"kmsKeyArn": "arn:aws:kms:eu-central-1:123456789012:key/abc"},
    "syncInterval": {"syncInterval": 30},
    "searchDomain": {"searchDomain": "example.com"},
    "dnsServers": {"dnsServers": ["10.20.0.53"]},
    "rebootTime": {"rebootTime": "03:30"},
    "job": {"job": "api"},
    "protect": {"protect": True},
    "grafana.enabled": {"grafana": {"enabled": False}},
    "grafana.folderTitle": {"grafana": {"folderTitle": "Other"}},
    "grafana.datasourceUid": {"grafana": {"datasourceUid": "other"}},
    "grafana.runbookUrl": {"grafana": {"runbookUrl": "https://wiki.example.com"}},
    "grafana.dashboardUid": {"grafana": {"dashboardUid": "other"}},
    "workers.errorRate": {"workers": {"errorRate": 0.5}},
    "workers.queueDepth.warning": {"workers": {"queueDepth": {"warning": 1}}},
    "workers.queueDepth.critical": {"workers": {"queueDepth": {"critical": 1000}}},
    "workers.queues": {"workers": {"queues": {"email": {"warning": 1}}}},
}


def inputs(cloud: Cloud, *types: str) -> list[tuple[str, str]]:
    """What was asked for, of resources of these types or of all."""
    return sorted(
        (r.name, json.dumps(r.inputs, sort_keys=True))
        for r in cloud.resources
        if r.typ in types or not types
    )


@pytest.mark.parametrize("key", CHANGES)
def test_the_readme_says_how_a_setting_applies(deploy: Deploy, key: str) -> None:
    before, after = deploy(), deploy(**CHANGES[key])
    address = inputs(before, INTERFACE) != inputs(after, INTERFACE)
    found = []
    if address or inputs(before, INSTANCE) != inputs(after, INSTANCE):
        found.append("new machine")
    elif inputs(before, VERSION) != inputs(after, VERSION):
        found.append("sync")
    if address or before.outputs["scrapeConfig"] != after.outputs["scrapeConfig"]:
        found.append("Prometheus")
    if not found:
        changed = inputs(before) != inputs(after)
        found = ["up"] if changed or before.requests != after.requests else []
    assert ", ".join(found) == settings_table()[key].applies


def test_every_setting_that_applies_is_tried() -> None:
    untried = {key for key, row in settings_table().items() if row.applies} - set(CHANGES)
    assert untried == {"grafana.dashboard"}, "a file"


@pytest.mark.parametrize(
    ("instance_type", "architecture", "debian"),
    [
        ("t4g.micro", "arm64", "arm64"),
        ("t3.micro", "x86_64", "amd64"),
        ("t2.micro", "x86_64", "amd64"),
    ],
)
def test_the_image_is_the_newest_debian_of_the_types_architecture(
    deploy: Deploy, instance_type: str, architecture: str, debian: str
) -> None:
    cloud = deploy(instanceType=instance_type)
    [call] = [c for c in cloud.calls if c.token == "aws:ec2/getAmi:getAmi"]
    assert call.args == {
        "owners": ["136693071363"],
        "mostRecent": True,
        "filters": [
            {"name": "name", "values": [f"debian-13-{debian}-20*"]},
            {"name": "architecture", "values": [architecture]},
        ],
    }
    assert cloud.only(INSTANCE)["instanceType"] == instance_type


def test_a_named_image_is_not_looked_up_and_replaces_the_machine(deploy: Deploy) -> None:
    assert list(deploy().requests["proxy-instance"].ignoreChanges) == ["ami"]
    cloud = deploy(amiId="ami-12345678")
    [asked] = [c.args for c in cloud.calls if "getAmi" in c.token]
    assert asked["filters"] == [{"name": "image-id", "values": ["ami-12345678"]}]
    assert cloud.only(INSTANCE)["ami"] == "ami-12345678"
    assert list(cloud.requests["proxy-instance"].ignoreChanges) == []


@pytest.mark.parametrize(
    ("protect", "names"),
    [
        (False, []),
        # no certificate: it could not be renewed
        (
            True,
            ["network-interface", "secrets-bundle", "secrets-token", "tls-ca-key", "tls-key"],
        ),
    ],
)
def test_what_is_protected(deploy: Deploy, protect: bool, names: list[str]) -> None:
    requests = deploy(protect=protect).requests
    assert sorted(name for name, request in requests.items() if request.protect) == names


def test_the_certificate_names_server_and_address(deploy: Deploy) -> None:
    request = deploy().only("tls:index/certRequest:CertRequest")
    assert request["dnsNames"] == ["prometheus-api.local"]
    assert request["ipAddresses"] == ["10.20.0.10"]


def test_grafana_can_be_left_out(deploy: Deploy) -> None:
    cloud = deploy(grafana={"enabled": False, "dashboard": "missing.json"})
    assert not [r for r in cloud.resources if r.typ.startswith("grafana:")]
    assert "dashboardUrl" not in cloud.outputs


def test_the_outputs(deploy: Deploy) -> None:
    cloud = deploy(port=9447, job="api")
    jobs = yaml.safe_load(cloud.outputs["scrapeConfig"])["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["api", "sba-proxy"]
    targets = [t for job in jobs for c in job["static_configs"] for t in c["targets"]]
    assert set(targets) == {"10.20.0.10:9447"}
    text = user_data(cloud)
    assert cloud.outputs["userData"].startswith("# host/user-data/nginx.gz sha256 ")
    assert text.endswith(cloud.outputs["userData"].partition("\n")[2])
    assert cloud.outputs == {
        "proxyUrl": "https://10.20.0.10:9447",
        "privateIp": "10.20.0.10",
        "caCertificate": "CA",
        "scrapeConfig": cloud.outputs["scrapeConfig"],
        "userData": cloud.outputs["userData"],
        "proxyConfiguration": bundle(cloud)["configuration"],
        "tokenSecretArn": "arn:secrets-token",
        "bundleSecretArn": "arn:secrets-bundle",
        "instanceId": "proxy-instance-id",
        "dashboardUrl": "https://grafana.example.com/d/sba",
    }
    assert not holds(json.dumps(cloud.outputs).encode(), TOKEN)


@pytest.mark.parametrize("token", ['a"b', "a b", "a\r\nb", "x" * 3901])
def test_a_token_that_no_header_can_carry_is_refused_unseen(deploy: Deploy, token: str) -> None:
    with pytest.raises(pulumi.RunError, match="adminToken") as refused:
        deploy(adminToken=token)
    assert token not in str(refused.value)


def test_a_bad_setting_is_refused(deploy: Deploy) -> None:
    with pytest.raises(pulumi.RunError, match='metrics-proxy:server: "caddy"'):
        deploy(server="caddy")


def test_a_plain_token_is_refused(deploy: Deploy) -> None:
    with pytest.raises(pulumi.RunError, match="plain text"):
        deploy(secret=False)


def test_a_missing_dashboard_is_refused(deploy: Deploy) -> None:
    with pytest.raises(pulumi.RunError, match=r"grafana\.dashboard: .*missing\.json"):
        deploy(grafana={"dashboard": "missing.json"})


def test_user_data_is_a_cloud_config(deploy: Deploy) -> None:
    text = user_data(deploy())
    assert text.startswith("#cloud-config\n")
    assert "install nginx " in text
    assert yaml.safe_load(text)["runcmd"]
