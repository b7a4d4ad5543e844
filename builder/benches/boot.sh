#!/usr/bin/env bash
# Measures the time from the boot loader to switch-root, beside Debian's own initrd on the same kernel, under TCG.
#
# Both machines are the same: QEMU, UEFI firmware, systemd-boot, UKI, kernel, console words, disk and root file system.
# Debian's UKI has Debian's initrd and names the root partition by its PARTUUID. Both UKIs are changed to show the
# kernel's messages, since lines of the serial console are stamped as they arrive. What is measured stands in README.md.
#
#   RUNS=3                 boots of each kind, one kind after the other in each round
#   DEBIAN_INITRD=FILE     initramfs-tools' initrd for the image's kernel; made with mmdebstrap if there is no such
#                          file, which takes minutes, and kept there
#   DEADLINE=300           seconds that one boot may take
#   ROLE=worker            the image
#   NODEZERO=PROGRAM       the builder [default: built here, in release mode]
#   OVMF=DIR               where OVMF_CODE_4M.fd and OVMF_VARS_4M.fd are [default: /usr/share/OVMF]
#   NODEZERO_DEBIAN_MIRROR, NODEZERO_CACHE, NODEZERO_FIRSTBOOT, CARGO_TARGET_DIR: as for the builder and cargo

set -euo pipefail
export LC_ALL=C

readonly role=${ROLE:-worker} runs=${RUNS:-3} deadline=${DEADLINE:-300} ovmf=${OVMF:-/usr/share/OVMF}
# As `nodezero boot` makes it: room for the machine's state.
readonly disk_size=16G
# Words of the command line that hide what is looked for, and those that take their place on both machines.
readonly hiding='^(console=|quiet$|loglevel=|systemd\.show_status=)' showing='console=tty0 console=ttyS0,115200n8'
# What the console shows when a part of the boot begins: the loader, the kernel, the initrd, switch-root, and the first
# line of systemd from the real root.
readonly marks=(
    'BdsDxe: starting Boot'
    'Linux version '
    'Run /init as init process'
    '^nodezero: switch root: |Running /scripts/init-bottom'
    'systemd\[1\]: systemd [0-9]+.* running in system mode'
)

say() { printf '%s\n' "$*" >&2; }
die() { say "boot.sh: $*"; exit 1; }

[[ $runs =~ ^[1-9][0-9]*$ ]] || die "RUNS is $runs, expected a number from 1"
for tool in jq:jq mcopy:mtools objcopy:binutils qemu-system-x86_64:qemu-system-x86; do
    command -v "${tool%%:*}" >/dev/null || die "${tool%%:*} is not installed (Debian's package ${tool##*:})"
done
for name in OVMF_CODE_4M.fd OVMF_VARS_4M.fd; do
    [[ -f $ovmf/$name ]] || die "$ovmf/$name is not there (Debian's package ovmf, or set OVMF)"
done

