"""What the AWS kinds share: clients of the embedded AWS, tags, checks, and reading."""

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from pulumi.runtime.rpc import UNKNOWN

from sandbox.providers.base import Existing, Kind, Problems, UserError, Values


class Session:
    """Clients, the region and the provider's settings."""

    def __init__(self, settings: Values) -> None:
        self.settings = settings
        self._clients: dict[str, Any] = {}

    @property
    def region(self) -> str:
        """`aws:region`, else the environment's."""
        region = self.settings.get("region") or os.environ.get("AWS_REGION")
        if not region:
            raise UserError("no region: set aws:region or AWS_REGION")
        return str(region)

    def client(self, service: str) -> Any:
        """A client of the embedded AWS; the real one must never be reached from here."""
        if not (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
            raise UserError("AWS_ENDPOINT_URL is not set, and the sandbox never uses the real AWS")
        if service not in self._clients:
            options = Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1})
            # no default session: that keeps the credentials it was made with
            self._clients[service] = boto3.Session().client(
                service, region_name=self.region, endpoint_url=endpoint, config=options
            )
        return self._clients[service]

    @property
    def ec2(self) -> Any:
        """EC2."""
        return self.client("ec2")

    @functools.cached_property
    def identity(self) -> Values:
        """Who calls, and in which account."""
        return dict(self.client("sts").get_caller_identity())

    def arn(self, resource: str) -> str:
        """The ARN of something of EC2."""
        return f"arn:aws:ec2:{self.region}:{self.identity['Account']}:{resource}"

    def tags(self, inputs: Values) -> dict[str, str]:
        """The resource's own tags over the default tags."""
        default = self.settings.get("defaultTags", {}).get("tags", {})
        return {**default, **inputs.get("tags", {})}

    def subnet(self, subnet_id: str) -> Values:
        """A subnet by its id."""
        return dict(self.ec2.describe_subnets(SubnetIds=[subnet_id])["Subnets"][0])

    def image(self, image_id: str) -> Values:
        """An AMI by its id."""
        return dict(self.ec2.describe_images(ImageIds=[image_id])["Images"][0])

    def interface(self, interface_id: str) -> Values:
        """A network interface by its id."""
        answer = self.ec2.describe_network_interfaces(NetworkInterfaceIds=[interface_id])
        return dict(answer["NetworkInterfaces"][0])

    def interfaces(self, name: str, value: str) -> list[Values]:
        """The network interfaces that pass a filter."""
        wanted = [{"Name": name, "Values": [value]}]
        return list(self.ec2.describe_network_interfaces(Filters=wanted)["NetworkInterfaces"])

    def architectures(self, instance_type: str) -> list[str]:
        """What machine code an instance type runs."""
        answer = self.ec2.describe_instance_types(InstanceTypes=[instance_type])
        return list(answer["InstanceTypes"][0]["ProcessorInfo"]["SupportedArchitectures"])


def from_tags(tags: list[dict[str, str]]) -> dict[str, str]:
    """Tags as Pulumi has them."""
    return {tag["Key"]: tag["Value"] for tag in tags if not tag["Key"].startswith("aws:")}


def to_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as AWS has them."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def given(**arguments: Any) -> Values:
    """The arguments of a call that are there."""
    return {name: value for name, value in arguments.items() if value is not None}


def pascal(values: Values) -> Values:
    """Pulumi's names as EC2 spells them."""
    return {key[0].upper() + key[1:]: value for key, value in values.items()}


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


class AwsKind(Kind):
    """A kind whose resources AWS can describe."""

    missing: ClassVar[str]  # the code of AWS's error when one is not there

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def ec2(self) -> Any:
        """EC2."""
        return self.session.ec2

    def derive(self, inputs: Values) -> Values | None:
        """Every kind that has tags has `tagsAll`, which a plan knows."""
        return {"tagsAll": self.session.tags(inputs)} if "tags" in self.updates else None

    def describe(self, resource_id: str) -> Values | None:
        """What AWS says of it; None if it only lingers."""
        raise NotImplementedError

    def read(self, it: Existing) -> Values | None:
        """What is not there is gone; empty and unset are the same."""
        try:
            seen = self.describe(it.id)
        except ClientError as error:
            if error.response["Error"]["Code"] != self.missing:
                raise
            return None
        if seen is None:
            return None
        if "tagsAll" in seen:
            default = self.session.tags({})
            seen["tags"] = {k: v for k, v in seen["tagsAll"].items() if default.get(k) != v}
        return {key: value for key, value in seen.items() if value or it.state.get(key)}

    def specification(self, kind: str, inputs: Values) -> Values:
        """The tags of something new in EC2."""
        tags = to_tags(self.session.tags(inputs))
        return {"TagSpecifications": [{"ResourceType": kind, "Tags": tags}]} if tags else {}

    def retag(
        self,
        it: Existing,
        tag: Callable[[list[dict[str, str]]], Any],
        untag: Callable[[list[str]], Any],
    ) -> None:
        """Bring its tags up to date."""
        old, new = it.state.get("tagsAll", {}), self.session.tags(it.inputs)
        if gone := sorted(old.keys() - new.keys()):
            untag(gone)
        if new and new != old:
            tag(to_tags(new))

    def retag_ec2(self, it: Existing) -> None:
        """The same for something of EC2."""
        self.retag(
            it,
            lambda tags: self.ec2.create_tags(Resources=[it.id], Tags=tags),
            lambda keys: self.ec2.delete_tags(Resources=[it.id], Tags=[{"Key": k} for k in keys]),
        )
