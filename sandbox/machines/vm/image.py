"""The machine's disk as it is before the first boot: what Debian's own image for EC2 holds.

Built from the apt sources of this machine and kept below `.cache/vm`, a week for each set of
packages: so an `up` needs no package mirror, and a tree is never older than a week.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from host.cloud_config import EVERYWHERE, SERVERS
from sandbox.tools import DEBIAN, ROOT

CACHE: Final = ROOT / ".cache" / "vm"
RECIPE: Final = ROOT / "docs" / "image.md"
RELEASE: Final = "trixie"
IMAGE: Final = """
systemd-sysv dbus udev init libpam-systemd libnss-systemd systemd-resolved libnss-resolve
libnss-myhostname
systemd-timesyncd netplan.io unattended-upgrades apt-utils iptables iputils-ping netbase sudo
openssh-server awscli cloud-init cloud-guest-utils amazon-ec2-utils ca-certificates curl apparmor
zstd less vim-tiny procps iproute2 ethtool psmisc xz-utils uuid-runtime
"""
"""The packages of Debian's image for EC2 (13, 2025), less kernel and boot loader."""

WANTED: Final = sorted({*EVERYWHERE, *(server["package"] for server in SERVERS.values())})
"""What user data may install."""

ARCHIVES: Final = {
    "debian": f"{RELEASE} {RELEASE}-updates {RELEASE}-backports",
    "debian-security": f"{RELEASE}-security",
}
"""Debian's archives, and the suites that the image takes from them, with their sources."""

FILES: Final = {
    # as in the image
    "etc/cloud/cloud.cfg.d/01_debian_cloud.cfg": "system_info:\n  default_user: {name: admin, "
    "lock_passwd: true, groups: [adm, sudo], shell: /bin/bash}\nlocale: C.UTF-8\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/hostname": "debian\n",
    **{
        f"etc/apt/mirrors/{name}.list": f"https://cdn-aws.deb.debian.org/{name}\n"
        for name in ARCHIVES
    },
    "etc/machine-id": "",
    # What follows is the container's. ds-identify rules EC2 out in any container; a single data
    # source is not checked.
    "etc/cloud/cloud.cfg.d/90_dpkg.cfg": "datasource_list: [ Ec2, None ]\n",
    # cloud-init would install a udev rule for hotplug, and no udevd runs in a container
    "etc/cloud/cloud.cfg.d/91_no_hotplug.cfg": "updates: {network: {when: [boot-new-instance]}}\n",
    # netplan, which cloud-init feeds, matches a permanent MAC address, and a veth has none
    "etc/systemd/network/05-ens5.network": "[Match]\nName=ens5\n[Network]\nDHCP=ipv4\n",
    "etc/apt/apt.conf.d/99no-translations": 'Acquire::Languages "none";\n',
}


@dataclass(frozen=True)
class Tree:
    """A root file system, and the packages that a machine may install into it."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def baked(self) -> Path:
        """On top of the root: what docs/image.md says to do to an image."""
        return self.folder / f"baked-{hashlib.sha256(_commands().encode()).hexdigest()[:12]}"

    @property
    def packages(self) -> Path:
        return self.folder / "packages"

    @property
    def mirrors(self) -> list[str]:
        """Host names of the package mirrors that the tree's apt asks."""
        text = "".join(f.read_text() for f in (self.root / "etc/apt/mirrors").iterdir())
        return sorted(set(re.findall(r"https://([^/\s]+)", text)))


def cached() -> Tree:
    """This week's tree, there or not."""
    week = time.strftime("%G-%V")
    recipe = [Path(__file__).read_text(), *WANTED, week]
    key = hashlib.sha256("\n".join(recipe).encode()).hexdigest()[:12]
    return Tree(CACHE / f"{week}-{key}")


