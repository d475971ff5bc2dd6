"""What a stack file may say, and what each refusal looks like."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from pulumi.runtime import MockCallArgs, MockResourceArgs, Mocks
from pydantic import BaseModel

from config import stack
from config.settings import (
    NAMESPACE,
    TOKEN_MAX,
    URL_MAX,
    Alerts,
    CertificateDays,
    DepthHolds,
    Endpoint,
    Grafana,
    Limits,
    Settings,
    SettingsError,
    Workers,
    check_token,
    placeholders,
)
from tests.certificates import self_signed
from tests.readme import settings_table

ROOT = Path(__file__).resolve().parents[2]
UNSET = object()
REQUIRED = {
    "subnetId": "subnet-0123456789abcdef0",
    "prometheusCidrs": ["10.20.0.0/16"],
    "apiCidrs": ["10.0.1.0/24"],
}
SUBNETS = ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]
GROUP = "sg-0123456789abcdef0"
KMS_KEY = "arn:aws:kms:eu-central-1:123456789012:key/0000"
SECRET = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:sba/token-a1b2c3"
API = {"name": "api", "path": "/metrics", "upstream": "http://api:9464/metrics"}
JOBS = {"name": "jobs", "path": "/jobs", "upstream": "http://api:3002/metrics"}


def as_text(config: Mapping[str, Any]) -> dict[str, str]:
    """A config as Pulumi hands it over: text, or JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in config.items()}


def texts(**config: object) -> dict[str, str]:
    """A stack's config as Pulumi hands it over; `UNSET` leaves a required key out."""
    return as_text({k: v for k, v in {**REQUIRED, **config}.items() if v is not UNSET})


def parse(*, has_token: bool = True, **config: object) -> Settings:
    return Settings.parse("dev", texts(**config), has_token=has_token)


def refusal(*, has_token: bool = True, **config: object) -> str:
    """The one line of a refusal."""
    with pytest.raises(SettingsError) as caught:
        parse(has_token=has_token, **config)
    [line] = str(caught.value).split("\n")
    return line


def endpoint(**changes: object) -> dict[str, object]:
    return {"endpoints": [{**API, **changes}]}


@pytest.mark.parametrize(
    ("config", "key", "problem"),
    [
        ({"prometheusCidrs": []}, "prometheusCidrs", "is empty"),
        ({"apiCidrs": []}, "apiCidrs", "is empty"),
        ({"httpsCidrs": []}, "httpsCidrs", "is empty"),
        ({"httpsPrefixListIds": []}, "httpsPrefixListIds", "is empty"),
        ({"recoveryWindowInDays": 6}, "recoveryWindowInDays", "is neither 0 nor 7 to 30"),
        ({"recoveryWindowInDays": 31}, "recoveryWindowInDays", "is neither 0 nor 7 to 30"),
        ({"recoveryWindowInDays": -7}, "recoveryWindowInDays", "is neither 0 nor 7 to 30"),
        *(
            ({"secretPrefix": prefix}, "secretPrefix", "is not the beginning of a secret's name")
            for prefix in ("", "/acme", "acme/", "a//b", "a b", "\u00e4", "a\n")
        ),
        *(
            ({"iamPath": path}, "iamPath", "is not an IAM path, with a slash at both ends")
            for path in ("", "acme", "/acme", "acme/", "//", "/a b/")
        ),
        *(
            (
                {"permissionsBoundaryArn": arn},
                "permissionsBoundaryArn",
                "is not an IAM policy's ARN",
            )
            for arn in ("boundary", "arn:aws:iam::1:policy/x", "arn:aws:iam::123456789012:role/x")
        ),
        ({"prometheusSecurityGroupId": "sg-x"}, "prometheusSecurityGroupId", "is not a security"),
        ({"adminTokenKmsKeyArn": "alias/x"}, "adminTokenKmsKeyArn", "is not the ARN of a KMS key"),
        ({"previousKmsKeyArn": "alias/x"}, "previousKmsKeyArn", "is not the ARN of a KMS key"),
        ({"port": 1023}, "port", "greater than or equal to 1024"),
        ({"port": 61_000}, "port", "less than or equal to 60999"),
        ({"port": "http"}, "port", "valid integer"),
        ({"port": True}, "port", "valid integer"),
        ({"server": "caddy"}, "server", "'nginx' or 'apache'"),
        ({"serverName": "Proxy.local"}, "serverName", "DNS name in lower case"),
        ({"serverName": "a" * 60 + ".local"}, "serverName", "at most 64 characters"),
        ({"serverName": "10.20.1.5"}, "serverName", "is an address, and no DNS name"),
        ({"searchDomain": "not_a_name"}, "searchDomain", "DNS name"),
        ({"subnetId": "vpc-0123456789abcdef0"}, "subnetId", "a subnet id"),
        ({"amiId": "debian"}, "amiId", "an AMI id"),
        ({"privateIp": "10.0.0.256"}, "privateIp", "an IPv4 address"),
        ({"instanceType": "micro"}, "instanceType", "an EC2 instance type"),
        ({"syncInterval": 0}, "syncInterval", "greater than or equal to 1"),
        ({"fallbackScrapeProtocol": "text"}, "fallbackScrapeProtocol", "'PrometheusText0.0.4'"),
        ({"protect": "yes"}, "protect", "valid boolean"),
        ({"dnsServers": []}, "dnsServers", "is empty"),
        ({"rebootTime": "3:30"}, "rebootTime", "a time of day such as 03:30"),
        ({"rebootTime": "24:00"}, "rebootTime", "a time of day such as 03:30"),
        ({"kmsKeyArn": SECRET}, "kmsKeyArn", "the ARN of a KMS key"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line_with_key_and_value(
    config: dict[str, object], key: str, problem: str
) -> None:
    line = refusal(**config)
    assert line.startswith(f"metrics-proxy:{key}: {json.dumps(config[key])} ")
    assert problem in line


@pytest.mark.parametrize(
    ("subnets", "line"),
    [
        (["subnet-1", SUBNETS[0]], '[0]: "subnet-1" is not a subnet id'),
        (SUBNETS[:1], ": names only one; subnetId is for one machine"),
        ([*SUBNETS, SUBNETS[0]], f": names {SUBNETS[0]} twice"),
        ([], ": [] is empty; at least one is required"),
    ],
)
def test_a_fleet_has_two_subnets_or_more(subnets: list[str], line: str) -> None:
    assert refusal(subnetId=UNSET, subnetIds=subnets) == f"metrics-proxy:subnetIds{line}"


@pytest.mark.parametrize(
    ("key", "longest"), [("secretPrefix", "x" * 400), ("iamPath", f"/{'x' * 510}/")]
)
def test_a_name_has_a_longest(key: str, longest: str) -> None:
    assert parse(**{key: longest})
    assert key in refusal(**{key: longest.replace("x", "xx", 1)})


@pytest.mark.parametrize(
    ("section", "value", "key", "shown", "problem"),
    [
        ("grafana", {"contactPoint": ""}, "contactPoint", '""', "at least 1 character"),
        ("alerts", {"stalled": "10"}, "stalled", '"10"', "such as 10m or 24h"),
        ("alerts", {"stalled": "1m"}, "stalled", '"1m"', "at least 2m"),
        ("alerts", {"proxyDown": "90s"}, "proxyDown", '"90s"', "such as 10m or 24h"),
        ("alerts", {"reboot": 24}, "reboot", "24", "should be text"),
        ("grafana", {"runbookUrl": "wiki"}, "runbookUrl", '"wiki"', "an http(s) URL"),
        ("grafana", {"dashboardUid": "a b"}, "dashboardUid", '"a b"', "a Grafana uid"),
        ("grafana", {"dashboardUid": 41 * "u"}, "dashboardUid", f'"{41 * "u"}"', "a Grafana uid"),
        ("grafana", {"folderUid": "a.b"}, "folderUid", '"a.b"', "a Grafana uid"),
        (
            "grafana",
            {"alertDatasourceUid": "${a}"},
            "alertDatasourceUid",
            '"${a}"',
            "a Grafana uid",
        ),
        ("grafana", {"datasourceUid": "$a"}, "datasourceUid", '"$a"', "a variable such as ${name}"),
        ("grafana", {"overwriteDashboard": "yes"}, "overwriteDashboard", '"yes"', "valid boolean"),
        ("workers", {"errorRate": 1.5}, "errorRate", "1.5", "less than or equal to 1"),
        ("workers", {"errorRate": -0.1}, "errorRate", "-0.1", "greater than or equal to 0"),
        ("workers", {"errorRate": "-0.1"}, "errorRate", "-0.1", "greater than or equal to 0"),
        ("workers", {"errorRate": "5 %"}, "errorRate", '"5 %"', "should be a valid number"),
        (
            "workers",
            {"queueDepth": {"warning": -1}},
            "queueDepth.warning",
            "-1",
            "greater than or equal to 0",
        ),
    ],
)
def test_a_bad_nested_setting_is_refused_by_its_path(
    section: str, value: object, key: str, shown: str, problem: str
) -> None:
    line = refusal(**{section: value})
    assert line.startswith(f"metrics-proxy:{section}.{key}: {shown} ")
    assert problem in line


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            {"queueDepth": {"warning": 5, "critical": 4}},
            "queueDepth: warning 5 is above critical 4",
        ),
        ({"queueDepth": {"critical": 99}}, "queueDepth: warning 100 is above critical 99"),
        (
            {"queues": {"email": {"warning": 501}}},
            "queues.email: warning 501 is above critical 500",
        ),
    ],
)
def test_limits_out_of_order_are_refused(value: object, problem: str) -> None:
    assert refusal(workers=value) == f"metrics-proxy:workers.{problem}"


