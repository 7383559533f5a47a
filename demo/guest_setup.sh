# Run as root in the guest, with the volume's device as $1: a filesystem as people have them, a few
# thousand files of every kind, and a PostgreSQL cluster of its own with a load on it.
set -eu
device=$1
version=$(ls /usr/lib/postgresql | sort -V | tail -n 1)

# udev watches a disk only once it has looked at it: what is written before, it does not see.
udevadm settle
mkfs.xfs -q -L sourcevol "$device"
mkdir -p /srv/data
uuid=$(blkid -s UUID -o value "$device")
echo "UUID=$uuid /srv/data xfs defaults,nofail,noatime 0 2" >> /etc/fstab
systemctl daemon-reload
systemctl start srv-data.mount

python3 - <<'PYTHON'
import os, random
random.seed(20)
for folder in range(60):
    path = "/srv/data/files/%02d" % folder
    os.makedirs(path)
    for number in range(50):
        with open("%s/%03d" % (path, number), "wb") as file:
            file.write(os.urandom(random.choice([0, 10, 1000, 20000])))
    os.link(path + "/000", path + "/hard link")
    os.symlink("000", path + "/symbolic\nlink")
with open("/srv/data/files/sparse", "wb") as file:
    file.truncate(300 << 20)
    file.seek(200 << 20)
    file.write(b"an island")
open(b"/srv/data/files/not utf-8 \xff\xfe", "w").close()
PYTHON
setfacl -R -m u:debian:rwX -m d:u:debian:rwX /srv/data/files/01
setfattr -n user.origin -v "the demo" /srv/data/files/02/001
setfattr -n trusted.secret -v "root alone sees it" /srv/data/files/02/002
mkfifo /srv/data/files/pipe
chattr +d /srv/data/files/03/003

pg_createcluster -d /srv/data/postgresql -p 5499 "$version" demo -- --auth-local=peer >/dev/null
systemctl enable -q "postgresql@$version-demo.service"
systemctl start "postgresql@$version-demo.service"
su postgres -c "createdb -p 5499 bank"
su postgres -c "psql -q -p 5499 bank -c 'CREATE TABLE payments (number bigint PRIMARY KEY, note text)'"

install -d -o postgres /var/lib/bank
cat > /etc/systemd/system/bank.service <<UNIT
[Unit]
Description=The load: commits payments as fast as it can
[Service]
User=postgres
ExecStart=/usr/bin/python3 /usr/local/lib/bank.py load /var/lib/bank/acknowledged
Restart=always
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl start bank.service
echo "postgresql@$version-demo.service"
