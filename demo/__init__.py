"""The demonstration: a PostgreSQL volume in use, moved in the lab, with proof of every promise."""
