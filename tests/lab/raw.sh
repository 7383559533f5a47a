# A device without a filesystem: $1 the disk, $2 the unit of the service that writes records to its
# partition, each in a block of its own, and acknowledges them on the root disk.
set -eu
# udev watches a disk only once it has looked at it: what is written before, it does not see.
udevadm settle
device=$(readlink -f "$1")
printf 'label: gpt\n,,L\n' | sfdisk -q "$device"; sfdisk -q --part-label "$device" 1 records
udevadm settle
cat > /usr/local/lib/records.py <<'PYTHON'
import os, sys, time
DEVICE, ACKNOWLEDGED = "/dev/disk/by-partlabel/records", "/var/tmp/acknowledged"
def numbers():
    with open(ACKNOWLEDGED) as file:
        return [int(line) for line in file if line.endswith("\n")]
if sys.argv[1:] == ["lost"]:
    with open(DEVICE, "rb") as file:
        for number in numbers():
            file.seek(4096 * number)
            if file.read(4096).rstrip(b"\0") != b"%d" % number:
                print(number)
    sys.exit()
while not os.path.exists(DEVICE):
    time.sleep(0.1)
number = max(numbers(), default=0) if os.path.exists(ACKNOWLEDGED) else 0
device = os.open(DEVICE, os.O_WRONLY | os.O_DSYNC)
acknowledged = os.open(ACKNOWLEDGED, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC)
while True:
    number += 1
    os.pwrite(device, (b"%d" % number).ljust(4096, b"\0"), 4096 * number)
    os.write(acknowledged, b"%d\n" % number)
    time.sleep(0.3)
PYTHON
rm -f /var/tmp/acknowledged
cat > "/etc/systemd/system/$2" <<UNIT
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/records.py
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable -q --now "$2"
