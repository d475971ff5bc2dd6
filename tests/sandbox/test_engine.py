"""The program under the real engine, over the stand-in providers."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import ssl
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pulumi
import pytest
import yaml
from botocore.exceptions import ClientError
from pulumi import automation as auto

from config.settings import NAMESPACE
from sandbox import aws
from sandbox.engine import STACK, Engine, ProgramError
from sandbox.providers import grafana
from sandbox.tools import ROOT, find
from tests.leaks import CANARY

[NEW_MACHINE] = re.findall(
    r"(?m)^ +pulumi up --replace '(.*)'", (ROOT / "docs/upgrade.md").read_text()
)
"""The machine's URN, as the page has it."""

DOCS = (ROOT / "docs" / "rotation.md").read_text()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("engine")
    process, account = aws.start(
        folder, region="eu-central-1", vpc_cidr="10.20.0.0/16", subnet_cidr="10.20.1.0/24"
    )
    try:
        engine = Engine(folder, account)
        engine.configure(
            {
                "aws:region": account.region,
                "subnetId": account.subnet_id,
                "prometheusCidrs": ["10.20.2.0/24"],
                "apiSecurityGroupId": account.api_security_group_id,
                "instanceType": "t3.micro",
            }
        )
        engine.set_secret("adminToken", CANARY)
        yield engine
    finally:
        process.terminate()
        process.wait(20)


def inventory(account: aws.Account) -> dict[str, list[Any]]:
    """What the program may leave in the account; the seeded VPC's groups are not its own."""
    ec2, iam, secrets = (account.client(s) for s in ("ec2", "iam", "secretsmanager"))
    return {
        "instances": [
            i
            for r in ec2.describe_instances()["Reservations"]
            for i in r["Instances"]
            if i["State"]["Name"] != "terminated"
        ],
        "interfaces": ec2.describe_network_interfaces()["NetworkInterfaces"],
        "groups": [
            g
            for g in ec2.describe_security_groups()["SecurityGroups"]
            if g["GroupName"] not in ("default", "api")
        ],
        "roles": iam.list_roles()["Roles"],
        "profiles": iam.list_instance_profiles()["InstanceProfiles"],
        "secrets": secrets.list_secrets(IncludePlannedDeletion=True)["SecretList"],
    }


