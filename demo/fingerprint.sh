# Everything about the demo's files but their content's place on the disk, as one list.
set -eu
cd /srv/data/files
find . -print0 | sort -z | xargs -0 stat --printf '%n|%f|%u|%g|%s|%h|%y\n' | grep -v '^\.|'
find . -type f -print0 | sort -z | xargs -0 sha256sum
find . -type l -print0 | sort -z | xargs -0 -n1 readlink
getfacl -R -p . 2>/dev/null
find . -print0 | sort -z | xargs -0 getfattr -h -d -m - -e hex -- 2>/dev/null
