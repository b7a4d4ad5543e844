#!/usr/bin/env bash
# Measures builds of the worker image: time, memory and sizes, beside mkosi where that is installed.
#
# Everything happens in a temporary directory with a content cache of its own. Package downloads are taken from the
# user's cache or fetched once; no timed build may use the network. What each line means stands in README.md.
#
#   RUNS=3                 runs of each case; the median is printed, then every run's wall time
#   MKOSI_RUNS=1           runs of each mkosi case, 0 for none; each takes minutes
#   MKOSI=PROGRAM          mkosi, 25 or newer [default: that in PATH, if any]
#   NODEZERO=PROGRAM       the builder [default: built here, in release mode]
#   NODEZERO_DEBIAN_MIRROR, NODEZERO_CACHE, NODEZERO_FIRSTBOOT, CARGO_TARGET_DIR: as for the builder and cargo
#   TMPDIR                 where to work: 1 GB is enough without mkosi, 6 GB with it

set -euo pipefail

readonly role=worker other_role=control
readonly runs=${RUNS:-3} mkosi_runs=${MKOSI_RUNS:-1}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
workspace=$(cd "$here/../.." && pwd)
readonly here workspace
readonly target=${CARGO_TARGET_DIR:-$workspace/target}

say() { printf '%s\n' "$*" >&2; }
die() { say "build.sh: $*"; exit 1; }

[[ $runs =~ ^[1-9][0-9]*$ ]] || die "RUNS is $runs, expected a number from 1"
[[ $mkosi_runs =~ ^[0-9]+$ ]] || die "MKOSI_RUNS is $mkosi_runs, expected a number from 0"
command -v jq >/dev/null || die "jq reads the builder's JSON and is not installed"

if gnu_time=$(type -P time) && "$gnu_time" -f %M -o /dev/null true 2>/dev/null; then
    readonly gnu_time
else
    gnu_time=
    say "GNU time is not installed (Debian's package time): peak memory is not measured"
fi

work=$(mktemp -d)
readonly work
trap 'rm -rf "$work"' EXIT

# ---- measuring -------------------------------------------------------------------------------------------------------

# measure CASE COMMAND...: runs the command and adds "wall cpu peak" (seconds, seconds, KiB or "-") to the case's file.
measure() {
    local case=$1 status=0 TIMEFORMAT='%R %U %S -'
    shift
    if [[ $gnu_time ]]; then
        "$gnu_time" -q -f '%e %U %S %M' -o "$work/time" "$@" >"$work/log" 2>&1 || status=$?
    else
        { time "$@" >"$work/log" 2>&1; } 2>"$work/time" || status=$?
    fi
    ((status == 0)) || failed "$@"
    awk '{ printf "%.2f %.2f %s\n", $1, $2 + $3, $4 }' "$work/time" >>"$work/$case.runs"
    say "  $(cut -d ' ' -f 1 <(tail -n 1 "$work/$case.runs")) s"
}

failed() {
    tail -n 30 "$work/log" >&2
    die "failed: $*"
}

