# shellcheck shell=bash
# Addresses, and the one link between the host and the cluster. A cluster has
# 256 times 256 addresses, $net.0.0/16:
#
#   $net.0.1        control plane, on the bridge `nodes` of its namespace
#   $net.0.1N       node N
#   $net.1N.0/24    pods of node N ($net.16.0/20 is set aside for pods)
#   $net.32.0/20    Services: .32.1 is the API, .32.10 is DNS
#   $net.255.0/30   the link: .1 the host, .2 the control plane
#
# No namespace has a default route. The host has a second-best route to
# $net.0.0/16 that says "unreachable", made before anything else and kept when
# the cluster goes: a packet meant for a cluster that is not there must not
# follow the host's default route out of the machine.

fallback_metric=4278198272

network_addresses() { # NET: sets the names of addresses
  net=$1
  control_ip=$net.0.1
  pods_cidr=$net.16.0/20
  services_cidr=$net.32.0/20
  dns_ip=$net.32.10
  api=https://$control_ip:6443
}

node_ip() { echo "$net.0.1$1"; }        # N
pods_of_node() { echo "$net.$((16 + $1)).0/24"; } # N

# Picks $net for this id: always the same one, but for the case that it is
# taken by another cluster, or by something else on this machine.
network_choose() {
  local hash count=144 i n candidate taken
  mkdir -p "$cache/cluster"
  (
    exec 8>>"$cache/cluster/.networks.lock"
    flock 8
    taken=$(
      host_networks
      for file in "$cache"/cluster/*/net; do
        [[ ! -e $file || $file == "$state/net" ]] || echo "$(<"$file").0.0/16"
      done
    )
    hash=$(cksum <<<"$id")
    hash=${hash%% *}
    for ((i = 0; i < count; i++)); do
      n=$(((hash + i) % count))
      if ((n < 128)); then candidate=10.$((64 + n)); else candidate=172.$((16 + n - 128)); fi
      if ! network_overlaps "$candidate" <<<"$taken"; then
        install -d -m 700 "$state"
        echo "$candidate" >"$state/net"
        exit
      fi
    done
    die "no free network among 10.64.0.0/16 to 10.191.0.0/16 and 172.16.0.0/12: remove a cluster or a route"
  )
  network_addresses "$(<"$state/net")"
}

# The networks that the host knows already, but for default routes and our own
# fall-backs, as address/length.
host_networks() {
  ip -4 route show table all | grep -vw "metric $fallback_metric" |
    awk '{ p = ($1 ~ /^[a-z]/) ? $2 : $1 }
      p ~ /^[0-9.]+$/ { p = p "/32" }
      p ~ /^[0-9.]+\/[0-9]+$/ && p !~ /\/0$/ { print p }'
}

network_overlaps() { # NET, and networks on standard input
  local a b c d length low high from=${1%.*} to=${1#*.} first last
  first=$(((from << 24) + (to << 16)))
  last=$((first + 65535))
  while IFS=./ read -r a b c d length; do
    [[ -n $length ]] || continue
    low=$(((a << 24) + (b << 16) + (c << 8) + d))
    high=$((low + (1 << (32 - length)) - 1))
    ((low <= last && high >= first)) && return 0
  done
  return 1
}

network_fallback() {
  ip route replace unreachable "$net.0.0/16" metric "$fallback_metric"
}

# The host's end of the link, and the other end in the control plane's
# namespace, whose init waits for it.
network_connect() { # PID
  ip link add "$host_link" type veth peer name host0 netns "$1"
  # No addresses that the kernel would make up.
  echo 1 2>/dev/null >"/proc/sys/net/ipv6/conf/$host_link/disable_ipv6" || true
  ip addr add "$net.255.1/30" dev "$host_link"
  ip link set "$host_link" up
  ip route replace "$net.0.0/16" via "$net.255.2" dev "$host_link" src "$net.255.1"
}

network_disconnect() {
  ip link del "$host_link" 2>/dev/null || true
  until_true 10 network_gone || die "the network device $host_link does not go: look at what holds it"
}

network_gone() { [[ ! -e /sys/class/net/$host_link ]]; }
