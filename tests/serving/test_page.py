"""The page of `sid-ray serve` in a headless Chromium, before the real web part."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from sid_ray.serving.contract import Limits, LostError, ServedModel, WantedImage
from tests.support.fake_painting import DIGITS, EMOJI, MODELS, picture_of
from tests.support.page_visit import PageServer, SlowPainting, Visit, chromium

pytestmark = pytest.mark.browser
refuses = pytest.mark.usefixtures("refusing")

LARGE = ServedModel(name="large", label="SiDA", condition="none", size=(128, 128), steps=[1])
SHOUT = "<img src=x onerror=window.shouted=1>"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def refusing():
    """For tests of a server that says no, which Chromium notes in its console."""


@pytest.fixture
def visiting(browser, request):
    """Makes visits of a server; at the end of the test each must have been quiet."""
    servers, contexts, visits = [], [], []

    def visit(
        models=(EMOJI, DIGITS, *MODELS[2:]),
        limits=None,
        token="",
        delay_s=0.0,
        server=None,
        **context,
    ):
        if server is None:
            server = PageServer(SlowPainting(models, delay_s), limits, token)
            servers.append(server)
        size = {"width": 1280, "height": 800}
        contexts.append(browser.new_context(**{"viewport": size, **context}))
        visits.append(Visit(contexts[-1].new_page(), server))
        return visits[-1]

    yield visit
    for each in visits:
        each.check_quiet(refused="refusing" in request.fixturenames)
    for context in contexts:
        context.close()
    for server in servers:
        server.painting.held.clear()
        server.stop()


def decoded(model: ServedModel, one: WantedImage, class_: int | None) -> list[int]:
    """RGBA row by row."""
    image = Image.open(io.BytesIO(picture_of(model, one, class_))).convert("RGBA")
    return np.asarray(image).ravel().tolist()


def test_pictures_come_to_their_places(visiting):
    """Whichever request is answered first; the first seed is asked for alone."""
    visit = visiting()
    visit.open()
    assert "Nothing is made yet" in visit.words("#state")
    visit.painting.held = {5}
    visit.one("#seed").fill("5")
    visit.one("#make").click()
    expect(visit.one(".picture")).to_have_count(11)
    assert visit.one(".cell").evaluate_all(
        "cells => cells.map(cell => cell.childElementCount)"
    ) == [
        0,
        *[1] * 11,
    ]
    assert visit.words("#state") == "11 of 12 images"
    assert visit.one("progress").get_attribute("value") == str(11 / 12)
    visit.painting.held.clear()
    visit.wait_made()
    assert visit.alts() == [f"Seed {seed}, “a red heart”, emoji" for seed in range(5, 17)]
    stops = visit.one(".picture").evaluate_all("all => all.map(one => one.tabIndex)")
    assert stops == [0, *[-1] * 11]  # though the first has come last
    prompt = EMOJI.examples[0]
    wanted = [WantedImage("generator", seed, prompt, None, 1) for seed in range(5, 17)]
    assert visit.pixels() == [decoded(EMOJI, one, None) for one in wanted]
    assert sorted(len(asked) for _, asked in visit.painting.asked) == [1, 3, 4, 4]
    assert visit.one(".figures b").count() == 2


def test_teacher_beside_its_generator(visiting):
    """At the same seeds, one after the other; the painter's teacher takes ten times as long."""
    visit = visiting(models=(DIGITS,), delay_s=0.02)
    visit.open()
    assert visit.one("input[value=runs]").is_disabled()
    visit.page.get_by_label("With teacher").check()
    visit.make()
    assert visit.alts(0) == [f"Seed {n}, class {n % 10}, digits, generator" for n in range(12)]
    assert visit.alts(1) == [f"Seed {n}, class {n % 10}, digits, teacher" for n in range(12)]
    roles = [asked[0].role for _, asked in visit.painting.asked]
    assert roles == ["generator"] * 4 + ["teacher"] * 4
    # Each of four requests has its 20 ms of network, for 12 images in all.
    assert "6.67 ms per image in the network" in visit.words(".pane:first-child .figures")
    assert visit.words("#ratio") == (
        "The teacher takes 66.7 ms per image, the generator 6.67 ms: 10 times as fast."
    )
    assert "35 evaluations" in visit.words(".pane:last-child h2")
    visit.one(".picture").nth(3).click()
    assert visit.one("#figures figure").count() == 2


