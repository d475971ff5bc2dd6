"""What the sync refuses or cannot get, each with its reason and the last good state in use."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host import sync
from tests.certificates import DAY, self_signed
from tests.host.machine import SECOND, Machine, fails, machine, metric, moto_url, offer, ok, synced

__all__ = ["machine", "moto_url", "synced"]

Answer = Callable[[str], tuple[int, dict[str, str]] | None]


@contextmanager
def secrets_manager(host: Machine, answer: Answer) -> Iterator[None]:
    """A stand-in between the sync and Secrets Manager: it answers where it has an answer.

    `answer` is given the secret's name; what it leaves alone goes to moto.
    """
    moto = host._environment["AWS_ENDPOINT_URL"]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            own = answer(json.loads(body)["SecretId"])
            if own is None:
                upstream = http.client.HTTPConnection(moto.partition("//")[2], timeout=10)
                upstream.request("POST", "/", body, dict(self.headers))
                response = upstream.getresponse()
                status, text = response.status, response.read()
                upstream.close()
            else:
                status, text = own[0], json.dumps(own[1]).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host._environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_port}"
    try:
        yield
    finally:
        host._environment["AWS_ENDPOINT_URL"] = moto
        server.shutdown()
        server.server_close()


FAULTS = {
    "access denied": (400, "AccessDeniedException"),
    "throttled": (400, "ThrottlingException"),
    "clock off": (403, "InvalidSignatureException"),
    "role gone": (403, "ExpiredTokenException"),
    "key disabled": (400, "KMSAccessDeniedException"),
    "server error": (500, "InternalServiceError"),
    "unavailable": (503, "ServiceUnavailable"),
    "marked for deletion": (400, "InvalidRequestException"),
}


@pytest.mark.parametrize("secret", ["token", "bundle"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_secret_that_cannot_be_had(synced: Machine, fault: str, secret: str) -> None:
    status, code = FAULTS[fault]

    def answer(name: str) -> tuple[int, dict[str, str]] | None:
        text = {"__type": code, "message": "with a secret in it"}
        return (status, text) if name == synced.names[secret] else None

    new, key = self_signed()
    offer(synced)
    synced.put(certificate=new, key=key)
    with secrets_manager(synced, answer):
        said = fails(synced, f"fetch_{secret}")
    assert said == f"{secret}: not fetched: {code}\n"
    # what can be had is adopted all the same
    assert synced.token() == ("first-token" if secret == "token" else SECOND)
    assert synced.in_use("certificate.pem") == (
        synced.bundle["certificate"] if secret == "bundle" else new
    )
    assert metric(synced, "secret_sync_ok") == {(): 0}
    ok(synced)
    assert synced.token() == SECOND
    assert synced.in_use("certificate.pem") == new


def test_a_silent_secrets_manager_is_given_up(synced: Machine) -> None:
    offer(synced)
    moto = synced._environment["AWS_ENDPOINT_URL"]
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:
        synced._environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        said = fails(synced, "fetch_token", "fetch_bundle")
    assert said.count("ReadTimeoutError") == 2
    assert synced.token() == "first-token"
    assert metric(synced, "upstream_up") == {("api",): 1}
    synced._environment["AWS_ENDPOINT_URL"] = moto
    ok(synced)
    assert synced.token() == SECOND


Json = dict[str, object]


def each(key: str, *values: object) -> list[Json]:
    return [{key: value} for value in values]


ENDPOINT: Json = {"name": "api", "path": "/m", "upstream": "http://127.0.0.1/"}
ENDPOINT_FAULTS = [
    *(fault for key in ENDPOINT for fault in each(key, None, 1, [], {}, "", "a\0b", "\ud800", "ä")),
    *each("name", "A", "../etc", "x" * 41),
    *each("path", "m", "/m x", "/m\r\nX: y"),
    *each("upstream", "ftp://127.0.0.1/", "http://127.0.0.1/ x", "http://a@127.0.0.1/"),
    *each("upstream", "http:///m", ["http://127.0.0.1/"]),
    *each("ca", {}, 1, [], "", "no PEM", "ä", "a\0b", "\ud800"),
    *each("fallback_scrape_protocol", {}, 1, "", "ä"),
]
BUNDLE_FAULTS = [
    {},
    *each("endpoints", None, 1, "text", {}, [], [None], ["text"], [[]]),
    *each("endpoints", [{"name": "api"}], 2 * [ENDPOINT]),
    *each("endpoints", *([ENDPOINT | change] for change in ENDPOINT_FAULTS)),
    *each("configuration", "", " \n", None, 1, ["text"], "a\0b", "\ud800"),
]


@pytest.mark.parametrize("fault", BUNDLE_FAULTS, ids=ascii)
def test_a_malformed_configuration_is_refused_in_words(fault: Json) -> None:
    good = {"configuration": "x", "endpoints": [ENDPOINT]}
    assert sync.configuration(good)["proxy.conf"] == b"x"
    with pytest.raises(sync.RefusedError) as caught:
        sync.configuration(good | fault if fault else {})
    reason, words = caught.value.args
    assert reason == "configuration_invalid"
    assert re.search("[a-z]{4,}", words)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.sampled_from([*ENDPOINT]), inner)
    ),
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "configuration": JSON | st.just("conf"),
            "endpoints": JSON | st.lists(st.fixed_dictionaries(dict.fromkeys(ENDPOINT, JSON))),
            "certificate": JSON,
            "key": JSON,
            "token": JSON,
        },
    )
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_bundle_at_all_is_more_than_refused(bundle: Json) -> None:
    for part, read in {
        "configuration": sync.configuration,
        "certificate": lambda bundle: sync.certificate(bundle, None),
        "token": lambda bundle: {"secret": sync.place(bundle.get("token"))["secret"].encode()},
    }.items():
        try:
            found = {type(text) for text in read(bundle).values()} or {bytes}
        except sync.RefusedError as error:
            found = {bytes} if error.args[0] in sync.REASONS else set()
        assert found == {bytes}, part


@pytest.mark.parametrize(
    "bundle",
    ["", "no JSON", "[]", "{}", "null", {"endpoints": []}, {"configuration": ""}],
    ids=str,
)
def test_a_malformed_bundle_changes_nothing(synced: Machine, bundle: object) -> None:
    before = synced.in_use("proxy.conf"), synced.in_use("endpoints.json")
    offer(synced)
    if isinstance(bundle, dict):
        synced.put(**bundle)
    else:
        text = str(bundle) or " "  # Secrets Manager holds no empty text
        synced.secrets.put_secret_value(SecretId=synced.names["bundle"], SecretString=text)
    expected = ["configuration_invalid"]
    said = fails(synced, *expected, *([] if isinstance(bundle, dict) else ["certificate_invalid"]))
    assert "Error" not in said, "words for people"
    assert (synced.in_use("proxy.conf"), synced.in_use("endpoints.json")) == before
    assert synced.token() == SECOND


UNANSWERED = {
    "down": "answer: Connection refused",
    "silent": "answer: TimeoutError",
    "resets": "answer: Connection reset by peer",
    "without TLS": r"answer: \[SSL.*",
    "without a name": "address: .+",  # the resolver's words
}


@pytest.mark.parametrize("kind", UNANSWERED)
def test_an_api_that_does_not_answer_refuses_no_token(synced: Machine, kind: str) -> None:
    resets = threading.Event()

    def accept() -> None:
        while not resets.is_set():
            connection, _ = listener.accept()
            # closed with data unread: a reset
            connection.recv(1)
            connection.close()

    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=accept)
        if kind == "down":
            listener.close()
        elif kind == "resets":
            thread.start()
        upstream = f"http://127.0.0.1:{port}/metrics"
        if kind == "without TLS":
            upstream = f"https://localhost:{synced.api.server_port}/metrics"
        elif kind == "without a name":
            upstream = "http://absent.invalid/metrics"
        synced.put_endpoints({"name": "api", "path": "/m", "upstream": upstream})
        assert re.fullmatch(f"{upstream}: no {UNANSWERED[kind]}\n", ok(synced))
        assert metric(synced, "upstream_up") == {("api",): 0}
        synced.put(token=SECOND)
        ok(synced)
        if kind == "resets":
            resets.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()
    assert synced.token() == SECOND
    assert metric(synced, "upstream_up") == {("api",): 0}
    assert metric(synced, "upstream_http_status") == {("api",): 0}


def test_a_full_run_folder_is_left_as_it_is_and_heals(machine: Machine) -> None:
    """A small tmpfs of its own mount namespace stands for /run."""
    shell = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh"],
        env=machine._environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert shell.stdin
    assert shell.stdout

    def run(script: str) -> str:
        assert shell.stdin
        assert shell.stdout
        shell.stdin.write(f"{script}\necho; echo status=$?\n")
        shell.stdin.flush()
        lines: list[str] = []
        while not (line := shell.stdout.readline()).startswith("status="):
            assert line, "the shell has ended"
            lines.append(line)
        return "".join(lines)

    sync = f'cd {machine.root}; {" ".join(machine.sync_command)} 2>&1; cd "$RUNTIME_DIRECTORY"'
    try:
        run('mount -t tmpfs -o size=256k sync "$RUNTIME_DIRECTORY"')
        assert "first-token" in run(f"{sync}; cat current/token.conf")
        offer(machine)
        machine.put(configuration=machine.bundle["configuration"] + 4_000 * "#\n")
        run("head -c 1M /dev/zero > full 2> /dev/null")
        found = run(f"{sync}; cat current/token.conf; ls | grep -c gen-")
        assert "No space left on device" in found
        assert "first-token" in found
        assert "\n1\n" in found, "nothing of the attempt is left"
        assert SECOND in run(f"rm full; {sync}; cat current/token.conf")
    finally:
        shell.stdin.close()
        assert shell.wait(10) is not None
        shell.stdout.close()
        if shell.stderr:
            shell.stderr.close()


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_a_day_off_leaves_what_is_in_use(synced: Machine, days: int) -> None:
    """libfaketime, on the sync alone."""
    [library] = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    new, key = self_signed(begin=-DAY / 2, end=DAY / 2)
    offer(synced)
    synced.put(certificate=new, key=key)
    right = dict(synced._environment)
    synced._environment |= {"LD_PRELOAD": str(library), "FAKETIME": f"{days:+d}d"}
    fails(synced, "certificate_invalid")
    assert synced.in_use("certificate.pem") == synced.bundle["certificate"]
    assert synced.token() == SECOND
    synced._environment = right
    ok(synced)
    assert synced.in_use("certificate.pem") == new
