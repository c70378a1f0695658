// What report.html takes from its libraries, as one classic script: window.Vendor. See README.md.
export {
  BoxGeometry, BufferAttribute, BufferGeometry, CanvasTexture, EdgesGeometry, LineBasicMaterial, LineSegments,
  PerspectiveCamera, Points, PointsMaterial, Scene, Vector3, WebGLRenderer,
} from "three";
export { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";
export { default as uPlot } from "uplot";
