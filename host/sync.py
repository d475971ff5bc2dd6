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
from subprocess import DEVNULL, PIPE, check_output, run
from tempfile import TemporaryDirectory
from typing import Any

import boto3
from botocore.config import Config

PARTS = {"token": "token", "certificate": "bundle", "configuration": "bundle"}  # of secrets
REASONS = """fetch_token fetch_bundle token_invalid token_refused certificate_invalid
    configuration_invalid test reload write internal""".split()
SECONDS = 5  # for a probe
Files = dict[str, bytes]

settings: dict[str, Any] = {}
state: dict[str, Any] = {"folder": "none", "loaded": False, "versions": {}, "success": {}}
live: Files = {}  # what is in use, in the state's folder
answers: dict[tuple[str, bytes], tuple[int, float]] = {}  # to endpoint and token
failed: set[str] = set()


class Refusal(Exception):
    """One of REASONS, and words without a secret."""


@contextmanager
def problem(what: str, reason: str) -> Iterator[None]:
    """Log what fails, without the text of foreign exceptions: it may hold a secret."""
    try:
        yield
    except Exception as error:
        said = getattr(error, "response", {}).get("Error", {}).get("Code") or type(error).__name__
        if isinstance(error, OSError):
            reason, said = "write", error.strerror
        if isinstance(error, Refusal):
            reason, said = error.args
        failed.add(reason)
        print(f"{what}: {said}", file=sys.stderr)


def put(name: str, text: str) -> None:
    """Replace a file by rename."""
    Path("new").write_text(text)
    os.replace("new", name)


def save(**changes: Any) -> None:
    """Record what is in use."""
    put("state.json", json.dumps(state | changes))
    state.update(changes)


def upstreams(files: Files) -> dict[str, tuple[str, str | None]]:
    """URL and CA of each endpoint."""
    listed = json.loads(files.get("endpoints.json", "[]"))
    return {e["name"]: (e["upstream"], e.get("ca")) for e in listed}


def validate(part: str, text: str) -> Files:
    """The files of a part; raises anything if it is malformed."""
    if part == "token":
        token = json.loads(text)["token"] if text.startswith("{") else text
        # RFC 6750; nginx holds 4,096 bytes
        if len(token) > 3900 or not re.fullmatch("[A-Za-z0-9._~+/-]+=*", token):
            raise ValueError
        line = settings["token_line"].replace("{token}", token)
        return {"token": token.encode(), "token.conf": line.encode()}
    bundle = json.loads(text)
    if part == "certificate":
        return {f"{name}.pem": bundle[name].encode() for name in ("certificate", "key")}
    conf, listed = bundle["configuration"].encode(), bundle["endpoints"]
    files = {"proxy.conf": conf, "endpoints.json": json.dumps(listed).encode()}
    if not conf.strip() or not 0 < len(upstreams(files)) == len(listed):
        raise ValueError
    return files


def ask(url: str, ca: str | None, token: bytes) -> tuple[int, float]:
    """Status (or 0) and seconds of a GET, without redirects and proxy variables."""
    start, status = time.monotonic(), 0
    with suppress(Exception):
        scheme, _, host, *path = url.split("/", 3)
        connection = HTTPConnection(host, timeout=SECONDS)
        if scheme == "https:":
            tls = ssl.create_default_context(cadata=ca)
            tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # like the proxy
            connection = HTTPSConnection(host, timeout=SECONDS, context=tls)
        bearer = {"Authorization": b"Bearer " + token}
        connection.request("GET", "/" + "".join(path), headers=bearer)
        status = connection.getresponse().status
    return status, time.monotonic() - start


