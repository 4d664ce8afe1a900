"use strict";
// Draw the attention of every head, and the heat maps of the other views. No library, no request.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const words = data.words;
const fill = (name, values) => words[name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
const spoken = document.getElementById("spoken");

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value; else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};

// ---- numbers and colours ----
const DIGITS = 4;  // the tiles are at most 0.0039 off; a third digit alone could add 0.0005
const asWeight = (value) => Number.isNaN(value) ? words.empty : value.toFixed(DIGITS);
const asNumber = (value) => value === null || Number.isNaN(value) ? words.empty : String(Number(value.toPrecision(4)));
const RAMPS = {
  light: { weights: ["#ffffff", "#dbe9f6", "#9ac8e0", "#4a90c2", "#1b5a9c", "#08264f"],
           signed: ["#1b5a9c", "#8fbfdd", "#f7f7f7", "#f0a582", "#b2182b"] },
  dark: { weights: ["#14181d", "#17324f", "#1f5f8f", "#3f9ac0", "#9fd6d6", "#fff7d0"],
          signed: ["#6db7ff", "#28527d", "#1d232a", "#8a3d2a", "#ff9a70"] },
};
const darkness = matchMedia("(prefers-color-scheme: dark)");
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function ramp(scale) {
  const stops = RAMPS[darkness.matches ? "dark" : "light"][scale === "signed" ? "signed" : "weights"]
    .map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, code) => {
    const place = code / 255 * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(place)), part = place - i;
    return stops[i].map((low, channel) => Math.round(low + part * (stops[i + 1][channel] - low)));
  });
}

// low and high of a matrix, and the colour (0 to 255) of a value; NaN has none
function measure(values, scale) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {  // NaN is neither
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low === Infinity) [low, high] = [0, 0];
  if (scale === "weights") low = 0;
  if (scale === "signed") { high = Math.max(Math.abs(low), Math.abs(high)); low = -high; }
  const span = high - low || 1, steps = Math.log(high / low) || 1;
  const code = {
    weights: (value) => 255 * Math.sqrt(value / span),
    logs: (value) => 255 * Math.log(value / low) / steps,
  }[scale] || ((value) => 255 * (value - low) / span);
  return { low, high, code: (value) => Math.max(0, Math.min(255, Math.round(code(value)))) };
}

function picture(values, rows, columns, scale) {
  const canvas = make("canvas", { width: columns, height: rows }), pen = canvas.getContext("2d");
  const image = pen.createImageData(columns, rows), colours = ramp(scale), { code } = measure(values, scale);
  const packed = colours.map(([red, green, blue]) => (255 << 24 | blue << 16 | green << 8 | red) >>> 0);
  const pixels = new Uint32Array(image.data.buffer);
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(style("--none").slice(at, at + 2), 16));
  const none = (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
  for (let i = 0; i < values.length; i++) pixels[i] = Number.isNaN(values[i]) ? none : packed[code(values[i])];
  pen.putImageData(image, 0, 0);
  return canvas;
}

// ---- tiles: a grey PNG with a tile a head; a pixel is round(255 sqrt(weight)) ----
const WEIGHT = Float32Array.from({ length: 256 }, (_, code) => (code / 255) ** 2);
async function readTiles(uri, across, heads, rows, columns) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const canvas = make("canvas", { width: columns, height: rows });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  return Array.from({ length: heads }, (_, head) => {
    const x = (head % across) * columns, y = Math.floor(head / across) * rows;
    pen.drawImage(image, x, y, columns, rows, 0, 0, columns, rows);
    const pixels = pen.getImageData(0, 0, columns, rows).data;
    const codes = new Uint8Array(rows * columns);
    for (let i = 0; i < codes.length; i++) codes[i] = pixels[4 * i];
    return codes;
  });
}
function weightsOf(codes) {
  const weights = new Float32Array(codes.length);
  for (let i = 0; i < codes.length; i++) weights[i] = WEIGHT[codes[i]];
  return weights;
}

const LEAST_LEFT = 0.005;
function withoutSinks(values, rows, columns, sinks) {
  const result = values.slice();
  for (let i = 0; i < rows; i++) {
    const row = result.subarray(i * columns, (i + 1) * columns);
    for (const key of sinks) row[key] = NaN;
    let sum = 0;
    for (const value of row) if (!Number.isNaN(value)) sum += value;
    for (let j = 0; j < columns; j++) row[j] = sum < LEAST_LEFT ? NaN : row[j] / sum;
  }
  return result;
}

