// Drawing: grey maps become colours once; pictures and colours are mixed on a canvas again and again.

export function loadImage(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a picture could not be shown"));
    image.src = url;
  });
}

export function canvas(width, height) {
  const made = document.createElement("canvas");
  made.width = width;
  made.height = height;
  return made;
}

// A grey image -> a canvas of its size; colour(value) gives [red, green, blue, alpha], 0 to 255.
export function painted(image, colour) {
  const made = canvas(image.naturalWidth, image.naturalHeight);
  const context = made.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, made.width, made.height);
  const counts = new Array(256).fill(0);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const value = pixels.data[i];
    counts[value] += 1;
    pixels.data.set(colour(value), i);
  }
  context.putImageData(pixels, 0, 0);
  return { layer: made, counts };
}

// The picture with the layer over it; alpha 0 shows the picture alone, 1 the layer alone.
export function mix(target, picture, layer, alpha) {
  const context = target.getContext("2d");
  context.globalAlpha = 1;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, target.width, target.height);
  context.globalAlpha = alpha;
  context.drawImage(layer, 0, 0, target.width, target.height);
}

export function ramp(target, colours) {
  const context = target.getContext("2d");
  colours.forEach(([red, green, blue], index) => {
    context.fillStyle = `rgb(${red} ${green} ${blue})`;
    context.fillRect(index, 0, 1, 1);
  });
}

// One picture of everything shown: rows of { title, tiles: [{ caption, canvas }], legend }.
export function sheet(rows, columns) {
  const gap = 16, band = 34, line = 26, font = "system-ui, 'DejaVu Sans', sans-serif";
  const side = Math.max(...rows.flatMap((row) => row.tiles.map((tile) => tile.canvas.width)));
  const tall = Math.max(...rows.flatMap((row) => row.tiles.map((tile) => tile.canvas.height)));
  const perRow = Math.max(...rows.map((row) => row.tiles.length));
  const legend = rows.some((row) => row.legend) ? line * Math.max(...rows.map((row) => (row.legend || []).length)) + gap : 0;
  const cellWidth = perRow * (side + gap), cellHeight = band + tall + line + legend + gap;
  const down = Math.ceil(rows.length / columns);
  const made = canvas(columns * cellWidth + gap, down * cellHeight + gap);
  const context = made.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, made.width, made.height);
  context.textBaseline = "middle";
  rows.forEach((row, index) => {
    const x = gap + (index % columns) * cellWidth, y = gap + Math.floor(index / columns) * cellHeight;
    context.fillStyle = "#1d1d26";
    context.font = `600 20px ${font}`;
    context.fillText(row.title, x, y + band / 2, cellWidth - gap);
    row.tiles.forEach((tile, place) => {
      const left = x + place * (side + gap);
      context.drawImage(tile.canvas, left, y + band);
      context.fillStyle = "#5d5d6b";
      context.font = `15px ${font}`;
      context.fillText(tile.caption, left, y + band + tile.canvas.height + line / 2, side);
    });
    (row.legend || []).forEach((entry, place) => {
      const top = y + band + tall + line + place * line + line / 2;
      context.fillStyle = entry.colour;
      context.fillRect(x, top - 8, 16, 16);
      context.fillStyle = "#1d1d26";
      context.fillText(entry.name, x + 26, top, cellWidth - gap - 26);
    });
  });
  return made;
}
