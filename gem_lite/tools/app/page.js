// What the page does: collects picture, words and settings; asks; shows the answer.

import { canvas, loadImage, mix, painted, ramp, sheet } from "./draw.js";

const LARGEST_CANVAS = 640; // pixels of the longer side on the screen
const $ = (id) => document.getElementById(id);

let about = null;
let picture = null; // { file } or { example: index }
let answer = null; // the last answer, with its images ready to draw
let asked = 0; // number of the last request; answers to earlier ones are dropped
let redraw = 0;

// ---- what is asked for

function words(text) {
  return text.split(",").map((word) => word.trim()).filter((word) => word);
}

function chosen() {
  return about.models.find((model) => model.name === $("model").value);
}

function number(id) {
  const text = $(id).value.trim();
  return text === "" ? null : Number(text);
}

function temperature() {
  const text = $("temperature").value.trim().toLowerCase();
  if (text === "" || text === "adaptive") return text || null;
  return Number.isFinite(Number(text)) ? Number(text) : text;
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("the file could not be read"));
    reader.readAsDataURL(file);
  });
}

function setPicture(next, name, url) {
  picture = next;
  const preview = $("preview");
  preview.hidden = false;
  preview.onerror = () => { preview.hidden = true; };
  if (preview.src.startsWith("blob:")) URL.revokeObjectURL(preview.src);
  preview.src = url;
  $("file-hint").textContent = name;
  for (const [index, button] of [...$("examples").children].entries()) {
    button.setAttribute("aria-pressed", String(next.example === index));
  }
}

function takeFile(file) {
  if (!file) return;
  setPicture({ file }, file.name || "pasted picture", URL.createObjectURL(file));
  if (words($("prompts").value).length) ask();
  else $("prompts").focus();
}

function takeExample(index) {
  const example = about.examples[index];
  setPicture({ example: index }, "An example. Choose, drop or paste a picture of your own", example.picture);
  $("prompts").value = example.prompts.join(", ");
  $("file").value = "";
  return ask();
}

async function question() {
  const body = {
    model: $("model").value,
    prompts: words($("prompts").value),
    background: words($("background").value),
    settings: { depth: number("depth"), iterations: number("iterations"), temperature: temperature() },
  };
  if (!picture) throw new Error("Choose a picture first.");
  if (!body.prompts.length) throw new Error("Type at least one word to look for.");
  if (picture.file) {
    if (picture.file.size > about.limits.upload_bytes) {
      throw new Error(`The picture has ${(picture.file.size / 1e6).toFixed(1)} MB; at most ${about.limits.upload_bytes / 1e6} MB.`);
    }
    body.picture = await base64(picture.file);
  } else {
    body.example = about.examples[picture.example].name;
  }
  return body;
}

async function ask() {
  const mine = ++asked;
  complain("");
  $("run").setAttribute("aria-busy", "true");
  $("cards").classList.add("old");
  $("status").textContent = "Looking…";
  try {
    const body = await question();
    const response = await fetch("api/maps", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    }).catch(() => { throw new Error("The server does not answer. Is gem-lite app still running?"); });
    const content = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
    if (!response.ok) throw new Error(content.error);
    const ready = await prepare(content);
    if (mine !== asked) return;
    answer = ready;
    show();
    const time = content.seconds < 10 ? content.seconds.toFixed(2) : content.seconds.toFixed(0);
    $("status").textContent = `${content.model}, ${content.size.width} × ${content.size.height} pixels, ${time} s`;
  } catch (error) {
    if (mine !== asked) return;
    $("status").textContent = answer ? "These are still the results from before." : "";
    complain(error.message);
  } finally {
    if (mine === asked) {
      $("run").removeAttribute("aria-busy");
      $("cards").classList.remove("old");
    }
  }
}

function complain(text) {
  $("error").textContent = text && text[0].toUpperCase() + text.slice(1);
  $("error").hidden = !text;
}

// ---- what is shown

async function prepare(content) {
  const image = await loadImage(content.picture);
  const streams = {};
  for (const stream of ["gem", "clip"]) {
    const maps = await Promise.all(content[stream].maps.map(loadImage));
    const labels = await loadImage(content[stream].labels);
    const colours = [[0, 0, 0, 0], ...content.prompts.map((prompt) => [...prompt.colour, 255])];
    streams[stream] = {
      maps: maps.map((map) => painted(map, (value) => [...about.colours[value], 255]).layer),
      labels: painted(labels, (value) => colours[value] || colours[0]),
      highest: content[stream].highest,
    };
  }
  return { image, streams, prompts: content.prompts };
}

const view = () => document.querySelector("input[name=view]:checked").value;
const shownStreams = () => [["gem", "GEM"], ...($("compare").checked ? [["clip", "plain CLIP"]] : [])];
let tiles = []; // { canvas, layer } of everything on the page

function tile(layer, title, note, name) {
  const { naturalWidth: width, naturalHeight: height } = answer.image;
  const scale = Math.min(1, LARGEST_CANVAS / Math.max(width, height));
  const made = canvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", name);
  tiles.push({ canvas: made, layer });
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = note ? `${title} · ${note}` : title;
  figure.append(made, caption);
  return figure;
}

