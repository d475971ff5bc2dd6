"""The scrape config in its forms: what reads each accepts it, and a real Prometheus uses it."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from config.settings import Settings
from monitoring.scrape import scrape_config, scrape_config_list, scrape_config_objects, targets
from sandbox.processes import wait
from tests.certificates import self_signed

MakeSettings = Callable[..., Settings]
Prometheus = Callable[[Path], contextlib.AbstractContextManager[str]]

OPERATOR = Path(__file__).with_name("scrapeconfig.schema.json")
"""The schema of Prometheus' operator 0.83, less what discovers targets, closed to other fields."""

CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
TLS = {"ca": CA, "server_name": "proxy.test", "min_version": "TLS12"}


def endpoint(name: str, path: str) -> dict[str, str]:
    """Return an endpoint as a stack file says it."""
    return {"name": name, "path": path, "upstream": "http://api-internal:9464/metrics"}


def test_one_job_for_all_endpoints_and_one_for_the_proxy(settings: MakeSettings) -> None:
    chosen = settings(
        job="some-job",
        serverName="proxy.test",
        port=9999,
        endpoints=[endpoint("api", "/metrics"), endpoint("x", "/a/b"), endpoint("y", "/c")],
    )
    assert yaml.safe_load(scrape_config(chosen, "10.0.1.5", {}, CA)) == {
        "scrape_configs": [
            {
                "job_name": "some-job",
                "scheme": "https",
                "tls_config": TLS,
                "follow_redirects": False,
                "static_configs": [
                    {
                        "targets": ["10.0.1.5:9999"],
                        "labels": {"endpoint": name, "__metrics_path__": path},
                    }
                    for name, path in (("api", "/metrics"), ("x", "/a/b"), ("y", "/c"))
                ],
            },
            {
                "job_name": "some-job-proxy",
                "scheme": "https",
                "tls_config": TLS,
                "follow_redirects": False,
                "metrics_path": "/metrics/proxy",
                "static_configs": [{"targets": ["10.0.1.5:9999"]}],
            },
        ]
    }


def test_comment_on_top_says_what_to_do(settings: MakeSettings) -> None:
    text = scrape_config(settings(), "10.0.1.5", {}, CA)
    comment = text[: text.index("scrape_configs:\n")].splitlines()
    assert all(line.startswith("# ") and len(line) <= 100 for line in comment)
    for needed in ("scrape_config_files: [metrics-proxy-dev.yml]", "promtool check config"):
        assert any(needed in line for line in comment)


