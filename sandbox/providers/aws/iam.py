"""Roles and instance profiles of the embedded AWS."""

import json
from typing import Any, ClassVar

from sandbox.providers.aws.kind import AwsKind, check_name, check_policy, from_tags, given, to_tags
from sandbox.providers.base import Existing, Problems, UserError, Values

ROLE_POLICY_LIMIT = 10_240  # characters, white space not counted


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