def test_days_out_of_order_are_refused() -> None:
    line = refusal(alerts={"certificateDays": {"warning": 5, "critical": 6}})
    assert line == "metrics-proxy:alerts.certificateDays: warning 5 is below critical 6"


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("prot", "port"),
        ("instanceTyp", "instanceType"),
        ("instance_type", "instanceType"),
        ("zzz", None),
        ("stack", None),
    ],
)
def test_a_key_that_is_no_setting_is_refused_with_what_may_be_meant(
    key: str, near: str | None
) -> None:
    hint = f"; did you mean {near}?" if near else ""
    assert refusal(**{key: "hush"}) == f'metrics-proxy:{key}: "(hidden)" is no setting{hint}'


def test_a_required_setting_is_asked_for() -> None:
    line = "metrics-proxy:prometheusCidrs: is required and missing"
    assert refusal(prometheusCidrs=UNSET) == line


@pytest.mark.parametrize("key", ["prometheusCidrs", "apiCidrs"])
@pytest.mark.parametrize(
    ("cidr", "problem"),
    [
        ("office", "is not an IPv4 CIDR"),
        ("10.20.0.0", "is not an IPv4 CIDR"),
        ("10.20.0.0/33", "is not an IPv4 CIDR"),
        ("010.20.0.0/16", "is not an IPv4 CIDR"),
        ("10.20.0.0/255.255.0.0", "is not an IPv4 CIDR"),
        ("10.20.0.1/16", "has host bits set; the network is 10.20.0.0/16"),
        ("10.0.0.0/7", "is too wide"),
        ("11.0.0.0/8", "is too wide"),
        ("0.0.0.0/0", "is too wide"),
        ("172.0.0.0/8", "is too wide"),
        ("fd00::/64", "is IPv6"),
        ("::ffff:10.0.0.0/112", "is IPv6"),
    ],
)
def test_a_network_that_is_none_or_too_wide_is_refused(key: str, cidr: str, problem: str) -> None:
    line = refusal(**{key: ["10.1.0.0/16", cidr]})
    assert line.startswith(f'metrics-proxy:{key}[1]: "{cidr}" {problem}')


@pytest.mark.parametrize("key", ["prometheusCidrs", "apiCidrs"])
def test_a_network_that_is_named_twice_is_refused(key: str) -> None:
    line = refusal(**{key: ["10.1.0.0/16", "10.2.0.0/16", "10.1.0.0/16"]})
    assert line == f"metrics-proxy:{key}: names 10.1.0.0/16 twice"