def test_two_runs_at_the_same_seeds(visiting):
    visit = visiting()
    visit.open()
    visit.page.get_by_label("Two runs").check()
    visit.one("#prompt").fill("a blue car")
    visit.page.get_by_label("Class of the second run").select_option(label="7")
    assert visit.words("#steps option >> nth=0") == "each run's own"
    visit.page.get_by_label("Steps").select_option("4")
    visit.make()
    assert visit.alts(0) == [f"Seed {n}, “a blue car”, emoji" for n in range(12)]
    assert visit.alts(1) == [f"Seed {n}, class 7, digits" for n in range(12)]
    assert {asked[0].steps for name, asked in visit.painting.asked if name == "emoji"} == {4}
    visit.page.set_viewport_size({"width": 820, "height": 1180})
    columns = "all => all.map(one => getComputedStyle(one).gridTemplateColumns.split(' ').length)"
    expect(visit.one("aside")).to_be_visible()
    assert len(set(visit.one(".grid").evaluate_all(columns))) == 1  # of 24 x 16 and of 8 x 8
    visit.one(".pane:first-child .picture").nth(2).focus()
    assert visit.one(".cell.twin").count() == 2
    assert visit.one(".pane:last-child .cell").nth(2).get_attribute("class") == "cell twin"


def test_by_keyboard_alone(visiting):
    visit = visiting()
    visit.open()
    press = visit.page.keyboard.press
    seen = []
    while visit.focused() != "make":
        press("Tab")
        seen.append(visit.focused())
        assert (
            visit.page.evaluate(
                """() => {
                const at = document.activeElement;
                const shown = at.type === "radio" ? at.nextElementSibling : at;
                return getComputedStyle(shown).outlineStyle;
            }"""
            )
            != "none"
        ), seen
        assert len(seen) < 30
    press("Enter")
    visit.wait_made()
    while visit.focused() != "picture":
        press("Tab")
    labels = [visit.page.evaluate("document.activeElement.firstChild.alt.split(',')[0]")]
    columns = len(
        visit.one(".grid").evaluate("grid => getComputedStyle(grid).gridTemplateColumns").split()
    )
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "End", "ArrowRight", "Home"):
        press(key)
        labels.append(visit.page.evaluate("document.activeElement.firstChild.alt.split(',')[0]"))
    places = [0, 1, 1 + columns, columns, 0, 11, 11, 0]
    assert labels == [f"Seed {place}" for place in places]
    press("Enter")
    expect(visit.one("dialog")).to_be_visible()
    press("ArrowRight")
    press("ArrowRight")
    assert visit.words("#viewer-title") == "Seed 2"
    press("Escape")
    expect(visit.one("dialog")).to_be_hidden()
    assert visit.page.evaluate("document.activeElement.firstChild.alt").startswith("Seed 2,")
    press("Tab")  # all pictures are one stop
    assert visit.focused() != "picture"
    asked = len(visit.painting.asked)
    visit.one(".skip").focus()
    press("Enter")
    assert visit.focused() == "pictures"
    press("Tab")
    assert visit.focused() == "sheet"
    assert len(visit.painting.asked) == asked


@refuses
def test_errors_stand_at_their_fields(visiting):
    visit = visiting(limits=Limits(prompt_chars=20))
    visit.open()
    for field, value, words in (
        ("count", "0", "a whole number from 1 to 256"),
        ("count", "4x", "a whole number from 1 to 256"),
        ("seed", "-1", "a whole number from 0 to 4294967295"),
        ("seed", "4294967290", "beyond 4294967295"),
        ("prompt", "a very red heart indeed", "Prompt has 23 characters; at most 20 are taken."),
    ):
        before = visit.one(f"#{field}").input_value()
        visit.one(f"#{field}").fill(value)
        visit.one("#make").click()
        expect(visit.one(f"#{field}-error")).to_contain_text(words)
        assert visit.one(f"#{field}").get_attribute("aria-invalid") == "true"
        assert visit.focused() == field
        assert visit.one("[aria-invalid]").count() == 1
        visit.one(f"#{field}").fill(before)
    visit.one("#make").click()
    visit.wait_made()
    assert visit.one("[aria-invalid]").count() == 0
    asked = len(visit.painting.asked)
    visit.open("?model=nobody&seed=0")
    assert visit.words("#model-error") == "This server has no run nobody."
    assert len(visit.painting.asked) == asked


@refuses
def test_a_busy_server_is_waited_for(visiting):
    visit = visiting()
    visit.open()
    visit.painting.busy = 1000
    visit.one("#make").click()
    words = "The server is busy. This goes on by itself in 1 s."
    expect(visit.one("#state")).to_have_text(words)
    expect(visit.one("#live")).to_have_text(words)
    visit.painting.busy = 0
    visit.wait_made()
    assert len(visit.alts()) == 12
    assert visit.one("#banner").is_hidden()


@refuses
def test_what_was_lost_is_asked_for_again(visiting):
    """A replica that is killed has others beside it, or comes back."""
    visit = visiting()
    visit.open()
    visit.painting.failure = LostError("the replica has ended")
    visit.one("#make").click()
    words = "The replica has ended. This goes on by itself in 1 s."
    expect(visit.one("#state")).to_have_text(words)
    visit.painting.failure = None
    visit.wait_made()


