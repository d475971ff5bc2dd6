"""Whether what a stack declares is in force: `make verify STACK=…`.

Compares the stack's outputs with what its machines say of themselves in /metrics/proxy, and scrapes
what they have to serve: directly, or by what the Prometheus that $PROMETHEUS_URL names has seen. A
line says of each thing whether it is in force; the exit status is 1 while something is not. No
secret is asked for.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import sha256
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from socket import create_connection
from typing import Any, Final
from urllib.parse import unquote, urlencode, urlsplit

import yaml
from prometheus_client.parser import text_string_to_metric_families

from config.settings import PROXY_PATH
from monitoring.text import selector

CONNECTIONS: Final = 8
"""Fresh ones to each target, which all have to answer the same: behind one name of a load balancer
an old machine and a new one answer in turn. Of two, one is missed once in 256 times."""

WINDOW: Final = "5m"
"""What Prometheus has seen in it counts, for the same reason; two scrapes at one in two minutes."""

TIMEOUT: Final = 5
SCRAPE_TIMEOUT: Final = 10
PAUSE: Final = 5
"""Seconds: for an answer of the machine, and of the API (Prometheus' own); between two looks."""

PREFIX: Final = "metrics_proxy_"


class VerifyError(Exception):
    """Why nothing can be compared, in one line."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What the stack's outputs say is to be in force."""

    targets: dict[str, str]
    """Where the machines answer: `host:port` → how people know it."""
    server_name: str
    ca: str
    """What Prometheus is told to trust: two CAs while one takes the other's place."""
    api_job: str
    proxy_job: str
    endpoints: dict[str, str]
    """Name → path."""
    build: str
    configuration: str
    certificate_end: int
    token: str | None
    """The version's id; None where somebody else writes the token."""
    bundle: str
    sync_late: float

    @classmethod
    def read(cls, outputs: Mapping[str, Any]) -> Declared:
        try:
            api, proxy = yaml.safe_load(outputs["scrapeConfigList"])
            declared = outputs["declared"]
            targets = {
                it["address"]: f"{it['address']} ({it['zone']})" if "zone" in it else it["address"]
                for it in outputs["proxyTargets"]
            }
            if not targets:
                raise ValueError("proxyTargets is empty")
            return cls(
                targets=targets,
                server_name=proxy["tls_config"]["server_name"],
                ca=proxy["tls_config"]["ca"],
                api_job=api["job_name"],
                proxy_job=proxy["job_name"],
                endpoints={
                    it["labels"]["endpoint"]: it["labels"]["__metrics_path__"]
                    for it in api["static_configs"]
                },
                build=declared["build"],
                configuration=sha256(outputs["proxyConfiguration"].encode()).hexdigest(),
                certificate_end=int(datetime.fromisoformat(declared["certificateEnd"]).timestamp()),
                token=declared.get("tokenVersion"),
                bundle=declared["bundleVersion"],
                sync_late=declared["syncLate"],
            )
        except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            said = f"the stack's outputs are not this program's ({error!r}); run pulumi up"
            raise VerifyError(said) from None


# -- what a machine says


@dataclass(frozen=True)
class Answer:
    """The samples of /metrics/proxy: name without prefix, labels, value; `now` is its clock's."""

    samples: Sequence[tuple[str, Mapping[str, str], float]]
    now: float

    def values(self, metric: str, **labels: str) -> set[float]:
        wanted = labels.items()
        return {v for name, has, v in self.samples if name == metric and wanted <= has.items()}

    def labels(self, metric: str, label: str) -> set[str]:
        """A label's values, where the sample is 1."""
        return {
            has[label]
            for name, has, value in self.samples
            if name == metric and value == 1 and label in has
        }

    def versions(self, secret: str) -> set[str]:
        return {
            has.get("version", "")
            for name, has, value in self.samples
            if name == "secret_info" and value == 1 and has.get("secret") == secret
        }


@dataclass(frozen=True)
class Finding:
    """Whether something is in force, and what there is to say of it."""

    ok: bool
    text: str


def _machine(declared: Declared, answer: Answer) -> Finding:
    used = answer.labels("configuration_info", "build")
    return _compared("build", used, declared.build, "an older machine answers, wait for its end")


def _configuration(declared: Declared, answer: Answer) -> Finding:
    used = answer.labels("configuration_info", "sha256")
    return _compared("sha256", used, declared.configuration, _hint(answer))


def _certificate(declared: Declared, answer: Answer) -> Finding:
    end = declared.certificate_end
    used = {_date(it) for it in answer.values("certificate_not_after_timestamp_seconds")}
    if end <= answer.now:
        return Finding(False, f"has ended on {_date(end)}: pulumi up renews it")
    return _compared("until", used, _date(end), _hint(answer))


def _token(declared: Declared, answer: Answer) -> Finding:
    used = answer.versions("token")
    if declared.token is not None:
        return _compared("version", used, declared.token, _hint(answer))
    text = f"version {_listed(used)} is in use; the stack does not know which should be"
    return Finding(len(used) == 1, text)


def _bundle(declared: Declared, answer: Answer) -> Finding:
    used = answer.versions("bundle")
    return _compared("version", used, declared.bundle, _hint(answer))


def _sync(declared: Declared, answer: Answer) -> Finding:
    reasons = answer.labels("sync_failed", "reason")
    ages = {answer.now - it for it in answer.values("sync_timestamp_seconds")}
    if reasons:
        return Finding(False, f"fails: {_listed(reasons)}; docs/runbook.md says what to do")
    if not ages or not answer.values("sync_failed"):
        return Finding(False, "says nothing of itself")
    if max(map(abs, ages)) > declared.sync_late:
        return Finding(False, f"last ran {max(ages):.0f} s ago: it does not run, or a clock is off")
    if answer.values("secret_sync_ok") != {1}:
        return Finding(False, "not every secret is in use")
    return Finding(True, f"no failure; ran in the last {declared.sync_late:.0f} s")


def _api(declared: Declared, answer: Answer) -> Finding:
    problems = []
    for endpoint in declared.endpoints:
        statuses = answer.values("upstream_http_status", endpoint=endpoint)
        taken = answer.values("upstream_up", endpoint=endpoint) == {1}
        if len(statuses) != 1:
            problems.append(f"{endpoint} is not known")
        elif statuses == {0}:
            problems.append(f"{endpoint} does not answer")
        elif not all(200 <= status < 300 for status in statuses):
            problems.append(f"{endpoint} answers {max(statuses):.0f}")
        elif not taken:
            problems.append(f"{endpoint} answers with what Prometheus refuses")
    return Finding(not problems, "; ".join(problems or [f"answers {_listed(declared.endpoints)}"]))


CHECKS: Final[dict[str, Callable[[Declared, Answer], Finding]]] = {
    "machine": _machine,
    "configuration": _configuration,
    "certificate": _certificate,
    "token": _token,
    "bundle": _bundle,
    "sync": _sync,
    "API": _api,
}
"""What is compared, in the order of the lines."""


def _compared(what: str, used: set[str], wanted: str, hint: str) -> Finding:
    if used == {wanted}:
        return Finding(True, f"{what} {wanted}")
    return Finding(False, f"{what} {_listed(used)} is in use, not {wanted}: {hint}")


def _hint(answer: Answer) -> str:
    """What keeps the sync from bringing something."""
    reasons = answer.labels("sync_failed", "reason")
    return f"the sync says {_listed(reasons)}" if reasons else "the next sync brings it"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OSError, OverflowError, ValueError):
        return str(seconds)


