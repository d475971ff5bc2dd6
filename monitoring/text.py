"""PromQL, as Prometheus and Grafana read it and people too."""

from __future__ import annotations

import json


def quoted(text: str) -> str:
    """Return a PromQL string: JSON's escapes are valid there, and Grafana replaces any `$name`."""
    return json.dumps(text, ensure_ascii=False).replace("$", r"\u0024")


def selector(metric: str, *matchers: str, **labels: str) -> str:
    """Return a vector selector: `matchers` as they are behind the labels that are equal."""
    equal = [f"{name}={quoted(value)}" for name, value in labels.items()]
    return f"{metric}{{{', '.join([*equal, *matchers])}}}"
