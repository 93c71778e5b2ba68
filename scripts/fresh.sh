#!/usr/bin/env bash
# Proves the two commands where nothing was installed by hand: a minimal Debian in a folder, what the README asks for,
# a clean clone of HEAD, `make run`, `make test`. As root. Prints what was installed and the time of each part.
#
#   FRESH_SUITES="bookworm trixie"   which Debians
#   FRESH_PARTS="run test"           which of the two commands
#   FRESH_DIR=target/fresh           where; a Debian with all builds takes about 9 GB while it is there
#   FRESH_MIRROR=http://...          a Debian mirror; else that of this machine's apt, else deb.debian.org
#   FRESH_KEEP=1                     leave the folders there
#
# This machine's Rust is mounted read-only, and the crates that it has downloaded are shared; its name servers,
# certificates, proxies, and settings of apt, pip and cargo for the network are handed on. Everything is mounted in a mount
# namespace of its own: however this ends, no mount is left, and a folder is only deleted once no mount of it can exist.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITES=${FRESH_SUITES:-bookworm trixie}
PARTS=${FRESH_PARTS:-run test}
DIR=$(realpath -m "${FRESH_DIR:-target/fresh}")
LOGS=$PWD/fresh-out
README_ASKS=(make python3-pip)

say() { printf '\nfresh: %s\n' "$*"; }
die() {
    printf 'fresh: error: %s\n' "$1" >&2
    printf '  help: %s\n' "$2" >&2
    exit 1
}

# --- inside: process 1 of namespaces of its own -----------------------------------------------------
# timed NAME COMMAND...: runs it and notes what it took. Below it, `set -e` does not hold: steps are joined with &&.
timed() {
    local name=$1 began=$SECONDS code=0
    shift
    "$@" || code=$?
    printf '%s %s %s\n' "$((SECONDS - began))" "$code" "$name" >>"$TIMES"
    return $code
}

# Debian's own mirror, as apt on this machine knows it.
mirror() {
    local found=
    if [ -n "${FRESH_MIRROR:-}" ]; then found=$FRESH_MIRROR; else
        found=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
            sed -nE 's/^Debian Debian (https?:.*)$/\1/p' | awk 'NR == 1' || true)
    fi
    printf '%s\n' "${found:-http://deb.debian.org/debian}"
}

# What this machine needs to reach the network, into the folder.
hand_on() {
    local root=$1 file
    # The names of files in apt's settings are not followed: those are certificates, copied below.
    apt-config dump Acquire 2>/dev/null | grep '^Acquire::' >"$root/etc/apt/apt.conf.d/99host" || true
    for file in /etc/resolv.conf /etc/pip.conf /etc/ssl/certs/ca-certificates.crt \
        "${SSL_CERT_FILE:-}" "${PIP_CERT:-}" "${REQUESTS_CA_BUNDLE:-}" "${CURL_CA_BUNDLE:-}" "${CARGO_HTTP_CAINFO:-}" \
        $(apt-config dump Acquire 2>/dev/null | sed -nE 's/.*CaInfo "(.+)";/\1/Ip'); do
        [ -n "$file" ] && [ -f "$file" ] || continue
        mkdir -p "$root$(dirname "$file")"
        cp --dereference "$file" "$root$file"
    done
    # One by one as well: the package ca-certificates writes the file anew, from those that lie there.
    if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
        mkdir -p "$root/usr/local/share/ca-certificates/host"
        awk -v to="$root/usr/local/share/ca-certificates/host/" '/BEGIN CERTIFICATE/ { n++; inside = 1 }
            inside { print > (to n ".crt") }
            /END CERTIFICATE/ { inside = 0; close(to n ".crt") }' /etc/ssl/certs/ca-certificates.crt
    fi
    for file in .config/pip/pip.conf .pip/pip.conf; do
        [ -f "$HOME/$file" ] || continue
        mkdir -p "$root/root/$(dirname "$file")"
        cp --dereference "$HOME/$file" "$root/root/$file"
    done
    for file in config.toml config; do
        if [ -f "$CARGO_FROM/$file" ]; then cp --dereference "$CARGO_FROM/$file" "$root/root/.cargo/"; fi
    done
    printf '127.0.0.1 localhost %s\n' "$(hostname)" >"$root/etc/hosts"
    hostname >"$root/etc/hostname"
}

