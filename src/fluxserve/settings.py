"""Every setting, unit and default; the only reader of the environment and of the settings file.

Flag over environment over file over default, merged key by key. One name everywhere:
`--public-url`, `FLUXSERVE_PUBLIC_URL`, `public_url = "..."`; nested `FLUXSERVE_SIMULATOR__SECONDS`,
`[simulator] seconds`. An unknown key or a bad value stops the start and names itself.
"""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fluxserve.core.errors import StartupError
from fluxserve.setting_types import Devices, Names, Networks, Origin, Seconds, listed

PREFIX = "FLUXSERVE_"
# Read by the command line as a client; no settings of the server.
NOT_SETTINGS = frozenset({"FLUXSERVE_CONFIG", "FLUXSERVE_SERVER", "FLUXSERVE_API_KEY"})


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Database(Section):
    url: str = Field("", description="sqlite:///PATH or postgresql://...; empty: in data_dir")


class Files(Section):
    url: str = Field("", description="file:///PATH or s3://bucket/prefix; empty: in data_dir")


class Fetch(Section):
    allow: Names = Field(
        (), description="private networks (CIDR) that input URLs and webhooks may reach"
    )
    timeout_s: Seconds = Field(
        30.0, gt=0, description="seconds for one input URL, redirects included"
    )
    redirects_max: int = Field(5, ge=0, description="redirects followed for an input URL")


class Limits(Section):
    body_max_bytes: int = Field(32 * 1024 * 1024, ge=1024, description="bytes of a JSON body")
    upload_max_bytes: int = Field(100 * 1024 * 1024, ge=1024, description="bytes of an upload")
    pixels_max: int = Field(64_000_000, ge=4096, description="pixels of an input picture")
    queue_max: int = Field(10_000, ge=0, description="predictions waiting; 0: no limit")
    rate_per_minute: int = Field(0, ge=0, description="requests per key and minute; 0: no limit")
    concurrency: int = Field(0, ge=0, description="unfinished predictions per key; 0: no limit")


class Retention(Section):
    files_s: Seconds = Field(7 * 86400, ge=0, description="seconds files are kept; 0: for ever")
    predictions_s: Seconds = Field(
        30 * 86400, ge=0, description="seconds records are kept; 0: ever"
    )


class Engine(Section):
    device: Devices = Field(
        "auto", description="auto, cpu, mps, cuda, or a list such as cuda:0,cuda:1"
    )
    model_dir: str = Field("", description="a folder of real weights; empty: the embedded model")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "fp8"] = Field(
        "auto", description="auto: bfloat16 on CUDA, float32 on a CPU; fp8: CUDA only"
    )
    fp8: Literal["auto", "on", "off"] = Field(
        "auto", description="8-bit copies beside exact linears; auto: CUDA, where they have room"
    )
    batch_tokens_max: int = Field(0, ge=0, description="tokens of one step; 0: chosen by device")
    concurrency: int = Field(16, ge=1, description="predictions the engine holds at once")
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0: one per core")
    stuck_s: Seconds = Field(
        120.0,
        gt=0,
        description="one piece of work may take so long, or 5 times what is foreseen;"
        " then the engine is replaced",
    )
    preview_steps: int = Field(2, ge=0, description="a preview every so many steps; 0: none")
    go_fast: Annotated[tuple[Literal["skip", "ref_kv", "fp8"], ...], BeforeValidator(listed)] = (
        Field(("skip",), description="the approximations that go_fast allows: skip, ref_kv, fp8")
    )
    lora_max_bytes: int = Field(2**30, ge=1024, description="bytes of a LoRA fetched from a URL")
    lora_cache_bytes: int = Field(
        8 * 2**30, ge=1024, description="bytes of fetched LoRAs that are kept"
    )
    lora_timeout_s: Seconds = Field(300.0, gt=0, description="seconds for fetching one LoRA")


