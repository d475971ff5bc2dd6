"""The sample API: two metrics documents that only an admin may read. A stand-in for `sba-api`.

It knows tokens by their SHA-256 only (a file, read at every request, so that a token can be
accepted or revoked at any time) and logs every request that it gets. What it shows can be changed
at any time, too: see `behave`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

QUEUES = {"email": (8.0, 60), "reports": (0.6, 4), "sms": (3.0, 20)}
"""Queue → jobs per second and usual depth."""


def digest(token: str) -> str:
    """How the API knows a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def accept(folder: Path, digests: list[str]) -> None:
    """Have the API in `folder` accept the tokens of these digests, and no others."""
    part = folder / "tokens.part"
    part.write_text(json.dumps(digests))
    part.replace(folder / "tokens.json")


def accepted(folder: Path) -> list[str]:
    """The digests of the tokens that the API takes."""
    return list(json.loads((folder / "tokens.json").read_text()))


def behave(folder: Path, **how: Any) -> None:
    """Have the API in `folder` behave otherwise; without keywords it is its own self again.

    `workers`: queue → gauge → value, in place of what moves. `content_type`: of every answer.
    """
    part = folder / "behaviour.part"
    part.write_text(json.dumps(how))
    part.replace(folder / "behaviour.json")


def behaviour(folder: Path) -> dict[str, Any]:
    """What `behave` has said last."""
    file = folder / "behaviour.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


GAUGES = {
    "throughput": "Jobs finished per second",
    "error_rate": "Share of jobs that failed, 0 to 1",
    "error4xx_rate": "Share of jobs that failed with a 4xx, 0 to 1",
    "error5xx_rate": "Share of jobs that failed with a 5xx, 0 to 1",
    "timeout_rate": "Share of jobs that timed out, 0 to 1",
    "queue_depth": "Jobs waiting",
    "active_jobs": "Jobs being worked on",
}


def worker_metrics(folder: Path) -> bytes:
    """What the BullMQ exporter shows: gauges per queue."""
    registry = CollectorRegistry()
    gauges = {
        name: Gauge(f"sba_worker_{name}", text, ["queue_name"], registry=registry)
        for name, text in GAUGES.items()
    }
    for queue, values in behaviour(folder).get("workers", moving()).items():
        for name, value in values.items():
            gauges[name].labels(queue).set(value)
    return generate_latest(registry)


def moving() -> dict[str, dict[str, float]]:
    """Queue → gauge → value, as they move with the time of day."""
    now, queues = time.time(), {}
    for number, (queue, (rate, depth)) in enumerate(QUEUES.items()):
        wave = (1 + math.sin(now / 60 + 2 * number)) / 2  # 0 to 1, about six minutes long
        burst = max(0.0, math.sin(now / 200 + number)) ** 8  # mostly 0, now and then up to 1
        parts = {
            "error4xx_rate": 0.002 + 0.002 * wave,
            "error5xx_rate": 0.001 + 0.015 * burst,
            "timeout_rate": 0.001 * wave,
        }
        queues[queue] = parts | {
            "error_rate": sum(parts.values()),
            "throughput": rate * (0.8 + 0.4 * wave),
            "queue_depth": round(depth * (1 + wave + 20 * burst)),
            "active_jobs": round(rate * (0.5 + wave)),
        }
    return queues


def process_metrics() -> Callable[[], bytes]:
    """Ordinary metrics of this process, as any exporter has them."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)


class Log:
    """JSON lines: `method`, `target`, `headers` (pairs), `authorized`; never a token."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def write(self, **record: Any) -> None:
        with self._lock:
            self._file.write(json.dumps({"time": time.time(), **record}) + "\n")


def serve(address: tuple[str, int], path: str, document: Callable[[], bytes], folder: Path) -> None:
    """Serve one document until the process ends."""
    log = Log(folder / "requests.jsonl")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5  # Node's keepAliveTimeout

        def handle_one_request(self) -> None:
            self.requestline = self.command = ""
            super().handle_one_request()

        def answer(self) -> None:
            """Every method comes here; what is not a GET or HEAD of the document is a 404."""
            scheme, _, token = self.headers.get("Authorization", "").partition(" ")
            authorized = scheme == "Bearer" and digest(token) in accepted(folder)
            headers = [
                (k, f"{scheme} sha256:{digest(v.partition(' ')[2])[:12]}")
                if k.lower() == "authorization"
                else (k, v)
                for k, v in self.headers.items()
            ]
            log.write(
                method=self.command,
                target=self.path,
                headers=headers,
                authorized=authorized,
                port=address[1],
            )
            if self.headers.get("Content-Length") or self.headers.get("Transfer-Encoding"):
                self.close_connection = True  # the body is not read
            if not authorized:
                self.reply(401, b"admin token required\n")
            elif self.path == path and self.command in ("GET", "HEAD"):
                self.reply(200, document())
            else:
                self.reply(404, b"not found\n")

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            kind = behaviour(folder).get("content_type", CONTENT_TYPE_PLAIN_0_0_4)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Powered-By", "Express")
            self.send_header("Set-Cookie", "connect.sid=s%3Asample; HttpOnly")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("do_"):
                return self.answer
            raise AttributeError(name)

        def send_error(
            self, code: int, message: str | None = None, explain: str | None = None
        ) -> None:
            log.write(method=self.command, target=self.requestline, headers=[], authorized=False)
            super().send_error(code, message, explain)

        def log_message(self, *_: object) -> None:
            """The request log is `requests.jsonl`."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 511  # Node's; with Python's 5 a burst waits for a second SYN

        def server_bind(self) -> None:
            """Without HTTPServer's question to DNS for a name, which costs 5 s where none is."""
            TCPServer.server_bind(self)

        def handle_error(self, *_: object) -> None:
            """A client that goes away is no news: the sync's probe reads the status only."""

    Server(address, Handler).serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", required=True)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--workers-port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="of tokens.json and the log")
    options = parser.parse_args()
    documents = {
        options.metrics_port: ("/metrics", process_metrics()),
        options.workers_port: ("/metrics/workers", partial(worker_metrics, options.folder)),
    }
    threads = [
        threading.Thread(target=serve, args=((options.address, port), *rest, options.folder))
        for port, rest in documents.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
