#!/usr/bin/env bash
# PID 1 of a node: containerd, kubelet and kube-proxy, in namespaces of their
# own, on a disk that is a folder. Arguments: STATE NET N. Killing it is a power
# cut: the kernel ends everything on the node at once and drops its mounts.
set -euo pipefail

# While /proc is still the host's, it says what our pid is there.
read -r pid _ </proc/self/stat
disk=$1/nodes/$3
echo "$pid" >"$disk/pid.new" && mv "$disk/pid.new" "$disk/pid"

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=lib/common.sh
. "$here/lib/common.sh"
# shellcheck source=lib/network.sh
. "$here/lib/network.sh"
# shellcheck source=lib/faults.sh
. "$here/lib/faults.sh"
# shellcheck source=lib/init.sh
. "$here/lib/init.sh"

network_addresses "$2"
number=$3
init_mounts "$1" "$disk/var-lib:/var/lib" "$disk/var-log:/var/log" "$disk/opt:/opt"
mount --make-rshared / # volumes are to be seen by the containers
disk=$init_state/nodes/$number
logs=$disk/logs
hostname "node$number"

# The kubelet sets these, and they are the whole machine's: let it set copies.
for file in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
  kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  [[ -e /proc/sys/$file ]] || continue
  mkdir -p "/run/lockstep/sys/${file%/*}"
  cat "/proc/sys/$file" >"/run/lockstep/sys/$file"
  mount --bind "/run/lockstep/sys/$file" "/proc/sys/$file"
done

ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
# shellcheck disable=SC2119 # there is no prefix
faults_prepare
faults_restore "$init_state/blocked"
init_wait_for_device eth0
ip addr add "$(node_ip "$number")/24" dev eth0
ip link set eth0 up
ip route add unreachable "$net.0.0/16"
for n in "${node_numbers[@]}"; do
  [[ $n == "$number" ]] || ip route add "$(pods_of_node "$n")" via "$(node_ip "$n")"
done
ip route add "$net.255.0/30" via "$control_ip"
# A packet of the node itself to a Service needs some route before it is
# looked at; this one is never taken.
ip route add "$services_cidr" via "$control_ip"

# Containers must not find the paths of this machine in their environment.
init_supervise containerd containerd -c "$disk/containerd.toml" &
until ctr version >/dev/null 2>&1; do sleep 0.05; done
if [[ ! -e $disk/imported ]]; then
  for archive in "$init_state"/images/*.tar; do
    ctr -n k8s.io images import "$archive" >/dev/null
  done
  touch "$disk/imported"
fi

init_supervise kubelet kubernetes kubelet --config "$disk/kubelet.yaml" \
  --kubeconfig "$init_state/pki/node$number.kubeconfig" \
  --hostname-override "node$number" --node-ip "$(node_ip "$number")" &

init_supervise kube-proxy kubernetes kube-proxy --kubeconfig "$init_state/pki/proxy.kubeconfig" \
  --hostname-override "node$number" --proxy-mode nftables --cluster-cidr "$pods_cidr" \
  --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 &

touch "/run/lockstep/started"
init_for_ever
