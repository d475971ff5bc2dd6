"""The stack files that people copy, and what docs/stacks.md and docs/previews.md say of them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from config.settings import NAMESPACE, Limits, Settings
from sandbox import aws, previews
from sandbox.engine import EXAMPLES, Engine, ProgramError, copied
from sandbox.tools import ROOT, find
from tests.leaks import CANARY
from tests.sandbox.test_deployer import deployer
from tests.sandbox.test_engine import inventory

PAGE = (ROOT / "docs/stacks.md").read_text()


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[aws.Account]:
    process, account = aws.start(
        tmp_path_factory.mktemp("aws"),
        region=aws.REGION,
        vpc_cidr="10.20.0.0/16",
        subnet_cidr="10.20.1.0/24",
        pace=1_000,
    )
    yield account
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Previews of the example for dev."""
    return previews.found(tmp_path_factory.mktemp("previews"))


def resources(preview: str) -> set[str]:
    """What a preview would change, by name, with the operation."""
    found = re.findall(r"(?m)^ {4,}[-+~]{1,2} ?\S+: \((\w+)\)\n +\[urn=\S+::(\S+)\]", preview)
    return {f"{operation} {name}" for operation, name in found}


def give_language_host(engine: Engine) -> None:
    """For the commands of the CLI that ask what a program needs."""
    host = engine.project / "bin" / "pulumi-language-python"
    host.parent.mkdir()
    module = Path(__file__).with_name("language_host.py")
    host.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{module}"\n')
    host.chmod(0o755)
    engine.environment["PATH"] = os.pathsep.join([str(host.parent), engine.environment["PATH"]])


def test_the_page_is_what_the_engine_prints(texts: dict[str, str]) -> None:
    assert previews.FILE.read_text() == previews.page(texts), "run: make previews"


def test_a_second_preview_is_empty(texts: dict[str, str]) -> None:
    assert len(resources(texts["first"])) == 27
    assert resources(texts["second"]) == set()
    assert "outputs" not in texts["second"]
    assert texts["second"].endswith(" 28 unchanged")


def test_a_changed_limit_shows_its_panel_and_its_alert(texts: dict[str, str]) -> None:
    text = texts["limit"]
    assert resources(text) == {"update monitoring-dashboard", "update monitoring-alerts"}
    lines = [line.split("[", 1)[1] for line in text.splitlines() if re.match(r" +[-+] \[", line)]
    assert {line.partition("]")[0] for line in lines} == {"Workers Error Rate", "SbaErrorRateHigh"}
    assert any(line.endswith("> 0.05") for line in lines)
    assert len(text.splitlines()) < 80


def test_a_new_endpoint_is_no_new_machine(texts: dict[str, str]) -> None:
    changed = resources(texts["endpoint"])
    assert changed == {"create network-to-10.20.3.0/24-8080", "replace secrets-bundle-value"}
    assert (
        "+         "
        in texts["endpoint"].partition("billing-internal.example.internal:8080")[0].splitlines()[-1]
    )


def test_a_first_preview_is_a_few_pages(texts: dict[str, str]) -> None:
    """It was 2,813 lines, of which dashboard and rules were 2,500."""
    assert len(texts["first"].splitlines()) < 350


def test_production_is_protected_until_somebody_says_otherwise(
    account: aws.Account, tmp_path: Path
) -> None:
    # what was copied and not filled in
    raw = EXAMPLES / "Pulumi.prod.yaml"
    file = tmp_path / "raw/project/config/Pulumi.prod.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(raw.read_text())
    with pytest.raises(ProgramError) as refused:
        Engine(tmp_path / "raw", account, "prod").preview()
    lines = str(refused.value).splitlines()
    assert sorted(line.split('"')[1] for line in lines) == sorted(
        re.findall("<.*>", raw.read_text())
    )
    assert (
        'grafana:url: "<URL of Grafana, https://...>" is a placeholder: put in what it says'
        in lines
    )

    engine = copied(tmp_path, account, "prod")
    assert set(engine.preview()) == {"create"}
    engine.up()
    assert set(engine.preview()) == {"same"}
    there = inventory(account)
    give_language_host(engine)
    with pytest.raises(subprocess.CalledProcessError) as refused_too:
        engine.cli("destroy", "--yes")
    assert "secrets-bundle" in refused_too.value.output
    assert "protect" in refused_too.value.output
    assert inventory(account) == there

    engine.configure({"protect": False})
    engine.up()
    engine.destroy()
    left = inventory(account)
    assert [secret["Name"] for secret in left.pop("secrets")] == ["theirs/prod"]
    assert not any(left.values())
    account.client("secretsmanager").delete_secret(
        SecretId="theirs/prod", ForceDeleteWithoutRecovery=True
    )
    engine.cli("stack", "rm", "--yes", "--preserve-config")
    assert engine.config_file.exists()


