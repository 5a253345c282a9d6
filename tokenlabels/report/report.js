"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const byId = (id) => document.getElementById(id);
  const figures = read("figures");
  const { samples, categories } = read("samples");
  const curve = figures.tau_curve;

  const FOREGROUND = 1, IGNORED = 255, BACKGROUND = 0;
  const CARD_SIDE = 520, LARGE_SIDE = 1200, MIN_SIDE = 24;
  const TOP_ROWS = 25;
  const state = { tau: figures.tau, boxes: true, grid: true, shown: [], large: null };

  // ---- numbers and words

  const integer = new Intl.NumberFormat("en-GB");
  const percent = (share) => `${(100 * share).toFixed(2)}%`;
  const tauText = (tau) => (Number.isInteger(Math.round(tau * 1e6) / 1e4) ? tau.toFixed(2) : String(tau));
  const plural = (count, word) => `${integer.format(count)} ${word}${count === 1 ? "" : "s"}`;

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  /** An untrusted name, apart from the direction of the text around it. */
  const named = (text) => element("bdi", { textContent: text });

  // ---- labels

  function bytes(text) {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  }

  function floats(text) {
    const view = new DataView(bytes(text).buffer);
    return Float32Array.from({ length: view.byteLength / 4 }, (_, index) => view.getFloat32(4 * index, true));
  }

  /** Edge i of an axis in source pixels; integers until the division, so rounded as Python rounds it. */
  const edges = ([step, start, divisor], count) =>
    Float64Array.from({ length: count + 1 }, (_, index) => (step * index + start) / divisor);

  function prepare(sample) {
    sample.yEdges = edges(sample.y, sample.rows);
    sample.xEdges = edges(sample.x, sample.cols);
    sample.cells = sample.rows * sample.cols;
    sample.scoreValues = sample.scores ? floats(sample.scores) : null;
    sample.ignorableValues = sample.ignorable ? bytes(sample.ignorable) : null;
    sample.storedLabels = sample.labels ? bytes(sample.labels) : null;
    const outside = (list, limit) => (index) => list[index + 1] <= 0 || list[index] >= limit;
    sample.padRow = Array.from({ length: sample.rows }, (_, row) => outside(sample.yEdges, sample.height)(row));
    sample.padCol = Array.from({ length: sample.cols }, (_, col) => outside(sample.xEdges, sample.width)(col));
    sample.covered = sample.objects.map((object) => coveredCells(sample, object.bbox));
    sample.layers = new Map();
  }

  /** Labels at a threshold, by the rule of `relabel`: float32 against float32, padding never foreground. */
  function labelsAt(sample, tau) {
    if (!sample.scoreValues) return sample.storedLabels;
    const threshold = Math.fround(tau);
    const labels = new Uint8Array(sample.cells);
    for (let row = 0, cell = 0; row < sample.rows; row++) {
      for (let col = 0; col < sample.cols; col++, cell++) {
        const score = sample.scoreValues[cell];
        const passes =
          !sample.padRow[row] && !sample.padCol[col] && (figures.inclusive ? score >= threshold : score > threshold);
        labels[cell] = passes ? FOREGROUND : sample.ignorableValues?.[cell] ? IGNORED : BACKGROUND;
      }
    }
    return labels;
  }

  /** Cells that a box, cut to the image, covers by at least half: the arithmetic of `count_patches`. */
  function coveredCells(sample, [x, y, width, height]) {
    const left = Math.max(x, 0), top = Math.max(y, 0);
    const right = Math.min(x + width, sample.width), bottom = Math.min(y + height, sample.height);
    const cells = [];
    if (!(right > left && bottom > top)) return cells;
    const { yEdges, xEdges } = sample;
    for (let row = 0; row < sample.rows; row++) {
      if (yEdges[row + 1] <= top || yEdges[row] >= bottom) continue;
      const high = (Math.min(bottom, yEdges[row + 1]) - Math.max(top, yEdges[row])) / (yEdges[row + 1] - yEdges[row]);
      for (let col = 0; col < sample.cols; col++) {
        if (xEdges[col + 1] <= left || xEdges[col] >= right) continue;
        const wide = (Math.min(right, xEdges[col + 1]) - Math.max(left, xEdges[col])) / (xEdges[col + 1] - xEdges[col]);
        if (high * wide >= 0.5) cells.push(row * sample.cols + col);
      }
    }
    return cells;
  }

  function relabel(sample) {
    const labels = labelsAt(sample, state.tau);
    sample.now = labels;
    if (labels) {
      sample.foregroundNow = labels.reduce((sum, label) => sum + (label === FOREGROUND), 0);
      sample.ignoredNow = labels.reduce((sum, label) => sum + (label === IGNORED), 0);
      sample.patchesNow = sample.covered.map((cells) => cells.filter((cell) => labels[cell] === FOREGROUND).length);
    } else {
      sample.foregroundNow = sample.foreground;
      sample.ignoredNow = sample.ignored;
      sample.patchesNow = sample.objects.map((object) => object.patches);
    }
    const counted = sample.cells - sample.ignoredNow;
    sample.shareNow = counted ? sample.foregroundNow / counted : 0;
  }

  const builtShare = (sample) => sample.foreground / Math.max(sample.cells - sample.ignored, 1);

  function described(sample) {
    const ignored = sample.ignoredNow ? `, ${integer.format(sample.ignoredNow)} ignored` : "";
    return `image ${sample.id}: ${integer.format(sample.foregroundNow)} of ${integer.format(sample.cells)} patches foreground${ignored}`;
  }

  // ---- painting

  const palette = {};

  /** Colours of the style sheet as a canvas wants them: computed, for the theme of now. */
  function renewPalette() {
    const probe = byId("cards");
    for (const name of ["cell-foreground", "cell-background", "cell-padding"]) {
      probe.style.color = `var(--${name})`;
      palette[name] = getComputedStyle(probe).color;
    }
    probe.style.color = "";
  }

  /** Where source pixels go on a canvas whose longer side has `side` pixels; padding is part of it. */
  function frame(sample, side) {
    const left = Math.min(0, sample.xEdges[0]), top = Math.min(0, sample.yEdges[0]);
    const width = Math.max(sample.width, sample.xEdges[sample.cols]) - left;
    const height = Math.max(sample.height, sample.yEdges[sample.rows]) - top;
    const scale = side / Math.max(width, height);
    const canvasWidth = Math.max(MIN_SIDE, Math.round(width * scale));
    const canvasHeight = Math.max(MIN_SIDE, Math.round(height * scale));
    return {
      width: canvasWidth,
      height: canvasHeight,
      x: (value) => Math.round(((value - left) * canvasWidth) / width),
      y: (value) => Math.round(((value - top) * canvasHeight) / height),
    };
  }

  function surface(width, height) {
    return element("canvas", { width, height });
  }

  /** Grey and darker. */
  function dim(canvas) {
    const pen = canvas.getContext("2d");
    const pixels = pen.getImageData(0, 0, canvas.width, canvas.height), values = pixels.data;
    for (let index = 0; index < values.length; index += 4) {
      const light = 0.3 * values[index] + 0.59 * values[index + 1] + 0.11 * values[index + 2];
      values[index] = values[index + 1] = values[index + 2] = 0.45 * light + 58;
    }
    pen.putImageData(pixels, 0, 0);
  }

  /** What a canvas shows where a patch is foreground, padding tinted, and where it is not. */
  function layers(sample, place, side) {
    const kept = sample.layers.get(side);
    if (kept) return kept;
    const clear = surface(place.width, place.height), grey = surface(place.width, place.height);
    const area = [place.x(0), place.y(0), place.x(sample.width) - place.x(0), place.y(sample.height) - place.y(0)];
    const whole = [0, 0, place.width, place.height];
    for (const [canvas, padding, ground] of [
      [clear, "cell-foreground", "cell-foreground"],
      [grey, "cell-padding", "cell-background"],
    ]) {
      const pen = canvas.getContext("2d", { willReadFrequently: canvas === grey });
      pen.fillStyle = palette[padding];
      pen.fillRect(...whole);
      pen.fillStyle = palette[ground];
      pen.fillRect(...area);
      if (sample.bitmap) pen.drawImage(sample.bitmap, ...(sample.covers_input ? whole : area));
    }
    if (sample.bitmap) dim(grey);
    const made = { clear, grey };
    sample.layers.set(side, made);
    return made;
  }

  /** Rectangles of all cells with one label, neighbours in a row as one. */
  function cellPath(sample, place, label) {
    const path = new Path2D();
    for (let row = 0; row < sample.rows; row++) {
      const top = place.y(sample.yEdges[row]), bottom = place.y(sample.yEdges[row + 1]);
      for (let col = 0; col < sample.cols; col++) {
        if (sample.now[row * sample.cols + col] !== label) continue;
        const first = col;
        while (col + 1 < sample.cols && sample.now[row * sample.cols + col + 1] === label) col++;
        const left = place.x(sample.xEdges[first]);
        path.rect(left, top, place.x(sample.xEdges[col + 1]) - left, bottom - top);
      }
    }
    return path;
  }

  /** The outline of the foreground. */
  function outlinePath(sample, place) {
    const path = new Path2D();
    const is = (row, col) =>
      row >= 0 && col >= 0 && row < sample.rows && col < sample.cols && sample.now[row * sample.cols + col] === FOREGROUND;
    const line = (fromX, fromY, toX, toY) => {
      path.moveTo(fromX, fromY);
      path.lineTo(toX, toY);
    };
    for (let row = 0; row < sample.rows; row++) {
      const top = place.y(sample.yEdges[row]), bottom = place.y(sample.yEdges[row + 1]);
      for (let col = 0; col < sample.cols; col++) {
        if (!is(row, col)) continue;
        const left = place.x(sample.xEdges[col]), right = place.x(sample.xEdges[col + 1]);
        if (!is(row - 1, col)) line(left, top, right, top);
        if (!is(row + 1, col)) line(left, bottom, right, bottom);
        if (!is(row, col - 1)) line(left, top, left, bottom);
        if (!is(row, col + 1)) line(right, top, right, bottom);
      }
    }
    return path;
  }

  function hatch(pen, width, height) {
    pen.fillStyle = "#dcdcdc";
    pen.fillRect(0, 0, width, height);
    pen.strokeStyle = "#555555";
    pen.lineWidth = 3;
    pen.beginPath();
    for (let offset = -height; offset < width; offset += 8) {
      pen.moveTo(offset, height);
      pen.lineTo(offset + height, 0);
    }
    pen.stroke();
  }

  function stroke(pen, path, width, inner, dashes = []) {
    pen.lineJoin = "miter";
    pen.setLineDash([]);
    pen.lineWidth = width + 2;
    pen.strokeStyle = "rgb(0 0 0 / 0.75)";
    pen.stroke(path);
    pen.setLineDash(dashes);
    pen.lineWidth = width;
    pen.strokeStyle = inner;
    pen.stroke(path);
    pen.setLineDash([]);
  }

  const OUTLINE = "#ffffff", BOX = "#56b4e9", LOST = "#f0e442";

  function paint(canvas, sample, side) {
    const place = frame(sample, side);
    if (canvas.width !== place.width || canvas.height !== place.height) {
      canvas.width = place.width;
      canvas.height = place.height;
    }
    const pen = canvas.getContext("2d");
    const { clear, grey } = layers(sample, place, side);
    if (!sample.now) {
      pen.drawImage(clear, 0, 0);
    } else {
      pen.drawImage(grey, 0, 0);
      pen.save();
      pen.clip(cellPath(sample, place, FOREGROUND));
      pen.drawImage(clear, 0, 0);
      pen.restore();
      if (sample.ignoredNow) {
        pen.save();
        pen.clip(cellPath(sample, place, IGNORED));
        hatch(pen, place.width, place.height);
        pen.restore();
      }
    }
    if (state.grid) paintGrid(pen, sample, place);
    const width = side > CARD_SIDE ? 3 : 2;
    if (state.boxes) paintBoxes(pen, sample, place, width);
    if (sample.now) stroke(pen, outlinePath(sample, place), width, OUTLINE);
  }

  function paintGrid(pen, sample, place) {
    const path = new Path2D();
    if (place.width / sample.cols < 4 || place.height / sample.rows < 4) return; // lines would hide the picture
    for (const edge of sample.xEdges) {
      path.moveTo(place.x(edge) + 0.5, 0);
      path.lineTo(place.x(edge) + 0.5, place.height);
    }
    for (const edge of sample.yEdges) {
      path.moveTo(0, place.y(edge) + 0.5);
      path.lineTo(place.width, place.y(edge) + 0.5);
    }
    pen.lineWidth = 1;
    pen.strokeStyle = "rgb(128 128 128 / 0.4)";
    pen.stroke(path);
  }

  function paintBoxes(pen, sample, place, width) {
    const clamp = (value, limit) => Math.min(Math.max(value, 1), limit - 1);
    sample.objects.forEach(({ bbox: [x, y, wide, high] }, index) => {
      const left = clamp(place.x(x), place.width), right = clamp(place.x(x + wide), place.width);
      const top = clamp(place.y(y), place.height), bottom = clamp(place.y(y + high), place.height);
      const path = new Path2D();
      path.rect(left, top, right - left, bottom - top);
      const lost = sample.patchesNow[index] === 0;
      stroke(pen, path, width, lost ? LOST : BOX, lost ? [2 * width, 2 * width] : []);
    });
  }

  function paintSwatches() {
    for (const canvas of document.querySelectorAll("[data-swatch]")) {
      const kind = canvas.dataset.swatch, pen = canvas.getContext("2d");
      const { width, height } = canvas;
      pen.clearRect(0, 0, width, height);
      pen.fillStyle = kind === "foreground" ? "#5b9a4f" : "#7c7c7c";
      pen.fillRect(0, 0, width, height);
      const path = new Path2D();
      path.rect(5, 5, width - 10, height - 10);
      if (kind === "foreground") stroke(pen, path, 3, OUTLINE);
      if (kind === "ignored") hatch(pen, width, height);
      if (kind === "box") stroke(pen, path, 4, BOX);
      if (kind === "lost") stroke(pen, path, 4, LOST, [7, 7]);
    }
  }

  let painting = false;
  function paintSoon() {
    if (painting) return;
    painting = true;
    requestAnimationFrame(() => {
      painting = false;
      for (const sample of state.shown) paint(sample.canvas, sample, CARD_SIDE);
      if (state.large) paint(byId("large-canvas"), state.large, LARGE_SIDE);
    });
  }

  // ---- cards

  function makeCard(sample) {
    sample.canvas = element("canvas", { width: 16, height: 16 });
    sample.canvas.setAttribute("role", "img");
    sample.canvas.addEventListener("click", () => openLarge(sample));
    const open = element("button", { type: "button" }, named(sample.id));
    open.setAttribute("aria-label", `Enlarge image ${sample.id}`);
    open.addEventListener("click", () => openLarge(sample));
    sample.shareElement = element("span", { className: "share" });
    sample.countElement = element("p");
    const caption = element("figcaption", {}, open, sample.shareElement, sample.countElement);
    const held = contents(sample);
    if (held.length) caption.append(element("p", {}, ...held));
    if (sample.note) caption.append(element("p", { textContent: sample.note }));
    const figure = element("figure", { className: "sample" }, element("div", { className: "stage" }, sample.canvas), caption);
    sample.card = element("li", {}, figure);
  }

  /** Categories of a sample: of its objects, and those that cover most of some patch. */
  function categoriesOf(sample) {
    return new Set([...sample.objects.map((object) => object.category), ...sample.covering]);
  }

  /** Categories of a sample with how often each occurs, most frequent first. */
  function contents(sample) {
    const counts = new Map();
    for (const { category } of sample.objects) counts.set(category, (counts.get(category) ?? 0) + 1);
    if (!sample.objects.length) for (const category of sample.covering) counts.set(category, 1);
    const ordered = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    const parts = ordered.slice(0, 4).flatMap(([category, count], index) => [
      index ? ", " : "",
      named(categories[category]),
      count > 1 ? ` × ${count}` : "",
    ]);
    if (ordered.length > 4) parts.push(`, and ${ordered.length - 4} more`);
    return parts;
  }

  function describe(sample) {
    const lost = sample.patchesNow.filter((patches) => patches === 0).length;
    const text = described(sample);
    sample.canvas.setAttribute("aria-label", text);
    Object.assign(sample.card.dataset, { foreground: sample.foregroundNow, ignored: sample.ignoredNow, lost });
    sample.shareElement.textContent = percent(sample.shareNow);
    const parts = [`${integer.format(sample.foregroundNow)} of ${integer.format(sample.cells)} patches`];
    if (sample.ignoredNow) parts.push(`${integer.format(sample.ignoredNow)} ignored`);
    if (lost) parts.push(`${integer.format(lost)} of ${plural(sample.objects.length, "object")} lost`);
    if (splits.length > 1) parts.push(sample.split);
    sample.countElement.textContent = parts.join(" · ");
  }

  // ---- threshold

  const moving = byId("tau-marker");

  function wholeFigures() {
    const stop = Math.round(state.tau * 100);
    if (curve && curve.tau[stop] === state.tau) {
      return { foreground: curve.foreground[stop], ignored: curve.ignored[stop], share: curve.fg_share[stop] };
    }
    return { foreground: figures.foreground, ignored: figures.ignored, share: figures.fg_share };
  }

  function setTau(tau) {
    state.tau = tau;
    const slider = byId("tau");
    slider.value = String(tau);
    slider.setAttribute("aria-valuetext", tauText(tau));
    byId("tau-value").textContent = tauText(tau);
    byId("tau-reset").disabled = !curve || tau === figures.tau;
    const whole = wholeFigures();
    const ignored = whole.ignored ? `, ${integer.format(whole.ignored)} ignored` : "";
    const status = byId("whole");
    status.replaceChildren(
      "Whole build: ",
      element("strong", { textContent: percent(whole.share) }),
      ` foreground, ${integer.format(whole.foreground)} of ${integer.format(figures.patches)} patches${ignored}`,
    );
    Object.assign(status.dataset, { foreground: whole.foreground, ignored: whole.ignored, share: whole.share });
    if (moving) {
      const { left, right, top, bottom, max } = moving.dataset;
      const x = Number(left) + tau * (right - left);
      const [line, dot] = moving.children;
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", bottom - (Math.min(whole.share, max) / max) * (bottom - top));
      moving.setAttribute("visibility", "visible");
    }
    for (const sample of samples) {
      relabel(sample);
      describe(sample);
    }
    paintSoon();
  }

  // ---- choosing what is shown

  const splits = [...new Set(samples.map((sample) => sample.split))];
  const orders = {
    most: (a, b) => builtShare(b) - builtShare(a),
    least: (a, b) => builtShare(a) - builtShare(b),
    id: (a, b) => a.id.localeCompare(b.id, "en", { numeric: true }),
  };

  function fillChoices() {
    const held = new Map();
    for (const sample of samples) {
      for (const category of categoriesOf(sample)) {
        held.set(category, (held.get(category) ?? 0) + 1);
      }
    }
    const option = (value, text) => element("option", { value, textContent: text });
    byId("category").append(
      option("", "all"),
      ...[...held]
        .sort((a, b) => categories[a[0]].localeCompare(categories[b[0]], "en"))
        .map(([category, count]) => option(String(category), `${categories[category]} (${count})`)),
    );
    byId("split").append(option("", "all"), ...splits.map((split) => option(split, split)));
    byId("split-choice").hidden = splits.length < 2;
  }

  function choose() {
    const category = byId("category").value, split = byId("split").value;
    const fits = (sample) =>
      (!category || categoriesOf(sample).has(Number(category))) &&
      (!split || sample.split === split);
    const ordered = [...samples].sort(orders[byId("sort").value]);
    state.shown = ordered.filter(fits);
    byId("cards").replaceChildren(...state.shown.map((sample) => sample.card));
    byId("none").hidden = state.shown.length > 0 || !samples.length;
    byId("shown").textContent = samples.length
      ? `${state.shown.length} of ${plural(samples.length, "sample")} shown, chosen across the range of foreground shares. Sorting is by the build's labels.`
      : "This report was made without samples.";
    paintSoon();
  }

  // ---- one sample, large

  const dialog = byId("large");

  function openLarge(sample) {
    state.large = sample;
    const canvas = byId("large-canvas");
    byId("large-title").replaceChildren("Image ", named(sample.id));
    const facts = [`${sample.split}, `, named(sample.file_name), `, ${sample.width} × ${sample.height} px, `];
    facts.push(`${sample.rows} × ${sample.cols} patches, tau ${tauText(state.tau)}: ${described(sample).split(": ").at(-1)}.`);
    if (sample.note) facts.push(` ${sample.note}`);
    if (sample.objects_left_out) facts.push(` ${plural(sample.objects_left_out, "further object")} are not in this page.`);
    byId("large-facts").replaceChildren(...facts);
    canvas.setAttribute("aria-label", described(sample));
    byId("large-objects").replaceChildren(
      ...sample.objects.map((object, index) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, named(categories[object.category]), object.crowd ? " (crowd)" : ""),
          element("td", { className: "number", textContent: integer.format(Math.round(object.area)) }),
          element("td", { className: "number", textContent: sample.patchesNow[index] || "0, lost" }),
          element("td", { className: "number", textContent: object.id }),
        ),
      ),
    );
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    paint(canvas, sample, LARGE_SIDE);
  }

  function stepLarge(by) {
    const count = state.shown.length;
    openLarge(state.shown[(state.shown.indexOf(state.large) + by + count) % count]);
  }

  // ---- tables that sort

  function makeSortable(table) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    const more = element("button", { type: "button", className: "more" });
    let all = rows.length <= TOP_ROWS;
    const show = () => {
      [...body.rows].forEach((row, index) => (row.hidden = !all && index >= TOP_ROWS));
      more.textContent = all ? `Show the first ${TOP_ROWS}` : `Show all ${integer.format(rows.length)}`;
      more.setAttribute("aria-expanded", String(all));
    };
    if (!all) {
      table.parentElement.after(more);
      more.addEventListener("click", () => {
        all = !all;
        show();
      });
    }
    heads.forEach((head, column) => {
      const numeric = head.classList.contains("number");
      const button = element("button", { type: "button", textContent: head.textContent });
      head.replaceChildren(button);
      if (column === 1) head.setAttribute("aria-sort", "descending");
      button.addEventListener("click", () => {
        const down = head.ariaSort ? head.ariaSort === "ascending" : numeric;
        const value = (row) => row.cells[column].dataset.value;
        const compare = numeric ? (a, b) => value(a) - value(b) : (a, b) => value(a).localeCompare(value(b), "en");
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        body.append(...[...rows].sort((a, b) => (down ? -compare(a, b) : compare(a, b))));
        show();
      });
    });
    show();
  }

  // ---- theme

  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";

  function themeChanged() {
    byId("theme").textContent = isDark() ? "Light theme" : "Dark theme";
    renewPalette();
    for (const sample of samples) sample.layers.clear();
    paintSoon();
  }

  // ---- start

  function start() {
    document.documentElement.classList.add("script");
    samples.forEach(prepare);
    samples.forEach(makeCard);
    fillChoices();
    themeChanged();
    paintSwatches();
    for (const part of document.querySelectorAll("[data-boxes]")) part.hidden = !samples.some(({ objects }) => objects.length);
    setTau(figures.tau);
    choose();
    document.querySelectorAll("table[data-sorts]").forEach(makeSortable);
    for (const sample of samples.filter(({ picture }) => picture)) {
      const image = new Image();
      image.addEventListener("load", () => {
        sample.bitmap = image;
        sample.layers.clear();
        paintSoon();
      });
      image.src = sample.picture;
    }
    byId("tau").addEventListener("input", (event) => setTau(Math.round(Number(event.target.value) * 100) / 100));
    byId("tau-reset").addEventListener("click", () => {
      setTau(figures.tau);
      byId("tau").focus();
    });
    for (const id of ["category", "split", "sort"]) byId(id).addEventListener("change", choose);
    for (const [id, key] of [["show-boxes", "boxes"], ["show-grid", "grid"]]) {
      byId(id).addEventListener("change", (event) => {
        state[key] = event.target.checked;
        paintSoon();
      });
    }
    byId("show-all").addEventListener("click", () => {
      byId("category").value = byId("split").value = "";
      choose();
      byId("category").focus();
    });
    byId("large-previous").addEventListener("click", () => stepLarge(-1));
    byId("large-next").addEventListener("click", () => stepLarge(1));
    byId("large-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => (state.large = null));
    dialog.addEventListener("keydown", (event) => {
      if (event.target.closest(".scroll")) return;
      if (event.key === "ArrowLeft") stepLarge(-1);
      if (event.key === "ArrowRight") stepLarge(1);
    });
    byId("theme").addEventListener("click", () => {
      document.documentElement.dataset.theme = isDark() ? "light" : "dark";
      themeChanged();
    });
    prefersDark.addEventListener("change", themeChanged);
  }

  start();
})();
