"""Rules with one thing changed: what a test of the rules has to see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Rule = dict[str, Any]

OPERATORS = {
    ">": (">=", "<"),
    "<": ("<=", ">"),
    ">=": (">", "<"),
    "==": ("!=",),
    "or": ("and",),
    "and": ("or", "unless"),
    "unless": ("and", "or"),
}
FUNCTIONS = {
    "last_over_time": ("max_over_time", "min_over_time"),
    "max_over_time": ("min_over_time",),
    "min_over_time": ("max_over_time",),
    "max": ("min",),
}


def replaced(text: str, found: re.Match[str], new: str) -> str:
    return text[: found.start()] + new + text[found.end() :]


def numbers(expr: str) -> Iterator[str]:
    """Thresholds, and the labels that name them."""
    for found in re.finditer(r"(?<![\w.\[-])\d+(\.\d+)?(?![\w.\]])", expr):
        text = found[0]
        step = 0.0005 if "." in text else 1 if float(text) < 10_000 else 1000
        for number in (float(text) + step, float(text) - step):
            yield replaced(expr, found, f"{number:g}")


def durations(expr: str) -> Iterator[str]:
    """A range that is much longer; and none, where a single value will do."""
    for found in re.finditer(r"\[(\d+)m\]", expr):
        yield replaced(expr, found, "[25m]")
    for found in re.finditer(r"(last|max|min|present)_over_time\((\w+\{.*?\})\[\w+\]\)", expr):
        yield replaced(expr, found, found[2])


def operators(expr: str) -> Iterator[str]:
    for found in re.finditer(r"(?<=\s)(>=|>|<|==|or|and|unless)(?=\s)", expr):
        for new in OPERATORS[found[0]]:
            yield replaced(expr, found, new)
    for found in re.finditer(r"\b((last|max|min)_over_time|max(?= by|\())", expr):
        for new in FUNCTIONS[found[0]]:
            yield replaced(expr, found, new)


def matchers(expr: str) -> Iterator[str]:
    """Every label matcher taken away, and turned round."""
    turned = {"=~": "!~", "!~": "=~", "!=": "=", "=": "!="}
    for found in re.finditer(r'(, )?(\w+)(=~|!~|!=|=)("(?:[^"\\]|\\.)*")', expr):
        start, label, operator, value = found.groups(default="")
        yield replaced(expr, found, "").replace("{, ", "{")
        yield replaced(expr, found, f"{start}{label}{turned[operator]}{value}")


def groupings(expr: str) -> Iterator[str]:
    """Labels of `on` and `by` taken away, one and all."""
    for found in re.finditer(r"(on|by) \((.*?)\)", expr):
        labels = found[2].split(", ")
        for label in labels:
            left = ", ".join(it for it in labels if it != label)
            yield replaced(expr, found, f"{found[1]} ({left})")
        if found[1] == "on":
            yield replaced(expr, found, "")


def guards(expr: str) -> Iterator[str]:
    """Each clause taken away."""
    lines = expr.split("\n")
    for number in range(1, len(lines)):
        yield "\n".join(lines[:number] + lines[number + 1 :])


def mutants(rule: Rule) -> list[Rule]:
    """The rules that differ from this one in one thing, each with a name of its own."""
    expr, minutes = rule["expr"], int(rule["for"].removesuffix("m"))
    changed = [
        {"expr": text}
        for make in (numbers, durations, operators, matchers, groupings, guards)
        for text in make(expr)
        if text != expr
    ]
    changed += [{"for": f"{n}m"} for n in (minutes - 1, minutes + 1, 0)]
    other = {"warning": "critical", "critical": "warning"}[rule["labels"]["severity"]]
    changed.append({"labels": rule["labels"] | {"severity": other}})
    unique = {str(it): it for it in changed}.values()
    return [rule | it | {"alert": f"{rule['alert']}__{n}"} for n, it in enumerate(unique)]