@refuses
def test_a_bare_500_of_what_stands_before_the_server_is_asked_again(visiting):
    """Serve's proxy answers so where the door behind it has ended."""
    visit = visiting()
    visit.open()
    words = {"status": 500, "content_type": "text/plain", "body": "Internal Server Error"}
    visit.page.route("**/v1/images", lambda route: route.fulfill(**words))
    visit.one("#make").click()
    text = "The server answered 500. This goes on by itself in 1 s."
    expect(visit.one("#state")).to_have_text(text)
    visit.page.unroute("**/v1/images")
    visit.wait_made()


def test_a_server_without_runs_says_so(visiting):
    visit = visiting(models=())
    visit.open()
    assert visit.words("#banner-text") == "This server has no run yet."
    visit.painting.served["digits"] = DIGITS
    visit.page.get_by_role("button", name="Try again").click()
    visit.make()
    assert visit.focused() == "make"


@refuses
def test_token(visiting):
    visit = visiting(token="right-one")
    visit.page.goto(visit.server.origin)
    expect(visit.one("#token-error")).to_have_text("This server asks for a token.")
    for token in ("wrong", "right-one"):
        visit.one("#token").fill(token)
        visit.page.keyboard.press("Enter")
        if token == "wrong":
            expect(visit.one("#token-error")).to_have_text("The server does not take this token.")
    expect(visit.one("#token-form")).to_be_hidden()
    visit.make()
    visit.open()  # it is kept
    visit.make()
    other = visiting(server=visit.server)
    other.open("?model=emoji&seed=3&images=1#token=right-one")
    other.wait_made()
    assert "token" not in other.page.url
    other.one(".picture").click()
    assert "right-one" not in other.page.content() + other.one("#link").input_value()


@refuses
def test_the_server_ends_and_returns(visiting):
    """What was made stays, and the rest is made then."""
    visit = visiting()
    visit.open()
    visit.painting.held = {0}
    visit.one("#make").click()
    expect(visit.one(".picture")).to_have_count(11)
    visit.server.stop()
    expect(visit.one("#banner-text")).to_have_text("The server does not answer.")
    visit.one("#retry").click()
    expect(visit.one("#banner-text")).to_be_visible()
    visit.painting.held.clear()
    visit.painting.asked.clear()
    visit.server.start()
    visit.one("#retry").click()
    visit.wait_made()
    assert visit.one("#banner").is_hidden()
    assert [[one.seed for one in asked] for _, asked in visit.painting.asked] == [[0]]


def test_cancelled_and_gone_on_with(visiting):
    visit = visiting()
    visit.open()
    visit.painting.held = {0}
    visit.one("#make").click()
    expect(visit.one(".picture")).to_have_count(11)
    visit.page.get_by_role("button", name="Cancel").click()
    expect(visit.one("#state")).to_have_text("Stopped after 11 of 12 images.")
    assert visit.focused() == "make"
    visit.painting.held.clear()
    visit.page.get_by_role("button", name="Go on").click()
    visit.wait_made()
    assert len(visit.alts()) == 12


def test_a_link_opens_the_same_pictures(visiting):
    visit = visiting(permissions=["clipboard-read", "clipboard-write"])
    visit.open()
    visit.one("#prompt").fill("50% of a car & a heart?")
    visit.one("#count").fill("5")
    visit.page.get_by_role("button", name="New seeds").click()
    visit.wait_made()
    first = visit.pixels()
    other = visiting(server=visit.server)
    other.page.goto(visit.page.url)
    other.wait_made()
    assert other.pixels() == first
    assert other.alts() == visit.alts()
    visit.one("#model").select_option("digits")
    visit.one("#class").select_option(label="3")
    visit.make()
    assert visit.alts()[0].endswith("class 3, digits")
    visit.one(".picture").nth(4).click()
    visit.page.get_by_role("button", name="Copy link").click()
    expect(visit.one("#copied")).to_have_text("Copied")
    link = visit.page.evaluate("navigator.clipboard.readText()")
    visit.page.keyboard.press("Escape")
    last = visit.pixels()[4]
    visit.page.go_back()
    expect(visit.one("#model")).to_have_value("emoji")
    visit.wait_made()
    assert visit.pixels() == first
    other.page.goto(link)
    other.wait_made()
    assert other.pixels() == [last]


