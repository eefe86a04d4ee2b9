#!/usr/bin/env bash
# PID 1 of the control plane: etcd, the API server, the controller manager, the
# scheduler, DNS and the storage provisioner, in namespaces of their own.
# Arguments: STATE NET. Killing it ends the whole cluster, nodes included, as
# the nodes' pid namespaces are inside this one.
set -euo pipefail

# While /proc is still the host's, it says what our pid is there.
read -r pid _ </proc/self/stat
echo "$pid" >"$1/control.pid.new" && mv "$1/control.pid.new" "$1/control.pid"

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=lib/common.sh
. "$here/lib/common.sh"
# shellcheck source=lib/network.sh
. "$here/lib/network.sh"
# shellcheck source=lib/init.sh
. "$here/lib/init.sh"

network_addresses "$2"
init_mounts "$1"
hostname control-plane
cd "$init_state"
logs=$init_state/logs
pki=$init_state/pki
manifests=$init_state/src/manifests

ip link set lo up
ip link add nodes type bridge
ip addr add "$control_ip/24" dev nodes
ip link set nodes up
ip route add unreachable "$net.0.0/16"
for n in "${node_numbers[@]}"; do
  ip route add "$(pods_of_node "$n")" via "$(node_ip "$n")"
done
echo 1 >/proc/sys/net/ipv4/ip_forward
init_wait_for_device host0
ip addr add "$net.255.2/30" dev host0
ip link set host0 up

init_supervise etcd kubernetes etcd --data-dir etcd --unsafe-no-fsync \
  --listen-client-urls "http://$control_ip:2379" --advertise-client-urls "http://$control_ip:2379" \
  --listen-peer-urls "http://$control_ip:2380" --initial-advertise-peer-urls "http://$control_ip:2380" \
  --initial-cluster "default=http://$control_ip:2380" &
# The API server tries again only after a second.
until (exec 3<>"/dev/tcp/$control_ip/2379") 2>/dev/null; do sleep 0.02; done

init_supervise kube-apiserver kubernetes kube-apiserver \
  --etcd-servers "http://$control_ip:2379" \
  --bind-address "$control_ip" --advertise-address "$control_ip" --secure-port 6443 \
  --service-cluster-ip-range "$services_cidr" \
  --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
  --client-ca-file "$pki/ca.crt" --token-auth-file "$pki/tokens.csv" \
  --kubelet-client-certificate "$pki/kubelet-client.crt" --kubelet-client-key "$pki/kubelet-client.key" \
  --kubelet-preferred-address-types InternalIP \
  --service-account-key-file "$pki/sa.key" --service-account-signing-key-file "$pki/sa.key" \
  --service-account-issuer https://kubernetes.default.svc.cluster.local \
  --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged \
  --enable-aggregator-routing \
  --default-not-ready-toleration-seconds 5 --default-unreachable-toleration-seconds 5 \
  --audit-policy-file "$manifests/audit-policy.yaml" --audit-log-path audit/audit.log --audit-log-maxsize 2048 &

# The others give up when they find no healthy API server; and with two cores,
# it is up sooner when it is alone.
until curl --fail --silent --noproxy '*' --max-time 2 --cacert "$pki/ca.crt" "$api/readyz" >/dev/null; do
  sleep 0.05
done
touch "$init_state/api-ready"

init_supervise kube-controller-manager kubernetes kube-controller-manager \
  --kubeconfig "$pki/controller-manager.kubeconfig" --bind-address "$control_ip" --leader-elect=false \
  --service-account-private-key-file "$pki/sa.key" --root-ca-file "$pki/ca.crt" \
  --use-service-account-credentials \
  --cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" \
  --allocate-node-cidrs=false \
  --node-monitor-period 1s --node-monitor-grace-period 6s \
  --kube-api-qps 200 --kube-api-burst 400 &

init_supervise kube-scheduler kubernetes kube-scheduler \
  --kubeconfig "$pki/scheduler.kubeconfig" --bind-address "$control_ip" --leader-elect=false &

init_supervise coredns coredns -conf Corefile &

CONFIG_MOUNT_PATH=$manifests/local-path init_supervise local-path-provisioner local-path-provisioner start \
  --config "$manifests/local-path/config.json" --helper-pod-file "$manifests/local-path/helperPod.yaml" \
  --helper-image localhost/busybox:1 --kubeconfig "$pki/admin.kubeconfig" &

init_for_ever
