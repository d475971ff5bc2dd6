"""The settings of one stack: a strict model, and errors of one line that name key and value."""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import socket
import ssl
from collections.abc import Callable, Container, Mapping
from types import UnionType
from typing import Annotated, Any, Final, Literal, Self, TypeVar, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

NAMESPACE: Final = "metrics-proxy"
"""The Pulumi project's name, and so the namespace of its config keys."""

PROXY_PATH: Final = "/metrics/proxy"
"""The proxy's own document; no endpoint may claim it."""

HIDDEN: Final = "(hidden)"
"""What a message shows in place of a secret value."""

TOKEN_MAX: Final = 3900
"""Longest token in characters: nginx refuses a parameter over 4,096 bytes (measured)."""

_T = TypeVar("_T")
_B64TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_HOSTNAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


class SettingsError(ValueError):
    """Settings that cannot be used; the text has one line for each problem."""


def check_token(token: str) -> str:
    """Return an RFC 6750 b64token of usable length; else raise, without showing it."""
    if len(token) > TOKEN_MAX:
        raise ValueError(
            f"has {len(token):,} characters, more than the {TOKEN_MAX:,} that nginx can hold"
        )
    if not _B64TOKEN.fullmatch(token):
        raise ValueError("is no bearer token (RFC 6750: letters, digits, - . _ ~ + /, then any =)")
    return token


def _matches(pattern: str, meaning: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(value: str | None) -> str | None:
        if value is not None and not compiled.fullmatch(value):
            raise ValueError(f"is not {meaning}")
        return value

    return AfterValidator(check)


def _cidr(value: str) -> str:
    if ":" in value:
        raise ValueError("is IPv6; only IPv4 is supported")
    if not re.fullmatch(r"[\d.]+/\d+", value):
        raise ValueError("is not an IPv4 CIDR such as 10.20.0.0/16")
    try:
        network = ipaddress.IPv4Network(value, strict=False)
    except ValueError:
        raise ValueError("is not an IPv4 CIDR such as 10.20.0.0/16") from None
    if str(network) != value:
        raise ValueError(f"has host bits set; the network is {network}")
    if network.prefixlen < 16 and not (
        network.prefixlen >= 8 and any(network.subnet_of(private) for private in _PRIVATE)
    ):
        raise ValueError("is too wide: at most /16, or /8 inside RFC 1918")
    return value


def _ipv4(value: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise ValueError("is not an IPv4 address") from None


def _host(host: str) -> None:
    """Refuse a host that is no name or IPv4 address, or an address that no API can have."""
    try:
        # inet_aton reads every spelling the C library does: 2852039166, 0xa9fea9fe, 169.254.43518
        address = ipaddress.IPv4Address(socket.inet_aton(host.rstrip(".")))
    except OSError:
        if not _HOSTNAME.fullmatch(host.lower()):
            raise ValueError(
                f"has no usable host: {host!r} is neither a name nor an IPv4 address"
            ) from None
        return
    kind = next(
        (k for k in ("link_local", "multicast", "unspecified") if getattr(address, f"is_{k}")), None
    )
    if kind or address == ipaddress.IPv4Address("255.255.255.255"):
        raise ValueError(
            f"names {address}, which is no host's ({(kind or 'broadcast').replace('_', '-')})"
        )
    if str(address) != host:
        raise ValueError(f"spells an address in an unusual way; write {address}")


def _upstream(value: str) -> str:
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        raise ValueError("is not a URL such as http://api-internal:9464/metrics") from None
    if url.scheme not in ("http", "https"):
        raise ValueError("is not an http:// or https:// URL")
    if url.username is not None or url.password is not None:
        raise ValueError("carries credentials; the proxy adds the token itself")
    if "?" in value or "#" in value:
        raise ValueError("carries a query or a fragment; an upstream is a plain document")
    if not url.hostname:
        raise ValueError("names no host")
    if "[" in url.netloc:
        raise ValueError("names an IPv6 address; only IPv4 is supported")
    _host(url.hostname)
    if port == 0 or url.netloc.endswith(":"):
        raise ValueError("names no usable port")
    if (
        value != f"{url.scheme}://{url.netloc}{url.path}"
    ):  # urlsplit forgives tabs, line ends and capitals
        raise ValueError(f"is spelt in an unusual way; write {url.scheme}://{url.netloc}{url.path}")
    try:
        _path(url.path)
    except ValueError as error:
        raise ValueError(f"has a path that {error}") from None
    if url.scheme == "https" and re.fullmatch(r"[\d.]+", url.hostname):
        # nginx and Apache compare a certificate's DNS names only
        raise ValueError("is https to an address; a certificate can be verified by a name only")
    return value


def _path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("does not start with a slash")
    # Only RFC 3986's unreserved characters: nothing to decode, quote or normalise on the way.
    if not re.fullmatch(r"[A-Za-z0-9._~/-]+", value):
        raise ValueError("carries a character other than letters, digits, / - . _ ~")
    if any(segment in ("", ".", "..") for segment in value[1:].split("/")):
        raise ValueError("has an empty segment, '.' or '..'")
    return value


def _endpoint_path(value: str) -> str:
    if _path(value) == PROXY_PATH:
        raise ValueError("is the proxy's own document")
    return value


def _not_empty(values: tuple[_T, ...]) -> tuple[_T, ...]:
    if not values:
        raise ValueError("is empty; at least one is required")
    return values


def _ca(value: str | None) -> str | None:
    if value is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=value)
        except (ssl.SSLError, ValueError):
            raise ValueError("is no certificate in PEM") from None
    return value


Cidr = Annotated[str, AfterValidator(_cidr)]
Cidrs = Annotated[tuple[Cidr, ...], AfterValidator(_not_empty)]
DnsName = Annotated[str, _matches(_HOSTNAME.pattern, "a DNS name in lower case")]
Server = Literal["nginx", "apache"]
Count = Annotated[int, Field(ge=0)]
Days = Annotated[int, Field(ge=1, le=90)]
Duration = Annotated[
    str,
    _matches(
        r"([2-9]|[1-9][0-9]{1,2})m|[1-9][0-9]{0,2}h",
        "a duration of minutes or hours such as 10m or 24h, at least 2m",
    ),
]
GrafanaUid = Annotated[str, _matches(r"[A-Za-z0-9_-]{1,40}", "a Grafana uid")]


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=to_camel, validate_by_name=False
    )


