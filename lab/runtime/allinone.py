"""allinone.py nova|cinder PORT --config-file F: API and all RPC services of one project.

They are threads of one process, so that `transport_url = fake:///` suffices: that driver keeps
its exchanges in the process. Native threads; eventlet is not used.
"""

# ruff: noqa: E402, PLC0415  (the order of the imports is what makes this work)

import importlib
import os
import signal
import sys
import threading
from pathlib import Path

project, port = sys.argv[1], int(sys.argv[2])
sys.argv = [f"{project}-all", *sys.argv[3:]]
os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "true"
os.environ["OS_CINDER_DISABLE_EVENTLET_PATCHING"] = "true"
importlib.import_module(f"{project}.monkey_patch").patch(backend="threading")

import os_brick
import os_brick.privileged
import sqlite_fix  # noqa: F401  (patches SQLAlchemy)
from waitress import serve


def run_privileged_code_here(*contexts):
    """Do without privsep's daemons, which want root's capabilities.

    Nothing that these services do with files and QEMU needs more than the lab's own user.
    """
    for context in (os_brick.privileged.default, *contexts):
        context.set_client_mode(False)


def start_nova():
    import nova.privsep
    import nova.virt

    # Nova loads nothing but nova.virt.<compute_driver>, so the lab's package must lie in there.
    nova.virt.__path__.append(str(Path(__file__).resolve().parent.parent / "drivers"))
    import nova.conf
    import os_vif
    from nova import objects, service
    from nova.compute import rpcapi as compute_rpcapi
    from nova.conductor import rpcapi as conductor_rpcapi
    from nova.scheduler import rpcapi as scheduler_rpcapi
    from nova.wsgi.osapi_compute import application

    run_privileged_code_here(nova.privsep.sys_admin_pctxt)
    os_brick.setup(nova.conf.CONF)
    os_vif.initialize()
    objects.Service.enable_min_version_cache()
    compute = {"topic_alt": compute_rpcapi.RPC_TOPIC_ALT}
    # Compute gets no conductor indirection: it uses the cell's database itself.
    for binary, topic, more in (
        ("nova-conductor", conductor_rpcapi.RPC_TOPIC, {}),
        ("nova-scheduler", scheduler_rpcapi.RPC_TOPIC, {}),
        ("nova-compute", compute_rpcapi.RPC_TOPIC, compute),
    ):
        running = service.Service.create(binary=binary, topic=topic, **more)
        running.start()
        services.append(running)
    return application


def start_cinder():
    # Registers command-line options, so it must come before the API parses the command line.
    from cinder.cmd import volume as volume_command  # isort: skip
    from cinder import privsep, service
    from cinder.wsgi.api import application
    from oslo_config import cfg

    run_privileged_code_here(privsep.sys_admin_pctxt)
    os_brick.setup(cfg.CONF)
    lock = threading.Lock()

    class ServiceOfMany(service.Service):
        """`Service.service_id` is a class attribute: with several services in one process each
        would report as the one that was started last."""

        def report_state(self):
            with lock:
                service.Service.service_id = self.origin_service_id
                super().report_state()

    for back_end in cfg.CONF.enabled_backends:
        cfg.CONF.register_opt(volume_command.host_opt, group=back_end)
        running = ServiceOfMany.create(
            host=f"{cfg.CONF.host}@{back_end}",
            service_name=back_end,
            binary="cinder-volume",
            coordination=True,
        )
        running.start()
        services.append(running)
    # Last: it waits for the first report of the back ends.
    running = ServiceOfMany.create(binary="cinder-scheduler")
    running.start()
    services.append(running)
    return application


services = []
application = {"nova": start_nova, "cinder": start_cinder}[project]()
# Guests live in sessions of their own and outlive this process; there is nothing to tidy up.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
serve(application, host="127.0.0.1", port=port, threads=12, ident=project, channel_timeout=300)
