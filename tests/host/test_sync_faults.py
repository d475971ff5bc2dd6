"""The sync when things go wrong: killed at any point, a full disk, slow upstreams, real reloads."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import signal
import socket
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.certificates import self_signed
from tests.host.machine import (
    SECOND,
    Machine,
    configure,
    fails,
    forget,
    generations,
    machine,
    metric,
    moto_url,
    offer,
    ok,
    on_reload,
    synced,
)
from tests.host.test_sync import BAD_CERTIFICATES

__all__ = ["machine", "moto_url", "synced"]
ROOT = Path(__file__).parents[2]


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
    assert not (synced.run_folder / "state.json").is_symlink()


def change(**fields: object) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | fields)


STATES: dict[str, Callable[[str], str] | None] = {
    "gone": None,
    "no JSON": lambda _: "{",
    "not UTF-8": lambda _: "\udcff",
    "a list": lambda _: "[1]",
    "null": lambda _: "null",
    "another key": change(loaded=True),
    "generation a number": change(generation=1),
    "generation of nobody": change(generation="gen-1"),
    "generation elsewhere": change(generation="../../etc"),
    "versions a list": change(versions=[]),
    "versions of nothing": change(versions={"nothing": "1"}),
    "versions of numbers": change(versions={"token": 1}),
    "success text": change(success={"token": "yesterday"}),
    "success null": change(success=None),
    "place a text": change(place="name"),
    "place deep": change(place={"secret": {"a": []}}),
    "failures short": change(failures={"a": ["test"]}),
    "failures of numbers": change(failures={"a": [1, 2, 3]}),
    "failures text": change(failures="none"),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_state_of_another_shape_heals(synced: Machine, kind: str) -> None:
    file, current = synced.run_folder / "state.json", synced.in_use("token.conf")
    how = STATES[kind]
    if how is None:
        file.unlink()
    else:
        file.write_text(how(file.read_text()), errors="surrogateescape")
    ok(synced)
    assert synced.in_use("token.conf") == current
    assert synced.reloaded() == 1, "the server itself says what it serves"
    assert synced.scrape() == 200
    assert set(metric(synced, "secret_info")) != set()


@pytest.mark.parametrize("name", ["state.json", "proxy.prom", "lock", "current.new"])
@pytest.mark.parametrize("suffix", ["", ".new"])
def test_a_folder_in_a_files_place_gives_way(synced: Machine, name: str, suffix: str) -> None:
    path = synced.run_folder / f"{name}{suffix}"
    path.unlink(missing_ok=True)
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_text("x")
    offer(synced)
    ok(synced)
    assert synced.token() == SECOND
    assert synced.scrape() == 200


@pytest.mark.parametrize("name", ["proxy.conf", "token.conf", "endpoints.json", "key.pem"])
@pytest.mark.parametrize("how", ["gone", "a folder", "empty"])
def test_a_damaged_generation_is_written_anew(synced: Machine, name: str, how: str) -> None:
    file = synced.run_folder / "current" / name
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how == "empty":
        file.touch()
    synced.sync()
    ok(synced)
    assert synced.token() == "first-token"
    assert synced.scrape() == 200
    assert len(generations(synced)) == 1


def test_a_full_disk_changes_nothing(synced: Machine) -> None:
    before, current = generations(synced), (synced.run_folder / "current").readlink()
    synced.put(configuration=synced.bundle["configuration"] + 1_000 * f"{59 * '#'}\n")
    done = subprocess.run(
        ["prlimit", "--fsize=30000", *synced.sync_command],
        env=synced._environment,
        cwd=synced.root,
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


def test_a_second_sync_leaves(synced: Machine) -> None:
    offer(synced)
    with (synced.run_folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # any lock at all is too much
        done = synced.sync()
        assert (done.returncode, done.stderr) == (0, "another sync is at work\n")
        assert synced.reasons() == set()
        # an hour on
        os.utime(synced.run_folder / "lock", (time.time() - 3600,) * 2)
        said = fails(synced, "busy")
        assert re.search("another one has been at work for 360[0-9] s", said)
        assert metric(synced, "upstream_up") == {("api",): 1}
    assert synced.token() == "first-token"
    ok(synced)
    assert synced.token() == SECOND


def test_nobody_else_can_hold_the_lock(synced: Machine) -> None:
    assert stat.S_IMODE((synced.run_folder / "lock").stat().st_mode) == 0o600


def test_a_failed_first_reload_heals(machine: Machine) -> None:
    machine.reload_status.write_text("1")
    for _ in range(2):  # there is nothing to lose: it is tried at every sync
        fails(machine, "reload")
        assert len(generations(machine)) == 1
    machine.reload_status.write_text("0")
    ok(machine)
    assert machine.scrape() == 200


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


def test_a_daemon_that_the_reload_leaves_behind_does_not_stop_the_sync(synced: Machine) -> None:
    pid = synced.run_folder / "pid"
    on_reload(synced, f"setsid sleep 50 & echo $! > {pid}")
    offer(synced)
    try:
        ok(synced)
        os.kill(int(pid.read_text()), 0)  # it is still there
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


def test_a_version_is_in_use_only_if_its_generation_is(synced: Machine) -> None:
    assert len(metric(synced, "secret_info")) == 2
    (synced.run_folder / "current" / "endpoints.json").unlink()
    synced._environment |= {"http_proxy": "http://127.0.0.1:9"}
    fails(synced, "fetch_token", "fetch_bundle")
    assert metric(synced, "secret_info") == {}
    assert metric(synced, "configuration_info") == {}


def test_the_version_before_is_not_that_of_what_a_killed_run_left_serving(synced: Machine) -> None:
    state = synced.run_folder / "state.json"
    before, first = state.read_text(), metric(synced, "secret_info")
    offer(synced)
    ok(synced)
    state.write_text(before)
    good = dict(synced._environment)
    synced._environment |= {"http_proxy": "http://127.0.0.1:9"}
    fails(synced, "fetch_token", "fetch_bundle")
    assert synced.token() == SECOND
    assert first.keys() & metric(synced, "secret_info").keys() == set()
    synced._environment = good
    ok(synced)
    assert len(metric(synced, "secret_info")) == 2


def test_a_secrets_manager_out_of_reach_is_no_write_error(synced: Machine) -> None:
    """botocore's connection errors are OSErrors in part; a proxy that is not there gives one."""
    synced._environment |= {"http_proxy": "http://127.0.0.1:9"}
    said = fails(synced, "fetch_token", "fetch_bundle")
    assert said.splitlines() == [
        f"{secret}: not fetched: ProxyConnectionError" for secret in ("bundle", "token")
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


CAT = 'cat "{generation}/token.conf" "{generation}/key.pem" >&2'
WORDS = {
    "token": (CAT, "Authorization"),
    "cut by the server": (
        "cut -c -60 {generation}/token.conf | cut -c 41- >&2; cut -c 3-20 {generation}/key.pem >&2",
        "test ends with 1",
    ),
    "cut by the sync": (f"head -c 60 /dev/zero | tr '\\0' x >&2; {3 * (CAT + '; ')}", "x"),
    "bytes": ("printf '\\377\\376\\0\\33[2J says' >&2", "says"),
}


@pytest.mark.parametrize("kind", WORDS)
def test_the_servers_words_are_shown_without_secrets(synced: Machine, kind: str) -> None:
    token = "tokEn-0123456789abcdefghijklmnopqrstuvwxyz"
    offer(synced, token)
    ok(synced)
    script, word = WORDS[kind]
    synced.put(configuration=synced.bundle["configuration"] + "# new\n")
    configure(synced, test=["sh", "-c", f"{script}; exit 1"])
    said = fails(synced, "test")
    assert word in said
    assert said.isprintable() or said.rstrip("\n").isprintable()
    secrets = [token, *synced.bundle["key"].splitlines()[1:-1]]
    for secret in secrets:
        assert not [s for i in range(len(secret) - 7) if (s := secret[i : i + 8]) in said]


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
            {"name": n, "path": f"/{n}", "upstream": f"http://127.0.0.1:{s.getsockname()[1]}/m"}
            for n, s in servers.items()
        ]
        synced.put_endpoints(*synced.bundle["endpoints"], *listed)
        try:
            ok(synced)  # or it would be ended after two minutes
        finally:
            stop.set()
            thread.join()
    up = metric(synced, "upstream_up")
    assert (up["api",], up["dead-79",], up["drip",]) == (1, 0, 0)


