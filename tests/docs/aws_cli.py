"""What `aws` makes of its arguments, by the API's own model."""

from __future__ import annotations

import json
import shlex
from functools import cache
from typing import Any, Final, NamedTuple

import botocore.session
from botocore import xform_name
from botocore.validate import ParamValidator

GLOBAL: Final = {"--output", "--profile", "--query", "--region"}
"""Options of every command, each with a value."""


class Call(NamedTuple):
    service: str
    operation: str
    """As boto3 has it."""
    parameters: dict[str, Any]
    query: str | None


def parse(command: str) -> Call:
    """Raises `AssertionError` where the API has no such operation, parameter or value."""
    joined = command.replace("\\\n", " ")
    program, service, name, *rest = shlex.split(joined)
    assert program == "aws"
    service = {"s3api": "s3"}.get(service, service)
    model = _model(service)
    names = {xform_name(it, "-"): it for it in model.operation_names}
    assert name in names, f"{service} has no {name}"
    shape = model.operation_model(names[name]).input_shape
    members = {f"--{xform_name(it, '-')}": it for it in shape.members}
    parameters: dict[str, Any] = {}
    query = None
    while rest:
        option, values = rest.pop(0), []
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if option in GLOBAL:
            [value] = values
            query = value if option == "--query" else query
            continue
        if option == "--max-items" and _has_pages(service, names[name]):
            [_] = map(int, values)
            continue
        assert option in members, f"{name} has no {option}"
        member = shape.members[members[option]]
        parameters[members[option]] = _value(member, values)
    if "…" not in command and rest == [] and parameters:
        report = ParamValidator().validate(parameters, shape)
        assert not report.has_errors(), report.generate_report()
    return Call(service, xform_name(names[name]), parameters, query)


@cache
def _model(service: str) -> Any:
    return botocore.session.get_session().get_service_model(service)


def _has_pages(service: str, operation: str) -> bool:
    """Whether the CLI has its own options for the pages of an answer."""
    model = botocore.session.get_session().get_paginator_model(service)
    try:
        return bool(model.get_paginator(operation))
    except ValueError:
        return False


def _value(shape: Any, values: list[str]) -> Any:
    if shape.type_name == "boolean":
        assert not values
        return True
    if shape.type_name == "list" and shape.member.type_name == "string":
        return values
    [value] = values
    if shape.type_name == "structure" and not value.startswith("{"):  # the short form
        return dict(part.split("=", 1) for part in value.split(","))
    return value if shape.type_name == "string" else json.loads(value)
