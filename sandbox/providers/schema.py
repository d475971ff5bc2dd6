"""Inputs against the provider SDKs' own types.

The SDKs ship no schema file, but their argument classes carry names, types and deprecations
(`pulumi._types` is private: pulumi is pinned). Neither Pulumi's SDK nor its mocks report a
misspelt nested key, a missing nested one or a wrong type; the real providers do.
"""

import functools
import importlib
import inspect
import typing
from collections import abc
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from pulumi import _types
from pulumi.runtime.rpc import UNKNOWN, is_rpc_secret, unwrap_rpc_secret

SDKS = {"aws": "pulumi_aws", "tls": "pulumi_tls", "grafana": "pulumiverse_grafana"}


@functools.cache
def resource_class(token: str) -> type:
    """The SDK's class of a type token such as `aws:ec2/instance:Instance`."""
    package, module, name = token.split(":")
    module = module.partition("/")[0]
    found = importlib.import_module(SDKS[package] + ("" if module == "index" else f".{module}"))
    return typing.cast(type, getattr(found, name))


@functools.cache
def arguments_class(token: str) -> type:
    """The argument class (`InstanceArgs`) of a resource."""
    constructor = vars(resource_class(token))["__init__"]
    for overload in typing.get_overloads(constructor):
        if (annotation := overload.__annotations__.get("args")) is not None:
            classes = typing.get_args(annotation) or (annotation,)
            return typing.cast(type, next(c for c in classes if c is not type(None)))
    raise LookupError(f"{token}: the SDK's class takes no args")


class Properties(NamedTuple):
    """Of an argument class: types by name, the required names, the deprecated names."""

    types: dict[str, Any]
    required: frozenset[str]
    deprecated: frozenset[str]


@functools.cache
def properties(cls: type) -> Properties:
    """What an argument class accepts."""
    names = _types.input_type_py_to_pulumi_names(cls)
    parameters = inspect.signature(cls).parameters.values()
    required = {names[p.name] for p in parameters if p.default is inspect.Parameter.empty}
    deprecated = {
        names[name]
        for name, value in vars(cls).items()
        if isinstance(value, property) and "_pulumi_deprecated_callable" in vars(value.fget)
    }
    return Properties(_types.input_type_types(cls), frozenset(required), frozenset(deprecated))


def problems(token: str, inputs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the real provider's schema would refuse, as (path, problem).

    Inputs are plain values as they go over the wire: camelCase keys, UNKNOWN where a preview
    does not know yet, secrets marked as Pulumi marks them or plain.
    """
    yield from _check(dict(inputs), arguments_class(token), "")


def _check(value: Any, wanted: Any, path: str) -> Iterator[tuple[str, str]]:
    if is_rpc_secret(value):
        value = unwrap_rpc_secret(value)
    if value is None or value == UNKNOWN or wanted in (Any, object):
        return
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Union:
        yield from _check_union(value, arguments, path)
    elif _types.is_input_type(wanted):
        yield from _check_object(value, wanted, path)
    elif origin in (Sequence, list):
        if not isinstance(value, list | tuple):
            yield path, f"a list is wanted, not {_kind(value)}"
            return
        for index, item in enumerate(value):
            yield from _check(item, arguments[0], f"{path}[{index}]")
    elif origin in (Mapping, dict):
        if not isinstance(value, dict):
            yield path, f"a map is wanted, not {_kind(value)}"
            return
        for key, item in value.items():
            yield from _check(item, arguments[1], f"{path}.{key}")
    elif issubclass(wanted, Enum):
        if value not in (allowed := [member.value for member in wanted]):
            yield path, f"is none of {', '.join(map(str, allowed))}"
    elif not _is(value, wanted):
        yield path, f"{wanted.__name__} is wanted, not {_kind(value)}"


def _check_union(value: Any, alternatives: tuple[Any, ...], path: str) -> Iterator[tuple[str, str]]:
    """An input is a union with its own promise and output; those never go over the wire."""
    first: list[tuple[str, str]] = []
    for alternative in alternatives:
        origin = typing.get_origin(alternative)
        if alternative is type(None) or origin is abc.Awaitable or "Output[" in str(alternative):
            continue
        found = list(_check(value, alternative, path))
        if not found:
            return
        first = first or found
    yield from first


def _check_object(value: Any, cls: type, path: str) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict):
        yield path, f"an object is wanted, not {_kind(value)}"
        return
    types, required, deprecated = properties(cls)
    dot = f"{path}." if path else ""
    for key, item in value.items():
        if key.startswith("__"):  # Pulumi's own bookkeeping
            continue
        if key not in types:
            yield f"{dot}{key}", f"is no property of {cls.__name__}"
        elif key in deprecated and item is not None:
            yield f"{dot}{key}", f"is deprecated in {cls.__name__}"
        else:
            yield from _check(item, types[key], f"{dot}{key}")
    for key in sorted(required):
        if value.get(key) is None:
            yield f"{dot}{key}", f"is required by {cls.__name__}"


def _kind(value: Any) -> str:
    return type(value).__name__  # not the value: it may be a secret


def _is(value: Any, wanted: type) -> bool:
    """Numbers go over the wire as floats; a bool is no number."""
    if isinstance(value, bool) or wanted is bool:
        return isinstance(value, bool) and wanted is bool
    if wanted is int:
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, int | float if wanted is float else wanted)
