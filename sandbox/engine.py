"""The real Pulumi engine over the stand-in providers: the program as users run it."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from pulumi import automation as auto

from config.settings import NAMESPACE
from sandbox.aws import Account
from sandbox.tools import ROOT, find, search_path

STACK: Final = "local"
PASSPHRASE: Final = "sandbox"
"""Of the state's encryption. No secret: every sandbox has its own state and demo tokens only."""

EXAMPLES: Final = ROOT / "config/examples"
"""The stack files that people copy."""

OTHER_SUBNET: Final = "10.20.4.0/24"
"""Of an example of a stack file that asks for two."""


class ProgramError(Exception):
    """The program was refused; the text is what `pulumi` says under Diagnostics."""


class Engine:
    """Preview, up and destroy of one stack whose state lies below `folder`."""

    def __init__(self, folder: Path, account: Account, name: str = STACK) -> None:
        self._outputs: dict[str, Any] | None = None
        self.backend = folder / "pulumi"
        self.project = folder / "project"
        self.provisioning = folder / "grafana"
        self.config_file = self.project / "config" / f"Pulumi.{name}.yaml"
        for path in (self.backend, self.config_file.parent, self.provisioning):
            path.mkdir(parents=True, exist_ok=True)
        # a copy, so that the stack file is not written into the project
        shutil.copy(ROOT / "Pulumi.yaml", self.project)
        providers = ROOT / "sandbox" / "providers" / "bin"
        self.environment = {
            **account.environment(),
            "PATH": os.pathsep.join([str(providers), search_path()]),
            "PULUMI_BACKEND_URL": self.backend.as_uri(),
            "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE,
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "GRAFANA_URL": "http://grafana.invalid",
            "GRAFANA_AUTH": "sandbox",
            "SANDBOX_PYTHON": sys.executable,
            "SANDBOX_GRAFANA_PROVISIONING": str(self.provisioning),
        }
        # the Automation API looks for the CLI on this process' own $PATH
        os.environ["PATH"] = search_path()
        self.stack = auto.create_or_select_stack(
            name,
            project_name=NAMESPACE,
            program=_program,
            opts=auto.LocalWorkspaceOptions(
                work_dir=str(self.project),
                env_vars=self.environment,
                secrets_provider="passphrase",
                pulumi_command=auto.PulumiCommand(skip_version_check=True),
            ),
        )

    @property
    def config(self) -> dict[str, Any]:
        """The stack file's keys, with their namespaces."""
        return dict(yaml.safe_load(self.config_file.read_text())["config"])

    def configure(self, values: Mapping[str, Any]) -> None:
        """Set keys of the stack file, as a user edits it: structures as structures. None unsets."""
        document = yaml.safe_load(self.config_file.read_text()) or {}
        config = document.setdefault("config", {})
        for key, value in values.items():
            full = key if ":" in key else f"{NAMESPACE}:{key}"
            if value is None:
                config.pop(full, None)
            else:
                config[full] = value
        self.config_file.write_text(yaml.safe_dump(document))

    def set_secret(self, key: str, value: str) -> None:
        """`pulumi config set --secret`, the value on standard input: arguments are seen by all."""
        self.cli("config", "set", "--secret", key, given=value)

    def cli(self, *arguments: str, given: str = "") -> str:
        """What `pulumi` prints for a command that runs no program."""
        return subprocess.run(
            [find("pulumi"), *arguments, "--stack", self.stack.name, "--color", "never"],
            input=given,
            text=True,
            cwd=self.project,
            env={**os.environ, **self.environment},
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ).stdout

    def up(
        self,
        output: Callable[[str], object] | None = None,
        *,
        refresh: bool = False,
        replace: Sequence[str] = (),
        target: Sequence[str] = (),
    ) -> dict[str, int]:
        """Deploy; what changed, by operation (`same`, `create`, `update`, …)."""
        only = {"replace": list(replace), "target": list(target)}
        result = self._run(self.stack.up, output, refresh=refresh, **only)
        return dict(result.summary.resource_changes or {})

    def preview(
        self, output: Callable[[str], object] | None = None, *, diff: bool = False
    ) -> dict[str, int]:
        """What `up` would change, by operation."""
        result = self._run(self.stack.preview, output, diff=diff)
        return {str(getattr(k, "value", k)): n for k, n in result.change_summary.items()}

    def destroy(self, output: Callable[[str], object] | None = None) -> None:
        self._run(self.stack.destroy, output)

    def outputs(self) -> dict[str, Any]:
        """The stack's outputs, secrets included. The CLI is slow: it is asked once an `up`."""
        if self._outputs is None:
            self._outputs = {name: output.value for name, output in self.stack.outputs().items()}
        return self._outputs

    def _run(self, operation: Callable[..., Any], output: Any, **options: Any) -> Any:
        lines: list[str] = []
        self._outputs = None

        def collect(line: str) -> None:
            lines.append(line)
            if output is not None:
                output(line)

        try:
            return operation(on_output=collect, color="never", **options)
        except auto.CommandError as error:
            raise ProgramError(_diagnostics("\n".join(lines)) or str(error)) from None


def copied(folder: Path, account: Account, name: str) -> Engine:
    """The engine of an example of a stack file, filled in for the embedded AWS."""
    token = account.client("secretsmanager").create_secret(Name=f"theirs/{name}", SecretString="-")
    text = stack_file(
        name,
        {
            "URL of Grafana": "http://grafana.invalid",
            "id of a private subnet": account.subnet_id,
            "id of one in another zone": _other_subnet(account),
            "network of Prometheus": "10.20.2.0/24",
            "network of the API": "10.20.3.0/24",
            "security group of the API": account.api_security_group_id,
            "domain of the API": "example.internal",
            "ARN of the token": token["ARN"],
            "name of a contact point": "on call",
            "URL of your copy": "https://wiki.example.com/runbook",
        },
    )
    file = folder / name / "project" / "config" / f"Pulumi.{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return Engine(folder / name, account, name)


def _other_subnet(account: Account) -> str:
    """One in another zone, made when it is first asked for."""
    found = account.client("ec2").describe_subnets(
        Filters=[{"Name": "cidr-block", "Values": [OTHER_SUBNET]}]
    )["Subnets"]
    return str(found[0]["SubnetId"]) if found else account.another_subnet(OTHER_SUBNET)


def stack_file(name: str, values: Mapping[str, str]) -> str:
    """An example of a stack file; `values` say what to put in, by how its placeholders begin."""

    def value(found: re.Match[str]) -> str:
        [one] = [value for start, value in values.items() if found[1].startswith(start)]
        return one

    return re.sub(r"<(.*)>", value, (EXAMPLES / f"Pulumi.{name}.yaml").read_text())


def _program() -> None:
    runpy.run_path(str(ROOT / "__main__.py"), run_name="__main__")


def _diagnostics(text: str) -> str:
    """The messages below `Diagnostics:`, without the engine's frame around them."""
    section = (
        text.rpartition("Diagnostics:")[2].partition("\nOutputs:")[0].partition("\nResources:")[0]
    )
    lines = [line.strip().removeprefix("error: ") for line in section.splitlines()]
    noise = (
        "pulumi:pulumi:Stack",
        "warning: using pulumi-resource-",
        "an unhandled error occurred",
    )
    # an inline program's refusal comes twice, the second time as an unhandled error
    return "\n".join(dict.fromkeys(one for one in lines if one and not one.startswith(noise)))
