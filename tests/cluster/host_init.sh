#!/usr/bin/env bash
# Pid 1 of one host: its own view of the disk, /tmp, /dev/shm and /run, and its own sshd.
# usage: host_init.sh LAB NAME IP REPOSITORY VENV
set -eu
lab=$1 name=$2 ip=$3 repository=$4 venv=$5
here=$lab/hosts/$name
mount --make-rprivate /
hostname "$name"

# What survives a power-off: the home and what was installed. The rest is as after a boot.
mkdir -p "$here"/home/ray/.ssh "$here"/venv/upper "$here"/venv/work "$here"/tmp "$here"/etc
mount -t overlay overlay -o "lowerdir=$venv,upperdir=$here/venv/upper,workdir=$here/venv/work" "$venv"
sed 's|^root:.*|root:x:0:0:root:/home/ray:/bin/bash|' /etc/passwd > "$here/etc/passwd"
printf '127.0.0.1 localhost\n' > "$here/etc/hosts"
mount --bind "$here/etc/passwd" /etc/passwd
mount --bind "$here/etc/hosts" /etc/hosts
cp "$lab/keys/authorized_keys" "$here/home/ray/.ssh/"
mount --bind "$here/home" /home

mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
cp "$lab/keys/host" /run/ssh_host_key
mount -t tmpfs tmpfs /srv
mkdir /srv/shared
mount --bind "$lab/shared" /srv/shared
mount -t tmpfs -o size=1g tmpfs /dev/shm

# /tmp last: the lab, the repository and its environment may lie there.
mount -t tmpfs -o size=8g tmpfs "$here/tmp"
for path in "$repository" "$venv"; do
  case "$path" in
    /tmp/*) mkdir -p "$here/tmp${path#/tmp}"; mount --rbind "$path" "$here/tmp${path#/tmp}" ;;
  esac
done
mount --rbind "$here/tmp" /tmp
chmod 1777 /tmp
cd /

ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip address add "$ip/24" dev eth0
ip link set eth0 up
cat > /run/sshd_config <<CONFIG
ListenAddress $ip
HostKey /run/ssh_host_key
PidFile none
UsePAM no
PasswordAuthentication no
StrictModes no
MaxStartups 100
Subsystem sftp internal-sftp
CONFIG
env -i PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8 /usr/sbin/sshd -D -e -f /run/sshd_config &
until grep -q ':0016 00000000:0000 0A' /proc/net/tcp; do sleep 0.05; done # port 22 listens
echo ready
while :; do wait || true; sleep 1; done # reaps what Ray leaves behind
