# The mounts are this suite's own and end with it: others use the devices, too.
[ -n "$BERTH_OWN_MOUNTS" ] || BERTH_OWN_MOUNTS=1 exec unshare -m sh "$0"
mkdir -p /mnt/ext4 /mnt/xfs
mkfs.ext4 -q -F -O quota,project -E quotatype=prjquota /dev/vdd && mount -o prjquota /dev/vdd /mnt/ext4
mkfs.xfs -q -f /dev/vde && mount -o pquota /dev/vde /mnt/xfs
export BERTH_TEST_QUOTA_DIR=/mnt/ext4:/mnt/xfs