function strongest(values, count) {
  const best = [];
  for (let i = 0; i < values.length; i++) {
    if (!(values[i] > 0) || (best.length === count && values[i] <= values[best[count - 1]])) continue;
    let place = best.length;
    while (place > 0 && values[best[place - 1]] < values[i]) place--;
    best.splice(place, 0, i);
    if (best.length > count) best.pop();
  }
  return best;
}

// ---- one heat map with labels, zoom and a cell that keys and pointer move ----
const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
const ruler = make("canvas").getContext("2d");
ruler.font = FONT;
const widths = new Map();
function widthOf(text) {
  if (!widths.has(text)) widths.set(text, ruler.measureText(text).width);
  return widths.get(text);
}
function shorten(text, width) {
  if (widthOf(text) <= width) return text;
  const signs = Array.from(text);
  while (signs.length && widthOf(signs.join("") + "…") > width) signs.pop();
  return signs.length ? signs.join("") + "…" : "";
}

class Grid {
  constructor(host, help, name) {
    this.canvas = make("canvas", { tabindex: 0, role: "application", "aria-label": name });
    this.space = make("div", {}, this.canvas);
    this.scroller = make("div", { class: "scroller" }, this.space);
    this.ramp = make("canvas", { class: "ramp", width: 256, height: 1, "aria-hidden": "true" });
    this.range = make("span");
    this.readout = make("p", { class: "readout none", text: words.choose_cell });
    const button = (text, name, action) => {
      const element = make("button", { type: "button", text, "aria-label": name, title: name });
      element.addEventListener("click", action);
      return element;
    };
    const tools = make("div", { class: "tools" },
      button("−", words.zoom_out, () => this.zoom(1 / 1.5)), button("+", words.zoom_in, () => this.zoom(1.5)),
      button("↔", words.zoom_fit, () => this.fit()), this.ramp, this.range);
    host.append(tools, this.scroller, this.readout, help);
    this.canvas.setAttribute("aria-describedby", help.id);
    this.cell = null;
    this.pen = this.canvas.getContext("2d");
    this.scroller.addEventListener("scroll", () => this.draw());
    this.canvas.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") this.point(event); });
    this.canvas.addEventListener("click", (event) => this.point(event));
    this.canvas.addEventListener("keydown", (event) => this.press(event));
    this.canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, event.offsetX, event.offsetY);
    }, { passive: false });
    let seen = 0;
    new ResizeObserver(() => { if (host.clientWidth && host.clientWidth !== seen) { seen = host.clientWidth; this.fit(); } }).observe(host);
    this.host = host;
  }

  // map: rows, columns (labels), values (row by row), scale, texts or null, say(i, j) for the readout
  show(map, keepZoom = false) {
    const same = this.map && map.rows.length === this.map.rows.length && map.columns.length === this.map.columns.length;
    this.map = map;
    if (!same) this.cell = null;
    this.rowWidth = Math.max(...map.rows.map(widthOf), 10);
    this.columnWidth = Math.max(...map.columns.map(widthOf), 10);
    this.paint();
    if (same && keepZoom && this.wide) this.draw(); else this.fit();
    this.tell();
  }

  tell() {
    this.readout.textContent = this.cell ? this.map.say(...this.cell) : words.choose_cell;
    this.readout.classList.toggle("none", !this.cell);
  }

  paint() {
    const { rows, columns, values, scale } = this.map;
    this.image = picture(values, rows.length, columns.length, scale);
    const { low, high } = measure(values, scale), colours = ramp(scale), pen = this.ramp.getContext("2d");
    colours.forEach(([red, green, blue], x) => { pen.fillStyle = `rgb(${red} ${green} ${blue})`; pen.fillRect(x, 0, 1, 1); });
    this.range.textContent = fill("scale_from", { low: asNumber(low), high: asNumber(high) }) +
      ({ weights: ` (${words.scale_sqrt})`, logs: ` (${words.scale_log})` }[scale] || "");
  }

  // up to 128 tokens: cells that can be pointed at, scrolled when there are too many; more: the whole as pixels
  fit() {
    if (!this.map || !this.host.clientWidth) return;
    const { rows, columns, texts } = this.map, room = this.host.clientWidth - 2;
    this.left = Math.min(this.rowWidth, Math.max(70, room * 0.25)) + 10;
    const inside = room - this.left, most = innerHeight * 0.75;
    if (texts) { this.wide = Math.min(120, Math.max(76, inside / columns.length)); this.tall = 26; }
    else {
      const fitting = inside / columns.length;
      const square = rows.length > 128 || columns.length > 128;
      const least = columns.length > 128 ? 0 : 15;
      this.wide = Math.max(least, Math.min(40, fitting, square ? fitting : Math.max(15, (most - 60) / rows.length)));
      this.tall = rows.length === columns.length || rows.length > 40 ? this.wide : Math.max(18, Math.min(28, this.wide));
    }
    this.lay();
  }

  zoom(factor, x = null, y = null) {
    if (!this.map) return;
    const focus = this.cell && x === null;
    const [i, j] = focus ? this.cell.map((n) => n + 0.5) :
      [(this.scroller.scrollTop + (y ?? this.canvas.clientHeight / 2) - this.top) / this.tall,
       (this.scroller.scrollLeft + (x ?? this.canvas.clientWidth / 2) - this.left) / this.wide];
    const limit = this.map.texts ? 400 : 80, bounded = Math.min(factor, limit / this.wide);
    this.wide *= Math.max(bounded, 0.5 / this.wide);
    this.tall *= Math.max(bounded, 0.5 / this.tall);
    this.lay();
    this.scroller.scrollLeft = j * this.wide + this.left - (focus || x === null ? this.canvas.clientWidth / 2 : x);
    this.scroller.scrollTop = i * this.tall + this.top - (focus || y === null ? this.canvas.clientHeight / 2 : y);
    this.draw();
  }

  lay() {
    const { rows, columns } = this.map;
    this.upright = this.columnWidth + 6 > this.wide;
    this.top = this.upright ? Math.min(this.columnWidth, 110) + 10 : 24;
    const width = this.left + columns.length * this.wide, height = this.top + rows.length * this.tall;
    const seenWidth = Math.min(width, this.host.clientWidth - 2), bar = width > seenWidth + 1 ? 16 : 0;
    const seenHeight = Math.min(height, Math.max(240, innerHeight * 0.75));
    this.space.style.width = `${width}px`;
    this.space.style.height = `${height}px`;
    this.scroller.style.height = `${seenHeight + bar + 2}px`;
    const dense = devicePixelRatio || 1;
    this.canvas.width = Math.round(seenWidth * dense);
    this.canvas.height = Math.round(seenHeight * dense);
    this.canvas.style.width = `${seenWidth}px`;
    this.canvas.style.height = `${seenHeight}px`;
    this.dense = dense;
    this.draw();
  }

  draw() {
    if (!this.map || !this.wide) return;
    const { pen, map, left, top, wide, tall } = this, { rows, columns, texts } = map;
    const seenWidth = this.canvas.width / this.dense, seenHeight = this.canvas.height / this.dense;
    const x0 = left - this.scroller.scrollLeft, y0 = top - this.scroller.scrollTop;
    const first = [Math.max(0, Math.floor((top - y0) / tall)), Math.max(0, Math.floor((left - x0) / wide))];
    const last = [Math.min(rows.length, Math.ceil((seenHeight - y0) / tall)), Math.min(columns.length, Math.ceil((seenWidth - x0) / wide))];
    pen.setTransform(this.dense, 0, 0, this.dense, 0, 0);
    pen.clearRect(0, 0, seenWidth, seenHeight);
    pen.font = FONT;
    pen.textBaseline = "middle";
    pen.save();
    pen.beginPath();
    pen.rect(left, top, seenWidth - left, seenHeight - top);
    pen.clip();
    pen.imageSmoothingEnabled = wide < 1 || tall < 1;
    pen.drawImage(this.image, x0, y0, columns.length * wide, rows.length * tall);
    pen.strokeStyle = style("--paper");
    pen.lineWidth = 1;
    pen.beginPath();
    if (wide >= 10 && tall >= 10) {
      for (let j = first[1]; j <= last[1]; j++) { pen.moveTo(x0 + j * wide, top); pen.lineTo(x0 + j * wide, y0 + rows.length * tall); }
      for (let i = first[0]; i <= last[0]; i++) { pen.moveTo(left, y0 + i * tall); pen.lineTo(x0 + columns.length * wide, y0 + i * tall); }
    }
    pen.stroke();
    if (texts) this.writeCells(first, last, x0, y0);
    if (this.cell) this.outline(x0, y0);
    pen.restore();
    this.writeLabels(first, last, x0, y0, seenWidth, seenHeight);
  }

  writeCells(first, last, x0, y0) {
    const { pen, map, wide, tall } = this, colours = ramp(map.scale), { code } = measure(map.values, map.scale);
    pen.textAlign = "center";
    for (let i = first[0]; i < last[0]; i++) for (let j = first[1]; j < last[1]; j++) {
      const value = map.values[i * map.columns.length + j];
      const [red, green, blue] = Number.isNaN(value) ? [128, 128, 128] : colours[code(value)];
      pen.fillStyle = 0.3 * red + 0.59 * green + 0.11 * blue > 130 ? "#111" : "#fff";
      pen.fillText(shorten(map.texts[i][j], wide - 6), x0 + (j + 0.5) * wide, y0 + (i + 0.5) * tall);
    }
  }

  outline(x0, y0) {
    const { pen, wide, tall } = this, [i, j] = this.cell, { rows, columns } = this.map;
    pen.strokeStyle = style("--rise");
    pen.globalAlpha = 0.45;
    pen.strokeRect(x0, y0 + i * tall, columns.length * wide, tall);
    pen.strokeRect(x0 + j * wide, y0, wide, rows.length * tall);
    pen.globalAlpha = 1;
    pen.lineWidth = 2.5;
    const width = Math.max(wide, 6), height = Math.max(tall, 6);
    pen.strokeRect(x0 + (j + 0.5) * wide - width / 2, y0 + (i + 0.5) * tall - height / 2, width, height);
  }

  // every label when there is room, else every k-th; the labels of the cell always
  writeLabels(first, last, x0, y0, seenWidth, seenHeight) {
    const { pen, map, left, top, wide, tall } = this, ink = style("--ink"), dim = style("--dim"), paper = style("--paper");
    const across = (text, y, chosen) => {
      pen.font = chosen ? `bold ${FONT}` : FONT;
      pen.textAlign = "right";
      if (chosen) { pen.fillStyle = paper; pen.fillRect(0, y - 7, left - 2, 14); }
      pen.fillStyle = chosen ? ink : dim;
      pen.fillText(shorten(text, left - (chosen ? 16 : 10)), left - 5, y);
    };
    const up = (text, x, chosen) => {
      pen.font = chosen ? `bold ${FONT}` : FONT;
      pen.save();
      pen.translate(x, top - 5);
      if (this.upright) pen.rotate(-Math.PI / 2); else pen.translate(0, -7);
      pen.textAlign = this.upright ? "left" : "center";
      if (chosen) { pen.fillStyle = paper; if (this.upright) pen.fillRect(-3, -7, top, 14); else pen.fillRect(-wide / 2, -8, wide, 16); }
      pen.fillStyle = chosen ? ink : dim;
      pen.fillText(shorten(text, this.upright ? top - (chosen ? 16 : 10) : wide - 4), 0, 0);
      pen.restore();
    };
    const [row, column] = this.cell || [-1, -1], everyRow = Math.ceil(13 / tall), everyColumn = Math.ceil(13 / wide);
    pen.save();
    pen.beginPath(); pen.rect(0, top, left, seenHeight - top); pen.clip();
    for (let i = first[0]; i < last[0]; i++) if (i % everyRow === 0) across(map.rows[i], y0 + (i + 0.5) * tall, false);
    if (row >= 0) across(map.rows[row], y0 + (row + 0.5) * tall, true);
    pen.restore();
    pen.save();
    pen.beginPath(); pen.rect(left, 0, seenWidth - left, top); pen.clip();
    for (let j = first[1]; j < last[1]; j++) if (j % everyColumn === 0) up(map.columns[j], x0 + (j + 0.5) * wide, false);
    if (column >= 0) up(map.columns[column], x0 + (column + 0.5) * wide, true);
    pen.restore();
  }

  point(event) {
    if (!this.map) return;
    const j = Math.floor((event.offsetX + this.scroller.scrollLeft - this.left) / this.wide);
    const i = Math.floor((event.offsetY + this.scroller.scrollTop - this.top) / this.tall);
    if (event.offsetX < this.left || event.offsetY < this.top) return;
    if (i >= 0 && j >= 0 && i < this.map.rows.length && j < this.map.columns.length) this.choose(i, j);
  }

  choose(i, j) {
    this.cell = [i, j];
    this.tell();
    this.draw();
  }

  press(event) {
    const { rows, columns } = this.map, [i, j] = this.cell || [0, 0], started = this.cell !== null;
    const moves = {
      ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1],
      Home: [i, 0], End: [i, columns.length - 1],
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) {
      const [y, x] = started ? moves[event.key] : [0, 0];
      this.choose(Math.max(0, Math.min(rows.length - 1, y)), Math.max(0, Math.min(columns.length - 1, x)));
      this.reveal();
      spoken.textContent = this.readout.textContent;
    } else if (event.key === "+" || event.key === "=") this.zoom(1.5);
    else if (event.key === "-") this.zoom(1 / 1.5);
    else if (event.key === "0") this.fit();
    else if (!this.other || !this.other(event)) return;
    event.preventDefault();
  }

  // scroll so that the cell can be seen
  reveal() {
    const [i, j] = this.cell, { scroller, left, top, wide, tall } = this;
    const inside = (start, size, seen, at) => at < start ? at : at + size > start + seen ? at + size - seen : start;
    scroller.scrollLeft = inside(scroller.scrollLeft, wide, this.canvas.clientWidth - left, j * wide);
    scroller.scrollTop = inside(scroller.scrollTop, tall, this.canvas.clientHeight - top, i * tall);
    this.draw();
  }
}

