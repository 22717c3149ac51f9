// The browser of slot masks, for all places: a widget's module (anywidget), which pages without a kernel
// and the live student call with a model of their own.
const NONE = 255;  // in a stored label picture; Python knows the same number
const PLAY_MILLISECONDS = 150;

export const element = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};

export const loaded = source => new Promise((resolve, reject) => {
  const image = new Image();
  image.onload = () => resolve(image);
  image.onerror = () => reject(new Error("this browser cannot read that picture"));
  image.src = source;
});

export const surface = (width, height) => {
  const canvas = element("canvas", { width, height });
  return [canvas, canvas.getContext("2d", { willReadFrequently: true })];
};

// What a kernel's model is to a widget, without a kernel.
export const pageModel = values => {
  const events = new EventTarget();
  return {
    get: name => values[name],
    set: (name, value) => {
      values[name] = value;
      events.dispatchEvent(new Event(`change:${name}`));
    },
    on: (event, callback) => events.addEventListener(event, callback),
    off: (event, callback) => events.removeEventListener(event, callback),
    save_changes: () => {},
  };
};

const greyValues = image => {
  const [, context] = surface(image.width, image.height);
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, image.width, image.height).data;
  const grey = new Uint8Array(image.width * image.height);
  for (let i = 0; i < grey.length; i++) {
    grey[i] = pixels[4 * i];
    // A browser that protects against fingerprinting hands out noise instead of pixels.
    if (grey[i] !== pixels[4 * i + 1]) throw new Error("slotmatch browser: this browser blocks reading a canvas");
  }
  return grey;
};

// Where each of n output pixels reads among m inputs: centres aligned, ends clamped, as in bilinear resizing.
const taps = (m, n) => Array.from({ length: n }, (_, i) => {
  const position = Math.min(Math.max((i + 0.5) * m / n - 0.5, 0), m - 1);
  const first = Math.floor(position);
  return { first, second: Math.min(first + 1, m - 1), weight: position - first };
});

const largestMask = (panel, grey, [width, height]) => {
  const [w, h] = panel.size;
  const columns = taps(w, width);
  const line = new Float32Array(w);
  const best = new Float32Array(width);
  const groups = new Uint8Array(width * height);
  taps(h, height).forEach(({ first, second, weight }, y) => {
    best.fill(-1);
    panel.groups.forEach((group, k) => {
      const top = (k * h + first) * w;
      const bottom = (k * h + second) * w;
      for (let x = 0; x < w; x++) line[x] = grey[top + x] + weight * (grey[bottom + x] - grey[top + x]);
      for (let x = 0; x < width; x++) {
        const tap = columns[x];
        const value = line[tap.first] + tap.weight * (line[tap.second] - line[tap.first]);
        if (value > best[x]) {
          best[x] = value;
          groups[y * width + x] = group;
        }
      }
    });
  });
  return groups;
};

const nearestLabel = (panel, grey, [width, height]) => {
  const [w, h] = panel.size;
  const groups = new Uint8Array(width * height);
  for (let y = 0, i = 0; y < height; y++) {
    const row = Math.floor((y + 0.5) * h / height) * w;
    for (let x = 0; x < width; x++, i++) {
      const label = grey[row + Math.floor((x + 0.5) * w / width)];
      groups[i] = label === NONE ? NONE : panel.groups[label];
    }
  }
  return groups;
};

// 1 on a region's own border, 2 on the pixel inside of it, else 0.
const borders = (groups, [width, height]) => {
  const edge = new Uint8Array(groups.length);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      for (let d = 1; d <= 2 && !edge[i]; d++) {
        if ((x >= d && groups[i - d] !== groups[i]) || (x + d < width && groups[i + d] !== groups[i])
          || (y >= d && groups[i - d * width] !== groups[i])
          || (y + d < height && groups[i + d * width] !== groups[i])) edge[i] = d;
      }
    }
  }
  return edge;
};