function card(title, figures) {
  const made = document.createElement("article");
  made.className = "card";
  const heading = document.createElement("h2");
  heading.textContent = title;
  const pair = document.createElement("div");
  pair.className = "pair";
  pair.append(...figures);
  made.append(heading, pair);
  return made;
}

function legend() {
  const list = document.createElement("ul");
  list.className = "legend";
  const { counts } = answer.streams.gem.labels;
  const total = counts.reduce((sum, count) => sum + count, 0);
  answer.prompts.forEach((prompt, index) => {
    const item = document.createElement("li");
    const swatch = canvas(1, 1);
    const context = swatch.getContext("2d");
    context.fillStyle = `rgb(${prompt.colour.join(" ")})`;
    context.fillRect(0, 0, 1, 1);
    const share = document.createElement("small");
    share.textContent = `${((100 * counts[index + 1]) / total).toFixed(1)} %`;
    item.append(swatch, prompt.name, share);
    list.append(item);
  });
  return list;
}

function show() {
  tiles = [];
  const cards = $("cards");
  const labels = view() === "labels";
  cards.className = labels ? "cards labels" : shownStreams().length === 1 ? "cards single" : "cards";
  if (labels) {
    const figures = shownStreams().map(([stream, title]) =>
      tile(answer.streams[stream].labels.layer, title, "", `Segmentation by ${title}`));
    const made = card("Segmentation", figures);
    made.append(legend());
    cards.replaceChildren(made);
  } else {
    cards.replaceChildren(...answer.prompts.map((prompt, index) =>
      card(prompt.name, shownStreams().map(([stream, title]) =>
        tile(answer.streams[stream].maps[index], title,
          `max ${answer.streams[stream].highest[index].toFixed(3)}`,
          `Heat map of ${prompt.name} by ${title}`)))));
  }
  $("toolbar").hidden = $("download").hidden = false;
  $("scale").hidden = labels;
  draw();
}

function draw() {
  const alpha = $("opacity").value / 100;
  $("opacity-value").textContent = `${$("opacity").value} %`;
  for (const each of tiles) mix(each.canvas, answer.image, each.layer, alpha);
}

function download() {
  const streams = shownStreams();
  const labels = view() === "labels";
  const alpha = $("opacity").value / 100;
  const large = (layer) => {
    const made = canvas(answer.image.naturalWidth, answer.image.naturalHeight);
    mix(made, answer.image, layer, alpha);
    return made;
  };
  const rows = labels
    ? [{
        title: "Segmentation",
        tiles: streams.map(([stream, caption]) => ({ caption, canvas: large(answer.streams[stream].labels.layer) })),
        legend: answer.prompts.map((prompt) => ({ name: prompt.name, colour: `rgb(${prompt.colour.join(" ")})` })),
      }]
    : answer.prompts.map((prompt, index) => ({
        title: prompt.name,
        tiles: streams.map(([stream, caption]) => ({ caption, canvas: large(answer.streams[stream].maps[index]) })),
      }));
  sheet(rows, rows.length > 3 ? 2 : 1).toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = labels ? "segmentation.png" : "heatmaps.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }, "image/png");
}

// ---- the start

function describeModel() {
  const model = chosen();
  const adaptive = model.temperature === null;
  $("depth").max = model.layers + 1;
  $("depth").placeholder = model.depth;
  $("iterations").max = about.most_iterations;
  $("iterations").placeholder = model.iterations;
  $("temperature").placeholder = adaptive ? "adaptive" : model.temperature;
  $("defaults").textContent = `depth ${model.depth} (1 to ${model.layers + 1}), ${model.iterations} iteration${model.iterations === 1 ? "" : "s"}, ` +
    (adaptive ? "an adaptive temperature" : `inverse temperature ${model.temperature}`);
  $("model-hint").hidden = !model.name.startsWith("tiny-emoji");
}

async function start() {
  about = await (await fetch("api/about")).json();
  for (const model of about.models) $("model").append(new Option(model.name, model.name));
  about.examples.forEach((example, index) => {
    const button = document.createElement("button");
    button.type = "button";
    const image = document.createElement("img");
    image.src = example.picture;
    image.alt = `Example: ${example.prompts.join(", ")}`;
    button.append(image);
    button.addEventListener("click", () => takeExample(index));
    $("examples").append(button);
  });
  ramp($("ramp"), about.colours);
  describeModel();

  $("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("file").addEventListener("change", () => takeFile($("file").files[0]));
  $("model").addEventListener("change", () => { describeModel(); if (answer) ask(); });
  $("opacity").addEventListener("input", () => {
    cancelAnimationFrame(redraw);
    redraw = requestAnimationFrame(draw);
  });
  $("compare").addEventListener("change", show);
  for (const radio of document.querySelectorAll("input[name=view]")) radio.addEventListener("change", show);
  $("download").addEventListener("click", download);
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (file) { event.preventDefault(); takeFile(file); }
  });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  }
  for (const kind of ["dragleave", "drop"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.remove("over"); });
  }
  document.addEventListener("drop", (event) => takeFile(event.dataTransfer.files[0]));

  $("status").textContent = "";
  if (about.examples.length) await takeExample(0);
}

start().catch((error) => complain(`The page could not start: ${error.message}`));
