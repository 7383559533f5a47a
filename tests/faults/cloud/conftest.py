"""The story of one transfer; ``whole`` has its cutover, which is a word."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.cloud.story import WITH_CUTOVER, Story


@pytest.fixture
async def story(tmp_path: Path) -> AsyncIterator[Story]:
    one = Story(tmp_path)
    await one.plan()
    yield one
    one.store.close()


@pytest.fixture
def whole(story: Story) -> Story:
    story.steps = WITH_CUTOVER
    return story
