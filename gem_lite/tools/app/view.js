// The results: one large picture under two methods, a thumbnail for each word, scores at a point.

import { at, decoded, extent, labelled, upsampled } from "./maps.js";
import { canvas, coloured, divider, loadImage, marker, mix, ramp } from "./draw.js";

const VIEW = 1024; // pixels of the longer side of the large picture
const MAP = 512; // the same of maps over it
const SMALL = 160; // the same of thumbnails
const $ = (id) => document.getElementById(id);

function fitted(size, longest) {
  const scale = longest / Math.max(size.width, size.height);
  return { width: Math.max(1, Math.round(size.width * scale)), height: Math.max(1, Math.round(size.height * scale)) };
}

// Never 0 or 100, which nobody knows.
function percent(part) {
  return `${Math.min(Math.max(Math.round(100 * part), 1), 99)} %`;
}

export async function prepared(content, about) {
  const image = await loadImage(content.picture);
  const methods = content.methods.map(({ name, scores, presence }) => ({
    title: about.methods.find((method) => method.name === name).title,
    scores: decoded(scores, content.grid),
    presence, // of each word, from 0 to 1
    maps: new Map(), // upsampled, by row: { values, low, high }
    layers: new Map(), // the same in colours, by word and scale
  }));
  return { ...content, image, methods, small: fitted(content.size, MAP) };
}

export class View {
  // settings(): what the controls say; words: the chips; moved(place): the divider was dragged.
  constructor(about, words, settings, moved) {
    Object.assign(this, { about, words, settings, moved });
    this.answer = null;
    this.selected = null; // a word's name
    this.point = null; // where somebody clicked, [x, y] from 0 to 1
    ramp($("ramp"), about.colours);
    const view = $("view");
    view.addEventListener("pointerdown", (event) => this.press(event));
    view.addEventListener("pointermove", (event) => this.hover(event));
    view.addEventListener("pointerleave", () => { $("tip").hidden = true; });
    view.addEventListener("keydown", (event) => this.key(event));
  }

  // The words that are on and have been answered, in the order of the chips.
  get shown() {
    return this.words.on.filter((item) => this.answer.prompts.includes(item.name));
  }

  row(name) { return this.answer.prompts.indexOf(name); }

  // What is looked at until somebody chooses: the word that is most probably in the picture.
  likeliest(names) {
    const { presence } = this.sides.at(-1);
    const higher = (best, name) => (presence[this.row(name)] > presence[this.row(best)] ? name : best);
    return names.reduce(higher, names[0] ?? null);
  }

  // The methods from left to right; one where nothing is compared.
  get sides() {
    return this.settings().compare ? this.answer.methods : this.answer.methods.slice(-1);
  }

  take(answer) {
    this.answer = answer;
    this.point = null;
    this.draw();
  }

  map(method, name) {
    const row = this.row(name), { grid, small } = this.answer;
    if (!method.maps.has(row)) {
      const values = upsampled(method.scores[row], grid, small);
      method.maps.set(row, { values, ...extent(values) });
    }
    return method.maps.get(row);
  }

  // Lowest and highest score of a word's map, or of all words' where they share a scale.
  range(method, name) {
    const names = this.settings().common ? this.shown.map((item) => item.name) : [name];
    const maps = names.map((each) => this.map(method, each));
    return [Math.min(...maps.map(({ low }) => low)), Math.max(...maps.map(({ high }) => high))];
  }

  heat(method, name) {
    const { values } = this.map(method, name), [low, high] = this.range(method, name);
    // On one scale, what is probably not in the picture fades.
    const strength = this.settings().common ? method.presence[this.row(name)] : 1;
    const key = `${name} ${low} ${high} ${strength}`;
    if (!method.layers.has(key)) method.layers.set(key, this.painted(values, low, high, strength));
    return method.layers.get(key);
  }

  painted(values, low, high, strength) {
    const unit = high - low > 1e-6 ? (255 * strength) / (high - low) : 0;
    const shades = new Uint8Array(values.length);
    for (let i = 0; i < values.length; i += 1) shades[i] = Math.round((values[i] - low) * unit);
    return coloured(this.answer.small, shades, this.about.colours.map((colour) => [...colour, 255]));
  }

