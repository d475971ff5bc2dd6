"""What the program asks of the cloud."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pulumi
import pytest
import yaml

from sandbox.providers import schema
from tests.certificates import self_signed
from tests.components.cloud import Cloud, reveal
from tests.components.conftest import FLEET, TOKEN, Deploy, example
from tests.leaks import holds
from tests.readme import settings_table

INSTANCE = "aws:ec2/instance:Instance"
INTERFACE = "aws:ec2/networkInterface:NetworkInterface"
GROUP = "aws:ec2/securityGroup:SecurityGroup"
INGRESS = "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"
EGRESS = "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule"
KEY = "arn:aws:kms:eu-central-1:123456789012:key/abc"
SECRET = "aws:secretsmanager/secret:Secret"
VERSION = "aws:secretsmanager/secretVersion:SecretVersion"
POLICY = "aws:iam/rolePolicy:RolePolicy"
RULES = "grafana:alerting/ruleGroup:RuleGroup"
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:sba/token-a1b2c3"


def user_data(cloud: Cloud) -> str:
    text, secret = reveal(cloud.only(INSTANCE)["userDataBase64"])
    assert secret, "a page of base64 is no news to who reads a preview"
    data = base64.b64decode(text)
    assert len(data) <= 16_384
    return gzip.decompress(data).decode()


def files_of(cloud: Cloud) -> dict[str, str]:
    """The files of the machine by their path."""
    return {it["path"]: it["content"] for it in yaml.safe_load(user_data(cloud))["write_files"]}


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
def test_every_example_deploys(deploy: Deploy, stack: str) -> None:
    cloud = deploy(example(stack), stack=stack)
    one, fleet = len(cloud.all(INSTANCE)), len(cloud.all("aws:autoscaling/group:Group"))
    assert (one, fleet) == ((0, 1) if stack == "prod" else (1, 0))
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


@pytest.mark.parametrize(
    ("settings", "token", "keys"),
    [
        ({}, "arn:secrets-token", []),
        ({"kmsKeyArn": KEY}, "arn:secrets-token", [KEY]),
        (
            {"kmsKeyArn": KEY, "previousKmsKeyArn": f"{KEY}-0"},
            "arn:secrets-token",
            [KEY, f"{KEY}-0"],
        ),
        (
            {"adminToken": None, "adminTokenSecretArn": ARN, "adminTokenKmsKeyArn": f"{KEY}-1"},
            ARN,
            [f"{KEY}-1"],
        ),
        (
            {
                "adminToken": None,
                "adminTokenSecretArn": ARN,
                "adminTokenKmsKeyArn": KEY,
                "kmsKeyArn": KEY,
            },
            ARN,
            [KEY],
        ),
    ],
)
def test_the_role_may_read_two_secrets_and_no_more(
    deploy: Deploy, settings: dict[str, Any], token: str, keys: list[str]
) -> None:
    secrets = [token, "arn:secrets-bundle"]
    expected: list[dict[str, Any]] = [
        {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": secrets}
    ]
    context = {
        "kms:ViaService": "secretsmanager.eu-central-1.amazonaws.com",
        "kms:EncryptionContext:SecretARN": secrets,
    }
    if keys:
        expected.append(
            {
                "Effect": "Allow",
                "Action": "kms:Decrypt",
                "Resource": keys,
                "Condition": {"StringEquals": context},
            }
        )
    assert json.loads(deploy(**settings).only(POLICY)["policy"])["Statement"] == expected


def test_all_that_can_carry_tags_has_those_of_the_stack(deploy: Deploy) -> None:
    cloud = deploy()
    tags = {"pulumi:project": "metrics-proxy", "pulumi:stack": "dev"}
    able = [
        (r, key)
        for r in cloud.resources
        if r.custom and r.typ.startswith("aws:")
        for key in {"tags", "volumeTags"}
        & schema.properties(schema.arguments_class(r.typ)).types.keys()
    ]
    assert {r.typ for r, _ in able} >= {INSTANCE, INTERFACE, GROUP, INGRESS, EGRESS, SECRET}
    assert [r.name for r, key in able if not tags.items() <= r.inputs.get(key, {}).items()] == []


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


PEERS = ("cidrIpv4", "prefixListId", "referencedSecurityGroupId")
LIST, GROUP_ID = "pl-0123456789abcdef0", "sg-0123456789abcdef1"


@pytest.mark.parametrize(
    ("settings", "ingress", "https"),
    [
        ({"prometheusSecurityGroupId": GROUP_ID}, {GROUP_ID}, {"0.0.0.0/0"}),
        ({"prometheusPrefixListIds": [LIST]}, {LIST}, {"0.0.0.0/0"}),
        (
            {"prometheusSecurityGroupId": GROUP_ID, "prometheusPrefixListIds": [LIST]},
            {GROUP_ID, LIST},
            {"0.0.0.0/0"},
        ),
        ({"httpsCidrs": ["52.0.0.0/11"]}, {"10.20.0.0/24", "10.20.8.0/24"}, {"52.0.0.0/11"}),
        (
            {"httpsCidrs": ["10.20.0.0/16"], "httpsPrefixListIds": [LIST]},
            {"10.20.0.0/24", "10.20.8.0/24"},
            {"10.20.0.0/16", LIST},
        ),
    ],
)
def test_who_is_named_more_closely_is_let_through_instead(
    deploy: Deploy, settings: dict[str, Any], ingress: set[str], https: set[str]
) -> None:
    cloud = deploy(**settings)

    def peers(rules: list[dict[str, Any]]) -> set[str]:
        return {rule[key] for rule in rules for key in PEERS if rule.get(key)}

    assert peers(cloud.all(INGRESS)) == ingress
    assert peers([r for r in cloud.all(EGRESS) if r["fromPort"] == 443]) == https
    # the server's own list is not opened with it
    assert bundle(cloud)["configuration"] == bundle(deploy())["configuration"]


def test_a_rule_that_two_settings_ask_for_is_made_once(deploy: Deploy) -> None:
    """AWS refuses the second."""
    cloud = deploy(
        httpsCidrs=["10.30.0.0/24"],
        endpoints=[{"name": "x", "path": "/x", "upstream": "https://other/x"}],
    )
    assert [(r["cidrIpv4"], r["fromPort"]) for r in cloud.all(EGRESS)] == [("10.30.0.0/24", 443)]


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
    "subnetIds": FLEET,
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
    "kmsKeyArn": {"kmsKeyArn": KEY},
    "previousKmsKeyArn": {"previousKmsKeyArn": KEY},
    "adminTokenKmsKeyArn": {"adminTokenKmsKeyArn": KEY},
    "previousCaCertificate": {"previousCaCertificate": self_signed()[0]},
    "secretPrefix": {"secretPrefix": "acme/metrics-proxy"},
    "recoveryWindowInDays": {"recoveryWindowInDays": 7},
    "iamPath": {"iamPath": "/acme/"},
    "permissionsBoundaryArn": {
        "permissionsBoundaryArn": "arn:aws:iam::123456789012:policy/boundary"
    },
    "prometheusSecurityGroupId": {"prometheusSecurityGroupId": "sg-0123456789abcdef1"},
    "prometheusPrefixListIds": {"prometheusPrefixListIds": ["pl-0123456789abcdef0"]},
    "httpsCidrs": {"httpsCidrs": ["10.20.0.0/16"]},
    "httpsPrefixListIds": {"httpsPrefixListIds": ["pl-0123456789abcdef0"]},
    "syncInterval": {"syncInterval": 30},
    "searchDomain": {"searchDomain": "example.com"},
    "dnsServers": {"dnsServers": ["10.20.0.53"]},
    "rebootTime": {"rebootTime": "03:30"},
    "job": {"job": "api"},
    "fallbackScrapeProtocol": {"fallbackScrapeProtocol": "PrometheusText0.0.4"},
    "protect": {"protect": True},
    "grafana.enabled": {"grafana": {"enabled": False}},
    "grafana.folderTitle": {"grafana": {"folderTitle": "Other"}},
    "grafana.folderUid": {"grafana": {"folderUid": "theirs"}},
    "grafana.adoptFolder": {"grafana": {"adoptFolder": True}},
    "grafana.overwriteDashboard": {"grafana": {"overwriteDashboard": True}},
    "grafana.datasourceUid": {"grafana": {"datasourceUid": "other"}},
    "grafana.alerts": {"grafana": {"alerts": False}},
    "grafana.contactPoint": {"grafana": {"contactPoint": "on call"}},
    "grafana.runbookUrl": {"grafana": {"runbookUrl": "https://wiki.example.com"}},
    "grafana.alertDatasourceUid": {"grafana": {"alertDatasourceUid": "other"}},
    "grafana.dashboardUid": {"grafana": {"dashboardUid": "other"}},
    "workers.errorRate": {"workers": {"errorRate": 0.5}},
    "workers.queueDepth.warning": {"workers": {"queueDepth": {"warning": 1}}},
    "workers.queueDepth.critical": {"workers": {"queueDepth": {"critical": 1000}}},
    "workers.queues": {"workers": {"queues": {"email": {"warning": 1}}}},
    "alerts.queueDepth.warning": {"alerts": {"queueDepth": {"warning": "2m"}}},
    "alerts.queueDepth.critical": {"alerts": {"queueDepth": {"critical": "2m"}}},
    "alerts.errorRate": {"alerts": {"errorRate": "2m"}},
    "alerts.stalled": {"alerts": {"stalled": "2m"}},
    "alerts.proxyDown": {"alerts": {"proxyDown": "2m"}},
    "alerts.reboot": {"alerts": {"reboot": "2h"}},
    "alerts.certificateDays.warning": {"alerts": {"certificateDays": {"warning": 50}}},
    "alerts.certificateDays.critical": {"alerts": {"certificateDays": {"critical": 7}}},
}


def inputs(cloud: Cloud, *types: str) -> list[tuple[str, str]]:
    """What was asked for, of resources of these types or of all."""
    return sorted(
        (r.name, json.dumps(r.inputs, sort_keys=True))
        for r in cloud.resources
        if r.typ in types or not types
    )


@pytest.mark.parametrize("key", CHANGES)
def test_the_page_says_how_a_setting_applies(deploy: Deploy, key: str) -> None:
    before, after = deploy(), deploy(**CHANGES[key])
    address = inputs(before, INTERFACE) != inputs(after, INTERFACE)
    found = []
    if address:
        found.append("new address")
    elif inputs(before, INSTANCE) != inputs(after, INSTANCE):
        found.append("new machine")
        # so that it can be seen which machine answers
        assert before.outputs["declared"]["build"] != after.outputs["declared"]["build"]
    elif inputs(before, VERSION) != inputs(after, VERSION):
        found.append("sync")
    if before.outputs["scrapeConfig"] != after.outputs["scrapeConfig"]:
        found.append("Prometheus")
    if not found:
        changed = inputs(before) != inputs(after)
        found = ["up"] if changed or before.requests != after.requests else []
    assert ", ".join(found) == settings_table()[key].applies.partition(";")[0]


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


DASHBOARD = "grafana:oss/dashboard:Dashboard"
FOLDER = "grafana:oss/folder:Folder"


def test_grafana_can_be_left_out(deploy: Deploy) -> None:
    cloud = deploy(grafana={"enabled": False, "dashboard": "missing.json"})
    assert not [r for r in cloud.resources if r.typ.startswith("grafana:")]
    assert "dashboardUrl" not in cloud.outputs


def test_aws_waits_for_grafana_to_take_the_dashboard(deploy: Deploy) -> None:
    cloud = deploy()
    [dashboard] = [r for r in cloud.requests.values() if r.type == DASHBOARD]
    for request in cloud.requests.values():
        waits = any(urn.endswith(f"::{dashboard.name}") for urn in request.dependencies)
        assert waits == request.type.startswith("aws:"), request.name


def test_the_folder_is_the_stacks_or_somebody_elses(deploy: Deploy) -> None:
    cloud = deploy(stack="dev.eu")
    assert cloud.only(FOLDER) == {"uid": "sba-dev-eu", "title": "SBA"}
    assert cloud.only(DASHBOARD)["folder"] == "sba-dev-eu"
    assert cloud.only(DASHBOARD)["overwrite"] is False
    assert cloud.requests["monitoring-folder"].importId == ""
    cloud = deploy(grafana={"folderUid": "theirs", "overwriteDashboard": True})
    assert cloud.all(FOLDER) == []
    assert cloud.only(DASHBOARD)["folder"] == "theirs"
    assert cloud.only(DASHBOARD)["overwrite"] is True
    adopting = deploy(grafana={"adoptFolder": True}).requests["monitoring-folder"]
    assert adopting.importId == "sba-dev"


def test_the_outputs(deploy: Deploy) -> None:
    cloud = deploy(port=9447, job="api")
    jobs = yaml.safe_load(cloud.outputs["scrapeConfig"])["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["api", "api-proxy"]
    targets = [t for job in jobs for c in job["static_configs"] for t in c["targets"]]
    assert set(targets) == {"10.20.0.10:9447"}
    assert {job["tls_config"]["ca"] for job in jobs} == {"CA\n"}
    assert yaml.safe_load(cloud.outputs["scrapeConfigList"]) == jobs
    objects = list(yaml.safe_load_all(cloud.outputs["scrapeConfigObjects"]))
    assert [it["kind"] for it in objects] == ["ConfigMap", "ScrapeConfig", "ScrapeConfig"]
    texts = ["scrapeConfig", "scrapeConfigList", "scrapeConfigObjects", "prometheusRules"]
    texts += ["alerts", "dashboard"]
    text = user_data(cloud)
    committed = yaml.safe_load(cloud.outputs["userData"])[0]
    assert committed.keys() == {"path", "sha256"}
    assert committed["path"] == "host/user-data/nginx.gz"
    assert text.endswith(cloud.outputs["userData"].split("\n", 2)[2])
    assert cloud.outputs == {
        "proxyUrl": "https://10.20.0.10:9447",
        "proxyTargets": [{"address": "10.20.0.10:9447"}],
        "declared": {
            "build": json.loads(files_of(cloud)["/etc/metrics-proxy/sync.json"])["build"],
            "syncLate": 480,
            "tokenVersion": "the-version",
            "bundleVersion": "the-version",
            "certificateEnd": "2027-11-27T12:00:00Z",
        },
        "privateIp": "10.20.0.10",
        "caCertificate": "CA",
        **{name: cloud.outputs[name] for name in texts},
        "userData": cloud.outputs["userData"],
        "proxyConfiguration": bundle(cloud)["configuration"],
        "tokenSecretArn": "arn:secrets-token",
        "bundleSecretArn": "arn:secrets-bundle",
        "securityGroupId": "network-firewall-id",
        "roleArn": "arn:secrets-role",
        "instanceId": "proxy-instance-id",
        "dashboardUrl": "https://grafana.example.com/d/sba",
    }
    assert not holds(json.dumps(cloud.outputs).encode(), TOKEN)
    # Grafana has them: not for use, and no help in a preview
    assert cloud.secret_outputs == {"prometheusRules"}
    assert deploy(grafana={"alerts": False}).secret_outputs == set()
    assert deploy(grafana={"enabled": False}).secret_outputs == set()


def rule_group(cloud: Cloud) -> dict[str, Any]:
    """The alerts in Grafana; their rules are marked secret, to keep them out of previews."""
    group = cloud.only(RULES)
    rules, secret = reveal(group["rules"])
    assert secret
    return {**group, "rules": rules}


def test_the_alerts_are_grafanas_and_an_output(deploy: Deploy) -> None:
    limits = {"queues": {"mail": {"warning": 7, "critical": 9}}}
    cloud = deploy(workers=limits, grafana={"contactPoint": "on call"})
    group = rule_group(cloud)
    assert (group["name"], group["folderUid"]) == ("metrics-proxy-dev", "sba-dev")
    assert group["intervalSeconds"] == 60
    written = yaml.safe_load(cloud.outputs["prometheusRules"])["groups"][0]["rules"]
    assert len(written) == len(group["rules"]) > 10
    for ours, theirs in zip(written, group["rules"], strict=True):
        query = json.loads(theirs["datas"][0]["model"])
        assert (ours["alert"], ours["expr"]) == (theirs["name"], query["expr"])
        assert theirs["notificationSettings"] == {"contactPoint": "on call"}
    assert "> 7" in written[0]["expr"]


def test_in_a_shared_folder_the_alerts_name_their_stack(deploy: Deploy) -> None:
    group = rule_group(deploy(grafana={"folderUid": "theirs"}))
    assert (group["name"], group["folderUid"]) == ("metrics-proxy-dev", "theirs")
    assert all(rule["name"].endswith(" (dev)") for rule in group["rules"])


def test_alerts_know_no_variable_and_have_a_data_source_of_their_own(deploy: Deploy) -> None:
    grafana = {"datasourceUid": "mimir", "alertDatasourceUid": "prometheus-2"}
    for rule in rule_group(deploy(grafana=grafana))["rules"]:
        assert rule["datas"][0]["datasourceUid"] == "prometheus-2"


def test_alerts_can_be_left_to_prometheus(deploy: Deploy) -> None:
    cloud = deploy(grafana={"alerts": False})
    assert cloud.all(RULES) == []
    assert "SbaProxyDown" in cloud.outputs["prometheusRules"]
    assert "SbaProxyDown" in deploy(grafana={"enabled": False}).outputs["prometheusRules"]


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