class Simulator(Section):
    enabled: bool = Field(False, description="the simulator answers for every model name")
    seconds: Seconds = Field(2.0, ge=0, description="how long a simulated run takes")
    steps: int = Field(10, ge=1, description="steps that a simulated run reports")
    outcome: Literal["succeed", "fail", "refuse_input", "refuse_output", "hold"] = "succeed"
    error: str = Field("the simulator was told to fail", description="what `fail` fails with")
    concurrency: int = Field(0, ge=0, description="runs at once; 0: no limit")


class Proxy(Section):
    trusted: Networks = Field((), description="networks whose forwarded headers count")


class Replicate(Section):
    output: Literal["auto", "url", "data"] = Field(
        "auto", description="outputs as links or data URIs; auto: data for SDKs over plain http"
    )
    literal_aborted: bool = Field(False, description="say `aborted` when a deadline came first")


class Wavespeed(Section):
    sync_timeout_s: Seconds = Field(
        60.0, gt=0, description="seconds that sync mode holds an answer"
    )


class Bfl(Section):
    webhook_status: Literal["bfl", "task"] = Field("bfl", description="words of webhook statuses")
    plain_secret: bool = Field(True, description="send X-Webhook-Secret besides the signature")
    poll_hold_s: Seconds = Field(0.3, ge=0, le=5, description="seconds that an early poll is held")


class Openai(Section):
    default_model: str = Field("", description="what OpenAI's own model names stand for")
    wait_max_s: Seconds = Field(
        600.0, gt=0, description="seconds that a call waits for its picture"
    )


class Dispatch(Section):
    lease_s: Seconds = Field(
        30.0, gt=0, description="a worker silent for this long is taken for dead"
    )
    heartbeat_s: Seconds = Field(7.0, gt=0, description="how often a worker renews its lease")
    upstream_lease_s: Seconds = Field(
        60.0, gt=0, description="the same for whoever submits to an upstream or polls it"
    )
    job_s: Seconds = Field(1800.0, gt=0, description="a run that takes longer has failed")
    drain_s: Seconds = Field(20.0, ge=0, description="a stop waits this long for running work")
    attempts_max: int = Field(5, ge=1, description="starts of one prediction before it has failed")


class Route(Section):
    model: str = Field(description="a public name, or a pattern with *")
    engine: str = Field(description="embedded, local, simulator, or the name of an [[upstream]]")
    priority: int = 0
    weight: float = Field(1.0, gt=0)


class Upstream(Section):
    name: str = Field(description="what routes and reports call it")
    kind: Literal["replicate", "bfl", "wavespeed", "openai", "fluxserve"] = Field(
        description="the API it speaks"
    )
    base_url: str = Field(description="its origin, with a prefix if it has one")
    key_env: str = Field("", description="the environment variable that holds the key")
    models: tuple[str, ...] | dict[str, str] = Field(
        (), description="names it serves, or a table from our names to its own; none: all"
    )
    weight: float = Field(1.0, gt=0, description="share among channels of one priority")
    priority: int = Field(10, description="higher is asked first")
    on_unknown: Literal["fail", "resubmit"] = Field(
        "fail", description="a submission whose outcome nobody can tell"
    )
    concurrency: int = Field(100, ge=0, description="submissions at once; 0: no limit")
    cool_down_s: Seconds = Field(5.0, ge=0, description="first rest after trouble; it doubles")
    patience_s: Seconds = Field(120.0, ge=0, description="wait for a channel that cannot take it")
    timeout_s: Seconds = Field(60.0, gt=0, description="seconds for one submission")
    deadline_s: Seconds = Field(
        1800.0, gt=0, description="an accepted job that takes longer failed"
    )
    reconcile_grace_s: Seconds = Field(
        60.0, ge=0, description="a submission that is not listed by then never happened"
    )
    rename: dict[str, str] = Field({}, description='input fields renamed; "" drops one')
    extra: dict[str, Any] = Field({}, description="input fields added to every request")
    key_header: Literal["", "bearer", "x-key"] = Field(
        "", description="how the key is sent, where a reseller differs from its kind"
    )