// ---- lines: a query on the left, a key on the right ----
const SVG = "http://www.w3.org/2000/svg";
const LEAST_LINE = 0.01, ROW = 20;
class Lines {
  constructor(host) {
    this.host = make("div", { class: "lines", tabindex: 0, role: "application" });
    this.readout = make("p", { class: "readout" });
    this.note = make("p", { class: "dim", text: words.lines_note });
    host.append(this.host, this.readout, this.note);
    this.host.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) { if (this.other && this.other(event)) event.preventDefault(); return; }
      const count = this.map.rows.length, at = this.chosen && this.chosen.side === 0 ? this.chosen.at + step : 0;
      this.choose({ side: 0, at: (at + count) % count });
      spoken.textContent = this.readout.textContent;
      event.preventDefault();
    });
  }

  show(map, name) {
    if (this.map && this.map.rows !== map.rows) this.chosen = null;
    this.map = map;
    this.host.setAttribute("aria-label", name);
    this.draw();
  }

  choose(chosen) {
    this.chosen = this.chosen && this.chosen.side === chosen.side && this.chosen.at === chosen.at ? null : chosen;
    this.draw();
  }

  draw() {
    const { rows, columns, values } = this.map, room = Math.min(560, this.host.parentElement.clientWidth - 2);
    const side = Math.min(room * 0.36, Math.max(...rows.map(widthOf), ...columns.map(widthOf)) + 14);
    const height = ROW * Math.max(rows.length, columns.length) + 8;
    const svg = document.createElementNS(SVG, "svg");
    for (const [name, value] of Object.entries({ width: room, height, viewBox: `0 0 ${room} ${height}` })) svg.setAttribute(name, value);
    const centre = (i) => 4 + ROW * (i + 0.5);
    const { chosen } = this, drawn = (i, j) => !chosen || (chosen.side ? j : i) === chosen.at;
    let most = LEAST_LINE;  // the largest weight that is drawn
    for (let i = 0; i < rows.length; i++) for (let j = 0; j < columns.length; j++) {
      const weight = values[i * columns.length + j];
      if (drawn(i, j) && weight > most) most = weight;
    }
    for (let i = 0; i < rows.length; i++) for (let j = 0; j < columns.length; j++) {
      const weight = values[i * columns.length + j];
      if (!(weight >= LEAST_LINE) || !drawn(i, j)) continue;
      const path = document.createElementNS(SVG, "path"), middle = room / 2;
      path.setAttribute("d", `M${side} ${centre(i)}C${middle} ${centre(i)} ${middle} ${centre(j)} ${room - side} ${centre(j)}`);
      path.setAttribute("stroke-width", (0.5 + 3.5 * weight / most).toFixed(2));
      path.setAttribute("stroke-opacity", (0.1 + 0.9 * weight / most).toFixed(2));
      svg.append(path);
    }
    [rows, columns].forEach((labels, at) => labels.forEach((text, i) => {
      const element = document.createElementNS(SVG, "text"), title = document.createElementNS(SVG, "title");
      element.setAttribute("x", at ? room - side + 6 : side - 6);
      element.setAttribute("y", centre(i));
      element.setAttribute("text-anchor", at ? "start" : "end");
      element.setAttribute("direction", "ltr");
      if (chosen && chosen.side === at && chosen.at === i) element.setAttribute("class", "chosen");
      element.textContent = shorten(text, side - 10);
      title.textContent = text;
      element.append(title);
      element.addEventListener("click", () => this.choose({ side: at, at: i }));
      svg.append(element);
    }));
    this.host.replaceChildren(svg);
    this.readout.textContent = chosen ? this.say(chosen) : "";
  }

  say({ side, at }) {
    const { rows, columns, values } = this.map;
    const across = side ? rows.length : columns.length, of = (k) => side ? [k, at] : [at, k];
    const row = Float32Array.from({ length: across }, (_, k) => { const [i, j] = of(k); return values[i * columns.length + j]; });
    return strongest(row, 3).map((k) => this.map.say(...of(k))).join("; ") || words.empty;
  }
}

