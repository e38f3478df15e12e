#!/bin/busybox sh
# The first program of the machine: loads what the disks need, mounts the root and the payload,
# and hands over to $vm_init, which the kernel's command line names.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do
    /bin/busybox insmod "/modules/$module" || echo "cannot load $module"
done </modules/order
/bin/busybox mount -t ext4 /dev/vda /new
/bin/busybox mount -t ext4 -o ro /dev/vdb /new/berth
for unit in /new/berth/guest/*.service; do
    /bin/busybox cp "$unit" /new/etc/systemd/system/
done
for moved in proc sys dev; do
    /bin/busybox mount -o move "/$moved" "/new/$moved"
done
exec /bin/busybox switch_root /new "$vm_init"
