# shellcheck shell=bash
# The programs that are built from Go modules, and their cache. A program's
# folder is named after its version and a hash of all that it is built from,
# so what is there is right, and another version never takes its place.

programs=(kubernetes coredns local-path-provisioner helm pause image)

program_version() { # PROGRAM: the version of what it is
  local module
  case $1 in
    kubernetes) module=k8s.io/kubernetes ;;
    coredns) module=github.com/coredns/coredns ;;
    local-path-provisioner) module=github.com/rancher/local-path-provisioner ;;
    helm) module=helm.sh/helm/v3 ;;
    kind) module=sigs.k8s.io/kind ;;
    *) echo v1 && return ;; # our own
  esac
  awk -v module="$module" '$1 == "require" { sub(/^require /, "") }
    $1 == module { print $2; exit }' "$here/go/$1/go.mod"
}

program_package() { # PROGRAM
  case $1 in
    local-path-provisioner) echo github.com/rancher/local-path-provisioner ;;
    helm) echo helm.sh/helm/v3/cmd/helm ;;
    kind) echo sigs.k8s.io/kind ;;
    *) echo . ;;
  esac
}

program_ldflags() { # PROGRAM
  local version flags='-s -w' package
  version=$(program_version "$1")
  case $1 in
    kubernetes)
      # Without these, nodes and kubectl would call themselves v0.0.0-master.
      for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=$version -X $package.gitCommit=$version"
        flags+=" -X $package.gitTreeState=clean"
        flags+=" -X $package.gitMajor=1 -X $package.gitMinor=$(cut -d. -f2 <<<"$version")"
      done
      ;;
    helm)
      # As helm's own Makefile does; the version of Kubernetes is what
      # `helm template` and `helm lint` assume when they ask no cluster.
      flags+=" -X helm.sh/helm/v3/internal/version.version=$version"
      for package in helm.sh/helm/v3/pkg/lint/rules helm.sh/helm/v3/pkg/chartutil; do
        flags+=" -X $package.k8sVersionMajor=1 -X $package.k8sVersionMinor=$(program_version kubernetes | cut -d. -f2)"
      done
      ;;
  esac
  echo "$flags"
}

program_dir() { # PROGRAM
  local hash
  hash=$({
    program_ldflags "$1"
    uname -m
    cd "$here/go/$1" && find . -type f \( -name '*.go' -o -name 'go.*' \) ! -name '*_test.go' -print0 | sort -z | xargs -0 sha256sum
  } | sha256sum)
  echo "$cache/cluster-bin/$1-$(program_version "$1")-${hash:0:12}"
}

build_program() { # PROGRAM: prints where it is, after building it if need be
  local name=$1 dir tmp
  dir=$(program_dir "$name")
  echo "$dir/$name"
  [[ -x $dir/$name ]] && return
  require_go
  mkdir -p "$cache/cluster-bin"
  (
    exec 8>>"$dir.lock"
    flock 8 # two runs must not build the same thing at once
    [[ -x $dir/$name ]] && exit
    case $name in
      kubernetes) log "building $name $(program_version "$name") (once; several minutes)" ;;
      pause | image) log "building $name" ;;
      *) log "building $name $(program_version "$name") (once; about a minute)" ;;
    esac
    tmp=$(mktemp -d "$cache/cluster-bin/.$name-XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    # -mod=readonly and go.sum make the build reproducible; no cgo makes the
    # program static, and so usable in an image.
    cd "$here/go/$name" || exit
    GOWORK=off CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false \
      -ldflags "$(program_ldflags "$name")" -o "$tmp/$name" "$(program_package "$name")" >&2 8>&-
    chmod 755 "$tmp"
    rm -rf "$dir"
    mv -T "$tmp" "$dir"
    rm -f "$dir.lock"
    log "built $name"
  )
}

require_go() {
  local version
  version=$(go env GOVERSION 2>/dev/null) || die "go is missing, and some programs are to be built: install Go 1.25 or newer"
  [[ $version =~ ^go1\.(2[5-9]|[3-9][0-9]) ]] ||
    die "$version is too old to build Kubernetes: install Go 1.25 or newer"
}

# A folder with the programs under the names that they are called by.
link_programs() { # DIR PROGRAM…
  local dir=$1 name path
  shift
  mkdir -p "$dir"
  for name in "$@"; do
    path=$(build_program "$name")
    ln -sfn "$path" "$dir/$name"
  done
  ln -sfn kubernetes "$dir/kubectl"
}