# -- lines


@dataclass(frozen=True)
class Line:
    ok: bool
    what: str
    text: str


Answers = Mapping[str, Sequence[Answer | str]]
"""Target → its answers; a text says why there is none."""


def compare(declared: Declared, answers: Answers) -> list[Line]:
    """A line for each thing that is in force everywhere, and for each machine where one is not."""
    lines = []
    heard: dict[str, list[Answer]] = {}
    for target, shown in declared.targets.items():
        said = answers.get(target) or ["has not been asked"]
        heard[shown] = [it for it in said if isinstance(it, Answer)]
        lacks = dict.fromkeys(it for it in said if isinstance(it, str))
        lines += [Line(False, "machine", f"{shown}: {lack}") for lack in lacks]
    for what, check in CHECKS.items():
        right: dict[str, None] = {}
        wrong = []
        for shown, those in heard.items():
            for finding, count in Counter(check(declared, it) for it in those).items():
                if finding.ok:
                    right[finding.text] = None
                else:
                    some = f" ({count} of {len(those)} answers)" if count < len(those) else ""
                    wrong.append(Line(False, what, f"{shown}: {finding.text}{some}"))
        if len(right) > 1:
            wrong.append(Line(False, what, f"is not everywhere the same: {'; '.join(right)}"))
        lines += wrong or [Line(True, what, text) for text in right]
    return lines