@pytest.mark.parametrize(
    "cidr", ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "8.8.0.0/16", "192.0.2.7/32"]
)
def test_a_network_is_accepted_up_to_a_16_or_a_private_8(cidr: str) -> None:
    assert parse(prometheusCidrs=[cidr]).prometheus_cidrs == (cidr,)


@pytest.mark.parametrize(
    ("config", "has_token", "line"),
    [
        (
            {},
            False,
            "adminToken and adminTokenSecretArn: neither is set; one is required",
        ),
        (
            {"adminTokenSecretArn": SECRET},
            True,
            "adminToken and adminTokenSecretArn: both are set; keep one",
        ),
        (
            {"apiCidrs": UNSET},
            True,
            "apiCidrs and apiSecurityGroupId: neither is set; one is required",
        ),
        (
            {"apiSecurityGroupId": GROUP},
            True,
            "apiCidrs and apiSecurityGroupId: both are set; keep one",
        ),
        ({"subnetId": UNSET}, True, "subnetId and subnetIds: neither is set; one is required"),
        ({"subnetIds": SUBNETS}, True, "subnetId and subnetIds: both are set; keep one"),
        (
            {"subnetId": UNSET, "subnetIds": SUBNETS, "privateIp": "10.0.1.7"},
            True,
            "privateIp: is for one machine; a fleet has subnetIds",
        ),
        (
            {"subnetId": UNSET, "subnetIds": SUBNETS, "rebootTime": "03:30"},
            True,
            "rebootTime: is for one machine; machines of a fleet are replaced: "
            "pulumi up --replace '**::proxy-template'",
        ),
    ],
)
def test_of_two_settings_that_exclude_each_other_one_is_required(
    config: dict[str, object], has_token: bool, line: str
) -> None:
    assert refusal(has_token=has_token, **config) == f"metrics-proxy:{line}"


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws:ssm:eu-central-1:123456789012:parameter/sba/token",
        "arn:aws:kms:eu-central-1:123456789012:key/0000",
        "arn:aws:secretsmanager:eu-central-1:123456789012:secret:*",
        f"{SECRET}:token",
        f"{SECRET}:::",
        f"{SECRET}:token:AWSPREVIOUS:",
        f"{SECRET}:token::0123",
        f"{SECRET}:to:ken::",
        f"{SECRET}:to ken::",
    ],
)
def test_a_token_arn_that_names_something_else_is_refused(arn: str) -> None:
    line = refusal(has_token=False, adminTokenSecretArn=arn)
    assert line.startswith('metrics-proxy:adminTokenSecretArn: "arn:aws:')
    assert line.endswith("is not the ARN of a Secrets Manager secret, or of a key in it (:KEY::)")


@pytest.mark.parametrize("arn", [SECRET[:-1], SECRET[:-7], SECRET + "x", f"{SECRET[:-7]}:token::"])
def test_a_part_of_an_arn_is_refused(arn: str) -> None:
    line = refusal(has_token=False, adminTokenSecretArn=arn)
    assert "is only a part of an ARN, which ends in six characters such as -a1B2c3" in line


@pytest.mark.parametrize(
    ("suffix", "key"),
    [("", None), (":token::", "token"), (":api.admin-token/1::", "api.admin-token/1")],
)
def test_the_key_of_a_json_secret_is_named_as_ecs_does(suffix: str, key: str | None) -> None:
    settings = parse(has_token=False, adminTokenSecretArn=SECRET + suffix)
    assert (settings.token_secret, settings.token_key) == (SECRET, key)
    assert (parse().token_secret, parse().token_key) == (None, None)


def test_a_token_in_place_of_its_arn_is_not_shown() -> None:
    line = refusal(has_token=False, adminTokenSecretArn="hush")
    assert line.startswith('metrics-proxy:adminTokenSecretArn: "(hidden)" is not the ARN')


def test_what_another_region_holds_is_refused() -> None:
    key = "arn:aws:kms:eu-west-1:123456789012:key/0000"
    settings = parse(has_token=False, adminTokenSecretArn=SECRET, kmsKeyArn=key)
    parse().check_region("eu-central-1")
    with pytest.raises(SettingsError) as caught:
        settings.check_region("eu-central-1")
    assert str(caught.value) == (
        f'metrics-proxy:kmsKeyArn: "{key}" is in eu-west-1, and the stack in eu-central-1'
    )
    with pytest.raises(SettingsError) as caught:
        settings.check_region("us-east-1")
    lines = str(caught.value).splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        "metrics-proxy:adminTokenSecretArn:",
        "metrics-proxy:kmsKeyArn:",
    ]


