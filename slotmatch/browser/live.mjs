// A slot model in the page: the ONNX file of slotmatch.sharing.onnx, frame by frame. Nothing is uploaded.
import * as ort from "./ort.wasm.min.mjs";
import browser, { element, loaded, pageModel, surface } from "./browser.mjs";

const FRAMES_A_SECOND = 12;  // of the videos that the model was trained on
const MAX_FRAMES = 48;
const MAX_SIDE = 320;  // of a kept frame, as in the stored videos
const OPACITY = 0.55;
const NAMES = ["frame", "state", "first"];

ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
ort.env.wasm.numThreads = 1;  // more need headers that few hosts send

const pause = () => new Promise(resolve => setTimeout(resolve));

// The model and the sizes that its file names.
const open = async bytes => {
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  if (NAMES.some(name => !session.inputNames.includes(name))) {
    throw new Error("this file was not written by slotmatch export: it takes " + session.inputNames.join(", "));
  }
  const shapeOf = name => session.inputMetadata.find(own => own.name === name).shape;
  const [, nSlots, slotDim] = shapeOf("state");
  return { session, side: shapeOf("frame")[3], nSlots, slotDim };
};

// Soft masks (K, grid, grid) of one frame and what the next one needs.
const step = async (model, picture, state) => {
  const { session, side, nSlots, slotDim } = model;
  const [, context] = surface(side, side);
  context.drawImage(picture, 0, 0, side, side);
  const pixels = context.getImageData(0, 0, side, side).data;
  const frame = new Float32Array(3 * side * side);
  for (let i = 0; i < side * side; i++) {
    for (let c = 0; c < 3; c++) frame[c * side * side + i] = pixels[4 * i + c] / 255;
  }
  const output = await session.run({
    frame: new ort.Tensor("float32", frame, [1, 3, side, side]),
    state: state ?? new ort.Tensor("float32", new Float32Array(nSlots * slotDim), [1, nSlots, slotDim]),
    first: new ort.Tensor("bool", [state === null], []),
  });
  return { masks: output.masks.data, state: output.next_state };
};

// Every slot's colour by its share of each patch, enlarged smoothly: quick enough for a camera.
const paint = (canvas, picture, masks, model, colors) => {
  const cells = masks.length / model.nSlots;
  const grid = Math.sqrt(cells);
  const [small, context] = surface(grid, grid);
  const image = context.createImageData(grid, grid);
  for (let i = 0; i < cells; i++) {
    for (let k = 0; k < model.nSlots; k++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] += masks[k * cells + i] * colors[k % colors.length][c];
    }
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  const target = canvas.getContext("2d");
  target.globalAlpha = 1;
  target.drawImage(picture, 0, 0, canvas.width, canvas.height);
  target.globalAlpha = OPACITY;
  target.drawImage(small, 0, 0, canvas.width, canvas.height);
};

