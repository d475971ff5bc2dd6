#!/bin/sh
# Boot the machine once, in the network and mount namespaces that this runs in; ends as it ends:
# 133 for a reboot (systemd-nspawn leaves the second start to its caller).
#   boot.sh NAME TREE DISK CGROUP...     DISK has upper/, work/, root/ and hypervisor/
set -eu
name=$1 tree=$2 disk=$3
shift 3
for group in "$@"; do
    echo $$ > "$group/cgroup.procs"
done
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$disk/upper,workdir=$disk/work" "$disk/root"
# what nspawn leaves here when it is killed
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn
# read-only /sys: nspawn does not wait for udev
mount -o remount,bind,ro /sys
# Without BPF, IPAddressDeny= and SocketBindDeny= would silently not be enforced.
# /sys/hypervisor/uuid: cloud-init takes what begins with "ec2" for EC2.
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --boot \
    --directory="$disk/root" --machine="$name" --register=no --keep-unit --console=read-only \
    --network-interface=ens5 --resolv-conf=off --timezone=off --link-journal=no \
    --bind-ro="$disk/hypervisor:/sys/hypervisor" \
    --capability=CAP_BPF,CAP_PERFMON --system-call-filter=bpf
