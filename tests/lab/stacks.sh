# What lies between the disks ($2 …) and the filesystem: $1 is the stack. The last line says what it
# offers: a device and how fstab is to name it.
set -eu
# udev watches a disk only once it has looked at it: what is written before, it does not see.
udevadm settle
stack=$1; shift
first=$(readlink -f "$1"); all=$(readlink -f "$@")

encrypt() {
  mkdir -p /etc/keys; chmod 700 /etc/keys; head -c 64 /dev/urandom > /etc/keys/secret
  cryptsetup -q luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "$first" /etc/keys/secret
  echo "secret UUID=$(blkid -s UUID -o value "$first") /etc/keys/secret luks,discard,nofail,x-systemd.device-timeout=600" >> /etc/crypttab
  systemctl daemon-reload; systemctl start systemd-cryptsetup@secret
}
group() {
  pvcreate -q -y "$@" >&2; vgcreate -q -y moved "$@" >&2
  lvcreate -q -y -l 90%FREE -n data moved >&2
}

case $stack in
  bare|btrfs) echo "$first uuid" ;;
  partition)
    printf 'label: gpt\n,,L\n' | sfdisk -q "$first"; udevadm settle
    echo "${first}1 path" ;;
  lvm) group "$first"; echo /dev/mapper/moved-data path ;;
  lvm-two) group $all; echo /dev/mapper/moved-data uuid ;;
  luks) encrypt; echo /dev/mapper/secret path ;;
  lvm-on-luks) encrypt; group /dev/mapper/secret; echo /dev/mapper/moved-data uuid ;;
  md)
    mdadm -q --create /dev/md0 --run --level=0 --raid-devices=2 $all >&2
    mdadm --detail --scan >> /etc/mdadm/mdadm.conf; echo /dev/md0 uuid ;;
esac
