#!/bin/sh
# Runs the tests of kube-proxy that need a kernel of their own (ipvs mode, a full table of connections) in a virtual machine with Debian's kernel, whose root is this host's, read-only.
# Needs the packages qemu-system-x86, ipvsadm and busybox-static, and takes one or two minutes without hardware support.
# usage: bench/ipvs.sh [FILTER], as root. KERNEL=DIR takes an unpacked linux-image instead of one that is downloaded; ACCEL=kvm uses
# hardware support, where it works.
set -eu
cd "$(dirname "$0")/.."
filter=${1:-virtual_}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -z "${KERNEL:-}" ]; then
    KERNEL=$work/kernel
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: //p' | head -1)
    (cd "$work" && apt-get download -q "$package")
    dpkg-deb -x "$work"/linux-image-*.deb "$KERNEL"
fi
version=$(ls "$KERNEL/lib/modules")
modules=$KERNEL/lib/modules/$version

binary=${BINARY:-$(cargo test -p kube-proxy --lib --no-run 2>&1 | sed -n 's/.*(\(target[^)]*\)).*/\1/p')}

# A first file system that mounts the host's.
mkdir -p "$work/first/bin" "$work/first/host" "$work/first/lib/modules/$version/kernel/drivers" "$work/first/lib/modules/$version/kernel/fs"
cp /bin/busybox "$work/first/bin/busybox"
for part in modules.builtin modules.order kernel/net kernel/lib kernel/crypto kernel/arch kernel/drivers/virtio kernel/drivers/net \
    kernel/fs/9p kernel/fs/netfs kernel/fs/fscache; do
    [ ! -e "$modules/$part" ] || cp -r "$modules/$part" "$work/first/lib/modules/$version/$part"
done
rm -rf "$work/first/lib/modules/$version/kernel/drivers/net/"*/
busybox depmod -b "$work/first" "$version"
cat > "$work/first/init" <<END
#!/bin/busybox sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin /proc /sys
/bin/busybox --install -s
mount -t proc proc /proc; mount -t sysfs sys /sys
modprobe -a virtio_pci 9pnet_virtio 9p
# What is needed later has to be there: the host has no modules of this kernel.
modprobe -a ip_vs ip_vs_rr ip_vs_lc dummy veth bridge nf_conntrack nf_tables nft_compat nft_chain_nat nft_ct nft_nat nft_masq \
    nft_reject nft_reject_inet nft_fib_inet nft_numgen nft_hash nft_limit xt_comment xt_conntrack xt_mark xt_MASQUERADE \
    xt_addrtype xt_statistic xt_recent xt_nat xt_tcpudp xt_multiport ipt_REJECT ip6t_REJECT 2>&1
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 host /host || exec sh
mount -t proc proc /host/proc; mount -t sysfs sys /host/sys; mount -t devtmpfs dev /host/dev
mount -t tmpfs run /host/run; mount -t tmpfs tmp /host/tmp
chroot /host /bin/sh -c 'cd $PWD; PATH=/usr/sbin:/usr/bin:/sbin:/bin; ip link set lo up; $PWD/$binary --include-ignored $filter; echo "ended with \$?"'
echo o > /proc/sysrq-trigger
sleep 10
END
chmod +x "$work/first/init"
(cd "$work/first" && find . | cpio --quiet -o -H newc | gzip -1) > "$work/first.gz"

timeout 600 qemu-system-x86_64 -accel "${ACCEL:-tcg}" -smp 2 -m 1024 -nographic -no-reboot -nic none \
    -kernel "$KERNEL/boot/vmlinuz-$version" -initrd "$work/first.gz" -append "console=ttyS0 quiet panic=-1" \
    -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap </dev/null 2>&1 | tee "$work/log"
grep -q 'ended with 0' "$work/log"
