"""The lab's drivers: volumes are files (filevol), servers are QEMU processes (qemu)."""
