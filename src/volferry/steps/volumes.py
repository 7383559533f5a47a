"""A transfer's targets, and which of its volumes somebody else deleted."""

from volferry.model import Pair, Volume
from volferry.steps.step import Context


def target_ids(ctx: Context) -> list[str]:
    """In the order of the pairs."""
    return [made["volume_id"] for made in ctx.known["target"]["targets"]]


async def deleted_targets(ctx: Context) -> list[str]:
    """Ids of the targets that are not there any more."""
    return [one for one in target_ids(ctx) if await ctx.cloud.volume_if_any(one) is None]


async def deleted_sources(ctx: Context) -> list[Volume]:
    sources = ctx.plan.cloud.sources
    return [one for one in sources if await ctx.cloud.volume_if_any(one.id) is None]


async def lost_pairs(ctx: Context) -> list[Pair]:
    """Those whose target is not there any more, where there is no way back to their sources either:
    all go back or none, and somebody deleted one of them."""
    if not await deleted_sources(ctx):
        return []
    targets = await deleted_targets(ctx)
    pairs = zip(ctx.plan.pairs, target_ids(ctx), strict=True)
    return [pair for pair, target in pairs if target in targets]
