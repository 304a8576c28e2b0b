"""Which engines run and what they serve, from the settings.

With nothing configured every public name is served by the embedded model. With real weights, an
upstream or a route it runs only where a route names it, and a stand-in needs an explicit route.
Heavy engines are imported only when they are named.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fluxserve.core.cards import SIMULATOR_ID
from fluxserve.core.catalog import Catalog
from fluxserve.core.errors import InvalidRequest, StartupError
from fluxserve.core.ports import Engine
from fluxserve.core.request import JSON, ImageRequest
from fluxserve.core.routing import Route
from fluxserve.engines.early import can_compute, is_bare
from fluxserve.engines.local.loras import LoraFiles, LoraLibrary
from fluxserve.engines.local.start import EMBEDDED, LOCAL, Early
from fluxserve.engines.simulator import Outcome, Script, Simulator
from fluxserve.engines.upstream.channel import ChannelKind, ChannelSpec, OnUnknown
from fluxserve.flux.skips import FP8
from fluxserve.images.guard import GuardedClient, Limits
from fluxserve.settings import Settings, Upstream, secret_from

SIMULATOR = "simulator"
LAST = -100  # the priority of what serves when nothing else does
FIRST = sys.maxsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The engines of this process and the routes to them."""

    engines: Sequence[Engine]
    channels: Sequence[ChannelSpec]
    routes: Sequence[Route]
    place: Callable[[str, ImageRequest], str]


def choose_engines(settings: Settings, catalog: Catalog, early: Early | None = None) -> Choice:
    """StartupError when a route or model that is named cannot be served here.

    `early` holds engine processes that were started beforehand.
    """
    channels = [] if settings.simulator.enabled else [_channel(one) for one in settings.upstream]
    routes = _routes(settings, catalog, channels)
    paid = {channel.name for channel in channels}
    named = dict.fromkeys(route.engine for route in routes if route.engine not in paid)
    engines = [_make(name, settings, early) for name in named]
    simulator = next((engine for engine in engines if isinstance(engine, Simulator)), None)

    by_name = {engine.name: engine for engine in engines}
    relays = {channel.name for channel in channels if channel.kind is ChannelKind.FLUXSERVE}

    def place(engine: str, request: ImageRequest) -> str:
        if engine not in relays:  # there it is for the other server to judge
            _check_approximations(engine, by_name.get(engine), request)
        return simulator.place(request) if simulator and engine == SIMULATOR else engine

    return Choice(engines=engines, channels=channels, routes=routes, place=place)


@runtime_checkable
class _Approximates(Protocol):
    """An engine that knows approximations by name."""

    @property
    def approximations(self) -> frozenset[str]: ...


def _check_approximations(name: str, engine: Engine | None, request: ImageRequest) -> None:
    """InvalidRequest for an approximation that what serves the request does not know."""
    if not request.approximate or isinstance(engine, Simulator):
        return
    known = engine.approximations if isinstance(engine, _Approximates) else frozenset[str]()
    lacking = [one.value for one in request.approximate if one not in known]
    if lacking:
        text = f"approximate: {', '.join(lacking)} cannot be had of {name}"
        if FP8 in lacking and known:
            text += "; 8 bits need engine.fp8 or engine.dtype in the server's settings"
        elif not known:
            text += ", which knows go_fast at most"
        raise InvalidRequest(text, field="approximate")


@runtime_checkable
class _HasDevices(Protocol):
    """An engine that can tell its devices apart."""

    @property
    def devices(self) -> Sequence[JSON]: ...


def devices_of(engine: Engine) -> Sequence[JSON]:
    """What each device of an engine is and does; nothing for an engine without any."""
    return engine.devices if isinstance(engine, _HasDevices) else ()