@pytest.mark.parametrize("job", ["sba-api", "1e3", "on", "0x1F", "2020-01-01", "a:b", "-"])
def test_odd_job_names_stay_text(settings: MakeSettings, job: str) -> None:
    jobs = yaml.safe_load(scrape_config(settings(job=job), "10.0.1.5", {}, CA))["scrape_configs"]
    assert jobs[0]["job_name"] == job


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a PEM file with the key and self-signed certificate of `proxy.test`."""
    pem, key = self_signed("proxy.test")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_text(key + pem)
    return file


def authority(certificate: Path) -> str:
    """Return the certificate alone, which is its own CA."""
    text = certificate.read_text()
    return text[text.index("-----BEGIN CERTIFICATE") :]


def write_config(folder: Path, *scrapes: str) -> Path:
    """Write prometheus.yml, and in a folder below it the scrape files, with nothing beside them."""
    (folder / "jobs").mkdir()
    for number, scrape in enumerate(scrapes):
        (folder / "jobs" / f"{number}.yml").write_text(scrape)
    main = folder / "prometheus.yml"
    main.write_text(
        "global: {scrape_interval: 250ms, scrape_timeout: 250ms}\n"
        "scrape_config_files: [jobs/*.yml]\n"
    )
    return main


ZONES = {"eu-1a": "eu-1a.lb.test", "eu-1b": "eu-1b.lb.test"}
each_kind = pytest.mark.parametrize("zones", [{}, ZONES], ids=["one machine", "a fleet"])


def test_of_a_fleet_any_machine_answers_for_the_api_and_each_for_itself(
    settings: MakeSettings,
) -> None:
    chosen = settings(port=9999)
    api, own = yaml.safe_load(scrape_config_list(chosen, "lb.test", ZONES, CA))
    assert [it["targets"] for it in api["static_configs"]] == [["lb.test:9999"]] * 2
    assert own["static_configs"] == [
        {"targets": [f"{name}:9999"], "labels": {"zone": zone}} for zone, name in ZONES.items()
    ]


def test_a_target_is_an_address_and_of_a_fleet_its_zone(settings: MakeSettings) -> None:
    assert targets(settings(), "10.0.1.5", {}) == [{"address": "10.0.1.5:9446"}]
    assert targets(settings(), "lb.test", ZONES) == [
        {"address": "eu-1a.lb.test:9446", "zone": "eu-1a"},
        {"address": "eu-1b.lb.test:9446", "zone": "eu-1b"},
    ]


def check(promtool: str, config: Path) -> str:
    """Return what promtool has against a config file, or nothing."""
    command = [promtool, "check", "config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 or done.stderr
    return done.stderr if done.returncode else ""


@each_kind
def test_promtool_accepts_the_scrape_file_and_reads_it(
    settings: MakeSettings, promtool: str, certificate: Path, tmp_path: Path, zones: dict[str, str]
) -> None:
    text = scrape_config(settings(), "10.0.1.5", zones, authority(certificate))
    config = write_config(tmp_path, text)
    assert not check(promtool, config)
    config.write_text(config.read_text() + "scrape_configs: [{job_name: sba-api}]\n")
    assert "sba-api" in check(promtool, config)


@pytest.mark.parametrize(
    ("jobs", "refused"),
    [(("sba-api", "sba-api-dev"), ""), (("a", "b"), ""), (("sba-api", "sba-api"), "sba-api")],
)
def test_stacks_with_a_job_each_share_a_prometheus(
    settings: MakeSettings,
    promtool: str,
    certificate: Path,
    tmp_path: Path,
    jobs: tuple[str, str],
    refused: str,
) -> None:
    ca = authority(certificate)
    texts = [scrape_config(settings(job=job), "10.0.1.5", {}, ca) for job in jobs]
    problem = check(promtool, write_config(tmp_path, *texts))
    assert refused in problem if refused else not problem


def test_the_bare_list_is_the_same_jobs(
    settings: MakeSettings, promtool: str, certificate: Path, tmp_path: Path
) -> None:
    ca = authority(certificate)
    jobs = yaml.safe_load(scrape_config_list(settings(), "10.0.1.5", {}, ca))
    assert {"scrape_configs": jobs} == yaml.safe_load(scrape_config(settings(), "10.0.1.5", {}, ca))
    # so does the operator with its `additionalScrapeConfigs`: it appends them
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": jobs}))
    assert not check(promtool, tmp_path / "prometheus.yml")


@each_kind
def test_the_operators_objects_are_the_same_jobs(
    settings: MakeSettings, zones: dict[str, str]
) -> None:
    chosen = settings(serverName="proxy.test", fallbackScrapeProtocol="PrometheusText0.0.4")
    config_map, *scrapes = yaml.safe_load_all(scrape_config_objects(chosen, "10.0.1.5", zones, CA))
    schema = json.loads(OPERATOR.read_text())
    jobs = yaml.safe_load(scrape_config_list(chosen, "10.0.1.5", zones, CA))
    for found, job in zip(scrapes, jobs, strict=True):
        jsonschema.validate(found, schema)
        spec = found["spec"]
        assert (spec["jobName"], spec["scheme"]) == (job["job_name"], "HTTPS")
        assert spec["staticConfigs"] == job["static_configs"]
        assert spec.get("metricsPath") == job.get("metrics_path")
        assert spec.get("fallbackScrapeProtocol") == job.get("fallback_scrape_protocol")
        assert spec["tlsConfig"]["serverName"] == "proxy.test"
        reference = spec["tlsConfig"]["ca"]["configMap"]
        assert reference["name"] == config_map["metadata"]["name"]
        assert config_map["data"][reference["key"]] == CA
    names = [it["metadata"]["name"] for it in (config_map, *scrapes)]
    assert names == ["metrics-proxy-dev", "metrics-proxy-dev-api", "metrics-proxy-dev-proxy"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("scheme", "https"), ("jobNam", "x"), ("staticConfigs", [{"targets": []}]), ("tlsConfig", "")],
)
def test_the_operators_schema_sees_a_wrong_object(
    settings: MakeSettings, key: str, value: object
) -> None:
    _, found, _ = yaml.safe_load_all(scrape_config_objects(settings(), "10.0.1.5", {}, CA))
    found["spec"][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, json.loads(OPERATOR.read_text()))


@pytest.mark.parametrize("stack", ["dev", "Team_A.prod", "x-", "a.-b"])
def test_the_operators_objects_have_names_that_kubernetes_takes(
    settings: MakeSettings, stack: str
) -> None:
    chosen = settings().model_copy(update={"stack": stack})
    for found in yaml.safe_load_all(scrape_config_objects(chosen, "10.0.1.5", {}, CA)):
        assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", found["metadata"]["name"])


class Proxy(BaseHTTPRequestHandler):
    """Answers as a proxy whose workers endpoint is down."""

    def do_GET(self) -> None:
        """Serve `/metrics` and `/metrics/proxy`, `/untyped` without a type; redirect `/moved`."""
        served = dict.fromkeys(("/metrics", "/metrics/proxy", "/untyped"), 200)
        self.send_response((served | {"/moved": 302}).get(self.path, 502))
        if self.path != "/untyped":
            self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Location", "/metrics")
        self.end_headers()
        self.wfile.write(b"some_gauge 1\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(certificate: Path) -> Iterator[int]:
    """Serve `Proxy` over TLS on a loopback port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:  # or a failed test would never end
            server.shutdown()
            thread.join()


