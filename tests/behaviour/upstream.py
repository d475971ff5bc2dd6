"""A stand-in for the API: it keeps every request as it came and answers what that request wants.

A request says in its User-Agent what it wants (`want=redirect`): the header that every proxy passes
on. So the API needs no state, and cases cannot get in each other's way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
import struct
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from sandbox.processes import Process, start, wait
from tests.certificates import self_signed

CANARY: Final = "canary-3b77ad10c5+/e9.~_tok=="
"""The token. Every API here may see it, and nobody else."""

LARGE: Final = 50 * 2**20
"""Bytes of the large document."""

TARGETS: Final = {
    "api": "/metrics",
    "workers": "/metrics/workers",
    "right-ca": "/metrics",
    "wrong-ca": "/metrics",
    "system-ca": "/metrics",
}
"""Ports and what each serves. Those with a CA have a certificate for the name `localhost`."""

LISTED: Final = {
    *("accept", "accept-encoding", "authorization", "connection", "host", "user-agent"),
    *("x-forwarded-for", "x-forwarded-proto", "x-prometheus-scrape-timeout-seconds"),
}
"""The request headers that may reach the API."""

ADDED: Final = {"x-forwarded-host", "x-forwarded-server"}
"""Headers that Apache adds by itself: no fault of the request, but none of ours."""

DOCUMENT: Final = b"# TYPE sample gauge\nsample 1\n"
TELLTALE: Final = b"Server: api/1.2.3\r\nX-Powered-By: Express\r\nSet-Cookie: sid=1; HttpOnly\r\n"
"""In every answer of the API, in none of the proxy's."""


@dataclass(frozen=True)
class Received:
    """One request as it reached the API."""

    port: str
    """One of TARGETS."""
    address: str
    """The API's own address and port: what Host has to be."""
    raw: bytes

    @property
    def line(self) -> str:
        return self.raw.partition(b"\r\n")[0].decode("latin-1")

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names in lower case and values, as they stand between CR LF and CR LF."""
        lines = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return [(n.lower(), v.strip(" \t")) for n, _, v in (line.partition(":") for line in lines)]

    def objections(self, client: str | None = None) -> dict[str, str]:
        """What is not as promised: kind → detail. `client` is the address X-Forwarded-For tells."""
        found = {}
        line = re.fullmatch(r"(\S+) (\S+) HTTP/1\.[01]", self.line)
        if not line or line[1] not in ("GET", "HEAD"):
            found["method"] = self.line
        if not line or line[2] != TARGETS[self.port]:
            found["target"] = self.line
        names = [name for name, _ in self.headers]
        values = dict(self.headers)
        if not self.raw.endswith(b"\r\n\r\n") or {"content-length", "transfer-encoding"} & {*names}:
            found["body"] = self.raw.partition(b"\r\n\r\n")[2][:40].decode("latin-1")
        unlisted = sorted({*names} - LISTED - ADDED - {"content-length", "transfer-encoding"})
        twice = sorted({name for name in names if names.count(name) > 1})
        if unlisted or twice or any(re.search(r"[\0-\x08\n-\x1f\x7f]", v) for v in values.values()):
            found["headers"] = ", ".join(unlisted + twice)
        ours = {
            "authorization": f"Bearer {CANARY}",
            "host": self.address,
            **({"x-forwarded-for": client, "x-forwarded-proto": "https"} if client else {}),
        }
        changed = {name for name, value in ours.items() if values.get(name) != value}
        if values.get("connection", "close").lower() not in ("close", "keep-alive"):
            changed.add("connection")
        changed |= {*names} & ADDED
        return found | ({"own headers": ", ".join(sorted(changed))} if changed else {})

    @property
    def has_token(self) -> bool:
        return CANARY.encode() in self.raw


class Api:
    """The stand-in as a process of its own: the tests' threads would slow it down."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._file = folder / "received.jsonl"
        command = [sys.executable, "-m", "tests.behaviour.upstream", str(folder)]
        self._process: Process = start(command, folder / "log")
        ready = folder / "ready.json"
        wait(ready.exists, f"the API ({folder / 'log'})")
        self.ports: dict[str, int] = json.loads(ready.read_text())
        self.ca = (folder / "ca.pem").read_text()

    def mark(self) -> int:
        """Now, for `received`."""
        return self._file.stat().st_size

    def received(self, since: int = 0) -> list[Received]:
        """All requests that came after a mark. Each was written before it was answered."""
        with self._file.open("rb") as file:
            file.seek(since)
            return [
                Received(item["port"], item["address"], item["raw"].encode("latin-1"))
                for item in map(json.loads, file)
            ]

    def stop(self) -> None:
        self._process.stop()


