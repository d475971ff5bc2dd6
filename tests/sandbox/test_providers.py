"""The stand-in providers: each refusal over their Python surface, the rest under the engine."""

import asyncio
import base64
import gc
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pulumi
import pulumi_aws as aws
import pulumi_tls as tls
import pulumiverse_grafana as grafana
import pytest
import yaml
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from pulumi import automation as auto
from pulumi.provider.experimental import provider as rpc
from pulumi.runtime.rpc import UNKNOWN

from sandbox import aws as embedded
from sandbox.providers import schema
from sandbox.providers.aws.kind import AwsKind
from sandbox.providers.aws.provider import Aws
from sandbox.providers.base import NAMING, Naming, Provider, UserError, plain, wire_all
from sandbox.providers.grafana import Grafana
from sandbox.providers.tls import Tls
from sandbox.providers.tls import now as tls_now

# the Automation API leaves the event loop of a refused program behind
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROOT = Path(__file__).resolve().parents[2]
ARM, AMD = "ami-0aaaaaaaaaaaaaaa1", "ami-0aaaaaaaaaaaaaaa0"
INSTANCE = "aws:ec2/instance:Instance"
INTERFACE = "aws:ec2/networkInterface:NetworkInterface"
GROUP = "aws:ec2/securityGroup:SecurityGroup"
RULE = "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"
ROLE = "aws:iam/role:Role"
ROLE_POLICY = "aws:iam/rolePolicy:RolePolicy"
PROFILE = "aws:iam/instanceProfile:InstanceProfile"
SECRET = "aws:secretsmanager/secret:Secret"
VERSION = "aws:secretsmanager/secretVersion:SecretVersion"
BALANCER = "aws:lb/loadBalancer:LoadBalancer"
TARGETS = "aws:lb/targetGroup:TargetGroup"
LISTENER = "aws:lb/listener:Listener"
TEMPLATE = "aws:ec2/launchTemplate:LaunchTemplate"
SCALING = "aws:autoscaling/group:Group"
KEY = "tls:index/privateKey:PrivateKey"
REQUEST = "tls:index/certRequest:CertRequest"
SELF_SIGNED = "tls:index/selfSignedCert:SelfSignedCert"
SIGNED = "tls:index/locallySignedCert:LocallySignedCert"
FOLDER = "grafana:oss/folder:Folder"
DASHBOARD = "grafana:oss/dashboard:Dashboard"
RULES = "grafana:alerting/ruleGroup:RuleGroup"


def policy(**statement: Any) -> str:
    return json.dumps(
        {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement}]}, sort_keys=True
    )


