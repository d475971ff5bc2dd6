"""The sync: what it brings, and what it refuses, with a real server."""

from __future__ import annotations

import json
import shutil
import socket
import threading

import pytest

from host import sync
from tests.certificates import DAY, self_signed
from tests.host.machine import (
    PROMETHEUS_TYPE,
    SECOND,
    Machine,
    fails,
    forget,
    machine,
    metric,
    moto_url,
    offer,
    ok,
    synced,
)

__all__ = ["machine", "moto_url", "synced"]


def test_the_first_sync_brings_everything_with_one_reload(synced: Machine) -> None:
    assert synced.token() == "first-token"
    assert synced.in_use("proxy.conf") == synced.bundle["configuration"]
    assert synced.in_use("key.pem") == synced.bundle["key"]
    assert synced.reloaded() == 1
    assert synced.reasons() == set()


def test_nothing_new_is_no_reload(synced: Machine) -> None:
    generation = (synced.run_folder / "current").readlink()
    assert synced.sync().returncode == 0
    assert synced.reloaded() == 1
    assert (synced.run_folder / "current").readlink() == generation


def test_an_empty_run_folder_is_filled_again(synced: Machine) -> None:
    shutil.rmtree(synced.run_folder)
    synced.run_folder.mkdir()
    assert synced.sync().returncode == 0
    assert synced.token() == "first-token"


@pytest.mark.parametrize(
    ("secret", "key"),
    [
        ('{"token": "second-token"}', None),
        (' {"token": " second-token\\n"}', None),
        ('{"token": "x", "admin": "second-token"}', "admin"),
        ("second-token\n", None),
        (" \tsecond-token \r\n", None),
        (b"second-token", None),
        (b'{"token": "second-token"}\n', None),
    ],
)
def test_how_a_token_may_be_written(synced: Machine, secret: str | bytes, key: str | None) -> None:
    synced.tokens.add(SECOND)
    synced.put(secret)
    if key:
        synced.put(configuration=synced.bundle["configuration"])
        synced.bundle["token"]["key"] = key
        synced.put(configuration=synced.bundle["configuration"])
    ok(synced)
    assert synced.token() == SECOND


@pytest.mark.parametrize(
    ("secret", "key", "said"),
    [
        ('{"adminToken": "x"}', None, 'no key "token" in the secret\'s JSON'),
        ('{"token": "x"}', "admin", 'no key "admin" in the secret\'s JSON'),
        ("second-token", "admin", 'no key "admin" in the secret\'s JSON'),
        ('{"admin": 1}', "admin", '"admin" in the secret\'s JSON is no text'),
        ("two words", None, "no b64token (RFC 6750) of up to 3,900 characters"),
    ],
)
def test_what_is_said_of_a_secret_without_a_token(
    synced: Machine, secret: str, key: str | None, said: str
) -> None:
    if key:
        synced.bundle["token"]["key"] = key
        synced.put(configuration=synced.bundle["configuration"])
    synced.put(secret)
    assert fails(synced, "token_invalid") == f"token: not adopted: {said}\n"


def test_the_token_moves_to_another_secret(synced: Machine) -> None:
    """The bundle says where: a running machine follows it, and goes on if it is not there yet."""
    other = f"{synced.names['token']}-2"
    synced.bundle["token"]["secret"] = other
    synced.put(configuration=synced.bundle["configuration"])
    said = fails(synced, "fetch_token")
    assert said == "token: not fetched: ResourceNotFoundException\n"
    assert synced.token() == "first-token"
    synced.secrets.create_secret(Name=other, SecretString=SECOND)
    synced.tokens.add(SECOND)
    ok(synced)
    assert synced.token() == SECOND
    # also where the bundle cannot be had
    synced.secrets.delete_secret(SecretId=synced.names["bundle"], ForceDeleteWithoutRecovery=True)
    synced.tokens.add("third-token")
    synced.secrets.put_secret_value(SecretId=other, SecretString="third-token")
    fails(synced, "fetch_bundle")
    assert synced.token() == "third-token"