class Endpoint(_Model):
    """One document that Prometheus scrapes through the proxy."""

    name: Annotated[
        str, _matches(r"[a-z][a-z0-9_-]{0,39}", "a name of a-z, 0-9, _ and -, at most 40 long")
    ]
    path: Annotated[str, AfterValidator(_endpoint_path)]
    upstream: Annotated[str, AfterValidator(_upstream)]
    ca: Annotated[str | None, AfterValidator(_ca)] = None
    """The CA of an `https` upstream in PEM, instead of those that Debian trusts."""

    @model_validator(mode="after")
    def _ca_has_a_use(self) -> Self:
        if self.ca is not None and not self.upstream.startswith("https:"):
            raise ValueError("ca is for an https upstream")
        return self

    @property
    def host(self) -> str:
        """The upstream's host: a name or an IPv4 address."""
        return urlsplit(self.upstream).hostname or ""

    @property
    def port(self) -> int:
        """The upstream's TCP port, also where the URL leaves it out."""
        url = urlsplit(self.upstream)
        return url.port or {"http": 80, "https": 443}[url.scheme]


class Limits(_Model):
    """Jobs waiting in a queue from which it is yellow and red."""

    warning: Count = 100
    critical: Count = 500

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.warning > self.critical:
            raise ValueError(f"warning {self.warning} is above critical {self.critical}")
        return self


class Workers(_Model):
    """Limits of the Workers section. Rates are ratios from 0 to 1: 1 % is 0.01."""

    error_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    queue_depth: Limits = Limits()
    queues: dict[Annotated[str, Field(min_length=1, max_length=200)], Limits] = {}


class DepthHolds(_Model):
    """How long a queue is over its limit before there is an alert."""

    warning: Duration = "10m"
    critical: Duration = "5m"


class CertificateDays(_Model):
    """Days before the certificate's end from which there is an alert."""

    warning: Days = 60
    critical: Days = 14

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.warning < self.critical:
            raise ValueError(f"warning {self.warning} is below critical {self.critical}")
        return self


class Alerts(_Model):
    """When alerts fire, beside the limits of `workers`: how long a cause has to last."""

    queue_depth: DepthHolds = DepthHolds()
    error_rate: Duration = "10m"
    stalled: Duration = "10m"
    proxy_down: Duration = "5m"
    reboot: Duration = "24h"
    certificate_days: CertificateDays = CertificateDays()


