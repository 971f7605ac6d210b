"""The playground in Chromium: its arithmetic against the package, its knobs by keyboard, its manners."""

import re
from typing import NamedTuple
from urllib.parse import parse_qsl

import numpy as np
import pytest
from browser import HTML, violations

from bnbook import data, training
from bookbuild.playground_data import KNOBS, STORIES, Settings, network, swept, train
from bookbuild.slider_data import PLAYGROUND

PAGE = "book/playground.html"
ARRIVES_MS = 60_000  # on a machine that does other things too


class Driver:
    """The playground on an open page."""

    def __init__(self, page):
        self.page = page
        self.settled()

    def settled(self, steps=None):
        """Wait until nothing moves and the summary tells the step."""
        wanted = "" if steps is None else f"{steps}."
        self.page.wait_for_function(
            """wanted => document.querySelector("button[name=play]")?.textContent === "Play"
              && document.querySelector(".playground").getAttribute("aria-busy") === "false"
              && document.querySelector(".playground-summary").textContent.startsWith(`Step ${wanted}`)""",
            arg=wanted,
            timeout=ARRIVES_MS,
        )

    def press(self, name):
        self.page.locator(f"button[name={name}]").press("Enter")

    def text(self, name):
        return self.page.locator(f"output[name={name}]").text_content()

    def address(self):
        return dict(parse_qsl(self.page.url.partition("#")[2]))

    def summary(self):
        return self.page.locator(".playground-summary").text_content()

    def knob(self, side, name):
        return self.page.locator(f".playground-side[aria-label='Network {side}'] [name={name}]")

    def turn(self, side, name, key):
        """Turn a knob with the keyboard, and wait for the new network."""
        self.knob(side, name).focus()
        self.page.keyboard.press(key)
        self.settled(0)


@pytest.fixture
def playground(open_page):
    """Open the playground, with settings in the address."""

    def open_playground(address="", **settings):
        page = open_page(f"{PAGE}", **settings)
        if address:  # by way of another page: this one may just be writing its own address
            url = page.url.partition("#")[0]
            page.goto("about:blank")
            page.goto(f"{url}#{address}")
        return Driver(page)

    return open_playground


def digit(text):
    """The number in a text."""
    return float(re.search(r"-?[0-9.]+(e-?[0-9]+)?", text.replace("−", "-"))[0])


# --------------------------------------------------------------------------- the arithmetic

# Trains a network on the page's main thread, with the functions whose text the worker gets.
TRAIN = """({ settings, seed, steps }) => {
  const network = playgroundNetwork(playgroundRandom(), playgroundLayers());
  const net = network(settings, window.digits, seed);
  const losses = Array.from({ length: steps }, () => net.step());
  const accuracy = { running: net.accuracy("running"), batch: net.accuracy("batch") };
  const seen = net.observe();
  return {
    losses, accuracy, diverged: net.diverged, shares: seen.map((layer) => layer.share),
    running: net.norms.filter((norm) => norm.runningMean)
      .map((norm) => [[...norm.runningMean], [...norm.runningVar]]),
    gradients: net.linears.map(({ weight }) => Math.hypot(...weight.gradient)),
  };
}"""
GIVE_DIGITS = """({ x_train, y_train, x_test, y_test }) => {
  const part = (x, y) => ({ x: Float32Array.from(x, (value) => value / 16), y: Uint8Array.from(y) });
  window.digits = { train: part(x_train, y_train), test: part(x_test, y_test), width: 32 };
}"""


@pytest.fixture(scope="module")
def computing(chromium):
    """A page that trains networks at a test's request."""
    page = chromium.new_page()
    page.goto((HTML / PAGE).as_uri())
    digits = data.digits()._asdict()
    page.evaluate(
        GIVE_DIGITS,
        {k: (v * 16 if k[0] == "x" else v).ravel().astype(int).tolist() for k, v in digits.items()},
    )
    yield page
    page.close()


def steps_of(settings):
    """How many steps are compared: 50, but where rounding errors explode in the package itself.

    A unit that is almost dead has a tiny deviation; behind a ReLU, batch and group norm divide by it. There
    float32 and float64 part within ten steps.
    """
    behind_relu = settings.placement == "after" and settings.activation == "relu"
    return 1 if behind_relu and settings.norm in ("batch", "group") else 50