@pytest.mark.parametrize(
    "place", [None, "name", [], {}, {"secret": ""}, {"secret": 1}, {"secret": "x", "key": None}]
)
def test_a_bundle_that_does_not_say_where_the_token_is(synced: Machine, place: object) -> None:
    synced.bundle["token"] = place
    synced.put(configuration=synced.bundle["configuration"])
    offer(synced)
    said = fails(synced, "configuration_invalid")
    assert said == "token: not found: the bundle does not name its secret\n"
    assert synced.token() == SECOND, "from where it was"


@pytest.mark.parametrize(
    "token",
    [
        'a"; return 200 "',
        "a\r\nb",
        "a b",
        " ",
        "$a",
        "1|demo0token0x",
        "x" * 3901,
        '{"other": "x"}',
        '{"token": 12345}',
        '{"token": null}',
        '{"token": ["x"]}',
        "[]",
        '"quoted"',
        "{",
        "[" * 50_000,
        '{"token":' * 5_000,
        b"\xff\xfe",
    ],
    ids=lambda token: str(token)[:20],
)
def test_a_malformed_token_is_refused_and_not_said(synced: Machine, token: str | bytes) -> None:
    synced.put(token=token)
    done = synced.sync()
    assert done.returncode == 1
    assert synced.token() == "first-token"
    assert synced.reasons() == {"token_invalid"}, done.stderr
    assert "Error" not in done.stderr, "words for people"
    if len(token) > 2:
        assert str(token) not in done.stderr


def test_a_token_that_the_api_refuses_waits_until_it_is_taken(synced: Machine) -> None:
    synced.put(token="second-token")
    for _ in range(3):  # the reason stays as long as the version is refused: it can be alerted on
        done = synced.sync()
        assert synced.reasons() == {"token_refused"}
        assert "second-token" not in done.stderr
    assert synced.token() == "first-token"
    assert synced.reloaded() == 1
    synced.tokens.add("second-token")
    assert synced.sync().returncode == 0
    assert synced.token() == "second-token"


def test_a_revoked_token_gives_way_whatever_the_api_says_of_the_new_one(synced: Machine) -> None:
    synced.tokens.clear()
    synced.put(token="second-token")
    assert synced.sync().returncode == 0
    assert synced.token() == "second-token"


@pytest.mark.parametrize("status", [101, 302, 400, 401, 403, 404, 429, 500, 503])
def test_a_token_that_gets_less_than_the_live_one_is_refused(synced: Machine, status: int) -> None:
    synced.answers[SECOND] = status
    synced.put(SECOND)
    for _ in range(2):
        said = fails(synced, "token_refused")
        assert said == "token: not adopted: the API takes the live one, and not this, on api\n"
    assert synced.token() == "first-token"
    assert synced.asked.count(SECOND) == 2  # once at each sync, and no redirect was followed
    del synced.answers[SECOND]
    synced.tokens.add(SECOND)
    ok(synced)
    assert synced.token() == SECOND


@pytest.mark.parametrize(
    ("live", "other", "good"),
    [
        (PROMETHEUS_TYPE, "text/html; charset=utf-8", False),
        (PROMETHEUS_TYPE, None, False),
        (PROMETHEUS_TYPE, "text/plain;version=1.0.0", True),
        (PROMETHEUS_TYPE, "application/openmetrics-text; version=1.0.0", False),
        ("application/json", "application/json", True),
        ("application/json", "text/html", False),
        (None, None, True),
    ],
)
def test_a_login_page_is_no_answer(
    synced: Machine, live: str | None, other: str | None, good: bool
) -> None:
    """200 of another content type."""
    synced.types = {"first-token": live, SECOND: other}
    offer(synced)
    done = synced.sync()
    assert ("token_refused" in synced.reasons()) is not good, done.stderr
    assert (synced.token() == SECOND) is good


def test_without_a_good_token_the_proxy_is_closed_but_there(machine: Machine) -> None:
    machine.put(token="not a token")
    assert machine.sync().returncode == 1
    assert machine.in_use("token.conf") == "return 503;\n"
    assert machine.reloaded() == 1


BAD_CERTIFICATES = {
    "foreign key": (self_signed()[0], self_signed()[1]),
    "expired": self_signed(begin=-3 * DAY, end=-DAY),
    "not yet valid": self_signed(begin=DAY, end=3 * DAY),
    "not PEM": ("no certificate", self_signed()[1]),
}