class Settings(Section):
    """All of them."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="0: a free one")
    data_dir: str = Field("", description="where everything is kept; empty: the user's data folder")
    tls_cert: str = Field("", description="certificate chain (PEM file): serve https")
    tls_key: str = Field("", description="its private key (PEM); empty: it stands in tls_cert")
    public_url: Origin = Field(
        "",
        description="scheme://host[:port][/prefix] as callers see it; empty: as they ask. A proxy "
        "that serves under a prefix takes it off before it asks us",
    )
    insecure_open: bool = Field(False, description="no keys needed on a public address")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    cors: Names = Field((), description="origins whose pages may call the API; * for all")
    database: Database = Database()
    files: Files = Files()
    fetch: Fetch = Fetch()
    limits: Limits = Limits()
    retention: Retention = Retention()
    engine: Engine = Engine()
    simulator: Simulator = Simulator()
    proxy: Proxy = Proxy()
    replicate: Replicate = Replicate()
    wavespeed: Wavespeed = Wavespeed()
    bfl: Bfl = Bfl()
    openai: Openai = Openai()
    dispatch: Dispatch = Dispatch()
    route: tuple[Route, ...] = ()
    upstream: tuple[Upstream, ...] = ()

    @property
    def data(self) -> Path:
        return _home(self.data_dir) if self.data_dir else default_data_dir()

    @property
    def database_url(self) -> str:
        """Where the database is: as said, or a file in the data directory."""
        return self.database.url or f"sqlite:///{self.data.absolute() / 'fluxserve.db'}"


def default_data_dir() -> Path:
    return _home(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "fluxserve"


def _home(path: str) -> Path:
    """With the user's folder in place of ~; StartupError where the system knows of none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        text = f"{path}: this user has no home folder: name a folder with --data-dir"
        raise StartupError(text) from None


def wants_colour() -> bool:
    """Whether a terminal may be coloured: not where NO_COLOR is set (https://no-color.org)."""
    return not os.environ.get("NO_COLOR")


_PLAINLY = {
    "extra_forbidden": "there is no such setting",
    "model_type": "a table is needed, not a single value",
    "tuple_type": "a list is needed; of tables, each begins with its name in [[ ]]",
}


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings in force. `flags` is nested, without what was not given. StartupError."""
    environ = os.environ if environ is None else environ
    path = config or environ.get("FLUXSERVE_CONFIG")
    merged: dict[str, Any] = {}
    for source in (_from_file(path), _from_environment(environ), dict(flags or {})):
        _merge(merged, source)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        text = _PLAINLY.get(first["type"], text)
        raise StartupError(f"setting {name}: {text}") from None


def secret_from(variable: str, environ: Mapping[str, str] | None = None) -> str:
    """The key that a setting names by its environment variable; StartupError when it is empty."""
    value = (os.environ if environ is None else environ).get(variable, "")
    if not value:
        raise StartupError(f"the environment variable {variable} holds no key: set it")
    return value


def _from_file(path: str | None) -> dict[str, Any]:
    if not path:
        return {}
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise StartupError(f"the settings file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"the settings file {path} is not valid TOML: {error}") from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in environ.items():
        if name.startswith(PREFIX) and name not in NOT_SETTINGS:
            put(found, name[len(PREFIX) :].lower().split("__"), value)
    return found


def put(into: dict[str, Any], path: Sequence[str], value: str) -> None:
    """Set a value by its sections and its own name; StartupError for one inside a plain value.

    Tables and lists of tables come as JSON; everything else as text.
    """
    *sections, key = path
    place = into
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise StartupError(f"setting {'.'.join(path)}: {section} was given as a single value")
    if isinstance(place.get(key), dict):
        raise StartupError(f"setting {'.'.join(path)}: given as a table and as a single value")
    place[key] = value
    if not sections and key in ("route", "upstream"):
        try:
            place[key] = json.loads(value)
        except ValueError:
            text = "outside the settings file it must be JSON, a list of tables"
            raise StartupError(f"setting {key}: {text}") from None


def _merge(into: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value
