"use strict";
// What a page shows more of under the pointer and the keyboard; without it all is still readable.
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const make = (tag, text = "", attributes = {}) => {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

// Cells of a grid say which they are, as points of a plot do.
for (const grid of all("table.grid")) {
  const heads = all("thead th", grid).map((head) => head.textContent.trim());
  for (const row of all("tbody tr", grid)) {
    const name = row.cells[0].textContent.trim();
    for (const cell of [...row.cells].slice(1)) {
      const value = cell.textContent.trim().replace("·", "0"), head = heads[cell.cellIndex];
      if (grid.dataset.unit) cell.dataset.tip = `${name}, ${head}: ${value}${value === "-" ? "" : grid.dataset.unit}`;
      else if (head === "correct") cell.dataset.tip = `true ${name}: ${value} correct`;
      else cell.dataset.tip = `true ${name}, predicted ${head}: ${value}`;
    }
  }
}

// The exact figure of whatever has one, on hover and on focus; Escape hides it.
const tip = make("div", "", { class: "tip", role: "status" });
document.body.append(tip);
const tipFor = (owner) => {
  tip.textContent = owner?.dataset.tip ?? "";
  if (!owner) return;
  const box = owner.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const most = document.documentElement.clientWidth - own.width - 8;
  const above = box.top - own.height - 8;
  tip.style.left = `${Math.max(8, Math.min(most, box.left + box.width / 2 - own.width / 2)) + scrollX}px`;
  tip.style.top = `${(above < 4 ? box.bottom + 8 : above) + scrollY}px`;
};
const nearest = (plot, event) => {
  const far = (point) => {
    const box = point.getBoundingClientRect();
    return Math.hypot(box.left + box.width / 2 - event.clientX, box.top + box.height / 2 - event.clientY);
  };
  const [distance, point] = all("[data-tip]", plot).map((each) => [far(each), each])
    .reduce((best, each) => (each[0] < best[0] ? each : best), [24]);
  return point;
};
document.addEventListener("pointermove", (event) => {
  const owner = event.target.closest?.("[data-tip]"), plot = event.target.closest?.(".plot");
  tipFor(owner ?? (plot && nearest(plot, event)));
});
document.addEventListener("focusin", (event) => tipFor(event.target.closest("[data-tip]")));
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tipFor(null); });

// Things side by side are one stop of the Tab key; arrows go from one to the next.
const rove = (holder, things) => {
  for (const thing of things) thing.setAttribute("tabindex", "-1");
  things.at(holder.matches("svg") ? -1 : 0)?.setAttribute("tabindex", "0");
  holder.addEventListener("keydown", (event) => {
    const seen = things.filter((each) => each.checkVisibility()), at = seen.indexOf(event.target);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const to = seen[{ Home: 0, End: seen.length - 1 }[event.key] ?? at + step];
    if (at < 0 || !to) return;
    event.preventDefault();
    for (const thing of things) thing.setAttribute("tabindex", thing === to ? "0" : "-1");
    to.focus();
  });
};
for (const plot of all(".plot, .ladder")) {
  const points = all("[data-tip]", plot);
  if (!points.length) continue;
  plot.setAttribute("role", "group");
  for (const point of points) {
    if (!point.matches("a")) point.setAttribute("role", "img");
    point.setAttribute("aria-label", point.dataset.tip);
  }
  rove(plot, points);
}

