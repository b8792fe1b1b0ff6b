"""One mesh for all end-to-end tests: every test works for a merchant of its own, so that none sees another's orders.

It is stopped when a pytest process is through with this folder, for eight processes that wait for work take a twentieth
of a core from the tests that follow.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.orders import Shop, running_shop


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def shop() -> AsyncIterator[Shop]:
    """See `Shop`. Tests that use it run on the session's event loop."""
    async with running_shop() as shop:
        yield shop
