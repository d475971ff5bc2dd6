"""What the host reads: the secrets of token and bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from config.settings import Settings


def secret_names(stack: str) -> tuple[str, str]:
    """The names of a stack's secrets, token and bundle: pinned, as the host goes by name."""
    return f"metrics-proxy/{stack}/admin-token", f"metrics-proxy/{stack}/bundle"


@dataclass(frozen=True, kw_only=True)
class ProxySecretsArgs:
    settings: Settings
    token: pulumi.Input[str] | None
    """The admin token; None where `admin_token_secret_arn` names somebody else's secret."""
    bundle: Mapping[str, Any]
    """`configuration` and `endpoints`, as `host.proxy.bundle` gives them."""
    certificate: pulumi.Input[str]
    key: pulumi.Input[str]


class ProxySecrets(pulumi.ComponentResource):
    """Nothing the host reads is ever replaced: a new value is a new version of the same secret."""

    token_secret_arn: pulumi.Output[str]
    bundle_secret_arn: pulumi.Output[str]

    def __init__(
        self, name: str, args: ProxySecretsArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("metrics-proxy:index:ProxySecrets", name, None, opts)
        settings = args.settings
        child = pulumi.ResourceOptions(parent=self)
        kept = pulumi.ResourceOptions(parent=self, protect=settings.protect)
        token_name, bundle_name = secret_names(settings.stack)

        def secret(role: str, secret_name: str, value: pulumi.Input[str]) -> pulumi.Output[str]:
            box = aws.secretsmanager.Secret(
                f"{name}-{role}",
                name=secret_name,
                description=f"metrics-proxy, stack {settings.stack}: {role}",
                kms_key_id=settings.kms_key_arn,
                # The program can make every value again; a window would only block the name.
                recovery_window_in_days=0,
                opts=kept,
            )
            aws.secretsmanager.SecretVersion(
                f"{name}-{role}-value", secret_id=box.id, secret_string=value, opts=child
            )
            return box.arn

        if args.token is not None:
            self.token_secret_arn = secret("token", token_name, pulumi.Output.secret(args.token))
        else:
            self.token_secret_arn = pulumi.Output.from_input(settings.admin_token_secret_arn or "")
        document = {**args.bundle, "certificate": args.certificate, "key": args.key}
        self.bundle_secret_arn = secret(
            "bundle",
            bundle_name,
            pulumi.Output.secret(pulumi.Output.json_dumps(document, sort_keys=True)),
        )
        self.register_outputs(
            {
                "token_secret_arn": self.token_secret_arn,
                "bundle_secret_arn": self.bundle_secret_arn,
            }
        )