def answers_of(declared: Declared, document: Any) -> tuple[Answers, list[Line]]:
    """What Prometheus' answer to `query` says of the machines, and of the API's scrapes."""
    machines: dict[str, list[tuple[str, Mapping[str, str], float]]] = {}
    up: dict[str, set[float]] = {}
    scrapes: dict[str, set[float]] = {}
    now = 0.0
    for one in document["data"]["result"]:
        labels, (now, text) = one["metric"], one["value"]
        name, instance, value = labels["__name__"], labels.get("instance", ""), float(text)
        if name != "up":
            machines.setdefault(instance, []).append((name.removeprefix(PREFIX), labels, value))
        elif labels["job"] == declared.proxy_job:
            up.setdefault(instance, set()).add(value)
        else:
            scrapes.setdefault(labels.get("endpoint", ""), set()).add(value)
    answers: dict[str, list[Answer | str]] = {}
    for target in declared.targets:
        if target not in up:
            said = f"Prometheus has not scraped it for {WINDOW}: give it the output scrapeConfig"
            answers[target] = [said]
        elif up[target] != {1}:
            answers[target] = ["Prometheus' scrapes of it fail: its page Status, Targets says why"]
        else:
            answers[target] = [Answer(machines.get(target, []), float(now))]
    problems = [
        f"{it} is not scraped: give Prometheus the output scrapeConfig"
        if it not in scrapes
        else f"scrapes of {it} fail: Prometheus' page Status, Targets says why"
        for it in declared.endpoints
        if scrapes.get(it) != {1}
    ]
    scraped = f"Prometheus scrapes {_listed(declared.endpoints)}"
    lines = [Line(False, "scrapes", it) for it in problems] or [Line(True, "scrapes", scraped)]
    return answers, lines


def query(declared: Declared) -> str:
    """All that the machines say of themselves, and whether the scrapes succeed."""
    own = selector("", f'__name__=~"up|{PREFIX}.+"', job=declared.proxy_job)
    api = selector("up", job=declared.api_job)
    return f"last_over_time({own}[{WINDOW}]) or last_over_time({api}[{WINDOW}])"


# -- asking


def directly(declared: Declared) -> list[Line]:
    with ThreadPoolExecutor(len(declared.targets)) as pool:
        asked = pool.map(lambda target: _ask(declared, target), declared.targets)
        answers = dict(zip(declared.targets, asked, strict=True))
        # one that says nothing of itself has its line
        reached = [it for it, said in answers.items() if isinstance(said[-1], Answer)]
        found = list(pool.map(lambda target: _scrape(declared, target), reached))
    problems = [Line(False, "scrapes", problem) for problems in found for problem in problems]
    if reached and not problems:
        problems = [Line(True, "scrapes", f"200 for {_listed(declared.endpoints)}")]
    return [*compare(declared, answers), *problems]


def _ask(declared: Declared, target: str) -> list[Answer | str]:
    """Answers on fresh connections, up to the first one that fails."""
    answers: list[Answer | str] = []
    for _ in range(CONNECTIONS):
        try:
            answers.append(_read(declared, target))
        except ssl.SSLCertVerificationError as error:
            return [*answers, f"its certificate is refused: {_why(error)}"]
        except (OSError, HTTPException) as error:
            hint = "is this address in prometheusCidrs? PROMETHEUS_URL asks Prometheus instead"
            return [*answers, f"does not answer ({_why(error)}): {hint}"]
        except ValueError:
            return [*answers, f"what {PROXY_PATH} answers are no metrics"]
    return answers


def _scrape(declared: Declared, target: str) -> list[str]:
    """What is wrong with the API's documents: the sync asks the API itself, past the server."""
    problems = []
    for name, path in declared.endpoints.items():
        try:
            _fetch(declared, target, path, SCRAPE_TIMEOUT)
        except (OSError, HTTPException) as error:
            shown = declared.targets[target]
            problems.append(f"{shown}: a scrape of {name} fails: {_why(error)}")
    return problems


