"""The cards this server knows without being told, for the models that people's code names.

Sizes of ratios: for Kontext the table of its open implementation, for FLUX.1 [dev] and
[schnell] that of Replicate's open one. Limits are the widest of the dialects; each dialect
narrows them as its own service does.
"""

from dataclasses import replace

from fluxserve.core.catalog import Limits, ModelCard
from fluxserve.core.request import OutputFormat, Task
from fluxserve.core.sizes import KONTEXT_SIZES, Size

BFL_DEV_LICENSE = "FLUX.1 [dev] Non-Commercial License: weights may not be used commercially"
BFL_DEV_LICENSE_URL = "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md"
CLOSED = "Weights are not published; served by Black Forest Labs and resellers under their terms"

KONTEXT_RATIOS = {
    "1:1": Size(1024, 1024),
    "16:9": Size(1328, 800),
    "21:9": Size(1568, 672),
    "3:2": Size(1248, 832),
    "2:3": Size(832, 1248),
    "4:5": Size(944, 1104),
    "5:4": Size(1104, 944),
    "3:4": Size(880, 1184),
    "4:3": Size(1184, 880),
    "9:16": Size(800, 1328),
    "9:21": Size(672, 1568),
    "2:1": Size(1456, 720),
    "1:2": Size(720, 1456),
}
FLUX_RATIOS = {
    "1:1": Size(1024, 1024),
    "16:9": Size(1344, 768),
    "21:9": Size(1536, 640),
    "3:2": Size(1216, 832),
    "2:3": Size(832, 1216),
    "4:5": Size(896, 1088),
    "5:4": Size(1088, 896),
    "3:4": Size(896, 1152),
    "4:3": Size(1152, 896),
    "9:16": Size(768, 1344),
    "9:21": Size(640, 1536),
}
GENERATE = (Task.TEXT_TO_IMAGE,)
GENERATE_FROM = (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE)
KONTEXT = (Task.EDIT, Task.TEXT_TO_IMAGE)


_KONTEXT = ModelCard(
    id="black-forest-labs/flux-kontext-dev",
    title="FLUX.1 Kontext [dev]",
    description="Edits pictures by instruction, and makes pictures from text.",
    tasks=KONTEXT,
    num_steps=28,
    guidance=2.5,
    limits=Limits(side=(256, 2048), guidance=(0.0, 20.0)),
    ratios=KONTEXT_RATIOS,
    preferred=KONTEXT_SIZES,
)
_FLUX = ModelCard(
    id="black-forest-labs/flux-dev",
    title="FLUX.1 [dev]",
    description="Makes pictures from text.",
    tasks=GENERATE_FROM,
    num_steps=28,
    guidance=3.5,
    limits=Limits(side=(256, 2048), guidance=(0.0, 20.0), images=(0, 1)),
    ratios=FLUX_RATIOS,
    license=CLOSED,
)

EMBEDDED_ID = "fluxserve/embedded"
SIMULATOR_ID = "fluxserve/simulator"