@pytest.mark.parametrize(
    ("region", "name"), [("cn-north-1", "China"), ("us-gov-west-1", "GovCloud")]
)
def test_regions_without_debians_images_are_refused_by_name(region: str, name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse().check_region(region)
    assert str(caught.value) == f'aws:region: "{region}" is in {name}, which is not supported'


@pytest.mark.parametrize(
    ("servers", "line"),
    [
        (["10.0.0.53/32"], '[0]: "10.0.0.53/32" is not an IPv4 address'),
        (["dns.internal"], '[0]: "dns.internal" is not an IPv4 address'),
        (["10.0.0.53", "169.254.1.1"], '[1]: "169.254.1.1" names 169.254.1.1, which is no host\'s'),
        (["10.0.0.53", "10.0.0.53"], ": names 10.0.0.53 twice"),
    ],
)
def test_dns_servers_are_addresses(servers: list[str], line: str) -> None:
    assert refusal(dnsServers=servers).startswith(f"metrics-proxy:dnsServers{line}")


@pytest.mark.parametrize(
    ("most", "more", "names"),
    [
        (
            {"prometheusCidrs": [f"10.1.{n}.0/24" for n in range(60)]},
            {"prometheusCidrs": [f"10.1.{n}.0/24" for n in range(61)]},
            "prometheusCidrs",
        ),
        (
            {"apiCidrs": [f"10.1.{n}.0/24" for n in range(29)], "endpoints": [API, JOBS]},
            {"apiCidrs": [f"10.1.{n}.0/24" for n in range(30)], "endpoints": [API, JOBS]},
            "endpoints, apiCidrs and dnsServers",
        ),
        (
            {"dnsServers": [f"10.1.0.{n}" for n in range(28)], "endpoints": [API, JOBS]},
            {"dnsServers": [f"10.1.0.{n}" for n in range(29)], "endpoints": [API, JOBS]},
            "endpoints, apiCidrs and dnsServers",
        ),
    ],
)
def test_more_rules_than_a_security_group_has_are_refused(
    most: dict[str, Any], more: dict[str, Any], names: str
) -> None:
    assert parse(**most)
    assert refusal(**more) == (
        f"metrics-proxy:{names}: would need 61 rules, and a security group has 60"
    )


@pytest.mark.parametrize(
    ("upstream", "settings"),
    [
        ("http://localhost:9446/metrics", {}),
        ("http://api.localhost:9446/metrics", {}),
        ("http://127.0.0.1:9446/metrics", {}),
        ("http://127.9.9.9:9000/metrics", {"port": 9000}),
        ("https://Prometheus-API.local:9446/metrics", {}),
        ("https://proxy.internal:443/metrics", {"serverName": "proxy.internal", "port": 9446}),
        ("https://proxy:9446/m", {"serverName": "proxy.internal", "searchDomain": "internal"}),
        ("http://10.0.1.7:9446/metrics", {"privateIp": "10.0.1.7"}),
    ],
)
def test_an_upstream_that_is_the_proxy_itself_is_refused(
    upstream: str, settings: dict[str, object]
) -> None:
    config = endpoint(upstream=upstream) | settings
    if ":443/" in upstream:  # another port is another server
        assert parse(**config)
    else:
        authority = upstream.split("/")[2]
        assert refusal(**config) == f"metrics-proxy:endpoints: {authority} is the proxy itself"


def test_a_host_that_is_no_name_with_the_search_domain_is_refused() -> None:
    domain = ".".join(["d" * 62] * 4)
    assert parse(searchDomain=domain, **endpoint(upstream="http://a/m"))
    line = refusal(searchDomain=domain, **endpoint(upstream="http://ab/m"))
    assert line == (
        "metrics-proxy:endpoints: ab has 254 characters with searchDomain, "
        "more than the 253 of a name"
    )


def test_one_server_has_one_ca() -> None:
    own = {"name": "a", "path": "/a", "upstream": "https://api/a", "ca": self_signed()[0]}
    other = {"name": "b", "path": "/b", "upstream": "https://api/b"}
    for spelt in ("api", "api:443", "api.internal"):
        two = [own, other | {"upstream": f"https://{spelt}/b"}]
        line = refusal(endpoints=two, searchDomain="internal")
        assert line == f"metrics-proxy:endpoints: {spelt} is given two different CAs"
    assert parse(endpoints=[own, other | {"upstream": "https://api.internal/b"}])
    assert refusal(endpoints=[own | {"upstream": "http://api/a"}]).endswith(
        "ca is for an https upstream"
    )


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ({"name": "api"}, "the name 'api' is used twice"),
        ({"path": "/metrics"}, "the path '/metrics' is used twice"),
    ],
)
def test_an_endpoint_that_repeats_another_is_refused(
    second: dict[str, object], problem: str
) -> None:
    assert refusal(endpoints=[API, {**JOBS, **second}]) == f"metrics-proxy:endpoints: {problem}"


def test_no_endpoints_at_all_are_refused() -> None:
    assert refusal(endpoints=[]).startswith("metrics-proxy:endpoints: [] is empty")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("metrics", "does not start with a slash"),
        ("", "does not start with a slash"),
        ("/", "has an empty segment"),
        ("/metrics/", "has an empty segment"),
        ("/a//b", "has an empty segment"),
        ("/a/../b", "has an empty segment, '.' or '..'"),
        ("/a/./b", "has an empty segment, '.' or '..'"),
        ("/metrics/proxy", "is the proxy's own document"),
        ("/healthz", "is for the load balancer's health checks"),
        *((f"/a{c}b", "carries a character") for c in "?#% \"';{$\\\n"),
    ],
)
def test_an_endpoint_path_that_a_server_could_read_in_two_ways_is_refused(
    path: str, problem: str
) -> None:
    line = refusal(**endpoint(path=path))
    assert line.startswith(f"metrics-proxy:endpoints[0].path: {json.dumps(path)} {problem}")


@pytest.mark.parametrize(
    ("changes", "key", "problem"),
    [
        ({"name": "A b"}, "name", "is not a name"),
        ({"path": "/" + "p" * URL_MAX}, "path", "should have at most 2000 characters"),
        ({"upstream": "http://a/" + "p" * URL_MAX}, "upstream", "should have at most 2000 char"),
    ],
)
def test_the_rest_of_an_endpoint_is_checked(
    changes: dict[str, object], key: str, problem: str
) -> None:
    line = refusal(**endpoint(**changes))
    assert line.startswith(f'metrics-proxy:endpoints[0].{key}: "{str(changes[key])[:70]}')
    assert problem in line


CERTIFICATE, KEY = self_signed()


@pytest.mark.parametrize(
    ("ca", "problem"),
    [
        ("internal.pem", "is no certificate in PEM"),
        ("", "is no certificate in PEM"),
        (f"# Zertifikat für innen\n{CERTIFICATE}", "is no certificate in PEM"),
        (CERTIFICATE.replace("CERTIFICATE", "TRUSTED"), "is no certificate in PEM"),
        (CERTIFICATE[:300], "is no certificate in PEM"),
        (CERTIFICATE + CERTIFICATE[:300], "is no certificate in PEM"),
        (KEY, "holds a private key"),
        (CERTIFICATE + KEY, "holds a private key"),
        (KEY.replace(" PRIVATE KEY", ""), "is no certificate in PEM"),
        ("".join(KEY.splitlines()[1:-1]), "is no certificate in PEM"),
        ("hush", "is no certificate in PEM"),
    ],
)
def test_a_ca_that_is_no_certificate_is_refused_and_not_shown(ca: str, problem: str) -> None:
    line = refusal(**endpoint(upstream="https://a/m", ca=ca))
    assert line.startswith(f'metrics-proxy:endpoints[0].ca: "(hidden)" {problem}')
    line = refusal(previousCaCertificate=ca)
    assert line.startswith(f'metrics-proxy:previousCaCertificate: "(hidden)" {problem}')


