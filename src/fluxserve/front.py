"""The front of the house: what the dialects are told of the settings; no door open unasked."""

import logging

from fluxserve.core.errors import StartupError
from fluxserve.core.keyring import KeyRing
from fluxserve.dialects.base import HttpSettings
from fluxserve.settings import Settings

log = logging.getLogger(__name__)


def http_settings(settings: Settings) -> HttpSettings:
    """What the dialects may know of the settings."""
    return HttpSettings(
        public_url=settings.public_url,
        trusted_proxies=settings.proxy.trusted,
        body_max_bytes=settings.limits.body_max_bytes,
        upload_max_bytes=settings.limits.upload_max_bytes,
        delivery=settings.replicate.output,
        literal_aborted=settings.replicate.literal_aborted,
        sync_timeout_s=settings.wavespeed.sync_timeout_s,
        wait_max_s=settings.openai.wait_max_s,
        bfl_plain_secret=settings.bfl.plain_secret,
        bfl_webhook_status=settings.bfl.webhook_status,
        bfl_poll_hold_s=settings.bfl.poll_hold_s,
        openai_default_model=settings.openai.default_model,
        fetch_allow=settings.fetch.allow,
    )


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


async def refuse_open_doors(settings: Settings, keyring: KeyRing) -> None:
    """A public address needs a key, or a word that it needs none; StartupError."""
    if is_loopback(settings.host):
        return
    if settings.insecure_open:
        log.warning("anybody who can reach this address may use it: insecure_open is set")
        return
    if not any(key.revoked_at is None for key in await keyring.list()):
        raise StartupError(
            f"refusing to listen on {settings.host} without a key: make one with "
            "`fluxserve keys create`, or allow everybody with --insecure-open"
        )
