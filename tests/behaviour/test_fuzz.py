"""Of what is generated, nothing passes that should not."""

from __future__ import annotations

import base64
import gzip
import urllib.parse

import pytest

from tests.behaviour import corpus, fuzz
from tests.behaviour.proxies import PROMISED, RENDERED
from tests.behaviour.upstream import CANARY
from tests.behaviour.wire import BALANCER, CLIENT
from tests.leaks import holds

Results = dict[str, fuzz.Result]
each_proxy = pytest.mark.parametrize("kind", PROMISED)


def show(offenders: list[corpus.Request]) -> str:
    """Keep the requests as cases, and say how to come by them."""
    for request in offenders[:10]:
        corpus.keep(request)
    shown = "\n".join(map(repr, offenders[:3]))
    said = f"{len(offenders)} requests, up to 10 added to {corpus.KEPT.name}; seed {corpus.SEED}"
    return f"{said}\n{shown}"


@each_proxy
def test_only_scrapes_reach_the_api(results: Results, kind: str) -> None:
    wrong = [(r, found) for r in results[kind].reached if (found := r.objections(CLIENT))]
    senders = [request for received, _ in wrong if (request := fuzz.sender(received))]
    assert not wrong, f"{wrong[:3]}\n{show(senders)}"


@each_proxy
def test_the_token_is_in_no_answer(results: Results, kind: str) -> None:
    assert not results[kind].leaks, show(results[kind].leaks)


@each_proxy
def test_only_the_load_balancer_is_told_of_the_machines_health(results: Results, kind: str) -> None:
    assert results[kind].healthy[CLIENT] == 0
    assert bool(results[kind].healthy[BALANCER]) == (kind in RENDERED)


@each_proxy
def test_the_token_is_in_no_log(results: Results, kind: str) -> None:
    assert len(results[kind].said.splitlines()) > corpus.COUNT / 2
    assert not holds(results[kind].said, CANARY)


@each_proxy
def test_enough_was_sent_and_the_proxy_kept_serving(results: Results, kind: str) -> None:
    result = results[kind]
    assert result.sent >= corpus.COUNT
    assert len(result.reached) >= 1000
    assert result.scrapes == {"200": -(-result.sent // fuzz.EVERY)}


@pytest.mark.parametrize("kind", ["required nginx", "required apache"])
def test_the_fuzz_finds_what_the_requirement_lets_through(results: Results, kind: str) -> None:
    found = results[kind].forbidden()
    assert all(found[what] > 50 for what in ("method", "target", "body", "headers")), found
    assert bool(results[kind].leaks) == (kind == "required apache")


@pytest.mark.parametrize(
    "hidden",
    [
        CANARY.encode(),
        urllib.parse.quote(CANARY, safe="").encode(),
        urllib.parse.quote(CANARY).encode(),
        *(base64.b64encode(b"x" * n + f"Bearer {CANARY}\n".encode()) for n in range(3)),
        b"HTTP/1.1 200 OK\r\n\r\n" + gzip.compress(f"Bearer {CANARY}".encode(), mtime=0),
    ],
)
def test_the_search_sees_the_token(hidden: bytes) -> None:
    assert holds(b"before " + hidden + b" after", CANARY)
    assert not holds(hidden[: len(hidden) // 2], CANARY)
