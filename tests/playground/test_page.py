"""The landing page in a real browser: a picture, an edit, errors in words, any width, no strangers.

Chromium comes from the system; the driver is Playwright's, without browsers of its own.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect, sync_playwright

from tests.dialects.served import png
from tests.server import ServerProcess

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 30_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    environ = {
        "FLUXSERVE_SIMULATOR__ENABLED": "true",
        "FLUXSERVE_SIMULATOR__SECONDS": "0.3",
        "FLUXSERVE_SIMULATOR__STEPS": "3",
    }
    process = ServerProcess(tmp_path_factory.mktemp("page"), environ=environ)
    yield process
    process.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found, "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: ServerProcess) -> Iterator[Page]:
    """The page, opened; whatever it asked of others or complained about fails the test."""
    page = browser.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Policy" in said.text else None)
    page.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((server.url, "data:", "blob:"))
            else wrong.append(asked.url)
        ),
    )
    page.goto(server.url)
    expect(page.locator("#model option:checked")).to_have_count(1)
    yield page
    page.close()
    assert not wrong


def test_a_picture_is_made_and_joins_the_latest(page: Page) -> None:
    page.get_by_label("Prompt").fill("a green hat")
    page.get_by_label("Seed").fill("42")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#status")).to_contain_text("seed 42", timeout=WAIT_MS)
    expect(page.locator("#result img")).to_have_attribute("alt", "a green hat")
    expect(page.locator("#latest figure").first).to_contain_text("a green hat")
    natural = "image => image.complete && image.naturalWidth"
    assert page.locator("#latest img").first.evaluate(
        f"async image => (await image.decode(), ({natural})(image))"
    )
    assert page.get_by_role("button", name="Make it").is_enabled()


def test_a_photo_is_edited(page: Page, server: ServerProcess) -> None:
    photo: FilePayload = {"name": "photo.png", "mimeType": "image/png", "buffer": png(320, 256)}
    page.get_by_label("Picture to edit").set_input_files(photo)
    expect(page.get_by_alt_text("the picture to edit")).to_be_visible()
    page.get_by_label("Prompt").fill("make it grayscale")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#status")).to_contain_text("done", timeout=WAIT_MS)
    rows = httpx.get(f"{server.url}/fluxserve/v1/predictions?limit=1").json()["results"]
    assert (rows[0]["request"]["task"], rows[0]["status"]) == ("edit", "succeeded")


def test_the_keyboard_is_enough(page: Page) -> None:
    page.get_by_label("Prompt").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("a yellow star")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.id") == "submit":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_alt_text("a yellow star").first).to_be_visible(timeout=WAIT_MS)


def test_every_field_has_a_name_that_can_be_read_out(page: Page) -> None:
    fields = page.locator("input, select, textarea, progress")
    for number in range(fields.count()):
        name = fields.nth(number).evaluate(
            "field => field.ariaLabel || [...field.labels].map(one => one.textContent).join()"
        )
        assert name.strip()


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [("Steps", "9999", "num_steps"), ("Size", "7x7", "")],
)
def test_what_the_server_refuses_is_said_in_words(
    page: Page, field: str, text: str, sentence: str
) -> None:
    page.get_by_label(field).fill(text)
    page.get_by_role("button", name="Make it").click()
    trouble = page.get_by_role("alert")
    expect(trouble).to_have_text(re.compile(rf"{sentence}.+"), timeout=WAIT_MS)
    expect(page.locator("#bar")).to_be_hidden()
    page.get_by_label(field).fill("")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#status")).to_contain_text("done", timeout=WAIT_MS)
    expect(page.locator("#trouble")).to_be_empty()


def test_a_file_that_is_no_picture_is_refused_in_words(page: Page) -> None:
    poem: FilePayload = {"name": "poem.png", "mimeType": "image/png", "buffer": b"roses are red"}
    page.get_by_label("Picture to edit").set_input_files(poem)
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_role("alert")).to_contain_text("not a JPEG, PNG", timeout=WAIT_MS)


def test_a_server_with_keys_asks_for_one(
    browser: Browser, start_server: object, tmp_path: Path
) -> None:
    assert callable(start_server)
    server = start_server()
    token = (tmp_path / "server" / "admin.token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    made = httpx.post(f"{server.url}/fluxserve/v1/keys", json={"name": "x"}, headers=headers)
    page = browser.new_page()
    page.goto(server.url)
    expect(page.locator("#served")).to_contain_text("key")
    page.get_by_text("API key", exact=True).click()
    page.locator("#key").fill(made.json()["secret"])
    page.locator("#key").press("Tab")
    expect(page.locator("#served")).to_contain_text("simulator")
    page.close()


@pytest.mark.parametrize("width", [320, 768, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_any_screen_in_light_and_dark(page: Page, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": width, "height": 700})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    background = page.evaluate("() => getComputedStyle(document.documentElement).colorScheme")
    assert scheme in background


def test_the_paths_on_the_page_are_there(page: Page, server: ServerProcess) -> None:
    for link in page.locator("a[href^='/']").all():
        assert httpx.get(server.url + str(link.get_attribute("href"))).status_code == 200
    calls = page.locator("#apis td:last-child").all_text_contents()
    assert len(calls) >= 4
    for call in calls:
        method, _, path = call.partition(" ")
        answer = httpx.request(method, server.url + path, content=b"{}")
        assert answer.status_code in (400, 422), path  # there, and not content with nothing


def test_the_model_that_is_chosen_is_one_that_somebody_serves(
    browser: Browser, start_server: object, tmp_path: Path
) -> None:
    assert callable(start_server)
    settings = tmp_path / "settings.toml"
    settings.write_text(
        '[[upstream]]\nname = "shop"\nkind = "bfl"\nbase_url = "http://127.0.0.1:9"\n'
        'models = ["flux-kontext-pro"]\nkey_env = "SHOP_KEY"\n'
    )
    environ = {"FLUXSERVE_SIMULATOR__ENABLED": "false", "SHOP_KEY": "k"}
    server = start_server("--config", str(settings), **environ)
    page = browser.new_page()
    page.goto(server.url)
    expect(page.locator("#served")).to_have_text("Served by shop.")
    assert page.locator("#model option:checked").is_enabled()
    page.close()


def test_enter_in_the_field_of_the_key_takes_the_key_and_makes_nothing(page: Page) -> None:
    page.get_by_text("API key", exact=True).click()
    page.locator("#key").fill("secret")
    page.locator("#key").press("Enter")
    assert page.evaluate("() => sessionStorage.getItem('key')") == "secret"
    assert page.evaluate("() => document.activeElement.id") == "key"
    expect(page.locator("#work")).to_be_hidden()


def test_the_focus_stays_with_the_button_that_was_pressed(page: Page) -> None:
    page.locator("#submit").press("Enter")
    expect(page.locator("#status")).to_contain_text("done", timeout=WAIT_MS)
    expect(page.locator("#submit")).to_be_focused()


CARRY = """([kind, bytes]) => {
  const carried = new DataTransfer();
  carried.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
  const event = kind === "paste"
    ? new ClipboardEvent(kind, { clipboardData: carried, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true });
  document.getElementById("prompt").dispatchEvent(event);
  return event.defaultPrevented;
}"""


def test_a_picture_that_is_dropped_or_pasted_is_the_one_to_edit(page: Page) -> None:
    assert page.evaluate(CARRY, ["dragover", []])  # or the browser would open the file instead
    for kind, width in (("drop", 40), ("paste", 60)):
        assert page.evaluate(CARRY, [kind, list(png(width, 30))])
        chosen = page.locator("#chosen")
        expect(chosen).to_be_visible()
        wide = "async image => (await image.decode(), image.naturalWidth)"
        assert chosen.evaluate(wide) == width


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_server_that_is_started_again_goes_on_with_the_picture(
    browser: Browser, start_server: object, end: str
) -> None:
    assert callable(start_server)
    slow = {"FLUXSERVE_SIMULATOR__SECONDS": "3", "FLUXSERVE_DISPATCH__DRAIN_S": "0"}
    server = start_server(
        **slow, FLUXSERVE_DISPATCH__LEASE_S="2", FLUXSERVE_DISPATCH__HEARTBEAT_S="1"
    )
    page = browser.new_page()
    page.goto(server.url)
    expect(page.locator("#model option:checked")).to_have_count(1)
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#status")).to_contain_text("step")
    getattr(server, end)()
    expect(page.locator("#status")).to_contain_text("trying again", timeout=WAIT_MS)
    start_server("--port", server.url.rpartition(":")[2], **slow)
    expect(page.locator("#status")).to_contain_text("done", timeout=WAIT_MS)
    expect(page.locator("#result img")).to_have_count(1)
    expect(page.locator("#trouble")).to_be_empty()
    page.close()