# median CASE COLUMN: 1 is wall, 2 CPU, 3 peak memory.
median() {
    cut -d ' ' -f "$2" "$work/$1.runs" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

# row CASE TEXT GOAL
row() {
    local peak
    peak=$(median "$1" 3)
    [[ $peak == - ]] || peak=$(awk -v k="$peak" 'BEGIN { printf "%.0f", k / 1024 }')
    printf '%-42s %8s %8s %9s  %-14s %s\n' "$2" "$(median "$1" 1)" "$(median "$1" 2)" "$peak" "$3" \
        "$(cut -d ' ' -f 1 "$work/$1.runs" | paste -s -d ' ')"
}

mib() { awk -v b="$1" 'BEGIN { printf "%.1f", b / 1048576 }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a / b }'; }

# ---- the builder -----------------------------------------------------------------------------------------------------

if [[ ${NODEZERO:-} ]]; then
    nodezero=$NODEZERO
else
    say "building the builder"
    cargo build --quiet --release --locked -p nodezero --manifest-path "$workspace/Cargo.toml"
    nodezero=$target/release/nodezero
fi
[[ -x $nodezero ]] || die "$nodezero is not a program"

# Downloads that the user has are linked, or copied, into the cache of this run.
readonly cache=$work/cache user_cache=${NODEZERO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nodezero}
mkdir -p "$cache"
for kind in debs indexes; do
    if [[ -d $user_cache/$kind ]]; then
        cp -rl "$user_cache/$kind" "$cache/" 2>/dev/null || cp -r "$user_cache/$kind" "$cache/"
    fi
done
export NODEZERO_CACHE=$cache

# Components are left out: the peer has none, and their time is that of downloads and of Go.
bare=(--component k3s=none --component tailscale=none)
build() { "$nodezero" build "${bare[@]}" --images "$workspace/images" --out "$work/out" --quiet "$@"; }
timed_build() {
    measure "$1" "$nodezero" build "${bare[@]}" --images "${images:-$workspace/images}" --out "$work/out" --offline "${@:2}"
}
forget_content() { rm -rf "$cache/packs" "$cache/parts" "$work/out"; }

say "fetching what is missing"
build "$other_role"
build "$role" --format raw --format raw.zst --json >"$work/built.json"
cp "$(jq -r .manifest "$work/built.json")" "$work/manifest.json"

say "cold: no content cache, nothing in the output directory"
for ((i = 0; i < runs; i++)); do
    forget_content
    timed_build cold "$role"
done

say "unchanged: the same build again"
for ((i = 0; i < runs; i++)); do
    timed_build unchanged "$role"
done

say "second role: $other_role, after nothing but $role"
for ((i = 0; i < runs; i++)); do
    forget_content
    build --offline "$role"
    timed_build second-role "$other_role"
done

say "one changed file in images/"
# Beside a copy of images/ there is no workspace to build the first-boot binary from, so it is named.
firstboot=${NODEZERO_FIRSTBOOT:-$target/x86_64-unknown-linux-gnu/firstboot/nodezero-firstboot}
cp -r "$workspace/images" "$work/images"
changed=$work/images/files/base/etc/issue
[[ -f $changed ]] || die "${changed#"$work"/} is no longer there: choose another laid-in file"
build --offline "$role"
for ((i = 0; i < runs; i++)); do
    printf '.' >>"$changed"
    images=$work/images timed_build changed-file "$role" --firstboot "$firstboot"
done

# ---- mkosi -----------------------------------------------------------------------------------------------------------

# What the host's own apt calls Debian, as the builder does.
find_mirror() {
    if [[ ${NODEZERO_DEBIAN_MIRROR:-} ]]; then
        printf '%s\n' "${NODEZERO_DEBIAN_MIRROR%/}"
    else
        # shellcheck disable=SC2016  # the variable is apt's
        apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
            sed 's,/*$,,' | grep -m 1 '/debian$' || true
    fi
}

# mkosi_configuration: the same packages, the same partitions, nothing that a node has no use for.
mkosi_configuration() {
    local dir=$1 mirror=$2 suites
    mkdir -p "$dir/repart" "$dir/sandbox/etc/apt/sources.list.d"
    cat >"$dir/mkosi.conf" <<END
[Distribution]
Distribution=debian
Release=trixie
Architecture=x86-64
Repositories=main,non-free-firmware

[Output]
Format=disk
ImageId=image
OutputDirectory=$work/mkosi-out
RepartDirectories=repart
ManifestFormat=

[Content]
Bootable=yes
Bootloader=systemd-boot
WithDocs=no
CleanPackageMetadata=yes
KernelCommandLine=$(jq -r .cmdline "$work/manifest.json" | sed -E 's/(roothash=|nodezero\.)[^ ]* ?//g')
Packages=systemd-boot
$(sed 's/^/Packages=/' "$work/packages")

[Build]
BuildSources=
SandboxTrees=sandbox
PackageCacheDirectory=$work/mkosi-packages
WorkspaceDirectory=$work/mkosi-work
END
    cat >"$dir/repart/10-esp.conf" <<END
[Partition]
Type=esp
Format=vfat
CopyFiles=/boot:/
CopyFiles=/efi:/
SizeMinBytes=256M
END
    cat >"$dir/repart/20-root-verity.conf" <<END
[Partition]
Type=root-verity
Label=root-a-verity
Verity=hash
VerityMatchKey=root
Minimize=best
END
    cat >"$dir/repart/30-root.conf" <<END
[Partition]
Type=root
Label=root-a
Format=squashfs
Compression=zstd
CopyFiles=/:/
Verity=data
VerityMatchKey=root
Minimize=best
END
    # In place of mkosi's own list, which has source packages and debug symbols too.
    for suites in "$mirror trixie trixie-updates" "$mirror-security trixie-security"; do
        cat <<END
Types: deb
URIs: ${suites%% *}
Suites: ${suites#* }
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

END
    done >"$dir/sandbox/etc/apt/sources.list.d/mkosi.sources"
}

measure_mkosi() {
    local mirror i
    mirror=$(find_mirror)
    [[ $mirror ]] || { say "mkosi is not measured: set NODEZERO_DEBIAN_MIRROR"; return; }
    command -v sfdisk >/dev/null || { say "mkosi is not measured: sfdisk is not installed"; return; }
    mkdir -p "$work"/mkosi-{out,packages,work}
    jq -r '.packages[].name' "$work/manifest.json" >"$work/packages"
    mkosi_configuration "$work/mkosi" "$mirror"
    # Without a default initrd mkosi needs to be given some initrd: a block of zeroes is a valid, empty one.
    head -c 512 /dev/zero >"$work/empty.initrd"

    local run=("$mkosi" --directory "$work/mkosi" --force)
    say "mkosi: filling its package cache"
    "${run[@]}" build >"$work/log" 2>&1 || failed "${run[@]}" build
    say "mkosi, with its default initrd and with one given"
    for ((i = 0; i < mkosi_runs; i++)); do
        measure mkosi "${run[@]}" --cache-only always build
        measure mkosi-given-initrd "${run[@]}" --cache-only always \
            --initrd "$work/empty.initrd" --kernel-modules-initrd no build
    done
    mkosi_root=$(sfdisk --json "$work/mkosi-out/image.raw" |
        jq '.partitiontable | (.sectorsize // 512) * (.partitions[] | select(.name == "root-a").size)')
}

mkosi_root=
mkosi=${MKOSI:-$(type -P mkosi || true)}
if [[ ! $mkosi ]]; then
    say "mkosi is not in PATH: the comparison is left out"
elif ((mkosi_runs > 0)); then
    measure_mkosi
fi

# ---- the figures -----------------------------------------------------------------------------------------------------

printf '%s on %s, %s processors, load %s\n\n' "$("$nodezero" --version)" \
    "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "$(cut -d ' ' -f 1 /proc/loadavg)"
printf '%-42s %8s %8s %9s  %-14s %s\n' "build (median of $runs)" "wall s" "CPU s" "peak MiB" goal "wall s of each run"
row cold "$role, cold" "15 s, 500 MiB"
row unchanged "$role, unchanged" "1 s"
row second-role "$other_role, after $role" "3 s"
row changed-file "$role, one changed file" "2 s"
if [[ $mkosi_root ]]; then
    row mkosi "mkosi ($mkosi_runs)" ""
    row mkosi-given-initrd "mkosi, initrd given ($mkosi_runs)" ""
fi

printf '\n%-42s %12s %10s\n' size bytes MiB
for name in root initrd uki raw; do
    size=$(jq ".sizes.$name" "$work/built.json")
    printf '%-42s %12s %10s\n' "$name" "$size" "$(mib "$size")"
done
on_disk=$(jq '.outputs[] | select(.format == "raw").on_disk' "$work/built.json")
printf '%-42s %12s %10s\n' "raw, on disk" "$on_disk" "$(mib "$on_disk")"
compressed=$(jq '.outputs[] | select(.format == "raw.zst").size' "$work/built.json")
printf '%-42s %12s %10s\n' raw.zst "$compressed" "$(mib "$compressed")"

if [[ $mkosi_root ]]; then
    root=$(jq .sizes.root "$work/built.json")
    printf '%-42s %12s %10s\n' "mkosi's root" "$mkosi_root" "$(mib "$mkosi_root")"
    printf '\n%-42s %12s %10s\n' "nodezero, cold / $("$mkosi" --version)" ratio goal
    for case in mkosi mkosi-given-initrd; do
        printf '%-42s %12s %10s\n' "CPU time / $case" "$(ratio "$(median cold 2)" "$(median "$case" 2)")" 0.2
        printf '%-42s %12s %10s\n' "wall time / $case" "$(ratio "$(median cold 1)" "$(median "$case" 1)")" ""
    done
    printf '%-42s %12s %10s\n' "size of root" "$(ratio "$root" "$mkosi_root")" 1
fi
