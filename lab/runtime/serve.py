"""serve.py MODULE PORT: an OpenStack WSGI application under waitress.

OpenStack's wsgi modules parse sys.argv at import, so it must hold only what oslo.config knows;
gunicorn's own options there make `keystone.wsgi.api` fail.
"""

import importlib
import sys

import sqlite_fix  # noqa: F401  (patches SQLAlchemy)
from waitress import serve

module, port = sys.argv[1], int(sys.argv[2])
sys.argv = [module]
application = importlib.import_module(module).application
if module.startswith("neutron"):
    # Listing ports reads Port.port_forwardings, a backref that exists only once the mappers were
    # configured; without any agent no earlier query does it.
    import neutron.db.models.port_forwarding  # noqa: F401
    import sqlalchemy.orm

    sqlalchemy.orm.configure_mappers()
serve(application, host="127.0.0.1", port=port, threads=12, ident=module, channel_timeout=300)