// ---- attention: all heads, and one of them large ----
class Heads {
  constructor(host, kinds) {
    this.kinds = kinds;
    this.state = { kind: 0, layer: 0, head: 0, sinks: false, lines: false };
    this.cache = new Map();
    this.round = 0;
    this.controls = make("div", { class: "controls" });
    this.list = make("div", { class: "overview", role: "group" });
    this.title = make("h3");
    this.pattern = make("p", { class: "dim" });
    this.sinks = make("p", { class: "note" });
    this.places = [make("div"), make("div", { hidden: "" })];
    this.table = make("table");
    const overview = make("div", {}, make("h3", { text: words.overview }), this.list, make("p", { class: "dim", text: words.overview_help }));
    const detail = make("div", {}, this.title, ...this.places, this.sinks, this.pattern, make("div", { class: "wide" }, this.table));
    host.append(this.controls, make("div", { class: "panes" }, overview, detail));
    this.grid = new Grid(this.places[0], make("p", { class: "dim", id: "map-help", text: words.map_help }), "");
    this.lines = new Lines(this.places[1]);
    this.grid.other = this.lines.other = (event) => this.key(event);
    this.list.addEventListener("keydown", (event) => this.walk(event));
    const [kind, layer, head] = data.start || [kinds[0].kind, kinds[0].layers[0], 0];
    this.state.kind = Math.max(0, kinds.findIndex((each) => each.kind === kind));
    this.setUp(Math.max(0, this.kind.layers.indexOf(layer)), head);
  }