// Masks in 8 bits, slots one below the other, as the browser of masks stores them.
const stored = (masks, nSlots) => {
  const grid = Math.sqrt(masks.length / nSlots);
  const [canvas, context] = surface(grid, grid * nSlots);
  const image = context.createImageData(grid, grid * nSlots);
  masks.forEach((value, i) => {
    image.data.fill(Math.round(255 * Math.min(Math.max(value, 0), 1)), 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  });
  context.putImageData(image, 0, 0);
  return canvas.toDataURL("image/png");
};

const slotsInUse = (masks, nSlots) => {
  const cells = masks.length / nSlots;
  const used = new Set();
  for (let i = 0; i < cells; i++) {
    let best = 0;
    for (let k = 1; k < nSlots; k++) if (masks[k * cells + i] > masks[best * cells + i]) best = k;
    used.add(best);
  }
  return used.size;
};

// Frames of a video file: the first seconds, at the pace of the training videos.
const framesOfVideo = async function* (file) {
  const video = element("video", { muted: true, playsInline: true, preload: "auto" });
  const heard = (name) => new Promise((resolve, reject) => {
    video.addEventListener(name, resolve, { once: true });
    video.addEventListener("error", () => reject(new Error(`this browser cannot play ${file.name}`)), { once: true });
  });
  const address = URL.createObjectURL(file);
  try {
    const ready = heard("loadeddata");
    video.src = address;
    await ready;
    const long = Number.isFinite(video.duration) ? video.duration : MAX_FRAMES / FRAMES_A_SECOND;
    const n = Math.max(1, Math.min(MAX_FRAMES, Math.floor(long * FRAMES_A_SECOND)));
    for (let t = 0; t < n; t++) {
      const sought = heard("seeked");
      video.currentTime = (t + 0.5) / FRAMES_A_SECOND;
      await sought;
      yield [video, video.videoWidth, video.videoHeight];
    }
  } finally {
    URL.revokeObjectURL(address);
  }
};

const framesOfPictures = async function* (files) {
  const ordered = [...files].sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  for (const file of ordered.slice(0, MAX_FRAMES)) {
    const address = URL.createObjectURL(file);
    try {
      const image = await loaded(address);
      yield [image, image.naturalWidth, image.naturalHeight];
    } finally {
      URL.revokeObjectURL(address);
    }
  }
};

const framesOfCamera = async function* (isStopped) {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { width: MAX_SIDE }, audio: false });
  const video = element("video", { muted: true, playsInline: true, srcObject: stream });
  try {
    await video.play();
    while (!isStopped()) yield [video, video.videoWidth, video.videoHeight];
  } finally {
    stream.getTracks().forEach(track => track.stop());
  }
};

const framesOfStored = async function* (data) {
  for (const source of data.frames) {
    const image = await loaded(source);
    yield [image, image.naturalWidth, image.naturalHeight];
  }
};

