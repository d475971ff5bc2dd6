"""The sync when things go wrong: killed at any point, a full disk, slow upstreams, real reloads."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.certificates import self_signed
from tests.host.test_sync import (
    BAD_CERTIFICATES,
    SYNC,
    Machine,
    machine,
    moto_url,
    synced,
)

__all__ = ["machine", "moto_url", "synced"]
ROOT = Path(__file__).parents[2]
SECOND = "second-token"


def settings(host: Machine) -> dict[str, Any]:
    return dict(json.loads(host._config.read_text()))


def configure(host: Machine, **changes: Any) -> None:
    host._config.write_text(json.dumps(settings(host) | changes))


def on_reload(host: Machine, script: str) -> None:
    """Count the reload, then do this; `$sync` is the sync's process."""
    sync = "sync=$(cut -d' ' -f4 /proc/$PPID/stat)"
    configure(host, reload=["sh", "-c", f"echo x >> {host.reloads}; {sync}; {script}"])


def offer(host: Machine, token: str = SECOND) -> None:
    host.tokens.add(token)
    host.put(token=token)


def generations(host: Machine) -> set[str]:
    return {path.name for path in host.run_folder.glob("gen-*")}


def ok(host: Machine) -> str:
    """A sync without a complaint, but for what it says of the API."""
    done = host.sync()
    complaints = [line for line in done.stderr.splitlines() if not re.search(": (API|no) ", line)]
    assert (done.returncode, done.stdout, complaints) == (0, "", [])
    assert host.reasons() == set()
    return done.stderr


def fails(host: Machine, *reasons: str) -> str:
    done = host.sync()
    assert done.returncode == 1
    assert host.reasons() == set(reasons), done.stderr
    return done.stderr


def metric(host: Machine, name: str) -> dict[tuple[str, ...], float]:
    """The samples of one metric by the values of their labels."""
    text = (host.run_folder / "proxy.prom").read_text()
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"metrics_proxy_{name}"
    }


