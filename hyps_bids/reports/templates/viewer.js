// One viewer serves all scans: it moves to the scan for which it is opened.
const viewer = {
  element: document.getElementById("viewer"),
  scans: data("viewer-data"),
  slices: null,
  surface: null,
  scan: null,
  layers: {},
};
const control = (name) => document.getElementById(`viewer-${name}`);
const say = (text) => { control("message").textContent = text; };

for (const button of document.querySelectorAll(".open-viewer")) {
  button.addEventListener("click", () => openViewer(button));
}

async function openViewer(button) {
  button.closest("div").querySelector(".viewer-place").append(viewer.element);
  viewer.element.hidden = false;
  if (!document.createElement("canvas").getContext("webgl2")) {
    say("The viewer needs WebGL 2, but this browser has no WebGL 2. The pictures on this page show the same structures.");
    return;
  }
  say("Loading …");
  viewer.scan = button.dataset.scan;
  try {
    await library("niivue");
    control("body").hidden = false;
    viewer.slices ??= await newSlices();
    viewer.surface ??= await newSurface();
    const { files } = viewer.scans[viewer.scan];
    const choices = { close: "hippocampi, close-up", head: "whole head" };
    control("volume").replaceChildren(
      ...Object.keys(choices).filter((name) => files.includes(name))
        .map((name) => new Option(choices[name], name)),
    );
    // A scan without hippocampi has no segmentation to control.
    for (const name of ["labels", "probability"]) {
      control(name).closest("label").hidden = !files.includes("labels");
    }
    control("surface").hidden = !files.some((name) => name.startsWith("surface-"));
    await loadVolumes();
    await loadSurfaces();
    say("");
  } catch (error) {
    control("body").hidden = true;
    say(`The viewer could not be started (${error.message}). The pictures on this page show the same structures.`);
  }
}

async function newSlices() {
  const nv = new niivue.Niivue({
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.94, 0.89, 0.26, 0.8],
    crosshairWidth: 0.4,
    crosshairWidthUnit: "mm",
    dragAndDropEnabled: false,
    isColorbar: false,
    isRadiologicalConvention: true,
    isCornerOrientationText: false,
    sagittalNoseLeft: true,
    showAllOrientationMarkers: true,
    // This color can be read on black and on white.
    fontColor: [1, 0.35, 0.75, 1],
    fontMinPx: 20,
    tileMargin: 10,
    isSliceMM: true,
    multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
    logLevel: "error",
  });
  nv.onLocationChange = showLocation;
  await nv.attachToCanvas(control("slices"));
  nv.setSliceType(niivue.SLICE_TYPE.MULTIPLANAR);
  return nv;
}

async function newSurface() {
  const nv = new niivue.Niivue({
    backColor: [0, 0, 0, 1],
    dragAndDropEnabled: false,
    isOrientCube: true,
    show3Dcrosshair: false,
    crosshairWidth: 0,
    logLevel: "error",
  });
  await nv.attachToCanvas(control("surface"));
  nv.setSliceType(niivue.SLICE_TYPE.RENDER);
  return nv;
}

/** Give packed files of the scan an address for as long as it takes to load them. */
async function withFiles(names, extension, load) {
  const { files } = viewer.scans[viewer.scan];
  const found = names.filter((name) => files.includes(name));
  const urls = [];
  for (const name of found) {
    urls.push(URL.createObjectURL(new Blob([await unpack(`${viewer.scan}-${name}`)])));
  }
  await load(found.map((name, i) => ({ url: urls[i], name: `${name}.${extension}` })));
  urls.forEach((url) => URL.revokeObjectURL(url));
  return found;
}

async function loadVolumes() {
  const nv = viewer.slices;
  const shown = { labels: { opacity: 0 }, probability: { opacity: 0, colormap: "plasma", cal_min: 0.05, cal_max: 1 } };
  const found = await withFiles([control("volume").value, "labels", "probability"], "nii", (list) =>
    nv.loadVolumes(list.map((item) => ({ ...item, ...shown[item.name.split(".")[0]] }))));
  viewer.layers = Object.fromEntries(found.map((name, i) => [name, i]));
  if ("labels" in viewer.layers) {
    nv.volumes[viewer.layers.labels].setColormapLabel(colors());
  }
  nv.updateGLVolume();
  for (const layer of ["labels", "probability"]) setOpacity(layer);
  setRanges();
}

async function loadSurfaces() {
  const nv = viewer.surface;
  for (const mesh of [...nv.meshes]) nv.removeMesh(mesh);
  await withFiles(["surface-L", "surface-R"], "mz3", (list) => nv.loadMeshes(list));
  nv.setRenderAzimuthElevation(160, 20);
  nv.setScale(0.75);
}

/** Return the table of label colors; the background is transparent. */
function colors() {
  const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: ["background"] };
  for (const { index, name, color } of viewer.scans[viewer.scan].labels) {
    [1, 3, 5].forEach((at, i) => table["RGB"[i]].push(parseInt(color.slice(at, at + 2), 16)));
    table.A.push(255);
    table.I.push(index);
    table.labels.push(name);
  }
  return table;
}

function setOpacity(layer) {
  if (layer in viewer.layers) {
    viewer.slices.setOpacity(viewer.layers[layer], Number(control(layer).value));
  }
}

/** Let the sliders reach as far as the volume, and start in a hippocampus if there is one. */
function setRanges() {
  const [low, high] = viewer.slices.sceneExtentsMinMax(true);
  ["x", "y", "z"].forEach((axis, i) => {
    const slider = control(axis);
    slider.min = Math.ceil(low[i]);
    slider.max = Math.floor(high[i]);
  });
  moveTo(viewer.scans[viewer.scan].start ?? viewer.slices.frac2mm([0.5, 0.5, 0.5]).slice(0, 3));
}

function moveTo(mm) {
  const nv = viewer.slices;
  nv.scene.crosshairPos = nv.mm2frac(mm);
  nv.drawScene();
  nv.createOnLocationChange();
}

function showLocation({ mm, values }) {
  ["x", "y", "z"].forEach((axis, i) => { control(axis).value = mm[i]; });
  const names = Object.fromEntries(viewer.scans[viewer.scan].labels.map((l) => [l.index, l.name]));
  const at = [...mm].slice(0, 3).map((v) => v.toFixed(1).replace("-", "−")).join(", ");
  const value = (layer) => values[viewer.layers[layer]]?.value;
  const label = names[Math.round(value("labels") ?? 0)] ?? "not hippocampus";
  const p = value("probability");
  control("location").textContent =
    `x, y, z = ${at} mm${p === undefined ? "" : `: ${label}; probability of hippocampus ${p.toFixed(2)}`}`;
}

for (const axis of ["x", "y", "z"]) {
  control(axis).addEventListener("input", () =>
    moveTo(["x", "y", "z"].map((name) => Number(control(name).value))));
}
for (const layer of ["labels", "probability"]) {
  control(layer).addEventListener("input", () => setOpacity(layer));
}
control("volume").addEventListener("change", loadVolumes);
control("planes").addEventListener("change", (event) => viewer.slices.setSliceType(Number(event.target.value)));
control("cross").addEventListener("change", (event) => viewer.slices.setCrosshairWidth(event.target.checked ? 0.4 : 0));
