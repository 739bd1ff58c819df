"""The page at /: that it is served, by itself, under its policy; and, slowly, its controls clicked in Chromium."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import socket
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgemm.serve
from edgemm.bundle.manifest import Limits, Loops
from tests.runtimes.tiny_bundle import build, denoise_loop, text_loop
from tests.runtimes.tiny_weights import TINY
from tests.serve.conftest import MARKED, running

httpx = pytest.importorskip("httpx", reason="needs the extras serve and dev")
pytest.importorskip("starlette")

WEB = Path(edgemm.serve.__file__).parent / "web"
NO_TEXT = ("input", "img", "link", "meta")


class Elements(HTMLParser):
    """Every element with its attributes, its parents, and the words inside."""

    def __init__(self, text):
        super().__init__()
        self.found, self._open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "words": "", "inside": [each["tag"] for each in self._open], **dict(attrs)}
        element["label"] = next((each for each in self._open if each["tag"] == "label"), None)
        self.found.append(element)
        if tag not in NO_TEXT:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in NO_TEXT:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop()["tag"] != tag:
            pass

    def handle_data(self, data):
        for element in self._open:
            element["words"] += data.strip()


ELEMENTS = Elements((WEB / "index.html").read_text()).found
IDS = [element["id"] for element in ELEMENTS if "id" in element]


def test_the_page_and_all_that_it_names_are_served_without_a_key_and_under_its_policy(bundle, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    with running(edgemm.serve.app(bundle, api_key_file=str(keys))) as url:
        page = httpx.get(f"{url}/")
        assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        for name in re.findall(r'(?:src|href)="(web/[^"]+)"', page.text) + [
            f"web/{path.name}" for path in WEB.glob("*.js")
        ]:
            answer = httpx.get(f"{url}/{name}")
            assert answer.status_code == 200, name
            assert answer.headers["content-security-policy"] == page.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert httpx.get(f"{url}/v1/models").status_code == 401
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)


def test_the_page_is_served_beneath_another_application(bundle, tmp_path):
    from starlette.applications import Starlette
    from starlette.routing import Mount

    (tmp_path / "keys").write_text("sesame\n")
    inner = edgemm.serve.app(bundle, api_key_file=str(tmp_path / "keys"))
    with running(Starlette(routes=[Mount("/ai", app=inner)])) as url:
        page = httpx.get(f"{url}/ai", follow_redirects=True)
        assert page.status_code == 200 and page.url == f"{url}/ai/"  # what it names, it names beside itself
        assert httpx.get(f"{url}/ai/web/page.js").status_code == 200
    inner.close()


def test_nothing_of_the_page_is_inline_or_from_elsewhere():
    for path in WEB.iterdir():
        assert set(re.findall(r"https?://[^\s\"']+", path.read_text())) <= {"http://www.w3.org/2000/svg"}, path
    assert not [element for element in ELEMENTS if any(name == "style" or name.startswith("on") for name in element)]
    scripts = [element for element in ELEMENTS if element["tag"] in ("script", "style")]
    assert [(each["tag"], each["src"], each["words"]) for each in scripts] == [("script", "web/page.js", "")]


def test_the_page_is_small(url):
    names = ["", *(f"web/{path.name}" for path in WEB.iterdir() if path.suffix != ".html")]
    with httpx.Client() as client:
        answers = [client.send(client.build_request("GET", f"{url}/{name}"), stream=True) for name in names]
        assert sum(len(b"".join(answer.iter_raw())) for answer in answers) < 20_000  # as it travels
    assert sum(len(httpx.get(f"{url}/{name}").content) for name in names) < 50_000
    plain = httpx.get(f"{url}/", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.text == (WEB / "index.html").read_text()


def test_every_control_has_a_label():
    labelled = {element["for"] for element in ELEMENTS if element["tag"] == "label" and "for" in element}
    controls = [each for each in ELEMENTS if each["tag"] in ("button", "input", "select", "textarea", "a", "dialog")]
    assert len(controls) > 20
    for each in controls:
        own = (
            each.get("aria-label") or each.get("aria-labelledby") or (each["tag"] in ("button", "a") and each["words"])
        )
        around = each["label"] is not None and each["label"]["words"]
        assert own or around or each.get("id") in labelled, each
    for each in ELEMENTS:
        if each["tag"] == "img":
            assert "alt" in each


def test_every_name_that_is_meant_is_there_once():
    assert len(IDS) == len(set(IDS))
    meant = {word for element in ELEMENTS for name, value in element.items() if name in ("for", "aria-controls") or
             name in ("aria-labelledby", "aria-describedby") for word in value.split()}  # fmt: skip
    for path in WEB.glob("*.js"):
        meant |= set(re.findall(r'\bat\("([\w-]+)"\)', path.read_text()))
    assert meant <= set(IDS)


# In a browser


def browser_or_skip():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the extra dev")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


class Page:
    """The page, as somebody uses it."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url
        self.noise()  # of those before it
        driver.get(url)
        self.wait(lambda: self.text("#state") == "Ready")

    def wait(self, fact, seconds=60):
        until = time.monotonic() + seconds
        while not fact():
            assert time.monotonic() < until, f"waited for {seconds} s; the page says: {self.text('body')}"
            time.sleep(0.02)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self.one(selector).text

    def seen(self, selector):
        return [element for element in self.all(selector) if element.is_displayed()]

    def press(self, *keys):
        """Into whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def choose(self, mode):
        self.one(f"[name=mode][value={mode}]").click()

    def set(self, **settings):
        if not self.one("#settings").is_displayed():
            self.one("#more").click()
        for name, value in settings.items():
            field = self.one(f"#{name}")
            field.clear()
            field.send_keys(str(value))

    def send(self, words):
        self.one("#words").send_keys(words)
        self.one("#send").click()

    def ready(self):
        self.wait(lambda: self.text("#state") == "Ready" and self.text("#send") != "Stop")

    def noise(self):
        """What the console said, and the hosts that were asked."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        return said, {url for url in asked if not url.startswith((self.url, "data:"))}