const softPaint = (panel, grey, colors, shown, opacity, image) => {
  const { width, height, data: pixels } = image;
  const [w, h] = panel.size;
  const cells = w * h;
  const light = new Float32Array(4 * cells);
  panel.groups.forEach((group, k) => {
    if (!shown(group)) return;
    const [red, green, blue] = colors[group];
    for (let i = 0; i < cells; i++) {
      const mask = grey[k * cells + i] / 255;
      light[4 * i] += mask * red;
      light[4 * i + 1] += mask * green;
      light[4 * i + 2] += mask * blue;
      light[4 * i + 3] += mask;
    }
  });
  const columns = taps(w, width);
  const line = new Float32Array(4 * w);
  taps(h, height).forEach(({ first, second, weight }, y) => {
    for (let i = 0; i < 4 * w; i++) {
      line[i] = light[first * 4 * w + i] + weight * (light[second * 4 * w + i] - light[first * 4 * w + i]);
    }
    for (let x = 0; x < width; x++) {
      const tap = columns[x];
      const at = c => line[4 * tap.first + c] + tap.weight * (line[4 * tap.second + c] - line[4 * tap.first + c]);
      const mask = at(3);
      const out = 4 * (y * width + x);
      for (let c = 0; c < 3; c++) pixels[out + c] = mask > 0 ? at(c) / mask : 0;
      pixels[out + 3] = 255 * opacity * Math.min(mask, 1);
    }
  });
};

const regionPaint = ({ groups, edge }, colors, shown, opacity, isFilled, lit, image) => {
  const pixels = image.data;
  for (let i = 0; i < groups.length; i++) {
    const group = groups[i];
    const out = 4 * i;
    pixels[out + 3] = 0;
    if (group === NONE || !shown(group)) continue;
    const isLit = group === lit;
    const ringed = isLit && edge[i] > 0;
    const [red, green, blue] = ringed ? [255, 255, 255] : colors[group];
    const dimmed = lit !== NONE && !isLit ? 0.5 : 1;
    pixels[out] = red;
    pixels[out + 1] = green;
    pixels[out + 2] = blue;
    pixels[out + 3] = 255 * (ringed ? 1 : dimmed * (edge[i] === 1 || (!isFilled && edge[i])
      ? Math.min(1, 1.8 * opacity) : isFilled ? opacity : 0));
  }
};

