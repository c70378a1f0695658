"use strict";
// What all parts of the page share: the data, elements by their id, numbers as text, colours.

const CONTENT = JSON.parse(document.getElementById("content").textContent);
const NUMBER_OF = Object.fromEntries(CONTENT.objects.map((entry, number) => [entry.key, number]));
const LABELS = {
  chamfer: "Chamfer × 100", chamfer_predicted_to_target: "prediction → truth", chamfer_target_to_predicted: "truth → prediction",
  chamfer_best_view: "best view", chamfer_squared: "squared × 10⁴", earth_mover: "Earth mover × 100", f_score_1: "F @ 1 %", f_score_2: "F @ 2 %", silhouette_iou: "silhouette IoU", voxel_iou: "voxel IoU",
};
const PREDICTION = "#1f5fbf", TRUTH = "#e07b1a";

const byId = id => document.getElementById(id);
const label = name => LABELS[name] || name.replaceAll("_", " ");
// Scores between 0 and 1 get a third digit.
const digits = name => (name.startsWith("chamfer") || name === "earth_mover" ? 2 : 3);
const shown = (value, name) => (typeof value === "number" ? value.toFixed(digits(name)) : "–");
// The texts of an object lie in elements that nothing has parsed so far.
const textOf = (kind, number) => byId(`${kind}-${number}`).textContent;
const metricNames = rows => Object.keys(CONTENT.definitions).filter(name => rows.some(row => name in row));

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Buttons of which one is pressed; calls back with its data-value.
function choice(container, initial, callback) {
  const press = value => {
    for (const button of container.children) button.setAttribute("aria-pressed", String(button.dataset.value === value));
  };
  container.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button || button.disabled) return;
    press(button.dataset.value);
    callback(button.dataset.value);
  });
  press(initial);
  return press;
}

// From good to bad: five stops of the "inferno" scale turned around, without its ends. [r, g, b] in 0 … 1.
const STOPS = [[0.13, 0.57, 0.55], [0.48, 0.82, 0.32], [0.99, 0.84, 0.15], [0.94, 0.44, 0.13], [0.75, 0.1, 0.25]];
function scaleColour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[low].map((value, channel) => value + (STOPS[low + 1][channel] - value) * (place - low));
}
const cssColour = ([r, g, b]) => `rgb(${Math.round(255 * r)},${Math.round(255 * g)},${Math.round(255 * b)})`;
