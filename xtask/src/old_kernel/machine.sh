#!/bin/sh
# What every first process of a machine begins with that xtask emulates. What follows says what the machine does, and by
# `about NODE` what is worth knowing of a node when it fails. It prints PASSED at the end, or FAILED and why.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /run/netns

finish() {
    echo "$*"
    sleep 0.2
    poweroff -f
    sleep 60
}
fail() {
    for node in 1 2; do
        echo "--- log of node$node"
        about $node
    done
    dmesg | tail -n 20
    finish "FAILED: $*"
}
patiently() {
    tries=0
    until "$@" >/tmp/said 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt ${patience:-150} ] || fail "$*: $(cat /tmp/said)"
        sleep 0.2
    done
}
