"""The settings of one stack: a strict model, and errors of one line that name key and value."""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import socket
import ssl
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, Final, Literal, Self, TypeVar, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, from_json

NAMESPACE: Final = "metrics-proxy"
"""The Pulumi project's name, and so the namespace of its config keys."""

PROXY_PATH: Final = "/metrics/proxy"
"""The proxy's own document; no endpoint may claim it."""

HEALTH_PATH: Final = "/healthz"
"""What a fleet's load balancer asks; no endpoint may claim it."""

HIDDEN: Final = "(hidden)"
"""What a message shows in place of a secret value."""

TOKEN_MAX: Final = 3900
"""Longest token in characters: nginx refuses a parameter over 4,096 bytes (measured)."""

URL_MAX: Final = 2_000
"""Longest path or upstream in characters. nginx reads at most 4,096 bytes of a parameter, and each
character of a path may need a backslash there: 2,035 are served and 2,036 refused (measured)."""

ANYWHERE: Final = "0.0.0.0/0"

RULES_MAX: Final = 60
"""Rules of a security group in one direction (AWS' quota, unless an account has a higher one)."""

Peer = tuple[Literal["cidr_ipv4", "prefix_list_id", "referenced_security_group_id"], str]
"""Who is at the other end of a security group's rule: the rule's argument, and its value."""

_T = TypeVar("_T")
_B64TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_LOOPBACK = re.compile(r"127\.[\d.]+|(.+\.)?localhost")
_PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_HOSTNAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


class SettingsError(ValueError):
    """Settings that cannot be used; the text has one line for each problem."""


class _HiddenError(ValueError):
    """What is wrong with a value that may be a secret, put into the wrong place."""


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


def _number(value: Any) -> Any:
    """The number that a text is: `pulumi config set --path` writes 0.05 as text."""
    if isinstance(value, str):
        with suppress(ValueError):
            return from_json(value)
    return value


def _network(value: str) -> str:
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
    return value


def _narrow(value: str) -> str:
    network = ipaddress.IPv4Network(value)
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


