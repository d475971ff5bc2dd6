"""Secrets of the embedded AWS."""

from contextlib import suppress
from typing import Any, ClassVar

from pulumi.runtime.rpc import UNKNOWN

from sandbox.providers.aws.kind import AwsKind, check_name, check_policy, from_tags, given, to_tags
from sandbox.providers.base import Existing, Problems, UserError, Values

SECRET_LIMIT = 65_536  # bytes


class _Secrets(AwsKind):
    missing = "ResourceNotFoundException"

    @property
    def manager(self) -> Any:
        """Secrets Manager."""
        return self.session.client("secretsmanager")


class Secret(_Secrets):
    """aws.secretsmanager.Secret without replicas."""

    type = "aws:secretsmanager/secret:Secret"
    replaces = frozenset({"name"})
    updates = frozenset({"description", "kmsKeyId", "policy", "recoveryWindowInDays", "tags"})
    computed = frozenset({"arn", "policy"})
    documents = frozenset({"policy"})
    defaults: ClassVar[Values] = {"recoveryWindowInDays": 30}
    autoname = "name"

    def check(self, inputs: Values) -> Problems:
        yield from check_name(inputs["name"], 512, r"[\w/+=.@-]+")
        window = inputs["recoveryWindowInDays"]
        if window not in (0, *range(7, 31), UNKNOWN):
            yield "recoveryWindowInDays", f"must be 0 or 7 to 30, not {window}"
        if inputs.get("policy"):
            yield from check_policy("policy", inputs["policy"], ("Action", "Principal"))

    def create(self, inputs: Values) -> tuple[str, Values]:
        """Refused while its name is taken by one that waits for its deletion."""
        with suppress(self.manager.exceptions.ResourceNotFoundException):
            if self.manager.describe_secret(SecretId=inputs["name"]).get("DeletedDate"):
                raise UserError(
                    f"name: a secret named {inputs['name']} is scheduled for deletion; restore it "
                    "or delete it without recovery"
                )
        arn = self.manager.create_secret(
            Name=inputs["name"],
            Tags=to_tags(self.session.tags(inputs)),
            **given(Description=inputs.get("description"), KmsKeyId=inputs.get("kmsKeyId")),
        )["ARN"]
        if inputs.get("policy"):
            self.manager.put_resource_policy(SecretId=arn, ResourcePolicy=inputs["policy"])
        return arn, {"arn": arn}

    def describe(self, resource_id: str) -> Values | None:
        found = self.manager.describe_secret(SecretId=resource_id)
        if found.get("DeletedDate"):
            return None
        return {
            "arn": found["ARN"],
            "description": found.get("Description"),
            "kmsKeyId": found.get("KmsKeyId"),
            "name": found["Name"],
            "tagsAll": from_tags(found.get("Tags", [])),
        }

    def update(self, it: Existing) -> Values:
        name = {"SecretId": it.id}
        self.manager.update_secret(
            **name,
            Description=it.inputs.get("description", ""),
            **given(KmsKeyId=it.inputs.get("kmsKeyId")),
        )
        if it.inputs.get("policy"):
            self.manager.put_resource_policy(**name, ResourcePolicy=it.inputs["policy"])
        elif it.state.get("policy"):
            self.manager.delete_resource_policy(**name)
        self.retag(
            it,
            lambda tags: self.manager.tag_resource(**name, Tags=tags),
            lambda keys: self.manager.untag_resource(**name, TagKeys=keys),
        )
        return {}

    def delete(self, it: Existing) -> None:
        """At once, or after its recovery window."""
        window = it.state["recoveryWindowInDays"]
        how = {"RecoveryWindowInDays": window} if window else {"ForceDeleteWithoutRecovery": True}
        self.manager.delete_secret(SecretId=it.id, **how)


class SecretVersion(_Secrets):
    """aws.secretsmanager.SecretVersion: another value is another version of the same secret."""

    type = "aws:secretsmanager/secretVersion:SecretVersion"
    replaces = frozenset({"secretId", "secretString"})
    computed = frozenset({"arn", "secretArn", "versionId", "versionStages"})

    def check(self, inputs: Values) -> Problems:
        """The size, without ever telling the value."""
        value = inputs.get("secretString")
        if value is None:
            yield "secretString", "is required (other values are not modelled by the sandbox)"
        elif value != UNKNOWN and not 0 < (size := len(value.encode())) <= SECRET_LIMIT:
            yield "secretString", f"has {size} bytes, 1 to {SECRET_LIMIT} are allowed"

    def create(self, inputs: Values) -> tuple[str, Values]:
        """It becomes AWSCURRENT, and the one before it AWSPREVIOUS."""
        secret = inputs["secretId"]
        made = self.manager.put_secret_value(SecretId=secret, SecretString=inputs["secretString"])
        resource_id = f"{secret}|{made['VersionId']}"
        return resource_id, self.describe(resource_id)

    def describe(self, resource_id: str) -> Values:
        secret, _, number = resource_id.partition("|")
        found = self.manager.get_secret_value(SecretId=secret, VersionId=number)
        return {
            "arn": found["ARN"],
            "secretArn": found["ARN"],
            "secretId": secret,
            "secretString": found["SecretString"],
            "versionId": found["VersionId"],
            "versionStages": found["VersionStages"],
        }

    def delete(self, it: Existing) -> None:
        """Nothing: AWSCURRENT cannot be taken away, and versions go with their secret."""
