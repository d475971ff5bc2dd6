"""A case: what a proxy is asked, what it has to answer, and what came of it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from tests.behaviour.proxies import BY_HAND, KINDS, Proxy, StartError
from tests.behaviour.upstream import CANARY, Received
from tests.behaviour.wire import Answer, exchange
from tests.leaks import holds

Send = bytes | Callable[[socket.socket], None]


@dataclass(frozen=True, eq=False)
class Case:
    """One row. `nginx` and `apache` are what ours answer, in the words of `Answer`."""

    group: str
    name: str
    send: Send
    nginx: str
    apache: str = ""
    """The same as `nginx`, unless `why` says the reason."""
    why: str = ""
    reaches: int | None = None
    """How many requests reach the API; by default, as many as there are answers with a 200."""
    connect: dict[str, Any] = field(default_factory=dict)
    """Of `exchange`."""
    start: dict[str, Any] = field(default_factory=dict)
    """Of `Proxy`."""
    slow: bool = False
    """Whether it takes seconds."""
    kinds: tuple[str, ...] = KINDS
    by_hand: str = ""
    """What those by hand answer, if it is something else: they have no document of their own."""

    def expected(self, kind: str) -> str:
        if kind in BY_HAND and self.by_hand:
            return self.by_hand
        return self.apache or self.nginx if "apache" in kind else self.nginx

    def expected_requests(self, kind: str) -> int:
        return self.expected(kind).count("200") if self.reaches is None else self.reaches


@dataclass(frozen=True)
class Outcome:
    """What came of a case at one proxy."""

    answer: Answer
    received: list[Received]
    said: bytes = b""
    """All that the server logged, of this case and those around it."""

    @property
    def leaks(self) -> bool:
        return holds(self.answer.data, CANARY)

    def __str__(self) -> str:
        """The answer, and what reached the API and should not have."""
        text = str(self.answer) + ", **with the token**" * self.leaks
        passed = [shown for request in self.received if (shown := _shown(request))]
        return " → ".join([text, *dict.fromkeys(passed)])


def _shown(request: Received) -> str:
    """What is wrong with a request, or nothing."""
    wrong = request.objections().keys() - {"own headers"}
    if request.has_token and not wrong:
        return ""
    parts = [f"`{request.line}`", *request.objections().get("headers", "").split(", ")[:4]]
    parts += ["a body"] * ("body" in wrong)
    return " + ".join(filter(None, parts)) + (" without the token" * (not request.has_token))


def _run(kind: str, cases: Sequence[Case]) -> dict[Case, Outcome]:
    """Cases of the same `start`, one after the other."""
    try:
        proxy = Proxy(kind, **cases[0].start)
    except StartError:
        return {case: Outcome(Answer(b"", "does not start"), []) for case in cases}
    found = {}
    try:
        for case in cases:
            before = proxy.api.mark()
            answer = exchange(proxy.port, case.send, **case.connect)
            found[case] = Outcome(answer, proxy.api.received(before))
        return {case: replace(outcome, said=proxy.said) for case, outcome in found.items()}
    finally:
        proxy.stop()


def run(cases: Sequence[Case]) -> dict[str, dict[Case, Outcome]]:
    """Every case at every kind of proxy. Those that take long have a proxy of their own."""
    batches: dict[str, list[Case]] = {}
    for number, case in enumerate(cases):
        batches.setdefault(f"{case.start} {number if case.slow else ''}", []).append(case)
    jobs = [
        (kind, here)
        for batch in batches.values()
        for kind in KINDS
        if (here := [case for case in batch if kind in case.kinds])
    ]
    found: dict[str, dict[Case, Outcome]] = {kind: {} for kind in KINDS}
    with ThreadPoolExecutor(12) as pool:
        for (kind, _), outcomes in zip(jobs, pool.map(lambda job: _run(*job), jobs), strict=True):
            found[kind] |= outcomes
    return found
