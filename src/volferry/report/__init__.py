"""Words for people: events, plans, reports, errors. The only module that formats for them.

``words`` has figures and names, ``phases`` the order of things, ``lines`` events and errors,
``planned`` the plan, ``summary`` the report as text, ``page`` the report as HTML. ``story`` reads
one transfer from the store and holds the facts; the others only lay them out, so what is not in the
facts cannot be claimed by any.

Nothing is imported here: the command line loads the part that a verb needs.
"""