# -- the process -----------------------------------------------------------------------------------


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """What comes with the head, if it says that anything does."""
    if b"\r\ntransfer-encoding:" in head.lower():
        return await reader.readuntil(b"0\r\n\r\n")
    length = re.search(rb"\r\ncontent-length:[ \t]*(\d+)", head, re.I)
    return await reader.readexactly(int(length[1])) if length else b""


async def _connection(
    record: Callable[[bytes], None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    errors = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, TimeoutError)
    with contextlib.suppress(*errors):
        while True:
            raw = b""
            try:
                raw = await reader.readuntil(b"\r\n\r\n")
                async with asyncio.timeout(1):
                    raw += await _body(raw, reader)
            except asyncio.IncompleteReadError as error:
                raw += error.partial
                raise
            finally:
                if raw:
                    record(raw)
            want = re.search(rb"want=([a-z0-9-]+)", raw)
            await WANTS[want[1].decode() if want else ""](raw, writer)
            await writer.drain()
            if b"HTTP/1.1\r\n" not in raw or b"\r\nconnection: close\r\n" in raw.lower():
                break
    writer.close()


Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def _answers(status: str = "200 OK", extra: bytes = b"", after: float = 0) -> Answer:
    async def answer(raw: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(after)
        writer.write(f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\n".encode() + TELLTALE)
        writer.write(extra + b"Content-Length: %d\r\n\r\n" % len(DOCUMENT))
        writer.write(b"" if raw.startswith(b"HEAD ") else DOCUMENT)

    return answer


def _says(answer: bytes, *, then_close: bool = True) -> Answer:
    async def say(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        if then_close:
            await writer.drain()
            writer.close()

    return say


async def _hang(_: bytes, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():  # until the proxy gives up
        await asyncio.sleep(0.1)


async def _reset(_: bytes, writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _large(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
    for _block in range(LARGE // 2**20):
        writer.write(b"#" * (2**20 - 1) + b"\n")
        await writer.drain()


_STATUS: Final = b"HTTP/1.1 200 OK\r\n"
_END: Final = b"Content-Length: 0\r\n\r\n"
ECHOES: Final = {
    "a header": _STATUS + b"X-Echo: %s\r\n" + _END,
    "a header of 8,190 bytes": _STATUS + b"X-Echo: %s" + b"x" * 8190 + b"\r\n" + _END,
    "a header of 100,000 bytes": _STATUS + b"X-Echo: %s" + b"x" * 100_000 + b"\r\n" + _END,
    "a header with a NUL": _STATUS + b"X-Echo: %s\0\r\n" + _END,
    "a header with a control character": _STATUS + b"X-Echo: %s\1\r\n" + _END,
    "a hidden header with a NUL": _STATUS + b"Set-Cookie: %s\0\r\n" + _END,
    "a folded header with a NUL": _STATUS + b"X-Echo: a\r\n %s\0\r\n" + _END,
    "a header's name": _STATUS + b"%s: 1\r\n" + _END,
    "a line without a colon": _STATUS + b"%s\r\n" + _END,
    "the reason": b"HTTP/1.1 200 %s\r\n" + _END,
    "the status": b"HTTP/1.1 %s\r\n" + _END,
    "the version": b"HTTP/%s 200 OK\r\n" + _END,
    "no HTTP": b"%s\r\n\r\n",
    "two types": _STATUS + b"Content-Type: %s\r\n" * 2 + _END,
    "two dates": _STATUS + b"Date: %s\r\n" * 2 + _END,
    "the length": _STATUS + b"Content-Length: %s\r\n\r\n",
    "two lengths": _STATUS + b"Content-Length: %s\r\n" * 2 + b"\r\n",
    "the coding": _STATUS + b"Transfer-Encoding: %s\r\n\r\n",
    "two codings": _STATUS + b"Transfer-Encoding: %s\r\n" * 2 + b"\r\n",
    "a chunk's length": _STATUS + b"Transfer-Encoding: chunked\r\n\r\n%s\r\n",
    "a trailer": _STATUS + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Echo: %s\0\r\n\r\n",
    "an early hint": b"HTTP/1.1 103 Early Hints\r\nLink: %s\0\r\n\r\n" + _STATUS + _END,
    "an upgrade": _STATUS + b"Connection: %s\r\nUpgrade: %s\r\n" + _END,
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: %s\r\nRefresh: %s\r\n" + _END,
    "X-Accel": _STATUS + b"X-Accel-Expires: %s\r\nX-Accel-Limit-Rate: %s\r\n" + _END,
}
"""Answers that repeat their request's Authorization (`%s`), wherever a server might log it."""


def _echoes(form: bytes) -> Answer:
    async def echo(raw: bytes, writer: asyncio.StreamWriter) -> None:
        found = re.search(rb"\r\nauthorization: *([^\r]*)", raw, re.I)
        writer.write(form.replace(b"%s", found[1] if found else b""))
        await writer.drain()
        writer.close()

    return echo


_ACCEL = "Redirect: /metrics/proxy", "Limit-Rate: 1", "Expires: 60", "Charset: utf-7"
WANTS: Final[dict[str, Answer]] = {
    "": _answers(),
    "redirect": _answers("302 Found", b"Location: http://127.0.0.1:1/metrics\r\nRefresh: 0\r\n"),
    "accel": _answers(extra=b"".join(b"X-Accel-%s\r\n" % h.encode() for h in _ACCEL)),
    "error": _answers("500 Internal Server Error"),
    "unauthorized": _answers("401 Unauthorized", b"WWW-Authenticate: Bearer\r\n"),
    "slow": _answers(after=3),
    "hang": _hang,
    "reset": _reset,
    "large": _large,
    "garbage": _says(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "half": _says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + DOCUMENT),
    "switch": _says(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    ),
    "huge-header": _says(
        b"HTTP/1.1 200 OK\r\nX-Huge: " + b"x" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n"
    ),
    "long-headers": _answers(extra=b"X-Long: %s\r\n" % (b"x" * 390) * 15),
    "more-headers": _answers(extra=b"X-Long: %s\r\n" % (b"x" * 390) * 50),
    "hints": _says(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n"
        b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(DOCUMENT) + DOCUMENT
    ),
    "no-type": _says(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DOCUMENT) + DOCUMENT),
    **{f"echo-{n}": _echoes(form) for n, form in enumerate(ECHOES.values())},
}


class _Names(asyncio.DatagramProtocol):
    """DNS for nginx, as far as it goes: `localhost` is 127.0.0.1, nothing else is known."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        question = data[12 : data.index(b"\0", 12) + 5]
        known = question == b"\x09localhost\0\0\1\0\1"
        flags = 0x8180 if known else 0x8183  # answer, or NXDOMAIN
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\x7f\0\0\1" if known else b""
        head = data[:2] + struct.pack(">5H", flags, 1, known, 0, 0)
        self._transport.sendto(head + question + answer, addr)


async def _serve(folder: Path) -> None:
    certificate, key = self_signed("localhost")
    (folder / "ca.pem").write_text(certificate)
    (folder / "key.pem").write_text(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    file = (folder / "received.jsonl").open("ab", buffering=0)
    ports = {}
    for name in TARGETS:
        sock = socket.create_server(("127.0.0.1", 0), backlog=512)
        ports[name] = sock.getsockname()[1]
        tls = name.endswith("-ca")
        host = "localhost" if tls else "127.0.0.1"

        def record(raw: bytes, port: str = name, address: str = f"{host}:{ports[name]}") -> None:
            item = {"port": port, "address": address, "raw": raw.decode("latin-1")}
            file.write(json.dumps(item).encode() + b"\n")

        await asyncio.start_server(
            partial(_connection, record),
            sock=sock,
            limit=2**20,
            ssl=context if tls else None,
        )
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        _Names, local_addr=("127.0.0.1", 0)
    )
    ports["names"] = transport.get_extra_info("sockname")[1]
    (folder / "ready.part").write_text(json.dumps(ports))
    (folder / "ready.part").rename(folder / "ready.json")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
