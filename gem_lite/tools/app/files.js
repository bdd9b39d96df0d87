// Files: the picture to send; to take along an overlay with its scale, masks as PNG and COCO JSON.

import { canvas, mix, sheet } from "./draw.js";
import { annotations } from "./maps.js";

const $ = (id) => document.getElementById(id);

export function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("the file could not be read"));
    reader.readAsDataURL(file);
  });
}

// The buttons under the picture.
export function offer({ view, words, settings, pictureName, complain }) {
  const masks = () => {
    const { answer } = view;
    return [view.labels(answer.methods.at(-1), answer.size).labels, answer.size];
  };
  const colours = () => view.shown.map((item) => words.colours[item.colour]);
  const works = {
    download: () => saveOverlay(view, words, settings()),
    masks: () => saveLabels(...masks(), colours(), "masks.png"),
    coco: () => saveCoco(...masks(), view.shown.map((item) => item.name), pictureName(), "masks.json"),
  };
  for (const [id, work] of Object.entries(works)) {
    $(id).addEventListener("click", async () => {
      if (!view.answer || !view.shown.length) { complain("Switch a word on first."); return; }
      $(id).setAttribute("aria-busy", "true");
      await new Promise((resolve) => setTimeout(resolve, 20)); // for the button to show it
      try {
        await work();
      } catch (error) {
        complain(`The file could not be written: ${error.message}`);
      } finally {
        $(id).removeAttribute("aria-busy");
      }
    });
  }
}

export async function copy(button, text) {
  const before = button.textContent;
  await navigator.clipboard.writeText(text).then(
    () => { button.textContent = "Copied"; },
    () => { prompt("Copy this:", text); }, // a browser that does not let a page at the clipboard
  );
  setTimeout(() => { button.textContent = before; }, 1500);
}

// The maps of all words that are on, or the segmentation, over the picture, with their scales.
function saveOverlay(view, words, { view: kind, opacity }) {
  const { answer, sides } = view;
  const tile = (method, layer, scale) => {
    const target = canvas(answer.image.naturalWidth, answer.image.naturalHeight);
    mix(target, answer.image, layer, opacity);
    return { caption: method.title, canvas: target, scale };
  };
  const rows = kind === "labels"
    ? [{
        title: "Segmentation",
        tiles: sides.map((method, index) => tile(method, view.layers[index].layer)),
        legend: view.shown.map((item) => ({ name: item.name, colour: `rgb(${words.colours[item.colour].join(" ")})` })),
      }]
    : view.shown.map((item) => ({
        title: item.name,
        tiles: sides.map((method) => {
          const [low, high] = view.range(method, item.name);
          return tile(method, view.heat(method, item.name), { ramp: $("ramp"), low: low.toFixed(3), high: high.toFixed(3) });
        }),
      }));
  return savePicture(sheet(rows, rows.length > 3 ? 2 : 1), kind === "labels" ? "segmentation.png" : "heatmaps.png");
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function savePicture(canvas, name) {
  return new Promise((resolve) => {
    canvas.toBlob((blob) => { save(blob, name); resolve(); }, "image/png");
  });
}

// A PNG with a palette: the value of a pixel is its label, 0 = background, k = the k-th word.
async function saveLabels(labels, size, colours, name) {
  const head = new Uint8Array(13), view = new DataView(head.buffer);
  view.setUint32(0, size.width);
  view.setUint32(4, size.height);
  head.set([8, 3, 0, 0, 0], 8); // 8 bits, palette, deflate, no filters, not interlaced
  const lines = new Uint8Array((size.width + 1) * size.height);
  for (let y = 0; y < size.height; y += 1) {
    lines.set(labels.subarray(y * size.width, (y + 1) * size.width), y * (size.width + 1) + 1);
  }
  const packed = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  const palette = new Uint8Array([[0, 0, 0], ...colours].flat());
  const parts = [["IHDR", head], ["PLTE", palette], ["IDAT", data], ["IEND", new Uint8Array(0)]];
  const signature = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  save(new Blob([signature, ...parts.map(([kind, content]) => chunk(kind, content))], { type: "image/png" }), name);
}

function chunk(kind, content) {
  const bytes = new Uint8Array(content.length + 12), view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set([...kind].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(content, 8);
  view.setUint32(content.length + 8, checksum(bytes.subarray(4, content.length + 8)));
  return bytes;
}

function checksum(bytes) {
  let sum = ~0;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit += 1) sum = sum & 1 ? (sum >>> 1) ^ 0xedb88320 : sum >>> 1;
  }
  return ~sum >>> 0;
}

function saveCoco(labels, size, words, picture, name) {
  const categories = words.map((word, index) => ({ id: index + 1, name: word }));
  const content = {
    info: { description: "Masks by gem_lite" },
    images: [{ id: 1, file_name: picture, width: size.width, height: size.height }],
    categories,
    annotations: annotations(labels, size, categories),
  };
  save(new Blob([JSON.stringify(content)], { type: "application/json" }), name);
}