CASES = [
    Settings(norm, placement, activation, depth=3)
    for norm in KNOBS["norm"]["values"]
    for activation in KNOBS["activation"]["values"]
    for placement in (("before", "after") if norm != "none" else ("before",))
]
CASES += [
    Settings("batch", "before", "relu", depth=2, batch=256, momentum=0.3),
    Settings("batch", "before", "tanh", depth=1, gain=5, rate=0.02, batch=32, momentum=0.001),
    Settings("group", "before", "relu", depth=8, rate=0.05, batch=4),
    Settings("none", "before", "sigmoid", depth=2, gain=5, rate=0.05, batch=2),
]


@pytest.mark.parametrize("settings", CASES, ids=lambda settings: "-".join(map(str, settings)))
def test_the_page_computes_what_the_package_computes(computing, settings):
    steps = steps_of(settings)
    expected = train(settings, seed=0, steps=steps)
    found = computing.evaluate(TRAIN, {"settings": settings._asdict(), "seed": 0, "steps": steps})
    close = {"rtol": 1e-4, "atol": 0}
    np.testing.assert_allclose(found["losses"], expected.losses, **close)
    np.testing.assert_allclose(found["gradients"], expected.gradients, **close)
    for ours, theirs in zip(found["running"], expected.running, strict=True):
        # A mean may be 0 to rounding: measured against the unit's deviation.
        deviation = np.sqrt(theirs[1])
        np.testing.assert_allclose(ours[0] / deviation, theirs[0] / deviation, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours[1], theirs[1], **close)
    assert found["accuracy"] == pytest.approx(expected.accuracy, abs=1.1 / 450)  # one image on the fence
    np.testing.assert_allclose(found["shares"], expected.shares, atol=2e-3)


def test_another_seed_draws_the_weights_and_the_order_that_the_package_draws(computing):
    for seed in (1, 12345, 2**31):
        expected = train(Settings(batch=256), seed, steps=7)  # into the second epoch
        found = computing.evaluate(
            TRAIN, {"settings": Settings(batch=256)._asdict(), "seed": seed, "steps": 7}
        )
        np.testing.assert_allclose(found["losses"], expected.losses, rtol=1e-5)


def test_divergence_stops_at_the_step_at_which_the_package_stops(computing):
    settings = Settings(rate=10, gain=10)
    (diverged,) = training.sweep(network, data.digits(), steps=50, seeds=1, **swept(settings)).diverged
    found = computing.evaluate(TRAIN, {"settings": settings._asdict(), "seed": 0, "steps": 50})
    assert np.isfinite(found["losses"]).argmin() == found["diverged"] == diverged


# --------------------------------------------------------------------------- what is shown


def gradient(page, side, layer):
    return digit(page.text(f"{side}-gradient-{layer}"))


# What the sentences of a story say, read from the page at its end. Its digits may differ from the package's
# by then: rounding errors grow.
SAYS = {
    "sigmoid": lambda a, b: a.loss > 2.2 and a.accuracy < 25 and b.accuracy > 90,
    "rate": lambda a, b: (a.diverged or a.loss > 2.2) and b.accuracy > 90,
    "weights": lambda a, b: a.accuracy > 90 and b.accuracy > 90,
    "two": lambda a, b: a.loss > 2 and a.accuracy < 40 and b.accuracy > 60,
    "lag": lambda a, b: a.loss == b.loss and 100 - a.accuracy > 2 * (100 - b.accuracy),
    "depth": lambda a, b: b.accuracy > a.accuracy,
}


