#!/usr/bin/env bash
# Sets up what the sandbox (demo) or also the tests (test) need. Repeated runs only check.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?usage: tools/setup.sh demo|test}
mkdir -p .cache/bin .cache/log

step() { # step TEXT COMMAND...: run it with its output in a log, and say how long it took
    local text=$1 began=$SECONDS log
    log=.cache/log/${text%% *}.log
    shift
    printf '==> %s ...\n' "$text" >&2
    if ! "$@" > "$log" 2>&1; then
        printf '==> %s: failed (%s)\n' "$text" "$log" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
    printf '==> %s: %d s\n' "$text" $((SECONDS - began)) >&2
}

jobs=()
beside() { # beside TEXT COMMAND...: a step that nothing waits for before the end
    set -m # in a process group of its own, so that whoever ends this ends it
    step "$@" &
    jobs+=($!)
    set +m
}
trap 'for job in "${jobs[@]}"; do kill -- "-$job" 2> /dev/null || true; done' EXIT

current() { # current STAMP FILES...: whether STAMP was made from these files as they are
    [ -f "$1" ] && [ "$(cat "$1")" = "$(cat "${@:2}" | sha256sum)" ]
}

stamp() { cat "${@:2}" | sha256sum > "$1"; }

# Debian packages, by the program that each brings
programs=(nginx:nginx apache2:apache2 openssl:openssl)
[ "$what" = test ] && programs+=(systemd-analyze:systemd npm:npm ip:iproute2 faketime:faketime iptables:iptables curl:curl)
if [ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ]; then # what boots the declared machine
    programs+=(mmdebstrap:mmdebstrap systemd-nspawn:systemd-container dnsmasq:dnsmasq-base
        ip:iproute2 nft:nftables nsenter:util-linux sysctl:procps)
fi
missing=()
for entry in "${programs[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${entry%%:*}" > /dev/null || missing+=("${entry##*:}")
done
python3 -c 'import ensurepip' 2> /dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "missing Debian packages; run: sudo apt-get install ${missing[*]}" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    step "apt-get update" apt-get -q update
    step "Debian packages: ${missing[*]}" apt-get -qy install --no-install-recommends "${missing[@]}"
fi

build() { # build MODULE LDFLAGS PACKAGES...
    (cd "tools/$1" && go build -ldflags "$2" -o ../../.cache/bin/ "${@:3}")
    stamp ".cache/$1.stamp" "tools/$1/go.mod" "tools/$1/go.sum"
}

need_go() {
    command -v go > /dev/null || {
        echo "$1 is not on \$PATH and Go, which could build it, is not either" >&2
        exit 1
    }
}

if ! command -v pulumi > /dev/null && ! current .cache/pulumi.stamp tools/pulumi/go.{mod,sum}; then
    need_go pulumi
    version=$(sed -n 's|^require github.com/pulumi/pulumi/pkg/v3 v||p' tools/pulumi/go.mod)
    [ -n "$version" ] || version=$(sed -n 's|.*github.com/pulumi/pulumi/pkg/v3 v\([0-9.]*\).*|\1|p' tools/pulumi/go.mod)
    # without a version at link time the Automation API refuses the CLI
    beside "Pulumi CLI $version (3 to 5 min the first time)" build pulumi \
        "-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=$version" \
        github.com/pulumi/pulumi/pkg/v3/cmd/pulumi
fi

if [ "$what" = test ] && ! current .cache/actionlint.stamp tools/actionlint/go.{mod,sum}; then
    need_go actionlint
    beside "actionlint (seconds)" build actionlint "-s -w" github.com/rhysd/actionlint/cmd/actionlint
fi

if ! current .venv/stamp requirements-dev.txt; then
    step "virtual environment" python3 -m venv .venv
    step "Python packages" .venv/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
    stamp .venv/stamp requirements-dev.txt
fi

tree=build
.venv/bin/python -c 'import sys; from sandbox.machines.vm import image, machine
sys.exit(2 if machine.obstacle() else image.cached().root.exists())' || tree=$([ $? = 1 ] && echo there || echo impossible)

# the tree brings Debian's; the tests want a newer one, too
lacks_prometheus() {
    if [ "$what" = test ]; then
        ! current .cache/prometheus.stamp tools/prometheus/go.{mod,sum}
    else
        [ $tree = impossible ] && ! .venv/bin/python -c 'from sandbox.tools import prometheus as p; p()' 2> /dev/null
    fi
}
if lacks_prometheus; then
    need_go "Prometheus 2.43 or newer"
    beside "Prometheus and promtool (4 to 6 min the first time)" build prometheus "-s -w" \
        github.com/prometheus/prometheus/cmd/prometheus github.com/prometheus/prometheus/cmd/promtool
fi

if [ $tree = build ]; then
    step "Debian 13 tree (1 to 2 min, once a week)" .venv/bin/python -m sandbox.machines.vm.image
fi

for job in "${jobs[@]}"; do wait "$job"; done
