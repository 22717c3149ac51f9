// What the builders' HTML tells a screen reader, put right.
addEventListener("DOMContentLoaded", () => {
  // Without the attribute the text shown is the name: the search field, cells to unfold.
  for (const element of document.querySelectorAll("summary[aria-label], .search-button-field"))
    element.removeAttribute("aria-label");
  // A list may only have items.
  for (const entry of document.querySelectorAll(".citation-list > .citation"))
    entry.setAttribute("role", "listitem");
});

addEventListener("load", () => {
  // What scrolls can be reached, and so scrolled, by keyboard.
  for (const figure of document.querySelectorAll(".bd-article figure"))
    if (figure.scrollWidth > figure.clientWidth) figure.tabIndex = 0;
});