const start = async root => {
  const status = root.querySelector(".sl-status");
  const say = text => { status.textContent = text; };
  say("Loading the student.");
  const colors = JSON.parse(root.dataset.colors);
  const answer = await fetch(new URL(root.dataset.model, import.meta.url));
  if (!answer.ok) throw new Error(`the student is not there: ${answer.status}`);
  let model = await open(await answer.arrayBuffer());
  let name = "student, live";
  let stopped = false;
  let busy = false;

  const stage = element("div", { className: "sl-stage" });
  const result = element("div", { className: "sl-result" });

  // Follows frames with the model, painting as it goes, then hands all to the browser of masks.
  const follow = async (frames, title, known = null) => {
    if (busy) return;
    busy = true;
    stopped = false;
    stop.hidden = false;
    result.replaceChildren();
    const [preview, kept, masks, milliseconds] = [element("canvas"), [], [], []];
    preview.setAttribute("role", "img");
    preview.setAttribute("aria-label", "masks of the frame that is being seen");
    stage.replaceChildren(preview);
    let state = null;
    try {
      for await (const [picture, width, height] of frames) {
        const factor = Math.min(1, MAX_SIDE / Math.max(width, height));
        const size = [width, height].map(side => Math.max(1, Math.round(factor * side)));
        const [frame, context] = surface(...size);
        context.drawImage(picture, 0, 0, ...size);
        const began = performance.now();
        const output = await step(model, frame, state);
        milliseconds.push(performance.now() - began);
        state = output.state;
        const zoom = Math.max(1, Math.round(384 / Math.max(...size)));
        Object.assign(preview, { width: zoom * size[0], height: zoom * size[1] });
        paint(preview, frame, output.masks, model, colors);
        kept.push(frame);
        masks.push(output.masks);
        if (kept.length > MAX_FRAMES) [kept, masks].forEach(list => list.shift());
        const median = [...milliseconds].sort((a, b) => a - b)[milliseconds.length >> 1];
        say(`${title}: frame ${milliseconds.length}, ${median.toFixed(0)} ms a frame, `
          + `${slotsInUse(output.masks, model.nSlots)} of ${model.nSlots} slots in use`);
        await pause();
        if (stopped) break;
      }
      root.slotmatchMasks = masks;
      if (kept.length) await show(kept, masks, title, known);
      stage.replaceChildren();
    } catch (error) {
      say(`${title}: ${error.message}`);
    } finally {
      busy = false;
      stop.hidden = true;
    }
  };

  const show = async (kept, masks, title, known) => {
    const grid = Math.sqrt(masks[0].length / model.nSlots);
    const fits = known !== null && known.nSlots === model.nSlots;
    const base = fits ? known : {
      canvas: [kept[0].width, kept[0].height].map(side => side * Math.max(1, Math.round(384 / Math.max(kept[0].width, kept[0].height)))),
      times: kept.map((_, t) => t),
      nTotal: kept.length,
      nSlots: model.nSlots,
      frames: kept.map(frame => frame.toDataURL("image/jpeg", 0.9)),
      groups: Array.from({ length: model.nSlots }, (_, k) => {
        const rgb = colors[k % colors.length];
        return { name: String(k), rgb, color: `rgb(${rgb.join(",")})` };
      }),
      panels: [],
    };
    const panel = {
      name,
      soft: true,
      isTruth: false,
      size: [grid, grid],
      groups: Array.from({ length: model.nSlots }, (_, k) => k),
      images: masks.map(own => stored(own, model.nSlots)),
    };
    const panels = [...base.panels.filter(own => own.isTruth || own.name === "teacher"), panel];
    const content = { ...base, label: `${title}, seen live`, panels };
    await browser.render({ model: pageModel({ content, frame: 0, selected: [], opacity: OPACITY }), el: result });
  };

  const videos = [...document.querySelectorAll("[data-slotmatch]")].filter(place => place.slotmatch);
  const choice = element("select", {}, ...videos.map((place, i) =>
    element("option", { value: i, textContent: place.getAttribute("aria-label") })));
  const run = element("button", { type: "button", textContent: "Run the student", className: "sl-run" });
  run.addEventListener("click", () => {
    const place = videos[choice.value];
    follow(framesOfStored(place.slotmatch), place.getAttribute("aria-label"), place.slotmatch);
  });
  const file = element("input", { type: "file", multiple: true, accept: "video/*,image/*", className: "sl-file" });
  file.addEventListener("change", () => {
    const files = [...file.files];
    if (!files.length) return;
    const video = files.find(own => own.type.startsWith("video/"));
    follow(video ? framesOfVideo(video) : framesOfPictures(files), video ? video.name : `${files.length} pictures`);
  });
  const camera = element("button", { type: "button", textContent: "Use the camera" });
  camera.addEventListener("click", () => follow(framesOfCamera(() => stopped), "camera"));
  camera.hidden = !navigator.mediaDevices;
  const stop = element("button", { type: "button", textContent: "Stop", hidden: true });
  stop.addEventListener("click", () => { stopped = true; });
  const own = element("input", { type: "file", accept: ".onnx", className: "sl-model" });
  own.addEventListener("change", async () => {
    if (!own.files.length) return;
    try {
      say(`Loading ${own.files[0].name}.`);
      model = await open(await own.files[0].arrayBuffer());
      name = own.files[0].name;
      say(`${name}: ${model.nSlots} slots, frames of ${model.side} pixels. Choose a video.`);
    } catch (error) {
      say(`${own.files[0].name}: ${error.message}`);
    }
  });
  const controls = element("div", { className: "sl-controls" });
  if (videos.length) controls.append(element("label", {}, "A video of this page", choice), run);
  controls.append(
    element("label", {}, "A video or pictures of your own", file), camera, stop,
    element("label", {}, "Another model (.onnx)", own));
  root.append(controls, stage, result);
  say("Ready. Choose a video; it stays in this page, nothing is uploaded.");
  root.dataset.ready = "yes";
};

for (const root of document.querySelectorAll(".slotmatch-live:not([data-ready])")) {
  root.dataset.ready = "loading";
  start(root).catch(error => {
    root.querySelector(".sl-status").textContent = `The student cannot run here: ${error.message}`;
    console.error(error);
  });
}