# The environment of a login there; of this machine's, what is about the network. No token is handed on.
environment() {
    printf '%s\0' HOME=/root USER=root LANG=C.UTF-8 "TERM=${TERM:-dumb}" DEBIAN_FRONTEND=noninteractive \
        PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    env -0 | grep -zE '^(https?_proxy|no_proxy|all_proxy|HTTPS?_PROXY|NO_PROXY|ALL_PROXY|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|PIP_[A-Z_]+|CARGO_(HTTP|NET|SOURCE|REGISTRIES)_[A-Z0-9_]+)=' |
        grep -zvE '^([A-Z0-9_]*(TOKEN|PASSWORD|SECRET|CREDENTIAL)|PIP_FIND_LINKS=/)' || true
}

there() { # COMMAND..., run in the folder, in the clone once that exists
    local variables=()
    mapfile -d '' -t variables < <(environment)
    chroot "$ROOT" /usr/bin/env -i "${variables[@]}" /bin/sh -c '[ ! -d /root/fovea ] || cd /root/fovea; exec "$@"' sh "$@"
}

bootstrap() {
    local proxy
    proxy=$(apt-config dump Acquire::http::Proxy 2>/dev/null | sed -nE 's/.* "(.+)";/\1/p')
    if [ -n "$proxy" ] && [ "$proxy" != DIRECT ]; then export http_proxy=${http_proxy:-$proxy}; fi
    debootstrap --variant=minbase "$SUITE" "$ROOT" "$(mirror)" >"$LOGS/$SUITE-debootstrap.log" 2>&1 || {
        tail -n 5 "$LOGS/$SUITE-debootstrap.log" >&2
        return 1
    }
}

mounts() {
    mount -t proc proc "$ROOT/proc"
    mount --rbind /sys "$ROOT/sys"
    mount --rbind /dev "$ROOT/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$ROOT/dev/shm"
    mkdir -p "$ROOT/opt/rust" "$ROOT/root/.cargo/registry"
    mount --bind "$SYSROOT" "$ROOT/opt/rust"
    mount -o remount,bind,ro "$ROOT/opt/rust"
    mkdir -p "$CARGO_FROM/registry"
    mount --bind "$CARGO_FROM/registry" "$ROOT/root/.cargo/registry"
}

readme() {
    there apt-get update -qq &&
        there apt-get install -y -qq --no-install-recommends "${README_ASKS[@]}" >/dev/null
}

clone() {
    # Of what is committed, by the way that copies and links nothing.
    git clone --quiet --no-checkout "file://$COMMON" "$ROOT/root/fovea" &&
        git -C "$ROOT/root/fovea" checkout --quiet --detach "$COMMIT" &&
        chown -R 0:0 "$ROOT/root/fovea"
}

command_there() { there make "$1" 2>&1 | tee "$LOGS/$SUITE-$1.log"; }

packages() { there dpkg-query -W -f '${binary:Package}\n' | sort; }

inside() {
    local part before code=0
    say "$SUITE: debootstrap --variant=minbase from $(mirror)"
    timed "debootstrap ($SUITE, minbase)" bootstrap || return 1
    mounts
    hand_on "$ROOT"
    say "$SUITE: installing ${README_ASKS[*]}"
    timed "apt-get install ${README_ASKS[*]}" readme || return 1
    hand_on "$ROOT"
    timed "git clone of ${COMMIT:0:12}" clone || return 1
    before=$(packages)
    for part in $PARTS; do
        say "$SUITE: make $part"
        timed "make $part" command_there "$part" || { code=1; break; }
    done
    comm -13 <(printf '%s\n' "$before") <(packages) >"$LOGS/$SUITE-installed.txt" || true
    return $code
}

