"""OpenStack, by the few verbs that the steps need.

The only package that imports openstacksdk (``session``), and only once ``Cloud.connect`` is called:
that import alone takes 0.65 s, and most commands never speak to a cloud.

Read ``verbs`` first: it is the contract that the steps and the tests' fake know. ``tenant`` keeps
it on a real cloud; ``poller`` waits, ``asking`` sends one request until its answer is final,
``retries`` says what may be sent twice, ``session`` knows how to get in. ``nouns`` and ``lookup``
are pure.
"""

from volferry.cloud.tenant import Cloud
from volferry.cloud.verbs import CloudVerbs, OnProgress, TypeNotReachable

__all__ = ["Cloud", "CloudVerbs", "OnProgress", "TypeNotReachable"]
