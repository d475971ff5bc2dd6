"""What the VM is told, judged by the programs that will read it: nginx, systemd, Python, YAML."""

from __future__ import annotations

import ast
import gzip
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from config.settings import HEALTH_PATH, URL_MAX, Endpoint, Settings, SettingsError
from host import cloud_config, proxy
from tests.certificates import self_signed

Make = Callable[..., Settings]
TOKEN_SECRET, BUNDLE_SECRET = "metrics-proxy/dev/admin-token", "metrics-proxy/dev/bundle"
REGION = "eu-central-1"
UNITS = "/etc/systemd/system/"
ENDPOINTS = [
    {"name": "api", "path": "/metrics", "upstream": "http://api-internal:9464/metrics"},
    {"name": "jobs", "path": "/metrics/v1.0/a_b~c", "upstream": "http://10.0.1.7:3002/metrics"},
    {"name": "web", "path": "/web", "upstream": "http://web.example.com/metrics"},
]


@pytest.fixture
def make() -> Make:
    """Return a maker of settings that are the defaults but for what it is told."""
    required = {
        "subnetId": "subnet-0123456789abcdef0",
        "prometheusCidrs": ["10.20.0.0/16", "10.30.0.0/24"],
        "apiCidrs": ["10.0.1.0/24"],
    }

    def settings(**config: object) -> Settings:
        own_token = "adminTokenSecretArn" not in config
        texts = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in {**required, **config}.items()
        }
        return Settings.parse("dev", texts, has_token=own_token)

    return settings


@pytest.fixture(scope="session")
def certificate() -> tuple[str, str]:
    """A self-signed certificate and its key."""
    return self_signed("proxy")


Complaints = Callable[..., str]