def _channel(asked: Upstream) -> ChannelSpec:
    """A provider account from the settings; StartupError when its key is not in the environment."""
    if asked.name in (EMBEDDED, LOCAL, SIMULATOR):
        raise StartupError(f"upstream: {asked.name!r} is the name of an engine, choose another")
    models = asked.models if isinstance(asked.models, dict) else dict.fromkeys(asked.models, "")
    return ChannelSpec(
        name=asked.name,
        kind=ChannelKind(asked.kind),
        base_url=asked.base_url,
        key=secret_from(asked.key_env) if asked.key_env else "",
        models=models or {"*": ""},
        priority=asked.priority,
        weight=asked.weight,
        concurrency=asked.concurrency,
        on_unknown=OnUnknown(asked.on_unknown),
        reconcile_grace_s=asked.reconcile_grace_s,
        cool_down_s=asked.cool_down_s,
        patience_s=asked.patience_s,
        submit_timeout_s=asked.timeout_s,
        deadline_s=asked.deadline_s,
        rename=asked.rename,
        extra=asked.extra,
        key_header=asked.key_header,
    )


def _routes(settings: Settings, catalog: Catalog, channels: Sequence[ChannelSpec]) -> list[Route]:
    if settings.simulator.enabled:
        return [Route(model="*", engine=SIMULATOR)]
    routes = [
        Route(model=item.model, engine=item.engine, priority=item.priority, weight=item.weight)
        for item in settings.route
    ]
    for route in routes:
        _check_route(route, catalog, channels)
    for channel in channels:
        for model in channel.models:
            if "*" not in model and catalog.find(model) is None:
                text = f"upstream {channel.name}: models: there is no model named {model!r}"
                raise StartupError(text)
    routes += [
        Route(model=model, engine=channel.name, priority=channel.priority, weight=channel.weight)
        for channel in channels
        for model in channel.models
    ]
    if settings.engine.model_dir:
        routes.append(Route(model=_local_model(settings, catalog), engine=LOCAL))
    routes.append(_simulator_route(routes, catalog))
    if is_bare(settings) and can_compute():
        routes.append(Route(model="*", engine=EMBEDDED, priority=LAST))
    return routes


def _simulator_route(others: Sequence[Route], catalog: Catalog) -> Route:
    """Who asks for the simulator gets it, not what a pattern gives to every name."""
    names = {name.lower() for name in catalog.card(SIMULATOR_ID).names}
    is_named = any(route.model.lower() in names for route in others)
    return Route(model=SIMULATOR_ID, engine=SIMULATOR, priority=LAST if is_named else FIRST)


def _check_route(route: Route, catalog: Catalog, channels: Sequence[ChannelSpec]) -> None:
    """StartupError for a model that there is not, or that the upstream named has no name for."""
    if "*" in route.model:
        return
    card = catalog.find(route.model)
    if card is None:
        raise StartupError(f"route: there is no model named {route.model!r}")
    for channel in channels:
        if channel.name == route.engine and channel.their_model(card.names) is None:
            text = f"route: the upstream {channel.name} does not serve {route.model!r}"
            raise StartupError(f"{text}: add it to its models")


def _local_model(settings: Settings, catalog: Catalog) -> str:
    """The card that the weights in engine.model_dir belong to."""
    from fluxserve.engines.local.identify import card_id_of

    return catalog.card(card_id_of(settings.engine.model_dir)).id


def _make(name: str, settings: Settings, early: Early | None) -> Engine:
    if name == SIMULATOR:
        told = settings.simulator
        script = Script(
            seconds=told.seconds,
            steps=told.steps,
            outcome=Outcome(told.outcome),
            error=told.error,
        )
        return Simulator(script, concurrency=told.concurrency)
    if name in (EMBEDDED, LOCAL):
        if not can_compute():
            raise StartupError(
                f"the engine {name} needs torch: install it with `pip install fluxserve[local]`"
            )
        from fluxserve.engines.local.engine import LocalEngine

        return LocalEngine.of(
            name, settings.engine, settings.data, loras=_loras(settings), early=early
        )
    raise StartupError(f"route: there is no engine or upstream named {name!r}")


def _loras(settings: Settings) -> LoraLibrary:
    """Adapters by name or URL, with a client whose limits are those of large files."""
    said = settings.engine
    limits = Limits(
        total_s=said.lora_timeout_s,
        size_max_bytes=min(said.lora_max_bytes, said.lora_cache_bytes),
        redirects_max=settings.fetch.redirects_max,
    )
    return LoraLibrary(
        LoraFiles(settings.data / "loras"),
        settings.data / "cache" / "loras",
        GuardedClient(settings.fetch.allow, limits),
        cache_max_bytes=said.lora_cache_bytes,
    )