def test_a_stack_lives_from_preview_to_destroy(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = aws.Account.read(engine.backend.parent / "aws.json")
    assert set(engine.preview()) == {"create"}
    assert set(engine.up()) == {"create"}
    assert all(inventory(account).values())
    assert set(engine.preview()) == {"same"}
    assert set(engine.up()) == {"same"}
    machine = engine.outputs()["instanceId"]

    # another server: its configuration, and of the user data the part that is committed and the
    # digest of all that the machine is made of
    engine.configure({"server": "apache"})
    lines: list[str] = []
    engine.preview(lines.append, diff=True)
    text = "\n".join(lines)
    data = re.split("~ userData +:", text)[1].splitlines()
    assert [one.split()[1] for one in data if " => " in one] == ["path", "sha256:", "build"], data
    engine.configure({"server": None})

    # what the sync brings: no replacement, and the diff can be read
    engine.configure({"prometheusCidrs": ["10.20.2.0/24", "10.20.3.0/24"]})
    lines = []
    engine.preview(lines.append, diff=True)
    text = "\n".join(lines)
    assert "aws:secretsmanager/secretVersion:SecretVersion" in text  # a new version of the bundle
    assert "aws:ec2/instance:Instance" not in text
    assert any("+" in line and "allow 10.20.3.0/24;" in line for line in text.splitlines()), text
    engine.up()
    assert engine.outputs()["instanceId"] == machine

    # the token is somebody else's from now on
    manager = account.client("secretsmanager")
    theirs = manager.create_secret(Name="sba/token", SecretString="{}")
    engine.configure({"adminToken": None, "adminTokenSecretArn": f"{theirs['ARN']}:admin::"})
    changes = engine.up()
    assert (changes.get("delete"), changes.get("update"), changes.get("replace")) == (2, 1, 1)
    assert engine.outputs()["instanceId"] == machine
    assert engine.outputs()["tokenSecretArn"] == theirs["ARN"]

    # a newer image is no reason for a new machine, but it comes with one that is asked for
    with monkeypatch.context() as patch:
        newer = SimpleNamespace(id="ami-0aaaaaaaaaaaaaaa0", root_device_name="/dev/xvda")
        patch.setattr("components.preflight.newest_debian", lambda _: newer)
        assert set(engine.preview()) == {"same"}
        address = engine.outputs()["privateIp"]
        assert engine.up(replace=[NEW_MACHINE]).get("replace") == 1
        [instance] = inventory(account)["instances"]
        assert instance["ImageId"] == "ami-0aaaaaaaaaaaaaaa0"
        assert engine.outputs()["privateIp"] == address
    machine = engine.outputs()["instanceId"]

    # the machine is ended by somebody else: another one, at the same address
    account.client("ec2").terminate_instances(InstanceIds=[machine])
    assert engine.up(refresh=True).get("create") == 1
    assert engine.outputs()["instanceId"] != machine
    assert engine.outputs()["privateIp"] == address
    assert set(engine.preview()) == {"same"}
    machine = engine.outputs()["instanceId"]

    # AWS refuses to start the new machine, when the old one has ended; the next `up` heals
    for interval, code in (
        (31, "InsufficientInstanceCapacity"),
        (32, "InvalidNetworkInterface.InUse"),
    ):
        [interface] = inventory(account)["interfaces"]
        account.client("ec2").create_tags(
            Resources=[interface["NetworkInterfaceId"]],
            Tags=[{"Key": aws.REFUSED_ONCE, "Value": code}],
        )
        engine.configure({"syncInterval": interval})
        with pytest.raises(ProgramError, match=rf"\({code}\).*RunInstances"):
            engine.up()
        assert inventory(account)["instances"] == []
        assert engine.up()
        assert engine.outputs()["privateIp"] == address
        assert engine.outputs()["instanceId"] != machine
        assert set(engine.preview()) == {"same"}
        machine = engine.outputs()["instanceId"]

    # what the machine is made of: a new machine at the same address
    engine.configure({"syncInterval": 30})
    assert engine.up().get("replace") == 1
    assert engine.outputs()["instanceId"] != machine
    assert engine.outputs()["privateIp"] == address
    engine.configure({"instanceType": "t3.small"})
    assert engine.preview().get("replace") == 1

    # another architecture: the new machine has its image
    engine.configure({"instanceType": "t4g.micro"})
    assert engine.up().get("replace") == 1
    [instance] = inventory(account)["instances"]
    assert instance["ImageId"] == "ami-0bbbbbbbbbbbbbbb1"

    engine.configure({"adminTokenSecretArn": None})
    engine.set_secret("adminToken", CANARY)
    engine.destroy()
    assert [secret["ARN"] for secret in inventory(account).pop("secrets")] == [theirs["ARN"]]
    manager.delete_secret(SecretId=theirs["ARN"], ForceDeleteWithoutRecovery=True)
    assert not any(inventory(account).values())


@pytest.mark.parametrize(
    "leak",
    [
        CANARY,
        urllib.parse.quote(CANARY, safe=""),
        base64.b64encode(CANARY.encode()).decode(),
        base64.b64encode(f"x{CANARY}y".encode()).decode(),
        "-----BEGIN EC PRIVATE KEY-----",
    ],
)
def test_whatever_is_printed_in_a_test_is_searched(engine: Engine, leak: str) -> None:
    def operation(on_output: Callable[[str], object], **_: object) -> None:
        on_output(f"some text, {leak}, more text")

    with pytest.raises(AssertionError, match="pulumi has printed a"):
        engine._run(operation, None)

    def refused(on_output: Callable[[str], object], **_: object) -> None:
        on_output("Diagnostics:")
        on_output(f"error: {leak}")
        raise auto.CommandError(auto.CommandResult("", "", 1))

    with pytest.raises(AssertionError, match="pulumi has printed a"):
        engine._run(refused, None)


def test_what_pulumi_prints_is_what_is_searched(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    leak = base64.b64encode(CANARY.encode()).decode()
    monkeypatch.setattr(engine.stack.workspace, "program", lambda: pulumi.export("leak", leak))
    with pytest.raises(AssertionError, match="pulumi has printed a secret"):
        engine.preview()


def changed(engine: Engine) -> set[str]:
    """The types of what a preview would change."""
    lines: list[str] = []
    engine.preview(lines.append, diff=True)
    return set(re.findall(r"^ *[-+~][-+~ ]*(\w+:\S+): \(", "\n".join(lines), re.M))


DASHBOARD = "grafana:oss/dashboard:Dashboard"
ALERTS = "grafana:alerting/ruleGroup:RuleGroup"


@pytest.fixture
def destroyed(engine: Engine) -> Iterator[Engine]:
    """The engine, whose stack is empty before and after; the settings for Grafana are gone too."""
    yield engine
    engine.destroy()
    engine.configure({"grafana": None, "workers": None})
    shutil.rmtree(engine.provisioning)
    engine.provisioning.mkdir()


def in_grafana(engine: Engine, monkeypatch: pytest.MonkeyPatch, uid: str, title: str) -> Path:
    """A folder that somebody else made; where its dashboards are."""
    monkeypatch.setenv("SANDBOX_GRAFANA_PROVISIONING", str(engine.provisioning))
    grafana.Folder().create({"uid": uid, "title": title})
    return engine.provisioning / "dashboards" / uid


def test_a_limit_changes_the_dashboard_and_the_rules_alone(destroyed: Engine) -> None:
    engine = destroyed
    engine.up()
    for workers in (
        {"errorRate": 0.05},
        {"queueDepth": {"warning": 7, "critical": 9}},
        {"queues": {"email": {"warning": 7, "critical": 9}}},
    ):
        engine.configure({"workers": workers})
        assert changed(engine) - {ALERTS} == {DASHBOARD}
        assert set(engine.up()) == {"same", "update"}
        assert set(engine.preview()) == {"same"}


def test_a_dashboard_that_is_there_stops_everything_before_aws(
    destroyed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, account = destroyed, aws.Account.read(destroyed.backend.parent / "aws.json")
    theirs = in_grafana(engine, monkeypatch, "theirs", "Theirs") / "sba.json"
    theirs.write_text('{"title": "Theirs", "uid": "sba"}')
    with pytest.raises(ProgramError, match="the uid 'sba' is taken"):
        engine.up()
    assert not any(inventory(account).values())
    assert "Theirs" in theirs.read_text()

    engine.configure({"grafana": {"overwriteDashboard": True}})
    engine.up()
    assert not theirs.exists()
    [ours] = engine.provisioning.glob("dashboards/*/sba.json")
    assert ours.parent.name == "sba-local"
    assert set(engine.preview()) == {"same"}
    # it is the stack's from now on
    engine.configure({"grafana": None})
    assert changed(engine) == {DASHBOARD}
    engine.up()
    assert set(engine.preview()) == {"same"}


def test_a_folder_that_is_there_is_adopted_if_the_settings_say_so(
    destroyed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, account = destroyed, aws.Account.read(destroyed.backend.parent / "aws.json")
    in_grafana(engine, monkeypatch, "sba-local", "SBA")
    with pytest.raises(ProgramError, match="a folder with the uid 'sba-local' exists"):
        engine.up()
    assert not any(inventory(account).values())

    engine.configure({"grafana": {"adoptFolder": True, "folderTitle": "Ours"}})
    assert engine.up()["import"] == 1
    assert grafana.folder_title("sba-local") == "Ours"
    assert set(engine.preview()) == {"same"}
    engine.configure({"grafana": {"folderTitle": "Ours"}})
    assert set(engine.preview()) == {"same"}


def test_a_folder_of_others_holds_the_dashboard_and_stays(
    destroyed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = destroyed
    theirs = in_grafana(engine, monkeypatch, "theirs", "Theirs")
    engine.configure({"grafana": {"folderUid": "theirs"}})
    engine.up()
    assert [path.name for path in theirs.iterdir()] == ["sba.json"]
    assert [path.name for path in theirs.parent.glob("*.yaml")] == ["theirs.yaml"]
    assert set(engine.preview()) == {"same"}
    engine.destroy()
    assert theirs.is_dir()
    assert not list(theirs.iterdir())


def test_what_changes_the_address(destroyed: Engine) -> None:
    """docs/configuration.md's *new address*, and what a renamed stack does."""
    engine = destroyed
    account = aws.Account.read(engine.backend.parent / "aws.json")
    ec2 = account.client("ec2")
    before = engine.config_file.read_text()
    engine.up()

    def what_is_new(up: Callable[[], object]) -> set[str]:
        old = engine.outputs()
        up()
        return {name for name, value in engine.outputs().items() if old[name] != value}

    scrapes = {"scrapeConfig", "scrapeConfigList", "scrapeConfigObjects"}
    address = {"privateIp", "proxyUrl", "proxyTargets", "instanceId", "declared", *scrapes}
    engine.configure({"privateIp": "10.20.1.77"})
    lines: list[str] = []
    engine.preview(lines.append)
    assert any(
        "is replaced: every scrape fails until Prometheus has the new scrapeConfig" in line
        for line in lines
    )
    assert what_is_new(engine.up) == address
    assert engine.outputs()["privateIp"] == "10.20.1.77"
    other = ec2.create_subnet(VpcId=account.vpc_id, CidrBlock="10.20.9.0/24")["Subnet"]["SubnetId"]
    engine.configure({"privateIp": None, "subnetId": other})
    assert what_is_new(engine.up) == address
    assert engine.outputs()["privateIp"].startswith("10.20.9.")
    assert len(inventory(account)["interfaces"]) == 1

    # Pulumi protects only what was protected before
    engine.configure({"protect": True, "subnetId": account.subnet_id})
    with pytest.raises(ProgramError, match="protect: .* keeps the interface with 10.20.9.") as one:
        engine.up()
    assert "\n" not in str(one.value)
    engine.configure({"subnetId": other})
    assert what_is_new(engine.up) == set()
    engine.configure({"protect": False})
    engine.up()

    def rename(name: str) -> None:
        engine.cli("stack", "rename", name)
        engine.stack = auto.Stack.select(name, engine.stack.workspace)

    # Grafana takes no second folder of a title
    engine.configure({"grafana": {"folderTitle": "Renamed"}})

    def renamed() -> None:
        rename("other")
        engine.up()

    secrets = {"tokenSecretArn", "bundleSecretArn"}
    ca = {"caCertificate", *scrapes}
    assert what_is_new(renamed) == {"instanceId", "userData", "declared", *ca, *secrets}
    rename(STACK)
    engine.destroy()
    engine.config_file.write_text(before)
    assert {k: v for k, v in inventory(account).items() if v and k != "secrets"} == {}


def trusted(config: str, bundle: dict[str, str], folder: Path) -> bool:
    """Whether a client with a scrape config takes what a server with the bundle shows."""
    [tls] = {json.dumps(job["tls_config"]) for job in yaml.safe_load(config)["scrape_configs"]}
    settings, pair = json.loads(tls), folder / "pair.pem"
    pair.write_text(bundle["certificate"] + bundle["key"])
    shows = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shows.load_cert_chain(pair)
    asks = ssl.create_default_context(cadata=settings["ca"])
    asks.verify_flags |= ssl.VERIFY_X509_STRICT
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = shows.wrap_bio(there, back, server_side=True)
    client = asks.wrap_bio(back, there, server_hostname=settings["server_name"])
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        server.do_handshake()
    try:
        client.do_handshake()
    except ssl.SSLCertVerificationError:
        return False
    return True


def test_the_ca_is_renewed_and_its_key_replaced_without_a_lost_scrape(
    destroyed: Engine, tmp_path: Path
) -> None:
    """README gives Prometheus until the end of a renewed CA; docs/rotation.md, with `protect`, has
    a time of two CAs for another key. Prometheus is given each scrape config some time after it is
    there."""
    engine, account = destroyed, aws.Account.read(destroyed.backend.parent / "aws.json")
    before = engine.config_file.read_text()
    engine.configure({"protect": True})
    engine.up()

    def now() -> tuple[str, dict[str, str]]:
        """The scrape config and the bundle."""
        secret = engine.outputs()["bundleSecretArn"]
        value = account.client("secretsmanager").get_secret_value(SecretId=secret)["SecretString"]
        return str(engine.outputs()["scrapeConfig"]), json.loads(value)

    def shell(command: str) -> None:
        """As docs/rotation.md has it, of the stack that is selected there."""
        path = f"{Path(find('pulumi')).parent}:{engine.environment['PATH']}"
        environment = {**os.environ, **engine.environment, "PATH": path}
        run = partial(subprocess.run, cwd=engine.project, env=environment, check=True)
        run(["pulumi", "stack", "select", engine.stack.name])
        run(["sh", "-ec", command])

    commands = re.findall(r"^ +((?:pulumi|make) .*)$", DOCS, re.M)
    another_leaf, another_key, another_ca = (
        {option: re.findall(f"--{option} '(.*?)'", command) for option in ("target", "replace")}
        for command in commands
        if command.startswith("pulumi up -")
    )

    # in its last year: the same key and name; beside it, another key of the certificate
    with pytest.raises(ProgramError, match="protect"):
        engine.up(**another_key)
    release_key, release_ca_key = (it for it in commands if "unprotect" in it)
    shell(release_key)
    config, first = now()
    engine.up(replace=["**::tls-ca", *another_key["replace"]])
    renewed, leaf = now()
    assert renewed != config
    assert leaf["certificate"] != first["certificate"]
    assert leaf["key"] != first["key"]
    assert trusted(config, leaf, tmp_path)
    assert trusted(renewed, leaf, tmp_path)

    # another key of the CA
    name_both, name_one = (it for it in commands if "previousCaCertificate" in it)
    shell(name_both)
    shell(release_ca_key)
    assert engine.up(**another_ca)["replace"] == 2
    both, same = now()
    assert same == leaf, "nothing is served that Prometheus does not know"
    assert yaml.safe_load(both)["scrape_configs"][0]["tls_config"]["ca"].count("BEGIN") == 2
    assert trusted(renewed, leaf, tmp_path)
    assert trusted(both, leaf, tmp_path)
    engine.up()
    last, signed = now()
    assert last == both
    assert signed["certificate"] != leaf["certificate"]
    assert not trusted(renewed, signed, tmp_path), "it has another key"
    assert trusted(both, signed, tmp_path)
    shell(name_one)
    engine.configure({"protect": False})
    engine.up(**another_leaf)
    new, renewed_leaf = now()
    assert renewed_leaf["key"] == signed["key"]
    assert renewed_leaf["certificate"] != signed["certificate"]
    for shown in (signed, renewed_leaf):
        assert trusted(both, shown, tmp_path)
        assert trusted(new, shown, tmp_path)
    assert not trusted(new, leaf, tmp_path), "the old CA is gone"
    engine.config_file.write_text(before)


def test_a_bundle_that_somebody_wrote_gives_way_to_one_command_alone(destroyed: Engine) -> None:
    engine, account = destroyed, aws.Account.read(destroyed.backend.parent / "aws.json")
    page = (ROOT / "docs/security.md").read_text()
    machine, value = re.findall(r"(?m)^ +pulumi up --replace '(.*?)'", page)
    assert machine == NEW_MACHINE
    engine.up()
    secrets, name = account.client("secretsmanager"), engine.outputs()["bundleSecretArn"]
    bundle = secrets.get_secret_value(SecretId=name)["SecretString"]
    secrets.put_secret_value(SecretId=name, SecretString="{}")
    engine.up(refresh=True)
    assert secrets.get_secret_value(SecretId=name)["SecretString"] == "{}"
    engine.up(replace=[value])
    assert secrets.get_secret_value(SecretId=name)["SecretString"] == bundle


def test_the_machine_reads_what_customer_keys_encrypt(destroyed: Engine) -> None:
    engine = destroyed
    account = aws.Account.read(engine.backend.parent / "aws.json")
    client = account.client("secretsmanager")
    old, new, theirs = (f"arn:aws:kms:eu-central-1:123456789012:key/{n}" for n in ("1", "2", "3"))
    token = client.create_secret(Name="sba/keyed", SecretString="{}", KmsKeyId=theirs)["ARN"]
    other = client.create_secret(Name="sba/other", SecretString="{}", KmsKeyId=theirs)["ARN"]
    before = engine.config_file.read_text()

    def readable() -> list[str]:
        """What the machine reads of the token, the bundle and a secret that is none of the two."""
        found = engine.outputs()
        keys = account.instance_credentials(found["instanceId"])
        machine = boto3.client(
            "secretsmanager",
            endpoint_url=account.endpoint_url,
            region_name=account.region,
            aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"],
            aws_session_token=keys["Token"],
        )
        answers = {}
        for name in ("tokenSecretArn", "bundleSecretArn", other):
            try:
                machine.get_secret_value(SecretId=found.get(name, name))
                answers[name] = "read"
            except ClientError as error:
                answers[name] = error.response["Error"]["Message"]
        assert "not authorized" in answers.pop(other)
        return list(answers.values())

    engine.configure({"kmsKeyArn": old})
    engine.up()
    assert readable() == ["read", "read"]
    engine.configure({"kmsKeyArn": new, "previousKmsKeyArn": old})
    engine.up()
    assert set(engine.preview()) == {"same"}
    assert readable() == ["read", "read"]
    # as if AWS had left the bundle's versions under the old key
    client.update_secret(SecretId=engine.outputs()["bundleSecretArn"], KmsKeyId=old)
    assert readable() == ["read", "read"]
    client.update_secret(SecretId=engine.outputs()["bundleSecretArn"], KmsKeyId=new)
    engine.configure({"previousKmsKeyArn": None, "adminToken": None})
    engine.configure({"adminTokenSecretArn": token, "adminTokenKmsKeyArn": theirs})
    engine.up()
    assert readable() == ["read", "read"]
    # the wrong key: refused by AWS, not by the program, which cannot know what an alias stands for
    engine.configure({"adminTokenKmsKeyArn": old})
    engine.up()
    assert readable() == ["Access to KMS is not allowed", "read"]
    engine.destroy()
    engine.config_file.write_text(before)
    for arn in (token, other):
        client.delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("server", "caddy", 'metrics-proxy:server: "caddy" should be '),
        ("colour", "red", 'metrics-proxy:colour: "(hidden)" is no setting'),
        ("subnetId", "subnet-00000000", 'metrics-proxy:subnetId: "subnet-00000000" is not found: '),
        (
            "grafana",
            {"dashboard": "ops/grafana/missing.json"},
            "metrics-proxy:grafana.dashboard: ",
        ),
    ],
)
def test_a_refusal_is_one_line(engine: Engine, key: str, value: Any, message: str) -> None:
    before = engine.config_file.read_text()
    engine.configure({key: value})
    try:
        with pytest.raises(ProgramError) as refused:
            engine.preview()
    finally:
        engine.config_file.write_text(before)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_plain_token_is_refused(engine: Engine) -> None:
    before = engine.config_file.read_text()
    engine.configure({"adminToken": "plain-token-value"})
    try:
        with pytest.raises(ProgramError, match="stored in plain text") as refused:
            engine.preview()
    finally:
        engine.config_file.write_text(before)
    assert "plain-token-value" not in str(refused.value)


def test_what_pulumi_config_set_writes_is_a_setting_or_a_line(engine: Engine) -> None:
    def put(key: str, value: str, *options: str) -> None:
        engine.cli("config", "set", "--path", *options, key, value)

    before = engine.config_file.read_text()
    try:
        put("metrics-proxy:workers.errorRate", "0.05")
        assert engine.config[f"{NAMESPACE}:workers"] == {"errorRate": "0.05"}
        put("metrics-proxy:grafana.dashboardUid", "12345")
        with pytest.raises(ProgramError) as refused:
            engine.preview()
        assert str(refused.value) == (
            "metrics-proxy:grafana.dashboardUid: 12345 should be text: "
            "write it in quotes, or set it with --type string"
        )
        put("metrics-proxy:grafana.dashboardUid", "12345", "--type", "string")
        assert engine.preview()
    finally:
        engine.config_file.write_text(before)