@pytest.fixture
def complaints_of(tmp_path: Path, certificate: tuple[str, str]) -> Complaints:
    """A server's own test of a configuration: what it complains about, or nothing."""

    def test(server: str, configuration: str, token: str | None = None, **files: str) -> str:
        generation, scratch = tmp_path / "generation", tmp_path / "scratch"
        generation.mkdir(exist_ok=True)
        (scratch / "server").mkdir(parents=True, exist_ok=True)
        (generation / "certificate.pem").write_text(certificate[0])
        (generation / "key.pem").write_text(certificate[1])
        (generation / "proxy.conf").write_text(configuration)
        line = proxy.SYNC_COMMANDS[server]["generation_line"]
        (generation / "generation.conf").write_text(line.replace("{generation}", "gen-1"))
        if token is not None:
            line = {"": "no_token_line"}.get(token, "token_line")
            text = proxy.SYNC_COMMANDS[server][line].replace("{token}", token)
            (generation / "token.conf").write_text(text)
        for name, text in files.items():
            (generation / f"{name}.pem").write_text(text)
        places = {"generation": str(generation), "scratch": str(scratch)}
        command = [word.format(**places) for word in proxy.SYNC_COMMANDS[server]["test"]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stderr.replace("Syntax OK\n", "")
        assert (done.returncode == 0) == (not said), said
        return said

    return test


SERVERS = ("nginx", "apache")
TOKEN = "t" * 3900


@pytest.mark.parametrize("token", [TOKEN, ""], ids=["token", "no token"])
@pytest.mark.parametrize(
    "config",
    [{}, {"searchDomain": "dev.example.internal"}, {"endpoints": ENDPOINTS}],
    ids=["default", "search domain", "several endpoints"],
)
@pytest.mark.parametrize("server", SERVERS)
def test_the_server_accepts_the_configuration(
    make: Make, complaints_of: Complaints, server: str, config: dict[str, object], token: str
) -> None:
    for balancer in ([], ["10.0.1.0/24", "10.0.2.0/24"]):
        text = proxy.render(make(server=server, **config), balancer)
        assert complaints_of(server, text, token) == ""


@pytest.mark.parametrize("server", SERVERS)
def test_the_health_check_is_for_the_load_balancers_networks_and_a_fleet_only(
    make: Make, server: str
) -> None:
    one, fleet = (proxy.render(make(server=server), it) for it in ([], ["10.9.0.0/24"]))
    assert HEALTH_PATH not in one
    networks = [line for line in fleet.splitlines() if "10.9.0.0/24" in line]
    assert len(networks) == 1
    # the sync moves the one listen line for its trial
    assert len(re.findall(r"(?im)^\s*listen\s", fleet)) == 1


def test_nginx_holds_a_little_more_than_the_settings_accept(
    make: Make, complaints_of: Complaints
) -> None:
    def complaint(length: int) -> str:
        long = Endpoint.model_construct(
            name="a", path="/" + "." * (length - 1), upstream="http://a/"
        )
        return complaints_of(
            "nginx", proxy.render(make().model_copy(update={"endpoints": [long]})), ""
        )

    assert complaint(2035) == ""
    assert "too long parameter" in complaint(2036)
    assert 0.95 < URL_MAX / 2035 < 1


@pytest.mark.parametrize("server", SERVERS)
def test_the_server_accepts_an_upstream_of_its_own_ca(
    make: Make, complaints_of: Complaints, certificate: tuple[str, str], server: str
) -> None:
    own = {"name": "own", "path": "/own", "upstream": "https://a/m", "ca": certificate[0]}
    text = proxy.render(make(server=server, endpoints=[*ENDPOINTS, own]))
    assert complaints_of(server, text, TOKEN, **{"ca-own": certificate[0]}) == ""
    assert "ca-own.pem" in text


@pytest.mark.parametrize(
    ("server", "word", "complaint"),
    [
        ("nginx", "proxy_pass_request_body", 'unknown directive "proxy_pass_request_bodyy"'),
        ("apache", "ProxyAddHeaders", "Invalid command 'ProxyAddHeadersy'"),
    ],
)
def test_the_server_refuses_a_misspelt_directive(
    make: Make, complaints_of: Complaints, server: str, word: str, complaint: str
) -> None:
    text = proxy.render(make(server=server))
    misspelt = text.replace(word, f"{word}y" if " " not in word else word.replace(" ", "y "))
    assert misspelt != text
    assert complaint in complaints_of(server, misspelt, TOKEN)


@pytest.mark.parametrize("server", SERVERS)
def test_the_server_refuses_to_start_without_its_token_file(
    make: Make, complaints_of: Complaints, server: str
) -> None:
    complaint = complaints_of(server, proxy.render(make(server=server)))
    assert "token.conf" in complaint
    assert re.search("no such file", complaint, re.IGNORECASE)


def test_nginx_refuses_a_token_longer_than_the_settings_allow(
    make: Make, complaints_of: Complaints
) -> None:
    complaint = complaints_of("nginx", proxy.render(make()), "t" * 4200)
    assert "too long parameter" in complaint


def expanded(configuration: str) -> str:
    """Apache's, with its macro in every place where it is used."""
    [(macro, first, second, body)] = re.findall(
        r"(?ms)^<Macro (\w+) (\S+) (\S+)>\n(.*?)^</Macro>\n", configuration
    )
    return re.sub(
        rf'(?m)^Use {macro} "(.*)" "(.*)"$',
        lambda use: body.replace(first, use[1]).replace(second, use[2]),
        re.sub("(?ms)^<Macro .*^</Macro>\n", "", configuration),
    )


def routes(configuration: str) -> dict[str, str]:
    """Pattern of the request line → target, of nginx' map or of Apache's rules."""
    found = re.search(r"map \$request \$target \{\n(.*?)\n    \}", configuration, re.S)
    if not found:
        configuration = expanded(configuration)
        rule = (
            r'RewriteCond "%\{THE_REQUEST\}" "([^"]*)"\n *'
            r'RewriteRule "\^[^"]*" "([^"]*)" \[(?:P|END)\]'
        )
        pairs = re.findall(rule, configuration)
        assert len(pairs) == configuration.count("THE_REQUEST")
        return dict(pairs)
    lines = re.findall(r'^\s*"~(.*?)" "([^"]*)";', found[1], re.M)
    assert len(lines) == len(found[1].splitlines()) - 1
    return dict(lines)


@pytest.mark.parametrize("server", SERVERS)
def test_the_committed_configuration_is_the_rendered_one(
    complaints_of: Complaints, server: str
) -> None:
    text = Path(f"ops/proxy/{server}-prometheus-auth.conf").read_text()
    assert text == proxy.by_hand(server), "run: make generate"
    script = Path("ops/proxy/headers.lua").read_text()
    assert script == proxy.templates.get_template("headers.lua").render(), "run: make generate"
    assert complaints_of(server, text, TOKEN) == ""


@pytest.mark.parametrize("server", SERVERS)
def test_every_route_is_one_whole_request_line(make: Make, server: str) -> None:
    found = routes(proxy.render(make(server=server, endpoints=ENDPOINTS)))
    lines = [f"GET {path} HTTP/1.1" for path in ("/metrics/proxy", *(e["path"] for e in ENDPOINTS))]
    for pattern, line in zip(found, lines, strict=True):
        anchored = pattern.replace(r"\z", r"\Z")
        assert [one for one in lines if re.search(anchored, one)] == [line]
        assert re.search(anchored, line.replace("GET", "HEAD").replace("1.1", "1.0"))
    assert list(found.values())[1:] == [e["upstream"] for e in ENDPOINTS]


@pytest.mark.parametrize(
    "line",
    [
        "GET /metrics/v1x0/a_b~c HTTP/1.1",
        "GET /metrics/v1.0/a_b~c/ HTTP/1.1",
        "GET /metrics/v1.0/a_b~c?x HTTP/1.1",
        "GET //metrics HTTP/1.1",
        "GET /METRICS HTTP/1.1",
        "GET  /metrics HTTP/1.1",
        "GET /metrics",
        "GET /metrics HTTP/2.0",
        "GET http://other/metrics HTTP/1.1",
        "GET /metrics/%70roxy HTTP/1.1",
        "GET /x/metrics HTTP/1.1",
        "GET /metrics HTTP/1.1 HTTP/1.1",
    ],
)
@pytest.mark.parametrize("server", SERVERS)
def test_a_request_line_that_is_none_to_the_letter_has_no_route(
    make: Make, server: str, line: str
) -> None:
    patterns = routes(proxy.render(make(server=server, endpoints=ENDPOINTS)))
    assert [p for p in patterns if re.search(p.replace(r"\z", r"\Z"), line)] == []


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("nginx", ["allow {};", "deny all;"]),
        ("apache", ["Require ip {}"]),
    ],
)
def test_only_the_named_networks_and_the_machine_itself_are_let_in(
    make: Make, server: str, expected: list[str]
) -> None:
    settings = make(server=server, prometheusCidrs=["10.1.0.0/16", "10.2.0.7/32"])
    lines = proxy.render(settings).splitlines()
    rules = [line.strip() for line in lines if re.match(r"\s*(allow|deny|Require)\b", line)]
    networks = ["10.1.0.0/16", "10.2.0.7/32", "127.0.0.1/32"]
    assert rules == [*(expected[0].format(network) for network in networks), *expected[1:]]


