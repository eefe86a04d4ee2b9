# shellcheck shell=bash
# The same cluster by kind, where a container server answers: a control plane
# and three workers, named as kind names them.

choose_provider() {
  provider=${LOCKSTEP_CLUSTER_PROVIDER:-}
  case $provider in
    kind | local) return ;;
    '') ;;
    *) die "LOCKSTEP_CLUSTER_PROVIDER='$provider': not known: say kind or local, or leave it empty" ;;
  esac
  provider=local
  docker_answers || return 0
  if (kind_program >/dev/null); then
    provider=kind
  else
    log "there is a docker server, but kind is neither on PATH nor can it be built: assembling a cluster here"
  fi
}

# The client alone is no engine.
docker_answers() { command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1; }

kind_program() { command -v kind || build_program kind; }

kind_node_name() { # N: as docker and Kubernetes call it
  case $1 in 1) echo "lockstep-$id-worker" ;; *) echo "lockstep-$id-worker$1" ;; esac
}

kind_prepare() {
  local name
  for name in kubernetes helm image pause; do build_program "$name" >/dev/null; done
  static_busybox >/dev/null || install_packages busybox-static
  kind_program >/dev/null
  cluster_images >/dev/null
}

kind_up() {
  local node
  kind_prepare
  kind_clear
  install -d -m 700 "$state"
  mkdir "$state/audit" "$state/logs"
  : >"$state/blocked"
  echo kind >"$state/provider"
  link_programs "$state/bin" kubernetes helm image
  cp -r "$here/manifests" "$state/manifests"
  kind_configure
  log "kind makes the cluster lockstep-$id"
  "$(kind_program)" create cluster --name "lockstep-$id" --config "$state/kind.yaml" \
    --kubeconfig "$state/kubeconfig" --wait 180s >"$state/logs/kind.log" 2>&1 ||
    { tail -n 20 "$state/logs/kind.log" >&2 && die "kind cannot make the cluster: see above and $state/logs/kind.log"; }
  kind_load_image "$(cluster_images)/busybox.tar"
  for node in "${node_numbers[@]}"; do kind_faults_prepare "$node"; done
  kubectl wait --for condition=Ready node --all --timeout 60s >/dev/null
  until_true 30 kubectl get serviceaccount default --namespace default >/dev/null 2>&1 ||
    die "no default service account in time: see the logs of the controller manager"
  log "cluster $id is ready"
}

# The same settings as the cluster that is assembled here has.
kind_configure() {
  cat >"$state/kind.yaml" <<END
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
- role: control-plane
  extraMounts:
  - {hostPath: $state/manifests, containerPath: /etc/lockstep, readOnly: true}
  - {hostPath: $state/audit, containerPath: /var/log/lockstep}
- role: worker
- role: worker
- role: worker
kubeadmConfigPatches:
- |
  kind: ClusterConfiguration
  apiServer:
    extraArgs:
      default-not-ready-toleration-seconds: "5"
      default-unreachable-toleration-seconds: "5"
      audit-policy-file: /etc/lockstep/audit-policy.yaml
      audit-log-path: /var/log/lockstep/audit.log
      audit-log-maxsize: "2048"
    extraVolumes:
    - {name: policy, hostPath: /etc/lockstep, mountPath: /etc/lockstep, readOnly: true, pathType: Directory}
    - {name: audit, hostPath: /var/log/lockstep, mountPath: /var/log/lockstep, pathType: Directory}
  controllerManager:
    extraArgs:
      node-monitor-period: 1s
      node-monitor-grace-period: 6s
- |
  kind: KubeletConfiguration
  nodeLeaseDurationSeconds: 4
  nodeStatusUpdateFrequency: 1s
END
}

kind_clear() {
  # What the API server wrote is root's, who may not be us.
  docker exec "lockstep-$id-control-plane" sh -c 'rm -f /var/log/lockstep/*' 2>/dev/null || true
  "$(kind_program)" delete cluster --name "lockstep-$id" --kubeconfig "$state/kubeconfig" >/dev/null 2>&1 ||
    die "kind cannot remove the cluster lockstep-$id: try: kind delete cluster --name lockstep-$id"
  rm -rf --one-file-system "$state"
}

kind_down() {
  kind_clear
  log "cluster $id is gone"
}

kind_load_image() { # ARCHIVE
  "$(kind_program)" load image-archive "$1" --name "lockstep-$id" >&2
}

kind_faults_prepare() { # N
  docker exec --interactive "$(kind_node_name "$1")" nft list table ip lockstep >/dev/null 2>&1 ||
    faults_prepare docker exec --interactive "$(kind_node_name "$1")"
}

kind_apply_blocked() {
  local n
  for n in "${node_numbers[@]}"; do
    [[ $(docker inspect --format '{{.State.Running}}' "$(kind_node_name "$n")") == true ]] || continue
    faults_restore "$state/blocked" docker exec --interactive "$(kind_node_name "$n")"
  done
}

kind_switch() { # VERB N [COMMAND…]
  local verb=$1 n=$2 node
  node=$(kind_node_name "$n")
  shift 2
  case $verb in
    kill) docker kill "$node" >/dev/null ;;
    start)
      docker start "$node" >/dev/null
      until_true 60 docker exec "$node" systemctl is-active --quiet kubelet || die "node $n does not come up: see docker logs $node"
      kind_faults_prepare "$n"
      faults_restore "$state/blocked" docker exec --interactive "$node"
      ;;
    # Taking the device down would lose its routes, so drop what it carries.
    cut)
      docker exec --interactive "$node" nft -f - <<'END'
table inet lockstep-cut {
  chain in { type filter hook prerouting priority -400; iifname "eth0" drop; }
  chain out { type filter hook postrouting priority 400; oifname "eth0" drop; }
}
END
      ;;
    heal) docker exec "$node" nft delete table inet lockstep-cut ;;
    freeze) docker pause "$node" >/dev/null ;;
    thaw) docker unpause "$node" >/dev/null ;;
    pid) docker inspect --format '{{.State.Pid}}' "$node" ;;
    exec) docker exec --interactive "$node" "$@" ;;
  esac
}

kind_api() { # stop|start
  local node=lockstep-$id-control-plane manifest=/etc/kubernetes/manifests/kube-apiserver.yaml
  case $1 in
    stop)
      docker exec "$node" sh -c "mv $manifest /root/ && pkill -KILL -x kube-apiserver"
      until_true 30 kind_api_gone || die "the API server does not stop"
      ;;
    start)
      docker exec "$node" mv /root/kube-apiserver.yaml "$manifest"
      until_true 60 kubectl get --raw /readyz >/dev/null 2>&1 || die "the API server does not start: see docker exec $node crictl ps -a"
      ;;
  esac
}

kind_api_gone() { ! docker exec "lockstep-$id-control-plane" pgrep -x kube-apiserver >/dev/null; }

kind_logs() { # DIR
  mkdir -p "$1"
  "$(kind_program)" export logs "$1" --name "lockstep-$id" >&2
  cp "$state/audit/audit.log" "$1/"
}
