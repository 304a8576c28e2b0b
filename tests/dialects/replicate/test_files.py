"""The Files API and files as input, against a whole server."""

import base64
import hashlib
import hmac
import io
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from fluxserve.app import House
from tests.dialects.served import client_of, house_on, png

KONTEXT = "/v1/models/black-forest-labs/flux-kontext-dev/predictions"
FILL = "/v1/models/black-forest-labs/flux-fill-pro/predictions"
PHOTO = png(120, 80)


async def upload(client: httpx.AsyncClient, content: bytes = PHOTO, **more: Any) -> dict[str, Any]:
    answer = await client.post(
        "/v1/files", files={"content": ("a.png", content, "image/png")}, **more
    )
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_an_upload_has_every_field_and_none_is_null(client: httpx.AsyncClient) -> None:
    file = await upload(client)
    assert all(value is not None for value in file.values())
    assert file["etag"] == hashlib.md5(PHOTO).hexdigest()
    assert file["checksums"] == {
        "sha256": hashlib.sha256(PHOTO).hexdigest(),
        "md5": file["etag"],
    }
    assert (file["name"], file["content_type"], file["size"]) == ("a.png", "image/png", len(PHOTO))
    assert file["urls"] == {"get": f"http://flux.test/v1/files/{file['id']}"}
    assert file["expires_at"] > file["created_at"]
    again = (await client.get(file["urls"]["get"])).json()
    assert again == file


@pytest.mark.parametrize(
    ("data", "files"),
    [
        ({"metadata": '{"a": {"b": "c"}}'}, {}),
        ({}, {"metadata": ("blob", b'{"a": {"b": "c"}}', "application/json")}),
        ({"metadata[a][b]": "c"}, {}),
    ],
)
async def test_metadata_comes_in_three_forms(
    client: httpx.AsyncClient, data: dict[str, str], files: dict[str, Any]
) -> None:
    content = {"content": ("upload", PHOTO, "application/octet-stream"), **files}
    answer = await client.post("/v1/files", data=data, files=content)
    assert answer.json()["metadata"] == {"a": {"b": "c"}}
    assert answer.json()["content_type"] == "image/png"


async def test_the_bytes_say_what_a_file_is(client: httpx.AsyncClient) -> None:
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    for data, name, declared, wanted in [
        (jpeg.getvalue(), "a.png", "image/png", "image/jpeg"),
        (b"no picture", "a.png", "image/png", "application/octet-stream"),
        (b"no picture", "a.csv", "application/octet-stream", "text/csv"),
        (b"PK\x03\x04", "a", "application/zip", "application/zip"),
    ]:
        answer = await client.post("/v1/files", files={"content": (name, data, declared)})
        assert answer.json()["content_type"] == wanted


async def test_the_fields_type_and_filename_are_heard(client: httpx.AsyncClient) -> None:
    file = await upload(
        client, b"a,b", data={"filename": "../../x/y\u00e9.csv", "type": "text/csv"}
    )
    assert (file["name"], file["content_type"]) == ("y\u00e9.csv", "text/csv")


