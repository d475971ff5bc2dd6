"""Configurations that pass the server's own test and serve nobody: never in use, nothing lost."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
    moto_url,
    offer,
    ok,
    synced,
)

__all__ = ["machine", "moto_url", "synced"]

Change = Callable[[str], str]


def put_in(old: str, new: str) -> Change:
    def change(text: str) -> str:
        assert old in text, old
        return text.replace(old, new)

    return change


NGINX: dict[str, Change] = {
    "worker_connections 2": lambda text: re.sub(
        r"worker_connections \d+", "worker_connections 2", text
    ),
    "worker_rlimit_nofile 3": lambda text: re.sub(
        r"worker_rlimit_nofile \d+", "worker_rlimit_nofile 3", text
    ),
    "listen without ssl": lambda text: re.sub(r"(listen \d+) ssl", r"\1", text),
    "nobody is let in": lambda text: re.sub(r"(?m)^ *allow .*\n", "", text),
    "this machine is not let in": put_in("allow 127.0.0.1/32;", ""),
    "one endpoint answers 404": put_in('"~^[A-Z]+ /m HTTP', '"~^[A-Z]+ /n HTTP'),
    "an upstream that is not there": lambda text: re.sub(
        r'"http://127.0.0.1:\d+/metrics"', '"http://127.0.0.1:1/metrics"', text
    ),
    "no own document": put_in("/metrics/proxy HTTP", "/metrics/proxies HTTP"),
    "own document of no generation": put_in("include generation.conf;", ""),
    "ciphers that no client has": lambda text: re.sub(
        r"(?m)^( *)ssl_protocols .*;\n *ssl_ciphers .*;",
        r"\1ssl_ciphers ECDHE-RSA-AES128-SHA; ssl_protocols TLSv1.2;",
        text,
    ),
    "another certificate": put_in("ssl_certificate certificate.pem", "ssl_certificate other.pem"),
    "no listen": lambda text: re.sub(r"(?m)^.*listen .*$", "", text),
    "another port": lambda text: re.sub(r"listen \d+ ssl", "listen 61000 ssl", text),
}
APACHE: dict[str, Change] = {
    "ciphers that are none": lambda text: re.sub(
        "(?m)^SSLCipherSuite .*$", "SSLCipherSuite nonsense", text
    ),
    "a CA file that is none": lambda text: re.sub(
        "(?m)^SSLProxyCACertificateFile .*$", "SSLProxyCACertificateFile proxy.conf", text
    ),
    "TLS off": put_in("SSLEngine on", "SSLEngine off"),
    "nobody is let in": lambda text: re.sub(r"(?m)^ *Require ip .*$", "Require all denied", text),
    "one endpoint answers 404": put_in('Use Endpoint "/m"', 'Use Endpoint "/n"'),
    "own document of no generation": put_in("Include generation.conf", ""),
    "a list of headers that is not there": put_in("headers.lua", "absent.lua"),
    "a logger that is not there": put_in("|/usr/bin/cat", "|/usr/bin/absent"),
    "no thread to serve": lambda text: re.sub(r"(?m)^Listen .*$", "", text),
}
CASES = [("nginx", kind) for kind in NGINX] + [("apache", kind) for kind in APACHE]


@contextmanager
def scraping(host: Machine) -> Iterator[Counter[int]]:
    """Scrape without a pause meanwhile; counts the answers by status."""
    found, stop = Counter[int](), threading.Event()
    ca = host.in_use("certificate.pem")

    def scrape() -> None:
        while not stop.is_set():
            found[host.scrape(ca=ca)] += 1
            stop.wait(0.05)  # more often than 100 times a second is refused

    threads = [threading.Thread(target=scrape) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(("machine", "kind"), CASES, indirect=["machine"], ids=lambda v: str(v))
def test_what_serves_nobody_is_not_in_use(synced: Machine, kind: str) -> None:
    change = (NGINX if synced.server == "nginx" else APACHE)[kind]
    good = synced.bundle["configuration"]
    reloads = synced.reloaded()
    if kind == "another certificate":
        # beside the configuration, where the server's own test finds it
        other, key = self_signed()
        (synced.folder / "other.pem").write_text(other + key)
        bad = change(good).replace("other.pem", str(synced.folder / "other.pem"))
        bad = re.sub(
            "ssl_certificate_key .*;", f"ssl_certificate_key {synced.folder}/other.pem;", bad
        )
    else:
        bad = change(good)
    assert bad != good
    with scraping(synced) as found:
        synced.put(configuration=bad)
        said = fails(synced, "trial")
        # it is not tried again at every sync
        again = fails(synced, "trial")
        assert "tried 0 min ago" in again
        # and holds nothing back
        offer(synced)
        fails(synced, "trial")
    assert set(found) == {200}, found
    assert said.startswith("configuration: not adopted: "), said
    assert synced.token() == SECOND
    assert synced.reloaded() == reloads + 1, "for the token alone"
    assert len(generations(synced)) == 1
    synced.put(configuration=good)
    ok(synced)


def test_an_hour_later_it_is_tried_again(synced: Machine) -> None:
    good = synced.bundle["configuration"]
    bad = NGINX["listen without ssl"](good)
    synced.put(configuration=bad)
    fails(synced, "trial")
    forget(synced)
    assert "tried" not in fails(synced, "trial")
    assert "tried" in fails(synced, "trial")
    # a reboot forgets it too; with nothing in use it is tried at every sync
    (synced.run_folder / "state.json").unlink()
    (synced.run_folder / "current").unlink()
    for _ in range(2):
        assert "tried" not in fails(synced, "trial")


BROKEN_AFTER_THE_TRIAL = {
    # the unit's server is not the trial's: another user, other limits, another state of the machine
    "it ends": "kill -9 -$(cat {folder}/pid); exit 0",
    "it keeps the old one": "exit 0",
    "the reload says no": "exit 3",
}


@pytest.mark.parametrize("kind", BROKEN_AFTER_THE_TRIAL)
def test_what_fails_only_when_loaded_is_put_back(synced: Machine, kind: str) -> None:
    """The first reload after the change goes wrong, and the one that puts it back does not."""
    offer(synced)
    before = synced.reloaded()
    wrong = BROKEN_AFTER_THE_TRIAL[kind].format(folder=synced.folder)
    script = f"if ! [ -e {synced.folder}/once ]; then touch {synced.folder}/once; {wrong}; fi"
    configure(synced, reload=["sh", "-c", f"{script}\n{synced.reload_script}"])
    said = fails(synced, "reload" if kind == "the reload says no" else "check")
    assert "token: not adopted: " in said
    assert synced.token() == "first-token"
    assert synced.scrape() == 200
    assert synced.scrape("/metrics/proxy") == 200
    assert synced.reloaded() == before + 1
    fails(synced, *synced.reasons())
    assert synced.scrape() == 200
    # the live token is revoked: the other cannot be worse, and is tried at every sync
    synced.tokens.remove("first-token")
    (synced.folder / "once").unlink()
    fails(synced, *synced.reasons())
    ok(synced)
    assert synced.token() == SECOND
    assert synced.scrape() == 200


def test_an_api_that_goes_away_meanwhile_is_no_fault_of_the_news(synced: Machine) -> None:
    """It answers the probe, and nobody after that: neither through the trial nor directly."""
    answers = iter([200])
    synced.status = lambda token: 200 if token == "first-token" else next(answers, 503)
    offer(synced)
    ok(synced)
    assert synced.token() == SECOND


def test_the_trial_leaves_nothing(synced: Machine) -> None:
    offer(synced)
    ok(synced)
    assert not list((synced.folder / "tmp").iterdir())
    assert {p.name for p in (synced.run_folder / "current").iterdir()} == {
        *("proxy.conf", "endpoints.json", "token.conf", "generation.conf"),
        *("certificate.pem", "key.pem"),
    }


@contextmanager
def another_api(headers: list[int], tokens: set[str]) -> Iterator[str]:
    """An API of its own; its answers have as many long headers as the list says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers["Authorization"].removeprefix("Bearer ")
            self.send_response(200 if token in tokens else 401)
            self.send_header("Content-Type", "text/plain")
            for number in range(headers[0]):
                self.send_header(f"X-Long-{number}", 400 * "x")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()


