#!/bin/sh
# mmdebstrap essential hook: settings that must lie there before the packages are configured.
# Usage: essential.sh ROOT
set -eu
root=$1

# The guests boot the small initramfs of customize.sh. The one that the kernel package makes is
# never used, and with MODULES=most it would take half of the build time.
mkdir -p "$root/etc/initramfs-tools/conf.d"
printf 'MODULES=list\nCOMPRESS=gzip\n' > "$root/etc/initramfs-tools/conf.d/lab"

# pg_createcluster must work, but no cluster may cost time at each boot.
mkdir -p "$root/etc/postgresql-common"
echo 'create_main_cluster = false' > "$root/etc/postgresql-common/createcluster.conf"
