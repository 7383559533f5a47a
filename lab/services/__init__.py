"""The services of the cloud; one file is one service: configuration, database, command.

They talk over HTTP between projects and over `fake:///` inside one: the oslo.messaging driver
that keeps its queues in the memory of one process. So each project is one process (see
runtime/allinone.py) and there is no message broker; and the databases are SQLite files. Both were
weighed against RabbitMQ and MariaDB, which work too and cost 1.5 GiB more.
"""

from __future__ import annotations

from lab.services.base import Service
from lab.services.cinder import Cinder
from lab.services.glance import Glance
from lab.services.keystone import Keystone
from lab.services.neutron import Neutron
from lab.services.nova import Nova
from lab.services.placement import Placement

__all__ = ["ALL", "Service"]

# In the order in which they are started; Nova asks all others.
ALL: tuple[type[Service], ...] = (Keystone, Placement, Glance, Neutron, Cinder, Nova)
