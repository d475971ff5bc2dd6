"""What the VM is told, judged by the programs that will read it: nginx, systemd, Python, YAML."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from config.settings import Settings, SettingsError
from host import cloud_config, proxy
from host.compact import compact
from tests.certificates import self_signed

Make = Callable[..., Settings]
NAMES = ("metrics-proxy/dev/admin-token", "metrics-proxy/dev/bundle")
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
        scratch.mkdir(exist_ok=True)
        (generation / "certificate.pem").write_text(certificate[0])
        (generation / "key.pem").write_text(certificate[1])
        (generation / "proxy.conf").write_text(configuration)
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
    assert complaints_of(server, proxy.render(make(server=server, **config)), token) == ""


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


def routes(configuration: str) -> dict[str, str]:
    """Pattern of the request line → target, of nginx' map or of Apache's rules."""
    found = re.search(r"map \$request \$target \{\n(.*?)\n    \}", configuration, re.S)
    if not found:
        rule = r'RewriteCond "%\{THE_REQUEST\}" "([^"]*)"\nRewriteRule "\^" "([^"]*)" \[(?:P|END)\]'
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
    bundle = proxy.bundle(make(**config))
    assert bundle["endpoints"] == [{"name": "a", "path": "/a", "upstream": url}]
    assert url in routes(bundle["configuration"]).values()


def test_the_bundle_is_the_configuration_and_the_endpoints_to_probe(make: Make) -> None:
    settings = make()
    assert proxy.bundle(settings) == {
        "configuration": proxy.render(settings),
        "endpoints": [
            {"name": e.name, "path": e.path, "upstream": e.upstream} for e in settings.endpoints
        ],
    }


def test_a_bundle_that_no_secret_can_hold_is_refused(make: Make) -> None:
    many = [
        {"name": f"e{n}", "path": f"/e{n}", "upstream": f"http://api:9464/metrics/{n}"}
        for n in range(600)
    ]
    with pytest.raises(SettingsError) as caught:
        proxy.bundle(make(endpoints=many))
    [line] = str(caught.value).splitlines()
    assert line.startswith("metrics-proxy:endpoints: 600 endpoints and 2 prometheusCidrs ")
    assert "65,536" in line


def test_a_misspelt_template_variable_is_an_error() -> None:
    template = proxy.templates.from_string("listen {{ prot }};")
    with pytest.raises(jinja2.UndefinedError, match="'prot' is undefined"):
        template.render(port=9446)


def user_data(settings: Settings) -> str:
    return cloud_config.render(settings, REGION, NAMES)


def files(settings: Settings) -> dict[str, str]:
    """The VM's files: path → text."""
    document = yaml.safe_load(user_data(settings))
    return {file["path"]: file["content"] for file in document["write_files"]}


def test_the_user_data_is_a_cloud_config_that_ec2_takes(make: Make) -> None:
    text = user_data(make())
    assert text.startswith("#cloud-config\n")
    assert isinstance(yaml.safe_load(text), dict)
    assert len(text.encode()) <= 16_384


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
    assert not re.search(r"BEGIN [A-Z ]+|Bearer [A-Za-z0-9]|password|AKIA", text)


def test_the_user_data_does_not_depend_on_what_the_bundle_brings(make: Make) -> None:
    changed = make(endpoints=ENDPOINTS, prometheusCidrs=["10.9.0.0/16"], searchDomain="a.internal")
    assert user_data(changed) == user_data(make())


@pytest.mark.parametrize("config", [{"port": 9999}, {"syncInterval": 61}])
def test_the_user_data_follows_what_only_a_new_machine_brings(
    make: Make, config: dict[str, object]
) -> None:
    assert user_data(make(**config)) != user_data(make())


def test_the_sync_is_told_where_its_secrets_are_and_how_to_test_and_reload(make: Make) -> None:
    config = json.loads(files(make())["/etc/metrics-proxy/sync.json"])
    assert config == {
        "region": REGION,
        "token_secret": NAMES[0],
        "bundle_secret": NAMES[1],
        **proxy.SYNC_COMMANDS["nginx"],
        "reload": ["systemctl", "reload-or-restart", "metrics-proxy.service"],
    }
    assert set(config) == {
        *("region", "token_secret", "bundle_secret"),
        *("test", "token_line", "no_token_line", "reload"),
    }