def test_a_ca_may_be_several_certificates() -> None:
    assert parse(**endpoint(upstream="https://a/m", ca=CERTIFICATE + self_signed()[0]))


EXAMPLE: dict[str, Any] = {
    **REQUIRED,
    "amiId": "ami-0123456789abcdef0",
    "privateIp": "10.0.1.7",
    "prometheusSecurityGroupId": GROUP,
    "prometheusPrefixListIds": ["pl-0123456789abcdef0"],
    "httpsCidrs": ["52.0.0.0/11"],
    "httpsPrefixListIds": ["pl-0123456789abcdef1"],
    "kmsKeyArn": KMS_KEY,
    "previousCaCertificate": CERTIFICATE,
    "previousKmsKeyArn": KMS_KEY,
    "adminTokenKmsKeyArn": KMS_KEY,
    "secretPrefix": "acme/metrics-proxy",
    "recoveryWindowInDays": 7,
    "iamPath": "/acme/proxies/",
    "permissionsBoundaryArn": "arn:aws:iam::123456789012:policy/acme/boundary",
    "endpoints": [API, {**JOBS, "upstream": "https://api/metrics", "ca": CERTIFICATE}],
    "server": "apache",
    "serverName": "proxy.example.com",
    "port": 9447,
    "instanceType": "t4g.small",
    "syncInterval": 30,
    "searchDomain": "example.com",
    "dnsServers": ["10.0.0.53", "10.0.1.53"],
    "rebootTime": "03:30",
    "job": "api",
    "fallbackScrapeProtocol": "PrometheusText0.0.4",
    "protect": True,
    "grafana": {
        "enabled": False,
        "folderTitle": "SBA dev",
        "folderUid": None,
        "adoptFolder": True,
        "overwriteDashboard": True,
        "datasourceUid": "prom",
        "alertDatasourceUid": "prom-alerts",
        "alerts": False,
        "contactPoint": "on call",
        "runbookUrl": "https://wiki.example.com",
        "dashboard": "dashboard.json",
        "dashboardUid": "sba",
    },
    "workers": {
        "errorRate": 0.02,
        "queueDepth": {"warning": 10, "critical": 20},
        "queues": {"email": {"warning": 10, "critical": 20}},
    },
    "alerts": {
        "queueDepth": {"warning": "20m", "critical": "2m"},
        "errorRate": "1h",
        "stalled": "5m",
        "proxyDown": "2m",
        "reboot": "48h",
        "certificateDays": {"warning": 30, "critical": 7},
    },
}
"""Every setting, but those that others exclude."""


