"""What all dialects share: the services they call, reading bodies, finding the caller, errors.

request -> routes of one dialect -> `answering` -> handler -> Response
                                        |-> any FluxserveError in that dialect's own shape
"""

import json
import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fluxserve.core.access import Caller, Limiter
from fluxserve.core.attempts import Attempt, AttemptStore
from fluxserve.core.catalog import Catalog
from fluxserve.core.errors import (
    ErrorCode,
    Failure,
    FluxserveError,
    InvalidRequest,
    Problem,
    Rule,
    TooLarge,
)
from fluxserve.core.events import EventBus
from fluxserve.core.keyring import KeyRing
from fluxserve.core.live import LiveBoard
from fluxserve.core.money import MoneyStore, PriceBook
from fluxserve.core.ports import BlobStore, DeliveryStore, FileStore, Intake
from fluxserve.core.prediction import Prediction
from fluxserve.core.request import JSON
from fluxserve.core.routing import Router
from fluxserve.core.service import PredictionService
from fluxserve.dialects.links import Links, Signer
from fluxserve.dialects.wire import Answer

log = logging.getLogger(__name__)

MIB = 1024 * 1024
# An uploaded file under any mount: 26 letters of base 32.
FILE_PATH = re.compile(r"(?:/[A-Za-z0-9_-]{1,64}){0,4}/files/([0-7][0-9a-hjkmnp-tv-z]{25})")


class Secrets(Protocol):
    """Secrets derived for one purpose."""

    def webhook_secret(self, tenant_id: str) -> str:
        """`whsec_` and the standard base64 of 24 bytes; stable."""
        ...


class Accounts(Protocol):
    """What a caller has left to spend."""

    async def balance_micro(self, caller: Caller) -> int | None:
        """Millionths of a USD; None where no budget is set."""
        ...


class Reviews(Protocol):
    """Takes what an operator found out about a submission that nobody could tell of."""

    async def decide(self, attempt_id: str, upstream_id: str | None) -> Attempt:
        """None: it never happened. NotFound, Conflict."""
        ...


class Redelivery(Protocol):
    """Sends a webhook message once more."""

    async def redeliver(self, delivery_id: str) -> None: ...  # NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """The few settings that dialects know."""

    public_url: str = ""  # scheme://host[:port], no slash after it; empty: what the caller used
    trusted_proxies: tuple[str, ...] = ()  # networks whose forwarded headers count
    body_max_bytes: int = 32 * MIB
    upload_max_bytes: int = 100 * MIB
    delivery: str = "auto"  # Replicate outputs: url, data, auto
    literal_aborted: bool = False  # Replicate: say `aborted` for an expired deadline
    sync_timeout_s: float = 60.0  # WaveSpeed sync mode
    wait_max_s: float = 600.0  # OpenAI and fal calls that wait for the picture
    bfl_plain_secret: bool = True
    bfl_webhook_status: str = "bfl"  # or "task"
    bfl_poll_hold_s: float = 0.3
    hardware: str = "local"
    openai_default_model: str = ""  # what OpenAI's own model names stand for; "": see docs
    fetch_allow: tuple[str, ...] = ()  # networks opened for webhooks and input URLs


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything a dialect may call."""

    predictions: PredictionService
    catalog: Catalog
    router: Router
    intake: Intake
    blobs: BlobStore
    files: FileStore
    deliveries: DeliveryStore
    keyring: KeyRing
    limiter: Limiter
    secrets: Secrets
    accounts: Accounts
    money: MoneyStore
    price_book: PriceBook
    attempts: AttemptStore
    redelivery: Redelivery
    reviews: Reviews
    bus: EventBus
    live: LiveBoard
    signer: Signer
    http: HttpSettings
    clock: Callable[[], datetime]
    retention_s: float
    judge_url: Callable[[str], None]  # InputUnreachable: an address that is never called
    repaint_mask: Callable[[bytes, str], bytes]  # data, field: white where the mask wants change
    webhook_jwks: JSON  # the public key of fal's webhooks
    devices: Callable[[], Sequence[JSON]] = tuple
    channels: Callable[[], Sequence[JSON]] = tuple
    extra: Mapping[str, object] = field(default_factory=dict)

    def links(self, request: Request, mount: str) -> Links:
        """Links on the origin that this caller used."""
        return _links(base_url(request, self.http), mount, self.signer, self.retention_s)

    def links_on(self, base: str, mount: str) -> Links:
        return _links(base, mount, self.signer, self.retention_s)


@lru_cache(maxsize=1024)  # callers use few names, and every answer has links
def _links(base: str, mount: str, signer: Signer, retention_s: float) -> Links:
    keep = timedelta(seconds=retention_s or 3650 * 86400)
    return Links(base=base, mount=mount, signer=signer, keep=keep)


ErrorShape = Callable[[Failure], tuple[int, JSON]]
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One HTTP API: where it lives, what it answers, how its errors and webhooks look.

    `routes(services, mount)` gives the routes under one mount, with full paths. `owns(path)` tells
    whether an unknown path should get this dialect's 404. `render` is the webhook body too.
    """

    name: str
    mounts: tuple[str, ...]
    routes: Callable[[Services, str], Sequence[Route]]
    render: Callable[[Prediction, Links], JSON]
    error: ErrorShape
    owns: Callable[[str], bool]
    signature: str = "standard"  # standard, bfl, wavespeed or fal
    error_headers: Callable[[Failure], Mapping[str, str]] = lambda failure: {}


