# A volume in use: $1 device, $2 mount point, $3 filesystem, $4 whole|gpt|dos, $5 how fstab names it,
# $6 unit, $7 how many KiB the writer strews about as well. Every line that it has forced to the
# volume is acknowledged on the root disk.
set -eu
# udev watches a disk only once it has looked at it: what is written before, it does not see.
udevadm settle
device=$(readlink -f "$1"); mount=$2; fstype=$3
if [ "$4" != whole ]; then
  printf 'label: %s\n,,L\n' "$4" | sfdisk -q "$device"; udevadm settle; device=${device}1
fi
force=-f; [ "$fstype" = ext4 ] && force=-F
mkfs."$fstype" -q "$force" "$device"
udevadm settle
mkdir -p "$mount"
# A guest under emulation beside others may need longer for its disks than the usual 90 s.
late=x-systemd.device-timeout=600
case $5 in
  uuid) name=UUID=$(blkid -s UUID -o value "$device") ;;
  label) name=LABEL=moved; [ "$fstype" = ext4 ] && e2label "$device" moved ;;
  device) name=$device ;;
  path) name=$1 ;;
esac
echo "$name $mount $fstype defaults,nofail,noatime,$late 0 0" >> /etc/fstab
systemctl daemon-reload
systemctl start "$(systemd-escape -p --suffix=mount "$mount")"
mkdir -p "$mount/tree"
i=0; while [ $i -lt 60 ]; do echo "$i" > "$mount/tree/$i"; i=$((i + 1)); done
ln "$mount/tree/1" "$mount/tree/hard"; ln -s 1 "$mount/tree/soft"; chown 1000:1000 "$mount/tree/2"
setfacl -m u:nobody:rw "$mount/tree/3"; setfattr -n user.note -v kept "$mount/tree/4"
truncate -s 40M "$mount/tree/sparse"; mkfifo "$mount/tree/pipe"; chmod 1750 "$mount"
cat > /usr/local/lib/writer.py <<'PYTHON'
import os, random, sys, time
written = os.open(sys.argv[1] + "/written", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
acknowledged = os.open("/var/tmp/acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
scattered = os.open(sys.argv[1] + "/scattered", os.O_WRONLY | os.O_CREAT)
kibibytes = int(sys.argv[2])
number = int(time.time() * 1000)
while True:
    for _ in range(kibibytes // 4):
        os.pwrite(scattered, os.urandom(4096), 4096 * random.randrange(8192))
    number += 1
    os.write(written, b"%d\n" % number)
    os.fsync(written)
    os.write(acknowledged, b"%d\n" % number)
    os.fsync(acknowledged)
    time.sleep(0.3)
PYTHON
rm -f /var/tmp/acknowledged
cat > "/etc/systemd/system/$6" <<UNIT
[Unit]
RequiresMountsFor=$mount
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/writer.py $mount ${7:-0}
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable -q --now "$6"
sync  # a guest that is reset next has it all