def _fetch(declared: Declared, target: str, path: str, seconds: float) -> tuple[bytes, str]:
    """A document of a machine and its date, on a connection of its own."""
    host, _, port = target.rpartition(":")
    context = ssl.create_default_context(cadata=declared.ca)
    client = HTTPConnection(declared.server_name, int(port))
    with closing(client):
        plain = create_connection((host, int(port)), seconds)
        client.sock = context.wrap_socket(plain, server_hostname=declared.server_name)
        return _get(client, path)


def _read(declared: Declared, target: str) -> Answer:
    text, date = _fetch(declared, target, PROXY_PATH, TIMEOUT)
    samples = [
        (sample.name.removeprefix(PREFIX), sample.labels, sample.value)
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    ]
    return Answer(samples, parsedate_to_datetime(date).timestamp())


def _get(client: HTTPConnection, path: str, **headers: str) -> tuple[bytes, str]:
    """A document and its date; no redirect is followed."""
    client.request("GET", path, headers=headers)
    answer = client.getresponse()
    if answer.status != 200:
        raise OSError(0, f"it answers {answer.status}")
    return answer.read(), answer.headers["Date"] or ""


def through(declared: Declared, prometheus: str) -> list[Line]:
    """Through Prometheus' API below a URL, which may hold a user and a password."""
    url = urlsplit(prometheus)
    shown = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
    headers = {}
    if url.username:
        user = f"{unquote(url.username)}:{unquote(url.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    path = f"{url.path.rstrip('/')}/api/v1/query?{urlencode({'query': query(declared)})}"
    connect = HTTPSConnection if url.scheme == "https" else HTTPConnection
    try:
        with closing(connect(url.hostname or "", url.port, timeout=6 * TIMEOUT)) as client:
            text, _ = _get(client, path, **headers)
        answers, scrapes = answers_of(declared, json.loads(text))
    except (OSError, HTTPException) as error:
        return [Line(False, "Prometheus", f"{shown} does not answer: {_why(error)}")]
    except (AttributeError, KeyError, TypeError, ValueError):
        return [Line(False, "Prometheus", f"{shown} answers what is no result of a query")]
    return [*compare(declared, answers), *scrapes]


def _why(error: Exception) -> str:
    verify = getattr(error, "verify_message", None)
    return str(verify or getattr(error, "strerror", None) or error) or type(error).__name__


def outputs(stack: str | None) -> Any:
    """The stack's outputs, without its secrets."""
    command = ["pulumi", "stack", "output", "--json", *(["--stack", stack] if stack else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)
    except FileNotFoundError:
        raise VerifyError("pulumi is not on $PATH") from None
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.strip()]
        raise VerifyError(" ".join(said[-1:]) or f"pulumi ends with {error.returncode}") from None


def until(
    look: Callable[[], list[Line]], seconds: float, say: Callable[[str], object]
) -> list[Line]:
    """Look until all is in force, for so long at most; what the last look found."""
    began = time.monotonic()
    while True:
        lines = look()
        missing = _listed({line.what for line in lines if not line.ok})
        spent = time.monotonic() - began
        if all(line.ok for line in lines) or spent + PAUSE > seconds:
            return lines
        say(f"{spent:.0f} of {seconds:.0f} s, not yet in force: {missing}")
        time.sleep(PAUSE)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.verify",
        description="Say of each thing that a stack declares whether it is in force.",
        epilog="PROMETHEUS_URL: ask this Prometheus, not the machines; it may hold USER:PASSWORD@.",
    )
    parser.add_argument("--stack", help="the stack, if it is not the selected one")
    parser.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="wait for it, for so long at most"
    )
    options = parser.parse_args(arguments)
    prometheus = os.environ.get("PROMETHEUS_URL")
    try:
        if prometheus and urlsplit(prometheus).scheme not in ("http", "https"):
            raise VerifyError("PROMETHEUS_URL: is no http or https URL")
        declared = Declared.read(outputs(options.stack))
    except VerifyError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 1

    def look() -> list[Line]:
        return through(declared, prometheus) if prometheus else directly(declared)

    lines = until(look, options.wait, lambda said: print(said, file=sys.stderr, flush=True))
    for line in lines:
        state, color = ("in force", 32) if line.ok else ("not yet ", 31)
        if sys.stdout.isatty():
            state = f"\033[{color}m{state}\033[0m"
        text = "".join(c if c.isprintable() else "?" for c in line.text)
        print(f"{state}  {line.what:<15}{text}")
    return 0 if all(line.ok for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
