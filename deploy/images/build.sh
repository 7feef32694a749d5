#!/usr/bin/env bash
# Builds the images of the demo and of the exercise on this machine's Docker,
# without any registry. What has not changed since it was built is left alone: each
# image carries a label with the hash of what it was made from.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly exercise=$here/../exercise/images
readonly work=$here/../../target/images
# Not under io.timonier.: those labels mark the agent's containers, and a container
# inherits its image's labels.
readonly HASH_LABEL=timonier.io/source-hash
readonly SUITE=bookworm
readonly MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
readonly BASE_IMAGE=timonier/debian:$SUITE
readonly WEB_VERSIONS="v1 v2"
readonly RUSTC_FLAGS=(--edition 2024 -C target-feature=+crt-static -C opt-level=s -C panic=abort -C strip=symbols)
# Express has two versions, since it is what the exercise updates.
readonly EXERCISE_IMAGES="tomcat:v1 apache:v1 express:v1 express:v2"

usage() {
  cat <<'USAGE'
usage: deploy/images/build.sh [web|exercise|all]

  web        timonier/web:v1 and :v2, one static program in an image from scratch
  exercise   timonier/tomcat:v1, timonier/apache:v1 and timonier/express:v1 and :v2,
             from Debian's packages
  all        both (the default)
DEBIAN_MIRROR names another mirror than http://deb.debian.org/debian.
USAGE
}

say()  { printf 'images: %s\n' "$*"; }
fail() { printf 'images: error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }

# As root commands run as they are; else through sudo, if Docker is not for everyone.
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }
docker() { if [ -w /var/run/docker.sock ]; then command docker "$@"; else as_root docker "$@"; fi; }

hash_of() { cat "$@" | sha256sum | cut -c1-16; }
# Tagging anew leaves the old image without a name; this takes it away if nothing uses it.
id_of() { docker image inspect -f '{{.Id}}' "$1" 2>/dev/null || true; }
drop_old() { # OLD_ID IMAGE
  if [ -n "$1" ] && [ "$1" != "$(id_of "$2")" ]; then docker rmi "$1" >/dev/null 2>&1 || true; fi
}
is_built() { [ "$(docker image inspect -f "{{index .Config.Labels \"$HASH_LABEL\"}}" "$1" 2>/dev/null)" = "$2" ]; }

build_web() {
  local rustc_version hash version old program=$work/web/web started=$SECONDS
  command -v rustc >/dev/null || fail "cannot build timonier/web: no rustc" "see https://rustup.rs"
  rustc_version=$(rustc --version)
  hash=$({ cat "$here/web/web.rs"; echo "$rustc_version ${RUSTC_FLAGS[*]}"; } | hash_of -)
  for version in $WEB_VERSIONS; do
    is_built "timonier/web:$version" "$hash" || break
    [ "$version" != "${WEB_VERSIONS##* }" ] || { say "timonier/web is up to date"; return; }
  done
  say "compiling web.rs"
  mkdir -p "$work/web"
  rustc "${RUSTC_FLAGS[@]}" -o "$program" "$here/web/web.rs"
  for version in $WEB_VERSIONS; do
    # The archive is the same each time, so both versions share their one layer.
    old=$(id_of "timonier/web:$version")
    tar -C "$work/web" --mtime=@0 --owner=0 --group=0 --numeric-owner -c web \
      | docker import -c 'ENTRYPOINT ["/web"]' -c "ENV VERSION=$version" -c 'EXPOSE 8080' \
          -c "LABEL $HASH_LABEL=$hash" - "timonier/web:$version" >/dev/null
    drop_old "$old" "timonier/web:$version"
    say "timonier/web:$version, $(( $(stat -c %s "$program") / 1024 )) KiB"
  done
  say "timonier/web built in $((SECONDS - started)) s"
}

build_base() {
  local hash old root=$work/debian started=$SECONDS log=$work/debian.log
  hash=$(echo "$SUITE $MIRROR minbase 2" | hash_of -)
  if is_built "$BASE_IMAGE" "$hash"; then return; fi
  PATH=$PATH:/usr/sbin command -v debootstrap >/dev/null || "$here/../setup.sh" --no-start --with images
  say "$BASE_IMAGE from $MIRROR, about a minute"
  as_root rm -rf "$root"
  mkdir -p "$work"
  as_root env PATH="$PATH:/usr/sbin:/sbin" debootstrap --variant=minbase "$SUITE" "$root" "$MIRROR" >"$log" 2>&1 \
    || { tail -n 10 "$log" >&2; fail "cannot make Debian's base system from $MIRROR" "set DEBIAN_MIRROR to a mirror that this machine reaches"; }
  # An image needs no package cache, manuals or translations, and apt in it is to
  # leave none behind.
  as_root bash -s "$root" <<'SLIM'
    set -e; cd "$1"
    rm -rf var/cache/apt/archives/*.deb var/lib/apt/lists/* usr/share/{doc,man,info,locale}/* var/log/*.log
    mkdir -p usr/share/man/man{1..8}  # some packages (Java) fail to install without
    printf 'path-exclude=/usr/share/%s/*\n' doc man info locale > etc/dpkg/dpkg.cfg.d/slim
    printf '#!/bin/sh\nexit 101\n' > usr/sbin/policy-rc.d && chmod 755 usr/sbin/policy-rc.d
    printf 'APT::Install-Recommends "false";\nDPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };\n' > etc/apt/apt.conf.d/slim
SLIM
  old=$(id_of "$BASE_IMAGE")
  as_root tar -C "$root" --numeric-owner -c . \
    | docker import -c 'CMD ["bash"]' -c "LABEL $HASH_LABEL=$hash" - "$BASE_IMAGE" >/dev/null
  drop_old "$old" "$BASE_IMAGE"
  as_root rm -rf "$root"
  say "$BASE_IMAGE built in $((SECONDS - started)) s"
}

build_exercise() {
  local image name version hash old started log buildkit=1
  build_base
  # Docker's newer builder needs a plug-in that Debian does not have.
  docker buildx version >/dev/null 2>&1 || buildkit=0
  for image in $EXERCISE_IMAGES; do
    name=${image%:*} version=${image#*:} started=$SECONDS
    log=$work/$name.log
    # The base is part of the hash: a new one makes new images.
    hash=$({ cat "$exercise/$name"/*; docker image inspect -f '{{.Id}}' "$BASE_IMAGE"; } | hash_of -)
    if is_built "timonier/$image" "$hash"; then say "timonier/$image is up to date"; continue; fi
    say "timonier/$image, half a minute or so"
    old=$(id_of "timonier/$image")
    # --network host: names resolve as they do on this machine, whatever its resolver.
    DOCKER_BUILDKIT=$buildkit docker build --force-rm --network host --label "$HASH_LABEL=$hash" \
        --build-arg "VERSION=$version" -t "timonier/$image" "$exercise/$name" >"$log" 2>&1 \
      || { tail -n 15 "$log" >&2; fail "cannot build timonier/$image" "the whole log is $log"; }
    drop_old "$old" "timonier/$image"
    say "timonier/$image built in $((SECONDS - started)) s, $(( $(docker image inspect -f '{{.Size}}' "timonier/$image") / 1000000 )) MB with its base"
  done
}

case ${1:-all} in
  web) build_web ;;
  exercise) build_exercise ;;
  all) build_web; build_exercise ;;
  -h|--help) usage ;;
  *) usage >&2; fail "unknown image \"$1\"" ;;
esac
