// What the page does: collects picture, words and settings; asks; hands the answer to the view.

import { base64, copy, offer } from "./files.js";
import { prepared, View } from "./view.js";
import { Words } from "./words.js";

const RETRIES = [1, 2, 4, 8]; // seconds to wait when others fill the line
const CONTROLS = ["model", "left", "right", "depth", "iterations", "temperature", "background",
  "opacity", "threshold", "place"];
const SWITCHES = ["compare", "common", "rivals"];
const $ = (id) => document.getElementById(id);

let about = null, words = null, view = null;
let picture = null; // { file } or { example: name }
let exampleWords = []; // those that an example brought along
let asked = 0; // number of the last request; answers to earlier ones are dropped
let redraw = 0;
const defaults = {}; // what the controls said at the start; the link holds what differs

const shownView = () => document.querySelector("input[name=view]:checked").value;
const settings = () => ({
  view: shownView(),
  compare: $("compare").checked && $("left").value !== $("right").value,
  common: $("common").checked,
  opacity: $("opacity").value / 100,
  threshold: $("threshold").value / 100,
  background: $("rivals").checked,
  place: $("place").value / 100,
});

// ---- what is asked for

const chosen = () => about.models.find((model) => model.name === $("model").value);

function number(id) {
  const text = $(id).value.trim();
  return text === "" ? null : Number(text);
}

function temperature() {
  const text = $("temperature").value.trim().toLowerCase();
  if (text === "" || text === "adaptive") return text || null;
  return Number.isFinite(Number(text)) ? Number(text) : text;
}

function setPicture(next, name, url) {
  picture = next;
  const preview = $("preview");
  preview.hidden = false;
  preview.onerror = () => { preview.hidden = true; };
  if (preview.src.startsWith("blob:")) URL.revokeObjectURL(preview.src);
  preview.src = url;
  $("file-hint").textContent = name;
  for (const button of $("examples").children) button.setAttribute("aria-pressed", String(next.example === button.dataset.name));
}

// A picture of one's own. The example's words are not about it: only words typed by hand stay.
function takeFile(file) {
  if (!file) return;
  setPicture({ file }, file.name || "pasted picture", URL.createObjectURL(file));
  words.set(words.names.filter((name) => !exampleWords.includes(name)));
  exampleWords = [];
  if (words.names.length || $("prompts").value.trim()) { ask(); return; }
  asked += 1; // what is under way is about the picture before
  finish();
  complain("");
  stale(true);
  $("status").textContent = "A new picture. Type what to look for in it.";
  $("prompts").focus();
}

function showExample(example) {
  setPicture({ example: example.name }, "An example. Choose, drop or paste a picture of your own", example.picture);
  exampleWords = example.prompts;
}

function takeExample(name) {
  const example = about.examples.find((each) => each.name === name)
    ?? about.examples.find((each) => each.drawing === chosen().drawings) ?? about.examples[0];
  showExample(example);
  $("file").value = "";
  $("prompts").value = "";
  words.set(example.prompts);
  return ask();
}

async function question() {
  const before = words.names.length;
  if (words.add($("prompts").value)) view.selected = words.names[before]; // a new one is looked at
  $("prompts").value = "";
  const body = {
    model: $("model").value,
    prompts: words.names,
    background: $("background").value.split(",").map((word) => word.trim()).filter((word) => word && !words.names.includes(word)),
    methods: [...new Set([$("left").value, $("right").value])],
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
    body.example = picture.example;
  }
  return body;
}

async function answered(body, mine) {
  for (const [turn, pause] of [...RETRIES, 0].entries()) {
    const response = await fetch("api/maps", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    }).catch(() => { throw new Error("The server does not answer. Is gem-lite app still running?"); });
    const content = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
    if (response.ok) return content;
    if (response.status !== 503 || turn === RETRIES.length) throw new Error(content.error);
    $("status").textContent = "Others are asking, too. Waiting for a place…";
    await new Promise((resolve) => setTimeout(resolve, 1000 * pause));
    if (mine !== asked) return null;
  }
  return null;
}

async function ask() {
  const mine = ++asked;
  complain("");
  $("run").setAttribute("aria-busy", "true");
  stale(true);
  $("status").textContent = "Looking…";
  try {
    const content = await answered(await question(), mine);
    if (mine !== asked || !content) return;
    const answer = await prepared(content, about);
    if (mine !== asked) return;
    $("toolbar").hidden = $("cards").hidden = false;
    stale(false);
    view.take(answer);
    remember();
    const time = content.seconds < 10 ? content.seconds.toFixed(2) : content.seconds.toFixed(0);
    $("status").textContent = `${content.model}, ${content.size.width} × ${content.size.height} pixels, ${time} s`;
    if (mine > 1) view.comeIntoView();
  } catch (error) {
    if (mine !== asked) return;
    $("status").textContent = view.answer ? "These are the results from before." : "";
    complain(error.message);
  } finally {
    if (mine === asked) finish();
  }
}

