"""Bring token, certificate and proxy configuration from Secrets Manager to the proxy.

Whatever fails, the last good state stays in use; the reason is said, a secret never.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import ssl
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from socket import getaddrinfo
from subprocess import DEVNULL, run
from tempfile import TemporaryDirectory
from typing import Any

import boto3
from botocore.config import Config
from prometheus_client import CollectorRegistry, Gauge, generate_latest

SECRETS = {"token": ["token"], "bundle": ["certificate", "configuration"]}  # and their parts
REASONS = [
    *("fetch_token", "fetch_bundle", "token_invalid", "token_refused", "certificate_invalid"),
    *("configuration_invalid", "test", "reload", "write", "internal"),
]
PROBE_SECONDS = 5
Files = dict[str, bytes]
Upstream = tuple[str, str | None]  # URL, CA

settings: dict[str, Any] = {}
state: dict[str, Any] = {"generation": "", "loaded": False, "versions": {}, "success": {}}
live: Files = {}  # what the generation in use holds
answers: dict[tuple[Upstream, str], tuple[int, float]] = {}  # by token: status, seconds
lacks: dict[str, str] = {}  # by URL: what there is none of
failed: set[str] = set()  # of REASONS


class RefusedError(Exception):
    """One of REASONS, and words without a secret."""


def words(error: BaseException) -> str:
    """What fails, without the text of a foreign exception: it may hold a secret."""
    return getattr(error, "strerror", None) or type(error).__name__


@contextmanager
def problem(what: str, reason: str) -> Iterator[None]:
    """Log what fails."""
    try:
        yield
    except Exception as error:
        # botocore's timeouts have a response too: None
        code = (getattr(error, "response", None) or {}).get("Error", {}).get("Code")
        said = code or words(error)
        # ... and are OSErrors
        if isinstance(error, OSError) and not reason.startswith("fetch"):
            reason = "write"
        if isinstance(error, RefusedError):
            reason, said = error.args
        failed.add(reason)
        print(f"{what}: {said}", file=sys.stderr)


def put(name: str, text: bytes) -> None:
    """Replace a file by rename."""
    new = Path(f"{name}.new")
    new.write_bytes(text)
    new.replace(name)


def save(**changes: Any) -> None:
    """Record what is in use."""
    put("state.json", json.dumps(state | changes).encode())
    state.update(changes)


def endpoints(files: Files) -> dict[str, Upstream]:
    """Upstreams by name."""
    items = json.loads(files.get("endpoints.json", "[]"))
    return {item["name"]: (item["upstream"], item.get("ca")) for item in items}


def token(files: Files) -> str:
    """The token in the include, or nothing."""
    before, _, after = settings["token_line"].partition("{token}")
    line = files.get("token.conf", b"").decode()
    return line[len(before) : -len(after)] if line.startswith(before) else ""


def validate(part: str, text: str) -> Files:
    """The files of a part; raises anything if it is malformed."""
    if part == "token":
        value = json.loads(text)["token"] if text.startswith("{") else text
        # RFC 6750; nginx holds 4,096 bytes
        if len(value) > 3900 or not re.fullmatch("[A-Za-z0-9._~+/-]+=*", value):
            raise RefusedError("token_invalid", "no b64token (RFC 6750) of up to 3,900 characters")
        line = settings["token_line"].replace("{token}", value)
        return {"token.conf": line.encode()}
    bundle = json.loads(text)
    if part == "certificate":
        return {f"{name}.pem": bundle[name].encode() for name in ("certificate", "key")}
    conf, listed = bundle["configuration"].encode(), bundle["endpoints"]
    files = {"proxy.conf": conf, "endpoints.json": json.dumps(listed).encode()}
    named = endpoints(files)
    if not conf.strip() or not 0 < len(named) == len(listed):
        raise ValueError
    return files | {f"ca-{name}.pem": ca.encode() for name, (_, ca) in named.items() if ca}


def ask(upstream: str, ca: str | None, bearer: str) -> tuple[int, float]:
    """Status and seconds of a GET, without redirects and proxy variables."""
    start = time.monotonic()
    scheme, _, host, *path = upstream.split("/", 3)
    connection = HTTPConnection(host, timeout=PROBE_SECONDS)
    lacks[upstream] = "address"
    getaddrinfo(connection.host, None)
    lacks[upstream] = "answer"
    if scheme == "https:":
        context = ssl.create_default_context(cadata=ca)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # like the proxy
        connection = HTTPSConnection(host, timeout=PROBE_SECONDS, context=context)
    connection.request("GET", "/" + "".join(path), headers={"Authorization": f"Bearer {bearer}"})
    return connection.getresponse().status, time.monotonic() - start


def probe(offers: dict[str, Files]) -> None:
    """Ask the API; drop a token that it refuses where it takes the live one."""
    old, new = token(live), token(offers.get("token", live))
    parts = offers.get("configuration", {}), live
    named = [pair for files in parts for pair in endpoints(files).items()]
    asked = {upstream for _, upstream in named}
    pool = ThreadPoolExecutor(2 * len(asked) + 1)
    asks = {(u, t): pool.submit(ask, *u, t) for u in asked for t in {old, new} - {""} or {""}}
    done = wait(asks.values(), PROBE_SECONDS).done
    for pair, answer in asks.items():
        lost = answer.exception() if answer in done else TimeoutError()
        answers[pair] = (0, PROBE_SECONDS) if lost else answer.result()
        if lost:
            url = pair[0][0]
            print(f"{url}: no {lacks.get(url)}: {words(lost)}", file=sys.stderr)
    status = {pair: answer[0] for pair, answer in answers.items()}
    good = {n: u for n, u in named if old and status[u, old] // 100 == 2}
    if refused := [n for n, u in good.items() if status[u, new] in (401, 403)]:
        del offers["token"]
        raise RefusedError("token_refused", f"the API refuses it on {', '.join(refused)}")


def certificate_end(folder: str) -> int:
    """The end of a certificate; refuses one without its key or not in date."""
    pem = f"{folder}/certificate.pem"
    with suppress(ssl.SSLError, ValueError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pem, f"{folder}/key.pem", "")
        dates = ["openssl", "x509", "-noout", "-dates", "-in", pem]
        text = run(dates, capture_output=True, text=True).stdout
        begin, end = map(ssl.cert_time_to_seconds, re.findall("=(.+)", text))
        if begin <= time.time() < end:
            return end
    raise RefusedError("certificate_invalid", "no PEM certificate in date with its key")


def command(name: str, seconds: int, generation: str, files: Files) -> None:
    """Run a command; refuse with what it says, without secrets."""
    with TemporaryDirectory() as scratch, Path(scratch, "said").open("w+") as said:
        places = {"scratch": scratch, "generation": Path(generation).absolute()}
        argv = [word.format(**places) for word in settings[name]]
        done = run(["timeout", f"{seconds}", *argv], stdin=DEVNULL, stdout=said, stderr=said)
        said.seek(0)
        line = " ".join(said.read(500).split())
    if done.returncode:
        for secret in [token(files), *files["key.pem"].decode().split()]:
            line = line.replace(secret or "\n", "***")
        raise RefusedError(name, f"{name} ends with {done.returncode}: {line}")


def load(generation: str, files: Files, **facts: Any) -> None:
    """Switch, reload, record. Killed in here, the next run finds `loaded` false."""
    save(loaded=False)
    new = Path("current.new")
    new.unlink(missing_ok=True)
    new.symlink_to(generation)
    new.replace("current")
    command("reload", 60, generation, files)
    save(generation=generation, loaded=True, **facts)


def restore() -> None:
    """Load what is in use again, unless the proxy is known to have it."""
    if not live:
        Path("current").unlink(missing_ok=True)
    elif not state["loaded"]:
        with problem("last good state: not loaded", "reload"):
            load(state["generation"], live)


def adopt(news: dict[str, Files]) -> None:
    """Adopt all at once, else one by one: a bad part must not hold back a good one."""
    old, generation = state["generation"], f"gen-{time.time_ns()}"
    files = {"token.conf": settings["no_token_line"].encode()} | live
    for part in news.values():
        files |= part
    try:
        Path(generation).mkdir()
        for name, text in files.items():
            Path(generation, name).write_bytes(text)
        facts = {"not_after": certificate_end(generation)} if "certificate" in news else {}
        command("test", 20, generation, files)
        load(generation, files, **facts)
    except (OSError, RefusedError):
        restore()
        shutil.rmtree(generation, ignore_errors=True)
        if live and len(news) > 1:
            for name, part in news.items():
                adopt({name: part})
            return
        with problem(f"{', '.join(news)}: not adopted", "write"):
            raise
    else:
        live.update(files)
        for path in Path().glob("gen-*"):
            if path.name not in (old, generation):
                shutil.rmtree(path, ignore_errors=True)


def sync() -> None:
    """Everything but the metrics."""
    config = Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 2})
    client = boto3.client("secretsmanager", settings["region"], config=config)
    offers, versions = {}, {}
    for secret, parts in SECRETS.items():
        with problem(f"{secret}: not fetched", f"fetch_{secret}"):
            answer = client.get_secret_value(SecretId=settings[f"{secret}_secret"])
            for part in parts:
                with problem(f"{part}: not adopted, malformed", f"{part}_invalid"):
                    offers[part] = validate(part, answer["SecretString"])
                    versions[part] = answer["VersionId"]
    with problem("token: not adopted", "internal"):
        probe(offers)
    news = {part: files for part, files in offers.items() if not files.items() <= live.items()}
    if news and (live or {"certificate", "configuration"} <= news.keys()):
        adopt(news)
    restore()
    used = {part for part, files in offers.items() if files.items() <= live.items()}
    state["versions"] |= {part: versions[part] for part in used}
    state["success"] |= {s: time.time() for s, parts in SECRETS.items() if used.issuperset(parts)}
    save()
    for name, (status, _) in upstreams().items():
        if status // 100 not in (0, 2):
            print(f"{name}: API answers {status}", file=sys.stderr)


def upstreams() -> dict[str, tuple[int, float]]:
    """What the API answers to the token in use: status and seconds by endpoint."""
    none = (0, PROBE_SECONDS)
    return {n: answers.get((u, token(live)), none) for n, u in endpoints(live).items()}


def metrics() -> bytes:
    """What this run found."""
    registry = CollectorRegistry()

    def show(name: str, text: str, samples: dict[Any, float], *labels: str) -> None:
        gauge = Gauge(f"metrics_proxy_{name}", text, labels, registry=registry)
        for values, value in samples.items():
            (gauge.labels(*values) if labels else gauge).set(value)

    up = {(n,): answer for n, answer in upstreams().items()}
    versions = {
        (secret, state["versions"][part]): 1.0
        for secret, parts in SECRETS.items()
        for part in parts
        if part in state["versions"]
    }
    success = {(secret,): when for secret, when in state["success"].items()}
    show("secret_sync_ok", "1 if every secret is in use", {(): not failed})
    last = "Last sync with the secret in use"
    show("secret_last_success_timestamp_seconds", last, success, "secret")
    show("secret_info", "Versions in use", versions, "secret", "version")
    if live:
        sha256 = hashlib.sha256(live["proxy.conf"]).hexdigest()
        show("configuration_info", "The configuration in use", {(sha256,): 1}, "sha256")
        end = {(): state["not_after"]}
        show("certificate_not_after_timestamp_seconds", "End of the certificate", end)
    two = {n: float(a[0] // 100 == 2) for n, a in up.items()}
    show("upstream_up", "1 if it answers 2xx with the token in use", two, "endpoint")
    status = {n: float(a[0]) for n, a in up.items()}
    show("upstream_http_status", "What it answers, 0 for nothing", status, "endpoint")
    seconds = {n: a[1] for n, a in up.items()}
    show("upstream_duration_seconds", "To its headers", seconds, "endpoint")
    reasons = {(reason,): float(reason in failed) for reason in REASONS}
    show("sync_failed", "1 if the last sync failed for this reason", reasons, "reason")
    return generate_latest(registry)


def main() -> None:
    """Sync, unless another sync is at it; write the metrics whatever happens."""
    os.umask(0o027)
    settings.update(json.loads(Path(sys.argv[1]).read_bytes()))
    os.chdir(os.environ["RUNTIME_DIRECTORY"])
    lock = os.open("lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another sync is at work", file=sys.stderr)
        return
    with suppress(OSError, TypeError, ValueError):
        state.update(json.loads(Path("state.json").read_bytes()))
    live.update({p.name: p.read_bytes() for p in Path(state["generation"] or "gen").glob("*")})
    with problem("sync", "internal"):
        sync()
    put("proxy.prom", metrics())


if __name__ == "__main__":
    with problem("sync", "internal"):
        main()
    os._exit(bool(failed))  # not waiting for probes