@pytest.mark.parametrize(
    ("upstream", "domain", "url"),
    [
        ("http://api:9464/metrics", "a.internal", "http://api.a.internal:9464/metrics"),
        ("http://api/metrics", "a.internal", "http://api.a.internal/metrics"),
        ("http://api:9464/metrics", None, "http://api:9464/metrics"),
        ("http://api.b:9464/metrics", "a.internal", "http://api.b:9464/metrics"),
        ("http://10.0.0.7/metrics", "a.internal", "http://10.0.0.7/metrics"),
    ],
)
def test_the_search_domain_is_appended_to_a_single_label(
    make: Make, upstream: str, domain: str | None, url: str
) -> None:
    config: dict[str, object] = {"endpoints": [{"name": "a", "path": "/a", "upstream": upstream}]}
    if domain:
        config["searchDomain"] = domain
    bundle = proxy.bundle(make(**config), TOKEN_SECRET)
    assert bundle["endpoints"] == [{"name": "a", "path": "/a", "upstream": url}]
    assert url in routes(bundle["configuration"]).values()


def test_the_bundle_is_what_the_sync_needs_but_the_certificate(make: Make) -> None:
    settings = make()
    assert proxy.bundle(settings, TOKEN_SECRET) == {
        "token": {"secret": TOKEN_SECRET},
        "configuration": proxy.render(settings),
        "endpoints": [
            {"name": e.name, "path": e.path, "upstream": e.upstream} for e in settings.endpoints
        ],
    }


@pytest.mark.parametrize(("suffix", "key"), [("", {}), (":admin::", {"key": "admin"})])
def test_the_bundle_names_somebody_elses_secret_and_the_key_in_it(
    make: Make, suffix: str, key: dict[str, str]
) -> None:
    arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:sba/token-a1b2c3"
    bundle = proxy.bundle(make(adminTokenSecretArn=arn + suffix), TOKEN_SECRET)
    assert bundle["token"] == {"secret": arn, **key}


