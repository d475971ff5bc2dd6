"""Policies as organisations have them, in front of the embedded AWS: moto reads no conditions.

Whoever acts there has to satisfy all of `POLICIES`, however much its own policies allow.
"""

from __future__ import annotations

import io
import json
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, Final

TAG: Final = "cost-center"
"""What everything has to be tagged with."""

BOUNDARY: Final = "arn:aws:iam::123456789012:policy/boundary"
PATH: Final = "/proxies/"
NAMES: Final = "acme-"
SECRETS: Final = "acme/"

Parameters = Mapping[str, str]
"""A request's, by EC2's and IAM's names: `TagSpecification.2.Tag.1.Key`."""


def _tagged(asked: Parameters, *kinds: str) -> bool:
    """Whether each of these kinds of things gets the tag, or the one thing that is made."""
    found = {
        asked.get(f"TagSpecification.{match[1]}.ResourceType", "")
        for key, value in asked.items()
        if (match := re.match(r"TagSpecification\.(\d+)\.Tag\.\d+\.Key", key)) and value == TAG
    }
    if not kinds:
        return bool(found) or any("Tags." in k and v == TAG for k, v in asked.items())
    return set(kinds) <= found


POLICIES: Final[dict[str, tuple[str, Callable[[Parameters], bool]]]] = {
    "volumes are tagged": ("RunInstances", lambda a: _tagged(a, "instance", "volume")),
    "all is tagged": (
        "CreateRole|CreateInstanceProfile|CreateSecret|CreateSecurityGroup|CreateNetworkInterface"
        "|AuthorizeSecurityGroup.*",
        _tagged,
    ),
    "roles have the boundary": ("CreateRole", lambda a: a.get("PermissionsBoundary") == BOUNDARY),
    "roles have the path": ("Create(Role|InstanceProfile)", lambda a: a.get("Path") == PATH),
    "names begin as ours": (
        "Create(Role|InstanceProfile|SecurityGroup)|PutRolePolicy",
        lambda a: all(
            a[key].startswith(NAMES)
            for key in ("RoleName", "InstanceProfileName", "GroupName")
            if key in a
        ),
    ),
    "secrets are named as ours": ("CreateSecret", lambda a: a["Name"].startswith(SECRETS)),
    "secrets can be restored": ("DeleteSecret", lambda a: "ForceDeleteWithoutRecovery" not in a),
    "nothing is open to everywhere": (
        "AuthorizeSecurityGroup.*",
        lambda a: "0.0.0.0/0" not in a.values(),
    ),
    "ingress is by group or list": (
        "AuthorizeSecurityGroupIngress",
        lambda a: not any("IpRanges" in key for key in a),
    ),
}
"""What is wanted → of which actions (a pattern), and whether a request satisfies it."""


def refusal(environ: dict[str, Any]) -> bytes | None:
    """What a refused request is answered (403); the request can still be read."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    target = environ.get("HTTP_X_AMZ_TARGET")
    if target:
        action = target.rpartition(".")[2]
        asked = dict(_flat(json.loads(body)))
    else:
        asked = dict(urllib.parse.parse_qsl(body.decode(errors="replace")))
        action = asked.get("Action", "")
    for wanted, (actions, satisfied) in POLICIES.items():
        if re.fullmatch(actions, action) and not satisfied(asked):
            text = f"explicit deny in a service control policy: {wanted}"
            if target:
                return json.dumps({"__type": "AccessDeniedException", "message": text}).encode()
            error = f"<Error><Code>AccessDenied</Code><Message>{text}</Message></Error>"
            outer = "ErrorResponse" if "/iam/" in environ["HTTP_AUTHORIZATION"] else "Response"
            inner = error if outer == "ErrorResponse" else f"<Errors>{error}</Errors>"
            return f"<{outer}>{inner}<RequestId>0</RequestId></{outer}>".encode()
    return None


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """JSON in the form of the other services' parameters."""
    if not isinstance(value, dict | list):
        return [(path, str(value))]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [one for key, item in items for one in _flat(item, f"{path}.{key}".lstrip("."))]
