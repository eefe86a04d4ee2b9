# shellcheck shell=bash
# The two images that the cluster itself needs, as OCI archives in the cache.

# Prints the folder with pause.tar and busybox.tar.
cluster_images() {
  local busybox hash dir stage applet tool pause
  busybox=$(static_busybox) || die "a static busybox is missing: install the package busybox-static"
  tool=$(build_program image)
  pause=$(build_program pause)
  hash=$({
    echo "$tool $pause"
    sha256sum <"$busybox"
    cat "$here"/images/*/Dockerfile "$here/lib/images.sh"
  } | sha256sum)
  dir=$cache/cluster-bin/images-${hash:0:12}
  echo "$dir"
  [[ -d $dir ]] && return
  stage=$(mktemp -d "$cache/cluster-bin/.images-XXXXXX")
  mkdir "$stage/out"

  install -D -m 755 "$pause" "$stage/pause/pause"
  "$tool" -t localhost/pause:1 -o "$stage/out/pause.tar" -f "$here/images/pause/Dockerfile" "$stage/pause"

  install -D -m 755 "$busybox" "$stage/busybox/root/bin/busybox"
  for applet in $("$busybox" --list); do
    [[ $applet == busybox ]] || ln -s busybox "$stage/busybox/root/bin/$applet"
  done
  install -d -m 755 "$stage/busybox/root/etc"
  install -d -m 1777 "$stage/busybox/root/tmp"
  printf 'root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/bin/sh\n' >"$stage/busybox/root/etc/passwd"
  printf 'root:x:0:\nnonroot:x:65532:\n' >"$stage/busybox/root/etc/group"
  "$tool" -t localhost/busybox:1 -o "$stage/out/busybox.tar" -f "$here/images/busybox/Dockerfile" "$stage/busybox"

  # Whoever comes second finds the folder there and keeps it.
  mv -T "$stage/out" "$dir" 2>/dev/null || [[ -d $dir ]] || die "cannot write $dir"
  rm -rf "$stage"
}