  labels(method, size) {
    const { background, threshold } = this.settings();
    const count = this.answer.prompts.length;
    const words = this.shown.map((item) => method.scores[this.row(item.name)]);
    const rivals = background ? method.scores.slice(count) : [];
    return labelled(words, rivals, this.answer.grid, size, { scale: this.about.scale, threshold });
  }

  // On a phone the results stand below the form.
  comeIntoView() {
    const { top, bottom } = $("view").getBoundingClientRect();
    if (!matchMedia("(max-width: 46rem)").matches || (top >= 0 && bottom <= window.innerHeight)) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    $("results").scrollIntoView({ behavior: still ? "auto" : "smooth" });
  }

  // Layers over the picture, and what the thumbnails say, after anything but the opacity changed.
  draw() {
    if (!this.answer) return;
    const names = this.shown.map((item) => item.name);
    if (!names.includes(this.selected)) this.selected = this.likeliest(names);
    const seen = this.settings().view === "labels";
    const palette = [[0, 0, 0, 0], ...this.shown.map((item) => [...this.words.colours[item.colour], 255])];
    this.layers = this.sides.map((method) => {
      if (!names.length) return { layer: null };
      if (!seen) return { layer: this.heat(method, this.selected) };
      const { labels, counts } = this.labels(method, this.answer.small);
      return { layer: coloured(this.answer.small, labels, palette), counts };
    });
    Object.assign($("view"), fitted(this.answer.size, VIEW));
    const title = seen ? "Segmentation" : `Heat map of ${this.selected}`;
    $("view").setAttribute("aria-label", `${names.length ? title : "The picture"}: ${this.sides.map((side) => side.title).join(", ")}. The arrow keys move a point, whose scores are read out.`);
    $("title").textContent = names.length ? (seen ? "Segmentation" : this.selected) : "All words are switched off";
    $("left-name").textContent = this.sides.length > 1 ? this.sides[0].title : "";
    $("right-name").textContent = this.sides.at(-1).title;
    $("scale").hidden = seen || !names.length;
    if (!$("scale").hidden) {
      // Two methods have two scales: the last one's, right of the divider, is written.
      const [low, high] = this.range(this.sides.at(-1), this.selected);
      $("low").textContent = low.toFixed(3);
      $("high").textContent = high.toFixed(3);
    }
    this.thumbnails(seen);
    this.paint();
    this.read();
  }

  // The large picture from its layers; quick, for the sliders.
  paint() {
    if (!this.answer) return;
    const { opacity, place } = this.settings(), view = $("view");
    if (this.layers.length > 1) {
      mix(view, this.answer.image, this.layers[0].layer, opacity, 0, place);
      mix(view, this.answer.image, this.layers[1].layer, opacity, place, 1);
      divider(view, place);
    } else {
      mix(view, this.answer.image, this.layers[0].layer, opacity);
    }
    if (this.point) marker(view, ...this.point);
  }

  thumbnails(seen) {
    const method = this.answer.methods.at(-1);
    const size = fitted(this.answer.size, SMALL);
    const counts = seen ? this.layers.at(-1).counts : null;
    const focused = document.activeElement?.closest?.("#thumbs button")?.dataset.word;
    $("thumbs").replaceChildren(...this.shown.map((item, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.word = item.name;
      button.className = "thumb";
      button.setAttribute("aria-pressed", String(!seen && item.name === this.selected));
      const picture = canvas(size.width, size.height);
      mix(picture, this.answer.image, this.heat(method, item.name), this.settings().opacity);
      const name = document.createElement("span");
      const text = document.createElement("b");
      text.textContent = item.name;
      const note = document.createElement("small");
      const total = this.answer.small.width * this.answer.small.height;
      note.textContent = seen && counts
        ? `${((100 * counts[index + 1]) / total).toFixed(1)} %`
        : `${percent(method.presence[this.row(item.name)])} here, highest ${this.map(method, item.name).high.toFixed(3)}`;
      note.title = "How probably it is in the picture, and its highest score";
      name.append(this.swatch(item), text, note);
      button.append(picture, name);
      button.addEventListener("click", () => {
        this.selected = item.name;
        if (seen) document.querySelector("input[name=view][value=maps]").click();
        else this.draw();
      });
      return button;
    }));
    if (focused) [...$("thumbs").children].find((each) => each.dataset.word === focused)?.focus();
  }

