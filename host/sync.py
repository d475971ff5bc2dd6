"""Bring token, certificate and configuration from Secrets Manager to the proxy.

Fetch, validate, probe the API, write a generation, test it, switch `current` to it, reload.
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
from subprocess import DEVNULL, SubprocessError, run
from tempfile import TemporaryDirectory
from typing import Any

import boto3
from botocore.config import Config

SECRETS = {"token": ["token"], "bundle": ["certificate", "configuration"]}  # and their parts
REASONS = """fetch_token fetch_bundle token_invalid token_refused certificate_invalid
    configuration_invalid test reload write internal""".split()
SECONDS = 5  # for a probe
Files = dict[str, bytes]

# A process is one run.
settings: dict[str, Any] = {}
state: dict[str, Any] = {"generation": "", "loaded": False, "versions": {}, "success": {}}
live: Files = {}  # of the generation
answers: dict[tuple[str, str], tuple[int, float]] = {}  # of endpoint and token: status, seconds
failed: set[str] = set()


class Refusal(Exception):
    """One of REASONS, and words without a secret."""


@contextmanager
def problem(what: str, reason: str) -> Iterator[None]:
    """Log what fails in here, without the text of foreign exceptions: it may hold a secret."""
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
    Path(f"{name}.new").write_text(text)
    os.replace(f"{name}.new", name)


def save(**changes: Any) -> None:
    """Record what is in use."""
    put("state.json", json.dumps(state | changes))
    state.update(changes)


def endpoints(files: Files) -> dict[str, Any]:
    """The endpoints of a configuration, by name."""
    return {item["name"]: item for item in json.loads(files.get("endpoints.json", "[]"))}


def token(files: Files) -> str:
    """The token, empty if there is none."""
    return files.get("token", b"").decode()


def validate(part: str, text: str) -> Files:
    """The files of a part; raises anything if it is malformed."""
    if part == "token":
        value = json.loads(text).get("token", "") if text.lstrip().startswith("{") else text
        if len(value) > 3900 or not re.fullmatch("[A-Za-z0-9._~+/-]+=*", value):
            raise Refusal("token_invalid", "no b64token (RFC 6750) of up to 3,900 characters")
        line = settings["token_line"].replace("{token}", value)
        return {"token": value.encode(), "token.conf": line.encode()}
    bundle = json.loads(text)
    if part == "certificate":
        return {f"{name}.pem": bundle[name].encode() for name in ("certificate", "key")}
    files = {"proxy.conf": bundle["configuration"].encode()}
    files["endpoints.json"] = json.dumps(bundle["endpoints"]).encode()
    urls = [e["upstream"].startswith("http") for e in endpoints(files).values()]
    if not files["proxy.conf"].strip() or not 0 < sum(urls) == len(bundle["endpoints"]):
        raise ValueError
    return files


def ask(upstream: str, ca: str | None, bearer: str) -> tuple[int, float]:
    """Status and seconds of a GET; follows no redirect, reads no proxy variable."""
    start = time.monotonic()
    scheme, _, host, *path = upstream.split("/", 3)
    connection = HTTPConnection(host, timeout=SECONDS)
    if scheme == "https:":
        context = ssl.create_default_context(cadata=ca)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # like the proxy
        connection = HTTPSConnection(host, timeout=SECONDS, context=context)
    connection.request("GET", "/" + "".join(path), headers={"Authorization": f"Bearer {bearer}"})
    return connection.getresponse().status, time.monotonic() - start


def probe(offers: dict[str, Files]) -> None:
    """Ask the API; drop a token that it refuses where it takes the live one."""
    old, new = token(live), token(live | offers.get("token", {}))
    asked = endpoints(offers.get("configuration", {})) | endpoints(live)
    pool = ThreadPoolExecutor(2 * len(asked) + 1)
    asks = {
        (name, bearer): pool.submit(ask, item["upstream"], item.get("ca"), bearer)
        for name, item in asked.items()
        for bearer in (old, new)
    }
    done = wait(asks.values(), SECONDS).done
    for pair, answer in asks.items():
        lost = answer not in done or answer.exception()
        answers[pair] = (0, SECONDS) if lost else answer.result()
    refused = [
        f"{answers[name, new][0]} on {name}"
        for name in asked
        if old and answers[name, new][0] in (401, 403) and answers[name, old][0] // 100 == 2
    ]
    if refused:
        del offers["token"]
        raise Refusal("token_refused", f"the API answers it {', '.join(refused)}")


def certificate_end(folder: str) -> int:
    """The end of a certificate; refuses one without its key or not in date."""
    pem = f"{folder}/certificate.pem"
    with suppress(ssl.SSLError, ValueError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pem, f"{folder}/key.pem", "")
        argv = ["openssl", "x509", "-noout", "-dates", "-in", pem]
        text = run(argv, capture_output=True, text=True).stdout
        begin, end = map(ssl.cert_time_to_seconds, re.findall("=(.+)", text))
        if begin <= time.time() < end:
            return end
    raise Refusal("certificate_invalid", "no PEM certificate in date with its key")


def command(name: str, generation: str, files: Files, seconds: int) -> None:
    """Run a command; refuse with the first line it says, if that holds no secret."""
    with TemporaryDirectory() as scratch:
        places = {"scratch": scratch, "generation": Path(generation).absolute()}
        argv = [word.format(**places) for word in settings[name]]
        try:
            done = run(argv, stdin=DEVNULL, capture_output=True, text=True, timeout=seconds)
        except (OSError, SubprocessError) as error:
            raise Refusal(name, f"{argv[0]}: {type(error).__name__}") from None
    if done.returncode:
        said = done.stderr.partition("\n")[0]
        secrets = {token(files), *files["key.pem"].decode().split("\n")} - {""}
        hidden = any(secret in said for secret in secrets)
        raise Refusal(name, "(its message holds a secret)" if hidden else said)


def load(generation: str, files: Files, **facts: Any) -> None:
    """Switch, reload, record. Killed in here, the next run finds `loaded` false."""
    save(loaded=False)
    Path("current.new").unlink(missing_ok=True)
    os.symlink(generation, "current.new")
    os.replace("current.new", "current")
    command("reload", generation, files, 60)
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
        command("test", generation, files, 20)
        load(generation, files, **facts)
        live.update(files)
        for path in Path().glob("gen-*"):
            if path.name not in (old, generation):
                shutil.rmtree(path, ignore_errors=True)
    except (OSError, Refusal):
        shutil.rmtree(generation, ignore_errors=True)
        restore()
        if live and len(news) > 1:
            for name, part in news.items():
                adopt({name: part})
        else:
            with problem(f"{', '.join(news)}: not adopted", "write"):
                raise


def sync() -> None:
    """Everything but the metrics."""
    config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
    client = boto3.client("secretsmanager", settings["region"], config=config)
    offers, versions = {}, {}
    for secret, parts in SECRETS.items():
        with problem(f"{secret}: not fetched", f"fetch_{secret}"):
            answer = client.get_secret_value(SecretId=settings[f"{secret}_secret"])
            for part in parts:
                with problem(f"{part}: not adopted", f"{part}_invalid"):
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


def gauge(name: str, text: str, samples: dict[str, float]) -> str:
    """A metric as text; `samples` are values by labels."""
    name = f"metrics_proxy_{name}"
    lines = [f"{name}{labels and f'{{{labels}}}'} {value}\n" for labels, value in samples.items()]
    return f"# HELP {name} {text}\n# TYPE {name} gauge\n{''.join(lines)}"


def main() -> None:
    """Sync, unless another sync is at it; write the metrics whatever happens."""
    os.umask(0o027)
    settings.update(json.loads(Path(sys.argv[1]).read_bytes()))
    os.chdir(os.environ["RUNTIME_DIRECTORY"])
    lock = os.open("lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another sync is at work")
        return
    with suppress(OSError, ValueError):
        state.update(json.loads(Path("state.json").read_bytes()))
    live.update({p.name: p.read_bytes() for p in Path().glob(f"{state['generation']}/*")})
    with problem("sync", "internal"):
        sync()
    put("proxy.prom", metrics())


if __name__ == "__main__":
    with problem("sync", "internal"):
        main()
    os._exit(bool(failed))  # not waiting for probes
