"""What the workflows may do, and that their steps are the Makefile's targets."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / ".github").rglob("*.yml"))
LIST = 'echo "names=$(make stacks)" >> "$GITHUB_OUTPUT"'
"""The one step of a shell that is more than a target: what comes next depends on what it prints."""

TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))

READ = {"contents": "read"}
ROLE = {**READ, "id-token": "write"}
MAY = {
    "check": READ,
    "stacks": READ,
    "dashboard": READ,
    "preview": {**ROLE, "pull-requests": "write"},
    "deploy": ROLE,
    "renew": ROLE,
    "drift": ROLE,
}
"""The permissions of each workflow's jobs, or of a job by its name."""


def load(file: Path) -> dict[str, Any]:
    # YAML 1.1 reads the key `on` as true
    document = yaml.safe_load(file.read_text())
    return {"on" if key is True else key: value for key, value in document.items()}


WORKFLOWS = {file.stem: load(file) for file in FILES if file.parent.name == "workflows"}
JOBS = {
    f"{workflow}/{job}": body
    for workflow, document in WORKFLOWS.items()
    for job, body in document["jobs"].items()
}
ON_STACKS = {name: body for name, body in JOBS.items() if "environment" in body}
STEPS = [
    step
    for some in (
        *(body.get("steps", []) for body in JOBS.values()),
        *(load(file)["runs"]["steps"] for file in FILES if file.name == "action.yml"),
    )
    for step in some
]


def test_every_step_of_a_shell_is_one_target() -> None:
    commands = {step["run"] for step in STEPS if "run" in step} - {LIST}
    assert commands >= {f"make {name}" for name in ("check", "test", "deploy", "renew", "drift")}
    assert commands <= {f"make {target}" for target in TARGETS}
    # the same here as there
    check = JOBS["check/check"]
    said = re.findall(r"^make .*", (ROOT / ".ci" / "run").read_text(), re.M)
    assert [step["run"] for step in check["steps"] if "run" in step] == said


def test_what_a_job_may() -> None:
    for name, document in WORKFLOWS.items():
        assert document["permissions"] == {}, name
    for name, body in JOBS.items():
        workflow, job = name.split("/")
        assert body["permissions"] == MAY.get(job, MAY[workflow]), name


def test_credentials_are_for_jobs_of_an_environment_and_never_for_a_fork() -> None:
    for name, body in JOBS.items():
        text = yaml.safe_dump(body)
        if name not in ON_STACKS:
            assert not re.search(r"secrets\.|vars\.|id-token", text), name
    for name, document in WORKFLOWS.items():
        triggers = document["on"]
        known = {"pull_request", "push", "schedule", "workflow_call", "workflow_dispatch"}
        assert set(triggers) <= known, name
        if "push" in triggers:
            assert triggers["push"] == {"branches": ["main"]}, name
    for name, body in ON_STACKS.items():
        if "pull_request" in WORKFLOWS[name.split("/")[0]]["on"]:
            own = "github.event.pull_request.head.repo.full_name == github.repository"
            assert body["if"].split(" && ")[0] == own, name


def test_a_secret_is_in_the_environment_of_a_step_that_needs_it() -> None:
    for file in FILES:
        for line in file.read_text().splitlines():
            if "secrets." in line:
                assert re.fullmatch(r" {10}([A-Z_]+): \$\{\{ secrets\.\1 \}\}", line), (
                    file.name,
                    line,
                )


def test_each_stack_has_its_jobs_and_one_at_a_time() -> None:
    for workflow in ("preview", "renew", "drift"):
        body = JOBS[f"{workflow}/stack"]
        assert JOBS[f"{workflow}/{body['needs']}"]["uses"] == "./.github/workflows/stacks.yml"
        names = "needs.stacks.outputs.names"
        assert body["strategy"]["matrix"]["stack"] == f"${{{{ fromJSON({names}) }}}}"
        assert body["if"].split(" && ")[-1] == f"{names} != '[]'"  # no matrix is a failure
        assert body["strategy"]["fail-fast"] is False
        assert body["environment"].startswith("${{ matrix.stack }}-")
    for name, body in ON_STACKS.items():
        group = body["concurrency"]
        group = group["group"] if isinstance(group, dict) else group
        workflow, job = name.split("/")
        assert group.startswith(
            f"{workflow}-{job if workflow == 'deploy' else '${{ matrix.stack }}'}"
        )


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ([], []),
        (["Pulumi.prod.yaml"], ["prod"]),
        (["Pulumi.prod.yaml", "Pulumi.acme-eu.yaml", "Pulumi.yaml"], ["acme-eu", "prod"]),
    ],
)
def test_the_stacks_are_those_that_have_a_file(
    tmp_path: Path, files: list[str], names: list[str]
) -> None:
    (tmp_path / "config/examples").mkdir(parents=True)
    for file in (*files, "settings.py", "examples/Pulumi.dev.yaml"):
        (tmp_path / "config" / file).touch()
    # without a word of where it is, which a make says in another one, as `make test` is
    command = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "stacks"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == names


def test_the_deploys_come_one_after_the_other_and_differ_in_nothing_else() -> None:
    order = ["dev", "staging", "prod"]
    deploys = dict(WORKFLOWS["deploy"]["jobs"])
    assert deploys.pop("stacks")["uses"] == "./.github/workflows/stacks.yml"
    assert list(deploys) == order
    first, *others = (
        yaml.safe_dump({**body, "needs": None, "if": None}).replace(stack, "STACK")
        for stack, body in deploys.items()
    )
    assert others == [first, first]
    # one that is not there is skipped, and so would be all that need it; nor is one that is
    # behind a failed one a failure itself, so each looks at all before it
    fine = [f"!contains(needs.*.result, '{how}')" for how in ("failure", "cancelled")]
    for n, (stack, body) in enumerate(deploys.items()):
        there = f"contains(fromJSON(needs.stacks.outputs.names), '{stack}')"
        assert body["if"].split(" && ") == [*(["!cancelled()", *fine] if n else []), there]
        assert body["needs"] == (["stacks", *order[:n]] if n else "stacks")
    # what the next stack waits for
    assert deploys["dev"]["steps"][-1]["run"] == "make verify"


def test_an_action_is_pinned_to_one_commit_with_its_version() -> None:
    pins: dict[str, str] = {}
    for file in FILES:
        for line in re.findall(r"uses: (.*)", file.read_text()):
            if not line.startswith("./"):
                found = re.fullmatch(
                    r"([\w-]+/[\w-]+)[\w/-]*@([0-9a-f]{40} # v\d+\.\d+\.\d+)", line
                )
                assert found, line
                assert pins.setdefault(found[1], found[2]) == found[2], line
    assert len(pins) == 7


def test_the_workflows_pulumi_is_that_of_the_program() -> None:
    [install] = [
        step["with"]["pulumi-version"] for step in STEPS if "pulumi-version" in step.get("with", {})
    ]
    assert f"pulumi=={install}" in (ROOT / "requirements.in").read_text().splitlines()


def test_the_page_names_what_has_to_be_set() -> None:
    page = (ROOT / "docs" / "ci.md").read_text()
    used = {
        name for file in FILES for name in re.findall(r"(?:vars|secrets)\.(\w+)", file.read_text())
    }
    kinds = {body["environment"].partition("}}")[2] for body in ON_STACKS.values()} - {""}
    steps = {step["run"] for step in STEPS if "run" in step} - {LIST}
    targets = {"stacks", *(step.removeprefix("make ") for step in steps)}
    for said in (*used, *(f"dev{kind}" for kind in kinds), *(f"make {name}" for name in targets)):
        assert f"`{said}`" in page, said
