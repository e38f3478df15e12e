#!/bin/sh
# PID 1 of the machine without systemd: cgroup v2 alone, and the mounts a host has.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security
mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
echo berth-vm >/proc/sys/kernel/hostname
/berth/guest/run.sh
# Not reached: the runner turns the machine off.
echo o >/proc/sysrq-trigger