if [ "${1:-}" = --inside ]; then
    inside
    exit
fi

# --- outside ----------------------------------------------------------------------------------------
[ "$(id -u)" = 0 ] || die "make fresh makes a Debian in a folder, which needs root" "run it as root, for example: sudo -E make fresh"
for program in git unshare chroot rustc; do
    command -v $program >/dev/null || die "$program is not on PATH" "install it (unshare and chroot: util-linux, coreutils)"
done
if ! command -v debootstrap >/dev/null; then
    say "installing debootstrap"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap debian-archive-keyring >/dev/null; } ||
        die "apt-get could not install debootstrap" "install it by hand"
fi
SYSROOT=$(rustc --print sysroot)
[ -x "$SYSROOT/bin/cargo" ] && [ "$SYSROOT" != /usr ] || die "this Rust ($SYSROOT) has no folder of its own that could be mounted" "use one from https://rustup.rs"
export SUITE ROOT TIMES SYSROOT COMMIT COMMON LOGS DIR PARTS
export CARGO_FROM=${CARGO_HOME:-$HOME/.cargo}
COMMIT=$(git rev-parse HEAD)
COMMON=$(realpath "$(git rev-parse --git-common-dir)")
[ -z "$(git status --porcelain --untracked-files=no)" ] || say "what is not committed is not proved: HEAD is ${COMMIT:0:12}"
rm -rf "$LOGS"
mkdir -p "$DIR" "$LOGS"

# Only ever called when the namespaces are gone; what another program has mounted there is not entered.
remove() {
    [ -n "${ROOT:-}" ] && [ -d "$ROOT" ] || return 0
    if grep -q " $ROOT/" /proc/mounts; then
        say "something is mounted below $ROOT: it is left there"
        return 0
    fi
    [ -n "${FRESH_KEEP:-}" ] && { say "kept: $ROOT"; return 0; }
    rm -rf --one-file-system "$ROOT"
}
trap 'remove' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

failed=0
summary=$LOGS/summary.txt
{
    printf 'commit %s, %s\n' "${COMMIT:0:12}" "$(date -u '+%Y-%m-%d %H:%M UTC')"
    printf '%s, %s cores, bf16 %s, load %s\n' "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | awk 'NR == 1')" "$(nproc)" \
        "$(grep -qw avx512_bf16 /proc/cpuinfo && echo yes || echo no)" "$(cut -d ' ' -f 1-3 /proc/loadavg)"
} >"$summary"
for SUITE in $SUITES; do
    ROOT=$DIR/$SUITE-$$
    TIMES=$LOGS/$SUITE-times.txt
    : >"$TIMES"
    mkdir -p "$ROOT"
    code=0
    # Process 1 dies with this one, and everything with process 1.
    unshare --mount --propagation private --pid --fork --kill-child "$0" --inside || code=$?
    remove
    {
        printf '\n%s: %s\n' "$SUITE" "$([ $code = 0 ] && echo "ends well (make $PARTS)" || echo FAILED)"
        awk '{ name = $0; sub(/^[0-9]+ [0-9]+ /, "", name); printf "  %3d min %02d s  %s%s\n", $1 / 60, $1 % 60, name, $2 == 0 ? "" : "  (exit " $2 ")" }' "$TIMES"
        if [ -s "$LOGS/$SUITE-installed.txt" ]; then
            printf '  installed by set-up: %s packages, asked for: %s\n' "$(wc -l <"$LOGS/$SUITE-installed.txt")" \
                "$(sed -n 's/^setup: installing //p' "$LOGS/$SUITE"-*.log | tr '\n' ' ')"
        fi
    } >>"$summary"
    [ $code = 0 ] || failed=1
done
printf '\n'
cat "$summary"
printf '\nlogs: %s\n' "$LOGS"
exit $failed
