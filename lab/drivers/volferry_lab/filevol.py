"""Cinder driver: a volume is a raw file in a folder of this host.

Snapshots and clones are `cp --reflink`. The connection type is `local` with the file's path, so
os-brick's LocalConnector serves the generic copy between back ends, and the lab's Nova driver
opens the file itself.
"""

import os
from pathlib import Path

from cinder import exception, interface, quota
from cinder.image import image_utils
from cinder.volume import configuration, driver, manager, volume_utils
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging

from lab.knobs import Knobs
from lab.layout import Layout

LOG = logging.getLogger(__name__)
CAPACITY_GIB = 5000  # pretended; the files are sparse

options = [cfg.StrOpt("lab_volume_folder", help="folder of the raw files")]
CONF = cfg.CONF
CONF.register_opts(options, group=configuration.SHARED_CONF_GROUP)

knobs = Knobs(Layout.from_environment().knobs)


class LabVolumeManager(manager.VolumeManager):
    """Cinder's manager, with the faults of a retype that no driver can produce."""

    def retype(self, context, volume, new_type_id, host, **arguments):
        knob = knobs.get("retype")
        if knob.ignore and not knob.fail:
            # A retype that the cloud accepts (HTTP 202) and drops, as real ones do when their
            # scheduler finds no place: the status goes back and nothing else shows.
            knobs.obey("retype")
            for name in ("reservations", "old_reservations"):
                if arguments.get(name):
                    quota.QUOTAS.rollback(context, arguments[name])
            volume.update({"status": volume.previous_status or "available"})
            volume.save()
            return
        super().retype(context, volume, new_type_id, host, **arguments)

    def _copy_volume_data(self, *arguments, **more):
        knobs.obey("retype")
        return super()._copy_volume_data(*arguments, **more)


@interface.volumedriver
class FileVolumeDriver(driver.VolumeDriver):
    """One back end: a folder of raw files."""

    VERSION = "1.0"
    CI_WIKI_NAME = "none"

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.configuration.append_config_values(options)

    @staticmethod
    def get_driver_options():
        return options

    def do_setup(self, context):
        self.folder = Path(self.configuration.lab_volume_folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def check_for_setup_error(self):
        if not os.access(self.folder, os.W_OK):
            raise exception.VolumeBackendAPIException(data=f"cannot write to {self.folder}")

    def _update_volume_stats(self):
        name = self.configuration.volume_backend_name
        self._stats = {
            "volume_backend_name": name,
            "vendor_name": "volferry",
            "driver_version": self.VERSION,
            "storage_protocol": "local",
            "sparse_copy_volume": True,
            "pools": [
                {
                    "pool_name": name,
                    "total_capacity_gb": CAPACITY_GIB,
                    "free_capacity_gb": CAPACITY_GIB,
                    "max_over_subscription_ratio": 20.0,
                    "thin_provisioning_support": True,
                    "thick_provisioning_support": False,
                    "reserved_percentage": 0,
                    "QoS_support": False,
                    "multiattach": False,
                    "filter_function": self.get_filter_function(),
                    "goodness_function": self.get_goodness_function(),
                }
            ],
        }

    def local_path(self, volume):
        return str(self.folder / volume.name)

    def _copy(self, source, target, size_gib=None):
        draft = f"{target}.part"
        processutils.execute("cp", "--reflink=auto", "--sparse=always", source, draft)
        if size_gib:
            os.truncate(draft, size_gib << 30)
        Path(draft).rename(target)

    # --- volumes and snapshots
    def create_volume(self, volume):
        knobs.obey("create_volume")
        with Path(self.local_path(volume)).open("wb") as file:
            file.truncate(volume.size << 30)

    def delete_volume(self, volume):
        knobs.obey("delete_volume")
        Path(self.local_path(volume)).unlink(missing_ok=True)

    def extend_volume(self, volume, new_size):
        knobs.obey("extend_volume")
        os.truncate(self.local_path(volume), new_size << 30)

    def create_snapshot(self, snapshot):
        knobs.obey("create_snapshot")
        self._copy(self.folder / snapshot.volume.name, self.folder / snapshot.name)

    def delete_snapshot(self, snapshot):
        knobs.obey("delete_snapshot")
        (self.folder / snapshot.name).unlink(missing_ok=True)

    def create_volume_from_snapshot(self, volume, snapshot):
        knobs.obey("create_volume_from_snapshot")
        self._copy(self.folder / snapshot.name, self.local_path(volume), volume.size)

    def create_cloned_volume(self, volume, src_vref):
        knobs.obey("clone_volume")
        self._copy(self.local_path(src_vref), self.local_path(volume), volume.size)

    def revert_to_snapshot(self, context, volume, snapshot):
        self._copy(self.folder / snapshot.name, self.local_path(volume), volume.size)

    # --- images
    def copy_image_to_volume(self, context, volume, image_service, image_id, disable_sparse=False):
        image_utils.fetch_to_raw(
            context,
            image_service,
            image_id,
            self.local_path(volume),
            self.configuration.volume_dd_blocksize,
            size=volume.size,
            run_as_root=False,
        )

    def copy_volume_to_image(self, context, volume, image_service, image_meta):
        volume_utils.upload_volume(
            context, image_service, image_meta, self.local_path(volume), volume, run_as_root=False
        )

    # --- connections: the path is all there is
    def ensure_export(self, context, volume):
        return None

    def create_export(self, context, volume, connector):
        return None

    def remove_export(self, context, volume):
        return None

    def initialize_connection(self, volume, connector):
        data = {"device_path": self.local_path(volume), "volume_id": volume.id, "format": "raw"}
        return {"driver_volume_type": "local", "data": data}

    def terminate_connection(self, volume, connector, **more):
        return None

    # --- retype and migration
    def retype(self, context, volume, new_type, diff, host):
        """Within one back end there is nothing to move."""
        knobs.obey("retype")
        return True, None

    def migrate_volume(self, context, volume, host):
        """Never done here: the manager then copies the data, as between unlike arrays."""
        return False, None

    def update_migrated_volume(self, ctxt, volume, new_volume, original_volume_status):
        """Give the migrated file the name of the original volume.

        Not while it is in use: Nova stored the new path in its connection_info and reads it again
        at the next power-on. The volume then keeps the new name by its `_name_id`, as with LVM.
        """
        current = new_volume._name_id or new_volume.id
        if original_volume_status != "available":
            return {"_name_id": current}
        original = self.folder / (CONF.volume_name_template % volume.id)
        if original.exists():  # migrated within one folder
            return {"_name_id": current}
        (self.folder / (CONF.volume_name_template % current)).rename(original)
        return {"_name_id": None}
