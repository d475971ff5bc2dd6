"""Reads a stack's config out of Pulumi: the settings, and beside them the token, kept secret."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pulumi
from pulumi.runtime.config import CONFIG, get_config_env

from config.settings import NAMESPACE, Settings, SettingsError, check_token, placeholders


@contextmanager
def refusals() -> Iterator[None]:
    """Turn a refused setting into a `pulumi.RunError`, which is printed without a traceback."""
    try:
        yield
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None


def load() -> tuple[Settings, pulumi.Output[str] | None]:
    """The stack's settings and its `adminToken`, or None where somebody else keeps the token.

    Raises `SettingsError` with every problem, one line each; placeholders come first.
    """
    everything = _texts({**get_config_env(), **CONFIG.get()})
    plain = {k: v for k, v in everything.items() if not pulumi.runtime.is_config_secret(k)}
    if left := "\n".join(placeholders(plain)):
        raise SettingsError(left)
    prefix = f"{NAMESPACE}:"
    config = {k.removeprefix(prefix): v for k, v in everything.items() if k.startswith(prefix)}
    token = config.pop("adminToken", None)
    problems = []
    try:
        secret = {k for k in config if pulumi.runtime.is_config_secret(f"{NAMESPACE}:{k}")}
        settings = Settings.parse(
            pulumi.get_stack(), config, has_token=token is not None, secret=secret
        )
    except SettingsError as error:
        problems.append(str(error))
    if token is not None:
        try:
            check_token(token)
        except ValueError as error:
            problems.append(f"{NAMESPACE}:adminToken: the value (hidden) {error}")
        if not pulumi.runtime.is_config_secret(f"{NAMESPACE}:adminToken"):
            problems.append(
                f"{NAMESPACE}:adminToken: the value (hidden) is stored in plain text; "
                "set it with: pulumi config set --secret adminToken"
            )
    if problems:
        raise SettingsError("\n".join(problems))
    return settings, None if token is None else pulumi.Config(NAMESPACE).require_secret(
        "adminToken"
    )


def _texts(config: Mapping[str, Any]) -> dict[str, str]:
    """The config as text; what is structured is JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in config.items()}
