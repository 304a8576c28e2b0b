"""What the front of the house, the dialects, is told of the settings."""

from fluxserve.dialects.base import HttpSettings
from fluxserve.settings import Settings


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