@pytest.fixture(scope="module")
def driver():
    driver = browser_or_skip()
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A bundle that can be kept at work for as long as somebody needs to see it and to stop it."""
    limits = Limits(max_context=1000, max_image_pixels=1_000_000, max_steps=20_000)
    return build(tmp_path_factory.mktemp("page") / "tiny.bundle", limits=limits)


@pytest.fixture(scope="module")
def url(patient):
    with running(edgemm.serve.app(patient)) as address:
        yield address


@pytest.fixture
def page(driver, url):
    return Page(driver, f"{url}/")


def picture(path):
    Image.new("RGB", (40, 30), "red").save(path)
    return str(path)


@pytest.mark.slow
class TestClicked:
    def test_a_reply_streams_and_tells_its_speed(self, page):
        page.set(longest=900)
        page.driver.execute_script("""
            window.lengths = new Set();  // tiny models are quicker than a driver's questions
            new MutationObserver(() => lengths.add(turns.textContent.length))
                .observe(turns, {childList: true, subtree: true})""")
        page.send("hello")
        page.ready()
        assert page.driver.execute_script("return lengths.size") > 2, "it came all at once"
        assert "900 tokens" in page.text(".note") and "cut at its longest" in page.text(".note")
        assert float(page.text("#speed")) > 0
        assert page.one("#say").get_attribute("textContent").strip()
        assert page.noise() == ([], set())

    def test_a_reply_is_stopped_and_asked_again(self, page):
        page.driver.execute_script("""
            new MutationObserver((_, watch) => document.querySelector(".reply p") && (watch.disconnect(), send.click()))
                .observe(turns, {childList: true, subtree: true})""")
        page.send("hello")
        page.wait(lambda: "Stopped." in page.text(".note"))
        page.set(longest=5)
        page.one(".again").click()
        page.ready()
        assert page.noise() == ([], set())

    def test_a_drawing_has_previews_a_seed_and_its_place_on_the_sheet(self, page, patient):
        page.choose("draw")
        page.set(seed=7, steps=1000, guidance=1.5)
        page.send("a heart")
        page.wait(lambda: page.seen(".drawn img.early"))
        early = page.one(".drawn img").get_attribute("src")
        page.ready()
        drawn = page.one(".drawn img").get_attribute("src")
        assert drawn != early
        with edgemm.load(patient, device="cpu", threads=1) as model:
            wanted = model.generate_image("a heart", seed=7, num_inference_steps=1000, guidance_scale=1.5).image
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.split(",")[1]))))
        assert np.array_equal(pixels, wanted.to_array())
        assert float(page.text("#step")) > 0
        page.one("#sheet button").click()
        facts = page.text("#large-facts")
        assert page.text("#large-words") == "a heart" and "7" in facts and "1000" in facts and "1.5" in facts
        assert page.one("#save").get_attribute("download") == "a-heart-7.png"
        page.driver.execute_script("document.getElementById('seed').value = ''")
        page.one("#reuse").click()
        assert page.one("#words").get_attribute("value") == "a heart"
        assert page.one("#seed").get_attribute("value") == "7"
        assert page.driver.switch_to.active_element == page.one("#words")
        page.one("#send").click()
        page.wait(lambda: len(page.all("#sheet li")) == 2)
        assert page.all(".drawn img")[1].get_attribute("src") == drawn
        assert page.noise() == ([], set())

    def test_a_drawing_is_stopped_and_the_server_is_free(self, page, url):
        page.choose("draw")
        page.set(steps=9000, many=8)
        page.send("a heart")
        page.wait(lambda: page.seen(".drawn img.early"))
        page.press("\ue00c")  # Escape
        page.wait(lambda: "Stopped." in page.text(".note"))
        page.wait(lambda: httpx.get(f"{url}/readyz").json()["running"] == 0, 20)
        assert not page.all("#sheet li") and not page.all("progress")
        assert page.noise() == ([], set())

    def test_pictures_in_a_reply_are_shown_collected_and_sent_back(self, page):
        page.driver.execute_script(
            """
            const real = window.fetch;
            window.sent = [];
            window.fetch = (url, options) => {
                if (!options.body) return real(url, options);
                const response_format = {type: "grammar", grammar: arguments[0]};  // makes any model draw
                sent.push(JSON.parse(options.body));
                return real(url, {...options, body: JSON.stringify({...sent.at(-1), response_format})});
            };""",
            MARKED,
        )
        page.set(longest=200)
        page.one("#pictured").click()
        page.send("hello")
        page.wait(lambda: len(page.all("#sheet li")) == 2)
        page.ready()
        assert page.text(".reply p").startswith("Here: ") and len(page.all(".reply figure img")) == 2
        drawn = page.one(".reply figure img").get_attribute("src")
        page.send("and now?")
        page.ready()
        roles = page.driver.execute_script("return sent.at(-1).messages.map((each) => each.role)")
        assert roles == ["user", "assistant", "user"]
        assert page.driver.execute_script("return sent.at(-1).messages[1].images[0].image_url.url") == drawn
        assert page.noise() == ([], set())

    def test_a_picture_is_attached_shown_and_removed(self, page, tmp_path):
        page.one("#file").send_keys(picture(tmp_path / "square.png"))
        page.wait(lambda: page.all("#attached li"))
        page.one("#attached button").click()
        assert not page.all("#attached li")
        page.one("#file").send_keys(picture(tmp_path / "square.png"))
        page.wait(lambda: page.all("#attached li"))
        page.set(longest=4)
        page.send("What is this?")
        page.ready()
        assert page.one(".asked img").get_attribute("alt") == "square.png" and "4 tokens" in page.text(".note")
        assert page.noise() == ([], set())

    def test_what_is_no_picture_is_told(self, page, tmp_path):
        (tmp_path / "words.txt").write_text("no picture")
        page.one("#file").send_keys(str(tmp_path / "words.txt"))
        page.wait(lambda: "words.txt is not a picture" in page.text("#hint"))

    def test_pictures_are_dropped_and_pasted(self, page):
        page.driver.execute_async_script("""
            const done = arguments[0], canvas = Object.assign(document.createElement("canvas"), {width: 9, height: 9});
            canvas.toBlob((blob) => {
                const drop = [DragEvent, "drop", "dataTransfer"], paste = [ClipboardEvent, "paste", "clipboardData"];
                for (const [kind, name, key] of [drop, paste]) {
                    const given = new DataTransfer();
                    given.items.add(new File([blob], name + ".png", {type: "image/png"}));
                    document.body.dispatchEvent(new kind(name, {[key]: given, bubbles: true, cancelable: true}));
                }
                done();
            });""")
        page.wait(lambda: len(page.all("#attached li")) == 2)
        assert {each.get_attribute("alt") for each in page.all("#attached img")} == {"drop.png", "paste.png"}

    def test_a_model_that_does_not_edit_offers_no_edit(self, page):
        assert not page.one("[name=mode][value=edit] + span").is_displayed()
        assert page.one("[name=mode][value=draw] + span").is_displayed()

    def test_an_error_says_what_to_do(self, page):
        page.choose("draw")
        page.set(steps=50000)
        page.send("a heart")
        page.wait(lambda: page.all(".failed"))
        assert "steps is 50000, expected a whole number from 1 to" in page.text(".failed")
        page.one(".failed button").click()
        assert page.driver.switch_to.active_element == page.one("#steps")
        assert page.one("#words").get_attribute("value") == "a heart"
        page.one("#anew").click()
        assert page.one("#empty").is_displayed()

    def test_the_keyboard_alone_does_it(self, page):
        tab, back, enter, escape = "\ue004", ("\ue008", "\ue004"), "\ue007", "\ue00c"
        within = "return document.activeElement.closest(arguments[0]) !== null"
        page.driver.execute_script("document.activeElement.blur()")
        page.press(tab)
        assert page.driver.switch_to.active_element.text == "Skip to the message box"
        page.press(enter)
        assert page.driver.execute_script(within, "#words")
        page.press(tab)
        page.press("\ue014")  # arrow right: the next mode
        assert page.one("[name=mode][value=draw]").is_selected()
        page.press(*back)
        for count, words in enumerate(("a heart", "a star"), 1):
            page.press(words, enter)
            page.wait(lambda count=count: len(page.all("#sheet li")) == count)
            page.ready()
        for _ in range(9):
            if page.driver.execute_script(within, "#sheet"):
                break
            page.press(*back)
        page.press(enter)
        assert page.one("#large").is_displayed() and page.text("#large-words") == "a heart"
        page.press("\ue014")
        assert page.text("#large-words") == "a star"
        page.press(escape)
        assert not page.one("#large").is_displayed()
        assert page.driver.execute_script(within, "#sheet"), "the focus is lost"

    @pytest.mark.parametrize("width", [360, 1200])
    def test_nothing_is_wider_than_the_screen(self, page, width):
        size = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 500}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        page.choose("draw")
        page.set(steps=2, many=3)
        page.send("a heart " * 30 + "x" * 200)
        page.wait(lambda: len(page.all("#sheet li")) == 3)
        page.ready()
        wide = page.driver.execute_script("""
            const right = (element) => element.getBoundingClientRect().right;
            const strip = document.getElementById("sheet");  // scrolls sideways on a phone
            return [...document.querySelectorAll("body *")]
                .filter((each) => right(each) > document.documentElement.clientWidth + 1 && !strip.contains(each))
                .map((each) => each.outerHTML.slice(0, 80));""")
        assert wide == []
        assert page.driver.execute_script("return document.documentElement.scrollWidth") == width
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_a_picture_is_edited_where_the_model_does_that(driver, tmp_path):
    path = build(tmp_path / "tiny.bundle", loops=Loops(text_loop(), denoise_loop(edits=True)))
    with running(edgemm.serve.app(path)) as url:
        page = Page(driver, f"{url}/")
        page.choose("edit")
        page.send("redder")
        assert "Editing takes one picture" in page.text("#hint")
        page.one("#file").send_keys(picture(tmp_path / "square.png"))
        page.wait(lambda: page.all("#attached li"))
        page.set(seed=3)
        page.one("#send").click()
        page.wait(lambda: page.all("#sheet li"))
        page.ready()
        drawn = page.one(".drawn img").get_attribute("src")
        with edgemm.load(path, device="cpu", threads=1) as model:
            wanted = model.generate_image("redder", image=tmp_path / "square.png", seed=3).image.to_array()
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.split(",")[1])))), wanted)
        page.one("#sheet button").click()
        page.one("#change").click()
        assert page.all("#attached li") and page.one("[name=mode][value=edit]").is_selected()
        assert page.noise() == ([], set())


@pytest.mark.slow
def test_the_size_is_asked_where_there_are_several(driver, bundle, monkeypatch):
    """The tiny model draws one size, which the server says; the field leads back to it."""
    sizes = {"smallest": 8, "largest": 64, "multiple": 8, "most_pixels": None}
    with running(edgemm.serve.app(bundle)) as url:
        page = Page(driver, f"{url}/")
        page.choose("draw")
        page.one("#more").click()
        assert not page.one("#size").is_displayed()
        monkeypatch.setattr("edgemm.serve.registry._sizes", lambda latents: sizes)
        page = Page(driver, f"{url}/")
        page.choose("draw")
        page.set(size="64 x 32", seed=1)
        assert page.one("#size").get_attribute("placeholder") == f"{TINY.draw_size}x{TINY.draw_size}"
        assert "8 to 64, multiples of 8" in page.one("#sizes").get_attribute("textContent")
        page.send("a heart")
        page.wait(lambda: page.seen(".failed"))
        assert "64 x 32" in page.text(".failed")
        page.one(".failed button").click()
        assert page.driver.switch_to.active_element == page.one("#size")
        page.set(size="")
        page.choose("ask")
        assert not page.one("#size").is_displayed()


def asking(url, body):
    """A drawing that is asked for; closing it hangs up."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    open_socket = socket.create_connection((host, int(port)))
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    open_socket.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return open_socket