  get kind() { return this.kinds[this.state.kind]; }
  get short() { return Math.max(this.kind.queries.length, this.kind.keys.length) <= 64; }

  setUp(layer, head) {
    this.buildControls();
    this.buildOverview();
    this.open(layer, head);
    this.paintAll();
  }

  buildControls() {
    const { state } = this, radios = (name, title, texts, chosen, change) => make("fieldset", {}, make("legend", { text: title }),
      ...texts.map((text, i) => {
        const input = make("input", { type: "radio", name, value: i });
        input.checked = i === chosen;
        input.addEventListener("change", () => change(i));
        return make("label", {}, input, text);
      }));
    const parts = [];
    if (this.kinds.length > 1) parts.push(radios("kind", words.kind, this.kinds.map((kind) => words[kind.kind]), state.kind, (i) => {
      Object.assign(state, { kind: i, layer: 0, head: 0, lines: false });
      this.cache.clear();
      this.setUp(0, 0);
      this.controls.querySelector("input[name=kind]:checked").focus();
    }));
    if (this.short) parts.push(radios("picture", words.picture_as, [words.show_map, words.show_lines], Number(state.lines), (i) => {
      state.lines = Boolean(i);
      this.show();
    }));
    if (this.kind.sinks.length) {
      const input = make("input", { type: "checkbox", id: "without-sinks" });
      input.checked = state.sinks;
      input.addEventListener("change", () => { state.sinks = input.checked; this.show(); this.paintAll(); });
      parts.push(make("label", {}, input, words.without_sinks));
    } else state.sinks = false;
    this.controls.replaceChildren(...parts);
  }

