"""BFL bodies in our words: sizes, ratios, pictures, aliases, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from fluxserve.core.cards import CARDS
from fluxserve.core.catalog import Catalog
from fluxserve.core.errors import InvalidRequest, Problem, Rule
from fluxserve.core.request import (
    JSON,
    BlobRef,
    ImageInput,
    ImageParams,
    ImageRequest,
    Margins,
    OutputFormat,
    Task,
)
from fluxserve.dialects.bfl import forms
from fluxserve.dialects.bfl.api import names as endpoint_names

CATALOG = Catalog(CARDS, lambda: 7)


def a_picture(width: int = 512, height: int = 512) -> ImageInput:
    blob = BlobRef(key="inputs/a.png", mime="image/png", size_bytes=9, width=width, height=height)
    return ImageInput(blob=blob)


def params_of(name: str, **body: JSON) -> ImageParams:
    """A body that is right, in our words; every picture is a 512 px one."""
    said = dict(body)
    form = forms.form_of(name)
    texts, problems = forms.pictures_in(form, said)
    checked = forms.read(form, said)
    pictures = {forms.own_name(form, key): a_picture() for key in texts}
    assert [*problems, *checked.problems, *forms.judge_pictures(form, pictures)] == []
    return forms.to_params(name, form, checked.values, pictures)


def request_of(name: str, **body: JSON) -> ImageRequest:
    return CATALOG.complete(params_of(name, **body))


def problems_of(name: str, **body: JSON) -> dict[str, str]:
    """What is wrong with a body, by field."""
    said = dict(body)
    form = forms.form_of(name)
    texts, problems = forms.pictures_in(form, said)
    found = [*problems, *forms.read(form, said).problems]
    if not found:
        pictures = {forms.own_name(form, key): a_picture() for key in texts}
        found = forms.judge_pictures(form, pictures)
    return {problem.field: problem.message for problem in found}


@pytest.mark.parametrize(
    ("name", "body", "size"),
    [
        ("flux-dev", {}, (1024, 768)),
        ("flux-dev", {"width": 1440, "height": 256}, (1440, 256)),
        ("flux-dev", {"width": 512}, (512, 768)),
        ("flux-dev", {"aspect_ratio": "1:1"}, (1024, 1024)),
        ("flux-dev", {"aspect_ratio": "1:1", "width": 512, "height": 256}, (512, 256)),
        ("flux-kontext-pro", {}, (1024, 1024)),
        ("flux-kontext-pro", {"aspect_ratio": "21:9"}, (1568, 672)),
        ("flux-kontext-pro", {"aspect_ratio": "341:192"}, (1360, 768)),
        ("flux-kontext-pro", {"aspect_ratio": "1:1", "width": 512, "height": 256}, (1024, 1024)),
        ("flux-kontext-pro", {"input_image": "aGk="}, (1024, 1024)),
        ("flux-pro-1.1-ultra", {}, (2736, 1536)),
        ("flux-kontext-dev", {"width": 640, "height": 368}, (640, 368)),
        ("flux-kontext-dev", {"width": 0, "height": 0}, (1024, 1024)),
    ],
)
def test_the_size_is_what_the_endpoint_says(
    name: str, body: dict[str, JSON], size: tuple[int, int]
) -> None:
    request = request_of(name, prompt="a fox", **body)
    assert (request.width, request.height) == size


@pytest.mark.parametrize(
    ("name", "form"),
    [("flux-kontext-pro", "png"), ("flux-dev", "jpeg"), ("flux-pro-1.1-ultra", "jpeg")],
)
def test_the_format_where_nothing_was_said_is_the_endpoints(name: str, form: str) -> None:
    assert request_of(name, prompt="a fox").output_format == form
    assert request_of(name, prompt="a fox", output_format=None).output_format == form
    assert request_of(name, prompt="a fox", output_format="jpg").output_format is OutputFormat.JPEG


def test_defaults_and_knobs_are_the_endpoints() -> None:
    dev = request_of("flux-dev", prompt="a fox")
    assert (dev.num_steps, dev.guidance, dev.safety_tolerance) == (28, 3.0, 2)
    pro = request_of("flux-pro", prompt="a fox")
    assert (pro.num_steps, pro.guidance) == (40, 2.5)
    said = request_of(
        "flux-dev",
        prompt="a fox",
        steps="12",
        guidance=4,
        seed=2**64 - 1,
        prompt_upsampling="true",
        safety_tolerance=6,
        width=1024.0,
    )
    assert (said.num_steps, said.guidance, said.seed) == (12, 4.0, 2**32 - 1)
    assert (said.prompt_upsampling, said.safety_tolerance, said.width) == (True, 6, 1024)


def test_a_seed_of_minus_one_is_drawn() -> None:
    assert request_of("flux-dev", prompt="a fox", seed=-1).seed == 7
    assert request_of("flux-dev", prompt="a fox", seed=None).seed == 7
    assert request_of("flux-dev", prompt="a fox", seed=0).seed == 0


def test_four_pictures_come_in_their_order() -> None:
    said = {"input_image_4": "d", "input_image": "a", "input_image_3": "c", "input_image_2": "b"}
    texts, problems = forms.pictures_in(forms.KONTEXT, dict(said))
    assert (list(texts.values()), problems) == (["a", "b", "c", "d"], [])
    assert len(params_of("flux-kontext-pro", prompt="x", **said).images) == 4


def test_a_picture_to_work_on_is_named_as_it_was_sent() -> None:
    for name in ("image", "input_image"):
        texts, problems = forms.pictures_in(forms.FILL, {name: "a"})
        assert (texts, problems) == ({name: "a"}, [])
        pictures = {"image": replace(a_picture(), field_name=name)}
        given = [Problem(field="images", rule=Rule.OTHER, message="")]
        assert forms.renamed(forms.FILL, given, pictures)[0].field == name
    both = {"input_image": "b", "image": "a"}
    assert forms.pictures_in(forms.FILL, both) == ({"image": "a"}, [])


def test_a_fifth_picture_is_refused_by_its_name() -> None:
    names = ["input_image", *(f"input_image_{number}" for number in range(2, 6))]
    params = params_of("flux-kontext-pro", prompt="x", **dict.fromkeys(names, "a"))
    with pytest.raises(InvalidRequest) as caught:
        CATALOG.complete(params)
    found = forms.renamed(forms.KONTEXT, caught.value.problems, {})
    assert [problem.field for problem in found] == ["input_image_5"]


def test_the_cores_names_become_the_endpoints() -> None:
    given = [
        Problem(field=name, rule=Rule.OTHER, message="")
        for name in ("num_steps", "images", "margins", "width")
    ]
    found = forms.renamed(forms.FILL, given, {})
    assert [problem.field for problem in found] == ["steps", "image", "top", "width"]


def test_empty_texts_of_user_interfaces_are_not_said() -> None:
    empty = dict.fromkeys(
        ["input_image", "input_image_2", "webhook_url", "webhook_secret", "image_prompt", "mask"],
        "",
    )
    params = params_of("flux-kontext-pro", prompt="x", aspect_ratio="", **empty)
    assert (params.images, params.mask, params.aspect_ratio) == ((), None, None)


def test_unknown_fields_are_ignored() -> None:
    body: dict[str, Any] = {"interval": 2, "api_key_override": "k", "num_images": 3, "n": 2}
    assert request_of("flux-kontext-pro", prompt="x", image_url="y", **body).num_outputs == 1


def test_an_image_prompt_is_a_variation() -> None:
    params = params_of("flux-pro-1.1-ultra", image_prompt="aGk=", image_prompt_strength=0.3)
    assert (params.task, params.strength, params.raw) == (Task.REDUX, 0.3, False)
    assert params_of("flux-pro-1.1-raw", prompt="x").raw is True
    assert params_of("flux-pro-1.1-raw", prompt="x", raw=False).raw is False


def test_a_model_that_cannot_vary_says_so() -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_of("flux-dev", prompt="a fox", image_prompt="aGk=")
    found = forms.renamed(forms.DEV, caught.value.problems, {})
    assert [problem.field for problem in found] == ["image_prompt"]


@pytest.mark.parametrize("name", ["image", "input_image"])
def test_fill_takes_its_picture_under_both_names(name: str) -> None:
    params = params_of("flux-pro-1.0-fill", mask="bWFzaw==", **{name: "aGk="})
    assert (params.task, len(params.images), params.mask is None) == (Task.FILL, 1, False)
    request = CATALOG.complete(params)
    assert (request.num_steps, request.guidance) == (50, 60.0)


def test_expand_grows_the_picture_by_its_margins() -> None:
    params = params_of("flux-pro-1.0-expand", image="aGk=", top=64, right=128)
    assert params.margins == Margins(top=64, right=128)
    request = CATALOG.complete(params)
    assert (request.width, request.height) == (640, 576)


@pytest.mark.parametrize(
    ("name", "body", "field", "words"),
    [
        ("flux-dev", {"width": 100}, "width", "greater than or equal to 256"),
        ("flux-dev", {"width": 1792}, "width", "less than or equal to 1440"),
        ("flux-dev", {"height": 1000}, "height", "multiple of 32"),
        ("flux-dev", {"width": 1024.5}, "width", "integer"),
        ("flux-dev", {"width": True}, "width", "integer"),
        ("flux-dev", {"steps": 51}, "steps", "50"),
        ("flux-dev", {"guidance": 1.4}, "guidance", "1.5"),
        ("flux-dev", {"guidance": "much"}, "guidance", "number"),
        ("flux-dev", {"seed": -2}, "seed", "-1"),
        ("flux-dev", {"output_format": "gif"}, "output_format", "jpeg"),
        ("flux-dev", {"safety_tolerance": 7}, "safety_tolerance", "6"),
        ("flux-dev", {"prompt_upsampling": "maybe"}, "prompt_upsampling", "boolean"),
        ("flux-dev", {"webhook_url": "x" * 2084}, "webhook_url", "2083"),
        ("flux-dev", {"input_image": "aGk="}, "input_image", "image_prompt"),
        ("flux-dev", {"image_prompt": 3}, "image_prompt", "base64"),
        ("flux-kontext-pro", {}, "prompt", "required"),
        ("flux-kontext-pro", {"prompt": None}, "prompt", "required"),
        ("flux-kontext-pro", {"prompt": 3}, "prompt", "string"),
        ("flux-kontext-pro", {"prompt": "x", "mask": "aGk="}, "mask", "does not take"),
        ("flux-pro-1.0-fill", {}, "image", "required"),
        ("flux-pro-1.0-fill", {"image": "aGk=", "steps": 14}, "steps", "15"),
        ("flux-pro-1.0-expand", {"image": "aGk="}, "top", "greater than 0"),
        ("flux-pro-1.0-expand", {"image": "aGk=", "top": 2049}, "top", "2048"),
    ],
)
def test_what_is_out_of_bounds_is_named(
    name: str, body: dict[str, JSON], field: str, words: str
) -> None:
    found = problems_of(name, **body)
    assert field in found
    assert words in found[field]


def test_pictures_to_fill_have_a_smallest_size_and_a_mask_of_theirs() -> None:
    small = {"image": a_picture(255, 512)}
    assert [problem.field for problem in forms.judge_pictures(forms.FILL, small)] == ["image"]
    odd = {"image": a_picture(512, 512), "mask": a_picture(512, 511)}
    assert [problem.field for problem in forms.judge_pictures(forms.FILL, odd)] == ["mask"]
    far = {"image": ImageInput(url="https://example.org/a.png"), "mask": a_picture()}
    assert forms.judge_pictures(forms.FILL, far) == []


def test_every_endpoint_is_a_name_of_a_card() -> None:
    names = endpoint_names(CATALOG)
    assert set(forms.FORMS) <= set(names)
    assert {"flux-kontext-dev", "embedded", "simulator"} <= set(names)
    assert not any("/" in name for name in names)
    assert forms.form_of("flux-2-pro") is forms.FLUX2
    assert forms.form_of("embedded") is forms.LOCAL