work=$(mktemp -d)
readonly work
machine=
finish() {
    [[ -z $machine ]] || kill "$machine" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

# ---- the two disks ---------------------------------------------------------------------------------------------------

workspace=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly workspace
if [[ ${NODEZERO:-} ]]; then
    nodezero=$NODEZERO
else
    say "building the builder"
    cargo build --quiet --release --locked -p nodezero --manifest-path "$workspace/Cargo.toml"
    nodezero=${CARGO_TARGET_DIR:-$workspace/target}/release/nodezero
fi
say "building the image"
"$nodezero" build "$role" --component k3s=none --component tailscale=none --images "$workspace/images" --out "$work/out" --quiet --json >"$work/built.json"
image=$(jq -r '.outputs[0].path' "$work/built.json")
manifest=$(jq -r .manifest "$work/built.json")
kernel=$(jq -r .kernel "$manifest")
readonly image manifest kernel

# partition LABEL FIELD
partition() { jq -r ".partitions[] | select(.label == \"$1\").$2" "$manifest"; }

# Installs Debian's kernel and initramfs-tools as they come, with nothing that would make the initrd larger.
make_debian_initrd() {
    local to=$1 mirror=${NODEZERO_DEBIAN_MIRROR:-} sources=() suite
    command -v mmdebstrap >/dev/null ||
        die "mmdebstrap makes Debian's initrd and is not installed; or give DEBIAN_INITRD for kernel $kernel"
    if [[ $mirror ]]; then
        mirror=${mirror%/}
        for suite in "$mirror trixie" "$mirror trixie-updates" "$mirror-security trixie-security"; do
            sources+=("deb $suite main")
        done
    fi
    say "making Debian's initrd for $kernel, as root or in a user namespace of yours; this takes minutes"
    mmdebstrap --quiet --variant=important \
        --include="linux-image-$kernel,initramfs-tools,busybox,zstd,e2fsprogs,systemd-sysv,udev" \
        --customize-hook="download /boot/initrd.img-$kernel $work/debian.initrd" \
        trixie /dev/null "${sources[@]}" >"$work/mmdebstrap.log" 2>&1 || {
        tail -n 20 "$work/mmdebstrap.log" >&2
        die "mmdebstrap failed; it needs root or unprivileged user namespaces"
    }
    mv "$work/debian.initrd" "$to"
}

# The words of the image's command line but those that hide messages.
words() { jq -r .cmdline "$manifest" | tr ' ' '\n' | grep -v -E "$hiding"; }

# change_uki DISK CMDLINE [INITRD]: gives the UKI on a disk another command line, and another initrd.
change_uki() {
    local disk=$1 cmdline=$2 initrd=${3:-$work/initrd} esp uki base
    esp=$disk@@$(partition ESP offset)
    uki=$(mdir -b -i "$esp" ::/EFI/Linux/)
    mcopy -n -i "$esp" "$uki" "$work/uki.efi"
    printf %s "$cmdline" >"$work/cmdline"
    objcopy --dump-section .initrd="$work/initrd" "$work/uki.efi" "$work/changed.efi"
    base=$(objdump -h "$work/uki.efi" | awk '$2 == ".initrd" { print $4 }')
    [[ $base ]] || die "the image's UKI has no initrd"
    # Microcode follows the initrd in memory, and a changed initrd would overlap it; an emulated processor takes none.
    objcopy --remove-section .initrd --remove-section .cmdline --remove-section .ucode \
        --add-section .cmdline="$work/cmdline" --change-section-vma ".cmdline=0x$base" \
        --add-section .initrd="$initrd" --change-section-vma ".initrd=$(printf '0x%x' $((16#$base + 0x10000)))" \
        "$work/uki.efi" "$work/changed.efi"
    mdel -i "$esp" "$uki"
    mcopy -i "$esp" "$work/changed.efi" "$uki"
}

debian_initrd=${DEBIAN_INITRD:-$work/initrd.debian}
[[ -f $debian_initrd ]] || make_debian_initrd "$debian_initrd"
readonly debian_initrd
own_words=$(words | paste -s -d ' ')
debian_words=$(words | grep -v -E '^(roothash=|nodezero\.)' | paste -s -d ' ')
cp --sparse=always "$image" "$work/nodezero.raw"
cp --sparse=always "$image" "$work/debian.raw"
change_uki "$work/nodezero.raw" "$showing $own_words"
change_uki "$work/debian.raw" "$showing $debian_words \
root=PARTUUID=$(partition root-a guid) rootfstype=squashfs ro init=/usr/lib/systemd/systemd" "$debian_initrd"

# ---- one boot --------------------------------------------------------------------------------------------------------

# fresh IMAGE: a disk for one machine, at $work/disk.
fresh() {
    cp --sparse=always "$1" "$work/disk"
    truncate -s "$disk_size" "$work/disk"
}

# boot KIND: starts a machine on $work/disk, waits for each mark in its turn, and adds to the kind's file: the seconds
# of each part, from the loader to switch-root, and from the loader to systemd.
boot() {
    local kind=$1 next=0 line left until console stamps=()
    cp "$ovmf/OVMF_VARS_4M.fd" "$work/vars.fd"
    exec {console}< <(exec qemu-system-x86_64 -nodefaults -no-user-config -display none -monitor none -serial stdio \
        -machine q35 -accel tcg,thread=multi,tb-size=1024 -cpu max -smp 2 -m 2G -no-reboot \
        -drive "if=pflash,format=raw,readonly=on,file=$ovmf/OVMF_CODE_4M.fd" \
        -drive "if=pflash,format=raw,file=$work/vars.fd" \
        -device virtio-rng-pci -netdev user,id=net0 -device virtio-net-pci,netdev=net0,romfile= \
        -drive "if=none,id=disk0,format=raw,discard=unmap,file=$work/disk" \
        -device virtio-blk-pci,drive=disk0,serial=boot,bootindex=0 </dev/null 2>&1)
    machine=$!
    until=$((SECONDS + deadline))
    : >"$work/console"
    while ((next < ${#marks[@]})); do
        left=$((until - SECONDS))
        if ((left <= 0)) || ! IFS= read -r -t "$left" line <&"$console"; then
            boot_failed "$kind" "${marks[next]}"
        fi
        if [[ $line =~ ${marks[next]} ]]; then
            stamps+=("${EPOCHREALTIME/[.,]/}")
            next=$((next + 1))
        fi
        printf '%s\n' "$line" >>"$work/console"
    done
    kill "$machine"
    wait "$machine" 2>/dev/null || true
    machine=
    exec {console}<&-
    awk '{ for (i = 2; i <= 4; i++) printf "%.2f ", ($i - $(i - 1)) / 1e6
           printf "%.2f %.2f\n", ($4 - $1) / 1e6, ($5 - $1) / 1e6 }' <<<"${stamps[*]}" >>"$work/$kind.runs"
    say "  $kind: $(tail -n 1 "$work/$kind.runs" | cut -d ' ' -f 4) s"
}

boot_failed() {
    tail -n 30 "$work/console" >&2
    die "$1: no line \"$2\" within $deadline s, or the machine ended; above is the console's end"
}

for ((i = 1; i <= runs; i++)); do
    say "round $i of $runs"
    fresh "$work/debian.raw"
    boot debian
    fresh "$work/nodezero.raw"
    boot nodezero-first
    # The same disk again: its state is there, after a power cut just behind switch-root.
    boot nodezero-later
done

# ---- the figures -----------------------------------------------------------------------------------------------------

median() { cut -d ' ' -f "$2" "$work/$1.runs" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

medians() { for column in 1 2 3 4 5; do median "$1" "$column"; done; }
# table_row TEXT SECONDS...
table_row() { printf '%-30s %13s %11s %16s %18s %14s\n' "$@"; }

printf '%s, kernel %s, %s, load %s\n' "$(basename "$image")" "$kernel" "$(qemu-system-x86_64 --version | head -n 1)" \
    "$(cut -d ' ' -f 1 /proc/loadavg)"
printf 'initrd: %s bytes, Debian: %s bytes\n\n' "$(jq .sizes.initrd "$work/built.json")" \
    "$(stat -L -c %s "$debian_initrd")"
table_row 'seconds under TCG' loader-kernel kernel-init init-switch-root loader-switch-root loader-systemd
for kind in debian nodezero-first nodezero-later; do
    while read -r -a seconds; do
        table_row "$kind" "${seconds[@]}"
    done <"$work/$kind.runs"
    mapfile -t seconds < <(medians "$kind")
    table_row "$kind, median" "${seconds[@]}"
done
printf '\n%-30s %18s %14s   goal: 0.333\n' 'ratio of medians' loader-switch-root loader-systemd
for kind in nodezero-first nodezero-later; do
    printf '%-30s' "$kind / debian"
    awk -v a="$(median "$kind" 4)" -v b="$(median debian 4)" -v c="$(median "$kind" 5)" -v d="$(median debian 5)" \
        'BEGIN { printf " %18.3f %14.3f\n", a / b, c / d }'
done
