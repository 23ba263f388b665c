"use strict";
// The table of examples: sorted, searched and shown page by page. Without this, its first rows stand.
(() => {
  const table = document.getElementById("suspicious");
  const { rows, perPage, pictured, across, perSheet } =
    JSON.parse(document.getElementById("examples-data").textContent);
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const columns = heads.filter((head) => head.dataset.column);
  const search = document.getElementById("search"), said = document.getElementById("shown");
  const [back, on] = ["back", "on"].map((id) => document.getElementById(id));
  const words = rows.map((cells) => cells.join("\n").toLowerCase());
  let order = rows.map((_, row) => row), page = 0, sorted = null, down = false;

  const leading = (text) => {
    const found = text.replaceAll("−", "-").match(/-?\d[\d.]*(e[+-]?\d+)?/);
    return found ? Number(found[0]) : NaN;
  };

  const thumb = (row) => {
    const cell = document.createElement("td");
    cell.className = "text";
    if (row < pictured) {
      const span = document.createElement("span"), place = row % perSheet;
      span.className = `thumb sheet${Math.floor(row / perSheet)}`;
      span.style.setProperty("--column", place % across);
      span.style.setProperty("--row", Math.floor(place / across));
      span.setAttribute("role", "img");
      span.setAttribute("aria-label", `picture of rank ${row + 1}`);
      cell.append(span);
    }
    return cell;
  };

  const line = (row) => {
    const found = document.createElement("tr");
    for (const head of heads) {
      if (!head.dataset.column) { found.append(thumb(row)); continue; }
      const cell = document.createElement("td");
      cell.className = head.className;
      cell.dataset.value = cell.textContent = rows[row][columns.indexOf(head)];
      found.append(cell);
    }
    return found;
  };

  const show = () => {
    const pages = Math.max(1, Math.ceil(order.length / perPage));
    page = Math.min(page, pages - 1);
    body.replaceChildren(...order.slice(page * perPage, (page + 1) * perPage).map(line));
    const first = order.length ? page * perPage + 1 : 0;
    const last = Math.min((page + 1) * perPage, order.length);
    const [from, to, all] = [first, last, order.length].map((one) => one.toLocaleString("en"));
    said.textContent = `${from} to ${to} of ${all} examples`;
    back.disabled = page === 0;
    on.disabled = page === pages - 1;
  };

  const choose = () => {
    const asked = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    order = rows.map((_, row) => row).filter((row) => asked.every((word) => words[row].includes(word)));
    if (sorted !== null) {
      const number = columns[sorted].dataset.number === "true", sign = down ? -1 : 1;
      const key = rows.map((cells) => (number ? leading(cells[sorted]) : cells[sorted]));
      // What has no value comes last, whichever way; what is equal stays in the order of the rank.
      const none = (row) => (number ? Number.isNaN(key[row]) : key[row] === "");
      order.sort((a, b) =>
        none(a) - none(b) || (none(a) ? 0 :
        sign * (number ? key[a] - key[b] : key[a].localeCompare(key[b], "en", { numeric: true }))));
    }
    page = 0;
    show();
  };

  columns.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      down = sorted === column && !down;
      sorted = column;
      columns.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      choose();
    });
  });
  search.addEventListener("input", choose);
  back.addEventListener("click", () => { page -= 1; show(); });
  on.addEventListener("click", () => { page += 1; show(); });
  document.getElementById("tools").hidden = false;
  show();
})();

// A link to a part opens it.
(() => {
  const open = () => {
    let name = location.hash.slice(1);
    try { name = decodeURIComponent(name); } catch { return; }
    const part = document.getElementById(name);
    if (part instanceof HTMLDetailsElement) { part.open = true; part.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  // Of a part that was closed again the link changes no hash.
  addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link && link.hash === location.hash) open();
  });
  open();
})();
