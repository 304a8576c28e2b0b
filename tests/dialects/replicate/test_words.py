"""The pure parts: headers, words, tokens, cursors, inputs as parameters, versions."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from fluxserve.core.cards import CARDS
from fluxserve.core.catalog import Catalog
from fluxserve.core.errors import ErrorCode, Failure, InvalidRequest, NotFound
from fluxserve.core.prediction import PredictionStatus
from fluxserve.core.request import JSON, BlobRef, ImageInput, ImageParams, OutputFormat, Task
from fluxserve.dialects.links import Links, Signer
from fluxserve.dialects.replicate.hold import read_cancel_after, read_prefer
from fluxserve.dialects.replicate.inputs import TABLES, inputs_of
from fluxserve.dialects.replicate.paging import Place, neighbours, read_cursor
from fluxserve.dialects.replicate.params import check_input, to_params
from fluxserve.dialects.replicate.render import tidy
from fluxserve.dialects.replicate.schema import openapi
from fluxserve.dialects.replicate.shelf import Shelf
from fluxserve.dialects.replicate.tokens import TOKEN, read_token, stream_token
from fluxserve.dialects.replicate.words import HTTP_STATUS, STATUS, error, failure_text

OWNER = "black-forest-labs"
CATALOG = Catalog(CARDS, lambda: 7)
PICTURE = ImageInput(
    blob=BlobRef(key="inputs/a.png", mime="image/png", size_bytes=9, width=300, height=200)
)


def params(name: str, body: dict[str, JSON], **pictures: ImageInput) -> ImageParams:
    """What the input of `owner/name` asks for; picture fields are filled in by name."""
    model = f"{OWNER}/{name}"
    inputs = inputs_of(model, CATALOG.card(model))
    said = {**body, **dict.fromkeys(pictures, "https://img.example/a.png")}
    return to_params(
        model, inputs, check_input(inputs, said), {key: (one,) for key, one in pictures.items()}
    )


@pytest.mark.parametrize(
    ("prefer", "patience", "seconds", "applied"),
    [
        ("wait", None, 59.5, "wait"),
        ("wait=5", None, 4.5, "wait=5"),
        ("wait=1", None, 0.5, "wait=1"),
        ("wait=2.5", None, 2.0, "wait=2.5"),
        ("WAIT = 9", None, 8.5, "wait=9"),
        ("wait=300", None, 59.5, "wait=300"),
        ("wait=999999999999", None, 59.5, "wait=999999999999"),
        (f"wait={'9' * 400}.5", None, 59.5, f"wait={'9' * 400}.5"),
        ("respond-async, wait=10; x=y", None, 9.5, "wait=10"),
        ("wait", "60", 57.5, "wait"),
        ("wait", "60.0", 57.5, "wait"),
        ("wait=60", "3", 0.5, "wait=60"),
        ("wait=60", "soon", 59.5, "wait=60"),
    ],
)
def test_an_answer_is_held_shorter_than_the_client_waits(
    prefer: str, patience: str | None, seconds: float, applied: str
) -> None:
    hold = read_prefer(prefer, patience)
    assert hold is not None
    assert (hold.seconds, hold.applied) == (seconds, applied)


@pytest.mark.parametrize("prefer", [None, "", "respond-async", "wait=0", "wait=soon", "waiting"])
def test_other_preferences_hold_nothing(prefer: str | None) -> None:
    assert read_prefer(prefer, None) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("30s", 30), ("5m", 300), ("2H", 7200), ("1h30m45s", 5445), ("24h", 86400)],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert read_cancel_after(text) == seconds


@pytest.mark.parametrize("text", ["4", "25h", "0", "-5", "5 m", "1.5h", "s", "30x", "9" * 30])
def test_a_bad_duration_names_its_header(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_cancel_after(text)
    assert caught.value.problems[0].field == "Cancel-After"


def test_every_status_and_error_has_a_word() -> None:
    assert set(STATUS) == set(PredictionStatus)
    assert set(HTTP_STATUS) == set(ErrorCode)
    for code in ErrorCode:
        status, body = error(Failure(code=code, message="it went wrong"))
        assert isinstance(body, dict)
        assert body["status"] == status
        assert isinstance(body["detail"], str)
        assert failure_text(Failure(code=code, message="it went wrong"))


def test_a_throttled_answer_says_when_in_the_form_that_users_parse() -> None:
    status, body = error(Failure(code=ErrorCode.RATE_LIMITED, message="x", retry_after_s=4.2))
    text = "Request was throttled. Your rate limit resets in ~5s."
    assert (status, body) == (429, {"detail": text, "status": 429, "retry_after": 5})


def test_a_stream_token_holds_its_id_and_cannot_be_made_up() -> None:
    signer = Signer(b"secret")
    id_ = "0123456789abcdef0123456789abcdef"
    token = stream_token(signer, id_)
    assert TOKEN.fullmatch(token)
    assert token == stream_token(signer, id_)
    assert read_token(signer, token) == id_
    assert read_token(Signer(b"another"), token) is None
    last = "b" if token[-2] != "b" else "c"
    assert read_token(signer, token[:-2] + last + token[-1]) is None
    assert read_token(signer, "gwst" + token[4:]) is None


def test_a_cursor_walks_forward_and_back() -> None:
    links = Links(base="http://x", mount="/v1", signer=Signer(b"s"))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [(start - timedelta(microseconds=n), f"{n:032x}") for n in range(9)]
    filters = [("created_after", "2025-01-01T00:00:00+00:00")]
    following, before = neighbours(links, "/predictions", filters, None, rows[2])
    assert before is None
    assert following is not None
    assert following.startswith(
        "http://x/v1/predictions?created_after=2025-01-01T00%3A00%3A00%2B00%3A00&cursor="
    )
    second = read_cursor(following.rpartition("cursor=")[2])
    assert second is not None
    assert second.key == rows[2]
    following, before = neighbours(links, "/predictions", filters, second, rows[5])
    assert before == "http://x/v1/predictions?created_after=2025-01-01T00%3A00%3A00%2B00%3A00"
    assert following is not None
    third = read_cursor(following.rpartition("cursor=")[2])
    assert third is not None
    last, before = neighbours(links, "/predictions", filters, third, None)
    assert last is None
    assert before is not None
    back = read_cursor(before.rpartition("cursor=")[2])
    assert back is not None
    assert back.key == rows[2]


@pytest.mark.parametrize("text", ["x", "AAAA", "é", "W10", "WzEsMl0", "bnVsbA", Place.__name__])
def test_a_cursor_of_nobody_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        read_cursor(text)


def test_a_kontext_edit_means_what_it_says() -> None:
    asked = params(
        "flux-kontext-dev",
        {
            "prompt": "red",
            "aspect_ratio": "21:9",
            "num_inference_steps": 12.0,
            "guidance": 4,
            "seed": 3,
            "output_format": "jpg",
            "output_quality": 55,
            "disable_safety_checker": True,
            "go_fast": False,
        },
        input_image=PICTURE,
    )
    made = CATALOG.complete(asked)
    assert (made.task, made.width, made.height) == (Task.EDIT, 1568, 672)
    assert (made.num_steps, made.guidance, made.seed) == (12, 4.0, 3)
    assert (made.output_format, made.output_quality) == (OutputFormat.JPEG, 55)
    assert not made.safety_check
    assert not made.go_fast


def test_defaults_are_those_of_the_service() -> None:
    made = CATALOG.complete(params("flux-kontext-dev", {"prompt": "red"}, input_image=PICTURE))
    assert (made.num_steps, made.guidance) == (30, 2.5)
    assert (made.output_format, made.output_quality) == (OutputFormat.WEBP, 80)
    assert (made.width, made.height) == (1248, 832)  # the nearest to 300 x 200
    assert made.go_fast
    pro = CATALOG.complete(params("flux-kontext-pro", {"prompt": "red"}))
    assert (pro.output_format, pro.width, pro.height) == (OutputFormat.PNG, 1024, 1024)


@pytest.mark.parametrize(
    ("ratio", "size"),
    [
        ("1:1", (1024, 1024)),
        ("16:9", (1328, 800)),
        ("21:9", (1568, 672)),
        ("3:2", (1248, 832)),
        ("2:3", (832, 1248)),
        ("4:5", (944, 1104)),
        ("5:4", (1104, 944)),
        ("3:4", (880, 1184)),
        ("4:3", (1184, 880)),
        ("9:16", (800, 1328)),
        ("9:21", (672, 1568)),
        ("match_input_image", (1248, 832)),
    ],
)
def test_each_ratio_of_kontext_has_its_size(ratio: str, size: tuple[int, int]) -> None:
    body: dict[str, JSON] = {"prompt": "x", "aspect_ratio": ratio}
    made = CATALOG.complete(params("flux-kontext-dev", body, input_image=PICTURE))
    assert (made.width, made.height) == size


def test_a_seed_of_zero_is_random_for_kontext_dev_alone() -> None:
    body: dict[str, JSON] = {"prompt": "x", "seed": 0}
    assert params("flux-kontext-dev", body, input_image=PICTURE).seed is None
    assert params("flux-pro", body).seed == 0


def test_custom_sides_count_only_with_the_custom_ratio() -> None:
    sides: dict[str, JSON] = {"prompt": "x", "width": 700, "height": 500}
    plain = CATALOG.complete(params("flux-pro", {**sides, "aspect_ratio": "1:1"}))
    custom = CATALOG.complete(params("flux-pro", {**sides, "aspect_ratio": "custom"}))
    assert (plain.width, plain.height) == (1024, 1024)
    assert (custom.width, custom.height) == (704, 512)


def test_tolerance_is_capped_where_a_picture_is_given() -> None:
    body: dict[str, JSON] = {"prompt": "x", "safety_tolerance": 6}
    assert params("flux-kontext-pro", body).safety_tolerance == 6
    assert params("flux-kontext-pro", body, input_image=PICTURE).safety_tolerance == 2


def test_a_dev_image_is_the_start_and_gives_the_shape() -> None:
    body: dict[str, JSON] = {"prompt": "x", "prompt_strength": 0.5, "num_outputs": 3}
    large = ImageInput(
        blob=BlobRef(key="a", mime="image/png", size_bytes=9, width=1500, height=1000)
    )
    made = CATALOG.complete(params("flux-dev", body, image=large))
    assert (made.task, made.strength, made.num_outputs) == (Task.IMAGE_TO_IMAGE, 0.5, 3)
    assert 1.45 < made.width / made.height < 1.55


def test_a_quarter_megapixel_is_a_quarter_of_the_area() -> None:
    small = CATALOG.complete(params("flux-schnell", {"prompt": "x", "megapixels": "0.25"}))
    full = CATALOG.complete(params("flux-schnell", {"prompt": "x"}))
    assert (small.width, small.height) == (512, 512)
    assert (full.width, full.height) == (1024, 1024)


def test_an_image_prompt_makes_a_variation() -> None:
    body: dict[str, JSON] = {"prompt": "x", "aspect_ratio": "3:2"}
    made = CATALOG.complete(params("flux-pro", body, image_prompt=PICTURE))
    assert (made.task, made.width, made.height) == (Task.REDUX, 1216, 832)


def test_a_mask_repaints_and_outpaint_grows() -> None:
    filled = params("flux-fill-pro", {"prompt": "x"}, image=PICTURE, mask=PICTURE)
    assert CATALOG.complete(filled).task is Task.FILL
    grown = params("flux-fill-pro", {"prompt": "x", "outpaint": "Zoom out 2x"}, image=PICTURE)
    assert grown.margins is not None
    assert (grown.margins.left, grown.margins.right) == (150, 150)
    assert (grown.margins.top, grown.margins.bottom) == (100, 100)
    square = params("flux-fill-pro", {"prompt": "x", "outpaint": "Make square"}, image=PICTURE)
    assert square.margins is not None
    assert (square.margins.top, square.margins.bottom) == (50, 50)
    assert CATALOG.complete(grown).task is Task.EXPAND


def test_adapters_are_named_with_their_scales() -> None:
    body: dict[str, JSON] = {"prompt": "x", "lora_weights": "a", "extra_lora": "b"}
    asked = params("flux-dev-lora", {**body, "lora_scale": 0.0})
    assert [(lora.path, lora.scale) for lora in asked.loras] == [("a", 0.0), ("b", 1.0)]


def test_a_huge_seed_is_taken_by_its_last_bits() -> None:
    assert params("flux-pro", {"prompt": "x", "seed": 2**70 + 5}).seed == 5


def test_versions_are_found_in_every_spelling() -> None:
    shelf = Shelf(CATALOG)
    published = "a57823497a8beebcd222c20dd78af15a90c0415c36a5bfc88ee763c67155310e"
    for text in (f"{OWNER}/flux-pro:{published}", published, published.upper()):
        model, version = shelf.versioned(text)
        assert (model.name, version) == (f"{OWNER}/flux-pro", published)
    model, version = shelf.versioned(f"{OWNER}/Flux-Pro")
    assert (model.name, version) == (f"{OWNER}/flux-pro", None)
    for bad in ("flux-pro", "", ":", f"{OWNER}/flux-pro:", "0" * 64, f"x/y:{published}", "a/b/c"):
        with pytest.raises(NotFound):
            shelf.versioned(bad)


def test_every_version_is_its_own_and_stays() -> None:
    models = Shelf(CATALOG).models()
    versions = {model.version for model in models}
    assert len(versions) == len(models)
    name = f"{OWNER}/flux-kontext-dev"
    assert sha256(f"fluxserve {name}".encode()).hexdigest() in versions


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_schema_has_references_one_level_deep(name: str) -> None:
    model = Shelf(CATALOG).named(name)
    found = openapi(model)["components"]
    assert isinstance(found, dict)
    schemas = found["schemas"]
    properties = schemas["Input"]["properties"]
    assert [item["x-order"] for item in properties.values()] == list(range(len(properties)))
    assert next(iter(properties)) == "prompt"
    for field in model.inputs.fields:
        if field.choices:
            assert properties[field.name]["allOf"] == [
                {"$ref": f"#/components/schemas/{field.name}"}
            ]
            assert schemas[field.name]["enum"] == list(field.choices)
    is_list = schemas["Output"]["type"] == "array"
    assert is_list is model.inputs.has_list_output


def test_whole_numbers_lose_their_fraction() -> None:
    assert str(tidy({"a": [3.0, 2.5, True, None], "b": 1e300})) == (
        "{'a': [3, 2.5, True, None], 'b': 1e+300}"
    )