  buildOverview() {
    const { kind } = this, { heads, layers, queries, keys } = kind;
    this.list.style.gridTemplateColumns = `auto repeat(${heads}, minmax(26px, 72px))`;
    this.list.style.setProperty("--shape", `${Math.max(0.4, Math.min(2.5, keys.length / queries.length))}`);
    this.list.setAttribute("aria-label", `${words.overview}: ${words[kind.kind]}`);
    const cells = [make("span", { class: "top" })];
    for (let head = 0; head < heads; head++) cells.push(make("span", { class: "top", text: head, title: `${words.head} ${head}` }));
    this.buttons = layers.map((layer, i) => {
      cells.push(make("span", { class: "side", text: layer, title: `${words.layer} ${layer}` }));
      return Array.from({ length: heads }, (_, head) => {
        const button = make("button", { type: "button", tabindex: -1, title: fill("layer_head", { layer, head }),
                                        "aria-label": fill("layer_head", { layer, head }) }, make("canvas"));
        button.addEventListener("click", () => { this.open(i, head); if (innerWidth < 1024) this.title.scrollIntoView(); });
        cells.push(button);
        return button;
      });
    });
    this.list.replaceChildren(...cells);
  }

  // the codes of a layer; three layers are kept
  codes(i) {
    const { kind } = this;
    if (!this.cache.has(i)) {
      if (this.cache.size >= 3) this.cache.delete(this.cache.keys().next().value);
      this.cache.set(i, readTiles(kind.tiles[i], kind.across, kind.heads, kind.queries.length, kind.keys.length));
    }
    return this.cache.get(i);
  }

