"""What the VPC offers the machine, and the way in for this computer's programs. One process.

- the metadata service, 169.254.169.254:80
- AWS' own host names: TLS is ended here and the bytes go to the embedded AWS
- a package mirror over TLS, which knows what this week's tree brought and nothing newer
- from loopback ports of this computer to the proxy and to Prometheus; the proxy is connected to
  from Prometheus' own place in the network
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
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
from sandbox.vpc import metadata
from sandbox.vpc.network import AWS_SERVERS, METADATA, MIRROR_SERVERS, Network

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which network to serve."""

    network: str
    account: str
    """The ready file of the embedded AWS."""
    certificate: str
    packages: str
    ways_in: dict[str, tuple[str, int]]
    """Name → address and port, as seen from Prometheus' place."""
    balancer: str | None = None
    """The file in which the balancer says which of its nodes serve: the way in to `proxy`."""

    def write(self, folder: Path) -> None:
        (folder / "ports.json").unlink(missing_ok=True)
        (folder / "services.json").write_text(json.dumps(asdict(self)))


def ports(folder: Path) -> dict[str, int]:
    """The loopback port of each way in; none before the services listen."""
    file = folder / "ports.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _listen(port: int) -> socket.socket:
    """On a port of this computer's loopback: the usual one, or any that is free."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return socket.create_server(("127.0.0.1", 0))


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


async def connect_to_node(network: Network, balancer: Path, port: int) -> Streams:
    """The same to a node of the balancer that serves; `OSError` if none does."""
    serving = json.loads(balancer.read_text())["serving"]
    if not serving:
        raise ConnectionRefusedError("no node serves")
    return await connect_from(network, "prometheus", serving[0], port)


async def serve(folder: Path) -> None:
    config = Config(**json.loads((folder / "services.json").read_text()))
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
    relays = [relay(at_aws, lambda: asyncio.open_connection(url.hostname, url.port), tls)]
    listeners = {name: _listen(port) for name, (_, port) in config.ways_in.items()}
    for name, (address, port) in config.ways_in.items():
        connect = functools.partial(connect_from, network, "prometheus", address, port)
        if name == "proxy" and config.balancer:
            connect = functools.partial(connect_to_node, network, Path(config.balancer), port)
        relays.append(relay(listeners[name], connect))
    part = folder / "ports.part"
    part.write_text(json.dumps({name: s.getsockname()[1] for name, s in listeners.items()}))
    part.replace(folder / "ports.json")
    await asyncio.gather(*relays)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of services.json; ports.json is written there")
    asyncio.run(serve(parser.parse_args().folder))


if __name__ == "__main__":
    main()
