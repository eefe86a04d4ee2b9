# shellcheck shell=bash
# A node as a machine of its own: its power, its cable, its shell.

# The pid of the node's init, if the node is on.
node_pid() { # N
  pid_in "$group/node$1/sys" "$state/nodes/$1/pid" ||
    die "node $1 is off: turn it on with: cluster node start $1"
}

node_is_on() { (node_pid "$1") >/dev/null 2>&1; } # N

node_start() { # N
  local disk=$state/nodes/$1
  ! node_is_on "$1" || die "node $1 is on already"
  cgroup_clear "$group/node$1" # what a power cut left
  cgroup_make "$group/node$1/sys"
  mkdir -p "$disk"/{cni,logs,opt,var-lib,var-log}
  rm -f "$disk/pid"
  node_configure "$1"
  # Inside the control plane's pid namespace, so that ending that ends all.
  launch "$group/node$1/sys" "$disk/logs/init.log" \
    nsenter --target "$(control_pid)" --pid -- \
    unshare --mount --net --pid --uts --ipc --fork --propagation private \
    bash "$state/src/node-init.sh" "$state" "$net" "$1"
  until_true 10 test -s "$disk/pid" || die "node $1 does not start: see $disk/logs/init.log"
  # The device of the last time goes only some time after its processes.
  in_control_net ip link del "node$1" 2>/dev/null || true
  until_true 10 in_control_net ip link add "node$1" type veth peer name eth0 netns "$(node_pid "$1")" 2>/dev/null ||
    die "node $1: its link cannot be made: see ip link in the control plane's namespace"
  in_control_net ip link set "node$1" master nodes up
}

node_started() { # N: whether the kubelet has been launched
  [[ -e /proc/$(node_pid "$1")/root/run/lockstep/started ]]
}

node_kill() { # N
  local pid
  pid=$(node_pid "$1")
  cgroup_clear "$group/node$1" "$pid"
}

local_node_name() { echo "node$1"; } # N

local_switch() { # VERB N [COMMAND…]
  local verb=$1 n=$2
  shift 2
  network_addresses "$(<"$state/net")"
  case $verb in
    kill) node_kill "$n" ;;
    start)
      node_start "$n"
      until_true 20 node_started "$n" || die "node $n does not come up: see $state/nodes/$n/logs"
      ;;
    cut) in_control_net ip link set "node$n" down ;;
    heal) in_control_net ip link set "node$n" up ;;
    freeze) cgroup_freeze "$group/node$n" ;;
    thaw) cgroup_thaw "$group/node$n" ;;
    pid) node_pid "$n" ;;
    exec) node_exec "$n" "$@" ;;
  esac
}

node_exec() { # N COMMAND…
  local pid
  pid=$(node_pid "$1")
  shift
  nsenter --target "$pid" --mount --net --pid --uts --ipc -- \
    env PATH="/run/lockstep/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" "$@"
}

node_configure() { # N
  local disk=$state/nodes/$1 own=/run/lockstep/state/nodes/$1 snapshotter=overlayfs
  # An overlay on an overlay is refused; this one copies instead.
  [[ $(stat --file-system --format %T "$disk") != overlayfs ]] || snapshotter=native

  # ptp rather than a bridge: everything is routed, so that a Service reaches a
  # pod on the same node, and packets between any two pods can be dropped. The
  # addresses in use are on tmpfs: a power cut leaks none.
  cat >"$disk/cni/10-pods.conflist" <<END
{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "ipam": {
        "type": "host-local",
        "dataDir": "/run/cni-addresses",
        "ranges": [[{"subnet": "$(pods_of_node "$1")"}]],
        "routes": [{"dst": "$net.0.0/16"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
END

  # restrict_oom_score_adj: root may lack CAP_SYS_RESOURCE.
  cat >"$disk/containerd.toml" <<END
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "localhost/pause:1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$snapshotter"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$own/cni"
END

  # The short lease and status period are for the fast detection of a dead
  # node that the controller manager is set to.
  cat >"$disk/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /run/lockstep/state/pki/ca.crt}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /$group/node$1
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
volumePluginDir: /var/lib/kubelet/volumeplugins
clusterDNS: [$dns_ip]
clusterDomain: cluster.local
resolvConf: /dev/null
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
nodeLeaseDurationSeconds: 4
nodeStatusUpdateFrequency: 1s
END
}
