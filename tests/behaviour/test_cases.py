"""The same cases for every proxy that is ours; the requirement's own are only recorded."""

from __future__ import annotations

import re

import pytest

from tests.behaviour.cases import Case
from tests.behaviour.conftest import Outcomes
from tests.behaviour.proxies import OURS, OWN_DOCUMENT, PROMISED, RENDERED
from tests.behaviour.table import CASES, PROMETHEUS
from tests.behaviour.upstream import CANARY, DOCUMENT, LARGE
from tests.behaviour.wire import CLIENT
from tests.leaks import holds

each = pytest.mark.parametrize(
    ("kind", "case"),
    [
        pytest.param(kind, case, id=f"{kind}: {case.group}: {case.name}")
        for kind in PROMISED
        for case in CASES
        if kind in case.kinds
    ],
)


each_proxy = pytest.mark.parametrize("kind", PROMISED)


@each
def test_what_is_answered_and_what_reaches_the_api(
    outcomes: Outcomes, kind: str, case: Case
) -> None:
    outcome = outcomes[kind][case]
    assert str(outcome) == case.expected(kind)
    assert len(outcome.received) == case.expected_requests(kind)
    client = case.connect.get("source", CLIENT)
    objections = [request.objections(client) for request in outcome.received]
    assert objections == [{}] * len(outcome.received)
    assert not outcome.leaks
    if outcome.received:  # every request asks for it
        assert outcome.answer.end == "closed"


@each
def test_an_answer_tells_nothing_of_server_and_api(
    outcomes: Outcomes, kind: str, case: Case
) -> None:
    data = outcomes[kind][case].answer.data
    assert not re.search(rb"(?i)(?:nginx|apache|openssl|debian)[/ (][\d(]", data[:10_000])
    for response in outcomes[kind][case].answer.responses:
        names = {name.lower() for name in response.headers}
        assert not names & {"set-cookie", "x-powered-by", "location", "via"}
        assert response.headers["Server"] in ("nginx", "Apache", None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}: {case.name}")
def test_both_serve_or_both_refuse(outcomes: Outcomes, case: Case) -> None:
    served = {kind: bool(outcomes[kind][case].received) for kind in OURS}
    assert len(set(served.values())) == 1 or case.why
    assert bool(case.apache) == bool(case.why), "a difference and its reason"


@each_proxy
def test_the_token_is_in_no_log(outcomes: Outcomes, kind: str) -> None:
    said = {outcome.said for outcome in outcomes[kind].values()}
    assert len(said) > 5, "the slow cases, the others, and those without a token"
    assert not [text for text in said if holds(text, CANARY)]


@pytest.mark.parametrize("kind", RENDERED)
def test_a_health_check_says_nothing_else_and_is_not_logged(outcomes: Outcomes, kind: str) -> None:
    healthy = {case: it for case, it in outcomes[kind].items() if case.expected(kind) == "204"}
    assert len(healthy) > 3
    for outcome in healthy.values():
        [response] = outcome.answer.responses
        assert not response.body
        assert set(response.headers) <= {"Server", "Date", "Connection"}
        assert b"/metrics 200 " in outcome.said
        assert not re.search(rb"/healthz 204\b", outcome.said)


@each_proxy
def test_documents_and_the_headers_of_a_scrape_arrive_whole(outcomes: Outcomes, kind: str) -> None:
    named = {case.name: outcome for case, outcome in outcomes[kind].items()}
    assert named["`/metrics`"].answer.responses[0].body == DOCUMENT
    assert len(named["50 MB"].answer.responses[0].body) == LARGE
    [scrape] = named["as Prometheus sends them"].received
    assert {name.lower(): value for name, value in PROMETHEUS.items()}.items() <= dict(
        scrape.headers
    ).items()
    if kind in RENDERED:
        assert named["`/metrics/proxy`"].answer.responses[0].body == OWN_DOCUMENT