def build() -> Tree:
    """This week's tree, built if it is not there; `subprocess.CalledProcessError` says why not."""
    CACHE.mkdir(parents=True, exist_ok=True)
    tree, lock = cached(), os.open(CACHE, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another sandbox may be building it
        if not tree.folder.exists():
            part = Tree(CACHE / "part")
            shutil.rmtree(part.folder, ignore_errors=True)
            part.packages.mkdir(parents=True)
            _bootstrap(part)
            _finish(part)
            part.folder.rename(tree.folder)
            _forget_older(tree)
    finally:
        os.close(lock)
    return tree


def bake() -> Tree:
    """The same, with the packages installed on top: once for a tree, and without a network."""
    tree, lock = build(), os.open(CACHE, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.baked.exists():
            part = tree.folder / "part"
            shutil.rmtree(part, ignore_errors=True)
            for name in ("upper", "work", "root"):
                (part / name).mkdir(parents=True)
            archives = part / "upper/var/cache/apt/archives"
            shutil.copytree(tree.packages, archives)
            with (CACHE / "bake.log").open("w") as log:
                subprocess.run(
                    [*_SPACES, "--net", "sh", "-euc", _BAKE, "sh", tree.root, part],
                    input=_commands(),
                    text=True,
                    stdout=log,
                    stderr=log,
                    check=True,
                )
            (part / "upper").rename(tree.baked)
            shutil.rmtree(part)
    finally:
        os.close(lock)
    return tree


def _commands() -> str:
    """As the page says, for both servers."""
    [block] = re.findall(r"^```sh\n(.*?)^```", RECIPE.read_text(), re.S | re.M)
    return str(block).replace(" nginx ", " nginx apache2 ")


_SPACES: Final = [
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"),
]
"""Namespaces of its own: whoever ends this ends it all, and no mount stays."""

_BAKE: Final = """
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount --bind /dev "$2/root/dev"
mount -t proc proc "$2/root/proc"
exec chroot "$2/root" sh -eu
"""


def _bootstrap(tree: Tree) -> None:
    exclude = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
    install = "apt-get -qy -o APT::Install-Recommends=true --download-only install"
    hooks = [
        # as the image asks for them; the mirror itself is this computer's
        'rm -rf "$1"/etc/apt/sources.list* "$1"/var/lib/apt/lists/*',
        f'cp -r {_apt()}/* "$1"/etc/apt',
        'chroot "$1" apt-get -qq update',
        'chroot "$1" apt-get clean',
        f'chroot "$1" {install} {" ".join(WANTED)}',
        f'mv "$1"/var/cache/apt/archives/*.deb {tree.packages}',
        'chroot "$1" systemctl -q enable systemd-networkd.service',
        # Debian's own Prometheus, which runs beside the machine: it needs no more than libc
        f'mkdir -p "$1"/tmp/prometheus {DEBIAN}',
        'chroot "$1" sh -euc "cd /tmp/prometheus; apt-get -q download prometheus; '
        'dpkg-deb -x *.deb ."',
        f'mv "$1"/tmp/prometheus/usr/bin/prometheus {DEBIAN}',
        'rm -r "$1"/tmp/prometheus',
    ]
    command = [*_SPACES, "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", *exclude]
    command += ["--dpkgopt=path-include=/usr/share/locale/locale.alias"]
    # the lists stay: the mirror of the sandbox only confirms them
    command += ["--skip=cleanup/apt,cleanup/reproducible", f"--include={','.join(IMAGE.split())}"]
    command += [f"--customize-hook={hook}" for hook in hooks]
    with (CACHE / "mmdebstrap.log").open("w") as log:
        subprocess.run(
            [*command, RELEASE, tree.root, *_sources()], stdout=log, stderr=log, check=True
        )


def _sources() -> list[Path]:
    """This Debian's own sources, for the release of the machine; none if it is no Debian."""
    system = platform.freedesktop_os_release()
    release = system.get("VERSION_CODENAME", "")
    if system["ID"] != "debian":
        return []  # mmdebstrap knows Debian's own
    apt = Path("/etc/apt")
    for source in [*apt.glob("sources.list"), *apt.glob("sources.list.d/*.[ls]*")]:
        lines = [line for line in source.read_text().splitlines() if not line.startswith("#")]
        if any(release in line.replace("/", " ").split() for line in lines):
            copy = CACHE / f"{RELEASE}-{source.name}"
            copy.write_text("\n".join(lines).replace(release, RELEASE) + "\n")
            return [copy]
    return []


def _apt() -> Path:
    """What stands in the image's /etc/apt, but for whose mirror it is."""
    apt, own = CACHE / "apt", "".join(file.read_text() for file in _sources())
    for name in ("mirrors", "sources.list.d"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    paragraphs = []
    for name, suites in ARCHIVES.items():
        url = re.search(rf"https?://\S+/{name}/?(?=\s)", own)
        mirror = url[0] if url else f"http://deb.debian.org/{name}"
        (apt / "mirrors" / f"{name}.list").write_text(f"{mirror}\n")
        paragraphs.append(
            f"Types: deb deb-src\nURIs: mirror+file:/etc/apt/mirrors/{name}.list\n"
            f"Suites: {suites}\nComponents: main\n"
            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        )
    (apt / "sources.list.d" / "debian.sources").write_text("\n".join(paragraphs))
    return apt


def _finish(tree: Tree) -> None:
    for name, text in FILES.items():
        (tree.root / name).parent.mkdir(parents=True, exist_ok=True)
        (tree.root / name).write_text(text)
    resolved = tree.root / "etc/resolv.conf"
    resolved.unlink(missing_ok=True)
    resolved.symlink_to("/run/systemd/resolve/resolv.conf")
    for key in (tree.root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (tree.root / "var/lib/dbus/machine-id").unlink(missing_ok=True)


def _forget_older(tree: Tree) -> None:
    """Trees of the weeks before: nobody boots them any more, though one may still run."""
    fortnight = time.time() - 14 * 86_400
    for folder in CACHE.iterdir():
        if folder.is_dir() and folder != tree.folder and folder.stat().st_mtime < fortnight:
            shutil.rmtree(folder)


if __name__ == "__main__":
    try:
        build()
    except subprocess.CalledProcessError:
        sys.exit("\n".join((CACHE / "mmdebstrap.log").read_text().splitlines()[-20:]))