const finish = () => $("run").removeAttribute("aria-busy");
const stale = (yes) => $("cards").classList.toggle("old", yes); // dims what is not about the question

function complain(text) {
  $("error").textContent = text && text[0].toUpperCase() + text.slice(1);
  $("error").hidden = !text;
  if (text) $("error").scrollIntoView({ block: "nearest" });
}

// ---- the controls of the view; none of them asks the server

function adjust() {
  const { view: kind, compare } = settings();
  for (const id of ["opacity", "threshold"]) $(`${id}-value`).textContent = `${$(id).value} %`;
  for (const each of document.querySelectorAll(".maps-only")) each.hidden = kind === "labels";
  for (const each of document.querySelectorAll(".labels-only")) each.hidden = kind !== "labels";
  $("place").hidden = !compare;
  $("left").hidden = !$("compare").checked;
  view.draw();
  remember();
}

function later(work) {
  cancelAnimationFrame(redraw);
  redraw = requestAnimationFrame(work);
}

function slide(place) {
  if (place !== undefined) $("place").value = Math.round(100 * place);
  later(() => { view.paint(); remember(); });
}

// ---- the link: everything but a picture of one's own

function remember() {
  const link = new URLSearchParams();
  if (picture?.example) link.set("example", picture.example);
  for (const item of words.items) link.append(item.on ? "word" : "off", item.name);
  if (shownView() !== "maps") link.set("view", shownView());
  for (const id of CONTROLS) if ($(id).value !== defaults[id]) link.set(id, $(id).value);
  for (const id of SWITCHES) if ($(id).checked !== defaults[id]) link.set(id, $(id).checked ? "yes" : "no");
  history.replaceState(null, "", `#${link}`);
}

async function recall() {
  const link = new URLSearchParams(location.hash.slice(1));
  for (const id of CONTROLS) {
    defaults[id] = $(id).value;
    if (!link.has(id)) continue;
    $(id).value = link.get(id);
    if (!$(id).value) $(id).value = defaults[id]; // a model or method that is not here
  }
  for (const id of SWITCHES) {
    defaults[id] = $(id).checked;
    if (link.has(id)) $(id).checked = link.get(id) === "yes";
  }
  if (link.get("view") === "labels") document.querySelector("input[name=view][value=labels]").checked = true;
  describeModel();
  adjust();
  const listed = [...link].filter(([key]) => key === "word" || key === "off").slice(0, about.limits.prompts);
  const example = about.examples.find((each) => each.name === link.get("example"));
  if (!listed.length) {
    if (about.examples.length) await takeExample(example?.name);
    return;
  }
  words.set(listed.map(([, name]) => name), link.getAll("off"));
  if (!example) {
    $("status").textContent = "The link holds the words and settings, not the picture. Choose one.";
    return;
  }
  showExample(example);
  await ask();
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
  $("model-hint").hidden = !model.drawings;
}

function listen() {
  $("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("file").addEventListener("change", () => takeFile($("file").files[0]));
  $("model").addEventListener("change", () => { describeModel(); if (view.answer) ask(); });
  for (const id of ["left", "right"]) $(id).addEventListener("change", () => { if (view.answer) ask(); adjust(); });
  for (const id of ["opacity", "threshold"]) $(id).addEventListener("input", () => later(adjust));
  for (const id of SWITCHES) $(id).addEventListener("change", adjust);
  for (const radio of document.querySelectorAll("input[name=view]")) radio.addEventListener("change", adjust);
  $("place").addEventListener("input", () => slide());
  offer({ view, words, settings, pictureName: () => picture.file?.name || picture.example, complain });
  $("link").addEventListener("click", (event) => { remember(); copy(event.target, location.href); });
  $("copy-fetch").addEventListener("click", (event) => copy(event.target, about.fetch));
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (file) { event.preventDefault(); takeFile(file); }
  });
  for (const [kind, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.toggle("over", over); });
  }
  document.addEventListener("drop", (event) => takeFile(event.dataTransfer.files[0]));
}

async function start() {
  about = await (await fetch("api/about")).json();
  for (const model of about.models) $("model").append(new Option(model.name, model.name));
  for (const id of ["left", "right"]) {
    for (const method of about.methods) {
      const option = new Option(method.title, method.name);
      option.title = method.about;
      $(id).append(option);
    }
  }
  $("left").value = "clip";
  $("right").value = "gem";
  $("notice").hidden = !about.models.every((model) => model.drawings);
  $("fetch").textContent = about.fetch;
  for (const example of about.examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.name = example.name;
    const image = document.createElement("img");
    image.src = example.picture;
    image.alt = `Example: ${example.prompts.join(", ")}`;
    button.append(image);
    button.addEventListener("click", () => takeExample(example.name));
    $("examples").append(button);
  }
  words = new Words($("words"), about.word_colours, () => { if (view.answer) adjust(); });
  view = new View(about, words, settings, slide);
  $("status").textContent = "";
  listen();
  await recall();
}

start().catch((error) => complain(`The page could not start: ${error.message}`));