def _no_address(name: str) -> str:
    """A certificate has addresses apart from names, and clients look there for one."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name
    raise ValueError("is an address, and no DNS name")


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


def _server(value: str) -> str:
    _host(value)
    return value


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
    if value == HEALTH_PATH:
        raise ValueError("is for the load balancer's health checks")
    return value


def _window(days: int) -> int:
    if days not in (0, *range(7, 31)):
        raise ValueError("is neither 0 nor 7 to 30")
    return days


def _not_empty(values: tuple[_T, ...]) -> tuple[_T, ...]:
    if not values:
        raise ValueError("is empty; at least one is required")
    return values


def _not_twice(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"names {value} twice")
    return values


def _at_least_two(values: tuple[_T, ...]) -> tuple[_T, ...]:
    if len(values) < 2:
        raise ValueError("names only one; subnetId is for one machine")
    return values


def _ca(value: str | None) -> str | None:
    if value is not None:
        if "PRIVATE KEY" in value:
            raise _HiddenError("holds a private key; a ca is certificates only")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=value)
        except (ssl.SSLError, TypeError, ValueError):  # a TypeError for what is not ASCII
            raise _HiddenError(
                "is no certificate in PEM: ASCII text, not the name of a file"
            ) from None
    return value


_TOKEN_SECRET = re.compile(
    r"(?P<secret>arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[A-Za-z0-9/_+=.@!-]+)"
    r"(:(?P<key>[!-9;-~]+)::)?"
)


def _token_secret(value: str | None) -> str | None:
    if value is None:
        return None
    found = _TOKEN_SECRET.fullmatch(value)
    if not found:
        error = ValueError if value.startswith("arn:") else _HiddenError  # it may be the token
        raise error("is not the ARN of a Secrets Manager secret, or of a key in it (:KEY::)")
    if not re.search(r"-[A-Za-z0-9]{6}\Z", found["secret"]):
        raise ValueError("is only a part of an ARN, which ends in six characters such as -a1B2c3")
    return value


Network = Annotated[str, AfterValidator(_network)]
Cidr = Annotated[Network, AfterValidator(_narrow)]
Several = Annotated[tuple[_T, ...], AfterValidator(_not_empty), AfterValidator(_not_twice)]
Subnet = Annotated[str, _matches(r"subnet-[0-9a-f]{8,17}", "a subnet id")]
PrefixLists = Several[Annotated[str, _matches(r"pl-[0-9a-f]{8,17}", "a prefix list's id")]]
SecurityGroup = Annotated[str | None, _matches(r"sg-[0-9a-f]{8,17}", "a security group id")]
KmsKey = Annotated[
    str | None,
    _matches(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[A-Za-z0-9-]+", "the ARN of a KMS key"),
]
DnsServer = Annotated[str, AfterValidator(_ipv4), AfterValidator(_server)]
_DNS_NAME = _matches(_HOSTNAME.pattern, "a DNS name in lower case")
Server = Literal["nginx", "apache"]
Number = BeforeValidator(_number)
Count = Annotated[int, Field(ge=0), Number]
Days = Annotated[int, Field(ge=1, le=90), Number]
Duration = Annotated[
    str,
    _matches(
        r"([2-9]|[1-9][0-9]{1,2})m|[1-9][0-9]{0,2}h",
        "a duration of minutes or hours such as 10m or 24h, at least 2m",
    ),
]
GrafanaUid = Annotated[str, _matches(r"[A-Za-z0-9_-]{1,40}", "a Grafana uid")]
ScrapeProtocol = Literal[
    "PrometheusText0.0.4",
    "PrometheusText1.0.0",
    "OpenMetricsText0.0.1",
    "OpenMetricsText1.0.0",
    "PrometheusProto",
]


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=to_camel, validate_by_name=False
    )


class Endpoint(_Model):
    """One document that Prometheus scrapes through the proxy."""

    name: Annotated[
        str, _matches(r"[a-z][a-z0-9_-]{0,39}", "a name of a-z, 0-9, _ and -, at most 40 long")
    ]
    path: Annotated[str, Field(max_length=URL_MAX), AfterValidator(_endpoint_path)]
    upstream: Annotated[str, Field(max_length=URL_MAX), AfterValidator(_upstream)]
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

    def full_host(self, search_domain: str | None) -> str:
        """The upstream's host, with the search domain if it is of a single label."""
        whole = search_domain is None or "." in self.host
        return self.host if whole else f"{self.host}.{search_domain}"


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

    error_rate: Annotated[float, Field(ge=0, le=1), Number] = 0.01
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
    subnet_id: Subnet | None = None
    subnet_ids: Annotated[Several[Subnet], AfterValidator(_at_least_two)] | None = None
    """A fleet: one machine in each, behind a load balancer."""
    prometheus_cidrs: Several[Cidr]
    prometheus_security_group_id: SecurityGroup = None
    prometheus_prefix_list_ids: PrefixLists | None = None
    api_cidrs: Several[Cidr] | None = None
    api_security_group_id: SecurityGroup = None
    https_cidrs: Several[Network] | None = None
    https_prefix_list_ids: PrefixLists | None = None
    admin_token_secret_arn: Annotated[str | None, AfterValidator(_token_secret)] = None
    admin_token_kms_key_arn: KmsKey = None
    endpoints: Annotated[tuple[Endpoint, ...], AfterValidator(_not_empty)] = DEFAULT_ENDPOINTS
    server: Server = "nginx"
    # the certificate's common name, too, and that has at most 64 characters (RFC 5280)
    server_name: Annotated[str, Field(max_length=64), _DNS_NAME, AfterValidator(_no_address)] = (
        "prometheus-api.local"
    )
    port: Annotated[int, Field(ge=1024, le=60_999), Number] = 9446
    """Above are the ports on which the sync tries what it is to adopt."""
    instance_type: Annotated[
        str, _matches(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", "an EC2 instance type")
    ] = "t4g.micro"
    ami_id: Annotated[str | None, _matches(r"ami-[0-9a-f]{8,17}", "an AMI id")] = None
    private_ip: Annotated[str | None, AfterValidator(lambda v: v if v is None else _ipv4(v))] = None
    kms_key_arn: KmsKey = None
    previous_kms_key_arn: KmsKey = None
    previous_ca_certificate: Annotated[str | None, AfterValidator(_ca)] = None
    """Whom Prometheus is to trust beside the stack's CA, while that has another key."""
    secret_prefix: Annotated[
        str,
        _matches(
            r"(?=.{1,400}\Z)[A-Za-z0-9_+=.@-]+(/[A-Za-z0-9_+=.@-]+)*",
            "the beginning of a secret's name",
        ),
    ] = NAMESPACE
    recovery_window_in_days: Annotated[int, Number, AfterValidator(_window)] = 0
    iam_path: Annotated[
        str, _matches(r"(?=.{1,512}\Z)/([!-.0-~]+/)*", "an IAM path, with a slash at both ends")
    ] = "/"
    permissions_boundary_arn: Annotated[
        str | None,
        _matches(r"arn:aws[a-z-]*:iam::(\d{12}|aws):policy/[\w/+=,.@-]+", "an IAM policy's ARN"),
    ] = None
    sync_interval: Annotated[int, Field(ge=1, le=3600), Number] = 60
    search_domain: Annotated[str | None, _DNS_NAME] = None
    job: Annotated[str, _matches(r"[A-Za-z0-9_.:/-]{1,100}", "a job label")] = "sba-api"
    fallback_scrape_protocol: ScrapeProtocol | None = None
    """How Prometheus 3 reads an API whose Content-Type it does not know; 2 refuses the key."""
    dns_servers: Several[DnsServer] | None = None
    reboot_time: Annotated[
        str | None, _matches(r"([01]\d|2[0-3]):[0-5]\d", "a time of day such as 03:30")
    ] = None
    protect: bool = False
    grafana: Grafana = Grafana()
    workers: Workers = Workers()
    alerts: Alerts = Alerts()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.api_cidrs is None) == (self.api_security_group_id is None):
            raise ValueError(_one_of("apiCidrs", "apiSecurityGroupId", self.api_cidrs is not None))
        if (self.subnet_id is None) == (self.subnet_ids is None):
            raise ValueError(_one_of("subnetId", "subnetIds", self.subnet_id is not None))
        if self.private_ip is not None and self.subnet_ids is not None:
            raise ValueError("privateIp: is for one machine; a fleet has subnetIds")
        if self.reboot_time is not None and self.subnet_ids is not None:
            raise ValueError(
                "rebootTime: is for one machine; machines of a fleet are replaced: "
                "pulumi up --replace '**::proxy-template'"
            )
        for attribute in ("name", "path"):
            seen: set[str] = set()
            for endpoint in self.endpoints:
                value = getattr(endpoint, attribute)
                if value in seen:
                    raise ValueError(f"endpoints: the {attribute} {value!r} is used twice")
                seen.add(value)
        ports = {endpoint.port for endpoint in self.endpoints}
        for names, rules in (
            ("prometheusCidrs", len(self.prometheus)),
            (
                "endpoints, apiCidrs and dnsServers",
                len(self.https) + len(ports) * len(self.api) + 2 * len(self.dns_servers or ()),
            ),
        ):
            if rules > RULES_MAX:
                raise ValueError(
                    f"{names}: would need {rules} rules, and a security group has {RULES_MAX}"
                )
        authorities: dict[tuple[str, str, int], str | None] = {}
        for endpoint in self.endpoints:
            url = urlsplit(endpoint.upstream)
            server = url.scheme, endpoint.full_host(self.search_domain), endpoint.port
            if authorities.setdefault(server, endpoint.ca) != endpoint.ca:
                raise ValueError(f"endpoints: {url.netloc} is given two different CAs")
        for endpoint in self.endpoints:
            host = endpoint.full_host(self.search_domain)
            if len(host) > 253:
                raise ValueError(
                    f"endpoints: {endpoint.host} has {len(host)} characters with searchDomain, "
                    "more than the 253 of a name"
                )
            if endpoint.port == self.port and (
                host in (self.server_name, self.private_ip) or _LOOPBACK.fullmatch(host)
            ):
                raise ValueError(
                    f"endpoints: {urlsplit(endpoint.upstream).netloc} is the proxy itself"
                )
        return self

    @property
    def subnets(self) -> tuple[str, ...]:
        """Where machines are, one in each."""
        return self.subnet_ids or tuple(filter(None, [self.subnet_id]))

    @property
    def prometheus(self) -> tuple[Peer, ...]:
        """Whom the security group admits: the networks, unless Prometheus is named more closely."""
        close = self.prometheus_prefix_list_ids, self.prometheus_security_group_id
        return _peers(None, *close) or _peers(self.prometheus_cidrs)

    @property
    def api(self) -> tuple[Peer, ...]:
        """Where the API is."""
        return _peers(self.api_cidrs, None, self.api_security_group_id)

    @property
    def https(self) -> tuple[Peer, ...]:
        """Where AWS' APIs and Debian's packages are: anywhere, unless it is said."""
        return _peers(self.https_cidrs, self.https_prefix_list_ids) or _peers([ANYWHERE])

    @property
    def kms_keys(self) -> list[str]:
        """The customer keys under which the two secrets may be."""
        keys = self.kms_key_arn, self.previous_kms_key_arn, self.admin_token_kms_key_arn
        return list(dict.fromkeys(filter(None, keys)))

    @property
    def tags(self) -> dict[str, str]:
        """On everything that can carry them."""
        return {"pulumi:project": NAMESPACE, "pulumi:stack": self.stack}

    @property
    def machine_tags(self) -> dict[str, str]:
        """On a machine and what is made with it."""
        return {"Name": f"proxy-{self.stack}", **self.tags}

    @property
    def proxy_job(self) -> str:
        """The Prometheus job of `/metrics/proxy`: `sba-proxy` beside `sba-api`."""
        return f"{self.job.removesuffix('-api')}-proxy"

    @property
    def machine_label(self) -> str:
        """The label of `proxy_job` that tells machines apart."""
        return "zone" if self.subnet_ids else "instance"

    @property
    def sync_late(self) -> int:
        """Seconds since the last sync from which none runs: three of its intervals, and the time
        until Prometheus has scraped and evaluated the last one."""
        return 3 * self.sync_interval + 300

    @property
    def own_token(self) -> bool:
        """Whether the program owns the token's value (`adminToken`), not somebody else's secret."""
        return self.admin_token_secret_arn is None

    @property
    def token_secret(self) -> str | None:
        """The ARN of somebody else's secret, without the key that may be named behind it."""
        return self._token("secret")

    @property
    def token_key(self) -> str | None:
        """The key of that secret's JSON that `adminTokenSecretArn` names, if it names one."""
        return self._token("key")

    def _token(self, part: str) -> str | None:
        found = _TOKEN_SECRET.fullmatch(self.admin_token_secret_arn or "")
        return found[part] if found else None

    def check_region(self, region: str) -> None:
        """Raise `SettingsError` for a region without Debian's images, or of which a setting names
        what it does not have."""
        for prefix, name in (("cn-", "China"), ("us-gov-", "GovCloud")):
            if region.startswith(prefix):
                raise SettingsError(f'aws:region: "{region}" is in {name}, which is not supported')
        arns = {
            "adminTokenSecretArn": self.admin_token_secret_arn,
            "adminTokenKmsKeyArn": self.admin_token_kms_key_arn,
            "kmsKeyArn": self.kms_key_arn,
            "previousKmsKeyArn": self.previous_kms_key_arn,
        }
        problems = [
            one_line(key, arn, f"is in {arn.split(':')[3]}, and the stack in {region}")
            for key, arn in arns.items()
            if arn is not None and arn.split(":")[3] != region
        ]
        if problems:
            raise SettingsError("\n".join(problems))

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
                problems.append(one_line(key, HIDDEN, f"is no setting{hint}"))
            else:
                values[key] = _read(text, plain=field)
        if has_token == ("adminTokenSecretArn" in values):
            problems.append(one_line(*_one_of_line("adminToken", "adminTokenSecretArn", has_token)))
        try:
            # JSON mode: arrays are tuples there, and everything else stays strict
            settings = cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            problems += [_describe(e, secret) for e in error.errors(include_url=False)]
        if problems:
            raise SettingsError("\n".join(problems))
        return settings


