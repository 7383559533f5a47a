"""OpenStack, by the few verbs that the steps need.

The only package that imports openstacksdk, and only once ``Cloud.connect`` is called: the import
alone takes 0.65 s, and most commands never speak to a cloud.

Read ``verbs`` first: it is the contract that the steps and the tests' fake know.
"""

from volferry.cloud.verbs import CloudVerbs, OnProgress, TypeNotReachable

__all__ = ["CloudVerbs", "OnProgress", "TypeNotReachable"]