def answer(url: str, query: str) -> list[dict[str, Any]]:
    """Return what Prometheus at `url` answers to an instant query."""
    address = urllib.parse.urlsplit(url).netloc
    question = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"http://{address}/api/v1/query?{question}", timeout=5) as got:
        return list(json.load(got)["data"]["result"])


@pytest.mark.parametrize(("fallback", "up"), [(None, "0"), ("PrometheusText0.0.4", "1")])
def test_an_api_without_a_content_type_is_read_with_a_fallback_only(
    settings: MakeSettings,
    promtool: str,
    prometheus: Prometheus,
    certificate: Path,
    tmp_path: Path,
    fallback: str | None,
    up: str,
) -> None:
    with serving(certificate) as port:
        chosen = settings(
            serverName="proxy.test",
            port=port,
            endpoints=[endpoint("untyped", "/untyped")],
            **({"fallbackScrapeProtocol": fallback} if fallback else {}),
        )
        text = scrape_config(chosen, "127.0.0.1", {}, authority(certificate))
        jobs = yaml.safe_load(text)["scrape_configs"]
        assert [job.get("fallback_scrape_protocol") for job in jobs] == [fallback, None]
        config = write_config(tmp_path, text)
        said = subprocess.run([promtool, "--version"], capture_output=True, text=True, check=True)
        if "version 2." in said.stdout:
            command = [promtool, "check", "config", str(config)]
            assert bool(subprocess.run(command, check=False).returncode) == bool(fallback)
            return
        with prometheus(config) as url:
            series: list[dict[str, Any]] = []
            deadline = time.monotonic() + 30
            while not series:
                assert time.monotonic() < deadline, (tmp_path / "prometheus.log").read_text()
                series = answer(url, 'up{endpoint="untyped"}')
    assert [one["value"][1] for one in series] == [up]


