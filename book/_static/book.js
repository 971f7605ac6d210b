// Pages are also opened from the file system, where a page may not fetch another one: the search then
// shows titles only, without the summaries that it would fetch.
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// What scrolls in itself can be scrolled with the keyboard.
function focusWhatScrolls(boxes) {
  for (const box of boxes) {
    for (const element of [box, ...box.querySelectorAll("mjx-container")]) {
      if (element.scrollWidth > element.clientWidth && element.clientWidth > 0) element.tabIndex = 0;
      else if (element.tabIndex === 0) element.removeAttribute("tabindex");
    }
  }
}

// A figure offers its number to cite: a button shows the reference, and copies it where the browser lets it.
function offerCitation(figure) {
  const number = figure.querySelector("figcaption .caption-number")?.textContent.trim();
  if (!number || !figure.id) return;
  const about = (name) => document.querySelector(`meta[name="citation_${name}"]`).content;
  const page = document.querySelector('link[rel="canonical"]')?.href ?? location.href.split("#")[0];
  // The address of a file on this machine would lead nobody else anywhere.
  const where = page.startsWith("http") ? `${page}#${figure.id}` : `figure ${figure.id}`;
  const year = about("publication_date");
  const reference = `${number} of “${about("title")}”, in: ${about("inbook_title")}, ${year}. ${where}`;
  const shown = Object.assign(document.createElement("span"), { className: "citation", hidden: true });
  shown.setAttribute("role", "status");
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Cite" });
  button.className = "cite";
  button.setAttribute("aria-label", `Cite ${number}`);
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", async () => {
    shown.hidden = !shown.hidden;
    button.setAttribute("aria-expanded", String(!shown.hidden));
    shown.textContent = shown.hidden ? "" : reference;
    if (shown.hidden || !navigator.clipboard) return;
    await navigator.clipboard.writeText(reference).then(() => shown.append(" (copied)"), () => undefined);
  });
  const caption = figure.querySelector("figcaption");
  (caption.querySelector("p") ?? caption).append(" ", button);
  caption.append(shown);
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("article figure").forEach(offerCitation);
  // The theme leaves the book's title outside of all landmarks.
  document.querySelector(".bd-sidebar-primary")?.setAttribute("role", "complementary");
  document.querySelector(".bd-sidebar-primary")?.setAttribute("aria-label", "Book");
  // A label hides what one reads on it from who speaks to the page.
  for (const labelled of document.querySelectorAll("details.hide > summary, .search-button-field")) {
    labelled.removeAttribute("aria-label");
  }
  // The bibliography's entries have a role that ARIA has dropped.
  for (const entry of document.querySelectorAll(".citation-list, .citation-list [role]")) {
    entry.removeAttribute("role");
  }
});
// Paper cannot be unfolded. Hidden code stays hidden; what was closed is closed again.
let unfolded = [];
window.addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("article details:not(.hide, [open])")];
  for (const fold of unfolded) fold.open = true;
});
window.addEventListener("afterprint", () => {
  for (const fold of unfolded) fold.open = false;
});
window.addEventListener("load", () => {
  const resized = new ResizeObserver((entries) => focusWhatScrolls(entries.map(({ target }) => target)));
  for (const element of document.querySelectorAll("article div.math, article pre, article table")) resized.observe(element);
  // A formula is set when it comes near the window, and its box may keep its size.
  const set = new MutationObserver((records) => {
    const formulas = new Set(records.map(({ target }) => target.closest("div.math")));
    formulas.delete(null);
    focusWhatScrolls(formulas);
  });
  set.observe(document.body, { childList: true, subtree: true });
});
