// What the builders' HTML tells a screen reader, put right.
addEventListener("DOMContentLoaded", () => {
  // Without the attribute the text shown is the name: the search field, cells to unfold.
  for (const element of document.querySelectorAll("summary[aria-label], .search-button-field"))
    element.removeAttribute("aria-label");
  // A list may only have items.
  for (const entry of document.querySelectorAll(".citation-list > .citation"))
    entry.setAttribute("role", "listitem");
});

// What scrolls can be reached, and so scrolled, by keyboard.
const watch = new ResizeObserver((entries) => {
  for (const { target } of entries)
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
});
addEventListener("load", () => {
  for (const figure of document.querySelectorAll(".bd-article figure")) watch.observe(figure);
});