// An image is enlarged, with its file, and what each rung predicts of it; arrows lead to the next.
const dialog = make("dialog", "", { "aria-labelledby": "enlarged" });
document.body.append(dialog);
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
const enlarge = (tile, tiles) => {
  const holder = tile.closest("[data-case]") ?? tile, row = document.getElementById(`case-${holder.dataset.case}`);
  const picture = tile.cloneNode(true);
  for (const name of ["tabindex", "data-case", "data-tip"]) picture.removeAttribute(name);
  picture.setAttribute("role", "img");
  const seen = tiles.filter((each) => each === tile || each.checkVisibility()), at = seen.indexOf(tile);
  const buttons = make("p", "", { class: "tools" });
  const offer = (text, act) => {
    const button = make("button", text, { type: "button" });
    button.addEventListener("click", act);
    buttons.append(button);
  };
  const go = (to) => { if (seen[to]) enlarge(seen[to], seen); };
  if (seen[at - 1]) offer("Previous", () => go(at - 1));
  if (seen[at + 1]) offer("Next", () => go(at + 1));
  offer("Close", () => dialog.close());
  dialog.onkeydown = (event) => go(at + ({ ArrowRight: 1, ArrowLeft: -1 }[event.key] ?? seen.length));
  dialog.replaceChildren(make("h2", row ? row.cells[0].textContent : tile.getAttribute("aria-label"), { id: "enlarged" }), picture);
  if (row) {
    const table = make("table");
    [...row.closest("table").tHead.rows[0].cells].forEach((head, i) => {
      if (!i) return;
      const line = table.insertRow();
      line.append(make("th", i === 1 ? "true class" : head.textContent, { scope: "row" }));
      line.append(make("td", row.cells[i].textContent, { class: row.cells[i].className }));
    });
    dialog.append(table);
  }
  dialog.append(buttons);
  if (!dialog.open) dialog.showModal();
  buttons.lastChild.focus();
};
for (const holder of all(".tiles, .samples")) {
  const tiles = all(".tile", holder);
  for (const tile of tiles) tile.setAttribute("role", "button");
  rove(holder, tiles);
  holder.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) enlarge(tile, tiles);
  });
  holder.addEventListener("keydown", (event) => {
    if (!["Enter", " "].includes(event.key) || !event.target.matches(".tile")) return;
    event.preventDefault();
    enlarge(event.target, tiles);
  });
}

// Mistakes are filtered by true and predicted class, from a cell of the confusion matrix too.
const SHOWN = 24;
for (const grid of all("table.confusion")) {
  const rung = grid.closest("details"), holder = rung.querySelector(".mistakes");
  if (!holder) continue;
  const figures = all("figure", holder), names = new Map();
  for (const each of figures) {
    const [truth, predicted] = each.dataset.pair.split(" "), said = all("b", each);
    names.set(truth, said[0].textContent).set(predicted, said[1].textContent);
  }
  const select = (label, options) => {
    const chosen = make("select");
    for (const [value, text] of options) chosen.append(make("option", text, { value }));
    const named = make("label", `${label} `);
    named.append(chosen);
    tools.append(named);
    chosen.addEventListener("change", show);
    return chosen;
  };
  const classes = [["", "all"], ...[...names].sort((a, b) => a[0] - b[0])];
  const told = make("output"), tools = make("div", "", { class: "tools" });
  const truth = select("true", classes), predicted = select("predicted", classes);
  const order = select("in order of", [["", "how sure"], ["0", "true class"], ["1", "predicted class"]]);
  const more = make("button", "Show all", { type: "button" });
  more.addEventListener("click", () => { more.hidden = true; show(); });
  tools.append(more, told);
  holder.before(tools);
  function show() {
    const fits = (each) => {
      const pair = each.dataset.pair.split(" ");
      return [truth, predicted].every((one, i) => !one.value || one.value === pair[i]);
    };
    const key = (each) => each.dataset.pair.split(" ")[order.value];
    const sorted = order.value ? [...figures].sort((a, b) => key(a) - key(b)) : figures;
    holder.append(...sorted);
    const found = sorted.filter(fits), few = !more.hidden && !truth.value && !predicted.value;
    for (const each of figures) each.hidden = true;
    for (const each of few ? found.slice(0, SHOWN) : found) each.hidden = false;
    const of = truth.value && predicted.value && grid.querySelector(`[data-pair="${truth.value} ${predicted.value}"]`);
    told.textContent = `${few ? Math.min(SHOWN, found.length) : found.length} of ${of ? of.textContent : figures.length} shown`;
  }
  more.hidden = figures.length <= SHOWN;
  show();
  const cells = all("[data-pair]", grid);
  const buttons = cells.map((cell) => {
    const button = make("button", cell.textContent, { type: "button", "aria-label": `${cell.dataset.tip}; show them` });
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      [truth.value, predicted.value] = cell.dataset.pair.split(" ");
      show();
      tools.scrollIntoView({ block: "center" });
    });
    return button;
  });
  rove(grid, buttons);
}

// A table that goes on to the right looks cut there.
const mark = (each) => each.classList.toggle("cut", each.scrollLeft + each.clientWidth < each.scrollWidth - 2);
for (const each of all(".scroll")) {
  each.addEventListener("scroll", () => mark(each));
  new ResizeObserver(() => mark(each)).observe(each);
}

// A link to a part that is folded unfolds it.
const unfold = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (!target || !target.matches("details")) return;
  target.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();