// Draws the browser into `el` and keeps it and the model's frame, selected and opacity as one.
const render = async ({ model, el }) => {
  const data = model.get("content");
  const size = data.canvas;
  const [width, height] = size;
  const lastFrame = data.frames.length - 1;
  const colors = data.groups.map(group => group.rgb);
  const frames = await Promise.all(data.frames.map(loaded));
  const panels = await Promise.all(data.panels.map(async panel => {
    const masks = (await Promise.all(panel.images.map(loaded))).map(greyValues);
    const canvas = element("canvas", { width, height });
    canvas.setAttribute("role", "img");
    const here = element("span", { className: "sb-here" });
    const [layer, layerContext] = surface(width, height);
    const image = layerContext.createImageData(width, height);
    return { ...panel, masks, canvas, here, layer, layerContext, image, regions: new Map() };
  }));
  const state = { view: "regions", lit: NONE, timer: 0 };
  const slots = data.groups.slice(0, data.nSlots);
  const boxes = slots.map(slot => element("input", { type: "checkbox", checked: true, value: slot.name }));

  const regionsOf = panel => {
    const frame = model.get("frame");
    if (!panel.regions.has(frame)) {
      const grey = panel.masks[frame];
      const groups = panel.soft ? largestMask(panel, grey, size) : nearestLabel(panel, grey, size);
      panel.regions.set(frame, { groups, edge: borders(groups, size) });
    }
    return panel.regions.get(frame);
  };
  const nameOf = (panel, group) =>
    group === NONE ? panel.isTruth ? "background" : "" : group >= data.nSlots ? "unmatched object" : `slot ${group}`;

  const draw = () => {
    const [frame, selected, share] = ["frame", "selected", "opacity"].map(name => model.get(name));
    const time = data.times[frame];
    for (const panel of panels) {
      const shown = group =>
        panel.isTruth || (selected.length ? selected.includes(group) : boxes[group].checked);
      if (state.view === "soft" && panel.soft) {
        const seen = group => shown(group) && (state.lit === NONE || group === state.lit);
        softPaint(panel, panel.masks[frame], colors, seen, share, panel.image);
      } else {
        regionPaint(regionsOf(panel), colors, shown, share, state.view !== "outlines", state.lit, panel.image);
      }
      panel.layerContext.putImageData(panel.image, 0, 0);
      const context = panel.canvas.getContext("2d");
      context.drawImage(frames[frame], 0, 0, width, height);
      context.drawImage(panel.layer, 0, 0);
      panel.canvas.setAttribute("aria-label", `${panel.name}, frame ${time}`);
    }
    slider.value = frame;
    slider.setAttribute("aria-valuetext", `frame ${time} of ${data.nTotal}`);
    frameOutput.value = `${time} / ${data.nTotal - 1}`;
    opacity.value = 100 * share;
    opacityOutput.value = `${Math.round(100 * share)} %`;
    chips.forEach((chip, k) => {
      chip.classList.toggle("sb-lit", state.lit === k);
      chip.classList.toggle("sb-selected", selected.includes(k));
      chip.classList.toggle("sb-left-out", selected.length > 0 && !selected.includes(k));
    });
    const told = selected.length
      ? `Alone: slot ${selected.join(", ")}. Click there again, or press Escape, to see all.`
      : "Point at a region to light up its slot in every panel; click to see it alone, with Shift to add it. "
        + "Keys: arrows, space, digits.";
    if (hint.textContent !== told) hint.textContent = told;  // else it would be read out at every frame
  };
  const change = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const go = frame => {
    play(false);
    change("frame", Math.min(Math.max(frame, 0), lastFrame));
  };
  const light = group => {
    if (group === state.lit) return;
    state.lit = group;
    draw();
  };
  // Alone, or with those that are selected already; a selected one is given up.
  const select = (group, adds) => {
    const selected = model.get("selected");
    const others = adds ? selected.filter(own => own !== group) : [];
    const ends = selected.includes(group) && (adds || selected.length === 1);
    change("selected", ends ? others : [...others, group].sort((one, other) => one - other));
  };
  const unselect = () => {
    if (model.get("selected").length) change("selected", []);
    else draw();
  };
  const check = isShown => {
    boxes.forEach(box => { box.checked = isShown; });
    unselect();
  };
  const play = on => {
    clearInterval(state.timer);
    state.timer = on ? setInterval(() => {
      if (!root.isConnected) return play(false);
      change("frame", (model.get("frame") + 1) % (lastFrame + 1));
    }, PLAY_MILLISECONDS) : 0;
    playButton.textContent = on ? "Pause" : "Play";
  };

  const slider = element("input", { type: "range", min: 0, max: lastFrame, step: 1, className: "sb-slider" });
  slider.addEventListener("input", () => go(Number(slider.value)));
  const frameOutput = element("output");
  const playButton = element("button", { type: "button", className: "sb-play" });
  playButton.addEventListener("click", () => play(!state.timer));
  const steps = [["\u25c2", "Previous frame", -1], ["\u25b8", "Next frame", 1]].map(([textContent, title, way]) => {
    const button = element("button", { type: "button", textContent, title, className: "sb-step" });
    button.setAttribute("aria-label", title);
    button.addEventListener("click", () => go(model.get("frame") + way));
    return button;
  });

  const opacity = element("input", { type: "range", min: 0, max: 100, step: 5, className: "sb-opacity" });
  const opacityOutput = element("output");
  opacity.addEventListener("input", () => change("opacity", opacity.value / 100));

  const views = ["regions", "outlines", ...data.panels.some(panel => panel.soft) ? ["soft"] : []];
  const name = `view-${Math.random().toString(36).slice(2)}`;  // several browsers can share a page
  const choice = element("span", { className: "sb-choice" }, ...views.map(view => {
    const radio = element("input", { type: "radio", name, value: view, checked: view === state.view });
    radio.addEventListener("change", () => {
      state.view = view;
      draw();
    });
    return element("label", {}, radio, view[0].toUpperCase() + view.slice(1));
  }));
  choice.setAttribute("role", "radiogroup");
  choice.setAttribute("aria-label", "View");

  const chips = slots.map((slot, k) => {
    const swatch = element("span", { className: "sb-swatch" });
    swatch.style.background = slot.color;
    const chip = element("label", { className: "sb-slot", title: `slot ${slot.name}` }, boxes[k], swatch, slot.name);
    boxes[k].setAttribute("aria-label", `slot ${slot.name}`);
    boxes[k].addEventListener("change", unselect);
    chip.addEventListener("pointerenter", event => event.pointerType === "mouse" && light(k));
    chip.addEventListener("pointerleave", () => light(NONE));
    return chip;
  });
  const all = element("button", { type: "button", textContent: "All" });
  const none = element("button", { type: "button", textContent: "None" });
  all.addEventListener("click", () => check(true));
  none.addEventListener("click", () => check(false));
  const chooser = element("div", { className: "sb-row sb-slots" }, element("span", { textContent: "Slots" }), ...chips, all, none);
  chooser.setAttribute("role", "group");
  chooser.setAttribute("aria-label", "Slots shown");

  for (const panel of panels) {
    const groupAt = event => {
      const box = panel.canvas.getBoundingClientRect();
      const x = Math.min(width - 1, Math.max(0, Math.floor((event.clientX - box.left) * width / box.width)));
      const y = Math.min(height - 1, Math.max(0, Math.floor((event.clientY - box.top) * height / box.height)));
      return regionsOf(panel).groups[y * width + x];
    };
    panel.canvas.addEventListener("pointermove", event => {
      const group = groupAt(event);
      panel.here.textContent = nameOf(panel, group);
      if (event.pointerType === "mouse") light(group);
    });
    panel.canvas.addEventListener("pointerleave", () => {
      panel.here.textContent = "";
      light(NONE);
    });
    panel.canvas.addEventListener("click", event => {
      const group = groupAt(event);
      const adds = event.shiftKey || event.ctrlKey || event.metaKey;
      if (group < data.nSlots) select(group, adds);
      else if (!adds) unselect();
    });
  }

  const stage = element("div", { className: "sb-panels", tabIndex: 0 }, ...panels.map(panel => element("figure", {},
    element("figcaption", {}, element("span", { className: "sb-name", textContent: panel.name }), panel.here), panel.canvas)));
  stage.setAttribute("role", "group");
  stage.setAttribute("aria-label", "Panels: arrows step, space plays, digits select a slot, Escape none");
  stage.style.maxWidth = `${26 * panels.length}rem`;
  const hint = element("p", { className: "sb-hint" });
  hint.setAttribute("role", "status");
  const live = element("div", { className: "sb-live" }, stage,
    element("div", { className: "sb-row" }, playButton, ...steps, element("label", { className: "sb-frame" }, "Frame", slider, frameOutput)),
    element("div", { className: "sb-row" }, element("label", {}, "Opacity", opacity, opacityOutput), choice),
    chooser, hint);
  live.dataset.lmSuppressShortcuts = "true";  // JupyterLab would take the keys as its own

  // A control keeps the keys that it knows itself.
  const moves = {
    ArrowLeft: () => go(model.get("frame") - 1),
    ArrowRight: () => go(model.get("frame") + 1),
    Home: () => go(0),
    End: () => go(lastFrame),
  };
  live.addEventListener("keydown", event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
    if (event.key in moves && !event.target.matches("[type=range], [type=radio]")) moves[event.key]();
    else if (event.key === " " && !event.target.matches("button, [type=checkbox], [type=radio]")) play(!state.timer);
    else if (event.key === "Escape") unselect();
    else if (digit && Number(digit[1]) < data.nSlots) select(Number(digit[1]), event.shiftKey);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  const root = el.matches(".slotmatch-browser") ? el : el.appendChild(element("div", { className: "slotmatch-browser" }));
  if (root !== el) {  // no page has named it yet
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", data.label || `slot masks: ${panels.map(panel => panel.name).join(", ")}`);
    if (data.label) root.append(element("p", { className: "sb-title", textContent: data.label }));
  }
  const events = ["frame", "selected", "opacity"].map(trait => `change:${trait}`);
  events.forEach(event => model.on(event, draw));
  play(false);
  draw();
  root.append(live);
  return () => {
    play(false);
    events.forEach(event => model.off(event, draw));
  };
};

// Brings the places of a static page to life that wait for these values.
export const fill = ({ id, ...values }) => {
  for (const el of document.querySelectorAll(`[data-slotmatch="${id}"]:not([data-ready])`)) {
    el.dataset.ready = "loading";
    el.slotmatch = values.content;
    render({ model: pageModel({ ...values }), el }).then(() => {
      el.querySelector(".sb-static").hidden = true;
      el.dataset.ready = "yes";
    }).catch(error => console.error(error));
  }
};

export default { render };
