"use strict";
// The input image, and the silhouettes with the points over them, as the cameras of the views see both.

const TILE = 128;  // pixels a side on which a silhouette is drawn
const DEPTH_NEAR = 0.01;  // as drwr_dist.camera.project

function loadPicture(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a picture of the report can't be decoded"));
    image.src = source;
  });
}

function drawInput(image, entry, view) {
  const canvas = byId("input"), pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(image, view * entry.size, 0, entry.size, entry.size, 0, 0, canvas.width, canvas.height);
}

// Draws silhouette `view`; positions null: without points.
function drawSilhouette(canvas, masks, entry, view, positions) {
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, TILE, TILE);
  // Grey where the object is: the stored picture is white there, on black.
  pen.globalAlpha = 1;
  pen.drawImage(masks, view * entry.size, 0, entry.size, entry.size, 0, 0, TILE, TILE);
  pen.globalCompositeOperation = "difference";
  pen.fillRect(0, 0, TILE, TILE);
  pen.globalCompositeOperation = "lighten";
  pen.fillStyle = "#c6ccd8";
  pen.fillRect(0, 0, TILE, TILE);
  pen.globalCompositeOperation = "source-over";
  if (!positions) return;
  pen.fillStyle = PREDICTION;
  const [a, b, c, tx, d, e, f, ty, g, h, i, tz] = entry.cameras[view], focal = entry.focal[view];
  for (let p = 0; p < positions.length; p += 3) {
    const [x, y, z] = positions.subarray(p, p + 3), depth = g * x + h * y + i * z + tz;
    if (depth <= DEPTH_NEAR) continue;
    const column = TILE * (focal * (a * x + b * y + c * z + tx) / depth + 0.5);
    const row = TILE * (focal * (d * x + e * y + f * z + ty) / depth + 0.5);
    pen.fillRect(column - 0.5, row - 0.5, 1, 1);
  }
}

// Shows one object: fills the silhouettes, marks the input view; a click on one of the first views makes it the input.
async function drawViews(entry, number, view, positions, choose) {
  const [images, masks] = await Promise.all(["images", "masks"].map(kind => loadPicture(textOf(kind, number))));
  if (state.key !== entry.key || state.view !== view) return;  // something else was chosen meanwhile
  drawInput(images, entry, view);
  const more = entry.views > 1 ? " Click one of the first " + entry.views + " silhouettes to take its image as the input." : "";
  byId("input-note").textContent = `View ${view} of the object.${more}`;
  const figures = entry.cameras.map((_, place) => {
    const figure = element("figure"), canvas = element("canvas", undefined, { width: TILE, height: TILE });
    const usable = place < entry.views;
    figure.className = (place === view ? "input" : "") + (usable ? "" : " fixed");
    drawSilhouette(canvas, masks, entry, place, positions);
    const caption = place === view ? `view ${place}, input` : `view ${place}`;
    const error = place in entry.chamfer ? `: ${entry.chamfer[place].toFixed(2)}` : "";
    figure.append(canvas, element("figcaption", caption + error, { title: error ? "Chamfer × 100 with this view as the input" : "" }));
    if (usable) figure.onclick = () => choose(place);
    return figure;
  });
  byId("views").replaceChildren(...figures);
}
