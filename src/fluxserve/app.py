"""Puts the house together; the only file that knows every room.

settings -> stores, blobs -> engines -> service, dispatchers, keeper, webhooks -> dialects -> routes
"""

import asyncio
import hashlib
import os
import random
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

from fluxserve.core.cards import CARDS
from fluxserve.core.catalog import Catalog
from fluxserve.core.deliveries import Delivery
from fluxserve.core.dispatcher import Dispatcher, Patience
from fluxserve.core.errors import FluxserveError
from fluxserve.core.events import EventBus
from fluxserve.core.keeper import Keeper, Retention
from fluxserve.core.keyring import KeyRing
from fluxserve.core.live import LiveBoard
from fluxserve.core.money import Accounts, PriceBook
from fluxserve.core.neighbours import Neighbours
from fluxserve.core.outcomes import Outcomes
from fluxserve.core.ports import Engine
from fluxserve.core.prediction import Prediction
from fluxserve.core.request import JSON, BlobRef, ImageRequest
from fluxserve.core.routing import Router
from fluxserve.core.service import Admission, PredictionService
from fluxserve.core.stopping import stop_each
from fluxserve.dialects import DIALECTS
from fluxserve.dialects.base import Services
from fluxserve.dialects.delivery import own_blob
from fluxserve.dialects.links import Signer
from fluxserve.engines.choose import SIMULATOR, Choice, choose_engines, devices_of
from fluxserve.engines.local.start import Early
from fluxserve.engines.simulator import HOLD
from fluxserve.engines.upstream.base import Desk
from fluxserve.engines.upstream.service import Upstreams, channels_of
from fluxserve.front import http_settings, is_loopback, refuse_open_doors
from fluxserve.images.guard import GuardedClient
from fluxserve.images.guard import Limits as FetchLimits
from fluxserve.images.intake import ImageIntake
from fluxserve.images.masks import repaint_mask
from fluxserve.ops.limiter import MemoryLimiter
from fluxserve.ops.metrics import Metrics
from fluxserve.settings import Settings
from fluxserve.storage.backlog import Backlog
from fluxserve.storage.blobs import open_blobs
from fluxserve.storage.deliveries import SqlDeliveryStore
from fluxserve.storage.files import SqlFileStore
from fluxserve.storage.keys import SqlKeyStore
from fluxserve.storage.ledger import BudgetedAttemptStore, BudgetedPredictionStore, SqlMoneyStore
from fluxserve.storage.nodes import SqlNodes
from fluxserve.storage.opening import is_shared, open_database
from fluxserve.storage.orphans import Orphans
from fluxserve.storage.proof import WriteProof
from fluxserve.storage.secrets import Secrets, open_admin_token, open_secrets, share_secrets
from fluxserve.webhooks.courier import Courier
from fluxserve.webhooks.javascript import to_json
from fluxserve.webhooks.sender import Deliverer
from fluxserve.webhooks.signing import Message, Scheme, jwks
from fluxserve.webhooks.signing import Signer as WebhookSigner
from fluxserve.webhooks.updates import Updates

CALLBACKS = "/callbacks/"  # where providers report; the attempt's token follows


def now() -> datetime:
    return datetime.now(UTC)