class Shown(NamedTuple):
    """The numbers of one network."""

    loss: float
    accuracy: float
    diverged: bool


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_story_plays_to_its_end_and_shows_what_it_says(playground, story, seed):
    page = playground(f"story={story.name}&seed={seed}")
    assert page.page.locator("button[aria-pressed=true]").text_content() == story.title
    assert story.watch in page.page.locator(".playground-story").text_content()
    if story.name == "depth":
        assert gradient(page, "A", 1) < 3 * gradient(page, "A", 8)
        assert gradient(page, "B", 1) > 4 * gradient(page, "B", 8)
    page.page.locator("select[name=pace]").select_option("fast")
    page.press("play")
    page.settled(story.steps)
    shown = []
    for side in "AB":
        diverged = page.text(f"{side}-loss") == "diverged"
        loss = np.nan if diverged else digit(page.text(f"{side}-loss"))
        shown.append(Shown(loss, digit(page.text(f"{side}-accuracy")), diverged))
    assert SAYS[story.name](*shown), page.summary()
    assert page.page.faults == []


def test_the_other_statistics_of_the_test_cure_the_lag(playground):
    page = playground("story=lag&steps=100")
    page.settled(100)
    lagging, current = digit(page.text("A-accuracy")), digit(page.text("B-accuracy"))
    assert 100 - lagging > 2 * (100 - current)
    page.page.locator("select[name=test]").focus()
    page.page.keyboard.press("ArrowDown")
    assert page.text("A-accuracy") == page.text("B-accuracy")
    assert digit(page.text("A-accuracy")) > 85
    assert page.address()["test"] == "batch"


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("name", KNOBS)
def test_the_keyboard_turns_each_knob_and_the_network_follows(playground, side, name):
    page = playground("story=depth&A.norm=batch&steps=20")
    page.settled(20)
    before = page.address()
    other = "B" if side == "A" else "A"
    values = [str(value) for value in KNOBS[name]["values"]]
    last = values.index(before[f"{side}.{name}"]) == len(values) - 1
    key = {True: ("ArrowUp", "ArrowLeft"), False: ("ArrowDown", "ArrowRight")}[last][
        "names" not in KNOBS[name]
    ]
    page.turn(side, name, key)
    after = page.address()
    wanted = values[values.index(before[f"{side}.{name}"]) + (-1 if last else 1)]
    assert after == {**before, f"{side}.{name}": wanted, "steps": "0"}
    settings = {knob: after[f"{side}.{knob}"] for knob in KNOBS}
    numbers = {k: v if "names" in KNOBS[k] else float(v) for k, v in settings.items()}
    numbers |= {"depth": int(numbers["depth"]), "batch": int(numbers["batch"])}
    expected = train(Settings(**numbers), 0, 0)
    shown = [digit(page.text(f"{side}-gradient-{i + 1}")) for i in range(numbers["depth"])]
    assert shown == pytest.approx(expected.gradients[:-1], rel=0.06)
    assert page.page.locator(f"output[name^={other}-gradient]").count() == int(after[f"{other}.depth"])


def test_a_turn_of_a_knob_leaves_the_old_curves_pale_and_a_story_takes_them_away(playground):
    page = playground("steps=40")
    page.settled(40)
    pale = (
        "[...document.querySelectorAll('.curve.before')].map((curve) => curve.getAttribute('points') ?? '')"
    )
    assert set(page.page.evaluate(pale)) <= {""}
    page.turn("A", "gain", "ArrowRight")
    assert all(page.page.evaluate(pale))
    page.press("story-rate")
    page.settled(0)
    assert set(page.page.evaluate(pale)) == {""}


def test_while_it_runs_nothing_is_told_of_where_it_stood(playground):
    page = playground()
    page.settled(0)
    assert page.summary().startswith("Step 0.")
    page.press("play")
    assert page.summary() == ""
    page.settled(300)
    assert page.summary().startswith("Step 300.")


def test_copying_a_side_leaves_one_knob_to_turn(playground):
    page = playground("story=two")
    page.press("copy-B")
    page.settled(0)
    address = page.address()
    assert {address[f"A.{knob}"] == address[f"B.{knob}"] for knob in KNOBS} == {True}
    assert page.text("A-name").removeprefix("A") == page.text("B-name").removeprefix("B")


def test_a_step_a_reset_and_another_seed(playground):
    page = playground()
    page.press("step")
    page.settled(1)
    expected = train(STORIES[0].b, 0, 1).losses[0]
    assert digit(page.text("B-loss")) == pytest.approx(expected, rel=0.06)
    page.press("another")
    page.settled(0)
    assert page.text("seed") == "seed 1"
    page.press("step")
    page.settled(1)
    page.press("reset")
    page.settled(0)
    assert page.text("B-loss") == "–"
    assert page.address()["seed"] == "1"


