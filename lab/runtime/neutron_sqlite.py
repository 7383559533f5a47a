"""neutron_sqlite.py URL: make Neutron's tables from its models, as its own unit tests do.

Its migrations do not run on SQLite.
"""

import sys

from neutron.db.migration.models import head
from sqlalchemy import create_engine

head.get_metadata().create_all(create_engine(sys.argv[1].split("?")[0]))
