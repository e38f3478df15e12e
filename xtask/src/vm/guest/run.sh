#!/bin/sh
# Runs the suites of the plan, one after another, and tells how each ended on the second serial
# line; then turns the machine off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
stty -F /dev/ttyS1 raw -echo
exec </dev/null >/dev/ttyS1 2>&1
mount /dev/vdc /tmp && chmod 1777 /tmp
ip link set lo up
# A host has more than lo.
ip link add dummy0 type dummy
echo "@@vm up $(uname -r) $(cat /proc/1/comm) $(cat /sys/fs/cgroup/cgroup.controllers)"
cd /tmp || exit 1
while read -r name seconds; do
    echo "@@vm begin $name"
    begun=$(date +%s)
    timeout -k 5 "$seconds" sh "/berth/suites/$name"
    status=$?
    printf '\n@@vm end %s %s %s\n' "$name" "$status" "$(($(date +%s) - begun))"
done </berth/plan
echo "@@vm done"
sync
echo o >/proc/sysrq-trigger
exec sleep 60