  values(codes) {
    const { queries, keys, sinks } = this.kind, weights = weightsOf(codes);
    return this.state.sinks ? withoutSinks(weights, queries.length, keys.length, sinks) : weights;
  }

  async paintAll() {
    const round = ++this.round;
    for (let i = 0; i < this.kind.layers.length; i++) {
      const layer = await this.codes(i);
      for (let head = 0; head < layer.length; head++) {
        if (round !== this.round) return;
        this.paintSmall(i, head, this.state.sinks ? this.values(layer[head]) : layer[head]);
        if (head % 4 === 3) await new Promise((done) => setTimeout(done));  // let the reader scroll meanwhile
      }
    }
    document.documentElement.dataset.painted = round;
  }

  // a small picture keeps the largest cell of each block, so that thin lines stay visible; codes or weights
  paintSmall(i, head, cells) {
    const { queries, keys, layers } = this.kind, count = keys.length;
    const rows = Math.min(queries.length, 64), columns = Math.min(count, 64);
    const small = new Float32Array(rows * columns).fill(NaN);
    const block = Int32Array.from({ length: count }, (_, k) => Math.floor(k * columns / count));
    let best = -1, most = -Infinity;
    for (let q = 0; q < queries.length; q++) {
      const row = Math.floor(q * rows / queries.length) * columns;
      for (let k = 0, at = q * count; k < count; k++, at++) {
        const value = cells[at], place = row + block[k];
        if (value !== value || small[place] >= value) continue;
        small[place] = value;
        if (value > most) { most = value; best = at; }
      }
    }
    const weight = (value) => cells instanceof Uint8Array && value === value ? WEIGHT[value] : value;
    const button = this.buttons[i][head], drawn = picture(small.map(weight), rows, columns, "weights");
    button.replaceChild(drawn, button.firstChild);
    if (best >= 0) button.setAttribute("aria-label", fill("open_head", { layer: layers[i], head,
      query: queries[Math.floor(best / count)], key: keys[best % count], weight: weight(most).toFixed(2) }));
  }

  open(i, head) {
    const { layer, head: before } = this.state, old = this.buttons[layer] && this.buttons[layer][before];
    if (old) { old.removeAttribute("aria-current"); old.tabIndex = -1; }
    Object.assign(this.state, { layer: i, head });
    this.buttons[i][head].setAttribute("aria-current", "true");
    this.buttons[i][head].tabIndex = 0;
    return this.show(true);
  }

  async show(keepZoom = false) {
    const { layer, head, sinks, lines } = this.state, { kind } = this, { queries, keys } = kind;
    const codes = (await this.codes(layer))[head];
    if (kind !== this.kind || layer !== this.state.layer || head !== this.state.head) return;
    const values = this.values(codes), name = fill("layer_head", { layer: kind.layers[layer], head });
    const number = (i) => sinks && !Number.isNaN(values[i]) ? `≈ ${values[i].toFixed(2)}` : asWeight(values[i]);
    const say = (i, j) => fill("cell", { query: `${queries[i]} (${i})`, key: `${keys[j]} (${j})`, weight: number(i * keys.length + j) });
    const map = { rows: queries, columns: keys, values, scale: "weights", texts: null, say };
    this.title.textContent = name;
    this.places[0].hidden = lines;
    this.places[1].hidden = !lines;
    this.grid.canvas.setAttribute("aria-label", `${name}, ${words[kind.kind]}`);
    this.grid.show(map, keepZoom);
    if (lines) this.lines.show(map, name);
    const named = kind.sinks.slice(0, 6).map((key) => keys[key]).join(" ") + (kind.sinks.length > 6 ? " …" : "");
    this.sinks.textContent = sinks ? fill("sinks_note", { sinks: named }) : "";
    this.pattern.textContent = this.describe(weightsOf(codes));
    const head_row = make("tr", {}, ...[words.query, words.key, words.weight].map((text, i) => make("th", { scope: "col", class: i < 2 ? "text" : null, text })));
    this.table.replaceChildren(make("caption", { text: `${words.strongest}: ${name}` }), make("thead", {}, head_row), make("tbody", {},
      ...strongest(values, 10).map((at) => {
        const [i, j] = [Math.floor(at / keys.length), at % keys.length];
        const cell = (text, place) => make("td", { class: "text" }, make("bdi", { text }), ` (${place})`);
        return make("tr", {}, cell(queries[i], i), cell(keys[j], j), make("td", { text: number(at) }));
      })));
    document.documentElement.dataset.shown = `${kind.kind} ${kind.layers[layer]} ${head}`;
  }

