# shellcheck shell=bash
# Starting and removing a cluster that is assembled on this machine.

local_prepare() {
  install_packages
  local name
  for name in "${programs[@]}"; do build_program "$name" >/dev/null; done
  cluster_images >/dev/null
}

local_up() {
  require_root
  local_prepare
  local_clear
  network_choose
  network_fallback
  log "cluster $id: $net.0.0/16, files in $state"

  mkdir -p "$state"/{audit,bin,images,logs,mnt,nodes,src}
  : >"$state/blocked"
  echo local >"$state/provider"
  link_programs "$state/bin" "${programs[@]}"
  cp "$(cluster_images)"/*.tar "$state/images/"
  # A copy, as the checkout may change or be hidden inside the namespaces.
  cp -r "$here"/{control-init.sh,node-init.sh,lib,manifests} "$state/src/"
  pki_make
  sed "s#@CONTROL_IP@#$control_ip#; s#@PKI@#/run/lockstep/state/pki#" "$here/manifests/Corefile" >"$state/Corefile"

  control_start
  local n
  for n in "${node_numbers[@]}"; do node_start "$n"; done
  log "control plane and nodes launched"
  control_wait
  log "cluster $id is ready"
}

local_clear() {
  cgroup_clear "$group" "$(pid_in "$group/control" "$state/control.pid" || true)"
  network_disconnect
  rm -rf --one-file-system "$state"
}

# A program that outlives this one: in its cgroup from the start, in a session
# of its own, with none of our files and nothing of our environment, in which a
# proxy, say, would mislead it.
launch() { # GROUP LOG COMMAND…
  local group=$1 log=$2
  shift 2
  (
    cgroup_enter "$group"
    exec env -i HOME=/ PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
      setsid "$@" >>"$log" 2>&1 </dev/null 8>&- 9>&-
  ) &
}

control_start() {
  cgroup_make "$group/control"
  launch "$group/control" "$state/logs/init.log" \
    unshare --mount --net --pid --uts --ipc --fork --propagation private \
    bash "$state/src/control-init.sh" "$state" "$net"
  until_true 10 test -s "$state/control.pid" || die "the control plane does not start: see $state/logs/init.log"
  network_connect "$(<"$state/control.pid")"
}

# The pid of the control plane's init, if it is one of ours.
control_pid() {
  pid_in "$group/control" "$state/control.pid" ||
    die "cluster '$id' is not running: start it with: cluster up --id $id"
}

in_control_net() { # COMMAND…
  nsenter --target "$(control_pid)" --net "$@"
}

kubectl() { NO_PROXY='*' "$state/bin/kubectl" --kubeconfig "$state/kubeconfig" "$@"; }

control_wait() {
  until_true 60 test -e "$state/api-ready" || control_failed "the API server"
  log "API server ready"
  sed "s/@DNS_IP@/$dns_ip/; s/@CONTROL_IP@/$control_ip/" "$here/manifests/dns.yaml" |
    cat - <(echo ---) "$here/manifests/storage.yaml" | kubectl create --validate=false -f - >/dev/null
  kubectl create configmap local-path-config --namespace local-path-storage \
    --from-file "$here/manifests/local-path" >/dev/null
  until_true 60 nodes_ready || control_failed "the nodes"
  log "nodes ready"
  until_true 30 services_ready || control_failed "DNS, kube-proxy or the default service account"
}

control_failed() { # WHAT
  local file
  for file in "$state"/logs/*.log "$state"/nodes/*/logs/*.log; do
    [[ -s $file ]] || continue
    printf '==> %s\n' "$file"
    tail -n 5 "$file"
  done >&2
  die "$1: not ready in time: see above, and more in $state/logs and $state/nodes/*/logs"
}

nodes_ready() {
  local ready
  ready=$(kubectl get nodes --output \
    jsonpath='{range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' 2>/dev/null | grep -c True)
  ((ready == ${#node_numbers[@]}))
}

services_ready() {
  local n
  probe "http://$control_ip:8181/ready" || return 1
  for n in "${node_numbers[@]}"; do
    probe "http://$(node_ip "$n"):10256/healthz" || return 1
  done
  kubectl get serviceaccount default --namespace default >/dev/null 2>&1
}

probe() { # URL
  curl --fail --silent --noproxy '*' --max-time 2 --output /dev/null "$1"
}

local_down() {
  require_root
  if [[ -s $state/net ]]; then
    network_addresses "$(<"$state/net")"
    network_fallback
  fi
  local_clear
  log "cluster $id is gone"
}

local_load_image() { # ARCHIVE
  local n pids=() pid
  for n in "${node_numbers[@]}"; do
    node_exec "$n" ctr -n k8s.io images import - <"$1" >/dev/null &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || die "load-image: not all nodes took $1: see above"
  done
}

# The API server away, with its port closed: connections to it are refused.
local_api() { # stop|start
  network_addresses "$(<"$state/net")"
  local pid server
  pid=$(control_pid)
  case $1 in
    stop)
      touch "/proc/$pid/root/run/lockstep/kube-apiserver.stopped"
      server=$(<"/proc/$pid/root/run/lockstep/kube-apiserver.pid")
      nsenter --target "$pid" --mount --pid bash -c "kill -KILL $server" 2>/dev/null || true
      until_true 10 api_gone || die "the API server does not stop: see $state/logs/kube-apiserver.log"
      ;;
    start)
      rm -f "/proc/$pid/root/run/lockstep/kube-apiserver.stopped"
      until_true 30 kubectl get --raw /readyz >/dev/null 2>&1 || die "the API server does not start: see $state/logs/kube-apiserver.log"
      ;;
  esac
}

api_gone() { ! (exec 3<>"/dev/tcp/$control_ip/6443") 2>/dev/null; }

local_apply_blocked() {
  local n
  for n in "${node_numbers[@]}"; do
    # A node that is off applies the list when it starts.
    ! node_is_on "$n" || faults_restore "$state/blocked" nsenter --target "$(node_pid "$n")" --net
  done
}

local_logs() { # DIR
  local n
  mkdir -p "$1"
  cp "$state"/logs/*.log "$1/"
  cp "$state/audit/audit.log" "$1/" 2>/dev/null || true
  for n in "${node_numbers[@]}"; do
    mkdir -p "$1/node$n"
    cp "$state/nodes/$n/logs"/*.log "$1/node$n/"
    cp -r "$state/nodes/$n/var-log/pods" "$1/node$n/" 2>/dev/null || true
  done
}