class House:
    """Everything that runs in one server process, started and stopped in order."""

    def __init__(
        self, settings: Settings, shared: Secrets | None = None, early: Early | None = None
    ) -> None:
        self.settings = settings
        self.secrets = shared or open_secrets(settings.data)
        self.admin_token = open_admin_token(settings.data)
        self.bus = EventBus()
        self.live = LiveBoard()
        self.database = open_database(settings.database_url)
        self.write_proof = WriteProof(self.database)
        self.store = BudgetedPredictionStore(self.database)
        self.attempts = BudgetedAttemptStore(self.database)
        self.money = SqlMoneyStore(self.database)
        self.files = SqlFileStore(self.database, now)
        self.deliveries = SqlDeliveryStore(self.database)
        self.blobs = open_blobs(settings.files.url or (settings.data.absolute() / "files").as_uri())
        self.signer = Signer(self.secrets.link_secret)
        self.catalog = Catalog(CARDS, lambda: secrets.randbits(32))
        self.choice: Choice = choose_engines(settings, self.catalog, early)
        self.engines = {engine.name: engine for engine in self.choice.engines}
        self.price_book = PriceBook(self.money, now)
        self.router = Router(
            self.choice.routes,
            is_able=self._is_able,
            draw=random.random,
            price=self.price_book.cost,
        )
        self.guard = GuardedClient(
            settings.fetch.allow,
            FetchLimits(
                total_s=settings.fetch.timeout_s,
                size_max_bytes=settings.limits.body_max_bytes,
                redirects_max=settings.fetch.redirects_max,
            ),
        )
        self.intake = ImageIntake(
            self.blobs,
            self.guard,
            self._own,
            pixels_max=settings.limits.pixels_max,
            size_max_bytes=settings.limits.upload_max_bytes,
        )
        self.outcomes = Outcomes(store=self.store, blobs=self.blobs, bus=self.bus, clock=now)
        self.predictions = self._service()
        self.keyring = KeyRing(
            SqlKeyStore(self.database),
            clock=now,
            admin_secret=self.admin_token,
            is_open=is_loopback(settings.host) or settings.insecure_open,
        )
        self.neighbours = self._neighbours()
        self.upstreams = self._upstreams()
        self.dispatchers = [self._dispatcher(engine) for engine in self.engines.values()]
        self.keeper = self._keeper()
        self.services = self._services()
        self.deliverer, self.updates = self._webhooks()
        self.metrics = self._metrics()

    @classmethod
    async def open(cls, settings: Settings, early: Early | None = None) -> "House":
        """A house whose secrets are those of all servers on its database. StartupError."""
        url = settings.database_url
        if not is_shared(url):
            return cls(settings, early=early)
        database = open_database(url)
        await database.start()
        try:
            return cls(settings, await share_secrets(database, settings.data), early)
        finally:
            await database.stop()

    async def start(self) -> None:
        """Open the store, then let work flow. StartupError."""
        await self.database.start()
        try:
            await refuse_open_doors(self.settings, self.keyring)
            await self.price_book.start()
            for engine in self.engines.values():
                await engine.start()
            for dispatcher in self.dispatchers:
                await dispatcher.start()
            await self.neighbours.start(self.keeper.rehome)
            await self.upstreams.start()
            await self.keeper.start()
            await self.deliverer.start()
            await self.updates.start()
        except BaseException:
            await self.stop()
            raise

    def close(self) -> None:
        """Take up no more work and send waiting callers home; `stop` comes next."""
        self.bus.close()
        for dispatcher in self.dispatchers:
            dispatcher.close()

    async def stop(self) -> None:
        """Finish or put back what runs, then close the store. A part in trouble holds up none."""
        self.close()
        draining = [stop_each([dispatcher]) for dispatcher in self.dispatchers]
        await asyncio.gather(*draining, stop_each([self.upstreams]))
        await stop_each([self.neighbours, self.keeper, self.updates, self.deliverer])
        await stop_each([*self.engines.values(), self.price_book])
        await self.guard.aclose()
        await self.database.stop()

    def _service(self) -> PredictionService:
        limits = self.settings.limits
        return PredictionService(
            store=self.store,
            blobs=self.blobs,
            bus=self.bus,
            live=self.live,
            catalog=self.catalog,
            router=self.router,
            clock=now,
            estimate=self._estimate,
            admission=Admission(queue_max=limits.queue_max, concurrency_max=limits.concurrency),
            place=self.choice.place,
        )

    def _dispatcher(self, engine: Engine) -> Dispatcher:
        wait = self.settings.dispatch
        return Dispatcher(
            engine=engine,
            store=self.store,
            outcomes=self.outcomes,
            intake=self.intake,
            bus=self.bus,
            live=self.live,
            catalog=self.catalog,
            clock=now,
            owner=f"{socket.gethostname()}:{os.getpid()}",
            patience=Patience(
                lease_s=wait.lease_s,
                heartbeat_s=wait.heartbeat_s,
                job_s=wait.job_s,
                poll_s=1.0 if is_shared(self.settings.database_url) else 5.0,
                drain_s=wait.drain_s,
                attempts_max=wait.attempts_max,
            ),
        )

    def _upstreams(self) -> Upstreams:
        public = self.settings.public_url
        desk = Desk(
            store=self.store,
            attempts=self.attempts,
            outcomes=self.outcomes,
            intake=self.intake,
            bus=self.bus,
            catalog=self.catalog,
            router=self.router,
            clock=now,
            channels=channels_of(self.choice.channels, self.guard, time.monotonic),
            callback_base=f"{public.rstrip('/')}{CALLBACKS}" if public else "",
            lease_s=self.settings.dispatch.upstream_lease_s,
            drain_s=self.settings.dispatch.drain_s,
            is_elsewhere=self.neighbours.serve,
        )
        return Upstreams(desk, is_alone=not is_shared(self.settings.database_url))

    def _neighbours(self) -> Neighbours:
        named = hashlib.sha256(f"node {self.admin_token}".encode()).hexdigest()[:32]
        serves = frozenset([*self.engines, *(channel.name for channel in self.choice.channels)])
        nodes = SqlNodes(self.database) if is_shared(self.settings.database_url) else None
        return Neighbours(nodes, named, serves, now)

    def _keeper(self) -> Keeper:
        keep = self.settings.retention
        return Keeper(
            store=self.store,
            files=self.files,
            blobs=self.blobs,
            service=self.predictions,
            outcomes=self.outcomes,
            clock=now,
            retention=Retention(files_s=keep.files_s, predictions_s=keep.predictions_s),
            attempts_max=self.settings.dispatch.attempts_max,
            is_running=lambda lost: any(item.is_running(lost) for item in self.dispatchers),
            counts_starts=lambda lost: lost.engine in self.engines,
            home=self._home,
            daily=[Orphans(self.database, self.blobs, clock=now).sweep],
        )

    def _services(self) -> Services:
        return Services(
            predictions=self.predictions,
            catalog=self.catalog,
            router=self.router,
            intake=self.intake,
            blobs=self.blobs,
            files=self.files,
            deliveries=self.deliveries,
            keyring=self.keyring,
            limiter=MemoryLimiter(self.settings.limits.rate_per_minute),
            secrets=self.secrets,
            accounts=Accounts(self.money, now),
            money=self.money,
            price_book=self.price_book,
            attempts=self.attempts,
            redelivery=self,
            reviews=self.upstreams,
            bus=self.bus,
            live=self.live,
            signer=self.signer,
            http=http_settings(self.settings),
            clock=now,
            retention_s=self.settings.retention.files_s,
            judge_url=self.guard.check,
            repaint_mask=partial(repaint_mask, pixels_max=self.settings.limits.pixels_max),
            webhook_jwks=jwks(self.secrets.webhook_key),
            devices=self._devices,
            channels=self._channels,
        )

    def _metrics(self) -> Metrics:
        return Metrics(
            self.bus,
            lambda: {item.engine.name: item.running for item in self.dispatchers},
            self._channels,
            Backlog(self.database).count,
        )

    def _webhooks(self) -> tuple[Deliverer, Updates]:
        courier = Courier(
            poster=self.guard,
            render=self._message,
            signer=WebhookSigner(
                secret_of=self.secrets.webhook_secret,
                key=self.secrets.webhook_key,
                is_inside=self.guard.is_inside,
                sends_plain_secret=self.settings.bfl.plain_secret,
            ),
            clock=now,
        )
        deliverer = Deliverer(
            store=self.deliveries,
            predictions=self.predictions.get,
            courier=courier,
            bus=self.bus,
            clock=now,
        )
        updates = Updates(
            bus=self.bus,
            predictions=self.predictions.get,
            courier=courier,
            clock=now,
        )
        return deliverer, updates

    def _message(self, prediction: Prediction, delivery: Delivery) -> Message:
        """What a webhook says: the prediction in the words of the dialect that made it."""
        dialect = next(one for one in DIALECTS if one.name == prediction.origin.dialect)
        links = self.services.links_on(prediction.origin.base_url, prediction.origin.mount)
        body = to_json(dialect.render(prediction, links))
        return Message(body=body, scheme=Scheme(dialect.signature))

    async def redeliver(self, delivery_id: str) -> None:
        await self.deliverer.redeliver(delivery_id)

    async def is_ready(self) -> str | None:
        """Why it cannot take work, or None."""
        for engine in self.engines.values():
            if engine.trouble:
                return f"engine {engine.name}: {engine.trouble}"
        try:
            await self.write_proof.renew()
        except Exception as error:
            return f"the store cannot be written: {type(error).__name__}"
        return None

    def _is_able(self, name: str) -> bool:
        engine = self.engines.get(name)
        return self.upstreams.is_able(name) if engine is None else engine.trouble is None

    def _home(self, prediction: Prediction) -> str | None:
        """The engine of a prediction, another when no server has that any more, or None."""
        name = prediction.engine
        if (
            name in self.engines
            or self.upstreams.has(name)
            or (name == HOLD and SIMULATOR in self.engines)
            or self.neighbours.serve(name)
        ):
            return name
        try:
            return self.router.choose(self.catalog.card(prediction.request.model))
        except FluxserveError:
            return None

    def _estimate(self, name: str, request: ImageRequest) -> float | None:
        engine = self.engines.get(name)
        return engine.estimate(request) if engine else None

    def _devices(self) -> Sequence[JSON]:
        return [
            {
                "engine": item.engine.name,
                "capacity": item.engine.capacity,
                "running": item.running,
                "trouble": item.engine.trouble,
                "devices": devices_of(item.engine),
            }
            for item in self.dispatchers
        ]

    def _channels(self) -> Sequence[dict[str, JSON]]:
        return [asdict(report) for report in self.upstreams.reports()]

    async def _own(self, url: str) -> BlobRef | None:
        return await own_blob(self.services, url)
