#!/bin/sh
# mmdebstrap customize hook: turns a Debian root folder into a lab guest and puts the kernel and
# the initramfs into OUT. Usage: customize.sh ROOT OUT
#
# Everything that is one server's own (host key, authorized keys, name) comes at boot over
# QEMU's fw_cfg, so the image holds no secret and can be shared by all labs of the machine.
set -eu
root=$1
out=$2
here=$(dirname "$0")

# --- users: `debian` may use sudo, `nosudo` may not, root logs in with a key as well
chroot "$root" useradd --create-home --shell /bin/bash debian
chroot "$root" useradd --create-home --shell /bin/bash nosudo
echo 'debian ALL=(ALL) NOPASSWD: ALL' > "$root/etc/sudoers.d/debian"
chmod 0440 "$root/etc/sudoers.d/debian"
rm -f "$root"/etc/ssh/ssh_host_*
cp "$here/sshd.conf" "$root/etc/ssh/sshd_config.d/lab.conf"

# --- identity
install -m 0755 "$here/identity.sh" "$root/usr/local/sbin/lab-identity"
install -m 0644 "$here/lab-identity.service" "$root/etc/systemd/system/lab-identity.service"
echo guest > "$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost\n' > "$root/etc/hosts"
: > "$root/etc/machine-id"   # systemd.machine_id= on the kernel command line names the server

# --- disks, network (init.sh sets the address), journal (tests read that of the boot before)
echo 'LABEL=root / ext4 defaults,errors=remount-ro 0 1' > "$root/etc/fstab"
rm -f "$root/etc/resolv.conf"
echo 'nameserver 10.0.2.3' > "$root/etc/resolv.conf"
mkdir -p "$root/var/log/journal"

# --- units: each one costs a tenth of a second or more under software emulation
chroot "$root" systemctl --quiet enable ssh.service lab-identity.service
for unit in \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer man-db.timer systemd-tmpfiles-clean.timer \
    mdcheck_continue.timer mdcheck_start.timer mdmonitor-oneshot.timer lvm2-monitor.service \
    systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service systemd-binfmt.service systemd-pstore.service \
    systemd-hwdb-update.service systemd-timesyncd.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-random-seed.service getty@tty1.service getty-static.service \
    serial-getty@ttyS0.service modprobe@drm.service modprobe@efi_pstore.service \
    modprobe@configfs.service modprobe@dm_mod.service modprobe@loop.service \
    modprobe@fuse.service systemd-modules-load.service systemd-network-generator.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount \
    sys-kernel-config.mount dev-hugepages.mount dev-mqueue.mount proc-sys-fs-binfmt_misc.automount
do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

# A user manager per login costs a second and serves nobody; the session's scope stays.
ln -sf /dev/null "$root/etc/systemd/system/user@.service"

# Generators run before anything else. Those for fstab, crypttab and PostgreSQL stay.
mkdir -p "$root/etc/systemd/system-generators"
for generator in \
    systemd-bless-boot systemd-debug systemd-getty systemd-gpt-auto systemd-hibernate-resume \
    systemd-integritysetup systemd-rc-local systemd-run systemd-ssh systemd-system-update \
    systemd-sysv systemd-tpm2 systemd-veritysetup
do
    ln -sf /dev/null "$root/etc/systemd/system-generators/$generator-generator"
done

# --- udev: every device goes through every rule. Those of sounds, screens and mice can go; those
# of disks are Debian's own, and 60-input-id tells logind which device is the power button.
for rule in \
    50-firmware 60-autosuspend 60-cdrom_id 60-drm 60-evdev 60-fido-id 60-infiniband \
    60-persistent-alsa 60-persistent-input 60-persistent-storage-tape 60-persistent-v4l 60-sensor \
    60-serial 70-camera 70-joystick 70-memory 70-mouse 70-touchpad 70-uaccess 71-seat \
    73-seat-late 75-net-description 75-probe_mtd 78-sound-card 80-net-setup-link 81-net-dhcp \
    82-net-auto-link-local 90-console-setup 96-e2scrub
do
    ln -sf /dev/null "$root/etc/udev/rules.d/$rule.rules"
done

# --- the initramfs: load the drivers of root disk and network card, set the address, mount the
# root disk, switch to it. The ordinary one starts udev and takes several seconds more, and so does
# any network manager.
kernel=$(ls "$root/lib/modules")
tree="$root/tmp/initramfs"
mkdir -p "$tree/bin" "$tree/dev" "$tree/proc" "$tree/sys" "$tree/root" "$tree/modules"
cp "$root/bin/busybox" "$tree/bin/busybox"
for module in virtio_pci virtio_blk virtio_net ext4; do
    chroot "$root" modprobe --show-depends --set-version "$kernel" "$module" | sed -n 's/^insmod //p'
done | awk '!seen[$1]++ {print $1}' > "$tree/modules/order"
: > "$tree/modules/load"
while read -r path; do
    name=$(basename "$path" | sed 's/\.[xg]z$//')
    case $path in
        *.xz) xz -dc "$root$path" > "$tree/modules/$name" ;;
        *) cp "$root$path" "$tree/modules/$name" ;;
    esac
    echo "$name" >> "$tree/modules/load"
done < "$tree/modules/order"
install -m 0755 "$here/init.sh" "$tree/init"
chroot "$root" sh -c 'cd /tmp/initramfs && find . | cpio --quiet -o -H newc' > "$out/initrd"
rm -rf "$tree"
cp "$root/boot/vmlinuz-$kernel" "$out/vmlinuz"

# Not an update of an older system: spare the first boot the work of ConditionNeedsUpdate.
touch "$root/etc/.updated" "$root/var/.updated"
