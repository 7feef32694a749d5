#!/usr/bin/env bash
# Puts on a Debian machine what Timonier needs and starts Docker Engine: from
# Debian's own packages, nothing from elsewhere. Quiet when there is nothing to
# do, so every make target may call it first.
#
# It sets no kernel setting and adds no firewall rule: those are the agent's.
set -euo pipefail

readonly DOCKER_LOG=/var/log/timonier-dockerd.log
readonly DOCKER_START_TIMEOUT_S=60
readonly DOCKER_STARTS_MAX=2
readonly POLICY_FILE=/usr/sbin/policy-rc.d

usage() {
  cat <<'USAGE'
usage: deploy/setup.sh [--with EXTRA[,EXTRA…]] [--no-start]

installs docker.io, nftables and iproute2 where they are missing, and starts Docker.

  --with EXTRA   what benches and the exercise need besides, any of:
                   etcd      etcd-server, etcd-client
                   sshd      openssh-server, openssh-client
                   registry  docker-registry
                   images    debootstrap (to build the exercise's images)
                 their services are neither started nor enabled
  --no-start     only install; leave Docker as it is
USAGE
}

say()  { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }

extras=() start=yes
while [ $# -gt 0 ]; do
  case $1 in
    --with) [ $# -ge 2 ] || fail "--with needs a value" "one or more of etcd,sshd,registry,images"
            IFS=, read -ra more <<<"$2"; extras+=("${more[@]}"); shift 2 ;;
    --with=*) IFS=, read -ra more <<<"${1#--with=}"; extras+=("${more[@]}"); shift ;;
    --no-start) start=no; shift ;;
    -h|--help) usage; exit 0 ;;
    *) usage >&2; fail "unknown argument \"$1\"" ;;
  esac
done

# As root commands run as they are; else through sudo, which may ask for a password.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else fail "cannot run \"$1\" as $(id -un): not root and no sudo" "run deploy/setup.sh as root"
  fi
}

# /usr/sbin is not in an ordinary user's PATH on Debian, and the tools live there.
export PATH="$PATH:/usr/sbin:/sbin"

docker_answers() { command -v docker >/dev/null && as_root docker info >/dev/null 2>&1; }

# wanted COMMAND PACKAGE: the package is needed only where the command is missing,
# so a machine with another Docker (docker-ce) or its own tools is left alone.
missing=()
wanted() { command -v "$1" >/dev/null || [[ " ${missing[*]} " == *" $2 "* ]] || missing+=("$2"); }

collect_base() {
  # One that answers from elsewhere (a mounted socket, DOCKER_HOST) will do.
  docker_answers || wanted dockerd docker.io
  wanted docker docker.io
  wanted nft nftables
  wanted ip iproute2
  wanted iptables iptables
  wanted curl curl
  wanted cc gcc
  # rustc links with the C library's start files; gcc alone does not bring them.
  compgen -G '/usr/lib/*/crt1.o' >/dev/null || missing+=(libc6-dev)
  [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
  # dockerd refuses to start a container where the kernel has AppArmor on and
  # its parser is missing.
  if [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ]; then
    wanted apparmor_parser apparmor
  fi
  # Without systemd nobody may have mounted the cgroups.
  if [ ! -d /run/systemd/system ] && ! grep -q ' /sys/fs/cgroup' /proc/mounts; then
    wanted cgroupfs-mount cgroupfs-mount
  fi
}

# The services of extras that this run installs: they are not to be enabled. One
# that was there before is someone's own and stays as it is.
new_services=()
# extra COMMAND PACKAGE [SERVICE]
extra() {
  command -v "$1" >/dev/null && return
  missing+=("$2")
  [ $# -lt 3 ] || new_services+=("$3")
}

collect_extra() {
  case $1 in
    etcd) extra etcd etcd-server etcd; extra etcdctl etcd-client ;;
    sshd) extra sshd openssh-server ssh; extra ssh openssh-client ;;
    registry) extra docker-registry docker-registry docker-registry ;;
    images) extra debootstrap debootstrap ;;
    *) fail "unknown extra \"$1\"" "one or more of etcd,sshd,registry,images" ;;
  esac
}

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }

install_missing() {
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || fail "cannot install ${missing[*]}: this machine has no apt-get" \
    "install their equivalents by hand, then run this again"
  say "installing ${missing[*]}"
  # Debian starts a service as it installs it. A policy file keeps it from that:
  # Docker is started below, and the extras' services must not run at all.
  local log status=0 service policy_made=no
  log=$(mktemp)
  if [ ! -e $POLICY_FILE ]; then
    policy_made=yes
    trap 'as_root rm -f $POLICY_FILE' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee $POLICY_FILE >/dev/null
    as_root chmod 755 $POLICY_FILE
  fi
  # The package lists may be absent or old: fetch them only when that shows.
  { apt install -y --no-install-recommends "${missing[@]}" \
      || { apt update; apt install -y --no-install-recommends "${missing[@]}"; }; } >"$log" 2>&1 || status=$?
  [ $policy_made = no ] || { as_root rm -f $POLICY_FILE; trap - EXIT; }
  if [ $status -ne 0 ]; then
    tail -n 15 "$log" >&2; rm -f "$log"
    fail "cannot install ${missing[*]}" "check the network and the apt sources; the lines above are apt's"
  fi
  rm -f "$log"
  [ -d /run/systemd/system ] || return 0
  for service in "${new_services[@]}"; do
    as_root systemctl disable --quiet "$service" || true
  done
}

dockerd_runs() { grep -qsx dockerd /proc/[0-9]*/comm; }

# start_by_hand: what the systemd unit does, without systemd.
start_by_hand() {
  local pid_file=/var/run/docker.pid
  if ! grep -q ' /sys/fs/cgroup' /proc/mounts; then as_root cgroupfs-mount; fi
  # After a crash the file may name a process that is something else by now, and
  # dockerd would refuse to start because "it" still runs.
  if [ -e $pid_file ] && [ "$(cat "/proc/$(cat $pid_file)/comm" 2>/dev/null)" != dockerd ]; then
    as_root rm -f $pid_file
  fi
  as_root touch "$DOCKER_LOG"
  # shellcheck disable=SC2016 # expanded by the inner shell, which has root's limits
  as_root setsid --fork bash -c '
    ulimit -n 1048576 2>/dev/null || ulimit -n "$(ulimit -Hn)"
    ulimit -u unlimited 2>/dev/null || true
    ulimit -c unlimited 2>/dev/null || true
    cd / && exec dockerd </dev/null >>"$1" 2>&1' timonier-dockerd "$DOCKER_LOG"
}

last_docker_lines() {
  if [ -d /run/systemd/system ]; then as_root journalctl -u docker -n 15 --no-pager -o cat
  else as_root tail -n 200 "$DOCKER_LOG" | grep -v level=info | tail -n 15
  fi >&2 2>/dev/null || true
}

start_docker() {
  docker_answers && return
  local how="by hand, log in $DOCKER_LOG" deadline_s=$((SECONDS + DOCKER_START_TIMEOUT_S)) starts=0 grace_s=0
  [ ! -d /run/systemd/system ] || how="with systemd"
  say "starting docker ($how)"
  until docker_answers; do
    # One that runs but does not answer yet may be coming up, started by another
    # run, or going down: wait for it. Forked a moment ago, ours may not show yet.
    if ! dockerd_runs && [ $SECONDS -ge $grace_s ]; then
      [ $starts -lt $DOCKER_STARTS_MAX ] || give_up
      starts=$((starts + 1)) grace_s=$((SECONDS + 2))
      if [ -d /run/systemd/system ]; then
        as_root systemctl enable --quiet docker || true
        as_root systemctl start docker || give_up
      else
        start_by_hand
      fi
    fi
    [ $SECONDS -lt $deadline_s ] || give_up
    sleep 0.2
  done
  say "docker $(as_root docker version -f '{{.Server.Version}}') runs"
}

give_up() {
  last_docker_lines
  fail "docker did not start" "the lines above are its log's last; dockerd needs root rights, cgroups and netfilter in the kernel"
}

collect_base
for name in "${extras[@]}"; do collect_extra "$name"; done
install_missing
[ $start = no ] || start_docker