CARDS: tuple[ModelCard, ...] = (
    replace(
        _KONTEXT,
        is_open=True,
        weights="black-forest-labs/FLUX.1-Kontext-dev",
        license=BFL_DEV_LICENSE,
        license_url=BFL_DEV_LICENSE_URL.replace("FLUX.1-dev", "FLUX.1-Kontext-dev"),
        aliases=(
            "flux-kontext-dev",
            "wavespeed-ai/flux-kontext-dev",
            "wavespeed-ai/flux-kontext-dev-ultra-fast",
            "wavespeed-ai/flux-kontext-dev/multi",
            "wavespeed-ai/flux-kontext-dev/multi-ultra-fast",
            "wavespeed-ai/flux-kontext-dev-lora",
            "wavespeed-ai/flux-kontext-dev-lora-ultra-fast",
            "fal-ai/flux-kontext/dev",
            "fal-ai/flux-kontext-lora",
            "black-forest-labs/FLUX.1-Kontext-dev",
        ),
    ),
    replace(
        _KONTEXT,
        id="black-forest-labs/flux-kontext-pro",
        title="FLUX.1 Kontext [pro]",
        license=CLOSED,
        guidance=3.5,
        aliases=(
            "flux-kontext-pro",
            "flux-kontext",
            "wavespeed-ai/flux-kontext-pro",
            "wavespeed-ai/flux-kontext-pro/text-to-image",
            "wavespeed-ai/flux-kontext-pro/multi",
            "fal-ai/flux-pro/kontext",
            "fal-ai/flux-pro/kontext/text-to-image",
            "fal-ai/flux-pro/kontext/multi",
        ),
    ),
    replace(
        _KONTEXT,
        id="black-forest-labs/flux-kontext-max",
        title="FLUX.1 Kontext [max]",
        license=CLOSED,
        guidance=3.5,
        aliases=(
            "flux-kontext-max",
            "wavespeed-ai/flux-kontext-max",
            "wavespeed-ai/flux-kontext-max/text-to-image",
            "wavespeed-ai/flux-kontext-max/multi",
            "fal-ai/flux-pro/kontext/max",
            "fal-ai/flux-pro/kontext/max/text-to-image",
            "fal-ai/flux-pro/kontext/max/multi",
        ),
    ),
    replace(
        _FLUX,
        is_open=True,
        weights="black-forest-labs/FLUX.1-dev",
        license=BFL_DEV_LICENSE,
        license_url=BFL_DEV_LICENSE_URL,
        prompt_required=False,  # BFL takes none; dialects whose services want one say so
        aliases=(
            "flux-dev",
            "black-forest-labs/flux-dev-lora",
            "wavespeed-ai/flux-dev",
            "wavespeed-ai/flux-dev-ultra-fast",
            "wavespeed-ai/flux-dev-lora",
            "wavespeed-ai/flux-dev-lora-ultra-fast",
            "fal-ai/flux/dev",
            "fal-ai/flux/dev/image-to-image",
            "fal-ai/flux-lora",
            "black-forest-labs/FLUX.1-dev",
        ),
    ),
    replace(
        _FLUX,
        id="black-forest-labs/flux-schnell",
        title="FLUX.1 [schnell]",
        description="Makes pictures from text in one to four steps.",
        is_open=True,
        weights="black-forest-labs/FLUX.1-schnell",
        license="Apache-2.0",
        license_url="https://www.apache.org/licenses/LICENSE-2.0",
        num_steps=4,
        aliases=(
            "flux-schnell",
            "black-forest-labs/flux-schnell-lora",
            "wavespeed-ai/flux-schnell",
            "wavespeed-ai/flux-schnell-lora",
            "fal-ai/flux/schnell",
            "black-forest-labs/FLUX.1-schnell",
        ),
    ),
    replace(
        _FLUX,
        id="black-forest-labs/flux-pro",
        title="FLUX.1 [pro]",
        tasks=(*GENERATE, Task.REDUX),
        num_steps=25,
        guidance=3.0,
        prompt_required=False,
        aliases=("flux-pro",),
    ),
    replace(
        _FLUX,
        id="black-forest-labs/flux-1.1-pro",
        title="FLUX1.1 [pro]",
        tasks=(*GENERATE, Task.REDUX),
        prompt_required=False,
        aliases=("flux-pro-1.1", "fal-ai/flux-pro/v1.1"),
    ),
    replace(
        _FLUX,
        id="black-forest-labs/flux-1.1-pro-ultra",
        title="FLUX1.1 [pro] ultra",
        tasks=(*GENERATE, Task.REDUX),
        prompt_required=False,
        aliases=("flux-pro-1.1-ultra", "flux-pro-1.1-raw", "fal-ai/flux-pro/v1.1-ultra"),
        ratios={},
        area=2048 * 2048,
        limits=Limits(side=(256, 4096), images=(0, 1)),
    ),
    replace(
        _FLUX,
        id="black-forest-labs/flux-fill-pro",
        title="FLUX.1 Fill [pro]",
        description="Repaints a masked part of a picture, and grows its canvas.",
        tasks=(Task.FILL, Task.EXPAND),
        num_steps=50,
        guidance=60.0,
        prompt_required=False,
        limits=Limits(side=(64, 4096), guidance=(0.0, 100.0), images=(1, 1)),
        aliases=(
            "flux-pro-1.0-fill",
            "flux-pro-1.0-expand",
            "flux-fill",
            "fal-ai/flux-pro/v1/fill",
        ),
    ),
    ModelCard(
        id=EMBEDDED_ID,
        title="The small model in the package",
        description=(
            "A FLUX-architecture model trained from scratch, small enough to travel in the "
            "package: draws simple named objects and makes simple edits."
        ),
        tasks=KONTEXT,
        num_steps=12,
        guidance=2.0,
        limits=Limits(side=(64, 2048), guidance=(0.0, 20.0)),
        size=Size(512, 512),
        area=512 * 512,
        is_open=True,
        license="Apache-2.0; training data: see the model card",
        license_url="https://www.apache.org/licenses/LICENSE-2.0",
        aliases=("embedded", "wavespeed-ai/embedded", "fal-ai/embedded"),
    ),
    ModelCard(
        id=SIMULATOR_ID,
        title="The simulator",
        description="Scripted answers for testing applications; no model at all.",
        tasks=(*KONTEXT, Task.IMAGE_TO_IMAGE, Task.FILL, Task.EXPAND, Task.REDUX),
        num_steps=28,
        guidance=3.5,
        limits=Limits(side=(64, 4096), images=(0, 8), pixels_max=16_777_216),
        is_open=True,
        license="Apache-2.0",
        prompt_required=False,
        output_format=OutputFormat.PNG,
        aliases=("simulator", "wavespeed-ai/simulator", "fal-ai/simulator"),
    ),
)
