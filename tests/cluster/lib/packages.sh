# shellcheck shell=bash
# What Debian has ready-made, installed when it is missing.

# One line each: what has to be there, and the package that brings it.
required() {
  cat <<'END'
containerd containerd
ctr containerd
runc runc
/usr/lib/cni/ptp containernetworking-plugins
/usr/lib/cni/host-local containernetworking-plugins
/usr/lib/cni/portmap containernetworking-plugins
nft nftables
iptables iptables
conntrack conntrack
ip iproute2
openssl openssl
curl curl
unshare util-linux
nsenter util-linux
setsid util-linux
flock util-linux
mount mount
hostname hostname
find findutils
awk mawk
END
}

missing_packages() {
  local what package
  while read -r what package; do
    command -v "$what" >/dev/null || echo "$package"
  done < <(required)
  static_busybox >/dev/null || echo busybox-static
}

# The busybox of the package `busybox` needs libraries that no image here has.
static_busybox() {
  local path
  path=$(command -v busybox) || return 1
  ! ldd "$path" >/dev/null 2>&1 || return 1
  echo "$path"
}

apt_install() { # PACKAGE…
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
    install --yes -qq --no-install-recommends "$@" >/dev/null
}

install_packages() { # [PACKAGE…]: these, or else all that are missing
  local packages=("$@")
  (($#)) || mapfile -t packages < <(missing_packages | sort -u)
  ((${#packages[@]})) || return 0
  command -v apt-get >/dev/null || die "missing here: ${packages[*]} (names of Debian packages): install them"
  [[ $EUID -eq 0 ]] || die "missing here: ${packages[*]}: install them, or run this as root"
  log "installing ${packages[*]}"
  # The package lists are fetched only when those at hand do not do.
  if ! apt_install "${packages[@]}"; then
    apt-get -o DPkg::Lock::Timeout=300 update -qq || die "apt-get update failed: see above"
    apt_install "${packages[@]}" || die "cannot install ${packages[*]}: see above"
  fi
  (($# == 0)) || return 0
  mapfile -t packages < <(missing_packages | sort -u)
  ((${#packages[@]} == 0)) || die "still missing after the installation: ${packages[*]}"
}
