"use strict";
// The 3D viewer: two clouds in one scene, drawn by three.js. World coordinates are the object frame, +Y up.

const FIELD_OF_VIEW = 2 * Math.atan(0.5 / 1.875) * 180 / Math.PI;  // degrees: the cameras of the shards
const FIRST_VIEW = [1.45, 0.9, 1.9];
const POINT_SIZE = 0.02;  // sides of the unit cube

class Viewer {
  constructor(container) {
    this.container = container;
    this.show = "both";
    this.colour = "plain";
    try {
      this.renderer = new Vendor.WebGLRenderer({ antialias: true, alpha: true });
    } catch {
      byId("no-webgl").hidden = false;
      return;
    }
    container.prepend(this.renderer.domElement);
    this.scene = new Vendor.Scene();
    this.camera = new Vendor.PerspectiveCamera(FIELD_OF_VIEW, 1, 0.01, 50);
    const frame = new Vendor.EdgesGeometry(new Vendor.BoxGeometry(1, 1, 1));
    this.scene.add(new Vendor.LineSegments(frame, new Vendor.LineBasicMaterial({ color: 0xdbe0e8 })));
    this.turning = new Vendor.OrbitControls(this.camera, this.renderer.domElement);
    this.turning.autoRotateSpeed = 3;
    this.turning.addEventListener("change", () => this.draw());
    this.clouds = { prediction: this.cloud(), truth: this.cloud() };
    new ResizeObserver(() => this.resize()).observe(container);
    this.reset();
    this.resize();
  }

  cloud() {
    const material = new Vendor.PointsMaterial({ size: POINT_SIZE, map: disc(), alphaTest: 0.5, vertexColors: true });
    const points = new Vendor.Points(new Vendor.BufferGeometry(), material);
    points.frustumCulled = false;
    this.scene.add(points);
    return points;
  }

  resize() {
    if (!this.renderer) return;
    const { clientWidth: width, clientHeight: height } = this.container;
    this.renderer.setPixelRatio(window.devicePixelRatio);
    this.renderer.setSize(width, height);
    this.draw();
  }

  // Takes {prediction, truth}: {positions, distances} each, or null where there is none.
  load(clouds) {
    this.content = clouds;
    if (!this.renderer) return;
    for (const [name, points] of Object.entries(this.clouds)) {
      const content = clouds[name];
      points.geometry.dispose();
      points.geometry = new Vendor.BufferGeometry();
      if (content) points.geometry.setAttribute("position", new Vendor.BufferAttribute(content.positions, 3));
    }
    this.paint();
  }

  set(values) {
    Object.assign(this, values);
    this.paint();
  }

  paint() {
    if (!this.renderer || !this.content) return;
    for (const [name, points] of Object.entries(this.clouds)) {
      const content = this.content[name];
      if (!content) continue;
      const colours = this.colours(content, name === "prediction" ? [0.12, 0.37, 0.75] : [0.88, 0.48, 0.1]);
      points.geometry.setAttribute("color", new Vendor.BufferAttribute(colours, 3));
    }
    this.draw();
  }

  colours({ positions, distances }, plain) {
    const colours = new Float32Array(positions.length);
    for (let i = 0; i < positions.length / 3; i++) {
      let colour = plain;
      if (this.colour === "height") colour = scaleColour(0.5 + positions[3 * i + 1]);
      if (this.colour === "distance" && distances) colour = scaleColour(distances[i] / 255);
      for (let c = 0; c < 3; c++) colours[3 * i + c] = colour[c] ** 2.2;  // three.js mixes in linear light
    }
    return colours;
  }

  size(factor) {
    if (!this.renderer) return;
    for (const points of Object.values(this.clouds)) points.material.size = POINT_SIZE * factor;
    this.draw();
  }

  reset() {
    if (!this.renderer) return;
    this.camera.up.set(0, 1, 0);
    this.look(new Vendor.Vector3(...FIRST_VIEW), FIELD_OF_VIEW);
  }

  // Stands where a camera [R | t], 12 numbers by rows, stands: at -Rᵀ t.
  lookAs(camera, focalLength) {
    if (!this.renderer) return;
    const [a, b, c, x, d, e, f, y, g, h, i, z] = camera;
    const position = new Vendor.Vector3(-(a * x + d * y + g * z), -(b * x + e * y + h * z), -(c * x + f * y + i * z));
    this.look(position, 2 * Math.atan(0.5 / focalLength) * 180 / Math.PI);
  }

  look(position, degrees) {
    this.camera.fov = degrees;
    this.camera.position.copy(position);
    this.turning.target.set(0, 0, 0);
    this.turning.update();
    this.draw();
  }

  spin(on) {
    if (!this.renderer) return;
    this.turning.autoRotate = on;
    const step = () => {
      if (!this.turning.autoRotate) return;
      this.turning.update();
      requestAnimationFrame(step);
    };
    step();
  }

  draw() {
    if (!this.renderer || !this.clouds) return;
    const { clientWidth: width, clientHeight: height } = this.container;
    if (this.show !== "beside") {
      this.part(0, width, height, this.show !== "truth", this.show !== "prediction");
      return;
    }
    this.renderer.setScissorTest(true);
    this.part(0, width / 2, height, true, false);
    this.part(width / 2, width / 2, height, false, true);
    this.renderer.setScissorTest(false);
  }

  part(left, width, height, prediction, truth) {
    this.clouds.prediction.visible = prediction && Boolean(this.content?.prediction);
    this.clouds.truth.visible = truth && Boolean(this.content?.truth);
    this.camera.aspect = width / height;
    // A narrow picture shows as much of the object, somewhat nearer.
    this.camera.zoom = Math.min(1, 1.25 * width / height);
    this.camera.updateProjectionMatrix();
    this.renderer.setViewport(left, 0, width, height);
    this.renderer.setScissor(left, 0, width, height);
    this.renderer.render(this.scene, this.camera);
  }
}

function disc() {
  const canvas = element("canvas", undefined, { width: 32, height: 32 }), pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.beginPath();
  pen.arc(16, 16, 15, 0, 7);
  pen.fill();
  return new Vendor.CanvasTexture(canvas);
}

// Decodes the clouds of an object as one of its input views gave them.
function decode(entry, number, view) {
  const bytes = Uint8Array.from(atob(textOf("points", number)), character => character.charCodeAt(0));
  const clouds = entry.views + (entry.truth ? 1 : 0), steps = new Int16Array(bytes.buffer, 0, 3 * (entry.views * entry.points + entry.truth));
  const coordinates = (first, count) => Float32Array.from(steps.subarray(3 * first, 3 * (first + count)), step => step / 32767 * entry.scale);
  const prediction = { positions: coordinates(view * entry.points, entry.points), distances: null };
  if (clouds === entry.views) return { prediction, truth: null };
  const shades = bytes.subarray(steps.byteLength), back = entry.views * entry.points + view * entry.truth;
  prediction.distances = shades.subarray(view * entry.points, (view + 1) * entry.points);
  const truth = { positions: coordinates(entry.views * entry.points, entry.truth), distances: shades.subarray(back, back + entry.truth) };
  return { prediction, truth };
}