  // where a head looks on average
  describe(weights) {
    const { queries, keys, kind, special } = this.kind, mean = (pick) => {
      let sum = 0;
      for (let i = 0; i < queries.length; i++) for (const j of pick(i)) if (j >= 0 && j < keys.length) sum += weights[i * keys.length + j];
      return (sum / queries.length).toFixed(2);
    };
    const parts = kind === "cross" ? [] : [[words.same, mean((i) => [i])], [words.previous, mean((i) => [i - 1])]];
    if (kind === "self") parts.push([words.next, mean((i) => [i + 1])]);
    parts.push([words.first, mean(() => [0])]);
    if (special.length) parts.push([words.special_tokens, mean(() => special)]);
    return `${words.mean_weight}: ${parts.map(([name, value]) => `${name} ${value}`).join(" · ")}`;
  }

  // Page Up, Page Down: the head before or after; Escape: back to all heads
  key(event) {
    const { layer, head } = this.state, { heads, layers } = this.kind;
    if (event.key === "Escape") { this.buttons[layer][head].focus(); return true; }
    const step = { PageUp: -1, PageDown: 1 }[event.key];
    if (!step) return false;
    const count = heads * layers.length, at = (layer * heads + head + step + count) % count;
    this.open(Math.floor(at / heads), at % heads).then(() => { spoken.textContent = `${this.title.textContent}. ${this.pattern.textContent}`; });
    return true;
  }

  walk(event) {
    const { heads, layers } = this.kind;
    const at = this.buttons.flat().indexOf(document.activeElement);
    if (at < 0) return;
    let [i, head] = [Math.floor(at / heads), at % heads];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.open(i, head).then(() => (this.state.lines ? this.lines.host : this.grid.canvas).focus());
      return;
    }
    const moves = { ArrowUp: [i - 1, head], ArrowDown: [i + 1, head], ArrowLeft: [i, head - 1], ArrowRight: [i, head + 1],
                    Home: [i, 0], End: [i, heads - 1], PageUp: [0, head], PageDown: [layers.length - 1, head] };
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    [i, head] = moves[event.key];
    const next = this.buttons[i] && this.buttons[i][head];
    if (!next) return;
    document.activeElement.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  repaint() { this.show(true); this.paintAll(); }
}

// ---- the page ----
const maps = [];
for (const host of document.querySelectorAll(".map")) {
  const source = data.maps[Number(host.dataset.map)];
  const columns = source.columns.length, name = `${source.title}: ${source.rowTitle} × ${source.columnTitle}`;
  const help = make("p", { class: "unseen", id: `help-${host.dataset.map}`, text: words.table_help });
  const grid = new Grid(host, help, name);
  const show = (values) => {
    const number = (at) => source.scale === "weights" ? asWeight(values[at]) : asNumber(values[at]);
    const say = (i, j) => {
      const place = `${source.rowTitle} ${source.rows[i]}, ${source.columnTitle} ${source.columns[j]}`;
      const at = i * columns + j;
      return `${place}: ${source.texts ? `${source.texts[i][j]} (${number(at)})` : number(at)}`;
    };
    grid.show({ ...source, values, say });
    host.dataset.shown = "yes";
  };
  maps.push(grid);
  if (source.tile) readTiles(source.tile, 1, 1, source.rows.length, columns).then(([codes]) => show(weightsOf(codes)));
  else show(Float64Array.from(source.values, (value) => value === null ? NaN : value));
}
const place = document.getElementById("heads");
const heads = place && data.attention.length ? new Heads(place, data.attention) : null;
if (place && !heads) place.append(make("p", { text: words.no_attention }));
darkness.addEventListener("change", () => {
  for (const grid of maps) if (grid.map) { grid.paint(); grid.draw(); }
  if (heads) heads.repaint();
});
})();