def test_downloads(visiting, tmp_path):
    visit = visiting(models=(DIGITS,))
    visit.open("?seed=0&images=5")
    visit.wait_made()
    with visit.page.expect_download() as waiting:
        visit.page.get_by_role("button", name="Download all").click()
    assert waiting.value.suggested_filename == "digits-seeds0-4.png"
    sheet = Image.open(waiting.value.path())
    visit.one(".picture").nth(2).click()
    with visit.page.expect_download() as waiting:
        visit.page.get_by_role("link", name="Download").click()
    assert waiting.value.suggested_filename == "digits-seed2.png"
    content = Path(waiting.value.path()).read_bytes()
    assert content == picture_of(DIGITS, WantedImage("generator", 2, "", None, 1), 2)
    columns = (sheet.width - 4) // 100  # 8 pixels, twelve times as large, and 4 between
    assert columns in (2, 3, 4, 5)
    corner = sheet.convert("RGB").getpixel((4 + 100 * (2 % columns), 4 + 100 * (2 // columns)))
    assert corner == Image.open(io.BytesIO(content)).convert("RGB").getpixel((0, 0))


def test_on_a_phone(visiting):
    """No scrolling to the side, and all that is touched has 44 pixels."""
    visit = visiting(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for mode in ("one", "teacher", "runs"):
        visit.open(f"?show={mode}&model=emoji&with=digits&prompt=a+blue+car&seed=0&images=6")
        visit.wait_made()
        for opened in (False, True):
            if opened:
                visit.one(".picture").first.click()
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
            assert visit.page.evaluate("document.querySelector('dialog').scrollWidth") <= 390
            small = visit.one("button, select, textarea, input, a.button").evaluate_all(
                """all => all.filter(one => one.offsetParent).map(one => {
                    const box = one.getBoundingClientRect();
                    return [one.id || one.value || one.textContent, box.width, box.height];
                }).filter(([name, width, height]) => width < 44 || height < 44)"""
            )
            assert small == [], (mode, opened)


def test_every_control_has_a_name(visiting):
    """As a screen reader is told, with all that can be seen open."""
    visit = visiting()
    cdp = visit.page.context.new_cdp_session(visit.page)
    roles = {"button", "textbox", "combobox", "radio", "link", "image", "progressbar", "dialog"}
    found = set()
    for mode in ("one", "teacher", "runs"):
        visit.open(f"?show={mode}&model=emoji&with=digits&prompt=a+blue+car&seed=0&images=3")
        visit.wait_made()
        for opened in (False, True):
            if opened:
                visit.one(".picture").first.click()
            for node in cdp.send("Accessibility.getFullAXTree")["nodes"]:
                role = node.get("role", {}).get("value")
                if role in roles and not node["ignored"]:
                    assert node["name"]["value"].strip(), (mode, node)
                    found.add(role)
    assert found >= roles - {"progressbar"}
    assert visit.one("[lang=en]").count() == 1


def test_texts_are_texts(visiting):
    """A run, class, label, example or score named like a piece of HTML is shown as it is called."""
    shouting = ServedModel(
        name=SHOUT,
        label=SHOUT,
        condition="class",
        classes=[SHOUT, "b"],
        size=(8, 8),
        steps=[1],
        scores={SHOUT: 1.0},
        base=SHOUT,
        licence=SHOUT,
    )
    reading = shouting.model_copy(
        update={"name": "b", "condition": "prompt", "classes": (), "examples": [SHOUT]}
    )
    visit = visiting(models=(shouting, reading))
    visit.open()
    visit.page.get_by_label("Two runs").check()
    visit.one("#class").select_option(label=SHOUT)
    visit.make()
    assert visit.words("h2 >> nth=0").startswith(SHOUT)
    visit.one(".picture").first.click()
    assert SHOUT in visit.words("figcaption >> nth=0")
    assert visit.page.evaluate("window.shouted") is None
    assert visit.one("img[src=x]").count() == 0


def test_small_pictures_keep_their_pixels(visiting):
    visit = visiting(models=(DIGITS, LARGE))
    for name, rendering in (("digits", "pixelated"), ("large", "auto")):
        visit.open(f"?model={name}&seed=0")
        visit.wait_made()
        image = visit.one(".picture img").first
        assert image.evaluate("one => getComputedStyle(one).imageRendering") == rendering
        if name == "digits":  # each of their pixels is as large as the others
            assert visit.one(".cell").first.evaluate("one => one.clientWidth % 8") == 0
        box = visit.one(".grid").bounding_box()
        assert box["y"] + box["height"] <= 800  # all are seen at once


def test_dark_and_without_motion(visiting):
    grounds = []
    for scheme in ("light", "dark"):
        visit = visiting(color_scheme=scheme, reduced_motion="reduce")
        visit.open("?seed=0&images=1")
        visit.wait_made()
        ground = visit.one("body").evaluate("one => getComputedStyle(one).backgroundColor")
        grounds.append(ground)
        motion = visit.one(".picture img").evaluate("one => getComputedStyle(one).animationName")
        assert motion == "none"
    assert grounds[0] != grounds[1]