def soon(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


KILL = "kill -9 $sync; exit 0"


@pytest.mark.parametrize("moment", ["test", "reload", "put back"])
def test_a_killed_sync_heals(synced: Machine, moment: str) -> None:
    offer(synced)
    before = settings(synced)
    if moment == "test":
        configure(synced, test=["sh", "-c", f"sync=$(cut -d' ' -f4 /proc/$PPID/stat); {KILL}"])
    elif moment == "reload":
        on_reload(synced, KILL)
    else:
        include = synced.run_folder / "current" / "token.conf"
        on_reload(synced, f"grep -q {SECOND} {include} && exit 1; {KILL}")
    assert synced.sync().returncode == -signal.SIGKILL
    configure(synced, **before)
    reloads = synced.reloaded()
    ok(synced)
    assert synced.token() == SECOND
    assert synced.reloaded() == reloads + 1
    assert len(generations(synced)) == 2
    ok(synced)
    assert synced.reloaded() == reloads + 1


def test_a_sync_killed_in_the_reload_goes_back_if_there_is_nothing_to_adopt(
    synced: Machine,
) -> None:
    before = settings(synced)
    offer(synced)
    on_reload(synced, KILL)
    synced.sync()
    assert synced.token() == SECOND, "switched, and killed before it was recorded"
    configure(synced, **before)
    synced.put(token="first-token")
    ok(synced)
    assert synced.token() == "first-token"
    assert synced.reloaded() == 3


@pytest.mark.parametrize("gone", [False, True])
def test_leftovers_of_a_killed_sync_do_no_harm(synced: Machine, gone: bool) -> None:
    half = synced.run_folder / "gen-1"
    half.mkdir()
    (half / "token.conf").write_text("half")
    for name in ("new", "current.new"):
        (synced.run_folder / name).symlink_to("gone" if gone else "gen-1")
    for name in ("state.json.new", "proxy.prom.new"):
        (synced.run_folder / name).write_text("half")
    offer(synced)
    ok(synced)
    assert synced.token() == SECOND
    assert "gen-1" not in generations(synced)
    assert json.loads((synced.run_folder / "state.json").read_text())["loaded"]
    assert not (synced.run_folder / "state.json").is_symlink()


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_a_lost_state_is_found_anew(synced: Machine, text: str | None) -> None:
    (synced.run_folder / "state.json").unlink()
    if text is not None:
        (synced.run_folder / "state.json").write_text(text)
    ok(synced)
    assert synced.reloaded() == 2


def test_a_full_disk_changes_nothing(synced: Machine) -> None:
    before, current = generations(synced), (synced.run_folder / "current").readlink()
    synced.put(configuration=synced.bundle["configuration"] + 1_000 * f"{59 * '#'}\n")
    done = subprocess.run(
        ["prlimit", "--fsize=30000", *command(synced)],
        env=synced._environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 30_000
    assert done.returncode == 1
    assert done.stderr == "configuration: not adopted: File too large\n"
    assert synced.reasons() == {"write"}
    assert (generations(synced), (synced.run_folder / "current").readlink()) == (before, current)
    assert synced.reloaded() == 1
    ok(synced)


def command(host: Machine) -> list[str]:
    return [sys.executable, "-I", str(SYNC), str(host._config)]


def test_a_second_sync_leaves(synced: Machine) -> None:
    offer(synced)
    with (synced.run_folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # any lock at all is too much
        done = synced.sync()
    assert (done.returncode, done.stderr) == (0, "another sync is at work\n")
    assert synced.token() == "first-token"


def test_a_failed_first_reload_leaves_nothing(machine: Machine) -> None:
    machine.reload_status.write_text("1")
    fails(machine, "reload")
    assert not os.path.lexists(machine.run_folder / "current")
    assert generations(machine) == set()
    machine.reload_status.write_text("0")
    ok(machine)


def test_the_old_state_is_back_before_the_next_attempt(synced: Machine) -> None:
    offer(synced)
    synced.put(configuration=synced.bundle["configuration"] + "# new\n")
    synced.reload_status.write_text("1")
    configure(
        synced,
        test=[
            "sh",
            "-c",
            f"cat {synced.run_folder}/current/token.conf >> $0",
            "{generation}/../seen",
        ],
    )
    fails(synced, "reload")
    seen = (synced.run_folder / "seen").read_text().splitlines()
    assert len(seen) == 3, "all at once, and each by itself"
    assert all("first-token" in line for line in seen)


def test_a_reload_that_failed_twice_is_tried_again_without_news(synced: Machine) -> None:
    synced.reload_status.write_text("1")
    offer(synced)
    fails(synced, "reload")
    synced.put(token="first-token")
    synced.reload_status.write_text("0")
    reloads = synced.reloaded()
    ok(synced)
    assert synced.reloaded() == reloads + 1


def test_a_daemon_that_the_reload_leaves_behind_does_not_stop_the_sync(synced: Machine) -> None:
    pid = synced.run_folder / "pid"
    on_reload(synced, f"sleep 50 & echo $! > {pid}")
    offer(synced)
    start = time.monotonic()
    try:
        ok(synced)
        assert time.monotonic() - start < 10
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_line_ends_and_new_versions_of_the_same_are_no_change(synced: Machine) -> None:
    configuration = synced.bundle["configuration"].replace("\n", "\r\n")
    synced.put(configuration=configuration)
    ok(synced)
    synced.put(token="first-token", configuration=configuration)
    ok(synced)
    assert synced.reloaded() == 2


def test_a_missing_bundle_does_not_stop_a_token(synced: Machine) -> None:
    before = metric(synced, "secret_last_success_timestamp_seconds")
    synced.secrets.delete_secret(SecretId=synced.names["bundle"], ForceDeleteWithoutRecovery=True)
    offer(synced)
    said = fails(synced, "fetch_bundle")
    assert said == "bundle: not fetched: ResourceNotFoundException\n"
    assert synced.token() == SECOND
    after = metric(synced, "secret_last_success_timestamp_seconds")
    assert after["bundle",] == before["bundle",]
    assert after["token",] > before["token",]
    assert metric(synced, "upstream_up") == {("api",): 1}


def test_a_secrets_manager_out_of_reach_is_no_write_error(synced: Machine) -> None:
    """botocore's connection errors are OSErrors in part; a proxy that is not there gives one."""
    synced._environment |= {"http_proxy": "http://127.0.0.1:9"}
    said = fails(synced, "fetch_token", "fetch_bundle")
    assert said.splitlines() == [
        f"{secret}: not fetched: ProxyConnectionError" for secret in ("token", "bundle")
    ]
    assert synced.token() == "first-token"


def test_nothing_can_be_fetched_at_boot(machine: Machine) -> None:
    for name in machine.names.values():
        machine.secrets.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)
    fails(machine, "fetch_token", "fetch_bundle")
    assert metric(machine, "secret_sync_ok") == {(): 0}
    assert metric(machine, "certificate_not_after_timestamp_seconds") == {}


def test_a_certificate_that_ran_out_in_use_holds_no_token_back(synced: Machine) -> None:
    old, key = BAD_CERTIFICATES["expired"]
    (synced.run_folder / "current" / "certificate.pem").write_text(old)
    (synced.run_folder / "current" / "key.pem").write_text(key)
    synced.put(certificate=old, key=key)
    offer(synced)
    synced.sync()
    assert synced.token() == SECOND


def test_the_tests_words_are_shown_without_secrets(synced: Machine) -> None:
    synced.put(configuration=synced.bundle["configuration"] + "# new\n")
    configure(synced, test=["sh", "-c", 'cat "$0/token.conf" >&2; exit 1', "{generation}"])
    said = fails(synced, "test")
    assert "Authorization" in said
    assert "first-token" not in said
    configure(synced, test=["sh", "-c", 'sed -n 2p "$0/key.pem" >&2; exit 1', "{generation}"])
    assert synced.bundle["key"].splitlines()[1] not in fails(synced, "test")


def test_slow_upstreams_are_bounded(synced: Machine) -> None:
    """80 that accept and say nothing, and one that drips its headers."""
    stop = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not stop.wait(1):
                connection.sendall(b"X: y\r\n")

    with (
        socket.create_server(("127.0.0.1", 0), backlog=256) as silent,
        socket.create_server(("127.0.0.1", 0)) as dripping,
    ):
        thread = threading.Thread(target=drip, args=(dripping,))
        thread.start()
        servers = {f"dead-{n}": silent for n in range(80)} | {"drip": dripping}
        listed = [
            {"name": n, "path": f"/{n}", "upstream": f"http://127.0.0.1:{s.getsockname()[1]}/"}
            for n, s in servers.items()
        ]
        synced.put(endpoints=[*synced.bundle["endpoints"], *listed])
        start = time.monotonic()
        try:
            ok(synced)
            assert time.monotonic() - start < 10
        finally:
            stop.set()
            thread.join()
    up = metric(synced, "upstream_up")
    assert (up["api",], up["dead-79",], up["drip",]) == (1, 0, 0)


def test_https_upstreams_are_verified(synced: Machine, tmp_path: Path) -> None:
    ca, private = self_signed("localhost")
    (tmp_path / "api.pem").write_text(ca + private)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "api.pem")
    synced.api.socket = tls.wrap_socket(synced.api.socket, server_side=True)
    url = f"https://localhost:{synced.api.server_port}/metrics"
    by_address = url.replace("localhost", "127.0.0.1")
    synced.put(
        endpoints=[
            {"name": "own", "path": "/a", "upstream": url, "ca": ca},
            {"name": "public", "path": "/b", "upstream": url},
            {"name": "address", "path": "/c", "upstream": by_address, "ca": ca},
        ]
    )
    ok(synced)
    status = metric(synced, "upstream_http_status")
    assert status == {("own",): 200, ("public",): 0, ("address",): 0}


def test_a_redirect_reaches_no_second_host(synced: Machine) -> None:
    seen: list[str] = []

    class Redirect(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            seen.append(self.rfile.readline().decode().split()[1])
            port = servers[1].server_port
            answer = f"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:{port}/second\r\n\r\n"
            self.wfile.write(answer.encode())

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Redirect) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{servers[0].server_port}/first"
        synced.put(endpoints=[{"name": "moved", "path": "/m", "upstream": url}])
        ok(synced)
        assert seen == ["/first"]
        assert metric(synced, "upstream_http_status") == {("moved",): 302}
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def test_proxy_variables_are_not_read(synced: Machine) -> None:
    upstream = synced.bundle["endpoints"][0]["upstream"].replace("127.0.0.1", "localhost")
    synced.put(endpoints=[{"name": "api", "path": "/m", "upstream": upstream}])
    synced._environment |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": "0.0.0.0,127.0.0.1"}
    ok(synced)
    assert metric(synced, "upstream_up") == {("api",): 1}


def test_the_canary_is_in_the_include_alone(synced: Machine, tmp_path: Path) -> None:
    canary = "canary-0123456789abcdef"
    key = synced.bundle["key"].splitlines()[1]
    look = f"cat /proc/[0-9]*/cmdline /proc/$PPID/environ >> {tmp_path}/processes"
    configure(synced, test=["sh", "-c", f"{look}; exit 0"])
    said = []
    synced.put(token=canary)
    said.append(synced.sync())  # refused
    synced.tokens.add(canary)
    synced.reload_status.write_text("1")
    said.append(synced.sync())  # put back
    synced.reload_status.write_text("0")
    said.append(synced.sync())  # adopted
    synced.put(token=f'{canary}"')
    said.append(synced.sync())  # malformed
    assert synced.token() == canary
    assert (tmp_path / "processes").read_text(errors="replace").count("sync.py")
    holders: dict[str, set[str]] = {canary: set(), key: set()}
    for file in tmp_path.rglob("*"):
        if file.is_file():
            text = file.read_text(errors="replace")
            for secret in holders:
                if secret in text:
                    holders[secret].add(file.name)
    assert holders == {canary: {"token.conf"}, key: {"key.pem"}}
    assert all(secret not in done.stdout + done.stderr for done in said for secret in holders)


def test_promtool_takes_the_metrics(synced: Machine) -> None:
    def lint(text: str) -> tuple[int, str]:
        argv = [ROOT / ".cache" / "bin" / "promtool", "check", "metrics"]
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert lint((synced.run_folder / "proxy.prom").read_text()) == (0, "")
    assert lint("no_help 1\n")[1] != ""


@pytest.fixture
def served(machine: Machine, tmp_path: Path) -> Iterator[Machine]:
    """A machine whose reload starts or HUPs a real nginx with a small configuration."""
    server = tmp_path / "server"
    server.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    upstream = machine.bundle["endpoints"][0]["upstream"]
    machine.bundle["configuration"] = (
        "pid nginx.pid; error_log stderr; events {} http { access_log off;"
        "client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u;"
        f"scgi_temp_path s; server {{ listen 127.0.0.1:{port} ssl;"
        "ssl_certificate certificate.pem; ssl_certificate_key key.pem; location / {"
        f"include token.conf; proxy_pass {upstream}; }} }} }}"
    )
    machine.put(configuration=machine.bundle["configuration"])
    start = f"/usr/sbin/nginx -p {server}/ -c {machine.run_folder}/current/proxy.conf"
    hup = f'kill -HUP "$(cat {server}/nginx.pid)"'
    configure(
        machine, reload=["sh", "-c", f"if [ -s {server}/nginx.pid ]; then {hup}; else {start}; fi"]
    )
    yield machine
    pid = server / "nginx.pid"
    if pid.exists():
        os.kill(int(pid.read_text()), signal.SIGTERM)
        soon(lambda: not pid.exists())


def scrape(host: Machine, ca: str) -> int:
    """The status that a client gets if it trusts `ca`; 0 without a connection."""
    context = ssl.create_default_context(cadata=ca)
    context.check_hostname = False
    port = int(host.bundle["configuration"].partition("127.0.0.1:")[2].split()[0])
    client = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=5)
    try:
        client.request("GET", "/")
        return int(client.getresponse().status)
    except OSError:
        return 0
    finally:
        client.close()


def test_nginx_serves_what_was_adopted(served: Machine) -> None:
    old = served.bundle["certificate"]
    ok(served)
    soon(lambda: scrape(served, old) == 200)
    offer(served)
    ok(served)
    served.tokens.discard("first-token")
    soon(lambda: scrape(served, old) == 200)
    served.bundle["certificate"], served.bundle["key"] = self_signed()
    served.put(key=served.bundle["key"])
    ok(served)
    soon(lambda: scrape(served, served.bundle["certificate"]) == 200)
    served.put(configuration="nonsense;")
    fails(served, "test")
    assert scrape(served, served.bundle["certificate"]) == 200
