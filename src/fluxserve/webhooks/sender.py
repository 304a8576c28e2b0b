"""The deliverer: claims messages that are due, sends them, puts off what failed.

    claim_due -> Traffic -> Courier -> settle: sent | put off by the schedule | given up

It sleeps until the next message is due, the bus tells of a new one, or a slot is free again.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

from fluxserve.core.deliveries import Delivery, DeliveryState
from fluxserve.core.errors import NotFound
from fluxserve.core.events import Event, EventBus, EventKind
from fluxserve.core.ports import DeliveryStore
from fluxserve.core.prediction import Prediction
from fluxserve.webhooks.courier import ANSWER_TIMEOUT_S, Answer, Courier, host_of
from fluxserve.webhooks.traffic import Lanes, Traffic

log = logging.getLogger(__name__)

# Seconds to the next try, by tries made. The first six are Replicate's: the last of them comes a
# minute after the event. The rest spread over a day; the last one repeats.
RETRY_S = (1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 14400)
QUICK_TRIES = 7  # the first and six more
GIVE_UP_S = 24 * 3600.0  # after the event
JITTER = 0.1  # so that what failed together does not come back together
CLAIM_MAX = 256  # deliveries held at once
LEASE_S = 60.0  # a delivery silent for this long is taken up by somebody else
POLL_S = 5.0  # the bus is a hint: look this often anyway
BREATH_S = 0.05  # between two rounds that found nothing


class Deliverer:
    """Sends what the outbox owes. Any number of processes may run one."""

    def __init__(
        self,
        *,
        store: DeliveryStore,
        predictions: Callable[[str], Awaitable[Prediction]],
        courier: Courier,
        bus: EventBus,
        clock: Callable[[], datetime],
        draw: Callable[[], float] = random.random,
        lanes: Lanes | None = None,
        drain_s: float = 12.0,
    ) -> None:
        """`predictions(id)` gives a prediction as of now; `draw` a number from 0 to 1."""
        self._store = store
        self._predictions = predictions
        self._courier = courier
        self._bus = bus
        self._clock = clock
        self._draw = draw
        self._traffic = Traffic(lanes or Lanes())
        self._drain_s = drain_s
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._is_full = False
        self._is_stopping = False

    async def start(self) -> None:
        self._bus.hook(self._hear)
        self._loop = asyncio.create_task(self._run(), name="webhooks")

    async def stop(self) -> None:
        """Claim no more, let running tries end for a while, leave the rest for the next start."""
        self._is_stopping = True
        if self._loop:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        rows = self._traffic.drain()
        # While the database is away they keep their leases, and are sent when those are over.
        await asyncio.gather(*(self._put_off(row, 0.0) for row in rows), return_exceptions=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._drain_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look for due messages now."""
        self._wake.set()

    async def redeliver(self, delivery_id: str) -> None:
        """Send a message once more, whatever became of it, under its old id. NotFound."""
        is_due = False
        while not is_due:  # a try may end meanwhile
            delivery = await self._store.get(delivery_id)
            again = replace(delivery, state=DeliveryState.PENDING, tries=0, next_at=self._clock())
            is_due = await self._store.settle(delivery, again)
        self.wake()

    def _hear(self, event: Event) -> None:
        if event.kind in (EventKind.STARTED, EventKind.FINISHED):
            self.wake()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                pause_s = await self._round()
            except Exception:
                log.exception("looking for due webhooks failed; trying again")
                pause_s = POLL_S
            # Not wait_for: on Python 3.11 it forgets a cancel that meets a wake-up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _round(self) -> float:
        """Claim what is due and send what may be sent; the seconds until the next look."""
        room = CLAIM_MAX - self._traffic.held
        self._is_full = room <= 0
        if self._is_full:
            return POLL_S  # a finished try wakes us
        at = self._clock()
        due = await self._store.claim_due(at, at + timedelta(seconds=LEASE_S), room)
        waits = [(delivery, self._traffic.admit(delivery)) for delivery in due]
        self._launch()
        await asyncio.gather(*(self._put_off(row, wait_s) for row, wait_s in waits if wait_s))
        if len(due) == room:
            return 0.0
        next_due = await self._store.next_due()
        if next_due is None:
            return POLL_S
        return min(POLL_S, max(BREATH_S, (next_due - self._clock()).total_seconds()))

    def _launch(self) -> None:
        while not self._is_stopping and (delivery := self._traffic.next()) is not None:
            task = asyncio.create_task(self._deliver(delivery), name=f"webhook {delivery.id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(self, delivery: Delivery) -> None:
        """One try, and what follows from it."""
        is_good: bool | None = None
        try:
            is_good = await self._try(delivery)
        except asyncio.CancelledError:
            await asyncio.shield(self._put_off(delivery, 0.0))
            raise
        except Exception:
            # The row keeps its lease: somebody tries again when that is over.
            log.exception("webhook %s: its result could not be kept", delivery.id)
        finally:
            self._traffic.done(delivery, is_good=is_good)
        spilt = [(row, self._traffic.admit(row)) for row in self._traffic.spill()]
        self._launch()
        await asyncio.gather(*(self._put_off(row, wait_s) for row, wait_s in spilt))
        if self._is_full or not is_good:
            self.wake()

    async def _try(self, delivery: Delivery) -> bool | None:
        """Whether the receiver took it; None when it was not asked."""
        left = delivery.next_at - self._clock()  # of the lease, while it stood in line
        if left < timedelta(seconds=ANSWER_TIMEOUT_S):
            return None  # somebody may hold it before an answer is in, and would send it as well
        try:
            prediction = await self._predictions(delivery.prediction_id)
        except NotFound:
            gone = Answer(error="the prediction is gone")
            await self._settle(delivery, _ended(delivery, DeliveryState.DEAD, gone))
            return None
        answer = await self._courier.send(prediction, delivery)
        if answer.is_good:
            await self._settle(delivery, _ended(delivery, DeliveryState.SENT, answer))
            log.info("webhook %s (%s) of %s sent", delivery.id, delivery.kind, prediction.id)
        else:
            await self._settle(delivery, self._after_failure(delivery, answer))
        return answer.is_good

    def _after_failure(self, delivery: Delivery, answer: Answer) -> Delivery:
        """Put off by the schedule, or given up."""
        failed = _ended(delivery, DeliveryState.PENDING, answer)
        at = self._clock()
        delay_s = RETRY_S[min(delivery.tries, len(RETRY_S) - 1)]
        next_at = at + timedelta(seconds=delay_s * (1 + JITTER * (2 * self._draw() - 1)))
        is_late = next_at > delivery.created_at + timedelta(seconds=GIVE_UP_S)
        # News of a start is worth little once the quick tries are over.
        if failed.tries >= QUICK_TRIES and (is_late or delivery.kind != "completed"):
            log.warning(
                "webhook %s (%s) of %s given up after %d tries: %s",
                *(delivery.id, delivery.kind, delivery.prediction_id),
                *(failed.tries, answer.error),
            )
            return replace(failed, state=DeliveryState.DEAD)
        log.info(
            "webhook %s (%s) of %s put off after try %d, to %s: %s",
            *(delivery.id, delivery.kind, delivery.prediction_id),
            *(failed.tries, host_of(delivery), answer.error),
        )
        return replace(failed, next_at=next_at)

    async def _put_off(self, delivery: Delivery, wait_s: float) -> None:
        """Due again later, without a try."""
        next_at = self._clock() + timedelta(seconds=wait_s)
        await self._settle(delivery, replace(delivery, next_at=next_at))

    async def _settle(self, held: Delivery, after: Delivery) -> None:
        if not await self._store.settle(held, after):
            log.info("webhook %s: taken up by another, or gone; its result is not kept", held.id)


def _ended(delivery: Delivery, state: DeliveryState, answer: Answer) -> Delivery:
    return replace(
        delivery,
        state=state,
        tries=delivery.tries + 1,
        last_status=answer.status,
        last_error=answer.error,
    )