# nginx asks a resolver, which knows no names here
@pytest.mark.parametrize("machine", ["apache"], indirect=True)
def test_https_upstreams_are_verified(synced: Machine, tmp_path: Path) -> None:
    ca, private = self_signed("localhost")
    (tmp_path / "api.pem").write_text(ca + private)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "api.pem")
    synced.api.socket = tls.wrap_socket(synced.api.socket, server_side=True)
    url = f"https://localhost:{synced.api.server_port}/metrics"
    by_address = url.replace("localhost", "127.0.0.1")
    own = {"name": "own", "path": "/a", "upstream": url, "ca": ca}
    synced.put_endpoints(own)
    listed = [
        own,
        {"name": "public", "path": "/b", "upstream": url},
        {"name": "address", "path": "/c", "upstream": by_address, "ca": ca},
    ]
    synced.put(endpoints=listed)
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
        synced.put_endpoints({"name": "moved", "path": "/m", "upstream": url})
        ok(synced)
        assert seen == ["/first"]
        assert metric(synced, "upstream_http_status") == {("moved",): 302}
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def test_proxy_variables_are_not_read(synced: Machine) -> None:
    upstream = synced.bundle["endpoints"][0]["upstream"].replace("127.0.0.1", "localhost")
    # the server has no resolver here, and is not asked: the address stays in its configuration
    synced.put(endpoints=[{"name": "api", "path": "/m", "upstream": upstream}])
    synced._environment |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": "0.0.0.0,127.0.0.1"}
    ok(synced)
    assert metric(synced, "upstream_up") == {("api",): 1}


def test_the_canary_is_in_the_include_alone(synced: Machine, tmp_path: Path) -> None:
    canary = "canary-0123456789abcdef"
    key = synced.bundle["key"].splitlines()[1]
    look = f"cat /proc/[0-9]*/cmdline /proc/$PPID/environ >> {tmp_path}/processes"
    configure(synced, test=["sh", "-c", f"{look} 2> /dev/null; exit 0"])
    said = []
    synced.put(token=canary)
    said.append(synced.sync())  # refused
    synced.tokens.add(canary)
    synced.reload_status.write_text("1")
    said.append(synced.sync())  # put back
    synced.reload_status.write_text("0")
    forget(synced)
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


@pytest.mark.parametrize("machine", ["nginx", "apache"], indirect=True)
def test_the_server_serves_what_was_adopted(synced: Machine) -> None:
    old = synced.bundle["certificate"]
    assert synced.scrape(ca=old) == 200
    offer(synced)
    ok(synced)
    synced.tokens.discard("first-token")
    assert synced.scrape(ca=old) == 200, "at once: it was seen"
    synced.bundle["certificate"], synced.bundle["key"] = self_signed()
    synced.put(configuration=synced.bundle["configuration"])
    ok(synced)
    assert synced.scrape(ca=synced.bundle["certificate"]) == 200
    synced.put(configuration="nonsense;")
    fails(synced, "test")
    assert synced.scrape(ca=synced.bundle["certificate"]) == 200