@pytest.mark.parametrize("kind", BAD_CERTIFICATES)
def test_a_bad_certificate_is_refused_alone(synced: Machine, kind: str) -> None:
    good, key = BAD_CERTIFICATES[kind]
    synced.tokens.add("second-token")
    synced.put(token="second-token", certificate=good, key=key)
    assert synced.sync().returncode == 1
    assert synced.reasons() == {"certificate_invalid"}
    assert synced.in_use("certificate.pem") == synced.bundle["certificate"]
    assert synced.token() == "second-token"


def test_a_new_certificate_is_adopted(synced: Machine) -> None:
    new, key = self_signed()
    synced.put(certificate=new, key=key)
    assert synced.sync().returncode == 0
    assert synced.in_use("certificate.pem") == new


@pytest.mark.parametrize(
    ("configuration", "reason"), [("nonsense on;", "test"), ("", "configuration_invalid")]
)
def test_a_bad_configuration_is_refused_alone(
    synced: Machine, configuration: str, reason: str
) -> None:
    synced.tokens.add("second-token")
    synced.put(token="second-token", configuration=configuration)
    assert synced.sync().returncode == 1
    assert synced.reasons() == {reason}
    assert synced.in_use("proxy.conf") == synced.bundle["configuration"]
    assert synced.token() == "second-token"


def test_a_failed_reload_is_put_back(synced: Machine) -> None:
    before = (synced.run_folder / "current").readlink()
    synced.tokens.add("second-token")
    synced.put(token="second-token")
    synced.reload_status.write_text("1")
    fails(synced, "reload")
    assert (synced.run_folder / "current").readlink() == before
    assert synced.token() == "first-token"
    synced.reload_status.write_text("0")
    forget(synced)
    ok(synced)
    assert synced.token() == "second-token"


def test_a_missing_secret_leaves_what_is_in_use(synced: Machine) -> None:
    synced.secrets.delete_secret(SecretId=synced.names["token"], ForceDeleteWithoutRecovery=True)
    assert synced.sync().returncode == 1
    assert synced.reasons() == {"fetch_token"}
    assert synced.token() == "first-token"


def test_old_generations_go(synced: Machine) -> None:
    for number in range(4):
        synced.tokens.add(f"token-{number}")
        synced.put(token=f"token-{number}")
        assert synced.sync().returncode == 0
    assert len(list(synced.run_folder.glob("gen-*"))) == 1


def test_the_token_is_in_the_include_alone(synced: Machine) -> None:
    holders = {
        file.name
        for file in synced.run_folder.rglob("*")
        if file.is_file() and b"first-token" in file.read_bytes()
    }
    assert holders == {"token.conf"}
    for file in (synced.run_folder / "current" / "token.conf", synced.run_folder / "proxy.prom"):
        assert file.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize("kind", [None, "text/html", "application/octet-stream", "text/plain; x"])
def test_a_type_that_prometheus_refuses_is_not_up(synced: Machine, kind: str | None) -> None:
    synced.types["first-token"] = kind
    said = ok(synced)
    assert said == f"api: API answers 200 of type '{kind or ''}', which Prometheus refuses\n"
    assert metric(synced, "upstream_up") == {("api",): 0}
    assert metric(synced, "upstream_http_status") == {("api",): 200}
    # where Prometheus is told how to read it
    synced.config["fallbackScrapeProtocol"] = "PrometheusText0.0.4"
    synced.put_endpoints(*json.loads(synced.config["endpoints"]))
    assert ok(synced) == ""
    assert metric(synced, "upstream_up") == {("api",): 1}


INTERIM = [
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Type: text/html\r\n\r\n",
]


@pytest.mark.parametrize("before", [INTERIM[2:], INTERIM, 3 * INTERIM], ids=len)
def test_an_interim_answer_is_not_the_answer(before: list[bytes]) -> None:
    answer = b"".join(before) + b"HTTP/1.1 204 No Content\r\nContent-Type: text/plain\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        upstream = f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        endpoint, probe = sync.Endpoint("api", "/m", upstream), sync.Probe()
        probe.ask([(endpoint, "token")])
        thread.join()
    found = probe.answer(endpoint, "token")
    assert (found.status, found.media_type, found.lack) == (204, "text/plain", "")
