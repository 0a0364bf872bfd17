// A browser does not let a page that is opened from a folder read its neighbours, and the search would show no lines around a word. There it takes them from texts.js.
if (location.protocol === "file:" && location.pathname.endsWith("/search.html")) {
  const texts = new Promise(given => { window.texts = given; });
  document.head.append(Object.assign(document.createElement("script"), {src: "_static/texts.js"}));
  window.fetch = async url => ({text: async () => {
    const main = document.createElement("div");
    main.setAttribute("role", "main");
    main.textContent = (await texts)[url.replace(/^(\.?\/)*|\.html.*$/g, "")] ?? "";
    return main.outerHTML;
  }});
}

// Sphinx searches for the stem of a word ("rotari"), which the text need not contain: the lines around it are looked for by as much of the stem as it does.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const around = Search.makeSearchSummary;
  Search.makeSearchSummary = (html, words, anchor) => {
    const text = Search.htmlToText(html, anchor).toLowerCase(), part = w => w.length < 4 || text.includes(w) ? w : part(w.slice(0, -1));
    return around(html, new Set([...words].map(part)), anchor);
  };
});