def probe(offers: dict[str, Files]) -> None:
    """Ask the API; drop a token that it refuses where it takes the one in use."""
    old, new = (files.get("token", b"") for files in (live, offers.get("token", live)))
    asked = upstreams(offers.get("configuration", {})) | upstreams(live)
    pool = ThreadPoolExecutor(2 * len(asked) + 1)
    asks = {(e, token): pool.submit(ask, *asked[e], token) for e in asked for token in (old, new)}
    wait(asks.values(), SECONDS)
    answers.update({key: a.result() if a.done() else (0, SECONDS) for key, a in asks.items()})
    status = {key: answer[0] for key, answer in answers.items()}
    refused = [e for e in asked if status[e, new] in (401, 403) and status[e, old] // 100 == 2]
    if old and refused:
        del offers["token"]
        said = ", ".join(f"{status[e, new]} on {e}" for e in refused)
        raise Refusal("token_refused", f"the API answers it {said}")


def certificate_end(folder: str) -> int:
    """The end of a certificate; refuses one without its key or not in date."""
    pem = f"{folder}/certificate.pem"
    with suppress(ssl.SSLError, ValueError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pem, f"{folder}/key.pem", "")
        dates = check_output(["openssl", "x509", "-noout", "-dates", "-in", pem], text=True)
        begin, end = map(ssl.cert_time_to_seconds, re.findall("=(.+)", dates))
        if begin <= time.time() < end:
            return end
    raise Refusal("certificate_invalid", "no PEM certificate in date with its key")


def command(name: str, seconds: int, folder: str, files: Files) -> None:
    """Run a command; refuse with the first line it says, without secrets."""
    with TemporaryDirectory() as scratch:
        places = {"scratch": scratch, "generation": Path(folder).absolute()}
        argv = ["timeout", str(seconds), *(word.format(**places) for word in settings[name])]
        done = run(argv, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)
    if done.returncode:
        said = done.stderr.split(b"\n")[0]
        for secret in [files.get("token"), *files["key.pem"].split()]:
            said = said.replace(secret or b"\n", b"***")
        raise Refusal(name, f"{name} ends with {done.returncode}: {said.decode()}")


def load(folder: str, files: Files, **facts: Any) -> None:
    """Switch, reload, record. Killed in here, the next run finds `loaded` false."""
    save(loaded=False)
    Path("next").unlink(missing_ok=True)
    os.symlink(folder, "next")
    os.replace("next", "current")
    command("reload", 60, folder, files)
    save(folder=folder, loaded=True, **facts)


def restore() -> None:
    """Load what is in use again, unless the proxy is known to have it."""
    if live and not state["loaded"]:
        with problem("last good state: not loaded", "reload"):
            load(state["folder"], live)


def adopt(news: dict[str, Files]) -> None:
    """Adopt all at once, else one by one: a bad part must not hold back a good one."""
    old, folder = state["folder"], f"gen-{time.time_ns()}"
    files = {"token.conf": settings["no_token_line"].encode()} | live
    for part in news.values():
        files |= part
    try:
        Path(folder).mkdir()
        for name, text in files.items():
            Path(folder, name).write_bytes(text)
        facts = {"not_after": certificate_end(folder)} if "certificate" in news else {}
        command("test", 20, folder, files)
        load(folder, files, **facts)
        live.update(files)
        for path in Path().glob("gen-*"):
            if path.name not in (old, folder):
                shutil.rmtree(path, ignore_errors=True)
    except (OSError, Refusal):
        shutil.rmtree(folder, ignore_errors=True)
        restore()
        if live and len(news) > 1:
            for name in news:
                adopt({name: news[name]})
        else:
            with problem(f"{', '.join(news)}: not adopted", "write"):
                raise


def sync() -> None:
    """Everything but the metrics."""
    config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
    client = boto3.client("secretsmanager", settings["region"], config=config)
    secrets, offers = {}, {}
    for secret in ("token", "bundle"):
        with problem(f"{secret}: not fetched", f"fetch_{secret}"):
            secrets[secret] = client.get_secret_value(SecretId=settings[f"{secret}_secret"])
    for part, secret in PARTS.items():
        if secret in secrets:
            with problem(f"{part}: not adopted: malformed", f"{part}_invalid"):
                offers[part] = validate(part, secrets[secret]["SecretString"])
    with problem("token: not adopted", "internal"):
        probe(offers)
    news = {part: files for part, files in offers.items() if not files.items() <= live.items()}
    if news and (live or {"certificate", "configuration"} <= news.keys()):
        adopt(news)
    restore()
    used = {part for part, files in offers.items() if files.items() <= live.items()}
    state["versions"] |= {part: secrets[PARTS[part]]["VersionId"] for part in used}
    stale = {secret for part, secret in PARTS.items() if part not in used}
    state["success"] |= dict.fromkeys(secrets.keys() - stale, time.time())
    save()


def metrics() -> str:
    """What this run found, in Prometheus' text format."""
    text = ""

    def show(name: str, meaning: str, samples: dict[str, Any]) -> None:
        nonlocal text
        text += f"# HELP metrics_proxy_{name} {meaning}\n# TYPE metrics_proxy_{name} gauge\n"
        for labels, value in samples.items():
            text += f"metrics_proxy_{name}{{{labels}}} {float(value)}\n"

    show("secret_sync_ok", "1 if every secret is in use", {"": not failed})
    why = {f'reason="{reason}"': reason in failed for reason in REASONS}
    show("sync_failed", "1 if the last sync failed so", why)
    success = {f'secret="{secret}"': when for secret, when in state["success"].items()}
    show("secret_last_success_timestamp_seconds", "Last sync with it in use", success)
    used = {f'secret="{PARTS[p]}",version="{v}"': 1 for p, v in state["versions"].items()}
    show("secret_info", "Versions in use", used)
    if live:
        sha256 = hashlib.sha256(live["proxy.conf"]).hexdigest()
        show("configuration_info", "Configuration in use", {f'sha256="{sha256}"': 1})
        show("certificate_not_after_timestamp_seconds", "Its end", {"": state["not_after"]})
    asked = [(e, answers.get((e, live.get("token", b"")), (0, 0))) for e in upstreams(live)]
    found = {f'endpoint="{e}"': answer for e, answer in asked}
    show("upstream_up", "1 if it answers 2xx", {e: a[0] // 100 == 2 for e, a in found.items()})
    show("upstream_http_status", "Its answer, or 0", {e: a[0] for e, a in found.items()})
    show("upstream_duration_seconds", "Until its headers", {e: a[1] for e, a in found.items()})
    return text


def main() -> None:
    """Sync, unless another sync is at it; write the metrics whatever happens."""
    os.umask(0o027)
    settings.update(json.loads(Path(sys.argv[1]).read_bytes()))
    os.chdir(os.environ["RUNTIME_DIRECTORY"])
    try:
        fcntl.flock(os.open("lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another sync is at work", file=sys.stderr)
        return
    with suppress(OSError, ValueError):
        state.update(json.loads(Path("state.json").read_bytes()))
    live.update({p.name: p.read_bytes() for p in Path().glob(f"{state['folder']}/*")})
    with problem("sync", "internal"):
        sync()
    put("proxy.prom", metrics())


if __name__ == "__main__":
    with problem("sync", "internal"):
        main()
    os._exit(bool(failed))  # not waiting for probes