def test_the_sync_reads_somebody_elses_token_by_its_arn(make: Make) -> None:
    arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:sba/token-a1b2c3"
    config = json.loads(files(make(adminTokenSecretArn=arn))["/etc/metrics-proxy/sync.json"])
    assert config["token_secret"] == arn


def assignment(node: Any) -> Any:
    """A plain assignment for one with an annotation."""
    if not isinstance(node, ast.AnnAssign) or node.value is None:
        return node
    return ast.Assign([node.target], node.value)


def tree(source: str) -> list[str]:
    """The statements of a program, without docstrings and annotations."""
    root = ast.parse(source)
    for node in ast.walk(root):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(node, name, [assignment(part) for part in value])
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
            ast.get_docstring(node) is not None and len(node.body) > 1
        ):
            del node.body[0]
    return [ast.dump(statement) for statement in root.body]


def sync_source() -> str:
    return (Path(cloud_config.__file__).with_name("sync.py")).read_text()


def test_the_compact_sync_is_the_same_program(make: Make) -> None:
    source = sync_source()
    text = files(make())["/opt/metrics-proxy/sync.py"]
    assert text == compact(source)
    assert len(text) < len(source)
    unused = (
        "from collections.abc import Iterator",
        "from typing import Any",
        "Files = dict[str, bytes]",
        "Upstream = tuple[str, str | None]",
    )
    assert tree(text) == [s for s in tree(source) if s not in tree("\n".join(unused))]


TRICKY = '''\
"""A docstring."""

import re  # a comment

TEXT = """  two spaces
    # no comment

        eight spaces"""
HASH: str = "# no comment"
first = second = {"a = b": "c = d"}
print(TEXT, HASH, first, second)


class Empty(Exception):
    """Only a docstring."""


def f(a: int, *rest: "dict[str, int]", b: str = "ä: int") -> str:
    """A docstring
    of two lines."""
    # a comment
    if a:
        return f"""
    {a}  # kept
"""

    return re.sub(
        "a",
        # a comment in an expression
        "b",
        """c""",
    )
'''


def test_compacting_keeps_strings_and_what_only_looks_like_a_comment() -> None:
    text = compact(TRICKY)
    assert tree(text) == tree(TRICKY)
    assert "a comment" not in text
    assert "A docstring" not in text
    assert 'def f(a, *rest, b = "ä: int"):' in text
    assert '\nHASH="# no comment"\nfirst = second={"a = b": "c = d"}\n' in text
    assert '"""  two spaces\n    # no comment\n\n        eight spaces"""' in text


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
        ("metrics-proxy-sync.timer", "OnUnitInactiveSec"),
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
    assert "SocketBindAllow=tcp:9999\n" in found[UNITS + "metrics-proxy.service"]
    assert "SocketBindAllow=tcp:9999\n" in found[UNITS + "metrics-proxy-sync.service"]
    assert "OnUnitInactiveSec=61\n" in found[UNITS + "metrics-proxy-sync.timer"]


@pytest.mark.parametrize(("server", "package"), [("nginx", "nginx"), ("apache", "apache2")])
def test_the_machine_starts_nothing_by_itself_but_the_timer(
    make: Make, server: str, package: str
) -> None:
    document: dict[str, Any] = yaml.safe_load(user_data(make(server=server)))
    assert document["runcmd"][-1] == ["systemctl", "enable", "--now", "metrics-proxy-sync.timer"]
    assert f" install {package} " in document["runcmd"][0]
    [boot] = document["bootcmd"]
    assert boot[-3:] == [f"{package}.service", "ssh.service", "ssh.socket"]


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
def test_the_longest_names_still_fit_into_user_data(make: Make, server: str) -> None:
    arn = "arn:aws-us-gov:secretsmanager:us-gov-west-1:123456789012:secret:" + "x" * 120
    settings = make(server=server, adminTokenSecretArn=arn, port=65535, syncInterval=3600)
    stack = "s" * 36
    secrets = (f"metrics-proxy/{stack}/admin-token", f"metrics-proxy/{stack}/bundle")
    text = cloud_config.render(settings, "us-gov-west-1", secrets)
    assert len(text.encode()) <= cloud_config.USER_DATA_MAX