def test_an_endpoint_that_the_server_cannot_serve_holds_nothing_back(synced: Machine) -> None:
    """The API answers the sync, and 50 long headers are more than nginx takes."""
    headers, tokens = [0], {"first-token", SECOND}
    with another_api(headers, tokens) as upstream:
        other = {"name": "other", "path": "/o", "upstream": upstream}
        synced.put_endpoints(*synced.bundle["endpoints"], other)
        ok(synced)
        assert synced.scrape("/o") == 200
        headers[0] = 50
        assert (synced.scrape("/m"), synced.scrape("/o")) == (200, 502)
        offer(synced)
        synced.bundle["certificate"], synced.bundle["key"] = self_signed()
        synced.put(configuration=synced.bundle["configuration"])
        ok(synced)
        assert synced.token() == SECOND
        assert synced.scrape(ca=synced.bundle["certificate"]) == 200
        # a reboot: what can be served is
        first_boot(synced)
        assert "other: not served: answers 502" in ok(synced)
        assert (synced.scrape("/m"), synced.scrape("/o")) == (200, 502)
        # what is served is not given up for it
        headers[0] = 0
        assert synced.scrape("/o") == 200
        bad = synced.bundle["configuration"].replace("^[A-Z]+ /o HTTP", "^[A-Z]+ /p HTTP")
        synced.put(configuration=bad)
        assert "other: answers 404" in fails(synced, "trial")


def first_boot(host: Machine) -> None:
    for path in host.run_folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def test_a_configuration_that_is_not_adopted_holds_no_token_back(synced: Machine) -> None:
    """Its endpoints are not in use, whatever their API says of the token."""
    with another_api([0], {"first-token"}) as upstream:
        good = synced.bundle["configuration"]
        other = {"name": "other", "path": "/o", "upstream": upstream}
        synced.put_endpoints(*synced.bundle["endpoints"], other)
        bad = NGINX["listen without ssl"](synced.bundle["configuration"])
        synced.put(configuration=bad)
        offer(synced)
        fails(synced, "trial")
        assert synced.token() == SECOND
        assert synced.in_use("proxy.conf") == good


def test_a_token_is_compared_with_what_serves(synced: Machine) -> None:
    """Also where the record was lost, or a first run was killed before it."""
    synced.put("wrong-token")
    (synced.run_folder / "state.json").unlink()
    fails(synced, "token_refused")
    assert synced.token() == "first-token"
    assert synced.scrape() == 200


def test_a_slow_api_is_waited_for_as_the_server_waits(synced: Machine) -> None:
    """Six seconds: the server waits for eight, and a silence of five is no answer to compare."""

    def slow(token: str) -> int:
        if token == "first-token":
            time.sleep(6)
            return 200
        return 401

    synced.status = slow
    synced.put("wrong-token")
    fails(synced, "token_refused")
    assert synced.token() == "first-token"
