"use strict";
// Learning curves, drawn by uPlot.

const LINE_COLOURS = ["#1f5fbf", "#e07b1a", "#2f9e5b", "#b5369c", "#8a6d3b", "#5b6b8c", "#c23b3b", "#139aa8", "#7d57c2"];
const CHART_HEIGHT = 210;

function drawCurves(logarithmic) {
  const charts = CONTENT.curves.map(group => {
    const container = element("div");
    container.className = "chart";
    container.append(element("h3", group.title));
    return [container, group];
  });
  byId("curves").replaceChildren(...charts.map(([container]) => container));
  for (const [container, group] of charts) chart(container, group, logarithmic);
}

function tickLabel(value) {
  if (value === null) return "";
  const number = Number(value.toPrecision(6));
  return number && Math.abs(number) < 1e-3 ? number.toExponential() : number.toString();
}

function chart(container, group, logarithmic) {
  // A logarithm needs numbers above 0.
  const usable = value => (value === null || (logarithmic && value <= 0) ? null : value);
  const names = Object.keys(group.series), columns = names.map(name => group.series[name].map(usable));
  const series = names.map((name, place) => ({
    label: label(name), stroke: LINE_COLOURS[place % LINE_COLOURS.length], width: 1.5, spanGaps: true,
    value: (_, value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString()),
  }));
  const possible = logarithmic && columns.some(column => column.some(value => value !== null));
  new Vendor.uPlot({
    width: container.clientWidth, height: CHART_HEIGHT,
    scales: { x: { time: false }, y: { distr: possible ? 3 : 1 } },
    axes: [
      { stroke: "#667085", grid: { stroke: "#edf0f4" } },
      // uPlot's own labels have three decimals: a learning rate would be 0 everywhere.
      { stroke: "#667085", grid: { stroke: "#edf0f4" }, size: 62, values: (_, ticks) => ticks.map(tickLabel) },
    ],
    series: [{ label: "step" }, ...series],
  }, [group.steps, ...columns], container);
}
