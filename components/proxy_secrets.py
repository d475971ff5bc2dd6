"""What the host reads, the secrets of token and bundle, and the role that may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from components.certificates import Certificates
from config.settings import Settings


def secret_names(settings: Settings) -> tuple[str, str]:
    """The names of a stack's own secrets, token and bundle: pinned, as the host goes by name."""
    folder = f"{settings.secret_prefix}/{settings.stack}"
    return f"{folder}/admin-token", f"{folder}/bundle"


@dataclass(frozen=True, kw_only=True)
class ProxySecretsArgs:
    settings: Settings
    region: str
    token: pulumi.Input[str] | None
    """The admin token; None where `admin_token_secret_arn` names somebody else's secret."""
    bundle: Mapping[str, Any]
    """All but certificate and key, as `host.proxy.bundle` gives it."""
    certificates: Certificates


class ProxySecrets(pulumi.ComponentResource):
    """Nothing the host reads is ever replaced: a new value is a new version of the same secret.

    The bundle names the token's secret, so it comes last: when the host may read that one.
    """

    token_secret_arn: pulumi.Output[str]
    bundle_secret_arn: pulumi.Output[str]
    declared: dict[str, pulumi.Input[str | None]]
    """What the host is to have in use: the ids of the versions written, and the certificate's end.
    No version of the token where somebody else keeps it."""
    instance_profile: pulumi.Output[str]
    """The name of the host's profile, with a role that may read these two, nothing else."""
    role_arn: pulumi.Output[str]
    """That role, for whoever keeps the token or a key to admit it."""

    def __init__(
        self, name: str, args: ProxySecretsArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("metrics-proxy:index:ProxySecrets", name, None, opts)
        settings = args.settings
        child = pulumi.ResourceOptions(parent=self)
        kept = pulumi.ResourceOptions(parent=self, protect=settings.protect)
        token_name, bundle_name = secret_names(settings)

        def secret(role: str, secret_name: str) -> aws.secretsmanager.Secret:
            return aws.secretsmanager.Secret(
                f"{name}-{role}",
                name=secret_name,
                description=f"metrics-proxy, stack {settings.stack}: {role}",
                kms_key_id=settings.kms_key_arn,
                recovery_window_in_days=settings.recovery_window_in_days,
                tags=settings.tags,
                opts=kept,
            )

        def value(
            role: str,
            secret: aws.secretsmanager.Secret,
            text: pulumi.Input[str],
            *before: pulumi.Resource,
        ) -> aws.secretsmanager.SecretVersion:
            return aws.secretsmanager.SecretVersion(
                f"{name}-{role}-value",
                secret_id=secret.id,
                secret_string=pulumi.Output.secret(text),
                opts=pulumi.ResourceOptions(parent=self, depends_on=before),
            )

        first: list[pulumi.Resource] = []
        token_version: pulumi.Output[str] | None = None
        if args.token is not None:
            token = secret("token", token_name)
            version = value("token", token, args.token)
            first.append(version)
            self.token_secret_arn, token_version = token.arn, version.version_id
        else:
            self.token_secret_arn = pulumi.Output.from_input(settings.token_secret or "")
        bundle = secret("bundle", bundle_name)
        self.bundle_secret_arn = bundle.arn

        role = aws.iam.Role(
            f"{name}-role",
            description="Metrics proxy: reads its two secrets",
            path=settings.iam_path,
            permissions_boundary=settings.permissions_boundary_arn,
            tags=settings.tags,
            assume_role_policy=pulumi.Output.json_dumps(
                _policy(Action="sts:AssumeRole", Principal={"Service": "ec2.amazonaws.com"})
            ),
            opts=child,
        )
        self.role_arn = role.arn
        both = [self.token_secret_arn, self.bundle_secret_arn]
        statements: list[dict[str, Any]] = [
            {"Action": "secretsmanager:GetSecretValue", "Resource": both}
        ]
        if settings.kms_keys:
            # nothing that the keys encrypt but these two, and those through Secrets Manager only
            context = {
                "kms:ViaService": f"secretsmanager.{args.region}.amazonaws.com",
                "kms:EncryptionContext:SecretARN": both,
            }
            statements.append(
                {
                    "Action": "kms:Decrypt",
                    "Resource": settings.kms_keys,
                    "Condition": {"StringEquals": context},
                }
            )
        policy = aws.iam.RolePolicy(
            f"{name}-policy",
            role=role.id,
            policy=pulumi.Output.json_dumps(_policy(*statements)),
            opts=child,
        )
        profile = aws.iam.InstanceProfile(
            f"{name}-profile",
            role=role.name,
            path=settings.iam_path,
            tags=settings.tags,
            # what starts with this profile may read at once
            opts=pulumi.ResourceOptions(parent=self, depends_on=[policy]),
        )
        self.instance_profile = profile.name

        document = {
            **args.bundle,
            "certificate": args.certificates.certificate,
            "key": args.certificates.key,
        }
        text = pulumi.Output.json_dumps(document, sort_keys=True)
        self.declared = {
            "tokenVersion": token_version,
            "bundleVersion": value("bundle", bundle, text, *first, policy).version_id,
            "certificateEnd": args.certificates.end,
        }
        self.register_outputs(
            {
                "token_secret_arn": self.token_secret_arn,
                "bundle_secret_arn": self.bundle_secret_arn,
                "declared": self.declared,
                "instance_profile": self.instance_profile,
                "role_arn": self.role_arn,
            }
        )


def _policy(*statements: dict[str, Any], **statement: Any) -> dict[str, Any]:
    """An IAM policy that allows the statements."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", **s} for s in (*statements, *([statement] if statement else []))
        ],
    }
