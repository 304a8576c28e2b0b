"""The native dialect: our own words one to one; the playground and the command line speak it.

POST   /predictions               create; 201 with Location
GET    /predictions               list, newest first; cursor, limit, status, model
GET    /predictions/{id}          one, with progress, ETA and queue position
DELETE /predictions/{id}          forget it and its files
POST   /predictions/{id}/cancel   cancel
GET    /predictions/{id}/events   server-sent events: progress, preview, output, finished
POST   /files, GET /files/{id}    uploads
GET    /models, /models/{id}      cards
GET    /keys, POST, DELETE        keys (admin)
GET    /deliveries, POST .../{id}/redeliver   webhook messages
GET    /devices, /channels        engines and upstream channels, and what they are doing
GET    /usage, /prices, POST      spending, as JSON or CSV; what things cost
GET    /attempts                  submissions at providers (admin)
POST   /attempts/{id}/resolve     what became of one that nobody could tell of (admin)
GET    /openapi.json, /docs       this API, described
"""

from fluxserve.dialects.base import Dialect
from fluxserve.dialects.native import admin, files, money, openapi, predictions
from fluxserve.dialects.native.words import error, render

MOUNT = "/fluxserve/v1"

DIALECT = Dialect(
    name="native",
    mounts=(MOUNT,),
    routes=lambda services, mount: [
        *predictions.routes(services, mount),
        *files.routes(services, mount),
        *admin.routes(services, mount),
        *money.routes(services, mount),
        *openapi.routes(services, mount),
    ],
    render=render,
    error=error,
    owns=lambda path: path.startswith(MOUNT),
    signature="standard",
)
