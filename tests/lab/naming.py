"""Names that no other run and no other test has; see ``conftest``."""

import secrets

RUN = f"test-{secrets.token_hex(3)}"


def named(what: str) -> str:
    return f"{RUN}-{what}-{secrets.token_hex(2)}"