def _peers(
    cidrs: Iterable[str] | None, lists: Iterable[str] | None = None, group: str | None = None
) -> tuple[Peer, ...]:
    return (
        *(("cidr_ipv4", cidr) for cidr in cidrs or ()),
        *(("prefix_list_id", one) for one in lists or ()),
        *((("referenced_security_group_id", group),) if group is not None else ()),
    )


def _is_text(annotation: Any) -> bool:
    """Whether a field is plain text, not a number, a flag or a structure written as JSON."""
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return _is_text(get_args(annotation)[0])
    return annotation in (str, Server, ScrapeProtocol)


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


def _read(text: str, *, plain: bool) -> Any:
    """A key's value; what is not the JSON that it should be stays text, which the model refuses."""
    text = text.encode(errors="replace").decode()  # half a surrogate pair is in no valid text
    if not plain or text[:1] in ("{", "["):
        with suppress(ValueError):
            [value] = from_json(f"[{text}]")  # as deep as the model will have it
            return value
    return text


def _shown(value: object) -> str:
    """A value as JSON, short and without the credentials that a URL may carry before its `@`.

    A structure is shown only if it is empty: it may hold a secret below a key that is no setting.
    """
    if isinstance(value, list | tuple | dict) and value:
        return ""
    if isinstance(value, str):
        value = re.sub(r"(?s)\A(https?://)?.*@", r"\1***@", value)
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(key: str, value: object, problem: str, namespace: str = NAMESPACE) -> str:
    shown = "" if value is None else _shown(value)
    line = " ".join(filter(None, [f"{namespace}:{key}:", shown, problem]))
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def placeholders(config: Mapping[str, str]) -> Iterator[str]:
    """Yield one line for each value in a stack's config, of any namespace and at any depth, that is
    still the placeholder of a stack file that was copied.

    A placeholder says in angle brackets what to put there: they are in no id, ARN, network, address
    or URL that the settings take, and nobody can mistake it for a value.
    """
    for key, text in sorted(config.items()):
        namespace, _, name = key.partition(":")
        for path, value in _texts(name, _read(text, plain=False)):
            if re.fullmatch(r"<[^<>]+>", value):
                yield one_line(path, value, "is a placeholder: put in what it says", namespace)


