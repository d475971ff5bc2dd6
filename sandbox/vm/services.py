"""What the VPC offers the machine, and the way in for this machine's programs. One process.

- the metadata service, 169.254.169.254:80
- AWS' own host names: TLS is ended here and the bytes go to the embedded AWS
- a package mirror over TLS, which knows what this week's tree brought and nothing newer
- from loopback ports of this machine to the proxy and to Prometheus; the proxy is connected to from
  Prometheus' own place in the network
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from sandbox.aws import Account
from sandbox.vm import metadata
from sandbox.vm.network import AWS_SERVERS, METADATA, MIRROR_SERVERS, Network

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which network to serve."""

    network: str
    account: str
    """The ready file of the embedded AWS."""
    certificate: str
    packages: str
    proxy_address: str
    proxy_port: int
    prometheus_port: int

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))


def mirror(packages: Path) -> type[BaseHTTPRequestHandler]:
    """Confirms what apt knows already (304), and hands out packages."""
    known = {_plain(file.name): file for file in packages.iterdir()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = urllib.parse.unquote(self.path).rpartition("/")[2]
            fresh = name.endswith("Release") and "If-Modified-Since" in self.headers
            data = known[name].read_bytes() if name in known else b""
            self.send_response(304 if fresh else 200 if data else 404)
            if not fresh:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_request(self, code: int | str = "-", *_: object) -> None:
            print(f"mirror {self.command} {self.path} {int(code)}", flush=True)

    return Handler


def _plain(file: str) -> str:
    """apt keeps a version's epoch in the file name; a mirror has none there."""
    package, version, rest = urllib.parse.unquote(file).split("_", 2)
    return f"{package}_{version.rpartition(':')[2]}_{rest}"


async def relay(
    listener: socket.socket,
    connect: Callable[[], Awaitable[Streams]],
    tls: ssl.SSLContext | None = None,
) -> None:
    """Pass bytes both ways between whoever connects and a connection of our own."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # either side may go away, or not be there
        with contextlib.closing(writer), contextlib.suppress(OSError):
            far_reader, far_writer = await connect()
            with contextlib.closing(far_writer):
                await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async with await asyncio.start_server(serve, sock=listener, ssl=tls) as made:
        await made.serve_forever()


async def connect_from(network: Network, place: str, address: str, port: int) -> Streams:
    """A connection whose source is in a namespace."""
    with network.at(place):
        made = socket.socket()
    made.setblocking(False)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(made, (address, port)), 10)
    except BaseException:
        made.close()
        raise
    return await asyncio.open_connection(sock=made)


async def serve(config: Config) -> None:
    network = Network(config.network)
    account = Account.read(Path(config.account))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(config.certificate)
    with network.at("vpc"):
        at_metadata = socket.create_server((METADATA, 80), backlog=64)
        at_aws = socket.create_server((AWS_SERVERS, 443), backlog=64)
        at_mirror = socket.create_server((MIRROR_SERVERS, 443), backlog=64)
    # the handshake in the thread of the connection
    at_mirror = tls.wrap_socket(at_mirror, server_side=True, do_handshake_on_connect=False)
    for listener, handler in (
        (at_metadata, metadata.handler(metadata.Record(account))),
        (at_mirror, mirror(Path(config.packages))),
    ):
        made = ThreadingHTTPServer(listener.getsockname(), handler, bind_and_activate=False)
        made.socket.close()
        made.socket = listener
        threading.Thread(target=made.serve_forever, daemon=True).start()
    url = urllib.parse.urlsplit(account.endpoint_url)
    await asyncio.gather(
        relay(at_aws, lambda: asyncio.open_connection(url.hostname, url.port), tls),
        relay(
            socket.create_server(("127.0.0.1", config.proxy_port)),
            lambda: connect_from(network, "prometheus", config.proxy_address, config.proxy_port),
        ),
        relay(
            socket.create_server(("127.0.0.1", config.prometheus_port)),
            lambda: connect_from(network, "prometheus", "127.0.0.1", config.prometheus_port),
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", type=Path)
    config = Config(**json.loads(parser.parse_args().config.read_text()))
    asyncio.run(serve(config))


if __name__ == "__main__":
    main()
