"""A real OpenStack and real guests on one machine, started by one command.

`python3 -m lab up` from the root of the repository. What stands where:

    __main__.py    one verb per function; says what happened in words
    api.py         the same for Python: class Lab, used by tests and the demo
    layout.py      the folder of one lab: which file lies where, which port is whose
    install.py     Debian packages and the services' virtual environment
    images.py      guest images from Debian packages (guest/ has the scripts)
    storage.py     the file system with reflink under the volumes
    services/      one file per service: its configuration, its database, its command
    catalog.py     what the cloud offers: users, quotas, types, flavors, images
    cloud.py       the OpenStack API over plain HTTP, as far as the lab needs it
    guests.py      ssh_config and known_hosts, kept current by the Nova driver
    knobs.py       delays and faults that tests order and the drivers carry out
    processes.py   starts, finds and ends processes; only those that the lab started
    runtime/       runs inside the services' processes
    drivers/       the Cinder and the Nova driver

The controller needs nothing but the standard library: it must run before anything is installed.
"""
