"""volferry: move a live data volume to another OpenStack volume."""