@pytest.mark.parametrize("prometheus", ["built", "debian"], indirect=True)
def test_prometheus_has_one_steady_series_per_endpoint(
    settings: MakeSettings, prometheus: Prometheus, certificate: Path, tmp_path: Path
) -> None:
    with serving(certificate) as port:
        chosen = settings(
            serverName="proxy.test",
            port=port,
            endpoints=[
                endpoint("api", "/metrics"),
                endpoint("workers", "/metrics/workers"),
                endpoint("moved", "/moved"),
            ],
        )
        config = write_config(
            tmp_path, scrape_config(chosen, "127.0.0.1", {}, authority(certificate))
        )
        with prometheus(config) as url:
            deadline = time.monotonic() + 30
            while True:
                scrapes = answer(url, "count_over_time(up[5m])")
                if len(scrapes) >= 4 and all(int(s["value"][1]) >= 5 for s in scrapes):
                    break
                assert time.monotonic() < deadline, (tmp_path / "prometheus.log").read_text()
                time.sleep(0.1)
            up = answer(url, "up")
            steady = answer(url, "changes(up[5m]) == 0")
            gauges = answer(url, "some_gauge")

    def by_target(series: list[dict[str, Any]]) -> list[tuple[str, str | None, str]]:
        return sorted(
            (s["metric"]["job"], s["metric"].get("endpoint"), s["value"][1]) for s in series
        )

    assert by_target(up) == [
        ("sba-api", "api", "1"),
        ("sba-api", "moved", "0"),
        ("sba-api", "workers", "0"),
        ("sba-proxy", None, "1"),
    ]
    assert len(steady) == 4
    assert by_target(gauges) == [("sba-api", "api", "1"), ("sba-proxy", None, "1")]


def test_a_proxy_by_hand_gives_way_without_a_lost_scrape(
    settings: MakeSettings,
    promtool: str,
    prometheus: Prometheus,
    certificate: Path,
    tmp_path: Path,
) -> None:
    """As docs/migration.md says: beside it under another job, then in its place."""
    ca = tmp_path / "ca.pem"
    ca.write_text(authority(certificate))
    with serving(certificate) as old, serving(certificate) as new:
        chosen = {"serverName": "proxy.test", "endpoints": [endpoint("api", "/metrics")]}
        first, then = (
            scrape_config(settings(**chosen, port=new, job=job), "127.0.0.1", {}, ca.read_text())
            for job in ("sba-api-next", "sba-api")
        )
        by_hand = yaml.safe_load(Path("ops/proxy/by-hand.yml").read_text())
        [job] = by_hand["scrape_configs"]
        job["tls_config"] |= {"ca_file": str(ca), "server_name": "proxy.test"}
        job["static_configs"] = [{**job["static_configs"][0], "targets": [f"127.0.0.1:{old}"]}]
        config = write_config(tmp_path, yaml.safe_dump(by_hand), first)
        assert not check(promtool, config)

        def scraped(url: str, job: str, port: int) -> bool:
            query = f'count_over_time(up{{job="{job}",instance="127.0.0.1:{port}"}}[5m]) > 3'
            return bool(answer(url, query))

        with prometheus(config) as url:
            wait(lambda: scraped(url, "sba-api", old), "the old one")
            wait(lambda: scraped(url, "sba-api-next", new), "the new one beside it")
            (tmp_path / "jobs/0.yml").unlink()
            (tmp_path / "jobs/1.yml").write_text(then)
            assert not check(promtool, config)
            address = urllib.parse.urlsplit(url).netloc
            reload = urllib.request.Request(f"http://{address}/-/reload", method="POST")
            urllib.request.urlopen(reload, timeout=10).close()
            wait(lambda: scraped(url, "sba-api", new), "the new one in its place")
            lost = answer(url, "min_over_time(up[5m]) < 1")
    assert lost == []
