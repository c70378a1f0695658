#!/usr/bin/env bash
# Pid 1 of the lab's namespaces: keeps them for as long as its standard input is open, so nothing outlives the test.
# Everything that a host writes lies on this tmpfs, which ends with them.
set -eu
lab=$1
mount --make-rprivate /
mount -t tmpfs -o size=8g tmpfs "$lab"
mkdir "$lab/shared" "$lab/hosts"
chmod 1777 "$lab/shared"
ip link add switch type bridge
ip link set switch up
ip link set lo up
echo ready
read -r _ || true
