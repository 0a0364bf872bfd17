// Tables.
// They can be sorted: a click on the head of a column sorts by it, a second one turns the order round, a third restores the first order.
const UNITS = {k: 1e3, M: 1e6, B: 1e9, s: 1, min: 60, h: 3600};

// "+0.1285 [+0.1095, +0.1476]" -> 0.1285, "2.040M" -> 2040000, "2.10 h" -> 7560; words -> NaN
function number(text) {
  const m = text.replace(/\u2212/g, "-").match(/^([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s?(k|M|B|s|min|h)?(?=\s|%|$)/i);
  return m ? parseFloat(m[1].replaceAll(",", "")) * (UNITS[m[2]] ?? 1) : NaN;
}

function sortable(table) {
  const heads = [...table.querySelectorAll("thead th")], body = table.tBodies[0], rows = [...body?.rows ?? []];
  if (table.tHead?.rows.length !== 1 || heads.every(h => !h.textContent.trim()) || rows.length < 3 || rows.some(r => r.cells.length !== heads.length)) return;
  heads.forEach((head, column) => {
    const value = row => row.cells[column].textContent.trim(), blank = v => /^(–|-|nan|none)?$/i.test(v);
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    if (!button.textContent.trim()) button.ariaLabel = "Sort by this column";
    button.onclick = () => {
      const order = {ascending: "descending", descending: null}[head.ariaSort] ?? (head.ariaSort ? null : "ascending");
      const numeric = rows.every(r => blank(value(r)) || !isNaN(number(value(r)))), sign = order === "descending" ? -1 : 1;
      heads.forEach(h => h.ariaSort = h === head ? order : null);
      body.append(...(order ? rows.toSorted((r, s) => {
        const [a, b] = [value(r), value(s)];
        return blank(a) - blank(b) || sign * (numeric ? number(a) - number(b) : a.localeCompare(b, "en", {numeric: true}));
      }) : rows));
    };
  });
  table.classList.add("sortable");
}

// An interval "[+0.1095, +0.1476]" may stand below its mean, but is never broken.
function whole(cell) {
  const says = [...cell.childNodes].at(-1), m = says?.nodeType === 3 && says.data.match(/\[[^\]]+\]\s*$/);
  if (!m) return;
  const span = Object.assign(document.createElement("span"), {className: "interval"});
  span.append(says.splitText(m.index));
  cell.append(span);
}

// The box in which a table is pushed aside: the nearest one around it that scrolls.
function pushed(table) {
  for (let box = table.parentElement; box && box.localName !== "article"; box = box.parentElement)
    if (/auto|scroll/.test(getComputedStyle(box).overflowX)) return box;
}

// Where a table goes on beyond the edge, the edge is soft, a bar shows it, and arrow keys push the table aside.
function cue(box) {
  const look = () => {
    const wide = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("wide", wide);
    box.classList.toggle("more", wide && box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
    if (wide) box.tabIndex = 0;
  };
  box.addEventListener("scroll", look, {passive: true});
  new ResizeObserver(look).observe(box);
  new ResizeObserver(look).observe(box.querySelector("table"));
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("article :is(td, th).text-right, article :is(td, th).text-right p").forEach(whole);
  document.querySelectorAll("article table").forEach(sortable);
  new Set([...document.querySelectorAll("article table")].map(pushed).filter(Boolean)).forEach(cue);
});
