"""Speed of the playground in Chromium: `python benchmarks/bench_playground.py` after `make book`.

A step of both networks is set against its matrix products alone, which take turns with it. Then the CPU of
the page is slowed 4 times, and keys make a choice while the networks train: how long until the page answers?
"""

from __future__ import annotations

import shutil

from playwright.sync_api import Page, sync_playwright

from bookbuild.pdf import BROWSERS
from bookbuild.results import ROOT

PAGE = (ROOT / "_build" / "html" / "book" / "playground.html").as_uri()
SLOWER = 4
KEYS = 20

# Random images: time does not depend on what they show.
TIMES = """({ norms, activation }) => {
  const layers = playgroundLayers();
  const images = (count) => ({
    x: Float32Array.from({ length: 64 * count }, Math.random),
    y: Uint8Array.from({ length: count }, () => 10 * Math.random()),
  });
  const data = { train: images(1347), test: images(450), width: 32 };
  const same = { placement: "before", activation, depth: 4, gain: 1, rate: 0.01, batch: 64, momentum: 0.1 };
  const make = playgroundNetwork(playgroundRandom(), layers);
  const both = norms.map((norm) => make({ ...same, norm }, data, 0));
  const N = 64;
  const products = [0, 1].flatMap(() => [64, 32, 32, 32, 32].map((K, i) => {
    const J = i < 4 ? 32 : 10;
    const values = (size) => Float32Array.from({ length: size }, () => Math.random() - 0.5);
    const [x, w, b, y, dx, dy, dw] = [N * K, J * K, J, N * J, N * K, N * J, J * K].map(values);
    return () => {
      layers.multiply(x, w, b, y, N, K, J);
      layers.product(dy, 1, J, x, dw, J, N, K);
      if (i) layers.product(dy, J, 1, w, dx, N, J, K);
    };
  }));
  const time = (action, times) => {
    const start = performance.now();
    for (let i = 0; i < times; i += 1) action();
    return (performance.now() - start) / times;
  };
  const step = () => both.forEach((network) => network.step());
  const multiply = () => products.forEach((one) => one());
  time(step, 50);
  time(multiply, 50);
  const runs = Array.from({ length: 9 }, () => [time(multiply, 30), time(step, 30)]);
  const median = (values) => values.sort((a, b) => a - b)[4];
  return {
    products: median(runs.map(([alone]) => alone)),
    ratio: median(runs.map(([alone, whole]) => whole / alone)),
  };
}"""

# From the key to the end of what it sets off, as the browser measures it; and the longest tasks.
WATCH = """() => {
  window.answers = [];
  new PerformanceObserver((list) => {
    const keys = list.getEntries().filter((entry) => entry.name === "keydown");
    answers.push(...keys.map((entry) => entry.processingEnd - entry.startTime));
  }).observe({ type: "event", durationThreshold: 16, buffered: false });
  window.tasks = [];
  new PerformanceObserver((list) => tasks.push(...list.getEntries().map((entry) => entry.duration)))
    .observe({ type: "longtask" });
}"""


def ratios(page: Page) -> None:
    """Print the time of a step over that of its matrix products."""
    print(f"{'both networks, depth 4, batch 64':40}{'products':>12}{'step / products':>18}")
    for norms in (("none", "batch"), ("batch", "batch"), ("group", "layer"), ("rms", "rms")):
        for activation in ("relu", "tanh", "sigmoid"):
            found = page.evaluate(TIMES, {"norms": norms, "activation": activation})
            name = f"{' and '.join(norms)}, {activation}"
            print(f"  {name:38}{1000 / found['products']:8.0f} / s{found['ratio']:17.2f}x", flush=True)


def answers(page: Page) -> None:
    """Print how long the page takes to answer a key while it plays, its CPU slowed."""
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    page.locator("select[name=pace]").select_option("fast")
    page.locator("button[name=play]").click()
    page.wait_for_timeout(2000)
    page.evaluate(WATCH)
    knob = page.locator("select[name=test]")
    knob.focus()
    for i in range(KEYS):
        page.wait_for_timeout(150)
        page.keyboard.press("ArrowUp" if i % 2 else "ArrowDown")
    page.wait_for_timeout(500)
    times, tasks = page.evaluate("[answers, tasks]")
    print(f"\nCPU slowed {SLOWER} times, while both networks train as fast as can be")
    print(f"  from a key to its effect: at most {max(times, default=0):.0f} ms in {KEYS} presses")
    print(f"  tasks of over 50 ms: {len(tasks)}{f', the longest {max(tasks):.0f} ms' if tasks else ''}")


def main() -> None:
    """Print both tables."""
    path = next(found for name in BROWSERS if (found := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--headless", "--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(PAGE)
        page.locator(".playground[aria-busy=false]").wait_for(timeout=60_000)
        ratios(page)
        answers(page)
        browser.close()


if __name__ == "__main__":
    main()
