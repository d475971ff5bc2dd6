"""The stack files: the examples that people copy, and what they have made of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import NAMESPACE, Settings, SettingsError, placeholders
from sandbox.engine import EXAMPLES
from tests.config.test_settings import PROJECT, REQUIRED, ROOT, as_text

TEXTS = {file.name: file.read_text() for file in sorted(EXAMPLES.iterdir())}


def refused(file: Path) -> list[str]:
    """What `pulumi preview` would refuse in a stack file. What is encrypted is taken as given."""
    document: dict[str, Any] = yaml.safe_load(file.read_text()) or {}
    config = document.get("config") or {}
    if left := list(placeholders(as_text(config))):
        return left
    # Pulumi itself takes a key without a namespace for one of the project
    own = {
        name: value
        for key, value in config.items()
        for namespace, _, name in [key.rpartition(":")]
        if namespace in ("", NAMESPACE)
    }
    token = own.pop("adminToken", None)
    plain = token is not None and not encrypted(token)
    lines = [f"{NAMESPACE}:adminToken: in plain text"] if plain else []
    given = tuple(f"{NAMESPACE}:{key}" for key, value in own.items() if encrypted(value))
    stack = file.stem.removeprefix("Pulumi.")
    try:
        Settings.parse(stack, as_text(own), has_token=token is not None)
    except SettingsError as error:
        lines += [line for line in str(error).splitlines() if not line.startswith(given)]
    return lines


def encrypted(value: object) -> bool:
    return '{"secure": "' in json.dumps(value)


def stack_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("Pulumi.*.yaml"))


def test_the_stack_files_in_config_are_not_refused() -> None:
    """None is there until somebody copies one."""
    assert PROJECT["stackConfigDir"] == "config"
    found = {file.name: refused(file) for file in stack_files(ROOT / "config")}
    assert not any(found.values()), found


def written(folder: Path, **config: object) -> Path:
    """A stack file as `pulumi config set` leaves it, but for these keys."""
    keys = {**REQUIRED, "adminToken": {"secure": "v1:6bQ=:aGVs"}, **config}
    document = {
        "encryptionsalt": "v1:tXs=:v1:9/kT",
        "config": {
            "aws:region": "eu-central-1",
            **{f"{NAMESPACE}:{key}": value for key, value in keys.items()},
        },
    }
    file = folder / "Pulumi.acme-eu.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def test_a_file_that_is_filled_in_is_not_refused(tmp_path: Path) -> None:
    assert stack_files(tmp_path) == []
    file = written(tmp_path, port="9447", workers={"errorRate": 0.05})
    assert stack_files(tmp_path) == [file]
    assert refused(file) == []


def test_what_is_encrypted_is_taken_as_given(tmp_path: Path) -> None:
    secret = {"secure": "v1:6bQ=:aGVs"}
    assert refused(written(tmp_path, rebootTime=secret, grafana={"contactPoint": secret})) == []


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"prot": 1}, 'metrics-proxy:prot: "(hidden)" is no setting; did you mean port?'),
        (
            {"subnetId": "<id of a private subnet>"},
            'metrics-proxy:subnetId: "<id of a private subnet>" is a placeholder: '
            "put in what it says",
        ),
        ({"adminToken": "token"}, "metrics-proxy:adminToken: in plain text"),
        (
            {"adminToken": None},
            "metrics-proxy:adminToken and adminTokenSecretArn: neither is set; one is required",
        ),
    ],
)
def test_what_would_not_deploy_is_refused(
    tmp_path: Path, config: dict[str, object], line: str
) -> None:
    [found] = refused(written(tmp_path, **config))
    assert found == line


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_an_example_says_what_is_to_be_put_in(text: str) -> None:
    """All of it, and nothing of what is there."""
    config = yaml.safe_load(text)["config"]
    found = [line.split('"')[1] for line in placeholders(as_text(config))]
    assert sorted(found) == sorted(re.findall("<.*>", text))
    assert len(found) > 3
    assert not list(placeholders(as_text(yaml.safe_load(re.sub("<.*>", "1", text))["config"])))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_key_of_an_example_has_a_comment(text: str) -> None:
    rows = text.splitlines()
    keys = [n for n, row in enumerate(rows) if re.match(r" {2,4}[\w:-]+:", row)]
    sections = [n for n in keys if re.fullmatch(r" +metrics-proxy:(grafana|workers):", rows[n])]
    tags = [n for n in keys if rows[n].startswith("    tags:")]
    plain = set(keys) - {*sections, *tags}
    assert plain
    assert [rows[n] for n in plain if not rows[n - 1].strip().startswith("# ")] == []