class Grafana(_Model):
    """Where the dashboard goes and what it is made of."""

    enabled: bool = True
    folder_title: Annotated[str, Field(min_length=1, max_length=189)] = "SBA"
    folder_uid: GrafanaUid | None = None
    """A folder that is there and stays somebody else's, in place of one with `folder_title`."""
    adopt_folder: bool = False
    """The stack's own folder is there already: it becomes the stack's, as `pulumi import` does."""
    overwrite_dashboard: bool = False
    """A dashboard with this uid is there already: this one takes its place."""
    datasource_uid: Annotated[
        str,
        _matches(r"[A-Za-z0-9_-]{1,40}|\$\{\w+\}", "a Grafana uid or a variable such as ${name}"),
    ] = "prometheus"
    """Of the panels; a variable is one of the dashboard's."""
    alert_datasource_uid: GrafanaUid | None = None
    """Of the alerts, which know no variables; `datasource_uid` where it is not set."""
    alerts: bool = True
    contact_point: Annotated[str | None, Field(min_length=1, max_length=190)] = None
    """Who is told. Grafana itself routes where there is none; a route per rule needs Grafana 11, or
    10.4 with a feature flag."""
    runbook_url: Annotated[str | None, _matches(r"https?://[^\s\"'<>]+", "an http(s) URL")] = None
    dashboard: Annotated[str, Field(min_length=1)] = "ops/grafana/dashboard-sba.json"
    dashboard_uid: GrafanaUid | None = None

    @property
    def alert_datasource(self) -> str:
        """The data source that the alerts ask."""
        return self.alert_datasource_uid or self.datasource_uid

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = self.model_fields_set
        if self.alerts and self.alert_datasource.startswith("$"):
            raise ValueError(
                f"datasourceUid {self.datasource_uid} is a variable, which alerts do not know; set "
                "alertDatasourceUid too"
            )
        if self.folder_uid is not None and given & {"folder_title", "adopt_folder"}:
            raise ValueError(
                "folderUid names somebody else's folder; folderTitle and adoptFolder are for the "
                "stack's own"
            )
        return self


DEFAULT_ENDPOINTS: Final = (
    Endpoint.model_validate(
        {"name": "api", "path": "/metrics", "upstream": "http://api-internal:9464/metrics"}
    ),
    Endpoint.model_validate(
        {
            "name": "workers",
            "path": "/metrics/workers",
            "upstream": "http://api-internal:3002/metrics/workers",
        }
    ),
)