@pytest.mark.slow
def test_a_queue_is_told_and_a_full_one_says_when_to_ask_again(driver, patient):
    long = {"prompt": "x", "steps": 20_000, "n": 8}
    with running(edgemm.serve.app(patient, max_queue=1)) as url:
        page = Page(driver, f"{url}/")
        others = []
        for count in (1, 2, 3, 4):  # as many as are drawn at once
            others.append(asking(url, long))
            page.wait(lambda count=count: httpx.get(f"{url}/readyz").json()["running"] == count)
        page.choose("draw")
        page.send("a heart")
        page.wait(lambda: "Queued, 1 waiting" in page.text(".note"))
        page.one("#send").click()
        page.wait(lambda: httpx.get(f"{url}/readyz").json()["waiting"] == 0)
        others.append(asking(url, long))
        page.wait(lambda: httpx.get(f"{url}/readyz").json()["waiting"] == 1)
        page.send("a star")
        page.wait(lambda: page.all(".failed"))
        assert "Room is likely in" in page.text(".failed") and not page.all(".again")
        for each in others:
            each.close()
        page.wait(lambda: httpx.get(f"{url}/readyz").json()["running"] == 0)
        page.one(".failed button").click()
        page.wait(lambda: page.all("#sheet li"))


@pytest.mark.slow
def test_a_server_that_is_gone_is_told(driver, bundle):
    with running(edgemm.serve.app(bundle)) as url:
        page = Page(driver, f"{url}/")
    page.send("hello")
    page.wait(lambda: "Is `edgemm serve` still running" in page.text(".failed"))
    assert page.text("#state") == "No answer"


