"""A client that sends bytes as they are, and what it makes of the bytes that come back."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead
from typing import Any, Final

SERVER_NAME: Final = "prometheus-api.local"
SERVER: Final = "127.0.0.1"
"""Where proxies and APIs listen."""

CLIENT: Final = "127.0.0.2"
"""The address of Prometheus. A proxy of ours also serves the machine itself."""

BALANCER: Final = "127.0.0.4"
"""The address of a fleet's load balancer, which may ask for its health only."""


@dataclass(frozen=True)
class Response:
    status: int
    headers: HTTPMessage
    body: bytes
    cut: bool
    """Whether the body ended before its announced end."""

    def __str__(self) -> str:
        return f"{self.status}{' cut' * self.cut}"


@dataclass(frozen=True)
class Answer:
    """What came back on one connection."""

    data: bytes
    end: str
    """`closed` by the server, `open` when our patience ended, or `no handshake`."""
    head: bool = False
    """Whether it answers a HEAD: a length is then followed by no body."""

    @cached_property
    def responses(self) -> list[Response]:
        """The HTTP/1 responses in `data`, one after the other."""
        stream, found = _Stream(self.data), []
        with contextlib.suppress(HTTPException, ValueError):
            while stream.tell() < len(self.data):
                response = HTTPResponse(stream, method="HEAD" if self.head else "GET")
                response.begin()
                body, cut = b"", False
                try:
                    body = response.read()
                except IncompleteRead as error:
                    body, cut = error.partial, True
                found.append(Response(response.status, response.headers, body, cut))
        return found

    def __str__(self) -> str:
        """The statuses, or how the connection ended without any."""
        statuses = ", ".join(map(str, self.responses))
        return statuses or ("not HTTP/1" if self.data else self.end)


class _Stream(io.BytesIO):
    """What `HTTPResponse` takes for a socket; it stays open for the next response."""

    def makefile(self, *_: Any) -> _Stream:
        return self

    def close(self) -> None:
        pass


def context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Any certificate will do: this client attacks. `version` is the only one to offer."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if version:
        made.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):  # of a version that nobody should offer
            made.minimum_version = made.maximum_version = version
    return made


_CONTEXT: Final = context()


AFTER: Final = 0.5
"""Seconds until we take an answer that has begun for all that comes."""


def exchange(
    port: int,
    request: bytes | Callable[[socket.socket], None],
    *,
    source: str = CLIENT,
    server_name: str | None = SERVER_NAME,
    tls: ssl.SSLContext | None = _CONTEXT,
    patience: float = 3,
) -> Answer:
    """Send `request` (or have it do so) and read to the end.

    `patience` is in seconds, for the first byte; AFTER is for those that follow.
    """
    head = isinstance(request, bytes) and request.startswith(b"HEAD ")
    data, connection = bytearray(), None
    try:
        connection = socket.create_connection((SERVER, port), patience, (source, 0))
        if tls:
            connection = tls.wrap_socket(
                connection, server_hostname=server_name, suppress_ragged_eofs=False
            )
    except OSError:
        if connection:
            connection.close()
        return Answer(b"", "no handshake")
    with connection:
        try:
            # a refusal may come before all is sent
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                if isinstance(request, bytes):
                    connection.sendall(request)
                else:
                    request(connection)
            while block := connection.recv(2**16):
                data += block
                connection.settimeout(min(patience, AFTER))
        except TimeoutError:
            return Answer(bytes(data), "open", head)
        except OSError:  # a reset, or an end without TLS' own
            pass
        return Answer(bytes(data), "closed", head)