async def test_an_upload_without_content_names_it(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/files", files={"metadata": ("blob", b"{}")})
    assert answer.status_code == 422
    assert answer.json()["invalid_fields"][0]["description"] == "content is required"
    answer = await client.post("/v1/files", data={"content": "text"})
    assert answer.status_code == 422
    answer = await client.post("/v1/files", json={"content": "text"})
    assert answer.status_code == 422


async def test_a_large_upload_is_refused_by_its_declared_length(tmp_path: Path) -> None:
    flags = {"limits": {"upload_max_bytes": 2048}}
    async with house_on(tmp_path, flags) as house, client_of(house) as client:
        answer = await client.post("/v1/files", files={"content": ("a", bytes(2 * 1024 * 1024))})
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        answer = await client.post("/v1/files", files={"content": ("a", bytes(3000))})
        assert answer.status_code == 413


async def test_an_uploaded_file_is_an_input_under_any_mount(client: httpx.AsyncClient) -> None:
    file = await upload(client)
    for url in (
        file["urls"]["get"],
        f"http://flux.test/replicate/v1/files/{file['id']}",
        f"https://another-name.example/v1/files/{file['id']}",
    ):
        body = {"input": {"prompt": "x", "input_image": url}}
        answer = await client.post(KONTEXT, json=body, headers={"Prefer": "wait=20"})
        assert answer.json()["status"] == "succeeded", answer.text
        assert answer.json()["input"]["input_image"] == url


async def test_an_output_is_an_input_again(client: httpx.AsyncClient) -> None:
    made = await client.post(
        "/v1/predictions",
        json={"version": "black-forest-labs/flux-pro", "input": {"prompt": "x"}},
        headers={"Prefer": "wait=20"},
    )
    body = {"input": {"prompt": "x", "input_image": made.json()["output"]}}
    answer = await client.post(KONTEXT, json=body, headers={"Prefer": "wait=20"})
    assert answer.json()["status"] == "succeeded"


async def test_files_of_another_key_and_gone_ones_are_no_input(house: House) -> None:
    _, key = await house.keyring.create()
    _, other = await house.keyring.create()
    async with client_of(house, key) as anna, client_of(house, other) as ben:
        file = await upload(anna)
        url = file["urls"]["get"]
        body = {"input": {"prompt": "x", "input_image": url}}
        refused = await ben.post(KONTEXT, json=body)
        assert refused.status_code == 422
        field = refused.json()["invalid_fields"][0]
        assert (field["type"], field["field"]) == ("format", "input.input_image")
        assert (await ben.get(url)).status_code == 404
        assert (await ben.delete(url)).status_code == 404
        assert (await ben.get("/v1/files")).json()["results"] == []
        assert (await anna.delete(url)).status_code == 204
        assert (await anna.get(url)).status_code == 404
        assert (await anna.post(KONTEXT, json=body)).status_code == 422


async def test_a_forged_output_link_of_ours_is_no_input(client: httpx.AsyncClient) -> None:
    url = "http://flux.test/out/" + "A" * 40 + "/out-0.png"
    answer = await client.post(KONTEXT, json={"input": {"prompt": "x", "input_image": url}})
    assert answer.json()["invalid_fields"][0]["field"] == "input.input_image"


async def test_the_list_is_newest_first_in_pages(client: httpx.AsyncClient) -> None:
    made = [(await upload(client, b"%d" % number))["id"] for number in range(103)]
    first = (await client.get("/v1/files")).json()
    assert [item["id"] for item in first["results"]] == made[:2:-1]
    second = (await client.get(first["next"])).json()
    assert [item["id"] for item in second["results"]] == made[2::-1]
    assert second["next"] is None
    assert second["previous"] == "http://flux.test/v1/files"


async def test_a_signed_download_gives_the_bytes(client: httpx.AsyncClient) -> None:
    file = await upload(client)
    secret = (await client.get("/v1/webhooks/default/secret")).json()["key"]
    path = f"/v1/files/{file['id']}/download"

    def asked(expiry: str, owner: str = "default") -> dict[str, str]:
        message = f"{owner} {file['id']} {expiry}".encode()
        mac = hmac.new(base64.b64decode(secret.partition("_")[2]), message, "sha256").digest()
        signature = base64.b64encode(mac).decode()
        return {"owner": owner, "expiry": expiry, "signature": signature}

    good = await client.get(path, params=asked("99999999999"))
    assert good.content == PHOTO
    assert good.headers["content-type"] == "image/png"
    old = await client.get(path, params=asked("1000"))
    forged = await client.get(path, params={**asked("99999999999"), "expiry": "99999999998"})
    stranger = await client.get(path, params=asked("99999999999", "somebody"))
    bare = await client.get(path)
    assert {old.status_code, forged.status_code, stranger.status_code, bare.status_code} == {404}


async def test_a_long_data_uri_is_echoed_as_a_link_to_the_stored_copy(
    client: httpx.AsyncClient,
) -> None:
    out = io.BytesIO()
    Image.effect_noise((700, 500), 90).convert("RGB").save(out, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    assert len(uri) > 300_000
    # One of the callers sends the same picture under four names.
    names = ("image", "images", "input_image", "input_images")
    said: dict[str, Any] = {"prompt": "x", **dict.fromkeys(names, uri)}
    answer = await client.post(KONTEXT, json={"input": said}, headers={"Prefer": "wait=20"})
    echo = answer.json()["input"]
    assert len({echo[name] for name in names}) == 1
    copy = await client.get(echo["input_image"])
    assert copy.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(copy.content)).size == (700, 500)
    small = "data:image/png;base64," + base64.b64encode(PHOTO).decode()
    answer = await client.post(KONTEXT, json={"input": {"prompt": "x", "input_image": small}})
    assert answer.json()["input"]["input_image"] == small


async def test_an_input_that_is_huge_besides_pictures_is_refused(
    client: httpx.AsyncClient,
) -> None:
    said = {"prompt": "x", **{f"k{number}": "v" * 250_000 for number in range(9)}}
    path = "/v1/models/black-forest-labs/flux-pro/predictions"
    answer = await client.post(path, json={"input": said})
    assert answer.status_code == 413


async def test_outpaint_grows_the_canvas(client: httpx.AsyncClient) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png(320, 320)).decode()
    said = {"prompt": "x", "image": uri, "outpaint": "Right outpaint", "output_format": "png"}
    answer = await client.post(FILL, json={"input": said}, headers={"Prefer": "wait=20"})
    assert answer.json()["status"] == "succeeded", answer.text
    picture = await client.get(answer.json()["output"])
    assert Image.open(io.BytesIO(picture.content)).size == (480, 320)
