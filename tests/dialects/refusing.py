"""A house whose every run ends at once, without a picture: for thousands of drawn requests."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import httpx
from hypothesis import HealthCheck, Phase, settings

from tests.dialects.fuzzing import Bench
from tests.dialects.served import client_of, house_on

FLAGS = {
    "simulator": {"outcome": "refuse_output", "seconds": 0, "steps": 1},
    "limits": {"queue_max": 0},
    "openai": {"default_model": "flux-dev"},
}
FEW = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
)


@contextmanager
def refusing(folder: Path) -> Iterator[Bench]:
    """Its client, whose answers are 400 or 422 even for what is asked rightly."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def enter() -> httpx.AsyncClient:
            house = await stack.enter_async_context(house_on(folder, FLAGS))
            return await stack.enter_async_context(client_of(house))

        client = runner.run(enter())
        try:
            yield Bench(runner, client)
        finally:
            runner.run(stack.aclose())