def test_a_bundle_that_no_secret_can_hold_is_refused(make: Make) -> None:
    many = [
        {"name": f"e{n}", "path": f"/e{n}", "upstream": f"http://api:9464/metrics/{n}"}
        for n in range(600)
    ]
    with pytest.raises(SettingsError) as caught:
        proxy.bundle(make(endpoints=many), TOKEN_SECRET)
    [line] = str(caught.value).splitlines()
    assert line.startswith("metrics-proxy:endpoints: 600 endpoints and 2 prometheusCidrs ")
    assert "65,536" in line


def test_a_misspelt_template_variable_is_an_error() -> None:
    template = proxy.templates.from_string("listen {{ prot }};")
    with pytest.raises(jinja2.UndefinedError, match="'prot' is undefined"):
        template.render(port=9446)


def user_data(settings: Settings) -> str:
    return gzip.decompress(cloud_config.render(settings, REGION, BUNDLE_SECRET)).decode()


def files(settings: Settings) -> dict[str, str]:
    """The VM's files: path → text."""
    document = yaml.safe_load(user_data(settings))
    return {file["path"]: file["content"] for file in document["write_files"]}


@pytest.mark.parametrize("server", SERVERS)
def test_the_committed_part_is_what_a_machine_is_made_of(server: str) -> None:
    text = gzip.decompress((cloud_config.COMMITTED / f"{server}.gz").read_bytes()).decode()
    assert text == cloud_config.of_server(server), "run: make generate"


def test_the_sync_on_the_machine_is_the_file_in_the_repository(make: Make) -> None:
    source = Path(cloud_config.__file__).with_name("sync.py").read_text()
    assert files(make())["/opt/metrics-proxy/sync.py"] == source


def test_generate_leaves_alone_what_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another zlib writes other bytes, which would replace every machine."""
    monkeypatch.setattr(cloud_config, "COMMITTED", tmp_path)
    cloud_config.main()
    other = gzip.compress(cloud_config.of_server("nginx").encode(), 1)
    (tmp_path / "nginx.gz").write_bytes(other)
    (tmp_path / "apache.gz").write_bytes(gzip.compress(b"something else"))
    cloud_config.main()
    assert (tmp_path / "nginx.gz").read_bytes() == other
    assert gzip.decompress((tmp_path / "apache.gz").read_bytes()).startswith(b"#cloud-config")


def test_what_follows_from_the_settings_is_not_compressed(make: Make) -> None:
    """So its bytes are the same everywhere; and people read it in a preview."""
    settings = make()
    text = cloud_config.of_settings(settings, REGION, BUNDLE_SECRET)
    assert text.encode() in cloud_config.render(settings, REGION, BUNDLE_SECRET)
    described = cloud_config.described(settings, REGION, BUNDLE_SECRET)
    assert re.fullmatch(
        r"- path: host/user-data/nginx\.gz\n  sha256: [0-9a-f]{64}\n" + re.escape(text), described
    )


def test_the_user_data_is_a_cloud_config_that_ec2_takes(make: Make) -> None:
    text = user_data(make())
    assert text.startswith("#cloud-config\n")
    assert isinstance(yaml.safe_load(text), dict)


def test_the_user_data_is_refused_when_ec2_would_not_take_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud_config, "USER_DATA_MAX", 1000)
    with pytest.raises(SettingsError, match=r"^metrics-proxy: the user data has [\d,]+ bytes"):
        user_data(make())


def test_two_renders_are_the_same(make: Make) -> None:
    assert user_data(make()) == user_data(make())
    assert proxy.render(make()) == proxy.render(make())


def test_the_user_data_holds_no_value_of_a_secret(make: Make) -> None:
    text = user_data(make())
    assert not re.search(r"BEGIN [A-Z ]*KEY|Bearer [A-Za-z0-9]|password|AKIA", text)


@pytest.mark.parametrize("server", SERVERS)
def test_another_build_is_another_machine(
    make: Make, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest stands in the user data, and so can be no digest of that."""

    def build(region: str = REGION, team: str = "", **config: object) -> str:
        tags = {"team": team} if team else {}
        machine = (make(server=server, **config), region, BUNDLE_SECRET, tags)
        found, shown = cloud_config.build(*machine), cloud_config.of_settings(*machine)
        assert f'"build": "{found}"' in shown
        return found

    builds = {
        build(),
        build("eu-west-1"),
        build(team="sre"),
        build(instanceType="t4g.small"),
        build(amiId="ami-0123456789abcdef0"),
        build(syncInterval=61),
    }
    monkeypatch.setattr(cloud_config, "COMMITTED", tmp_path)
    (tmp_path / f"{server}.gz").write_bytes(b"another sync.py")
    assert len(builds | {build()}) == 7