def answering(
    error: ErrorShape, headers: Callable[[Failure], Mapping[str, str]] | None = None
) -> Callable[[Handler], Handler]:
    """Decorate a handler so that whatever it raises is answered in the dialect's shape."""

    def decorate(handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except Exception as problem:
                return raised(request, problem, error, headers)

        return answer

    return decorate


def raised(
    request: Request,
    problem: Exception,
    error: ErrorShape,
    headers: Callable[[Failure], Mapping[str, str]] | None = None,
) -> Response:
    """The answer for whatever a handler raised; what nobody foresaw is logged."""
    if isinstance(problem, FluxserveError):
        return failed(problem.failure(), error, headers)
    if isinstance(problem, ClientDisconnect):
        return Response(status_code=499)
    log.error("%s %s failed", request.method, request.url.path, exc_info=problem)
    text = "an unforeseen error; the server's log says more"
    return failed(Failure(code=ErrorCode.INTERNAL, message=text), error, headers)


def failed(
    failure: Failure,
    error: ErrorShape,
    headers: Callable[[Failure], Mapping[str, str]] | None = None,
) -> Response:
    """The answer for a failure in one dialect's shape."""
    status, body = error(failure)
    more = dict(headers(failure)) if headers else {}
    if failure.code is ErrorCode.TOO_LARGE:
        more.setdefault("Connection", "close")  # whatever of the body is still to come
    if failure.retry_after_s is not None:
        more.setdefault("Retry-After", str(max(1, math.ceil(failure.retry_after_s))))
    return Answer(body, status, more)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body; TooLarge as soon as it is known to be over `max_bytes`."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise TooLarge(f"the body may have at most {max_bytes} bytes, not {declared}")
    chunks: list[bytes] = []
    size = 0
    receive = request.receive
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(f"the body may have at most {max_bytes} bytes")
        if not message.get("more_body", False):
            return b"".join((*chunks, chunk)) if chunks else chunk
        chunks.append(chunk)


async def read_object(request: Request, max_bytes: int) -> dict[str, JSON]:
    """The body as a JSON object, whatever its content type says; InvalidRequest, TooLarge."""
    return parse_object(await read_body(request, max_bytes))


def parse_object(body: bytes) -> dict[str, JSON]:
    """Bytes as a JSON object; InvalidRequest says what is wrong with them."""
    try:
        value = _parse(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        value = _parse_slowly(body)  # has a byte order mark, or something to be said about it
    if not isinstance(value, dict):
        raise _bad_body("the body must be a JSON object")
    return value


_parse: Callable[[bytes], object] = msgspec.json.Decoder().decode


def _parse_slowly(body: bytes) -> object:
    """The same by the standard library, which can tell where it went wrong; InvalidRequest."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _bad_body(f"the body is not valid UTF-8 (byte {error.start})") from None
    try:
        value: object = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise _bad_body("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _bad_body(f"the body is not valid JSON ({where})") from None
    except OverflowError as error:  # JSON well enough, but nothing that we could keep
        problem = Problem(field="", rule=Rule.OTHER, message=str(error))
        raise InvalidRequest.of([problem]) from None
    except ValueError:
        raise _bad_body("the body is not valid JSON") from None
    if _HALF_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _bad_body("the body holds half a surrogate pair") from None
    return value


_HALF_PAIR = re.compile(r"\\u[dD]")  # may be one


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        shown = text if len(text) <= 20 else f"{text[:20]}..."
        raise OverflowError(f"the body holds a number that is too large: {shown}")
    return number


def _bad_body(message: str) -> InvalidRequest:
    return InvalidRequest(
        message, problems=[Problem(field="", rule=Rule.FORMAT, message=message, expected="json")]
    )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def base_url(request: Request, http: HttpSettings) -> str:
    """scheme://host[:port] as the caller sees us: configured, told by a trusted proxy, or asked."""
    if http.public_url:
        return http.public_url
    scope, headers = request.scope, request.headers
    scheme, host = scope["scheme"], headers.get("host", "")
    told_scheme, told_host = headers.get("x-forwarded-proto"), headers.get("x-forwarded-host")
    if (told_scheme or told_host) and _is_trusted(scope.get("client"), http):
        scheme = _first(told_scheme) or scheme
        host = _first(told_host) or host
    if not _is_host(host):
        server = scope.get("server") or ("localhost", None)
        host = f"{server[0]}:{server[1]}" if server[1] else str(server[0])
    return f"{'https' if scheme == 'https' else 'http'}://{host}"


def _first(value: str | None) -> str:
    return (value or "").split(",")[0].strip()


def _is_host(host: str) -> bool:
    return 0 < len(host) <= 261 and _is_plain(host)


@lru_cache(maxsize=1024)  # callers use few names, and this is asked on every request
def _is_plain(host: str) -> bool:
    try:
        urlsplit(f"//{host}")
    except ValueError:  # a bracket too few
        return False
    return all(character.isalnum() or character in "-._:[]" for character in host)


def _is_trusted(client: Sequence[str] | None, http: HttpSettings) -> bool:
    if client is None:  # a Unix socket: whoever reaches it is on this machine
        return True
    return _is_near(client[0], http.trusted_proxies)


@lru_cache(maxsize=1024)
def _is_near(address_text: str, networks: tuple[str, ...]) -> bool:
    """Whether an address is this machine's or in one of the networks."""
    try:
        address = ip_address(address_text)
    except ValueError:
        return False
    return address.is_loopback or any(
        address in ip_network(network, strict=False) for network in networks
    )


def bearer(request: Request, *schemes: str) -> str | None:
    """The secret after one of the schemes in Authorization (any case), or None."""
    told = request.headers.get("authorization")
    if not told:
        return None
    scheme, _, secret = told.strip().partition(" ")
    wanted = [name.lower() for name in schemes or ("bearer",)]
    return secret.strip() or None if scheme.lower() in wanted else None
