(data => {
  "use strict";
  const NONE = 255;
  const PLAY_MILLISECONDS = 150;
  const [width, height] = data.canvas;
  const nFrames = data.frames.length;

  const element = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };

  const decode = uri => new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("slotmatch browser: a picture could not be decoded"));
    image.src = uri;
  });

  const surface = (w, h) => {
    const canvas = element("canvas", { width: w, height: h });
    return [canvas, canvas.getContext("2d", { willReadFrequently: true })];
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

  const largestMask = (panel, grey) => {
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

  const nearestLabel = (panel, grey) => {
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
  const borders = groups => {
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

  const softPaint = (panel, grey, shown, opacity, pixels) => {
    const [w, h] = panel.size;
    const cells = w * h;
    const light = new Float32Array(4 * cells);
    panel.groups.forEach((group, k) => {
      if (!shown(group)) return;
      const [red, green, blue] = data.groups[group].rgb;
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

  const regionPaint = ({ groups, edge }, shown, opacity, isFilled, lit, pixels) => {
    for (let i = 0; i < groups.length; i++) {
      const group = groups[i];
      const out = 4 * i;
      pixels[out + 3] = 0;
      if (group === NONE || !shown(group)) continue;
      const isLit = group === lit;
      const ringed = isLit && edge[i] > 0;
      const [red, green, blue] = ringed ? [255, 255, 255] : data.groups[group].rgb;
      const dimmed = lit !== NONE && !isLit ? 0.5 : 1;
      pixels[out] = red;
      pixels[out + 1] = green;
      pixels[out + 2] = blue;
      pixels[out + 3] = 255 * (ringed ? 1 : dimmed * (edge[i] === 1 || (!isFilled && edge[i])
        ? Math.min(1, 1.8 * opacity) : isFilled ? opacity : 0));
    }
  };

  const start = async (root, number) => {
    const frames = await Promise.all(data.frames.map(decode));
    const panels = await Promise.all(data.panels.map(async panel => {
      const masks = (await Promise.all(panel.images.map(decode))).map(greyValues);
      const canvas = element("canvas", { width, height });
      canvas.setAttribute("role", "img");
      const here = element("span", { className: "sb-here" });
      const [layer, layerContext] = surface(width, height);
      const image = layerContext.createImageData(width, height);
      return { ...panel, masks, canvas, here, layer, layerContext, image, regions: new Map() };
    }));
    const state = { frame: 0, opacity: 0.55, view: "regions", lit: NONE, alone: NONE, timer: 0 };
    const slots = data.groups.slice(0, data.nSlots);
    const boxes = slots.map(slot => element("input", { type: "checkbox", checked: true, value: slot.name }));

    const regionsOf = panel => {
      if (!panel.regions.has(state.frame)) {
        const grey = panel.masks[state.frame];
        const groups = panel.soft ? largestMask(panel, grey) : nearestLabel(panel, grey);
        panel.regions.set(state.frame, { groups, edge: borders(groups) });
      }
      return panel.regions.get(state.frame);
    };
    const nameOf = (panel, group) =>
      group === NONE ? panel.isTruth ? "background" : "" : group >= data.nSlots ? "unmatched object" : `slot ${data.groups[group].name}`;

    const draw = () => {
      const time = data.times[state.frame];
      for (const panel of panels) {
        const shown = group => panel.isTruth || boxes[group].checked;
        if (state.view === "soft" && panel.soft) {
          softPaint(panel, panel.masks[state.frame], group => shown(group) && (state.lit === NONE || group === state.lit),
            state.opacity, panel.image.data);
        } else {
          regionPaint(regionsOf(panel), shown, state.opacity, state.view !== "outlines", state.lit, panel.image.data);
        }
        panel.layerContext.putImageData(panel.image, 0, 0);
        const context = panel.canvas.getContext("2d");
        context.drawImage(frames[state.frame], 0, 0, width, height);
        context.drawImage(panel.layer, 0, 0);
        panel.canvas.setAttribute("aria-label", `${panel.name}, frame ${time}`);
      }
      slider.value = state.frame;
      slider.setAttribute("aria-valuetext", `frame ${time} of ${data.nTotal}`);
      frameOutput.value = `${time} / ${data.nTotal - 1}`;
      opacityOutput.value = `${Math.round(100 * state.opacity)} %`;
      chips.forEach((chip, k) => chip.classList.toggle("sb-lit", state.lit === k));
    };
    const light = group => {
      if (group === state.lit) return;
      state.lit = group;
      draw();
    };
    const showOnly = group => {
      state.alone = group;
      boxes.forEach((box, k) => { box.checked = group === NONE || k === group; });
      draw();
    };
    const play = on => {
      clearInterval(state.timer);
      state.timer = on ? setInterval(() => {
        if (!root.isConnected) return play(false);
        state.frame = (state.frame + 1) % nFrames;
        draw();
      }, PLAY_MILLISECONDS) : 0;
      playButton.textContent = on ? "Pause" : "Play";
    };

    const slider = element("input", { type: "range", min: 0, max: nFrames - 1, step: 1, value: 0, className: "sb-slider" });
    slider.addEventListener("input", () => {
      play(false);
      state.frame = Number(slider.value);
      draw();
    });
    const frameOutput = element("output");
    const playButton = element("button", { type: "button", className: "sb-play" });
    playButton.addEventListener("click", () => play(!state.timer));

    const opacity = element("input", { type: "range", min: 0, max: 100, step: 5, value: 100 * state.opacity, className: "sb-opacity" });
    const opacityOutput = element("output");
    opacity.addEventListener("input", () => {
      state.opacity = opacity.value / 100;
      draw();
    });

    const views = ["regions", "outlines", ...data.panels.some(panel => panel.soft) ? ["soft"] : []];
    const choice = element("span", { className: "sb-choice" }, ...views.map(view => {
      const radio = element("input", { type: "radio", name: `${data.id}-${number}`, value: view, checked: view === state.view });
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
      boxes[k].addEventListener("change", () => {
        state.alone = NONE;
        draw();
      });
      chip.addEventListener("pointerenter", event => event.pointerType === "mouse" && light(k));
      chip.addEventListener("pointerleave", () => light(NONE));
      return chip;
    });
    const all = element("button", { type: "button", textContent: "All" });
    const none = element("button", { type: "button", textContent: "None" });
    all.addEventListener("click", () => showOnly(NONE));
    none.addEventListener("click", () => {
      boxes.forEach(box => { box.checked = false; });
      state.alone = NONE;
      draw();
    });
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
        showOnly(group >= data.nSlots || group === state.alone ? NONE : group);
      });
    }

    const stage = element("div", { className: "sb-panels" }, ...panels.map(panel => element("figure", {},
      element("figcaption", {}, element("span", { className: "sb-name", textContent: panel.name }), panel.here), panel.canvas)));
    stage.style.maxWidth = `${26 * panels.length}rem`;
    const live = element("div", { className: "sb-live" }, stage,
      element("div", { className: "sb-row" }, playButton, element("label", { className: "sb-frame" }, "Frame", slider, frameOutput)),
      element("div", { className: "sb-row" }, element("label", {}, "Opacity", opacity, opacityOutput), choice),
      chooser,
      element("p", { className: "sb-hint", textContent: "Point at a region to light up its slot in every panel; click to see it alone." }));
    play(false);
    draw();
    root.append(live);
    root.querySelector(".sb-static").hidden = true;
    root.dataset.ready = "yes";
  };

  document.querySelectorAll(`[data-slotmatch="${data.id}"]:not([data-ready])`).forEach((root, number) => {
    root.dataset.ready = "loading";
    root.slotmatch = data;
    start(root, `${document.querySelectorAll("[data-ready]").length}-${number}`)
      .catch(error => console.error(error));
  });
})