def _texts(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield every text in a value with its path, names that people chose (of queues) too."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(f"{path}[{index}]", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield path, key
            yield from _texts(f"{path}.{key}", item)


_STRUCTURES: Final = ("model_type", "dict_type", "tuple_type")
"""Errors of pydantic's for what should be a structure. Text in its place may hold a secret."""

_PLAIN: Final[dict[str, Callable[[ErrorDetails], str]]] = {
    "value_error": lambda e: str(e["ctx"]["error"]),
    "extra_forbidden": lambda _: "is no setting",
    "missing": lambda _: "is required and missing",
    "string_type": lambda _: "should be text: write it in quotes, or set it with --type string",
}


def _describe(error: ErrorDetails, secret: Container[str]) -> str:
    """One line for one of pydantic's errors."""
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"])[1:]
    say = _PLAIN.get(error["type"])
    text = say(error) if say else re.sub(r"^\w+ should", "should", error["msg"])
    if not key:  # a rule about several keys: its text names them
        key, _, text = text.partition(": ")
    encrypted = key.partition(".")[0].partition("[")[0] in secret
    if encrypted and error["type"] == "value_error":
        text = "is refused; why is not shown, because it is stored as a secret"
    if not error["loc"] or error["type"] == "missing":
        return one_line(key, None, text)
    hidden = (
        encrypted
        or error["type"] == "extra_forbidden"
        or (error["type"] in _STRUCTURES and isinstance(error["input"], str))
        or isinstance(error.get("ctx", {}).get("error"), _HiddenError)
    )
    return one_line(key, HIDDEN if hidden else error["input"], text)
