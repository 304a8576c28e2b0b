"""What is wrong with an input picture is told with the field that the picture came in."""

import pytest

from fluxserve.core.errors import (
    FluxserveError,
    InputUnreachable,
    InvalidRequest,
    NotFound,
    TooLarge,
)
from fluxserve.core.inputs import load_inputs
from fluxserve.core.ports import EncodedImage
from fluxserve.core.request import ImageInput, ImageRequest, Task
from tests.core.conftest import EmptyIntake

URL = "https://gone.example/a.png"


class Unlucky(EmptyIntake):
    """Every picture has the same trouble, except those called good."""

    def __init__(self, trouble: Exception) -> None:
        self.trouble = trouble

    async def load(self, image: ImageInput) -> EncodedImage:
        if image.url == "good":
            return EncodedImage(data=b"", mime="image/png", width=1, height=1)
        raise self.trouble


def asked(*images: ImageInput, mask: ImageInput | None = None) -> ImageRequest:
    return ImageRequest(
        model="a/b",
        task=Task.EDIT,
        prompt="x",
        images=images,
        mask=mask,
        width=64,
        height=64,
        num_steps=1,
        guidance=1.0,
        seed=1,
    )


async def told(trouble: FluxserveError, request: ImageRequest) -> FluxserveError:
    with pytest.raises(type(trouble)) as raised:
        await load_inputs(Unlucky(trouble), request)
    return raised.value


@pytest.mark.parametrize("kind", [InputUnreachable, InvalidRequest, NotFound, TooLarge])
async def test_the_field_is_named_and_the_kind_of_error_kept(kind: type[FluxserveError]) -> None:
    picture = ImageInput(url=URL, field_name="images.1")
    error = await told(kind("gone.example cannot be reached"), asked(picture))
    assert (error.field, error.message) == ("images.1", "images.1: gone.example cannot be reached")


async def test_a_mask_is_named_like_a_picture() -> None:
    good, bad = ImageInput(url="good", field_name="image"), ImageInput(url=URL, field_name="mask")
    error = await told(InputUnreachable("gone"), asked(good, mask=bad))
    assert error.field == "mask"


async def test_the_name_that_was_given_before_is_replaced_and_never_doubled() -> None:
    picture = ImageInput(url=URL, field_name="image_url")
    error = await told(
        InvalidRequest("image: the file is no picture", field="image"), asked(picture)
    )
    assert (error.field, error.message) == ("image_url", "image_url: the file is no picture")
    assert error.problems == ()


async def test_what_was_stored_without_a_name_is_told_as_it_came() -> None:
    trouble = InputUnreachable("gone.example cannot be reached")
    assert await told(trouble, asked(ImageInput(url=URL))) is trouble


async def test_trouble_that_is_nobodys_picture_is_left_as_it_is() -> None:
    with pytest.raises(OSError, match="disk"):
        await load_inputs(Unlucky(OSError("disk")), asked(ImageInput(url=URL, field_name="image")))
