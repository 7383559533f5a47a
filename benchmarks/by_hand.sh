# The how-to's guest part, done by a script that never hesitates: $1 target device, $2 mount point,
# $3 unit. Prints the seconds from the service stopped to the service started.
#
# To the letter but for one thing: 'rsync -av /srv/data /mnt' would copy into /mnt/data, so the
# paths end with a slash here. It has no --delete and keeps no hard links, ACLs or xattrs, as there.
set -eu
target=$1; mount=$2; unit=$3
mkdir -p /mnt/target
mount -o nouuid "$target" /mnt/target   # or xfs_admin does nothing and says nothing
umount /mnt/target
xfs_admin -U generate "$target" >/dev/null
mount "$target" /mnt/target
rsync -a "$mount/" /mnt/target/ >/dev/null
rsync -a "$mount/" /mnt/target/ >/dev/null
read -r began _ < /proc/uptime
systemctl stop "$unit"
rsync -a "$mount/" /mnt/target/ >/dev/null
umount "$mount"
umount /mnt/target
mount -t xfs "$target" "$mount"
systemctl start "$unit"
read -r ended _ < /proc/uptime
echo "$began $ended" | awk '{ printf "%.2f\n", $2 - $1 }'