@pytest.mark.slow
def test_adapters_stand_beneath_their_model(driver, bundle):
    with running(edgemm.serve.app(bundle, alias=["tiny:openmoji=tiny"])) as url:  # named as --adapter names them
        page = Page(driver, f"{url}/")
        assert page.one("#model optgroup").get_attribute("label") == "tiny"
        page.one("#model option:nth-child(2)").click()
        assert page.text("#offer").startswith("tiny:openmoji can answer questions")
        page.choose("draw")
        page.send("a heart")
        page.wait(lambda: page.all("#sheet li"))
        page.one("#sheet button").click()
        assert "tiny:openmoji" in page.text("#large-facts")


@pytest.mark.slow
def test_a_key_is_asked_for_and_kept_in_memory_alone(driver, bundle, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    with running(edgemm.serve.app(bundle, api_key_file=str(keys))) as url:
        driver.get(f"{url}/")
        field = driver.find_element("id", "key")
        until = time.monotonic() + 30
        while not field.is_displayed() and time.monotonic() < until:
            time.sleep(0.02)
        field.send_keys("wrong\ue007")
        while "not accepted" not in driver.find_element("id", "locked-why").text and time.monotonic() < until:
            time.sleep(0.02)
        field.send_keys("sesame\ue007")
        while driver.find_element("id", "state").text != "Ready" and time.monotonic() < until:
            time.sleep(0.02)
        assert driver.find_element("id", "state").text == "Ready"
        stored = "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
        assert "sesame" not in driver.execute_script(stored)
        assert not field.is_displayed() and field.get_attribute("value") == ""