def paths(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every value in a document, but to the document itself."""
    if path:
        yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield from paths(item, (*path, key))


def at(document: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def changed(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """The example with another value there."""
    document = copy.deepcopy(EXAMPLE)
    at(document, path[:-1])[path[-1]] = value
    return document


def problems(config: dict[str, Any]) -> list[str]:
    """The lines of a refusal, or none. Whatever else is raised is a fault."""
    try:
        parse(**config)
    except SettingsError as error:
        lines = str(error).split("\n")
        assert all(line.isprintable() and line.startswith("metrics-proxy:") for line in lines)
        return lines
    return []


PATHS = list(paths(EXAMPLE))
OBJECTS = [(), *(path for path in PATHS if isinstance(at(EXAMPLE, path), dict))]
WRONG: list[Any] = [
    *(None, True, 1, 1.5, 10**400, float("inf"), float("nan"), "", "x", "a\nb", "\u2028", "\ud800"),
    *([], [1], ["x"], [None], [[]], [{}], {}, {"a": 1}, {"": {}}, {"a\nb": 1}, {"\ud800": 1}),
]


def test_the_example_has_every_setting() -> None:
    assert problems(EXAMPLE) == []
    excluded = {"stack", "adminTokenSecretArn", "apiSecurityGroupId", "subnetIds"}
    assert {f.alias for f in Settings.model_fields.values()} - excluded == set(EXAMPLE)
    for model, section in (
        (Grafana, EXAMPLE["grafana"]),
        (Workers, EXAMPLE["workers"]),
        (Endpoint, EXAMPLE["endpoints"][1]),
        (Limits, EXAMPLE["workers"]["queueDepth"]),
        (Alerts, EXAMPLE["alerts"]),
        (DepthHolds, EXAMPLE["alerts"]["queueDepth"]),
        (CertificateDays, EXAMPLE["alerts"]["certificateDays"]),
    ):
        assert {f.alias for f in model.model_fields.values()} == set(section)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_another_type_is_refused_in_one_line(path: tuple[str | int, ...]) -> None:
    right = at(EXAMPLE, path)
    name = re.match("[a-zA-Z]+", str(path[0]))
    assert name
    for wrong in WRONG:
        lines = problems(changed(path, wrong))
        assert len({line.split(": ")[0] for line in lines}) == len(lines), (wrong, lines)
        # a key of the stack file itself has a text for its value, whatever is written there
        if (
            len(path) > 1
            and type(wrong) is not type(right)
            and wrong is not None
            and right is not None
        ):
            assert lines or (type(right), type(wrong)) == (float, int), (wrong, lines)
        assert all(line.startswith(f"metrics-proxy:{name[0]}") for line in lines)


SAME = profile(deadline=None, derandomize=True, database=None)


@SAME
@given(
    place=st.sampled_from(OBJECTS),
    key=st.one_of(
        st.sampled_from(["auth", "token", "password", "admin_token", "TOKEN", "a\nb", "\x85", ""]),
        st.sampled_from([str(path[-1]) for path in PATHS]).map(lambda key: key[:-1] + "x"),
        st.text(max_size=9),
    ),
    value=st.recursive(
        st.just("hush"),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1), st.dictionaries(st.text(), inner, min_size=1)
        ),
        max_leaves=3,
    ),
)
def test_a_value_under_an_unknown_key_is_never_shown(
    place: tuple[str | int, ...], key: str, value: object
) -> None:
    assume(key not in at(EXAMPLE, place) and place != ("workers", "queues"))
    assume(place or key not in {"apiSecurityGroupId", "adminTokenSecretArn"})
    lines = problems(changed((*place, key), value))
    assert any("no setting" in line for line in lines)
    assert "hush" not in str(lines)


@SAME
@given(
    path=st.sampled_from(PATHS),
    key=st.one_of(st.sampled_from(["auth", "token", "name", "warning", "email"]), st.text()),
)
def test_a_structure_in_place_of_a_value_is_never_shown(
    path: tuple[str | int, ...], key: str
) -> None:
    for wrong in ({key: {"zzz": "hush"}}, [{"zzz": "hush"}], [["hush"]]):
        assert "hush" not in str(problems(changed(path, wrong)))


@pytest.mark.parametrize("path", [p for p in OBJECTS if p] + [("endpoints",), ("apiCidrs",)])
def test_text_in_place_of_a_structure_is_never_shown(path: tuple[str | int, ...]) -> None:
    for text in ("hush", "auth: hush", '{"auth": "hush"'):
        [line] = problems(changed(path, text))
        assert "hush" not in line


NUMBERS = [p for p in PATHS if type(at(EXAMPLE, p)) in (int, float)]


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_a_number_that_pulumi_wrote_as_text_is_understood(path: tuple[str | int, ...]) -> None:
    right = at(EXAMPLE, path)
    assert parse(
        **changed(path, json.dumps(str(right)) if len(path) == 1 else str(right))
    ) == parse(**EXAMPLE)
    for text in ("", "many", "0x10", "1_0", "true", "null", "[1]", "NaN", "٣"):
        assert len(problems(changed(path, text))) == 1, text


@pytest.mark.parametrize("value", [12345, True, 1.5])
def test_text_that_became_a_number_is_refused_with_the_way_to_write_it(value: object) -> None:
    assert refusal(grafana={"dashboardUid": value}) == (
        f"metrics-proxy:grafana.dashboardUid: {json.dumps(value)} should be text: "
        "write it in quotes, or set it with --type string"
    )


@pytest.mark.parametrize(
    ("upstream", "problem"),
    [
        ("ftp://api/metrics", "is not an http:// or https:// URL"),
        ("api/metrics", "is not an http:// or https:// URL"),
        ("http://api/metrics?all=1", "carries a query or a fragment"),
        ("http://api/metrics?", "carries a query or a fragment"),
        ("http://api/metrics#top", "carries a query or a fragment"),
        ("http:///metrics", "names no host"),
        ("http://", "names no host"),
        ("http://api:0/metrics", "names no usable port"),
        ("http://api:/metrics", "names no usable port"),
        ("http://api:65536/metrics", "is not a URL"),
        ("http://api", "has a path that does not start with a slash"),
        ("http://api/a b", "has a path that carries a character"),
        ("http://api/$a", "has a path that carries a character"),
        ("http://a;b/metrics", "has no usable host"),
        ("HTTP://api/metrics", "is spelt in an unusual way; write http://api/metrics"),
        ("https://10.0.0.7/metrics", "is https to an address"),
        ("http://127.1/metrics", "spells an address in an unusual way; write 127.0.0.1"),
        *(
            (f"http://{host}/metrics", "names 169.254.169.254, which is no host's (link-local)")
            for host in (
                "169.254.169.254",
                "169.254.169.254:80",
                "2852039166",
                "0xa9fea9fe",
                "0251.0376.0251.0376",
                "169.254.43518",
                "169.254.169.254.",
            )
        ),
        ("http://0/metrics", "names 0.0.0.0, which is no host's (unspecified)"),
        ("http://224.0.0.1/metrics", "names 224.0.0.1, which is no host's (multicast)"),
        ("http://255.255.255.255/metrics", "names 255.255.255.255, which is no host's"),
        ("http://[::ffff:169.254.169.254]/metrics", "names an IPv6 address"),
        ("http://[fe80::1]/metrics", "names an IPv6 address"),
        ("http://[fe80::1/metrics", "is not a URL"),
    ],
)
def test_an_upstream_that_no_api_can_have_is_refused(upstream: str, problem: str) -> None:
    line = refusal(**endpoint(upstream=upstream))
    assert line.startswith(f"metrics-proxy:endpoints[0].upstream: {json.dumps(upstream)} {problem}")


@pytest.mark.parametrize("user", ["me:hush", "hush", "hush:", ":hush"])
@pytest.mark.parametrize("path", ["metrics", "m" * 100, "metrics?all=1"])
def test_credentials_in_an_upstream_are_refused_and_not_shown(user: str, path: str) -> None:
    line = refusal(**endpoint(upstream=f"http://{user}@api/{path}"))
    assert line.startswith('metrics-proxy:endpoints[0].upstream: "http://***@api/m')
    assert "carries credentials" in line
    assert "hush" not in line


def test_a_long_value_is_cut_short() -> None:
    line = refusal(**endpoint(name="n" * 500))
    assert len(line) < 200


@pytest.mark.parametrize(
    "config",
    [
        {"endpoints": [{**API, "upstream": "http://hush/a b"}]},
        {"endpoints": [{**API, "upstream": "HTTP://hush/a"}]},
        {"endpoints": [{**API, "name": "hush"}, {**JOBS, "name": "hush"}]},
        {"endpoints": [{**API, "upstream": "http://hush:9446/m"}], "serverName": "hush"},
        {"prometheusCidrs": ["10.1.0.0/16", "10.1.0.0/16"]},
        {"prometheusCidrs": ["10.1.77.77/16"]},
        {"workers": {"queueDepth": {"warning": 77, "critical": 1}}},
    ],
)
def test_what_is_wrong_with_an_encrypted_value_does_not_show_it(config: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.parse("dev", texts(**config), has_token=True, secret=set(config))
    line = str(caught.value)
    assert line.endswith("is refused; why is not shown, because it is stored as a secret")
    assert not re.search("hush|77|10.1", line)


def test_every_problem_has_a_line_of_its_own() -> None:
    with pytest.raises(SettingsError) as caught:
        parse(has_token=False, prot=1, port=1, prometheusCidrs=UNSET, **endpoint(path="x"))
    keys = [line.split(" ")[0] for line in str(caught.value).splitlines()]
    assert sorted(keys) == [
        "metrics-proxy:adminToken",
        "metrics-proxy:endpoints[0].path:",
        "metrics-proxy:port:",
        "metrics-proxy:prometheusCidrs:",
        "metrics-proxy:prot:",
    ]


@pytest.mark.parametrize(
    ("grafana", "problem"),
    [
        ({"folderUid": "theirs", "folderTitle": "SBA"}, "folderUid names somebody else's folder"),
        ({"folderUid": "theirs", "adoptFolder": True}, "folderUid names somebody else's folder"),
        ({"datasourceUid": "${source}"}, "${source} is a variable, which alerts do not know"),
    ],
)
def test_settings_of_grafana_that_contradict_each_other_are_refused(
    grafana: dict[str, object], problem: str
) -> None:
    assert problem in refusal(grafana=grafana)


def test_alerts_ask_the_panels_data_source_unless_told_otherwise() -> None:
    assert parse().grafana.alert_datasource == "prometheus"
    assert parse(grafana={"datasourceUid": "mimir"}).grafana.alert_datasource == "mimir"
    both = {"datasourceUid": "${source}", "alertDatasourceUid": "mimir"}
    assert parse(grafana=both).grafana.alert_datasource == "mimir"


def test_an_optional_text_inside_a_section_may_be_null() -> None:
    empty = parse(
        grafana=dict.fromkeys(
            ("contactPoint", "runbookUrl", "dashboardUid", "folderUid", "alertDatasourceUid")
        ),
        **endpoint(ca=None),
    )
    assert empty == parse(**endpoint())


def test_what_a_stack_file_leaves_out_has_the_documented_default() -> None:
    settings = parse()
    assert [(e.name, e.path, e.upstream) for e in settings.endpoints] == [
        ("api", "/metrics", "http://api-internal:9464/metrics"),
        ("workers", "/metrics/workers", "http://api-internal:3002/metrics/workers"),
    ]
    assert settings.server == "nginx"
    assert settings.server_name == "prometheus-api.local"
    assert settings.port == 9446
    assert settings.instance_type == "t4g.micro"
    assert settings.sync_interval == 60
    assert (settings.job, settings.proxy_job) == ("sba-api", "sba-proxy")
    assert settings.protect is False
    assert settings.grafana.enabled is True
    assert settings.grafana.folder_title == "SBA"
    assert settings.grafana.datasource_uid == "prometheus"
    assert settings.grafana.dashboard == "ops/grafana/dashboard-sba.json"
    assert settings.grafana.alerts is True
    assert settings.alerts.certificate_days == CertificateDays(warning=60, critical=14)
    assert settings.workers.error_rate == 0.01
    assert settings.workers.queue_depth == Limits(warning=100, critical=500)
    assert settings.workers.queues == {}
    optional = ["ami_id", "private_ip", "kms_key_arn", "search_domain", "admin_token_secret_arn"]
    optional += ["fallback_scrape_protocol"]
    assert [getattr(settings, name) for name in optional] == [None] * len(optional)


@pytest.mark.parametrize(
    ("upstream", "host", "port"),
    [
        ("http://api/metrics", "api", 80),
        ("http://api.internal:9464/metrics", "api.internal", 9464),
        ("http://10.0.0.7:3002/metrics", "10.0.0.7", 3002),
    ],
)
def test_an_endpoint_knows_its_upstreams_host_and_port(upstream: str, host: str, port: int) -> None:
    [found] = parse(**endpoint(upstream=upstream)).endpoints
    assert (found.host, found.port) == (host, port)


def test_a_stack_name_that_no_secret_can_carry_is_refused() -> None:
    with pytest.raises(SettingsError, match=r'^metrics-proxy:stack: "a b" is not a stack name'):
        Settings.parse("a b", texts(), has_token=True)


PROJECT: dict[str, Any] = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting that is no section, and its default."""
    for field in model.model_fields.values():
        name = f"{prefix}{field.alias}"
        if isinstance(field.default, BaseModel):
            yield from leaves(type(field.default), f"{name}.")
        else:
            yield name, "required" if field.is_required() else field.default


def nested(path: str, value: object) -> dict[str, Any]:
    """A config whose only value is at this dotted path."""
    key, _, rest = path.partition(".")
    return {key: nested(rest, value) if rest else value}


@pytest.mark.parametrize("key", [key for key, _ in leaves(Settings)])
def test_a_placeholder_is_seen_under_every_key(key: str) -> None:
    values = {key: "<it>", f"{key}[1]": ["a", "<it>"], f"{key}[0].name": [{"name": "<it>"}]}
    for path, value in values.items():
        [line] = placeholders(
            {f"{NAMESPACE}:{k}": v for k, v in as_text(nested(key, value)).items()}
        )
        assert line == f'{NAMESPACE}:{path}: "<it>" is a placeholder: put in what it says'


@pytest.mark.parametrize("key", [key for key, _ in leaves(Settings) if key != "stack"])
def test_what_looks_like_a_placeholder_is_no_value_but_of_free_text(key: str) -> None:
    """Where it is one, nobody would call it so: a folder, a contact point, a file."""
    free = key in ("grafana.folderTitle", "grafana.contactPoint", "grafana.dashboard")
    for value in ("<it>", ["<it>"]):
        with nullcontext() if free and isinstance(value, str) else pytest.raises(SettingsError):
            parse(**nested(key, value))


def test_a_placeholder_is_seen_in_every_namespace_and_in_names() -> None:
    queues = {"<queue>": {"warning": 1, "critical": 2}}
    config = {
        "grafana:url": "<URL>",
        "aws:defaultTags": '{"tags": {"owner": "<team>"}}',
        "metrics-proxy:workers": json.dumps({"queues": queues}),
    }
    assert [line.partition(" is ")[0] for line in placeholders(config)] == [
        'aws:defaultTags.tags.owner: "<team>"',
        'grafana:url: "<URL>"',
        'metrics-proxy:workers.queues: "<queue>"',
    ]


def test_every_key_that_the_project_declares_is_a_setting_with_the_same_default() -> None:
    fields = {field.alias: field for field in Settings.model_fields.values()}
    assert set(PROJECT["config"]) <= set(fields) - {"stack"}
    declared = {
        key: entry["default"] for key, entry in PROJECT["config"].items() if "default" in entry
    }
    assert declared == {key: fields[key].default for key in declared}


def test_the_project_asks_for_exactly_the_required_settings() -> None:
    asked = {key for key, entry in PROJECT["config"].items() if "default" not in entry}
    required = {f.alias for f in Settings.model_fields.values() if f.is_required()}
    assert asked == required - {"stack"}


BAD_TOKENS = {
    "quotes": 'hush"hush',
    "a line end": "hush\r\nX-Injected: yes",
    "a last line end": "hush\n",
    "a space": "hush hush",
    "a dollar": "hush$host",
    "nothing": "",
    "too many characters": "h" * (TOKEN_MAX + 1),
}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_malformed_token_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(ValueError, match=r"is no bearer token|has 3,901 characters") as caught:
        check_token(token)
    assert "hush" not in str(caught.value)
    assert "hhh" not in str(caught.value)


@pytest.mark.parametrize("token", ["t", "a-B.9_~+/==", "h" * TOKEN_MAX])
def test_a_bearer_token_is_accepted(token: str) -> None:
    assert check_token(token) == token


class NoCloud(Mocks):
    def new_resource(self, args: MockResourceArgs) -> tuple[str, dict[str, Any]]:
        raise AssertionError(f"unexpected resource {args.typ}")

    def call(self, args: MockCallArgs) -> tuple[dict[str, Any], None]:
        raise AssertionError(f"unexpected call {args.token}")


@pytest.fixture
def engine() -> Iterator[None]:
    """A private event loop and a blank Pulumi runtime."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    pulumi.runtime.reset_options()
    pulumi.runtime.set_mocks(NoCloud(), project="metrics-proxy", stack="dev")
    yield
    pulumi.runtime.set_all_config({})
    pulumi.runtime.reset_options()
    asyncio.set_event_loop(None)
    loop.close()


def configure(*, secret: bool = True, **config: object) -> None:
    pulumi.runtime.set_all_config(
        {
            "aws:region": "eu-central-1",
            **{f"metrics-proxy:{key}": value for key, value in texts(**config).items()},
        },
        secret_keys=["metrics-proxy:adminToken"] if secret else [],
    )


def load_refusal() -> str:
    with pytest.raises(pulumi.RunError) as caught, stack.refusals():
        stack.load()
    [line] = str(caught.value).split("\n")
    return line


@pytest.mark.usefixtures("engine")
def test_a_stack_is_loaded_with_its_token_kept_secret() -> None:
    configure(adminToken="hush")
    seen: list[object] = []

    @pulumi.runtime.test
    def load() -> pulumi.Output[None]:
        settings, token = stack.load()
        assert token is not None

        async def look() -> None:
            seen.extend([settings, await token.is_secret(), await token.future()])

        return pulumi.Output.from_input(look())

    load()
    assert seen == [parse(), True, "hush"]


@pytest.mark.usefixtures("engine")
def test_a_stack_with_somebody_elses_token_has_none_of_its_own() -> None:
    configure(adminTokenSecretArn=SECRET)
    settings, token = stack.load()
    assert (settings.own_token, token) == (False, None)


@pytest.mark.usefixtures("engine")
def test_a_token_in_plain_text_is_refused_without_showing_it() -> None:
    configure(secret=False, adminToken="hush")
    line = load_refusal()
    assert line.startswith("metrics-proxy:adminToken: the value (hidden) is stored in plain text")
    assert line.endswith("pulumi config set --secret adminToken")
    assert "hush" not in line


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_stack_with_a_malformed_token_is_refused_without_showing_it(token: str) -> None:
    configure(adminToken=token)
    line = load_refusal()
    assert line.startswith("metrics-proxy:adminToken: the value (hidden) ")
    assert "hush" not in line
    assert "hhh" not in line


@pytest.mark.usefixtures("engine")
def test_problems_of_token_and_settings_are_told_together() -> None:
    configure(secret=False, adminToken="hush hush", port=1)
    with pytest.raises(SettingsError) as caught:
        stack.load()
    lines = str(caught.value).splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        "metrics-proxy:port:",
        "metrics-proxy:adminToken:",
        "metrics-proxy:adminToken:",
    ]


@pytest.mark.usefixtures("engine")
def test_placeholders_are_told_alone_and_secrets_are_not_looked_at() -> None:
    configure(adminToken="<hush>", subnetId="<subnet>", port=1)
    pulumi.runtime.set_config("grafana:url", "<URL>")
    with pytest.raises(SettingsError) as caught:
        stack.load()
    assert str(caught.value).splitlines() == [
        'grafana:url: "<URL>" is a placeholder: put in what it says',
        'metrics-proxy:subnetId: "<subnet>" is a placeholder: put in what it says',
    ]


def test_the_value_of_a_key_that_is_stored_as_a_secret_is_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.parse(
            "dev", texts(job="hush hush", zzz="hush"), has_token=True, secret={"job", "zzz"}
        )
    assert "metrics-proxy:job:" in str(caught.value)
    assert "metrics-proxy:zzz:" in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "upstream",
    [
        "http://me:hu@sh@h/m",
        "http:me:hush@h/m",
        "http://me:hush/word@h/m",
        "//me:hu/sh@h",
        'http://me:hu"sh@h/m',
    ],
)
def test_credentials_in_a_malformed_upstream_are_not_shown(upstream: str) -> None:
    line = refusal(**endpoint(upstream=upstream))
    assert line.startswith("metrics-proxy:endpoints[0].upstream: ")
    assert "hu" not in line
    assert "sh@" not in line


def test_the_readme_has_every_setting_with_its_default() -> None:
    rows = {key: row.default for key, row in settings_table().items()}
    expected = {
        key: ""
        if default in (None, {})
        else str(default).lower()
        if isinstance(default, bool)
        else str(default)
        for key, default in leaves(Settings)
    }
    del expected["stack"]
    expected |= {"endpoints": "the two above", "grafana.alertDatasourceUid": "that of the panels"}
    for one, other in (
        ("apiCidrs", "apiSecurityGroupId"),
        ("adminToken", "adminTokenSecretArn"),
        ("subnetId", "subnetIds"),
    ):
        expected |= {one: f"or {other}", other: f"or {one}"}
    assert rows == expected
