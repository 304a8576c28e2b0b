"""Receivers of webhooks: refused at creation where the sender would never call them."""

from fluxserve.core.errors import InputUnreachable, InvalidRequest, Problem, Rule
from fluxserve.core.request import WebhookSpec
from fluxserve.dialects.base import Services


def check_receiver(services: Services, webhook: WebhookSpec | None, field_name: str) -> None:
    """InvalidRequest naming the field: a private address outside of `fetch.allow`, say.

    Names are not looked up here: what they lead to is judged at every message.
    """
    if webhook is None:
        return
    try:
        services.judge_url(webhook.url)
    except InputUnreachable as error:
        words = f"it would never be called: {error.message}"
        raise InvalidRequest.of(
            [Problem(field=field_name, rule=Rule.OTHER, message=words)]
        ) from error
