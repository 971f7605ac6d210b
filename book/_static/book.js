// Pages are also opened from the file system, where a page may not fetch another one: the search then
// shows titles only, without the summaries that it would fetch.
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// What scrolls in itself can be scrolled with the keyboard. A formula gets its width when it comes into view.
function focusWhatScrolls(entries) {
  for (const { target } of entries) {
    for (const element of [target, ...target.querySelectorAll("mjx-container")]) {
      if (element.scrollWidth > element.clientWidth && element.clientWidth > 0) element.tabIndex = 0;
      else if (element.tabIndex === 0) element.removeAttribute("tabindex");
    }
  }
}

document.addEventListener("DOMContentLoaded", () => {
  // The theme leaves the book's title outside of all landmarks.
  document.querySelector(".bd-sidebar-primary")?.setAttribute("role", "complementary");
  document.querySelector(".bd-sidebar-primary")?.setAttribute("aria-label", "Book");
  // The bibliography's entries have a role that ARIA has dropped.
  for (const entry of document.querySelectorAll(".citation-list, .citation-list [role]")) {
    entry.removeAttribute("role");
  }
});
window.addEventListener("load", () => {
  const observer = new ResizeObserver(focusWhatScrolls);
  for (const element of document.querySelectorAll("article .math, article pre, article table")) observer.observe(element);
});
