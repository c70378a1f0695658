"use strict";
// Puts the page together, and holds what is being looked at.

const state = { key: null, view: 0, positions: null };

function start() {
  const { head, order, objects } = CONTENT;
  byId("title").textContent = `${head.run}: ${head.split}`;
  byId("facts").textContent = `${head.data} · after ${head.step} steps · ${head.points} points · seed ${head.seed} · ` +
    `drwr_dist ${head.version} · ${head.written}` + (CONTENT.poses ? ` · ${posesText(CONTENT.poses)}` : "");
  for (const name of Object.keys(CONTENT.splits)) byId("splits").append(element("button", name, { "data-value": name }));
  if (byId("splits").children.length < 2) byId("splits").hidden = true;
  const means = split => byId("means").replaceChildren(meansTable(split));
  choice(byId("splits"), head.split, means);
  means(head.split);

  const viewer = new Viewer(byId("viewer")), table = new ObjectTable(byId("objects"), key => choose(key));
  const choose = (key, view = 0) => look(viewer, table, key, view, choose);
  controls(viewer, table, choose);
  cards("best", order.filter(key => key in NUMBER_OF).slice(0, 6), choose);
  cards("worst", order.filter(key => key in NUMBER_OF).slice(-6).reverse(), choose);
  const left = Object.keys(CONTENT.rows).length - objects.length;
  byId("partial").textContent = left ? `${left} of them, of middling error, have no shape in this file.` : "";
  definitions();
  if (objects.length) choose(order.filter(key => key in NUMBER_OF)[Math.floor(objects.length / 2)]);
  byId("learning").hidden = !CONTENT.curves.length;
  // The shape first: curves are further down.
  requestAnimationFrame(() => {
    document.body.dataset.ready = String(Math.round(performance.now()));
    setTimeout(() => drawCurves(false));
  });
}

function posesText(poses) {
  return `cameras predicted: median rotation error ${poses.rotation_error_median.toFixed(1)}°`;
}

function look(viewer, table, key, view, choose) {
  const number = NUMBER_OF[key], entry = CONTENT.objects[number], clouds = decode(entry, number, view);
  Object.assign(state, { key, view, positions: clouds.prediction.positions });
  viewer.load(clouds);
  for (const button of [...byId("show").children, byId("colour").lastElementChild]) {
    button.disabled = !clouds.truth && ["truth", "both", "beside", "distance"].includes(button.dataset.value);
  }
  byId("key").textContent = key;
  table.mark(key);
  const row = CONTENT.rows[key], boxes = metricNames([row]).map(name => {
    const box = element("div", undefined, { title: CONTENT.definitions[name].definition });
    box.append(element("b", shown(row[name], name)), label(name));
    return box;
  });
  byId("about").replaceChildren(...boxes);
  Object.assign(byId("viewer").dataset, { key, view, points: entry.points, truth: entry.truth });
  return redraw(choose);
}

function redraw(choose) {
  const number = NUMBER_OF[state.key], points = byId("over").checked ? state.positions : null;
  return drawViews(CONTENT.objects[number], number, state.view, points, view => choose(state.key, view));
}

function controls(viewer, table, choose) {
  const display = () => {
    byId("legend").hidden = viewer.colour !== "distance";
    byId("labels").hidden = viewer.show !== "beside";
    Object.assign(byId("viewer").dataset, { show: viewer.show, colour: viewer.colour });
  };
  choice(byId("show"), "both", show => { viewer.set({ show }); display(); });
  choice(byId("colour"), "plain", colour => { viewer.set({ colour }); display(); });
  display();
  byId("legend").querySelector("i").style.background = `linear-gradient(90deg, ${STOPS.map(cssColour).join(", ")})`;
  byId("legend-end").textContent = `${CONTENT.distance_scale} of the unit cube's side, or more`;
  byId("reset").onclick = () => viewer.reset();
  byId("input-camera").onclick = () => {
    const entry = CONTENT.objects[NUMBER_OF[state.key]];
    viewer.lookAs(entry.cameras[state.view], entry.focal[state.view]);
  };
  byId("spin").onchange = event => viewer.spin(event.target.checked);
  byId("size").oninput = event => viewer.size(Number(event.target.value));
  byId("over").onchange = () => redraw(choose);
  byId("log").onchange = event => drawCurves(event.target.checked);
  byId("filter").oninput = event => { table.filter = event.target.value; table.refresh(); };
  const move = by => {
    const keys = table.order().filter(key => key in NUMBER_OF), place = keys.indexOf(state.key);
    if (keys.length) choose(keys[(place + by + keys.length) % keys.length]);
  };
  byId("previous").onclick = () => move(-1);
  byId("next").onclick = () => move(1);
  document.addEventListener("keydown", event => {
    if (event.target.tagName === "INPUT") return;
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
}

function cards(place, keys, choose) {
  const [name] = CONTENT.error || [];
  byId("extremes").hidden = !name;
  byId(place).replaceChildren(...keys.map(key => {
    const card = element("button", undefined, { "data-key": key }), text = element("span", key);
    text.append(element("small", name ? `${label(name)} ${shown(CONTENT.rows[key][name], name)}` : ""));
    card.append(element("img", undefined, { src: CONTENT.objects[NUMBER_OF[key]].thumbnail, alt: "" }), text);
    card.onclick = () => {
      choose(key);
      byId("shape").scrollIntoView({ behavior: "smooth", block: "nearest" });
    };
    return card;
  }));
}

function definitions() {
  for (const name of metricNames(Object.values(CONTENT.rows))) {
    const { definition, unit } = CONTENT.definitions[name];
    byId("definitions").append(element("dt", label(name)), element("dd", `${definition} (${unit})`));
  }
}

start();
