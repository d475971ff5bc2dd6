"""Roles, instance profiles and secrets of the embedded AWS."""

import json
import re
from typing import Any, ClassVar

from pulumi.runtime.rpc import UNKNOWN

from sandbox.providers.base import Existing, Problems, UserError, Values
from sandbox.providers.session import AwsKind, from_tags, given, to_tags

SECRET_LIMIT = 65_536  # bytes
ROLE_POLICY_LIMIT = 10_240  # characters, white space not counted


def check_policy(key: str, text: str, wanted: tuple[str, ...]) -> Problems:
    """A policy document is JSON whose statements have what IAM demands."""
    if text == UNKNOWN:
        return
    try:
        document = json.loads(text)
        statements = document["Statement"]
    except (ValueError, TypeError, KeyError):
        yield key, "is no JSON object with a Statement"
        return
    if document.get("Version", "2012-10-17") not in ("2012-10-17", "2008-10-17"):
        yield key, f"has the Version {document['Version']!r}, which IAM does not know"
    for statement in statements if isinstance(statements, list) else [statements]:
        for name in wanted:
            if not statement.keys() & {name, f"Not{name}"}:
                yield key, f"has a statement without {name}"
        if statement.get("Effect") not in ("Allow", "Deny"):
            yield key, "has a statement whose Effect is neither Allow nor Deny"


def check_name(name: str, limit: int, allowed: str = r"[\w+=,.@-]+") -> Problems:
    """A name's length and characters."""
    if name == UNKNOWN:
        return
    if len(name) > limit:
        yield "name", f"has {len(name)} characters, at most {limit} are allowed"
    if not re.fullmatch(allowed, name, re.ASCII):
        yield "name", f"{name!r} has a character that is not allowed"


class _Iam(AwsKind):
    missing = "NoSuchEntity"
    autoname = "name"

    @property
    def iam(self) -> Any:
        """IAM."""
        return self.session.client("iam")


class Role(_Iam):
    """aws.iam.Role; its id is its name."""

    type = "aws:iam/role:Role"
    replaces = frozenset({"name", "path"})
    updates = frozenset(
        {"assumeRolePolicy", "description", "forceDetachPolicies", "maxSessionDuration"}
        | {"permissionsBoundary", "tags"}
    )
    computed = frozenset({"arn", "createDate", "uniqueId"})
    documents = frozenset({"assumeRolePolicy"})
    defaults: ClassVar[Values] = {
        "forceDetachPolicies": False,
        "maxSessionDuration": 3600,
        "path": "/",
    }

    def check(self, inputs: Values) -> Problems:
        yield from check_name(inputs["name"], 64)
        trust = inputs["assumeRolePolicy"]
        yield from check_policy("assumeRolePolicy", trust, ("Action", "Principal"))

    def create(self, inputs: Values) -> tuple[str, Values]:
        self.iam.create_role(
            RoleName=inputs["name"],
            Path=inputs["path"],
            AssumeRolePolicyDocument=inputs["assumeRolePolicy"],
            MaxSessionDuration=inputs["maxSessionDuration"],
            Tags=to_tags(self.session.tags(inputs)),
            **given(
                Description=inputs.get("description"),
                PermissionsBoundary=inputs.get("permissionsBoundary"),
            ),
        )
        return inputs["name"], self.describe(inputs["name"])

    def describe(self, resource_id: str) -> Values:
        found = self.iam.get_role(RoleName=resource_id)["Role"]
        boundary = found.get("PermissionsBoundary", {})
        return {
            "arn": found["Arn"],
            "assumeRolePolicy": json.dumps(found["AssumeRolePolicyDocument"]),
            "createDate": found["CreateDate"].isoformat(),
            "description": found.get("Description"),
            "maxSessionDuration": found["MaxSessionDuration"],
            "name": found["RoleName"],
            "path": found["Path"],
            "permissionsBoundary": boundary.get("PermissionsBoundaryArn"),
            "tagsAll": from_tags(found.get("Tags", [])),
            "uniqueId": found["RoleId"],
        }

    def update(self, it: Existing) -> Values:
        name = {"RoleName": it.id}
        self.iam.update_assume_role_policy(**name, PolicyDocument=it.inputs["assumeRolePolicy"])
        self.iam.update_role(
            **name,
            Description=it.inputs.get("description", ""),
            MaxSessionDuration=it.inputs["maxSessionDuration"],
        )
        if boundary := it.inputs.get("permissionsBoundary"):
            self.iam.put_role_permissions_boundary(**name, PermissionsBoundary=boundary)
        elif it.state.get("permissionsBoundary"):
            self.iam.delete_role_permissions_boundary(**name)
        self.retag(
            it,
            lambda tags: self.iam.tag_role(**name, Tags=tags),
            lambda keys: self.iam.untag_role(**name, TagKeys=keys),
        )
        return {}

    def delete(self, it: Existing) -> None:
        """IAM refuses while it has policies or an instance profile has it, and so does moto."""
        self.iam.delete_role(RoleName=it.id)