class Settings(_Model):
    """All that a stack file says, but the token: that one never enters this object."""

    stack: Annotated[
        str, _matches(r"[A-Za-z0-9_.-]{1,36}", "a stack name of at most 36 letters, digits, _ . -")
    ]
    subnet_id: Annotated[str, _matches(r"subnet-[0-9a-f]{8,17}", "a subnet id")]
    prometheus_cidrs: Cidrs
    api_cidrs: Cidrs | None = None
    api_security_group_id: Annotated[
        str | None, _matches(r"sg-[0-9a-f]{8,17}", "a security group id")
    ] = None
    admin_token_secret_arn: Annotated[
        str | None,
        _matches(
            r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[A-Za-z0-9/_+=.@!-]+",
            "the ARN of a Secrets Manager secret",
        ),
    ] = None
    endpoints: Annotated[tuple[Endpoint, ...], AfterValidator(_not_empty)] = DEFAULT_ENDPOINTS
    server: Server = "nginx"
    server_name: DnsName = "prometheus-api.local"
    port: Annotated[int, Field(ge=1024, le=65535)] = 9446
    instance_type: Annotated[
        str, _matches(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", "an EC2 instance type")
    ] = "t4g.micro"
    ami_id: Annotated[str | None, _matches(r"ami-[0-9a-f]{8,17}", "an AMI id")] = None
    private_ip: Annotated[str | None, AfterValidator(lambda v: v if v is None else _ipv4(v))] = None
    kms_key_arn: Annotated[
        str | None,
        _matches(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[A-Za-z0-9-]+", "the ARN of a KMS key"),
    ] = None
    sync_interval: Annotated[int, Field(ge=1, le=3600)] = 60
    search_domain: DnsName | None = None
    job: Annotated[str, _matches(r"[A-Za-z0-9_.:/-]{1,100}", "a job label")] = "sba-api"
    protect: bool = False
    grafana: Grafana = Grafana()
    workers: Workers = Workers()
    alerts: Alerts = Alerts()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.api_cidrs is None) == (self.api_security_group_id is None):
            raise ValueError(_one_of("apiCidrs", "apiSecurityGroupId", self.api_cidrs is not None))
        for attribute in ("name", "path"):
            seen: set[str] = set()
            for endpoint in self.endpoints:
                value = getattr(endpoint, attribute)
                if value in seen:
                    raise ValueError(f"endpoints: the {attribute} {value!r} is used twice")
                seen.add(value)
        authorities: dict[str, str | None] = {}
        for endpoint in self.endpoints:
            server = urlsplit(endpoint.upstream)
            if (
                authorities.setdefault(f"{server.scheme}://{server.netloc}", endpoint.ca)
                != endpoint.ca
            ):
                raise ValueError(f"endpoints: {server.netloc} is given two different CAs")
        return self

    @property
    def proxy_job(self) -> str:
        """The Prometheus job of `/metrics/proxy`: `sba-proxy` beside `sba-api`."""
        return f"{self.job.removesuffix('-api')}-proxy"

    @property
    def sync_late(self) -> int:
        """Seconds since the last sync from which none runs: three of its intervals, and the time
        until Prometheus has scraped and evaluated the last one."""
        return 3 * self.sync_interval + 300

    @property
    def own_token(self) -> bool:
        """Whether the program owns the token's value (`adminToken`), not somebody else's secret."""
        return self.admin_token_secret_arn is None

    @classmethod
    def parse(
        cls,
        stack: str,
        config: Mapping[str, str],
        *,
        has_token: bool,
        secret: Container[str] = (),
    ) -> Settings:
        """Read a stack's config (`key` → text as Pulumi hands it over, `adminToken` left out).

        `has_token` says whether `adminToken` is set, `secret` which keys are encrypted: their
        values are not shown. Raises `SettingsError`.
        """
        problems: list[str] = []
        values: dict[str, Any] = {"stack": stack}
        for key, text in config.items():
            field = _FIELDS.get(key)
            if field is None:
                near = difflib.get_close_matches(key, [*_FIELDS, "adminToken"], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                # a misspelt adminToken still holds the token
                hide = key in secret or "token" in f"{key} {hint}".lower()
                problems.append(_line(key, HIDDEN if hide else text, f"is no setting{hint}"))
            elif field:
                values[key] = text
            else:
                try:
                    values[key] = json.loads(text)
                except ValueError:
                    values[key] = text  # the model says what was expected
        if has_token == ("adminTokenSecretArn" in values):
            problems.append(_line(*_one_of_line("adminToken", "adminTokenSecretArn", has_token)))
        try:
            # JSON mode: arrays are tuples there, and everything else stays strict
            settings = cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            problems += [_describe(e, secret) for e in error.errors(include_url=False)]
        if problems:
            raise SettingsError("\n".join(problems))
        return settings


def _is_text(annotation: Any) -> bool:
    """Whether a field is plain text, not a number, a flag or a structure written as JSON."""
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return _is_text(get_args(annotation)[0])
    return annotation in (str, Server)


_FIELDS: Final = {
    field.alias or name: _is_text(field.annotation)
    for name, field in Settings.model_fields.items()
    if name != "stack"
}
"""Every config key but `adminToken`, and whether its value is plain text."""


def _one_of(a: str, b: str, both: bool) -> str:
    return f"{a} and {b}: " + (
        "both are set; keep one" if both else "neither is set; one is required"
    )


def _one_of_line(a: str, b: str, both: bool) -> tuple[str, None, str]:
    key, _, text = _one_of(a, b, both).partition(": ")
    return key, None, text


def _masked(value: object) -> object:
    """A value without the credentials that a URL, however malformed, may carry before its `@`."""
    if isinstance(value, str):
        return re.sub(r"(?s)\A(https?://)?.*@", r"\1***@", value)
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    return value


def _shown(value: object) -> str:
    """A value as JSON, short and without credentials."""
    text = json.dumps(_masked(value), default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _line(key: str, value: object, problem: str) -> str:
    return " ".join([f"{NAMESPACE}:{key}:", *([] if value is None else [_shown(value)]), problem])


_PLAIN: Final[dict[str, Callable[[ErrorDetails], str]]] = {
    "value_error": lambda e: str(e["ctx"]["error"]),
    "extra_forbidden": lambda _: "is no setting",
    "missing": lambda _: "is required and missing",
}


def _describe(error: ErrorDetails, secret: Container[str]) -> str:
    """One line for one of pydantic's errors."""
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"])[1:]
    say = _PLAIN.get(error["type"])
    text = say(error) if say else error["msg"].replace("Input should be", "should be", 1)
    if not key:  # a rule about several keys: its text names them
        return f"{NAMESPACE}:{text}"
    if error["type"] == "missing":
        return _line(key, None, text)
    return _line(key, HIDDEN if error["loc"][0] in secret else error["input"], text)