def test_secrets_that_are_there_are_imported(account: aws.Account, tmp_path: Path) -> None:
    manager = account.client("secretsmanager")
    names = {"secrets-token": "admin-token", "secrets-bundle": "bundle"}
    there = {
        resource: manager.create_secret(Name=f"{NAMESPACE}/staging/{name}", SecretString="-")["ARN"]
        for resource, name in names.items()
    }
    engine = copied(tmp_path, account, "staging")
    comments = [line for line in engine.config_file.read_text().splitlines() if "#" in line]
    assert len(comments) > 10
    engine.set_secret("adminToken", CANARY)
    engine.cli("config", "set", "--path", "metrics-proxy:workers.errorRate", "0.02")
    text = engine.config_file.read_text()
    assert comments == [line for line in text.splitlines() if "#" in line]
    assert CANARY not in text
    with pytest.raises(ProgramError, match="staging/(bundle|admin-token) already exists"):
        engine.up()

    # as docs/stacks.md has it
    file = tmp_path / "import.json"
    engine.stack.preview(import_file=str(file), color="never")
    document = json.loads(file.read_text())
    document["resources"] = [
        {**one, "id": there[one["name"]]} for one in document["resources"] if one["name"] in there
    ]
    assert len(document["resources"]) == 2
    file.write_text(json.dumps(document))
    give_language_host(engine)
    options = ("--generate-code=false", "--protect=false", "--yes")
    engine.cli("import", "--file", str(file), *options)

    changes = engine.up()
    assert set(changes) == {"create", "same", "update"}
    assert changes["update"] == 2
    outputs = engine.outputs()
    assert outputs["tokenSecretArn"] == there["secrets-token"]
    assert outputs["bundleSecretArn"] == there["secrets-bundle"]
    assert manager.get_secret_value(SecretId=there["secrets-token"])["SecretString"] == CANARY
    assert set(engine.preview()) == {"same"}
    engine.destroy()
    left = inventory(account)
    assert [secret["Name"] for secret in left.pop("secrets")] == ["theirs/staging"]
    assert not any(left.values())


def test_the_commands_of_the_page_set_up_a_stack(account: aws.Account, tmp_path: Path) -> None:
    """As whoever has no more rights than it names, and its values are settings."""
    bucket, key = "metrics-proxy-state", "metrics-proxy-state"
    place = {"LocationConstraint": aws.REGION}
    account.client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration=place)
    kms = account.client("kms")
    made = kms.create_key()["KeyMetadata"]
    kms.create_alias(AliasName=f"alias/{key}", TargetKeyId=made["KeyId"])
    rights = re.findall("`((?:s3|kms):[A-Za-z]+)`", PAGE)
    allowed = [("s3:", f"arn:aws:s3:::{bucket}*"), ("kms:", "*")]
    statements = [
        {"Effect": "Allow", "Action": [r for r in rights if r.startswith(service)], "Resource": arn}
        for service, arn in allowed
    ]
    who = deployer(account, "stacks", {"Version": "2012-10-17", "Statement": statements})

    file = tmp_path / "config" / "Pulumi.dev.yaml"
    file.parent.mkdir()
    shutil.copy(ROOT / "Pulumi.yaml", tmp_path)
    shutil.copy(EXAMPLES / file.name, file)
    home = {"PULUMI_HOME": str(tmp_path / "home"), "PULUMI_SKIP_UPDATE_CHECK": "true"}
    environment = {**os.environ, **who.environment(), **home}
    commands = re.findall("(?m)^    pulumi ((?:login|stack init|config set) .*)", PAGE)
    assert len(commands) == 16
    for command in commands:
        # the embedded AWS has no host name for each bucket
        command = re.sub(r"(s3://\S+)'", r"\1&use_path_style=true'", command)
        if command.startswith("config set protect false"):
            continue
        subprocess.run(
            [find("pulumi"), *shlex.split(command.replace("BUCKET", bucket).replace("KEY", key))],
            input=CANARY,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=True,
        )
    assert file.read_text().startswith("# A stack for trying things out.")
    assert "secretsprovider: awskms://" in file.read_text()
    config = yaml.safe_load(file.read_text())["config"]
    assert config.pop(f"{NAMESPACE}:adminToken").keys() == {"secure"}
    own = {k.partition(":")[2]: v for k, v in config.items() if k.startswith(NAMESPACE)}
    own |= {"subnetId": "subnet-00000000", "apiCidrs": ["10.0.0.0/16"], "searchDomain": "internal"}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in own.items()}
    settings = Settings.parse("dev", texts, has_token=True)
    assert (settings.protect, settings.port, settings.workers.error_rate) == (True, 9447, 0.05)
    assert settings.prometheus_cidrs == ("10.20.0.0/24",)
    assert settings.workers.queues["email"] == Limits(warning=500, critical=2000)
    assert settings.workers.queues["mail.out"].warning == 50
    assert settings.grafana.dashboard_uid == "12345"
    assert [endpoint.port for endpoint in settings.endpoints] == [9464]