class RolePolicy(_Iam):
    """aws.iam.RolePolicy; its id is `role:name`."""

    type = "aws:iam/rolePolicy:RolePolicy"
    replaces = frozenset({"name", "role"})
    updates = frozenset({"policy"})
    documents = frozenset({"policy"})

    def check(self, inputs: Values) -> Problems:
        yield from check_name(inputs["name"], 128)
        yield from check_policy("policy", inputs["policy"], ("Action", "Resource"))
        if len("".join(inputs["policy"].split())) > ROLE_POLICY_LIMIT:
            yield "policy", f"has more than {ROLE_POLICY_LIMIT} characters"

    def create(self, inputs: Values) -> tuple[str, Values]:
        self.iam.put_role_policy(
            RoleName=inputs["role"], PolicyName=inputs["name"], PolicyDocument=inputs["policy"]
        )
        return f"{inputs['role']}:{inputs['name']}", {}

    def describe(self, resource_id: str) -> Values:
        role, _, name = resource_id.partition(":")
        found = self.iam.get_role_policy(RoleName=role, PolicyName=name)
        return {"name": name, "policy": json.dumps(found["PolicyDocument"]), "role": role}

    def update(self, it: Existing) -> Values:
        self.create(it.inputs)
        return {}

    def delete(self, it: Existing) -> None:
        self.iam.delete_role_policy(RoleName=it.state["role"], PolicyName=it.state["name"])


class InstanceProfile(_Iam):
    """aws.iam.InstanceProfile; its id is its name."""

    type = "aws:iam/instanceProfile:InstanceProfile"
    replaces = frozenset({"name", "path"})
    updates = frozenset({"role", "tags"})
    computed = frozenset({"arn", "createDate", "uniqueId"})
    defaults: ClassVar[Values] = {"path": "/"}

    def check(self, inputs: Values) -> Problems:
        yield from check_name(inputs["name"], 128)

    def create(self, inputs: Values) -> tuple[str, Values]:
        name, tags = inputs["name"], to_tags(self.session.tags(inputs))
        self.iam.create_instance_profile(InstanceProfileName=name, Path=inputs["path"], Tags=tags)
        if role := inputs.get("role"):
            self.iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=role)
        return name, self.describe(name)

    def describe(self, resource_id: str) -> Values:
        found = self.iam.get_instance_profile(InstanceProfileName=resource_id)["InstanceProfile"]
        return {
            "arn": found["Arn"],
            "createDate": found["CreateDate"].isoformat(),
            "name": resource_id,
            "path": found["Path"],
            "role": next((role["RoleName"] for role in found["Roles"]), None),
            "tagsAll": from_tags(found.get("Tags", [])),
            "uniqueId": found["InstanceProfileId"],
        }

    def update(self, it: Existing) -> Values:
        name = {"InstanceProfileName": it.id}
        old, new = it.state.get("role"), it.inputs.get("role")
        if old and old != new:
            self.iam.remove_role_from_instance_profile(**name, RoleName=old)
        if new and old != new:
            self.iam.add_role_to_instance_profile(**name, RoleName=new)
        self.retag(
            it,
            lambda tags: self.iam.tag_instance_profile(**name, Tags=tags),
            lambda keys: self.iam.untag_instance_profile(**name, TagKeys=keys),
        )
        return {}

    def delete(self, it: Existing) -> None:
        """A machine that runs with it would lose its role."""
        users = [
            instance["InstanceId"]
            for reservation in self.ec2.describe_instances()["Reservations"]
            for instance in reservation["Instances"]
            if instance.get("IamInstanceProfile", {}).get("Arn") == it.state["arn"]
            and instance["State"]["Name"] != "terminated"
        ]
        if users:
            raise UserError(
                f"instance profile {it.id} is in use by {', '.join(users)}, so it is not deleted"
            )
        name = {"InstanceProfileName": it.id}
        if role := it.state.get("role"):
            self.iam.remove_role_from_instance_profile(**name, RoleName=role)
        self.iam.delete_instance_profile(**name)


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
        named = [{"Key": "name", "Values": [inputs["name"]]}]
        answer = self.manager.list_secrets(IncludePlannedDeletion=True, Filters=named)
        for other in answer["SecretList"]:
            if other["Name"] == inputs["name"] and other.get("DeletedDate"):
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