def test_the_address_brings_a_state_back(playground):
    first = playground("story=rate&B.rate=0.5&B.depth=2&seed=3&steps=40&test=batch")
    first.settled(40)
    second = playground(first.page.url.partition("#")[2])
    second.settled(40)
    assert second.summary() == first.summary()
    assert second.address() == first.address()
    assert (
        second.address() | {"B.rate": "0.5", "B.depth": "2", "seed": "3", "test": "batch"} == second.address()
    )


def test_an_address_that_asks_for_what_there_is_not_says_so(playground):
    page = playground("A.depth=99&B.norm=magic&story=none")
    problem = page.page.locator(".playground-problem").text_content()
    assert all(part in problem for part in ("A.depth=99", "B.norm=magic", "story=none"))
    assert page.page.faults == []


def test_divergence_is_said_and_the_other_network_goes_on(playground):
    page = playground("story=rate&A.rate=10&A.gain=10&steps=60")
    page.settled(60)
    assert "A (plain) diverged at step" in page.summary()
    assert page.text("A-loss") == "diverged"
    assert digit(page.text("B-accuracy")) > 50


# --------------------------------------------------------------------------- manners


def test_nothing_moves_by_itself(playground):
    page = playground()
    before = page.page.locator(".playground").inner_html()
    page.page.wait_for_timeout(500)
    assert page.page.locator(".playground").inner_html() == before
    assert page.page.evaluate("document.getAnimations().length") == 0


def test_with_reduced_motion_there_is_one_picture_a_second(playground):
    page = playground()  # the browser of the tests asks for little motion
    page.page.evaluate(
        """() => {
          window.pictures = new Set();
          const steps = document.querySelector("output[name=steps]");
          const observer = new MutationObserver(() => pictures.add(steps.value));
          observer.observe(steps, { childList: true, subtree: true });
        }"""
    )
    page.press("play")
    page.page.wait_for_timeout(2500)
    page.press("play")
    assert 1 <= page.page.evaluate("pictures.size") <= 4


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_it_fits_the_window_and_axe_finds_nothing(playground, theme, width):
    page = playground("story=depth&steps=30", width=width, theme=theme)
    page.settled(30)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    for control in page.page.locator(".playground :is(input, select, button)").all():
        box = control.bounding_box()
        assert min(box["width"], box["height"]) >= 24, "too small for a finger"
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    parts = ".playground-layers :is(td, th, output, svg)"
    cut_off = f"""[...document.querySelectorAll("{parts}")].filter((part) =>
      part.getBoundingClientRect().right > part.closest(".playground-side").getBoundingClientRect().right)"""
    assert page.page.evaluate(f"{cut_off}.length") == 0
    assert page.page.faults == []
    assert not violations(page.page, "figure.slider")


def test_without_a_script_there_is_a_picture_of_the_first_story(open_page):
    figure = open_page(PAGE, java_script=False).locator("figure.slider")
    assert figure.locator("img").is_visible()
    assert len(figure.locator("img").get_attribute("alt")) > 40
    assert figure.locator("figcaption").is_visible()
    assert figure.locator("button").count() == 0


def test_it_weighs_at_most_200_kb_with_its_data():
    html = (HTML / PAGE).read_text("utf-8")
    embedded = html.partition('data-slider="playground">')[2].partition("</script>")[0]
    files = ["sliders/slider.js", "sliders/slider.css", "playground/playground.css", *PLAYGROUND]
    weights = {file: (HTML / "_static" / file).stat().st_size for file in files}
    assert len(embedded.encode()) > 10_000
    assert sum(weights.values()) + len(embedded.encode()) <= 200_000


def test_each_story_leads_to_a_chapter_that_exists(playground):
    page = playground()
    for story in STORIES:
        page.press(f"story-{story.name}")
        link = page.page.locator(".playground-story a").get_attribute("href")
        assert (HTML / "book" / link).is_file()
