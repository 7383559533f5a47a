# $1 device, $2 mount point, $3 unit: 3000 small files, one file of 64 MiB, and a service that writes
# 40 times a second in the middle of the large file and to a log.
set -eu
# udev watches a disk only once it has looked at it: what is written before, it does not see.
udevadm settle
mkfs.xfs -q -f "$1"; mkdir -p "$2"
echo "UUID=$(blkid -s UUID -o value "$1") $2 xfs defaults,nofail 0 0" >> /etc/fstab
systemctl daemon-reload
mount "$2"
python3 - "$2" <<'PYTHON'
import os, sys
for folder in range(30):
    path = "%s/tree/%02d" % (sys.argv[1], folder)
    os.makedirs(path)
    for number in range(100):
        with open("%s/%03d" % (path, number), "wb") as file:
            file.write(os.urandom(500))
with open(sys.argv[1] + "/large", "wb") as file:
    for _ in range(64):
        file.write(os.urandom(1 << 20))
PYTHON
cat > /usr/local/lib/load.py <<'PYTHON'
import os, random, sys, time
large = os.open(sys.argv[1] + "/large", os.O_WRONLY)
log = os.open(sys.argv[1] + "/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    os.pwrite(large, os.urandom(8192), random.randrange(8192) * 8192)
    os.write(log, b"%f\n" % time.time())
    time.sleep(0.025)
PYTHON
printf '[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/load.py %s\n' "$2" \
  > "/etc/systemd/system/$3"
systemctl daemon-reload
systemctl start "$3"
