"""What is measured: servers of Debian 13, run in the tree that the machine boots from."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from config.settings import Settings
from host import cloud_config, proxy
from sandbox.machines.process import UnitRunner, lay_out
from sandbox.machines.vm import image
from sandbox.tools import ROOT
from tests.certificates import self_signed

HOST: Final = "127.0.0.1"
TOKEN: Final = "token-of-the-benchmark-0123456789abcdef"
_DOWNLOAD: Final = """
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount --bind /dev "$2/root/dev"
mount --bind "$3" "$2/root/etc/apt/mirrors"
rm "$2/root/etc/resolv.conf"
cp /etc/resolv.conf "$2/root/etc"
chroot "$2/root" apt-get -qq update
chroot "$2/root" apt-get -qqy --no-install-recommends --download-only install \
    haproxy caddy prometheus-exporter-exporter
for package in "$2"/upper/var/cache/apt/archives/*.deb; do
    dpkg-deb -x "$package" "$2/peers"
    mv "$package" "$2/peers"
done
"""


@cache
def packages() -> Path:
    """The peers' packages, unpacked; the tree itself stays what the machine has."""
    built = image.build()
    folder = ROOT / ".cache/bench" / built.folder.name
    if not folder.exists():
        shutil.rmtree(part := folder.with_suffix(".part"), ignore_errors=True)
        for name in ("upper", "work", "root", "peers"):
            (part / name).mkdir(parents=True)
        places = map(str, (built.root, part, image.CACHE / "apt/mirrors"))
        script = ["unshare", "--mount", "sh", "-euc", _DOWNLOAD, "sh", *places]
        subprocess.run(script, check=True, stdout=subprocess.DEVNULL)
        (part / "peers").rename(folder)
        shutil.rmtree(part)
    return folder


@cache
def certificate() -> tuple[str, str]:
    """The same for all targets."""
    return self_signed("prometheus-api.local")


@dataclass(frozen=True)
class Place:
    """Where a target runs, and the API that it asks."""

    folder: Path
    port: int
    api: str

    def write(self, folder: Path, **files: str) -> None:
        """Files (`_` for their dot), and the certificate."""
        folder.mkdir(exist_ok=True)
        files |= dict(zip(("certificate_pem", "key_pem"), certificate(), strict=True))
        for name, text in {**files, "both_pem": "".join(certificate())}.items():
            (folder / name.replace("_", ".")).write_text(text)


@dataclass(frozen=True)
class Target:
    """A server: its configuration, its command, and what is scraped of it; {size} is the body's."""

    configuration: str
    command: str
    path: str = "/metrics"

    def prepare(self, place: Place) -> list[str]:
        """Write its files; the command."""
        text = (ROOT / self.configuration).read_text()
        for places in (
            {"@PORT@": str(place.port), "@API@": place.api, "@TOKEN@": TOKEN},
            {"@API_PORT@": place.api.partition(":")[2]},
            # of the requirement's own
            {"http://api:9464": f"http://{place.api}", "http://api:3002": f"http://{place.api}"},
            {"9446": str(place.port), "10.20.0.0/16": HOST, "/etc/ssl/prometheus-api.": ""},
            {"${PROM_AUTH_TOKEN}": TOKEN, "$PROM_AUTH_TOKEN": TOKEN},
        ):
            for old, new in places.items():
                text = text.replace(old, new)
        crt, key = certificate()
        place.write(place.folder, configuration=text, crt=crt, key=key)
        for size in (2_000, 20_000, 2_000_000, 20_000_000) if "{size}" in self.path else ():
            (place.folder / str(size)).write_bytes(b"x" * size)
        return shlex.split(self.command.format(folder=place.folder, port=place.port))


@dataclass(frozen=True)
class Ours:
    """Ours, as the sync leaves it on the machine."""

    server: str
    endpoints: int = 2
    path: str = "/metrics"

    def prepare(self, place: Place) -> list[str]:
        """Write the machine's files and a generation; the unit's command."""
        settings = with_endpoints(self.server, self.endpoints, place.port, place.api)
        lay_out(cloud_config.render(settings, "eu-central-1", "bundle"), place.folder)
        state = place.folder / "run/metrics-proxy"
        (state / "current").symlink_to("gen-1")
        # limits that a flood from one address does not meet; they are counted all the same
        text = re.sub(r"rate=\d+r/s", "rate=1000000r/s", proxy.render(settings))
        token = proxy.SYNC_COMMANDS[self.server]["token_line"].replace("{token}", TOKEN)
        files = {"proxy_conf": text, "token_conf": token, "generation_conf": ""}
        place.write(state / "gen-1", **files)
        return UnitRunner(place.folder, {}, Path()).command(cloud_config.PROXY_UNIT)


def with_endpoints(
    server: str, number: int, port: int = 9446, api: str = "10.0.0.1:9464"
) -> Settings:
    """Settings of so many endpoints: /metrics, /more-1 and so on, each the API's /metrics."""
    endpoints = [
        {"name": f"more-{n}", "path": f"/more-{n}", "upstream": f"http://{api}/metrics"}
        for n in range(number)
    ]
    endpoints[0]["path"] = "/metrics"
    config = {"subnetId": "subnet-00000000", "prometheusCidrs": f'["{HOST}/32"]', "server": server}
    config |= {"apiCidrs": '["127.0.0.0/16"]', "port": str(port)}
    return Settings.parse("bench", {**config, "endpoints": json.dumps(endpoints)}, has_token=True)


_NGINX: Final = f"{proxy.NGINX} -p {{folder}}/ -c configuration -g 'daemon off;'"
_FLOOR: Final = "bench/peers/floor.conf"
TARGETS: Final[dict[str, Target | Ours]] = {
    "nginx": Ours("nginx"),
    "Apache": Ours("apache"),
    "required nginx": Target("tests/behaviour/required/nginx.conf", _NGINX),
    "required Apache": Target(
        "tests/behaviour/required/apache.conf",
        f"{proxy.APACHE} -D FOREGROUND -d {{folder}} -f configuration",
    ),
    "HAProxy": Target("bench/peers/haproxy.cfg", "haproxy -db -f configuration"),
    "Caddy": Target(
        "bench/peers/Caddyfile",
        "env HOME={folder} caddy run --config configuration --adapter caddyfile",
    ),
    "exporter_exporter": Target(
        "bench/peers/exporter_exporter.yaml",
        "prometheus-exporter-exporter -config.file configuration -allow.net 127.0.0.1/32 "
        "-web.listen-address= -web.tls.listen-address 127.0.0.1:{port} "
        "-web.tls.cert certificate.pem -web.tls.key key.pem -web.tls.ca certificate.pem",
        "/proxy?module=api",
    ),
    "floor: proxy_pass": Target(_FLOOR, _NGINX),
    "floor: file": Target(_FLOOR, _NGINX, "/file/{size}"),
}
