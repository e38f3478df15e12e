# What docs/conformance.md says of this machine's kernel.
has() { echo "has $*"; }
[ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] && [ ! -e /sys/fs/cgroup/unified ]
has cgroup v2 alone
mkdir /sys/fs/cgroup/berth-test-pressure
grep -q '^some ' /sys/fs/cgroup/berth-test-pressure/memory.pressure
rmdir /sys/fs/cgroup/berth-test-pressure
has pressure of a cgroup
grep -q Y /sys/module/apparmor/parameters/enabled && [ -e /sys/kernel/security/apparmor/.load ]
has AppArmor
modprobe sctp && grep -q ^SCTP /proc/net/protocols
has SCTP
modprobe dm-log-writes && dmsetup targets | grep -q ^log-writes
has a device that logs writes
[ ! -e /sys/fs/resctrl/info ] && ! mount -t resctrl resctrl /sys/fs/resctrl 2>/dev/null
has no resctrl

# Project quota, on each file system: a directory may not grow beyond its project's limit.
limited() {
    mkdir "$1/project"
    chattr -p 77 +P "$1/project"
    setquota -P 77 0 1024 0 0 "$1"
    dd if=/dev/zero of="$1/project/small" bs=64k count=8 2>/dev/null
    # ext4 limits nobody who has CAP_SYS_RESOURCE.
    ! setpriv --bounding-set=-sys_resource dd if=/dev/zero of="$1/project/large" bs=64k count=32 \
        2>"$1/error" || return 1
    grep -qE 'No space left|quota exceeded' "$1/error"
    has project quota on "$1"
}
mkdir -p /mnt/ext4 /mnt/xfs
mkfs.ext4 -q -F -O quota,project -E quotatype=prjquota /dev/vdd && mount -o prjquota /dev/vdd /mnt/ext4
limited /mnt/ext4
mkfs.xfs -q -f /dev/vde && mount -o pquota /dev/vde /mnt/xfs
limited /mnt/xfs
umount /mnt/ext4 /mnt/xfs
