"""Bring token, certificate and proxy configuration from Secrets Manager to the proxy.

The steps are in `Sync.run` and `Sync.adopt`. Whatever fails, the last generation that was seen to
serve stays or comes back; the reason is said, a secret never.

$RUNTIME_DIRECTORY: generations (gen-*), `current` that the server reads, state.json, its own
document (proxy.prom), lock. Empty after a boot.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, parse_headers
from pathlib import Path
from subprocess import DEVNULL, Popen, run
from tempfile import TemporaryDirectory
from typing import IO, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config as Limits
from prometheus_client import CollectorRegistry, Gauge, generate_latest

SECRETS = {"token": ["token"], "bundle": ["certificate", "configuration"]}  # and their parts
REASONS = [
    *("fetch_token", "fetch_bundle", "token_invalid", "token_refused", "certificate_invalid"),
    *("configuration_invalid", "probe", "test", "trial", "reload", "check", "write", "busy"),
    "internal",
]
OWN_PATH = "/metrics/proxy"
PROBE_SECONDS = 9  # longer than the servers wait for the API
SERVE_SECONDS = 10  # to the first answer
FORGET_SECONDS = 3600
TRIAL_PORTS = range(61_000, 65_536)
ACCEPT = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
SCRAPED = ("text/plain", "application/openmetrics-text", "application/vnd.google.protobuf")
CONTENT_TYPE = r'([\w.+-]+/[\w.+-]+)(?:\s*;\s*[\w-]+=(?:"[^"]*"|[^\s;"]+))*\s*;?\s*'

LOCAL = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to our own server: certificates are compared
LOCAL.check_hostname = False
LOCAL.verify_mode = ssl.CERT_NONE

Files = dict[str, bytes]


class RefusedError(Exception):
    """One of REASONS, and words for people."""


def words(error: BaseException) -> str:
    """What fails, without the text of a foreign exception: it may hold a secret."""
    # botocore's timeouts have a response too: None
    code = (getattr(error, "response", None) or {}).get("Error", {}).get("Code")
    return str(code or getattr(error, "strerror", None) or type(error).__name__)


class Report:
    """What this run has to say: reasons for the metrics, lines for the console."""

    def __init__(self) -> None:
        self.reasons: set[str] = set()
        self._secrets: set[str] = set()

    def hide(self, secrets: Iterable[str]) -> None:
        self._secrets |= {*secrets} - {""}

    def masked(self, text: str) -> str:
        """A text in one line, without secrets and any eight characters of one."""
        pieces = {s[i : i + 8] for s in self._secrets for i in range(max(1, len(s) - 7))}
        for size in {len(piece) for piece in pieces}:
            found = {i for i in range(len(text)) if text[i : i + size] in pieces}
            hidden = {i + j for i in found for j in range(size)}
            text = "".join("\0" if i in hidden else c for i, c in enumerate(text))
        text = " ".join(re.sub("\0+", "***", text).split())
        return re.sub("[^ -~]+", "?", text)

    def say(self, line: str) -> None:
        print(self.masked(line), file=sys.stderr, flush=True)

    def fail(self, what: str, reason: str, said: str) -> None:
        self.reasons.add(reason)
        self.say(f"{what}: {said}")

    @contextmanager
    def part(self, what: str, reason: str) -> Iterator[None]:
        """What fails in here ends here, with a reason."""
        try:
            yield
        except RefusedError as error:
            self.fail(what, *error.args)
        except Exception as error:
            # botocore's errors are OSErrors too
            disk = isinstance(error, OSError) and not reason.startswith("fetch")
            self.fail(what, "write" if disk else reason, words(error))


@dataclass(frozen=True)
class Config:
    """/etc/metrics-proxy/*.json."""

    region: str
    bundle_secret: str
    interval: float
    port: int
    build: str
    test: list[str]
    trial: list[str]
    reload: list[str]
    token_line: str
    no_token_line: str
    generation_line: str


# -- what the secrets hold; who writes them may be wrong


@dataclass(frozen=True)
class Endpoint:
    """A document of the API. A known protocol makes up for a Content-Type that is none."""

    name: str
    path: str
    upstream: str
    ca: str | None = None
    fallback_scrape_protocol: str | None = None

    def __post_init__(self) -> None:
        for name, pattern in {
            "name": "[a-z][a-z0-9_-]{0,39}",
            "path": "/[!-~]*",
            "upstream": r"https?://[\w.-]+(?::\d{1,5})?(?:/[!-~]*)?",
            "ca": r"[\x00-\x7f]+",
            "fallback_scrape_protocol": "[!-~]+",
        }.items():
            value = getattr(self, name)
            if value is None and name in ("ca", "fallback_scrape_protocol"):
                continue
            if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
                raise RefusedError("configuration_invalid", f"an endpoint's {name} is not usable")
        if self.ca:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=self.ca)
            except (ssl.SSLError, ValueError):
                said = f"the ca of endpoint {self.name} is no PEM certificate"
                raise RefusedError("configuration_invalid", said) from None


def endpoints(listed: Any) -> list[Endpoint]:
    known = Endpoint.__dataclass_fields__  # what a newer program says besides is its own
    try:
        found = [Endpoint(**{k: v for k, v in item.items() if k in known}) for item in listed]
    except (AttributeError, TypeError):
        raise RefusedError("configuration_invalid", "endpoints are no list of endpoints") from None
    if not found or len({endpoint.name for endpoint in found}) < len(found):
        raise RefusedError("configuration_invalid", "no endpoint, or one name twice")
    return found


def parsed(text: str) -> dict[str, Any]:
    """A JSON object; an empty one if it is none."""
    with suppress(ValueError, RecursionError):
        if isinstance(found := json.loads(text), dict):
            return found
    return {}


def configuration(bundle: dict[str, Any]) -> Files:
    conf = bundle.get("configuration")
    if not isinstance(conf, str) or not conf.strip() or re.search("[\0\ud800-\udfff]", conf):
        raise RefusedError("configuration_invalid", "the configuration is no text, or empty")
    listed = endpoints(bundle.get("endpoints"))
    return {
        "proxy.conf": conf.encode(),
        "endpoints.json": json.dumps([asdict(endpoint) for endpoint in listed]).encode(),
        **{f"ca-{endpoint.name}.pem": endpoint.ca.encode() for endpoint in listed if endpoint.ca},
    }


def certificate(bundle: dict[str, Any], live: Files | None) -> Files:
    """In date, with its key; what is in use is not judged again."""
    files = {f"{name}.pem": str(bundle.get(name)).encode() for name in ("certificate", "key")}
    begin, end = validity(files)
    if files != live and not begin <= time.time() < end:
        raise RefusedError("certificate_invalid", "no PEM certificate in date with its key")
    return files


def validity(files: Files) -> tuple[int, int]:
    """Begin and end of a certificate; zeros if it is none with its key."""
    with TemporaryDirectory() as scratch, suppress(ssl.SSLError, ValueError):
        for name in ("certificate.pem", "key.pem"):
            Path(scratch, name).write_bytes(files[name])
        pem = f"{scratch}/certificate.pem"
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pem, f"{scratch}/key.pem", "")
        dates = ["openssl", "x509", "-noout", "-dates", "-in", pem]
        said = run(dates, capture_output=True, text=True, errors="replace").stdout
        begin, end = map(ssl.cert_time_to_seconds, re.findall("=(.+)", said))
        return begin, end
    return 0, 0


def place(found: Any) -> dict[str, str]:
    """Where the token is."""
    known = isinstance(found, dict) and {"secret"} <= found.keys() <= {"secret", "key"}
    if known and all(isinstance(value, str) and value for value in found.values()):
        return dict(found)
    raise RefusedError("configuration_invalid", "the bundle does not name its secret")


def bearer(text: str, key: str | None) -> str:
    """The token: a secret's text, or a value in its JSON."""
    text = text.strip()
    if key or text.startswith("{"):
        key, found = key or "token", parsed(text)
        if key not in found:
            raise RefusedError("token_invalid", f'no key "{key}" in the secret\'s JSON')
        if not isinstance(found[key], str):
            raise RefusedError("token_invalid", f'"{key}" in the secret\'s JSON is no text')
        text = found[key].strip()
    # RFC 6750; nginx holds 4,096 bytes
    if len(text) > 3900 or not re.fullmatch("[A-Za-z0-9._~+/-]+=*", text):
        raise RefusedError("token_invalid", "no b64token (RFC 6750) of up to 3,900 characters")
    return text


# -- what is in use


@dataclass(frozen=True)
class Generation:
    """All that a server reads, in a folder of its own: files by part."""

    name: str
    parts: dict[str, Files]

    @classmethod
    def read(cls, folder: Path) -> Generation | None:
        """None if it is not there, or not whole."""
        parts: dict[str, Files] = {part: {} for parts in SECRETS.values() for part in parts}
        of = {"token.conf": "token", "certificate.pem": "certificate", "key.pem": "certificate"}
        try:
            for file in folder.iterdir():
                parts[of.get(file.name, "configuration")][file.name] = file.read_bytes()
            del parts["configuration"]["generation.conf"]
            found = cls(folder.name, parts)
            _ = parts["configuration"]["proxy.conf"], parts["token"]["token.conf"]
            return found if found.endpoints and found.shown else None
        except (OSError, ValueError, KeyError, RefusedError):
            return None

    @property
    def endpoints(self) -> list[Endpoint]:
        return endpoints(json.loads(self.parts["configuration"]["endpoints.json"]))

    @property
    def shown(self) -> bytes:
        """The certificate that the server shows, as DER."""
        pem = self.parts["certificate"]["certificate.pem"].decode()
        found = re.search("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", pem, re.S)
        return ssl.PEM_cert_to_DER_cert(found[0]) if found else b""

    def token(self, config: Config) -> str:
        """The token in the include, or nothing."""
        before, _, after = config.token_line.partition("{token}")
        line = self.parts.get("token", {}).get("token.conf", b"").decode()
        return line[len(before) : -len(after)] if line.startswith(before) else ""


@dataclass
class State:
    """state.json: what outlives a run."""

    generation: str = ""  # seen to serve, to go back to
    versions: dict[str, str] = field(default_factory=dict)  # by part
    success: dict[str, float] = field(default_factory=dict)  # by secret: when it was in use
    place: dict[str, str] = field(default_factory=dict)  # of the token: `secret` and `key`
    failures: dict[str, tuple[str, str, float]] = field(default_factory=dict)  # by digest

    @classmethod
    def read(cls, file: Path) -> State:
        """A blank one if the file is not there, or of another shape."""
        try:
            state = cls(**json.loads(file.read_bytes()))
            texts = [state.generation, *(state.versions | state.place).values()]
            numbers = list(state.success.values())
            for reason, said, when in state.failures.values():
                texts += reason, said
                numbers.append(when)
            if {*map(type, texts)} != {str} or {*map(type, numbers)} - {float}:
                return cls()
        except (OSError, AttributeError, TypeError, ValueError):
            return cls()
        return state


class Store:
    """The files of $RUNTIME_DIRECTORY. A folder in a file's place gives way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def linked(self) -> str:
        """The generation that the server reads when it starts or reloads."""
        link = self.folder / "current"
        return link.readlink().name if link.is_symlink() else ""

    def read(self, name: str) -> Generation | None:
        return Generation.read(self.folder / name) if name.startswith("gen-") else None

    def path(self, name: str) -> Path:
        path = self.folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        return path

    def replace(self, name: str, make: Callable[[Path], object]) -> None:
        """Make a file or link anew, by rename."""
        new = self.path(f"{name}.new")
        new.unlink(missing_ok=True)
        make(new)
        new.replace(self.path(name))

    def write(self, generation: Generation, line: str) -> Path:
        """A new folder; by `line` the server says its name."""
        folder = self.folder / generation.name
        folder.mkdir()
        for files in generation.parts.values():
            for name, text in files.items():
                (folder / name).write_bytes(text)
        (folder / "generation.conf").write_text(line.replace("{generation}", generation.name))
        return folder

    def switch(self, generation: Generation) -> None:
        self.replace("current", lambda new: new.symlink_to(generation.name))


# -- questions


@dataclass(frozen=True)
class Answer:
    """The head of the API's answer; `lack` says why there is none."""

    status: int = 0
    content_type: str = ""
    seconds: float = PROBE_SECONDS
    lack: str = ""

    @property
    def good(self) -> bool:
        return self.status // 100 == 2

    @property
    def media_type(self) -> str:
        """Nothing if it cannot be read."""
        found = re.fullmatch(CONTENT_TYPE, self.content_type)
        return found[1].lower() if found else ""

    def scraped(self, endpoint: Endpoint) -> bool:
        """Whether Prometheus 3 takes it."""
        return self.good and (self.media_type in SCRAPED or bool(endpoint.fallback_scrape_protocol))


class Probe:
    """What the API answers to a token."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str | None, str], Answer] = {}

    def answer(self, endpoint: Endpoint, token: str) -> Answer:
        return self._answers.get((endpoint.upstream, endpoint.ca, token), Answer())

    def ask(self, pairs: Iterable[tuple[Endpoint, str]]) -> None:
        """Ask in parallel, whatever was answered before."""
        lacks = {(e.upstream, e.ca, token): "address" for e, token in pairs}
        pool = ThreadPoolExecutor(len(lacks) + 1)
        asks = {key: pool.submit(self._ask, key, lacks) for key in lacks}
        done = wait(asks.values(), PROBE_SECONDS).done
        for key, ask in asks.items():
            lost = ask.exception() if ask in done else TimeoutError()
            lack = Answer(lack=f"no {lacks[key]}: {words(lost)}") if lost else None
            self._answers[key] = lack or ask.result()

    @staticmethod
    def _ask(key: tuple[str, str | None, str], lacks: dict[Any, str]) -> Answer:
        """A GET as Prometheus sends it; no redirect, no proxy."""
        upstream, ca, token = key
        url, began = urlsplit(upstream), time.monotonic()
        address = url.hostname or "", url.port or {"http": 80, "https": 443}[url.scheme]
        socket.getaddrinfo(*address)
        lacks[key] = "answer"
        with closing(socket.create_connection(address, PROBE_SECONDS)) as stream:
            if url.scheme == "https":
                context = ssl.create_default_context(cadata=ca)
                context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # like the proxy
                stream = context.wrap_socket(stream, server_hostname=address[0])
            head = f"GET {url.path or '/'} HTTP/1.1\r\nHost: {url.netloc}\r\nAccept: {ACCEPT}\r\n"
            head += f"Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
            with stream, stream.makefile("rb") as answer:
                stream.sendall(head.encode())
                status = 100
                while status // 100 == 1 and status != 101:  # the answer is still to come
                    found = re.match(rb"HTTP/1\.\d (\d{3})\b", answer.readline(8192))
                    if not found:
                        raise OSError(0, "not HTTP")
                    status, headers = int(found[1]), parse_headers(answer)
        return Answer(status, headers["Content-Type"] or "", time.monotonic() - began)


def served(port: int, generation: Generation, path: str = OWN_PATH) -> int:
    """A document's status, if the server on this machine serves the generation.

    One connection for who it is and the document: one worker. Else OSError or HTTPException;
    ConnectionRefusedError if not yet: it starts, or reloads, when both generations answer.
    """
    server = HTTPConnection("127.0.0.1", port)
    server.auto_open = 0  # or a closed connection would be opened again, without TLS

    def ask(this: str) -> HTTPResponse:
        last = {"Connection": "close"} if this == path else {}  # or nginx tells the console
        server.request("GET", this, headers={"Accept": ACCEPT, **last})
        return server.getresponse()

    with (
        closing(socket.create_connection(("127.0.0.1", port), SERVE_SECONDS)) as plain,
        LOCAL.wrap_socket(plain) as server.sock,
    ):
        if server.sock.getpeercert(binary_form=True) != generation.shown:
            raise ConnectionRefusedError(0, "another certificate")
        own = ask(OWN_PATH)
        own.read()
        if own.status != 200:
            raise OSError(0, f"{OWN_PATH} answers {own.status}")
        if own.headers["Metrics-Proxy-Generation"] != generation.name:
            raise ConnectionRefusedError(0, "another generation")
        return own.status if path == OWN_PATH else ask(path).status


def lack(port: int, generation: Generation) -> str:
    """Why a server on this machine does not serve a generation; nothing if it does."""
    try:
        served(port, generation)
    except (OSError, HTTPException) as error:
        return words(error)
    return ""


# -- one run


class Sync:
    def __init__(self, config: Config, store: Store, report: Report) -> None:
        self.config, self.store, self.report = config, store, report
        self.state = State.read(store.folder / "state.json")
        self.live = store.read(self.state.generation)
        self.offers: dict[str, Files] = {}
        self.versions: dict[str, str] = {}
        self.probe = Probe()
        self.excused = set[Endpoint]()
        self._hide(self.known)

    @property
    def known(self) -> dict[str, Files]:
        """The parts in use."""
        return self.live.parts if self.live else {}

    def run(self) -> None:
        """The steps; no failure of one keeps the next from being made."""
        if not (self.store.folder / "proxy.prom").is_file():
            self.write_metrics()  # a trial asks for them
        for step in (
            *(self.tidy, self.fetch, self.ask_api, self.resume, self.adopt_news, self.restore),
            *(self.tidy, self.remember, self.say_answers),
        ):
            with self.report.part(step.__name__, "internal"):
                step()
        self.write_metrics()

    def tidy(self) -> None:
        """Remove generations that are not in use, those of killed runs too."""
        for path in self.store.folder.glob("gen-*"):
            if path.name not in (self.live and self.live.name, self.store.linked):
                shutil.rmtree(path, ignore_errors=True)

    # -- fetch

    def fetch(self) -> None:
        """Offers: what the secrets hold now, each part valid by itself."""
        limits = Limits(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 2})
        client = boto3.client("secretsmanager", self.config.region, config=limits)
        with self.report.part("bundle: not fetched", "fetch_bundle"):
            answer = client.get_secret_value(SecretId=self.config.bundle_secret)
            bundle = parsed(answer.get("SecretString", ""))
            with self._offering("configuration", answer) as offer:
                offer |= configuration(bundle)
            with self._offering("certificate", answer) as offer:
                offer |= certificate(bundle, self.known.get("certificate"))
            with self.report.part("token: not found", "configuration_invalid"):
                self.state.place = place(bundle.get("token"))
        with self.report.part("token: not fetched", "fetch_token"):
            if not self.state.place:
                raise RefusedError("fetch_token", "no bundle has said where it is")
            answer = client.get_secret_value(SecretId=self.state.place["secret"])
            with self._offering("token", answer) as offer:
                text = answer.get("SecretString") or answer["SecretBinary"].decode(errors="replace")
                token = bearer(text, self.state.place.get("key"))
                offer["token.conf"] = self.config.token_line.replace("{token}", token).encode()

    @contextmanager
    def _offering(self, part: str, answer: dict[str, Any]) -> Iterator[Files]:
        files: Files = {}
        with self.report.part(f"{part}: not adopted", f"{part}_invalid"):
            yield files
            self._hide({part: files})
            self.offers[part], self.versions[part] = files, answer["VersionId"]

    def _hide(self, parts: dict[str, Files]) -> None:
        self.report.hide([Generation("", parts).token(self.config)])
        key = parts.get("certificate", {}).get("key.pem", b"").decode().splitlines()
        self.report.hide(line for line in key if not line.startswith("-----"))

    # -- ask the API

    def ask_api(self) -> None:
        """Ask it with the live and the offered token; drop an offer that would be worse."""
        try:
            offered, used = Generation("", self.offers), set[Endpoint]()
            olds = set[str]()
            # what a killed run left linked may be what serves
            for other in (self.live, self.store.read(self.store.linked)):
                if other:
                    olds.add(other.token(self.config))
                    used.update(other.endpoints)
            new = offered.token(self.config)
            tokens = (olds | {new}) - {""} or {""}
            listed = used.union(offered.endpoints if "configuration" in self.offers else ())
            self.probe.ask((endpoint, token) for endpoint in listed for token in tokens)
            olds -= {"", new}
            worse = {e.name for e in used for old in olds if new and self._worse(e, old, new)}
            if worse:
                said = f"the API takes the live one, and not this, on {', '.join(sorted(worse))}"
                raise RefusedError("token_refused", said)
        except Exception as error:
            self.offers.pop("token", None)  # what could not be asked is not known to be good
            with self.report.part("token: not adopted", "probe"):
                raise error

    def _worse(self, endpoint: Endpoint, old: str, new: str) -> bool:
        was, would = self.probe.answer(endpoint, old), self.probe.answer(endpoint, new)
        return was.good and not (would.good and would.media_type == was.media_type)

    def say_answers(self) -> None:
        for endpoint, answer in self.upstreams():
            if answer.lack:
                self.report.say(f"{endpoint.upstream}: {answer.lack}")
            elif not answer.scraped(endpoint):
                kind = f" of type {answer.content_type[:80]!r}, which Prometheus refuses"
                said = f"API answers {answer.status}{kind if answer.good else ''}"
                self.report.say(f"{endpoint.name}: {said}")

    def upstreams(self) -> list[tuple[Endpoint, Answer]]:
        """What the API answers to the token in use."""
        if self.live is None:
            return []
        token = self.live.token(self.config)
        return [(endpoint, self.probe.answer(endpoint, token)) for endpoint in self.live.endpoints]

    # -- adopt

    def adopt_news(self) -> None:
        """Adopt what is new and, if there is something to lose, did not fail within the hour."""
        news = {p: files for p, files in self.offers.items() if self.known.get(p) != files}
        now, failures = time.time(), self.state.failures
        for digest, (_, _, when) in list(failures.items()):
            if not 0 <= now - when < FORGET_SECONDS:
                del failures[digest]
        new = Generation("", news).token(self.config)
        better = any(self.probe.answer(e, new).good and not a.good for e, a in self.upstreams())
        for part, files in list(news.items()):
            keeps = self.live and not (part == "token" and better)
            if keeps and (failure := failures.get(self._digest({part: files}))):
                reason, said, when = failure
                ago = f"{(now - when) / 60:.0f} min ago"
                said += f" (tried {ago}; again after an hour, or when changed)"
                self.report.fail(f"{part}: not adopted", reason, said)
                del news[part]
        if news and (self.live or {"certificate", "configuration"} <= news.keys()):
            self.adopt(news)

    def adopt(self, news: dict[str, Files]) -> None:
        """Adopt all at once, else one by one: a bad part must not hold back a good one."""
        closed = {"token": {"token.conf": self.config.no_token_line.encode()}}
        generation = Generation(f"gen-{time.time_ns()}", closed | self.known | news)
        # what was not well before is no fault of the news
        well = self.live is not None and not lack(self.config.port, self.live)
        try:
            folder = self.store.write(generation, self.config.generation_line)
            self.command("test", 20, folder)
            self.trial(generation, folder)
            self.store.switch(generation)
            self.command("reload", 30, folder)
            self.check(generation)
            self.record(generation)
        except Exception as error:
            self.restore()
            self.tidy()
            if self.live and len(news) > 1:
                for part in sorted(news, key=lambda part: part != "token"):
                    self.adopt({part: news[part]})
                return
            if isinstance(error, RefusedError) and (well or error.args[0] in ("test", "trial")):
                reason, said = error.args
                failure = reason, self.report.masked(said), time.time()
                self.state.failures[self._digest(news)] = failure
                self.save()
            with self.report.part(f"{', '.join(news)}: not adopted", "internal"):
                raise

    def trial(self, generation: Generation, folder: Path) -> None:
        """The generation serves on a loopback port, and is asked for all that it has to serve."""
        port = TRIAL_PORTS[os.getpid() % len(TRIAL_PORTS)]
        listen = rb"(?im)^(\s*listen\s+)(?:[^\s;]*:)?%d\b" % self.config.port
        moved, conf = rb"\g<1>127.0.0.1:%d" % port, generation.parts["configuration"]["proxy.conf"]
        conf, found = re.subn(listen, moved, conf)
        if found != 1:
            raise RefusedError("trial", f"{found} listen lines for port {self.config.port}, not 1")
        (folder / "trial.conf").write_bytes(conf)
        with self._scratch() as scratch, Path(scratch, "said").open("w+b") as said:
            argv = self._argv("trial", folder, scratch)
            server = Popen(argv, stdin=DEVNULL, stdout=said, stderr=said, start_new_session=True)
            try:
                lacks = self._lacks(generation, port, lambda: server.poll() is None)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)
                server.wait()
            if lacks:
                raise RefusedError("trial", f"trial: {lacks}{self._said(said)}")
        (folder / "trial.conf").unlink()

    def check(self, generation: Generation) -> None:
        """The same questions to the server at the real port."""
        if lacks := self._lacks(generation, self.config.port, lambda: True):
            raise RefusedError("check", f"check: {lacks}")

    def record(self, generation: Generation) -> None:
        """It was seen to serve: it is the one in use."""
        same = {p for p, files in generation.parts.items() if self.known.get(p) == files}
        self.state.versions = {p: v for p, v in self.state.versions.items() if p in same}
        self.state.generation = generation.name
        self.live = generation
        self.remember()

    def resume(self) -> None:
        """What a killed run left linked is in use if it serves; without another it is loaded."""
        linked = self.store.read(self.store.linked)
        if linked is None or (self.live and self.live.name == linked.name):
            return
        self._hide(linked.parts)
        with self.report.part(f"{linked.name}: not in use", "internal"):
            if lack(self.config.port, linked):
                if self.live:
                    return  # restored below
                self.command("reload", 30, self.store.folder / linked.name)
            self.check(linked)
            self.record(linked)

    def restore(self) -> None:
        """The server serves what is in use, or is made to load it again."""
        if self.live is None:
            return
        if self.store.linked == self.live.name:
            lacks = lack(self.config.port, self.live)
            if lacks == TimeoutError.__name__:  # busy: a reload would not help
                self.report.fail(OWN_PATH, "check", lacks)
            if lacks in ("", TimeoutError.__name__):
                return
        with self.report.part("last good state: not loaded", "reload"):
            self.store.switch(self.live)
            self.command("reload", 30, self.store.folder / self.live.name)
            if lacks := self._lacks(self.live, self.config.port, lambda: True):
                raise RefusedError("reload", lacks)

    def _serves(self, endpoint: Endpoint) -> bool:
        with suppress(OSError, HTTPException):
            status = served(self.config.port, self.live, endpoint.path) if self.live else 0
            return status // 100 == 2
        return False

    def _lacks(self, generation: Generation, port: int, alive: Callable[[], bool]) -> str:
        """What a server lacks of all that it has to serve: itself, and what the API answers."""
        deadline = time.monotonic() + SERVE_SECONDS

        def ask(path: str) -> str:
            soon = time.monotonic() + 1
            while True:
                try:
                    status = served(port, generation, path)
                    return "" if status // 100 == 2 else f"answers {status}"
                except (OSError, HTTPException) as error:
                    yet = isinstance(error, ConnectionRefusedError)
                    if not alive() or time.monotonic() > (deadline if yet else soon):
                        return words(error)
                time.sleep(0.05)

        if lacks := ask(OWN_PATH):
            return lacks
        token, found = generation.token(self.config), dict[Endpoint, str]()
        due = generation.endpoints if token else []
        for again in (False, True):
            if again:  # it may be the API that no longer answers
                self.probe.ask((endpoint, token) for endpoint in due)
            due = [e for e in due if self.probe.answer(e, token).good and e not in self.excused]
            with ThreadPoolExecutor(len(due) + 1) as pool:
                asks = {endpoint: pool.submit(ask, endpoint.path) for endpoint in due}
            found = {endpoint: ask.result() for endpoint, ask in asks.items() if ask.result()}
            due = list(found)
        if port != self.config.port:  # what is not served now either is no loss
            self.excused = {e for e in due if not self._serves(e)}
            for e in self.excused:
                self.report.say(f"{e.name}: not served: {found[e]}")
        return "; ".join(f"{e.name}: {found[e]}" for e in due if e not in self.excused)

    # -- commands

    def command(self, name: str, seconds: int, folder: Path) -> None:
        with self._scratch() as scratch, Path(scratch, "said").open("w+b") as said:
            argv = ["timeout", f"{seconds}", *self._argv(name, folder, scratch)]
            status = run(argv, stdin=DEVNULL, stdout=said, stderr=said).returncode
            if status:
                raise RefusedError(name, f"{name} ends with {status}{self._said(said)}")

    @contextmanager
    def _scratch(self) -> Iterator[str]:
        """As /run: a server's own folder, and ours beside it."""
        with TemporaryDirectory() as scratch:
            Path(scratch, "server").mkdir()
            Path(scratch, "metrics-proxy").symlink_to(self.store.folder)
            yield scratch

    def _argv(self, name: str, folder: Path, scratch: str) -> list[str]:
        argv: list[str] = getattr(self.config, name)
        return [word.format(generation=folder, scratch=scratch) for word in argv]

    def _said(self, file: IO[bytes]) -> str:
        """The end of what a server said, without its notices."""
        file.seek(0)
        lines = file.read(65_536).decode(errors="replace").splitlines()
        lines = [line for line in lines if not re.search(r"\b(?:notice|info)\]", line)]
        text = self.report.masked("\n".join(lines))
        return f": {text[-500:]}" if text else ""

    # -- state and metrics

    def save(self) -> None:
        text = json.dumps(asdict(self.state))
        self.store.replace("state.json", lambda new: new.write_text(text))

    @staticmethod
    def _digest(news: dict[str, Files]) -> str:
        text = repr([(part, sorted(files.items())) for part, files in sorted(news.items())])
        return hashlib.sha256(text.encode()).hexdigest()

    def remember(self) -> None:
        used = {part for part, files in self.offers.items() if self.known.get(part) == files}
        self.state.versions |= {part: self.versions[part] for part in used}
        now = time.time()
        self.state.success |= {s: now for s, parts in SECRETS.items() if used.issuperset(parts)}
        self.save()

    def write_metrics(self) -> None:
        with self.report.part("metrics: not written", "internal"):
            self.store.replace("proxy.prom", lambda new: new.write_bytes(self.metrics()))

    def metrics(self) -> bytes:
        """What this run found."""
        registry, up = CollectorRegistry(), self.upstreams()

        def show(name: str, text: str, samples: dict[Any, Any], *labels: str) -> None:
            gauge = Gauge(f"metrics_proxy_{name}", text, labels, registry=registry)
            for values, value in samples.items():
                (gauge.labels(*values) if labels else gauge).set(value)

        if self.live:
            conf = self.known["configuration"]["proxy.conf"]
            what = {(hashlib.sha256(conf).hexdigest(), self.config.build): 1}
            show("configuration_info", "What is in use", what, "sha256", "build")
            with self.report.part("certificate: end not read", "internal"):
                end = {(): validity(self.known["certificate"])[1]}
                show("certificate_not_after_timestamp_seconds", "End of the certificate", end)
        show("sync_timestamp_seconds", "End of the last sync", {(): time.time()})
        well = {(): bool(self.live and not self.report.reasons)}
        show("secret_sync_ok", "1 if every secret is in use", well)
        reasons = {(reason,): reason in self.report.reasons for reason in REASONS}
        show("sync_failed", "1 if the last sync failed for this reason", reasons, "reason")
        last = {(secret,): when for secret, when in self.state.success.items()}
        show("secret_last_success_timestamp_seconds", "When last in use", last, "secret")
        of = {part: secret for secret, parts in SECRETS.items() for part in parts}
        used = {(of[p], v): 1 for p, v in self.state.versions.items() if p in self.known}
        show("secret_info", "What is in use", used, "secret", "version")
        scraped = {(e.name,): answer.scraped(e) for e, answer in up}
        show("upstream_up", "1 if Prometheus takes its answer", scraped, "endpoint")
        status = {(e.name,): answer.status for e, answer in up}
        show("upstream_http_status", "What it answers, 0 for nothing", status, "endpoint")
        seconds = {(e.name,): answer.seconds for e, answer in up}
        show("upstream_duration_seconds", "To its headers", seconds, "endpoint")
        reboot = {(): Path("/run/reboot-required").exists()}
        show("reboot_required", "1 if an update waits for a reboot", reboot)
        return generate_latest(registry)


def main() -> bool:
    """Sync, unless another sync is at it; whether something failed."""
    os.umask(0o027)
    report = Report()
    with report.part("sync", "internal"):
        files = [json.loads(Path(name).read_bytes()) for name in sys.argv[1:]]
        config = Config(**{key: value for file in files for key, value in file.items()})
        store = Store(Path(os.environ["RUNTIME_DIRECTORY"]))
        # nobody else may open it, and so hold it
        lock = os.open(store.path("lock"), os.O_CREAT | os.O_RDWR, 0o600)
        age = time.time() - os.fstat(lock).st_mtime
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.say("another sync is at work")
            if age > config.interval:
                report.fail("sync", "busy", f"another one has been at work for {age:.0f} s")
                sync = Sync(config, store, report)
                sync.ask_api()
                sync.write_metrics()
        else:
            os.utime(lock)
            Sync(config, store, report).run()
    return bool(report.reasons)


if __name__ == "__main__":
    os._exit(main())  # not waiting for probes
