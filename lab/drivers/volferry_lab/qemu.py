"""Nova virt driver: a server is one QEMU process of this host.

A server's folder <instances_path>/<server id>/ has its root disk (an overlay on the cached
image), QMP sockets, host key, console log and record. Nothing about a guest is kept in memory:
what is plugged in is asked over QMP, so the services may be started anew under running guests.

A volume is plugged with `blockdev-add` and `device_add`, with the serial that libvirt's driver
gives. It is unplugged with `device_del`, which asks the guest; the driver waits for
DEVICE_DELETED and gives up after a deadline, as libvirt's does, and the volume stays in use.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import nova.conf
from nova import exception, objects
from nova.compute import power_state
from nova.virt import fake, hardware, node
from oslo_config import cfg
from oslo_log import log as logging

from lab import guests
from lab.images import Image
from lab.knobs import Knobs, OrderedFault
from lab.layout import HOST, Layout, port_is_free
from volferry_lab import tsc
from volferry_lab.qmp import QMP, QMPError

LOG = logging.getLogger(__name__)
CONF = nova.conf.CONF
CONF.register_opts(
    [
        cfg.DictOpt("suites", help="image folder of each Debian suite"),
        cfg.StrOpt("accelerator", default="tcg"),
        cfg.IntOpt("first_ssh_port"),
        cfg.IntOpt("unplug_timeout", default=15),
    ],
    group="lab",
)

layout = Layout.from_environment()
knobs = Knobs(layout.knobs)

START_TIMEOUT_S = 30
SOFT_REBOOT_TIMEOUT_S = 60

# Under emulation a plain old CPU is the fastest: with `max` the guest uses AVX and five-level page
# tables, each of which costs the emulator more than it saves (ssh after 40 s instead of 20 s).
CPU_MODELS = {"tcg": "Nehalem", "kvm": "host"}

# What makes a guest boot fast under software emulation, see the measurements in lab/README.md.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 systemd.show_status=false systemd.firstboot=no"
    " net.ifnames=0 fsck.mode=skip random.trust_cpu=on mitigations=off nokaslr no_timer_check"
    " tsc=reliable"
)


def node_name(volume_id):
    """Return the block node's name; QEMU allows 31 characters."""
    return "v" + volume_id.replace("-", "")[:28]


def device_id(volume_id):
    return f"vol-{volume_id}"


