#!/bin/sh
# Installs the packages of an image with Debian's own tools and compares the result with the image.
#
#     qemu-tests/compare-debian.sh IMAGE.raw [DIR]
#
# Needs root, because maintainer scripts run in a chroot, and mmdebstrap. DIR takes the installation and is kept; an
# installation that lies there already is compared again without being made anew. Without DIR it is a temporary
# directory, removed at the end. The comparison goes to standard output, all else to standard error.
#
# What is installed is what a mirror has today, the image's lock notwithstanding; the report names versions that differ.
# Every package that is Essential in Debian is installed too, since maintainer scripts rely on them.
#
# Environment:
#   NODEZERO                 the nodezero command; by default the workspace's, built first
#   NODEZERO_DEBIAN_MIRROR   address of a mirror that ends in /debian; by default mmdebstrap's
#   COMPARE_DEBIAN           the compare-debian program; by default the workspace's, built first
set -eu

suite=trixie
components=main,non-free-firmware

stop() {
    echo "compare-debian.sh: $*" >&2
    exit 1
}

case $# in
1 | 2) ;;
*) stop "usage: compare-debian.sh IMAGE.raw [DIR]" ;;
esac
image=$1
here=$(cd "$(dirname "$0")" && pwd)
[ -f "$image" ] || stop "there is no image $image: make one with nodezero build ROLE"
command -v mmdebstrap >/dev/null || stop "mmdebstrap is missing: install the package of that name"
[ "$(id -u)" -eq 0 ] || stop "run it as root: Debian's maintainer scripts run in a chroot"

compare() {
    if [ -n "${COMPARE_DEBIAN:-}" ]; then
        "$COMPARE_DEBIAN" --image "$image" --images "$here/../images" "$@"
    else
        cargo run --quiet --manifest-path "$here/Cargo.toml" --bin compare-debian -- \
            --image "$image" --images "$here/../images" "$@"
    fi
}

if [ $# -eq 2 ]; then
    dir=$2
else
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 1' INT TERM
    dir=$scratch/debian
fi

if [ ! -e "$dir/var/lib/dpkg/status" ]; then
    packages=$(compare --packages)
    set -- --variant=essential --mode=root --components="$components" --include="$packages" \
        --keyring="$here/../images/keyring" --aptopt='APT::Install-Recommends "false"'
    mirror=${NODEZERO_DEBIAN_MIRROR:-}
    # Made under another name, so that an interrupted installation is never compared.
    rm -rf "$dir.partial"
    # INITRD keeps kernel packages from making an initrd, which no image has from Debian.
    if [ -n "$mirror" ]; then
        list() { echo "deb $1 $2 $(echo "$components" | tr , ' ')"; }
        INITRD=No mmdebstrap "$@" "$suite" "$dir.partial" "$(list "$mirror" "$suite")" \
            "$(list "$mirror" "$suite-updates")" "$(list "$mirror-security" "$suite-security")" >&2
    else
        INITRD=No mmdebstrap "$@" "$suite" "$dir.partial" >&2
    fi
    mv "$dir.partial" "$dir"
fi
compare --debian "$dir"