TRUST = policy(Action="sts:AssumeRole", Principal={"Service": "ec2.amazonaws.com"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("providers")


@pytest.fixture(scope="module")
def account(folder: Path) -> Iterator[embedded.Account]:
    """The embedded AWS, in this process' environment too: the engine and its plugins inherit it."""
    process, account = embedded.start(
        folder, region="eu-central-1", vpc_cidr="127.9.0.0/16", subnet_cidr="127.9.46.0/24"
    )
    places = [str(ROOT / "sandbox" / "providers" / "bin"), str(ROOT / ".cache" / "bin")]
    (folder / "state").mkdir()
    variables = {
        **account.environment(),
        "PATH": os.pathsep.join([*places, os.environ["PATH"]]),
        "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
        "PULUMI_CONFIG_PASSPHRASE": "test",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        "PULUMI_HOME": str(folder / "home"),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "SANDBOX_GRAFANA_PROVISIONING": str(folder / "grafana"),
        "GRAFANA_URL": "http://grafana.invalid",
        "GRAFANA_AUTH": "nobody asks",
        "SANDBOX_PYTHON": sys.executable,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield account
    process.terminate()
    assert process.wait(10) == 0


class Plugin:
    """A provider without its gRPC: what the engine would send, and what it would get."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider

    def check(self, kind: str, inputs: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The checked inputs, and all that was refused."""
        request = rpc.CheckRequest(urn(kind), {}, wire_all(inputs), b"seed")
        answer = asyncio.run(self.provider.check(request))
        told = [f"{failure.property}: {failure.reason}" for failure in answer.failures or ()]
        return plain(answer.inputs or {}), "\n".join(told)

    def create(self, kind: str, inputs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The id and the state of something new, once its inputs were accepted."""
        checked, refusal = self.check(kind, inputs)
        assert refusal == ""
        request = rpc.CreateRequest(urn(kind), wire_all(checked), 0, False)
        made = asyncio.run(self.provider.create(request))
        return str(made.resource_id), plain(made.properties)

    def diff(
        self, kind: str, state: dict[str, Any], inputs: dict[str, Any], ignore: tuple[str, ...] = ()
    ) -> dict[str, str]:
        """What would change, by path, and how."""
        checked, refusal = self.check(kind, inputs)
        assert refusal == ""
        request = rpc.DiffRequest(urn(kind), "id", wire_all(state), wire_all(checked), list(ignore))
        answer = asyncio.run(self.provider.diff(request))
        assert bool(answer.detailed_diff) == answer.changes
        return {path: change.kind.name for path, change in answer.detailed_diff.items()}

    def update(
        self, kind: str, resource_id: str, state: dict[str, Any], inputs: dict[str, Any]
    ) -> dict[str, Any]:
        """The state after an update in place."""
        checked, refusal = self.check(kind, inputs)
        assert refusal == ""
        request = rpc.UpdateRequest(
            urn(kind), resource_id, wire_all(state), wire_all(checked), 0, [], False
        )
        return dict(plain(asyncio.run(self.provider.update(request)).properties))

    def read(self, kind: str, resource_id: str, state: dict[str, Any]) -> dict[str, Any]:
        """The state after a refresh."""
        request = rpc.ReadRequest(urn(kind), resource_id, wire_all(state), {})
        return dict(plain(asyncio.run(self.provider.read(request)).properties))

    def delete(self, kind: str, resource_id: str, state: dict[str, Any]) -> None:
        """Delete it."""
        request = rpc.DeleteRequest(urn(kind), resource_id, wire_all(state), 0)
        asyncio.run(self.provider.delete(request))


def urn(kind: str) -> str:
    return f"urn:pulumi:test::test::metrics-proxy:index:Part${kind}::thing"


@pytest.fixture
def plugin(account: embedded.Account) -> Plugin:
    """All three providers behind one surface."""
    everything = Aws()
    everything.kinds = {**everything.kinds, **Tls().kinds, **Grafana().kinds}
    assert account.region == everything.session.region
    return Plugin(everything)


def machine(**more: Any) -> dict[str, Any]:
    interface = {"primaryNetworkInterface": {"networkInterfaceId": "eni-1"}}
    return {"ami": ARM, "instanceType": "t4g.micro", **interface, **more}


def rule(**more: Any) -> dict[str, Any]:
    sane = {"securityGroupId": "sg-1", "ipProtocol": "tcp", "fromPort": 443, "toPort": 443}
    return {**sane, "cidrIpv4": "192.0.2.0/24", **more}


def certificate(**more: Any) -> dict[str, Any]:
    sane = {"privateKeyPem": "x", "allowedUses": ["server_auth"], "validityPeriodHours": 10}
    return {**sane, **more}


def alert(**more: Any) -> dict[str, Any]:
    query = {
        "refId": "A",
        "datasourceUid": "prometheus",
        "relativeTimeRange": {"from": 600, "to": 0},
        "model": json.dumps({"expr": "1 - up"}),
    }
    return {"name": "down", "uid": "down", "condition": "A", "for": "2m", "datas": [query], **more}


def group(*alerts: dict[str, Any], **more: Any) -> dict[str, Any]:
    rules = list(alerts or [alert()])
    return {"name": "proxy", "folderUid": "sba", "intervalSeconds": 60, "rules": rules, **more}


def balancer(**inputs: Any) -> dict[str, Any]:
    network = {"internal": True, "loadBalancerType": "network", "subnets": ["s"]}
    return {"name": "b", **network, **inputs}


def targets(**check: Any) -> dict[str, Any]:
    health = {"protocol": "HTTPS", "path": "/healthz", "matcher": "204", **check}
    return {"name": "t", "port": 9446, "protocol": "TCP", "vpcId": "v", "healthCheck": health}


def scaling(**inputs: Any) -> dict[str, Any]:
    template = {"id": "lt-1", "version": "1"}
    return {
        **{"name": "g", "minSize": 2, "maxSize": 4, "launchTemplate": template},
        **{"vpcZoneIdentifiers": ["s"], **inputs},
    }


def refresh(**preferences: Any) -> dict[str, Any]:
    return scaling(instanceRefresh={"strategy": "Rolling", "preferences": preferences})


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    # by the schema of the SDK
    (INSTANCE, machine(userdata="x"), "userdata: is no property of InstanceArgs"),
    (
        *(INSTANCE, machine(metadataOptions={"httpToken": "required"})),
        "metadataOptions.httpToken: is no property of InstanceMetadataOptionsArgs",
    ),
    (INSTANCE, machine(primaryNetworkInterface={}), "networkInterfaceId: is required by"),
    (INSTANCE, machine(tags={"a": 1}), "tags.a: str is wanted, not int"),
    (INSTANCE, machine(rootBlockDevice={"encrypted": "yes"}), "bool is wanted, not str"),
    (INSTANCE, machine(networkInterfaces=[]), "networkInterfaces: is deprecated"),
    (RULE, {"ipProtocol": "tcp"}, "securityGroupId: is required by SecurityGroupIngressRuleArgs"),
    (RULES, {**group(), "rules": [{"name": "x"}]}, "rules[0].datas: is required by RuleGroupRule"),
    # what the SDK knows and the stand-in would silently ignore
    (INSTANCE, machine(launchTemplate={"id": "lt-1"}), "launchTemplate: is not modelled"),
    (ROLE, {"assumeRolePolicy": TRUST, "managedPolicyArns": ["x"]}, "managedPolicyArns: is not"),
    (GROUP, {"ingress": []}, "ingress: is not modelled by the sandbox"),
    # instance
    (INSTANCE, machine(subnetId="subnet-1"), "subnetId: belongs to the interface"),
    (INSTANCE, machine(vpcSecurityGroupIds=["sg-1"]), "vpcSecurityGroupIds: belongs to the"),
    (INSTANCE, machine(privateIp="127.9.46.9"), "privateIp: belongs to the interface"),
    (INSTANCE, machine(securityGroups=["x"]), "securityGroups: is deprecated"),
    (INSTANCE, {"ami": ARM}, "instanceType: is required"),
    (INSTANCE, {"ami": ARM, "instanceType": "t4g.micro"}, "subnetId: or primaryNetworkInterface"),
    (
        INSTANCE,
        machine(userDataBase64=base64.b64encode(bytes(16386)).decode()),
        "userDataBase64: has 16386 bytes, at most 16384",
    ),
    (INSTANCE, machine(metadataOptions={"httpTokens": "yes"}), "must be optional or required"),
    (INSTANCE, machine(metadataOptions={"httpPutResponseHopLimit": 65}), "must be 1 to 64, not 65"),
    (INSTANCE, machine(rootBlockDevice={"volumeType": "ssd"}), "rootBlockDevice.volumeType: must"),
    # network
    (INTERFACE, {"subnetId": "s", "privateIps": ["127.9.46.300"]}, "privateIps[0]: '127.9.46.300'"),
    (INTERFACE, {"subnetId": "s", "privateIps": ["a", "b"]}, "more than one address"),
    (INTERFACE, {"subnetId": "s", "privateIp": "127.9.46.9"}, "privateIp: is not modelled"),
    (GROUP, {"name": "x" * 256}, "name: must have 1 to 255 characters"),
    (GROUP, {"name": "sg-x"}, "name: must not begin with sg-"),
    (GROUP, {"description": "é"}, "description: has a character that EC2 does not allow"),
    (RULE, rule(cidrIpv4="192.0.2.1/24"), "cidrIpv4: 192.0.2.1/24 has host bits set"),
    (RULE, rule(cidrIpv4="192.0.2.1"), "cidrIpv4: '192.0.2.1' has no prefix length"),
    (RULE, rule(cidrIpv4="::/0"), "cidrIpv4: "),
    (RULE, rule(referencedSecurityGroupId="sg-2"), "exactly one of cidrIpv4"),
    (RULE, rule(cidrIpv4=None), "exactly one of cidrIpv4"),
    (RULE, rule(fromPort=444), "fromPort: 444 to 443 is no range of ports"),
    (RULE, rule(toPort=65536), "fromPort: 443 to 65536 is no range of ports"),
    (RULE, rule(toPort=None), "fromPort: and toPort are required when ipProtocol is tcp"),
    (RULE, rule(ipProtocol="-1"), "must not be given when ipProtocol is -1"),
    (RULE, rule(ipProtocol="tpc"), "ipProtocol: 'tpc' is not modelled"),
    # access
    (ROLE, {"assumeRolePolicy": TRUST, "name": "x" * 65}, "name: has 65 characters, at most 64"),
    (ROLE, {"assumeRolePolicy": TRUST, "name": "a b"}, "name: 'a b' has a character"),
    (ROLE, {"assumeRolePolicy": "{"}, "assumeRolePolicy: is no JSON object with a Statement"),
    (ROLE, {"assumeRolePolicy": policy(Action="x")}, "has a statement without Principal"),
    (ROLE_POLICY, {"role": "r", "policy": policy(Action="x")}, "has a statement without Resource"),
    (
        *(ROLE_POLICY, {"role": "r", "policy": policy(Action="x", Resource="y" * 10_240)}),
        "policy: has more than 10240 characters",
    ),
    (PROFILE, {"name": "x" * 129}, "name: has 129 characters, at most 128"),
    (SECRET, {"name": "x" * 513}, "name: has 513 characters, at most 512"),
    (SECRET, {"name": "a b"}, "name: 'a b' has a character that is not allowed"),
    (SECRET, {"recoveryWindowInDays": 6}, "recoveryWindowInDays: must be 0 or 7 to 30, not 6"),
    (VERSION, {"secretId": "s", "secretString": "x" * 65_537}, "secretString: has 65537 bytes"),
    (VERSION, {"secretId": "s", "secretString": ""}, "secretString: has 0 bytes"),
    (VERSION, {"secretId": "s"}, "secretString: is required"),
    # a fleet
    (BALANCER, balancer(name="x" * 33), "name: has 33 characters, at most 32"),
    (BALANCER, balancer(name="b-"), "name: 'b-' may have letters"),
    (BALANCER, balancer(name="internal-b"), "name: must not begin with internal-"),
    (BALANCER, balancer(loadBalancerType="application"), "loadBalancerType: application is not"),
    (BALANCER, balancer(internal=False), "internal: a balancer for everybody"),
    (BALANCER, balancer(subnets=None), "subnets: is required"),
    (BALANCER, balancer(idleTimeout=60), "idleTimeout: is not modelled"),
    (TARGETS, targets(interval=4), "healthCheck.interval: must be 5 to 300, not 4"),
    (TARGETS, targets(timeout=121), "healthCheck.timeout: must be 2 to 120, not 121"),
    (TARGETS, targets(interval=5, timeout=6), "healthCheck.timeout: 6 is longer than the interval"),
    (TARGETS, targets(healthyThreshold=1), "healthCheck.healthyThreshold: must be 2 to 10, not 1"),
    (TARGETS, targets(protocol="TLS"), "healthCheck.protocol: must be HTTP, HTTPS or TCP"),
    (TARGETS, targets(protocol="TCP"), "healthCheck.path: is not for a health check of the"),
    (TARGETS, targets(matcher="100"), "healthCheck.matcher: '100' must be codes of 200 to 599"),
    (TARGETS, targets(matcher="ok"), "healthCheck.matcher: 'ok' must be codes"),
    (TARGETS, targets(path="healthz"), "healthCheck.path: 'healthz' must begin with /"),
    (TARGETS, targets(port="0"), "healthCheck.port: must be traffic-port or a port"),
    (
        TARGETS,
        {**targets(), "deregistrationDelay": 3_601},
        "deregistrationDelay: must be 0 to 3600",
    ),
    (TARGETS, {**targets(), "vpcId": None}, "vpcId: is required"),
    (TARGETS, {**targets(), "preserveClientIp": "yes"}, "preserveClientIp: must be true or false"),
    (LISTENER, {"loadBalancerArn": "a", "defaultActions": []}, "port: is required"),
    (
        *(LISTENER, {"loadBalancerArn": "a", "port": 1, "protocol": "TCP", "defaultActions": []}),
        "defaultActions: a network balancer's listener has one, not 0",
    ),
    (TEMPLATE, {"name": "ab"}, "name: 'ab' must have 3 to 128"),
    (
        *(TEMPLATE, {"userData": base64.b64encode(bytes(16_385)).decode()}),
        "userData: has 16385 bytes, at most 16384",
    ),
    (TEMPLATE, {"metadataOptions": {"httpTokens": "maybe"}}, "metadataOptions.httpTokens: must be"),
    (
        *(TEMPLATE, {"tagSpecifications": [{"resourceType": "disk", "tags": {}}]}),
        "tagSpecifications[0].resourceType: must be one of instance",
    ),
    (
        *(TEMPLATE, {"networkInterfaces": [{}], "vpcSecurityGroupIds": ["sg-1"]}),
        "vpcSecurityGroupIds: belong to the interface",
    ),
    (SCALING, scaling(minSize=5), "desiredCapacity: 5 must be between minSize, 5, and maxSize"),
    (SCALING, scaling(desiredCapacity=5), "desiredCapacity: 5 must be between minSize, 2"),
    (SCALING, scaling(healthCheckType="HTTP"), "healthCheckType: must be EC2 or ELB"),
    (SCALING, scaling(launchTemplate=None), "launchTemplate: is required"),
    (SCALING, scaling(launchTemplate={"version": "1"}), "launchTemplate: must have one of id and"),
    (SCALING, scaling(vpcZoneIdentifiers=[]), "vpcZoneIdentifiers: is required"),
    (SCALING, scaling(waitForCapacityTimeout="soon"), "waitForCapacityTimeout: 'soon' is no"),
    (SCALING, scaling(capacityRebalance=True), "capacityRebalance: is not modelled"),
    (SCALING, refresh(minHealthyPercentage=101), "minHealthyPercentage: must be 0 to 100, not 101"),
    (SCALING, refresh(maxHealthyPercentage=200), "minHealthyPercentage: is required beside"),
    (
        *(SCALING, refresh(minHealthyPercentage=90, maxHealthyPercentage=200)),
        "maxHealthyPercentage: may be at most 100 above",
    ),
    (
        SCALING,
        {**refresh(autoRollback=True), "launchTemplate": {"id": "lt-1", "version": "$Latest"}},
        "autoRollback: needs a numbered version of the template, not $Latest",
    ),
    (SCALING, refresh(skipMatching=True), "skipMatching: is not modelled"),
    # keys and certificates
    (KEY, {"algorithm": "DSA"}, "algorithm: must be RSA, ECDSA or ED25519"),
    (KEY, {"algorithm": "ECDSA", "ecdsaCurve": "P-256"}, "ecdsaCurve: must be one of"),
    (REQUEST, {"privateKeyPem": "x", "ipAddresses": ["127.0.0.1/8"]}, "ipAddresses[0]: '127.0."),
    (REQUEST, {"privateKeyPem": "x", "dnsNames": ["https://a"]}, "dnsNames[0]: 'https://a' is no"),
    (REQUEST, {"dnsNames": ["a"]}, "privateKeyPem: is required"),
    (SELF_SIGNED, certificate(allowedUses=["serverauth"]), "allowedUses[0]: 'serverauth' is no"),
    (SELF_SIGNED, certificate(validityPeriodHours=-1), "validityPeriodHours: must not be negative"),
    (SELF_SIGNED, certificate(subject={"comonName": "x"}), "subject.comonName: is no property"),
    # Grafana
    (FOLDER, {"title": " "}, "title: must not be empty"),
    (FOLDER, {"title": "x", "uid": "x" * 41}, "uid: has 41 characters, at most 40"),
    (FOLDER, {"title": "x", "uid": "a.b"}, "uid: 'a.b' may have letters, digits"),
    (DASHBOARD, {"configJson": "{"}, "configJson: is no JSON"),
    (DASHBOARD, {"configJson": '{"uid": "a"}'}, "configJson: must be an object with a title"),
    (DASHBOARD, {"configJson": json.dumps({"title": "t", "uid": "x" * 41})}, "configJson.uid: has"),
    (RULES, group(intervalSeconds=65), "intervalSeconds: must be a multiple of 10, not 65"),
    (RULES, {**group(), "rules": []}, "rules: must not be empty"),
    (RULES, group(alert(), alert(name="b")), "rules: have the uid 'down' twice"),
    (RULES, group(alert(), alert(uid="b")), "rules: have the name 'down' twice"),
    (RULES, group(alert(uid="x" * 41)), "rules[0].uid: has 41 characters"),
    (RULES, group(alert(condition="B")), "rules[0].condition: 'B' is none of A"),
    (RULES, group(alert(noDataState="Ok")), "rules[0].noDataState: 'Ok' is none of"),
    (RULES, group(alert(execErrState="NoData")), "rules[0].execErrState: 'NoData' is none of"),
    (RULES, group(alert(**{"for": "2 min"})), "rules[0].for: '2 min' is no duration"),
    (
        *(RULES, group(alert(datas=[{**alert()["datas"][0], "model": "[]"}]))),
        "rules[0].datas[0].model: is no JSON object",
    ),
    (RULES, group(alert(notificationSettings={"groupWait": "1m"})), "contactPoint: is required"),
]


@pytest.mark.parametrize(("kind", "inputs", "wanted"), REFUSALS, ids=lambda v: str(v)[-60:])
def test_refused_before_anything_is_made(
    plugin: Plugin, kind: str, inputs: dict[str, Any], wanted: str
) -> None:
    _, refusal = plugin.check(kind, inputs)
    assert wanted in refusal


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (
            INSTANCE,
            machine(
                userDataBase64=base64.b64encode(bytes(16384)).decode(),
                metadataOptions={"httpPutResponseHopLimit": 64},
            ),
        ),
        (INSTANCE, machine(ami=UNKNOWN, userDataBase64=UNKNOWN, tags={"Name": UNKNOWN})),
        (INTERFACE, {"subnetId": UNKNOWN, "privateIps": UNKNOWN, "securityGroups": [UNKNOWN]}),
        (RULE, rule(cidrIpv4=UNKNOWN, fromPort=UNKNOWN)),
        (RULE, {"securityGroupId": "sg-1", "ipProtocol": "-1", "cidrIpv4": "0.0.0.0/0"}),
        (ROLE, {"assumeRolePolicy": UNKNOWN, "name": "x" * 64}),
        (ROLE_POLICY, {"role": "r", "policy": UNKNOWN}),
        (SECRET, {"name": "metrics-proxy/dev/admin-token", "recoveryWindowInDays": 0}),
        (VERSION, {"secretId": UNKNOWN, "secretString": UNKNOWN}),
        (VERSION, {"secretId": "s", "secretString": "x" * 65_536}),
        (REQUEST, {"privateKeyPem": UNKNOWN, "ipAddresses": [UNKNOWN, "::1"]}),
        (DASHBOARD, {"configJson": UNKNOWN, "folder": UNKNOWN}),
        (RULES, group(alert(uid="x" * 40, **{"for": "1h30m"}), folderUid=UNKNOWN)),
    ],
    ids=lambda v: str(v)[-60:],
)
def test_accepted_up_to_the_limit_and_while_unknown(
    plugin: Plugin, kind: str, inputs: dict[str, Any]
) -> None:
    assert plugin.check(kind, inputs)[1] == ""


def test_a_refusal_never_tells_a_secret(plugin: Plugin) -> None:
    secret = {"secretId": "s", "secretString": ["canary-77ab"]}
    assert "canary-77ab" not in plugin.check(VERSION, secret)[1] != ""


def test_an_unknown_type_function_or_setting_is_named(plugin: Plugin) -> None:
    with pytest.raises(UserError, match="no aws:s3/bucket:Bucket"):
        plugin.check("aws:s3/bucket:Bucket", {})
    call = rpc.InvokeRequest("aws:ec2/getVpc:getVpc", {})
    with pytest.raises(UserError, match="no function aws:ec2/getVpc:getVpc"):
        asyncio.run(plugin.provider.invoke(call))
    call = rpc.InvokeRequest("aws:ec2/getSubnet:getSubnet", wire_all({"vpcId": "vpc-1"}))
    with pytest.raises(UserError, match="getSubnet: the sandbox does not model vpcId"):
        asyncio.run(plugin.provider.invoke(call))
    setting = rpc.ConfigureRequest({}, wire_all({"profile": "prod"}), True, True)
    with pytest.raises(UserError, match="setting aws:profile"):
        asyncio.run(plugin.provider.configure(setting))


def test_the_real_aws_is_never_reached(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL is not set"):
        plugin.create(SECRET, {"name": "x"})


def test_ami_lookup(plugin: Plugin) -> None:
    def look_up(**arguments: Any) -> Any:
        request = rpc.InvokeRequest("aws:ec2/getAmi:getAmi", wire_all(arguments))
        return plain(asyncio.run(plugin.provider.invoke(request)).return_value)

    arm = {"owners": [embedded.DEBIAN], "filters": [{"name": "name", "values": ["*-arm64-20*"]}]}
    assert look_up(**arm, mostRecent=True)["id"] == "ami-0bbbbbbbbbbbbbbb1"
    assert look_up(**arm, nameRegex="20250814")["id"] == ARM
    with pytest.raises(UserError, match="2 AMIs match"):
        look_up(**arm)
    with pytest.raises(UserError, match="no AMI matches"):
        look_up(owners=["099720109477"], mostRecent=True)


def test_an_interface_has_one_address_and_one_machine(
    plugin: Plugin, account: embedded.Account
) -> None:
    where = {"subnetId": account.subnet_id}
    for address, wanted in (("127.9.46.3", "no usable"), ("127.9.47.9", "no usable address")):
        with pytest.raises(UserError, match=wanted):
            plugin.create(INTERFACE, {**where, "privateIps": [address]})
    interface, state = plugin.create(INTERFACE, {**where, "privateIps": ["127.9.46.77"]})
    with pytest.raises(UserError, match=f"127.9.46.77 is in use by {interface}"):
        plugin.create(INTERFACE, {**where, "privateIps": ["127.9.46.77"]})
    own = machine(primaryNetworkInterface={"networkInterfaceId": interface})
    instance, running = plugin.create(INSTANCE, own)
    assert running["privateIp"] == state["privateIp"] == "127.9.46.77"
    with pytest.raises(ClientError, match=rf"\(InvalidNetworkInterface.InUse\).*{interface}"):
        plugin.create(INSTANCE, own)
    with pytest.raises(UserError, match="is in use, so it cannot be deleted"):
        plugin.delete(INTERFACE, interface, state)
    plugin.delete(INSTANCE, instance, running)
    plugin.delete(INTERFACE, interface, state)


def test_the_lowest_free_address_is_chosen(plugin: Plugin, account: embedded.Account) -> None:
    made = [plugin.create(INTERFACE, {"subnetId": account.subnet_id}) for _ in range(2)]
    assert [state["privateIp"] for _, state in made] == ["127.9.46.4", "127.9.46.5"]
    for interface, state in made:
        plugin.delete(INTERFACE, interface, state)


def test_a_group_in_use_stays(plugin: Plugin, account: embedded.Account) -> None:
    inputs = {"vpcId": account.vpc_id}
    (used, state), (peer, peer_state) = (
        plugin.create(GROUP, {**inputs, "name": name}) for name in ("used", "peer")
    )
    where = {"subnetId": account.subnet_id, "securityGroups": [used]}
    interface, interface_state = plugin.create(INTERFACE, where)
    with pytest.raises(UserError, match=f"{used} is in use by {interface}, so"):
        plugin.delete(GROUP, used, state)
    plugin.delete(INTERFACE, interface, interface_state)
    reference = rule(securityGroupId=peer, cidrIpv4=None, referencedSecurityGroupId=used)
    made, rule_state = plugin.create(RULE, reference)
    with pytest.raises(UserError, match=f"{used} is in use by {peer}, so"):
        plugin.delete(GROUP, used, state)
    with pytest.raises(ClientError, match=r"InvalidPermission\.Duplicate"):
        plugin.create(RULE, reference)
    plugin.delete(RULE, made, rule_state)
    plugin.delete(GROUP, used, state)
    plugin.delete(GROUP, peer, peer_state)


def test_a_group_of_another_vpc_is_refused(plugin: Plugin, account: embedded.Account) -> None:
    ec2 = account.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    stranger, state = plugin.create(GROUP, {"vpcId": vpc, "name": "stranger"})
    with pytest.raises(UserError, match="is not of the subnet's VPC"):
        plugin.create(INTERFACE, {"subnetId": account.subnet_id, "securityGroups": [stranger]})
    plugin.delete(GROUP, stranger, state)
    ec2.delete_vpc(VpcId=vpc)


def test_roles_and_profiles_in_use_stay(plugin: Plugin, account: embedded.Account) -> None:
    role, role_state = plugin.create(ROLE, {"name": "used", "assumeRolePolicy": TRUST})
    profile, profile_state = plugin.create(PROFILE, {"name": "used", "role": role})
    with pytest.raises(ClientError, match="DeleteConflict"):
        plugin.delete(ROLE, role, role_state)
    inputs = {"ami": ARM, "instanceType": "t4g.micro", "subnetId": account.subnet_id}
    instance, state = plugin.create(INSTANCE, {**inputs, "iamInstanceProfile": profile})
    with pytest.raises(UserError, match=f"instance profile used is in use by {instance}"):
        plugin.delete(PROFILE, profile, profile_state)
    plugin.delete(INSTANCE, instance, state)
    plugin.delete(PROFILE, profile, profile_state)
    plugin.delete(ROLE, role, role_state)
    assert account.client("ec2").describe_network_interfaces()["NetworkInterfaces"] == []
    with pytest.raises(ClientError, match="NoSuchEntity"):
        plugin.create(INSTANCE, {**inputs, "iamInstanceProfile": "nobody"})


def test_a_volume_has_its_tags_and_the_default_ones(
    plugin: Plugin, account: embedded.Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = plugin.provider.kinds[INSTANCE]
    assert isinstance(kind, AwsKind)
    monkeypatch.setitem(kind.session.settings, "defaultTags", {"tags": {"team": "sre"}})
    inputs = {"ami": ARM, "instanceType": "t4g.micro", "subnetId": account.subnet_id}

    def tags() -> dict[str, str]:
        volumes = account.client("ec2").describe_volumes()["Volumes"]
        return {tag["Key"]: tag["Value"] for one in volumes for tag in one["Tags"]}

    instance, state = plugin.create(INSTANCE, {**inputs, "volumeTags": {"a": "1", "b": "2"}})
    assert tags() == {"team": "sre", "a": "1", "b": "2"}
    assert plugin.read(INSTANCE, instance, state)["volumeTags"] == {"a": "1", "b": "2"}
    changed = {**inputs, "volumeTags": {"b": "3"}}
    state = plugin.update(INSTANCE, instance, state, changed)
    assert tags() == {"team": "sre", "b": "3"}
    assert "volumeTags" not in plugin.diff(INSTANCE, state, changed)
    plugin.delete(INSTANCE, instance, state)


def test_a_name_that_the_engine_proposes_is_taken(plugin: Plugin) -> None:
    def name() -> str:
        return str(plugin.check(ROLE, {"assumeRolePolicy": TRUST})[0]["name"])

    assert re.fullmatch("thing-[0-9a-f]{7}", name())
    token = NAMING.set(Naming(proposed_name="acme-role", mode=Naming.ENFORCE))
    assert name() == "acme-role"
    NAMING.set(Naming(mode=Naming.DISABLE))
    with pytest.raises(UserError, match="does not model pulumi:autonaming mode: disabled"):
        name()
    NAMING.reset(token)


def test_a_secret_waits_for_its_deletion(plugin: Plugin, account: embedded.Account) -> None:
    arn, state = plugin.create(SECRET, {"name": "waiting", "recoveryWindowInDays": 7})
    plugin.delete(SECRET, arn, state)
    with pytest.raises(UserError, match="a secret named waiting is scheduled for deletion"):
        plugin.create(SECRET, {"name": "waiting"})
    manager = account.client("secretsmanager")
    manager.delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)
    arn, state = plugin.create(SECRET, {"name": "waiting", "recoveryWindowInDays": 0})
    plugin.delete(SECRET, arn, state)
    assert manager.list_secrets(IncludePlannedDeletion=True)["SecretList"] == []


STATE = {"privateIp": "127.9.46.9", "arn": "arn", "tagsAll": {}}


@pytest.mark.parametrize(
    ("kind", "old", "new", "wanted"),
    [
        (INSTANCE, machine(), machine(instanceType="t4g.small"), {"instanceType": "UPDATE"}),
        (
            *(INSTANCE, machine(), machine(instanceType="t3.micro", ami=AMD)),
            {"ami": "UPDATE_REPLACE", "instanceType": "UPDATE_REPLACE"},
        ),
        (
            INSTANCE,
            machine(userDataBase64="YQ=="),
            machine(userDataBase64="Yg=="),
            {"userDataBase64": "UPDATE"},
        ),
        (
            INSTANCE,
            machine(userDataBase64="YQ==", userDataReplaceOnChange=True),
            machine(userDataBase64="Yg==", userDataReplaceOnChange=True),
            {"userDataBase64": "UPDATE_REPLACE"},
        ),
        (
            INSTANCE,
            machine(metadataOptions={"httpTokens": "optional"}),
            machine(metadataOptions={"httpTokens": "required", "httpEndpoint": "enabled"}),
            {"metadataOptions.httpTokens": "UPDATE", "metadataOptions.httpEndpoint": "ADD"},
        ),
        (
            INSTANCE,
            machine(rootBlockDevice={"volumeSize": 8, "encrypted": False}),
            machine(rootBlockDevice={"volumeSize": 9, "encrypted": False}),
            {"rootBlockDevice.volumeSize": "UPDATE"},
        ),
        (
            INSTANCE,
            machine(rootBlockDevice={"encrypted": False}),
            machine(rootBlockDevice={"encrypted": True}),
            {"rootBlockDevice.encrypted": "UPDATE_REPLACE"},
        ),
        (
            *(INSTANCE, machine(), machine(primaryNetworkInterface={"networkInterfaceId": "x"})),
            {"primaryNetworkInterface.networkInterfaceId": "UPDATE_REPLACE"},
        ),
        (
            INTERFACE,
            {"subnetId": "s", "securityGroups": ["a", "b"], "privateIps": ["127.9.46.9"]},
            {"subnetId": "s", "securityGroups": ["b", "a"]},
            {},
        ),
        (
            INTERFACE,
            {"subnetId": "s", "privateIps": ["127.9.46.9"]},
            {"subnetId": "s", "privateIps": ["127.9.46.8"]},
            {"privateIps[0]": "UPDATE_REPLACE"},
        ),
        (GROUP, {"description": "a"}, {"description": "b"}, {"description": "UPDATE_REPLACE"}),
        (GROUP, {"name": "a", "tags": {"a": "1"}}, {"name": "a"}, {"tags": "DELETE"}),
        (RULE, rule(), rule(cidrIpv4="198.51.100.0/24"), {"cidrIpv4": "UPDATE"}),
        (
            *(RULE, rule(), rule(cidrIpv4=None, referencedSecurityGroupId="sg-2")),
            {"cidrIpv4": "DELETE_REPLACE", "referencedSecurityGroupId": "ADD_REPLACE"},
        ),
        (RULE, rule(ipProtocol="tcp"), rule(ipProtocol="6"), {}),
        (ROLE, {"assumeRolePolicy": TRUST}, {"assumeRolePolicy": f" {TRUST}"}, {}),
        (
            *(ROLE_POLICY, {"role": "r", "policy": policy(Action="a", Resource="b")}),
            {"role": "r", "policy": policy(Action="a", Resource="c")},
            {"policy": "UPDATE"},
        ),
        (SECRET, {"name": "a"}, {"name": "b"}, {"name": "UPDATE_REPLACE"}),
        (SECRET, {"name": "a"}, {"name": "a", "kmsKeyId": "k"}, {"kmsKeyId": "ADD"}),
        (
            *(VERSION, {"secretId": "s", "secretString": "a"}),
            {"secretId": "s", "secretString": "b"},
            {"secretString": "UPDATE_REPLACE"},
        ),
        (
            *(SELF_SIGNED, certificate(allowedUses=["server_auth", "client_auth"])),
            certificate(allowedUses=["client_auth", "server_auth"]),
            {"allowedUses[0]": "UPDATE_REPLACE", "allowedUses[1]": "UPDATE_REPLACE"},
        ),
        (
            *(SELF_SIGNED, certificate(), certificate(earlyRenewalHours=2)),
            {"earlyRenewalHours": "UPDATE"},
        ),
        (FOLDER, {"title": "a", "uid": "a"}, {"title": "b", "uid": "a"}, {"title": "UPDATE"}),
        (
            *(DASHBOARD, {"configJson": '{"uid":"a","title":"t","panels":[{"id":1}]}'}),
            {"configJson": '{"title": "t", "uid": "a", "id": 5, "panels": [{"id": 2}]}'},
            {},
        ),
        (
            *(DASHBOARD, {"configJson": '{"uid":"a","title":"t"}'}),
            {"configJson": '{"uid":"b","title":"t"}'},
            {"configJson": "UPDATE_REPLACE"},
        ),
        (RULES, group(alert(**{"for": "2m"})), group(alert(**{"for": "120s"})), {}),
        (RULES, group(), group(alert(**{"for": "5m"})), {"rules[0].for": "UPDATE"}),
        (RULES, group(), group(name="other"), {"name": "UPDATE_REPLACE"}),
    ],
    ids=lambda v: str(v)[-60:],
)
def test_what_a_change_does(
    plugin: Plugin, kind: str, old: dict[str, Any], new: dict[str, Any], wanted: dict[str, str]
) -> None:
    state = {**plugin.check(kind, old)[0], **STATE, "uid": "a"}
    if kind == SELF_SIGNED:
        state["validityEndTime"] = (tls_now() + timedelta(hours=9)).isoformat()
    if "tags" in old:
        state["tagsAll"] = old["tags"]
        wanted = {**wanted, "tagsAll.a": "DELETE"}
    assert plugin.diff(kind, state, new) == wanted
    assert plugin.diff(kind, state, new, tuple({*new, *old, "tagsAll"})) == {}


SEEN = {"description": "new", "kmsKeyId": "old", "tags": {"a": "1"}}
READ_BY = policy(Action="secretsmanager:GetSecretValue", Principal="*", Resource="*")


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (
            *(ROLE, {"name": "updated", "assumeRolePolicy": TRUST, "tags": {"a": "1", "b": "1"}}),
            {
                "name": "updated",
                "assumeRolePolicy": TRUST.replace("ec2", "lambda"),
                "description": "new",
                "maxSessionDuration": 7200,
                "tags": {"b": "2"},
            },
        ),
        (
            *(PROFILE, {"name": "updated", "role": "one", "tags": {"a": "1"}}),
            {"name": "updated", "role": "two", "tags": {"b": "2"}},
        ),
        (
            SECRET,
            {"name": "updated", "recoveryWindowInDays": 0, **SEEN, "description": "old"},
            {"name": "updated", "recoveryWindowInDays": 0, **SEEN, "kmsKeyId": "new"},
        ),
        (
            *(SECRET, {"name": "updated", "recoveryWindowInDays": 0}),
            {"name": "updated", "recoveryWindowInDays": 0, "policy": READ_BY},
        ),
        (
            *(GROUP, {"name": "updated", "tags": {"a": "1"}}),
            {"name": "updated", "tags": {"b": "2"}},
        ),
        (
            *(INTERFACE, {"description": "old", "tags": {"a": "1"}}),
            {"description": "new", "sourceDestCheck": False, "securityGroups": ["GROUP"]},
        ),
        (
            INSTANCE,
            {
                "userDataBase64": "b2xk",
                "tags": {"a": "1"},
                "metadataOptions": {"httpTokens": "optional"},
            },
            {
                "userDataBase64": "bmV3",
                "instanceType": "t4g.small",
                "iamInstanceProfile": "host",
                "vpcSecurityGroupIds": ["GROUP"],
                "metadataOptions": {"httpTokens": "required"},
                "tags": {"b": "2"},
            },
        ),
    ],
    ids=lambda v: str(v)[:40],
)
def test_an_update_reaches_aws(
    plugin: Plugin,
    account: embedded.Account,
    kind: str,
    old: dict[str, Any],
    new: dict[str, Any],
) -> None:
    helpers = [(ROLE, {"name": name, "assumeRolePolicy": TRUST}) for name in ("one", "two")]
    helpers += [(PROFILE, {"name": "host"}), (GROUP, {"name": "g", "vpcId": account.vpc_id})]
    made = [(token, *plugin.create(token, inputs)) for token, inputs in helpers]
    more: dict[str, Any] = {
        GROUP: {"vpcId": account.vpc_id},
        INTERFACE: {"subnetId": account.subnet_id},
        INSTANCE: {"ami": ARM, "instanceType": "t4g.micro", "subnetId": account.subnet_id},
    }.get(kind, {})
    new = json.loads(json.dumps({**more, **new}).replace("GROUP", made[-1][1]))
    resource_id, state = plugin.create(kind, {**more, **old})
    after = plugin.update(kind, resource_id, state, new)
    try:
        # what the update says it did, what AWS says, and what the program wants are one
        seen = plugin.read(kind, resource_id, after)
        assert {key: seen[key] for key in new} == new
        assert plugin.diff(kind, seen, new) == {}
        assert seen["tagsAll"] == new.get("tags", {})
        back = plugin.update(kind, resource_id, seen, {**more, **old})
        assert plugin.diff(kind, plugin.read(kind, resource_id, back), {**more, **old}) == {}
    finally:
        plugin.delete(kind, resource_id, state if kind != PROFILE else {**state, "role": "one"})
        for token, helper, helper_state in reversed(made):
            plugin.delete(token, helper, helper_state)


def test_what_is_gone_is_read_as_gone(plugin: Plugin, account: embedded.Account) -> None:
    inputs = {"vpcId": account.vpc_id, "name": "gone"}
    resource_id, state = plugin.create(GROUP, inputs)
    plugin.delete(GROUP, resource_id, state)
    request = rpc.ReadRequest(urn(GROUP), resource_id, wire_all(state), {})
    assert asyncio.run(plugin.provider.read(request)).resource_id == ""


def test_an_import_finds_its_inputs(plugin: Plugin, account: embedded.Account) -> None:
    inputs = {"vpcId": account.vpc_id, "name": "imported", "tags": {"a": "1"}}
    resource_id, state = plugin.create(GROUP, inputs)
    request = rpc.ReadRequest(urn(GROUP), resource_id, {}, {})
    answer = asyncio.run(plugin.provider.read(request))
    found = plain(answer.inputs)
    assert found["name"] == "imported"
    assert found["tags"] == {"a": "1"}
    assert "arn" not in found
    plugin.delete(GROUP, resource_id, state)


def test_the_provider_itself_marks_private_keys(plugin: Plugin) -> None:
    """The SDK marks them too, which would hide a provider that does not."""
    inputs, _ = plugin.check(KEY, {"algorithm": "ECDSA", "ecdsaCurve": "P256"})
    for preview in (True, False):
        request = rpc.CreateRequest(urn(KEY), wire_all(inputs), 0, preview)
        properties = asyncio.run(plugin.provider.create(request)).properties
        secret = {key for key, value in properties.items() if value.is_secret}
        assert secret == {"privateKeyOpenssh", "privateKeyPem", "privateKeyPemPkcs8"}


def test_real_certificates(plugin: Plugin) -> None:
    keys = [plugin.create(KEY, {"algorithm": "ECDSA", "ecdsaCurve": "P256"})[1] for _ in range(2)]
    ca_key, key = (one["privateKeyPem"] for one in keys)
    _, ca = plugin.create(
        SELF_SIGNED,
        certificate(
            privateKeyPem=ca_key,
            subject={"commonName": "CA"},
            isCaCertificate=True,
            allowedUses=["cert_signing", "crl_signing"],
            validityPeriodHours=100,
        ),
    )
    _, request = plugin.create(
        REQUEST,
        {
            "privateKeyPem": key,
            "subject": {"commonName": "proxy"},
            "dnsNames": ["prometheus-api.local"],
            "ipAddresses": ["127.9.46.9"],
        },
    )
    inputs = {
        "caCertPem": ca["certPem"],
        "caPrivateKeyPem": ca_key,
        "certRequestPem": request["certRequestPem"],
        "allowedUses": ["digital_signature", "server_auth"],
        "validityPeriodHours": 10,
        "earlyRenewalHours": 3,
    }
    number, leaf = plugin.create(SIGNED, inputs)
    parent, child = (x509.load_pem_x509_certificate(c["certPem"].encode()) for c in (ca, leaf))
    child.verify_directly_issued_by(parent)
    assert str(child.serial_number) == number
    assert child.not_valid_after_utc - child.not_valid_before_utc == timedelta(hours=10)
    extension = child.extensions.get_extension_for_class
    names = extension(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["prometheus-api.local"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.9.46.9"]
    usage = extension(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert list(extension(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not extension(x509.BasicConstraints).value.ca
    own = parent.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert extension(x509.AuthorityKeyIdentifier).value.key_identifier == own.digest
    assert parent.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert parent.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    with pytest.raises(UserError, match="caPrivateKeyPem is not the key of caCertPem"):
        plugin.create(SIGNED, {**inputs, "caPrivateKeyPem": key})
    with pytest.raises(UserError, match="a CA needs at least one name"):
        plugin.create(SELF_SIGNED, certificate(privateKeyPem=key, isCaCertificate=True))


@pytest.mark.parametrize(
    ("hours", "wanted"), [(6.9, {}), (7.1, {"readyForRenewal": "UPDATE_REPLACE"})]
)
def test_a_certificate_is_renewed_in_its_window(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch, hours: float, wanted: dict[str, str]
) -> None:
    _, key = plugin.create(KEY, {"algorithm": "ED25519"})
    inputs = certificate(privateKeyPem=key["privateKeyPem"], earlyRenewalHours=3)
    _, state = plugin.create(SELF_SIGNED, inputs)
    monkeypatch.setenv("SANDBOX_TLS_NOW", (tls_now() + timedelta(hours=hours)).isoformat())
    assert plugin.diff(SELF_SIGNED, state, inputs) == wanted


def test_grafana_refuses_what_needs_a_look_at_the_files(plugin: Plugin, folder: Path) -> None:
    made, state = plugin.create(FOLDER, {"title": "Refusals", "uid": "refusals"})
    for inputs, wanted in (
        ({"title": "Other", "uid": "refusals"}, "uid: a folder with the uid 'refusals' exists"),
        ({"title": "Refusals", "uid": "other"}, "title: a folder with the title"),
    ):
        with pytest.raises(UserError, match=wanted):
            plugin.create(FOLDER, inputs)
    model = json.dumps({"uid": "board", "title": "Board"})
    with pytest.raises(UserError, match="no folder with the uid 'nowhere'"):
        plugin.create(DASHBOARD, {"configJson": model, "folder": "nowhere"})
    board, board_state = plugin.create(DASHBOARD, {"configJson": model, "folder": "refusals"})
    with pytest.raises(UserError, match="the uid 'board' is taken"):
        plugin.create(DASHBOARD, {"configJson": model})
    kept = {**state, "preventDestroyIfNotEmpty": True}
    with pytest.raises(UserError, match=r"folder refusals is in use by board\.json"):
        plugin.delete(FOLDER, made, kept)
    plugin.delete(DASHBOARD, board, board_state)
    with pytest.raises(UserError, match="no folder with the uid 'nowhere'"):
        plugin.create(RULES, group(folderUid="nowhere"))
    rules, rules_state = plugin.create(RULES, group(folderUid="refusals"))
    with pytest.raises(UserError, match="has a group 'proxy' already"):
        plugin.create(RULES, group(folderUid="refusals"))
    with pytest.raises(UserError, match="the uid 'down' is taken"):
        plugin.create(RULES, group(folderUid="refusals", name="other"))
    with pytest.raises(UserError, match=r"in use by refusals\.proxy\.yaml"):
        plugin.delete(FOLDER, made, kept)
    plugin.delete(RULES, rules, rules_state)
    plugin.create(RULES, group(folderUid="refusals"))
    plugin.delete(FOLDER, made, state)  # and what is in it
    assert [file for file in (folder / "grafana").rglob("*") if file.is_file()] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ami": "ami-0123456789abcdef0"}, r"InvalidAMIID\.NotFound"),
        ({"ami": AMD}, "InvalidParameterValue.*'arm64'.*'x86_64'"),
        ({"instanceType": "t9.micro"}, "InvalidInstanceType"),
    ],
)
def test_what_a_machine_is_made_of_is_looked_at_when_it_is_started(
    plugin: Plugin, account: embedded.Account, changes: dict[str, Any], said: str
) -> None:
    """A preview is clean, as the real provider's: `components/preflight.py` is what asks before."""
    inputs = {"ami": ARM, "instanceType": "t4g.micro", "subnetId": account.subnet_id, **changes}
    with pytest.raises(ClientError, match=said):
        plugin.create(INSTANCE, inputs)


@pytest.mark.parametrize(
    ("variables", "preview", "up"),
    [
        ({"GRAFANA_URL": "grafana.example.com"}, "grafana:url: 'grafana.example.com' must", None),
        ({"GRAFANA_URL": ""}, None, "the Grafana client is required"),
        ({"GRAFANA_AUTH": ""}, None, "the Grafana client is required"),
        ({"GRAFANA_AUTH": "admin:x", "GRAFANA_URL": "https://grafana.example.com"}, None, None),
    ],
)
def test_grafana_needs_an_address_and_credentials(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variables: dict[str, str],
    preview: str | None,
    up: str | None,
) -> None:
    """A URL without a scheme is refused in a preview already, what is missing not before `up`."""
    usual = {"GRAFANA_URL": "http://grafana.invalid", "GRAFANA_AUTH": "nobody asks"}
    usual["SANDBOX_GRAFANA_PROVISIONING"] = str(tmp_path)
    for name, value in (usual | variables).items():
        monkeypatch.setenv(name, value)
    provider = Grafana()

    def refusal(step: Callable[[], Any]) -> str | None:
        try:
            asyncio.run(step())
        except UserError as error:
            return str(error)
        return None

    def create(preview: bool) -> Callable[[], Any]:
        inputs = wire_all({"title": "Any", "uid": "any", "preventDestroyIfNotEmpty": False})
        return lambda: provider.create(rpc.CreateRequest(urn(FOLDER), inputs, 0, preview))

    configure = rpc.ConfigureRequest({}, {}, accept_secrets=True, accept_resources=True)
    refused = refusal(lambda: provider.configure(configure))
    assert (refused or "").startswith(preview or "")
    assert bool(refused) == bool(preview)
    if not preview:
        assert refusal(create(preview=True)) is None
        refused = refusal(create(preview=False))
        assert (refused or "").startswith(up or "")
        assert bool(refused) == bool(up)


def test_the_schema_knows_every_kind(plugin: Plugin) -> None:
    """And no kind models an input that its SDK does not have."""
    for token, kind in plugin.provider.kinds.items():
        properties = schema.properties(schema.arguments_class(token)).types
        assert kind.replaces | kind.updates <= properties.keys(), token


# From here on under the real engine.


def program(subnet: str, **change: Any) -> Callable[[], None]:
    """One resource of every type; keywords change what they name."""

    def run() -> None:
        vpc = aws.ec2.get_subnet(id=subnet).vpc_id
        image = aws.ec2.get_ami(
            owners=[embedded.DEBIAN],
            most_recent=True,
            filters=[aws.ec2.GetAmiFilterArgs(name="name", values=["debian-13-arm64-*"])],
        )
        firewall = aws.ec2.SecurityGroup("firewall", vpc_id=vpc, tags=change.get("tags"))
        aws.vpc.SecurityGroupIngressRule(
            "in",
            security_group_id=firewall.id,
            cidr_ipv4=change.get("cidr", "192.0.2.0/24"),
            ip_protocol="tcp",
            from_port=9446,
            to_port=9446,
        )
        aws.vpc.SecurityGroupEgressRule(
            "out", security_group_id=firewall.id, cidr_ipv4="0.0.0.0/0", ip_protocol="-1"
        )
        interface = aws.ec2.NetworkInterface(
            "interface",
            subnet_id=subnet,
            security_groups=[firewall.id],
            private_ips=change.get("addresses"),
        )
        secret = aws.secretsmanager.Secret("secret", name="engine/token", recovery_window_in_days=0)
        aws.secretsmanager.SecretVersion(
            "version",
            secret_id=secret.id,
            secret_string=pulumi.Output.secret(change.get("token", "canary-a90c")),
        )
        role = aws.iam.Role("role", assume_role_policy=TRUST)
        aws.iam.RolePolicy(
            "policy",
            role=role.id,
            policy=secret.arn.apply(
                lambda arn: policy(Action="secretsmanager:GetSecretValue", Resource=arn)
            ),
        )
        profile = aws.iam.InstanceProfile("profile", role=role.name)
        machine = aws.ec2.Instance(
            "machine",
            ami=change.get("ami", image.id),
            instance_type="t4g.micro",
            iam_instance_profile=profile.name,
            user_data_base64=change.get("user_data_base64", "I2Nsb3VkLWNvbmZpZwo="),
            user_data_replace_on_change=True,
            primary_network_interface=aws.ec2.InstancePrimaryNetworkInterfaceArgs(
                network_interface_id=interface.id
            ),
            metadata_options=aws.ec2.InstanceMetadataOptionsArgs(
                http_tokens=change.get("http_tokens", "required")
            ),
            opts=pulumi.ResourceOptions(delete_before_replace=True, ignore_changes=["ami"]),
        )
        key = tls.PrivateKey("key", algorithm="ECDSA", ecdsa_curve="P256")
        ca = tls.SelfSignedCert(
            "ca",
            private_key_pem=key.private_key_pem,
            subject=tls.SelfSignedCertSubjectArgs(common_name="CA"),
            is_ca_certificate=True,
            allowed_uses=["cert_signing"],
            validity_period_hours=24 * 1825,
        )
        request = tls.CertRequest(
            "request", private_key_pem=key.private_key_pem, ip_addresses=[interface.private_ip]
        )
        tls.LocallySignedCert(
            "leaf",
            ca_cert_pem=ca.cert_pem,
            ca_private_key_pem=key.private_key_pem,
            cert_request_pem=request.cert_request_pem,
            allowed_uses=["server_auth"],
            validity_period_hours=24 * 365,
            early_renewal_hours=24 * 90,
        )
        board = grafana.oss.Folder("folder", title=change.get("title", "SBA"), uid="sba-engine")
        model = {"uid": "engine", "title": "Board", "panels": []}
        grafana.oss.Dashboard("board", folder=board.uid, config_json=json.dumps(model))
        alerts = group(folderUid=board.uid)
        query = alerts["rules"][0]["datas"][0]
        grafana.alerting.RuleGroup(
            "alerts",
            name="proxy",
            folder_uid=board.uid,
            interval_seconds=60,
            rules=[
                grafana.alerting.RuleGroupRuleArgs(
                    name="down",
                    uid="down",
                    condition="A",
                    for_="2m",
                    datas=[
                        grafana.alerting.RuleGroupRuleDataArgs(
                            ref_id="A",
                            datasource_uid="prometheus",
                            model=query["model"],
                            relative_time_range=grafana.alerting.RuleGroupRuleDataRelativeTimeRangeArgs(
                                from_=600, to=0
                            ),
                        )
                    ],
                )
            ],
        )
        pulumi.export("instance", machine.id)
        pulumi.export("address", interface.private_ip)
        pulumi.export("mac", interface.mac_address)
        pulumi.export("key", key.private_key_pem)

    return run


class Stack:
    """The engine over `program`."""

    def __init__(self, account: embedded.Account, folder: Path) -> None:
        self.account = account
        self.change: dict[str, Any] = {}  # what was deployed last
        self.stack = auto.create_or_select_stack(
            "test",
            project_name="providers",
            program=lambda: None,
            opts=auto.LocalWorkspaceOptions(
                work_dir=str(folder),
                secrets_provider="passphrase",
                pulumi_command=auto.PulumiCommand(skip_version_check=True),
            ),
        )
        tags = json.dumps({"tags": {"project": "metrics-proxy"}})
        self.stack.set_config("aws:defaultTags", auto.ConfigValue(tags))

    def run(self, operation: str, **change: Any) -> tuple[dict[str, int], str]:
        """Preview or up of the changed program: changes by operation, and what was printed."""
        self.stack.workspace.program = program(self.account.subnet_id, **{**self.change, **change})
        lines: list[str] = []
        more = {"diff": True} if operation == "preview" else {}
        result = getattr(self.stack, operation)(on_output=lines.append, color="never", **more)
        counts = getattr(result, "change_summary", None) or result.summary.resource_changes
        return {str(getattr(k, "value", k)): n for k, n in counts.items()}, "\n".join(lines)

    def outputs(self) -> dict[str, Any]:
        return {name: output.value for name, output in self.stack.outputs().items()}


RESOURCES = 18  # of the program, and the stack itself


@pytest.fixture(scope="module")
def stack(account: embedded.Account, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(account, tmp_path_factory.mktemp("project"))
    assert stack.run("preview")[0] == {"create": RESOURCES}
    assert stack.run("up")[0] == {"create": RESOURCES}
    yield stack
    stack.stack.destroy()
    pulumi.runtime.reset_options()
    gc.collect()  # what was left behind is to be found here, not in the next module


def test_nothing_changes_when_nothing_changed(stack: Stack) -> None:
    assert stack.run("refresh")[0] == {"same": RESOURCES}
    assert stack.run("up")[0] == {"same": RESOURCES}


def test_secrets_are_encrypted_and_shown_as_such(stack: Stack, folder: Path) -> None:
    key = stack.outputs()["key"]
    assert "PRIVATE KEY" in key
    assert stack.stack.outputs()["key"].secret
    state = "".join(file.read_text() for file in (folder / "state").rglob("*.json"))
    assert "engine/token" in state
    assert "canary-a90c" not in state
    assert "PRIVATE KEY" not in state


def test_the_machine_as_aws_knows_it(stack: Stack) -> None:
    outputs, ec2 = stack.outputs(), stack.account.client("ec2")
    [reservation] = ec2.describe_instances(InstanceIds=[outputs["instance"]])["Reservations"]
    [instance] = reservation["Instances"]
    assert instance["PrivateIpAddress"] == outputs["address"]
    assert instance["NetworkInterfaces"][0]["MacAddress"] == outputs["mac"]
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert instance["Tags"] == [{"Key": "project", "Value": "metrics-proxy"}]
    keys = stack.account.instance_credentials(outputs["instance"])
    assert keys["AccessKeyId"].startswith("ASIA")


CHANGE = {
    "ami": ARM,  # not the newest, and ignored by the program
    "cidr": "198.51.100.0/24",
    "http_tokens": "optional",
    "tags": {"Name": "x"},
    "title": "New",
    "token": "canary-c22e",
    "user_data_base64": "I2Nsb3VkLWNvbmZpZwojMgo=",
}
CHANGED = {"replace": 2, "update": 3, "same": RESOURCES - 5}


def test_what_a_preview_shows(stack: Stack) -> None:
    counts, text = stack.run("preview", **CHANGE)
    assert counts == CHANGED
    for shown in (
        r'~ cidrIpv4 *: "192.0.2.0/24" => "198.51.100.0/24"',
        r'~ httpTokens *: "required" => "optional"',
        r'\+ Name *: "x"',
        r'~ title *: "SBA" => "New"',
        r"~ secretString *: \[secret\] => \[secret\]",
        r"~ userDataBase64",
    ):
        assert re.search(shown, text), shown
    assert "ami-" not in "".join(line for line in text.splitlines() if "~" in line)
    assert "canary" not in text


def test_a_certificate_in_its_window_is_replaced_by_a_plain_up(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = (tls_now() + timedelta(days=276)).isoformat()
    monkeypatch.setenv("SANDBOX_TLS_NOW", later)
    counts, text = stack.run("preview")
    assert counts == {"replace": 1, "same": RESOURCES - 1}
    assert "readyForRenewal" in text


@pytest.mark.parametrize(
    ("operation", "change", "wanted"),
    [
        ("preview", {"cidr": "192.0.2.1/24"}, "cidrIpv4.*192.0.2.1/24 has host bits set"),
        ("up", {"addresses": ["127.9.46.3"]}, "privateIps: 127.9.46.3 is no usable address of"),
    ],
)
def test_a_refusal_is_one_line(
    stack: Stack, operation: str, change: dict[str, Any], wanted: str
) -> None:
    try:
        text = str(stack.run(operation, **change))
    except auto.CommandError as error:
        text = str(error)
    assert re.search(rf"error: .*{wanted}", text)
    assert "Traceback" not in text
    assert "File " not in text


def test_changes_reach_aws_and_grafana(stack: Stack, folder: Path) -> None:
    before, account = stack.outputs(), stack.account
    stack.change = CHANGE
    counts, text = stack.run("up")
    assert counts == CHANGED
    assert "canary" not in text
    after, ec2 = stack.outputs(), account.client("ec2")
    assert after["instance"] != before["instance"]
    assert (after["address"], after["mac"]) == (before["address"], before["mac"])
    data = ec2.describe_instance_attribute(InstanceId=after["instance"], Attribute="userData")
    assert data["UserData"]["Value"] == "I2Nsb3VkLWNvbmZpZwojMgo="
    rules = ec2.describe_security_group_rules()["SecurityGroupRules"]
    [rule] = [rule for rule in rules if rule["FromPort"] == 9446]
    assert rule["CidrIpv4"] == "198.51.100.0/24"
    manager = account.client("secretsmanager")
    assert manager.get_secret_value(SecretId="engine/token")["SecretString"] == "canary-c22e"
    previous = manager.get_secret_value(SecretId="engine/token", VersionStage="AWSPREVIOUS")
    assert previous["SecretString"] == "canary-a90c"
    alerts = yaml.safe_load((folder / "grafana/alerting/sba-engine.proxy.yaml").read_text())
    assert alerts["groups"][0]["folder"] == "New"
    provider = yaml.safe_load((folder / "grafana/dashboards/sba-engine.yaml").read_text())
    [board] = Path(provider["providers"][0]["options"]["path"]).iterdir()
    assert json.loads(board.read_text())["title"] == "Board"


def test_a_refresh_sees_drift(stack: Stack) -> None:
    ec2 = stack.account.client("ec2")
    group = next(
        rule["GroupId"]
        for rule in ec2.describe_security_group_rules()["SecurityGroupRules"]
        if rule["FromPort"] == 9446
    )
    ec2.create_tags(Resources=[group], Tags=[{"Key": "by", "Value": "hand"}])
    ec2.terminate_instances(InstanceIds=[stack.outputs()["instance"]])
    assert stack.run("refresh")[0] == {"update": 1, "delete": 1, "same": RESOURCES - 2}
    assert stack.run("up")[0] == {"update": 1, "create": 1, "same": RESOURCES - 2}
    [found] = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert "by" not in {tag["Key"] for tag in found["Tags"]}


def test_destroy_leaves_nothing(stack: Stack, folder: Path) -> None:
    stack.stack.destroy()
    ec2, iam = stack.account.client("ec2"), stack.account.client("iam")
    assert ec2.describe_network_interfaces()["NetworkInterfaces"] == []
    assert ec2.describe_volumes()["Volumes"] == []
    groups = {one["GroupName"] for one in ec2.describe_security_groups()["SecurityGroups"]}
    assert groups == {"default", "api"}
    assert iam.list_roles()["Roles"] == iam.list_instance_profiles()["InstanceProfiles"] == []
    manager = stack.account.client("secretsmanager")
    assert manager.list_secrets(IncludePlannedDeletion=True)["SecretList"] == []
    assert [file for file in (folder / "grafana").rglob("*") if file.is_file()] == []
