"""The BFL dialect: submit, poll, fetch; as the service, its resellers and ComfyUI have it.

POST /v1/{model}                  submit; answers `id` and `polling_url` at once
GET  /v1/get_result?id=           poll, without a key; ?wait=SECONDS, ?include=base64
GET  /v1/credits                  what is left to spend
GET  /v1/my_finetunes             none; the other finetune calls answer 404
POST /v1/licenses/models/{slug}/usage
POST /v1/cancel?id=               ours: BFL cannot cancel
GET  /v1/tasks                    ours: BFL cannot list

The same under /flux/v1 (resellers' errors), /bfl/v1, and /proxy/bfl (submits end in /generate).
"""

from collections.abc import Sequence

from starlette.routing import Route

from fluxserve.dialects.base import Dialect, Services
from fluxserve.dialects.bfl.api import MOUNTS, NAME, SHARED, Api
from fluxserve.dialects.bfl.errors import error
from fluxserve.dialects.bfl.words import render


def routes(services: Services, mount: str) -> Sequence[Route]:
    return Api(services=services, mount=mount).routes()


def owns(path: str) -> bool:
    """Unknown paths that a BFL client meant: its own mounts, FLUX names under the shared one."""
    if any(path.startswith(f"{mount}/") for mount in MOUNTS if mount != SHARED):
        return True
    return path.startswith((f"{SHARED}/flux", f"{SHARED}/finetune", f"{SHARED}/licenses/"))


DIALECT = Dialect(
    name=NAME,
    mounts=MOUNTS,
    routes=routes,
    render=render,
    error=error,
    owns=owns,
    signature="bfl",
)