def test_the_user_data_does_not_depend_on_what_the_bundle_brings(make: Make) -> None:
    arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:sba/token-a1b2c3"
    changed = make(
        endpoints=ENDPOINTS,
        prometheusCidrs=["10.9.0.0/16"],
        searchDomain="a.internal",
        adminTokenSecretArn=arn,
    )
    assert user_data(changed) == user_data(make())


@pytest.mark.parametrize("config", [{"port": 9999}, {"syncInterval": 61}, {"rebootTime": "03:30"}])
def test_the_user_data_follows_what_only_a_new_machine_brings(
    make: Make, config: dict[str, object]
) -> None:
    assert user_data(make(**config)) != user_data(make())


@pytest.mark.parametrize("server", SERVERS)
def test_the_sync_is_told_all_that_it_asks_for(make: Make, server: str) -> None:
    found = files(make(server=server, syncInterval=61))
    given = [json.loads(found[f"/etc/metrics-proxy/{name}.json"]) for name in ("server", "sync")]
    assert given == [
        {
            **proxy.SYNC_COMMANDS[server],
            "reload": ["systemctl", "reload-or-restart", "metrics-proxy.service"],
        },
        {
            **{"region": REGION, "bundle_secret": BUNDLE_SECRET, "interval": 61, "port": 9446},
            "build": given[1]["build"],
        },
    ]
    [asked] = [
        node
        for node in ast.parse(found["/opt/metrics-proxy/sync.py"]).body
        if isinstance(node, ast.ClassDef) and node.name == "Config"
    ]
    names = {
        field.target.id
        for field in asked.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    assert names == {*given[0], *given[1]}


def version() -> int:
    done = subprocess.run(["systemd-analyze", "--version"], capture_output=True, check=True)
    found = re.match(rb"systemd (\d+)", done.stdout)
    assert found
    return int(found[1])


def install(units: dict[str, str], folder: Path) -> list[Path]:
    """Write units below a folder; returns the units, without drop-ins."""
    written = []
    for path, text in units.items():
        if version() < 257:  # the values of Debian 13's systemd, in words that an older one knows
            for new in ("PrivateTmp=disconnected", "ProtectControlGroups=strict"):
                text = text.replace(new, new.partition("=")[0] + "=yes")
        file = folder / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if path.count("/") == UNITS.count("/"):
            written.append(file)
    return written


def units(settings: Settings) -> dict[str, str]:
    return {path: text for path, text in files(settings).items() if path.startswith(UNITS)}


def complaints(written: list[Path]) -> str:
    """What systemd says of units; the user of the sync is made by cloud-init."""
    done = subprocess.run(
        [
            *("systemd-analyze", "verify", "--man=no", "--recursive-errors=yes"),
            *map(str, written),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() or ("" if done.returncode == 0 else f"exit {done.returncode}")


@pytest.mark.parametrize("server", SERVERS)
def test_systemd_accepts_the_units(make: Make, tmp_path: Path, server: str) -> None:
    written = install(units(make(server=server)), tmp_path)
    assert sorted(file.name for file in written) == [
        "install-metrics-proxy.service",
        "metrics-proxy-sync.service",
        "metrics-proxy-sync.timer",
        "metrics-proxy.service",
    ]
    assert complaints(written) == ""


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("metrics-proxy.service", "TimeoutStopSec"),
        ("metrics-proxy-sync.service", "RuntimeDirectoryPreserve"),
        ("metrics-proxy-sync.timer", "OnActiveSec"),
        ("metrics-proxy-sync.timer.d/interval.conf", "OnUnitInactiveSec"),
        ("metrics-.service.d/hardening.conf", "NoNewPrivileges"),
    ],
)
def test_systemd_sees_a_misspelt_key(make: Make, tmp_path: Path, file: str, key: str) -> None:
    found = units(make())
    misspelt = found[UNITS + file].replace(f"{key}=", f"{key}s=")
    assert misspelt != found[UNITS + file]
    assert f"{key}s" in complaints(install({**found, UNITS + file: misspelt}, tmp_path))


@pytest.mark.parametrize("unit", ["metrics-proxy.service", "metrics-proxy-sync.service"])
def test_the_services_are_confined(make: Make, tmp_path: Path, unit: str) -> None:
    install(units(make()), tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--root={tmp_path}", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for (\S+): ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    print(found[0])
    assert found[1] == unit
    assert float(found[2]) <= 1.6


def test_the_units_carry_port_and_interval(make: Make) -> None:
    found = units(make(port=9999, syncInterval=61))
    assert "SocketBindAllow=tcp:9999\n" in found[UNITS + "metrics-.service.d/port.conf"]
    assert "=61\n" in found[UNITS + "metrics-proxy-sync.timer.d/interval.conf"]


@pytest.mark.parametrize(("server", "package"), [("nginx", "nginx"), ("apache", "apache2")])
def test_the_machine_starts_nothing_by_itself_but_the_timer(
    make: Make, server: str, package: str
) -> None:
    document: dict[str, Any] = yaml.safe_load(user_data(make(server=server)))
    assert document["runcmd"][-1][-1] == "install-metrics-proxy.service"
    assert document["bootcmd"][-1][-3:] == [f"{package}.service", "ssh.service", "ssh.socket"]
    found = units(make(server=server))[UNITS + "install-metrics-proxy.service"]
    assert "ExecStart=systemctl enable --now metrics-proxy-sync.timer\n" in found


STUBS = {
    "dpkg": "exit 1",  # as when a package is half there
    "dpkg-query": 'shift 2; for package; do printf "$(cat "$STATES/$package")"; done',
    "apt-get": 'echo "$@" >> "$STATES/asked"; test "$1" != "$FAILING"',
}


@pytest.mark.parametrize(
    ("states", "failing", "asked"),
    [
        ({}, "", []),
        ({"nginx": "un "}, "", ["update", "install"]),
        ({"polkitd": "iF "}, "", ["update", "install"]),
        ({"python3-boto3": "iHR"}, "", ["update", "install"]),
        ({"nginx": "un "}, "-q", ["update"]),
        ({"nginx": "un "}, "-qyf", ["update", "install"]),
    ],
    ids=str,
)
def test_packages_are_fetched_where_one_is_missing(
    make: Make, tmp_path: Path, states: dict[str, str], failing: str, asked: list[str]
) -> None:
    """An image that has them needs no mirror; what fails is said, so that systemd tries again."""
    wanted = ["nginx", *cloud_config.EVERYWHERE]
    for package in wanted:
        (tmp_path / package).write_text(states.get(package, "ii "))
    for name, script in STUBS.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    unit = units(make())[UNITS + "install-metrics-proxy.service"]
    [command] = re.findall(r'ExecStart=sh -ec "(.*?)"\n', unit, re.S)
    command = re.sub(r"\\\n", "", command).replace("$$", "$")
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "STATES": str(tmp_path),
        "FAILING": failing,
    }
    done = subprocess.run(["sh", "-ec", command], env=environment, check=False)
    assert (done.returncode != 0) == bool(failing)
    log = tmp_path / "asked"
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    assert [line[1] for line in lines] == asked
    assert all(line[2:] == wanted for line in lines if line[1] == "install")


def test_the_sync_may_reload_the_proxy_and_nothing_else(make: Make) -> None:
    rule = files(make())["/etc/polkit-1/rules.d/50-metrics-proxy.rules"]
    condition = re.search(r"if \((.*)\) \{\s+return polkit\.Result\.YES;", rule, re.S)
    assert condition
    assert [term.strip() for term in condition[1].split("&&")] == [
        'action.id == "org.freedesktop.systemd1.manage-units"',
        'subject.user == "metrics-sync"',
        'action.lookup("unit") == "metrics-proxy.service"',
        'action.lookup("verb") == "reload-or-restart"',
    ]
    assert rule.count("polkit.Result") == 1


@pytest.mark.parametrize("server", SERVERS)
def test_there_is_room_in_the_user_data(make: Make, server: str) -> None:
    """For what is to come, with the longest names."""
    settings = make(server=server, port=60999, syncInterval=3600)
    bundle = f"metrics-proxy/{'s' * 36}/bundle"
    size = len(cloud_config.render(settings, "ap-southeast-2", bundle))
    assert cloud_config.USER_DATA_MAX - size >= 2_400
