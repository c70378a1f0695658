"use strict";
// The tables: means per category, and all objects, sortable by every column.

// Means per category of one split, the references beside the trained network.
function meansTable(split) {
  const { categories, overall, references } = CONTENT.splits[split];
  const names = metricNames([overall]), table = element("table"), head = table.createTHead().insertRow();
  const compared = "chamfer" in overall ? Object.keys(references) : [];
  const titles = ["category", "objects", ...compared.map(name => name.replaceAll("_", " ")), ...names.map(label)];
  for (const title of titles) head.append(element("th", title));
  names.forEach((name, place) => { head.cells[2 + compared.length + place].title = CONTENT.definitions[name].definition; });
  compared.forEach((name, place) => { head.cells[2 + place].title = "Chamfer × 100 of this reference"; });
  for (const [category, row] of [...Object.entries(categories), ["all", overall]]) {
    const line = table.insertRow();
    if (category === "all") line.className = "all";
    line.insertCell().textContent = category;
    line.insertCell().textContent = row.objects;
    for (const name of compared) {
      const found = category === "all" ? references[name].overall : references[name].categories[category];
      line.insertCell().textContent = shown(found?.chamfer, "chamfer");
    }
    for (const name of names) {
      const cell = line.insertCell();
      cell.textContent = shown(row[name], name);
      if (name === "chamfer") cell.className = "strong";
    }
  }
  return table;
}

class ObjectTable {
  constructor(table, choose) {
    this.table = table;
    this.rows = Object.entries(CONTENT.rows).map(([key, row]) => ({ key, ...row }));
    this.names = metricNames(this.rows);
    const [error, less] = CONTENT.error || ["key", false];
    this.sorting = { name: error, down: less };
    this.filter = "";
    this.heads(table.tHead.insertRow());
    table.tBodies[0].addEventListener("click", event => {
      const line = event.target.closest("tr");
      if (line && line.dataset.key in NUMBER_OF) choose(line.dataset.key);
    });
    this.lines = new Map(this.rows.map(row => [row.key, this.line(row)]));
    this.refresh();
  }

  heads(row) {
    row.append(element("th", ""));
    for (const name of ["key", ...this.names]) {
      const head = element("th", name === "key" ? "object" : label(name), { "data-name": name });
      if (name === "key") head.className = "left";
      else head.title = CONTENT.definitions[name].definition;
      head.onclick = () => {
        const down = this.sorting.name === name ? !this.sorting.down : name !== "key";
        this.sorting = { name, down };
        this.refresh();
      };
      row.append(head);
    }
  }

  line(row) {
    const line = element("tr", undefined, { "data-key": row.key }), picture = line.insertCell(), number = NUMBER_OF[row.key];
    if (number === undefined) line.className = "absent";
    else picture.append(element("img", undefined, { src: CONTENT.objects[number].thumbnail, alt: "", loading: "lazy" }));
    const name = line.insertCell();
    name.className = "left";
    name.textContent = row.key;
    for (const metric of this.names) line.insertCell().textContent = shown(row[metric], metric);
    return line;
  }

  // Keys in the order of the table, filtered.
  order() {
    const { name, down } = this.sorting, words = this.filter.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = this.rows.filter(row => words.every(word => row.key.toLowerCase().includes(word)));
    const compare = (a, b) => (name === "key" ? a.key.localeCompare(b.key) : (a[name] ?? Infinity) - (b[name] ?? Infinity));
    kept.sort((a, b) => (down ? -compare(a, b) : compare(a, b)) || a.key.localeCompare(b.key));
    return kept.map(row => row.key);
  }

  refresh() {
    const keys = this.order();
    this.table.tBodies[0].replaceChildren(...keys.map(key => this.lines.get(key)));
    for (const head of this.table.tHead.rows[0].cells) {
      const chosen = head.dataset.name === this.sorting.name;
      head.setAttribute("aria-sort", chosen ? (this.sorting.down ? "descending" : "ascending") : "none");
    }
    byId("count").textContent = `${keys.length} of ${this.rows.length}`;
  }

  mark(key) {
    for (const [name, line] of this.lines) line.classList.toggle("chosen", name === key);
  }
}
