"""PromQL and YAML, as Prometheus and Grafana read them and people too."""

from __future__ import annotations

import json
from typing import Any

import yaml


def quoted(text: str) -> str:
    """Return a PromQL string: JSON's escapes are valid there, and Grafana replaces any `$name`."""
    return json.dumps(text, ensure_ascii=False).replace("$", r"\u0024")


def selector(metric: str, *matchers: str, **labels: str) -> str:
    """Return a vector selector: `matchers` as they are behind the labels that are equal."""
    equal = [f"{name}={quoted(value)}" for name, value in labels.items()]
    return f"{metric}{{{', '.join([*equal, *matchers])}}}"


def dump_yaml(*documents: Any) -> str:
    """Return a YAML stream; what has several lines keeps them."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, _: Any) -> bool:
        """Write what is there twice twice: anchors are no help to a reader."""
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)