  swatch(item) {
    const swatch = document.createElement("i");
    if (item.colour !== undefined) swatch.style.setProperty("background", `rgb(${this.words.colours[item.colour].join(" ")})`);
    return swatch;
  }

  // ---- scores at a point

  position(event) {
    const box = $("view").getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((part) => Math.min(Math.max(part, 0), 1));
  }

  // The method under a point, and its score of each word there, the highest first.
  scores([x, y]) {
    const method = this.sides.length > 1 && x < this.settings().place ? this.sides[0] : this.sides.at(-1);
    const score = (row) => at(method.scores[row], this.answer.grid, x, y);
    const rows = this.shown.map((item) => ({ item, score: score(this.row(item.name)) }));
    if (this.settings().view === "labels" && this.settings().background) {
      this.answer.background.forEach((name, index) => {
        rows.push({ item: { name: `${name} (background)` }, score: score(this.answer.prompts.length + index) });
      });
    }
    return { method, rows: rows.sort((a, b) => b.score - a.score) };
  }

  hover(event) {
    if (!this.answer || event.pointerType === "touch") return;
    const point = this.position(event), { method, rows } = this.scores(point), tip = $("tip");
    const title = document.createElement("b");
    title.textContent = method.title;
    tip.replaceChildren(title, ...rows.map(({ item, score }) => {
      const line = document.createElement("span");
      const name = document.createElement("span");
      name.textContent = item.name;
      const value = document.createElement("output");
      value.textContent = score.toFixed(3);
      line.append(this.swatch(item), name, value);
      return line;
    }));
    tip.hidden = !rows.length;
    const box = $("view").getBoundingClientRect();
    const x = event.clientX - box.left + 16, y = event.clientY - box.top + 16;
    tip.style.setProperty("left", "0px"); // Measured where it has room: near the edge it shrinks.
    const beyond = x + tip.offsetWidth > box.width;
    tip.style.setProperty("left", `${Math.max(0, beyond ? x - tip.offsetWidth - 32 : x)}px`);
    tip.style.setProperty("top", `${Math.max(0, Math.min(y, box.height - tip.offsetHeight))}px`);
  }

  press(event) {
    if (!this.answer || event.button) return;
    const point = this.position(event), box = $("view").getBoundingClientRect();
    if (this.sides.length > 1 && Math.abs(point[0] - this.settings().place) * box.width < 18) {
      $("tip").hidden = true;
      $("view").setPointerCapture(event.pointerId);
      const drag = (moved) => this.moved(this.position(moved)[0]);
      $("view").addEventListener("pointermove", drag);
      const end = () => $("view").removeEventListener("pointermove", drag);
      $("view").addEventListener("pointerup", end, { once: true });
      $("view").addEventListener("pointercancel", end, { once: true });
      return;
    }
    this.point = point;
    this.paint();
    this.read();
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || !this.answer) return;
    event.preventDefault();
    const point = this.point ?? [0.5, 0.5];
    this.point = point.map((part, axis) => Math.min(Math.max(part + step[axis] / 40, 0), 1));
    this.paint();
    this.read();
  }

  // Which word wins at the point, and by how much.
  read() {
    const readout = $("readout");
    if (!this.point || !this.shown.length) {
      readout.textContent = "Click into the picture to see which word wins there.";
      return;
    }
    const { method, rows: [first, second] } = this.scores(this.point);
    const winner = document.createElement("b");
    winner.textContent = first.item.name;
    readout.replaceChildren(winner, ` wins here with ${first.score.toFixed(3)} (${method.title})`);
    if (second) readout.append(`, ${(first.score - second.score).toFixed(3)} above ${second.item.name} with ${second.score.toFixed(3)}.`);
  }
}