class QemuDriver(fake.FakeDriver):
    """FakeDriver answers what the lab has no opinion about (statistics, networks)."""

    vcpus = 64
    memory_mb = 65536
    local_gb = 5000
    capabilities = {  # noqa: RUF012  (Nova's own way to say it)
        **fake.FakeDriver.capabilities,
        "supports_multiattach": False,
    }

    # --- the host
    def init_host(self, host):
        super().init_host(host)
        layout.servers.mkdir(exist_ok=True)
        guests.write_ssh_files(layout)

    def list_instance_uuids(self):
        return [guest.id for guest in guests.recorded(layout)]

    def list_instances(self):
        return [guest.name for guest in guests.recorded(layout)]

    def instance_exists(self, instance):
        return (self._folder(instance) / "guest.json").exists()

    def get_available_resource(self, nodename):
        resources = super().get_available_resource(nodename)
        resources["uuid"] = node.get_local_node_uuid()
        resources["hypervisor_type"] = "QEMU"
        return resources

    def get_nodenames_by_uuid(self, refresh=False):
        # Kept in <state_path>/compute_id; Nova refuses to start again with another one.
        return {node.get_local_node_uuid(): self._host}

    def get_info(self, instance, use_cache=True):
        if not self.instance_exists(instance):
            raise exception.InstanceNotFound(instance_id=instance.uuid)
        running = self._pid(instance)
        state = power_state.RUNNING if running else power_state.SHUTDOWN
        return hardware.InstanceInfo(state=state)

    # --- life of a server
    def spawn(
        self,
        context,
        instance,
        image_meta,
        injected_files,
        admin_password,
        allocations,
        network_info=None,
        block_device_info=None,
        power_on=True,
        accel_info=None,
    ):
        folder = self._folder(instance)
        folder.mkdir(exist_ok=True)
        suite = instance.system_metadata.get("image_lab_suite")
        image = self._image(instance, suite)
        # A later `up` may come with another image of the suite; this disk stays with its kernel.
        (folder / "image").symlink_to(image.folder)
        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", image.root_disk]
        subprocess.run([*overlay, folder / "root.qcow2"], check=True, timeout=60)
        key = folder / "ssh_host_key"
        make_key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", instance.hostname]
        subprocess.run([*make_key, "-f", key], check=True, timeout=60)
        allowed = [layout.ssh_key.with_suffix(".pub").read_text().strip()]
        if instance.key_data:
            allowed.append(instance.key_data.strip())
        (folder / "authorized_keys").write_text("\n".join(allowed) + "\n")
        public = key.with_suffix(".pub").read_text().split()
        with self._choosing_port() as port:
            guests.record(
                layout,
                guests.Guest(
                    id=instance.uuid,
                    name=instance.display_name,
                    suite=suite,
                    ssh_port=port,
                    host_key=" ".join(public[:2]),
                ),
            )
        guests.write_ssh_files(layout)
        if power_on:
            self._start(instance, block_device_info)

    def destroy(
        self,
        context,
        instance,
        network_info,
        block_device_info=None,
        destroy_disks=True,
        destroy_secrets=True,
    ):
        self._stop(instance)
        if destroy_disks:
            self._forget(instance)

    def cleanup(
        self,
        context,
        instance,
        network_info,
        block_device_info=None,
        destroy_disks=True,
        migrate_data=None,
        destroy_vifs=True,
        destroy_secrets=True,
    ):
        if destroy_disks:
            self._forget(instance)

    def power_off(self, instance, timeout=0, retry_interval=0):
        self._stop(instance, timeout)

    def power_on(
        self,
        context,
        instance,
        network_info,
        block_device_info=None,
        accel_info=None,
        share_info=None,
    ):
        if not self._pid(instance):
            self._start(instance, block_device_info)

    def reboot(
        self,
        context,
        instance,
        network_info,
        reboot_type,
        block_device_info=None,
        bad_volumes_callback=None,
        accel_info=None,
        share_info=None,
    ):
        # As in libvirt's driver: soft is a shutdown and a start, hard pulls the plug.
        self._stop(instance, SOFT_REBOOT_TIMEOUT_S if reboot_type.lower() == "soft" else 0)
        self._start(instance, block_device_info)

    def resume_state_on_host_boot(
        self, context, instance, network_info, share_info, block_device_info=None
    ):
        self.power_on(context, instance, network_info, block_device_info)

    def pause(self, instance):
        with self._qmp(instance) as qmp:
            qmp("stop")

    def unpause(self, instance):
        with self._qmp(instance) as qmp:
            qmp("cont")

    def get_console_output(self, context, instance):
        return (self._folder(instance) / "console.log").read_bytes()[-100_000:]

    # --- volumes
    def default_root_device_name(self, instance, image_meta, root_bdm):
        return "/dev/vda"

    def get_device_name_for_instance(self, instance, bdms, bdm):
        used = {known.device_name for known in bdms if known.device_name}
        for letter in "bcdefghijklmnopqrstuvwxyz":
            if f"/dev/vd{letter}" not in used:
                return f"/dev/vd{letter}"
        raise exception.TooManyDiskDevices(maximum=25)

    def attach_volume(
        self,
        context,
        connection_info,
        instance,
        mountpoint,
        disk_bus=None,
        device_type=None,
        encryption=None,
    ):
        if not instance.device_metadata:  # Nova looks through it when a tagged volume is detached
            instance.device_metadata = objects.InstanceDeviceMetadata(devices=[])
            instance.save()
        if not knobs.obey("attach"):
            return
        if self._pid(instance):  # else it is plugged in at the start
            with self._qmp(instance) as qmp:
                self._plug(qmp, instance, connection_info)

    def detach_volume(self, context, connection_info, instance, mountpoint, encryption=None):
        try:
            if not knobs.obey("detach"):
                return
        except OrderedFault as fault:
            raise exception.DeviceDetachFailed(device=mountpoint, reason=str(fault)) from fault
        if not self._pid(instance):
            return
        volume_id = self._volume_id(connection_info)
        device = device_id(volume_id)
        with self._qmp(instance) as qmp:
            plugged = self._node_under(qmp, device)
            if plugged is None:
                LOG.warning("%s is not plugged in", device, instance=instance)
                self._drop_leftover(qmp, node_name(volume_id))
                return
            deadline = time.monotonic() + CONF.lab.unplug_timeout
            while True:
                try:
                    qmp("device_del", {"id": device})
                except QMPError as refusal:
                    if refusal.kind == "DeviceNotFound":
                        break  # the guest let it go meanwhile
                    # Else the guest has been asked already and has not answered.
                if qmp.wait_for("DEVICE_DELETED", 5, device=device):
                    break
                if time.monotonic() > deadline:
                    raise exception.DeviceDetachFailed(
                        device=mountpoint,
                        reason=f"the guest kept it for {CONF.lab.unplug_timeout} s",
                    )
            qmp("blockdev-del", {"node-name": plugged})

    def swap_volume(
        self,
        context,
        old_connection_info,
        new_connection_info,
        instance,
        mountpoint,
        resize_to,
    ):
        """Retype of a volume in use: mirror to the new file, then pivot."""
        knobs.obey("retype")
        if not self._pid(instance):
            raise exception.InstanceNotRunning(instance_id=instance.uuid)
        device = device_id(self._volume_id(old_connection_info))
        with self._qmp(instance) as qmp:
            old = self._node_under(qmp, device)
            new = "m" + uuid.uuid4().hex[:28]
            job = f"swap-{new}"
            qmp("blockdev-add", self._block_node(new, new_connection_info))
            mirror = {"job-id": job, "device": old, "target": new, "sync": "full"}
            qmp("blockdev-mirror", mirror)
            if not qmp.wait_for("BLOCK_JOB_READY", 3600, device=job):
                qmp("block-job-cancel", {"device": job})
                raise exception.VolumeRebaseFailed(reason="the mirror was not ready in an hour")
            qmp("block-job-complete", {"device": job})
            ended = qmp.wait_for("BLOCK_JOB_COMPLETED", 60, device=job)
            if not ended or ended["data"].get("error"):
                raise exception.VolumeRebaseFailed(reason=str(ended))
            qmp("blockdev-del", {"node-name": old})

    def extend_volume(self, context, connection_info, instance, requested_size):
        if self._pid(instance):
            with self._qmp(instance) as qmp:
                node_below = self._node_under(qmp, device_id(self._volume_id(connection_info)))
                qmp("block_resize", {"node-name": node_below, "size": requested_size})

    # --- the QEMU process
    def _folder(self, instance):
        return guests.folder(layout, instance.uuid)

    def _pid(self, instance):
        return guests.pid(layout, instance.uuid)

    def _qmp(self, instance, timeout_s=30):
        return QMP(self._folder(instance) / "qmp.sock", timeout_s)

    def _image(self, instance, suite):
        if suite not in CONF.lab.suites:
            raise exception.ImageUnacceptable(
                image_id=instance.image_ref,
                reason=f"its property lab_suite is {suite!r}; the lab has {list(CONF.lab.suites)}",
            )
        return Image(Path(CONF.lab.suites[suite]))

    @contextlib.contextmanager
    def _choosing_port(self):
        with (layout.run / "ssh-ports.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            taken = {guest.ssh_port for guest in guests.recorded(layout)}
            port = CONF.lab.first_ssh_port
            while port in taken or not port_is_free(port):
                port += 1
            yield port

    def _start(self, instance, block_device_info):
        folder = self._folder(instance)
        guest = json.loads((folder / "guest.json").read_text())
        image = Image((folder / "image").resolve())
        (folder / "qmp.sock").unlink(missing_ok=True)
        accelerator = CONF.lab.accelerator
        mac = "52:54:00:" + ":".join(instance.uuid[at : at + 2] for at in (0, 2, 4))
        identity = (
            f" systemd.hostname={instance.hostname}"
            f" systemd.machine_id={instance.uuid.replace('-', '')}"
        )
        root = {
            "driver": "qcow2",
            "node-name": "root",
            "cache": {"no-flush": True},
            "file": {"driver": "file", "filename": str(folder / "root.qcow2")},
        }
        command = [
            *("qemu-system-x86_64", "-S", "-nodefaults", "-no-user-config"),
            *("-name", instance.hostname, "-uuid", instance.uuid),
            *("-machine", "pc", "-accel", accelerator, "-cpu", CPU_MODELS[accelerator]),
            *("-m", str(instance.flavor.memory_mb), "-smp", str(instance.flavor.vcpus)),
            *("-display", "none", "-serial", f"file:{folder}/console.log"),
            *("-kernel", image.kernel, "-initrd", image.initramfs),
            *("-append", KERNEL_ARGUMENTS + tsc.kernel_argument() + identity),
            *("-blockdev", json.dumps(root)),
            *("-device", "virtio-blk-pci,drive=root,serial=root"),
            *("-device", "virtio-scsi-pci,id=scsi"),
            *("-netdev", f"user,id=net,hostfwd=tcp:{HOST}:{guest['ssh_port']}-:22"),
            *("-device", f"virtio-net-pci,netdev=net,romfile=,mac={mac}"),
            *("-device", "virtio-rng-pci"),
            *("-fw_cfg", f"name=opt/volferry-lab/host_key,file={folder}/ssh_host_key"),
            *("-fw_cfg", f"name=opt/volferry-lab/authorized_keys,file={folder}/authorized_keys"),
            *("-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off"),
            # A second one for people and tests, since QEMU serves one client per socket.
            *("-qmp", f"unix:{folder}/monitor.sock,server=on,wait=off"),
            *("-pidfile", folder / "qemu.pid"),
        ]
        with (folder / "qemu.log").open("ab") as log:
            subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": "/usr/bin:/bin"},
            )
        with self._first_contact(instance) as qmp:
            for mapping in (block_device_info or {}).get("block_device_mapping", []):
                self._plug(qmp, instance, mapping["connection_info"])
            qmp("cont")

    def _first_contact(self, instance):
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return self._qmp(instance)
            except OSError:
                if time.monotonic() > deadline:
                    said = (self._folder(instance) / "qemu.log").read_text()[-500:]
                    raise exception.InstanceDeployFailure(
                        f"QEMU did not answer within {START_TIMEOUT_S} s: {said}"
                    ) from None
                time.sleep(0.1)

    def _stop(self, instance, grace_s=0):
        """End the QEMU process; with `grace_s`, the guest may shut down first."""
        pid = self._pid(instance)
        if not pid:
            return
        try:
            with self._qmp(instance, 5) as qmp:
                if grace_s:
                    qmp("system_powerdown")
                    if self._ended(instance, grace_s):
                        return
                qmp("quit")
        except (OSError, QMPError) as refusal:
            LOG.warning("QEMU did not take the order to end: %s", refusal, instance=instance)
        if not self._ended(instance, 5):
            os.kill(pid, signal.SIGKILL)
            self._ended(instance, 10)

    def _ended(self, instance, timeout_s):
        deadline = time.monotonic() + timeout_s
        while pid := self._pid(instance):
            if time.monotonic() > deadline:
                return False
            self._reap(pid)
            time.sleep(0.1)
        return True

    @staticmethod
    def _reap(pid):
        """Collect a child that ended. After a restart of the services it is not our child."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    def _forget(self, instance):
        folder = self._folder(instance)
        if folder.exists():
            # The record goes first, so that nobody is led to a half-deleted server.
            (folder / "guest.json").unlink(missing_ok=True)
            shutil.rmtree(folder)
        guests.write_ssh_files(layout)

    # --- block devices
    @staticmethod
    def _volume_id(connection_info):
        return connection_info.get("serial") or connection_info["data"]["volume_id"]

    @staticmethod
    def _block_node(name, connection_info):
        kind, data = connection_info["driver_volume_type"], connection_info["data"]
        if kind != "local":
            raise exception.InvalidVolume(reason=f"connection type {kind}, not local")
        return {
            "driver": "raw",
            "node-name": name,
            "read-only": data.get("access_mode") == "ro",
            "discard": "unmap",
            "detect-zeroes": "unmap",
            # Flushes stop at the host's page cache, which outlives QEMU; only the host's own
            # power cut would lose them.
            "cache": {"no-flush": True},
            "file": {"driver": "file", "filename": data["device_path"]},
        }

    def _plug(self, qmp, instance, connection_info):
        volume_id = self._volume_id(connection_info)
        name = node_name(volume_id)
        self._drop_leftover(qmp, name)
        qmp("blockdev-add", self._block_node(name, connection_info))
        device = {"id": device_id(volume_id), "drive": name}
        if instance.system_metadata.get("image_hw_disk_bus") == "scsi":
            device.update(driver="scsi-hd", bus="scsi.0", serial=volume_id, device_id=volume_id)
        else:
            # virtio-blk keeps 20 characters of a serial.
            device.update(driver="virtio-blk-pci", serial=volume_id[:20])
        try:
            qmp("device_add", device)
        except QMPError:
            qmp("blockdev-del", {"node-name": name})
            raise

    @staticmethod
    def _node_under(qmp, device):
        """Return the block node that a device uses, or None when there is no such device."""
        for block in qmp("query-block"):
            # virtio-blk shows the path of its back end: /machine/peripheral/<id>/virtio-backend
            if device in block.get("qdev", "").split("/"):
                return (block.get("inserted") or {}).get("node-name")
        return None

    @staticmethod
    def _drop_leftover(qmp, name):
        """A guest may let a device go after the driver gave up; its node stays."""
        if any(
            known["node-name"] == name for known in qmp("query-named-block-nodes", {"flat": True})
        ):
            qmp("blockdev-del", {"node-name": name})
