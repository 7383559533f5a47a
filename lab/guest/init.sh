#!/bin/busybox sh
# /init of the guests' initramfs. busybox is the only program here.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module"; done < /modules/load

# QEMU's user-mode network is the same in each guest.
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2

# The root disk is told by its serial: with volumes plugged in, vda is an accident of the PCI order.
tries=0
while [ $tries -lt 100 ]; do
    for serial in /sys/block/vd*/serial; do
        [ "$(cat "$serial" 2>/dev/null)" = root ] || continue
        disk=${serial#/sys/block/}
        mount -t ext4 "/dev/${disk%/serial}" /root || exec sh
        umount /proc /sys
        mount -o move /dev /root/dev
        exec switch_root /root /sbin/init
    done
    tries=$((tries + 1))
    sleep 0.1
done
echo 'lab initramfs: no disk with the serial "root" within 10 s'
exec sh
