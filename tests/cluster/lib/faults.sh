# shellcheck shell=bash
# Packets between two addresses dropped in a node's namespace, in a table of
# its own that kube-proxy knows nothing of. All pod traffic is routed through
# its node, so this holds between pods of one node as well.

faults_prepare() { # [PREFIX…]: what leads into the right namespace
  "$@" nft -f - <<'END'
table ip lockstep {
  set blocked {
    type ipv4_addr . ipv4_addr
  }
  # At the hooks after kube-proxy has put a pod's address for a Service's.
  chain forward {
    type filter hook forward priority -10; policy accept;
    ip saddr . ip daddr @blocked drop
  }
  chain input {
    type filter hook input priority -10; policy accept;
    ip saddr . ip daddr @blocked drop
  }
  chain output {
    type filter hook output priority 10; policy accept;
    ip saddr . ip daddr @blocked drop
  }
}
END
}

# The file has one pair of addresses a line; both directions are blocked.
faults_restore() { # FILE [PREFIX…]
  local a b file=$1
  shift
  {
    echo flush set ip lockstep blocked
    while read -r a b; do
      echo "add element ip lockstep blocked { $a . $b, $b . $a }"
    done <"$file"
  } | "$@" nft -f -
}
