// Drawing: values become colours once; pictures and colours are mixed on a canvas again and again.

export function loadImage(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("the picture could not be shown"));
    image.src = url;
  });
}

export function canvas(width, height) {
  const element = document.createElement("canvas");
  element.width = width;
  element.height = height;
  return element;
}

// A canvas of `size`: pixel i has the colour palette[values[i]], [red, green, blue, alpha].
export function coloured(size, values, palette) {
  const layer = canvas(size.width, size.height);
  const context = layer.getContext("2d");
  const image = context.createImageData(size.width, size.height);
  const colours = new Uint32Array(new Uint8ClampedArray(palette.flat()).buffer);
  const whole = new Uint32Array(image.data.buffer); // a pixel at a time, not a byte
  for (let i = 0; i < values.length; i += 1) whole[i] = colours[values[i]];
  context.putImageData(image, 0, 0);
  return layer;
}

// The picture with a layer over it, from x = `from` to `to` (parts of the width).
// alpha 0 shows the picture alone, 1 the layer alone.
export function mix(target, picture, layer, alpha, from = 0, to = 1) {
  const context = target.getContext("2d");
  context.save();
  context.beginPath();
  context.rect(from * target.width, 0, (to - from) * target.width, target.height);
  context.clip();
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, target.width, target.height);
  context.globalAlpha = alpha;
  if (layer) context.drawImage(layer, 0, 0, target.width, target.height);
  context.restore();
}

export function divider(target, place) {
  const context = target.getContext("2d"), x = Math.round(place * target.width), y = target.height / 2;
  const unit = target.width / 320;
  context.save();
  context.shadowColor = "rgb(0 0 0 / 60%)";
  context.shadowBlur = 3 * unit;
  context.fillStyle = "white";
  context.fillRect(x - unit / 2, 0, unit, target.height);
  context.beginPath();
  context.arc(x, y, 7 * unit, 0, 2 * Math.PI);
  context.fill();
  context.shadowBlur = 0;
  context.fillStyle = "#1d1d26";
  for (const side of [-1, 1]) {
    context.beginPath();
    context.moveTo(x + side * 5 * unit, y);
    context.lineTo(x + side * 2 * unit, y - 3 * unit);
    context.lineTo(x + side * 2 * unit, y + 3 * unit);
    context.fill();
  }
  context.restore();
}

export function marker(target, x, y) {
  const context = target.getContext("2d"), unit = target.width / 320;
  for (const [width, colour] of [[3 * unit, "#1d1d26"], [1.4 * unit, "white"]]) {
    context.beginPath();
    context.arc(x * target.width, y * target.height, 5 * unit, 0, 2 * Math.PI);
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
  }
}

export function ramp(target, colours) {
  const context = target.getContext("2d");
  colours.forEach(([red, green, blue], index) => {
    context.fillStyle = `rgb(${red} ${green} ${blue})`;
    context.fillRect(index, 0, 1, 1);
  });
}

// One picture of everything shown: rows of { title, tiles: [{ caption, canvas, scale }], legend };
// a tile's scale is { ramp, low, high }.
export function sheet(rows, columns) {
  const gap = 16, band = 34, line = 26, font = "system-ui, 'DejaVu Sans', sans-serif";
  const side = Math.max(...rows.flatMap((row) => row.tiles.map((tile) => tile.canvas.width)));
  const tall = Math.max(...rows.flatMap((row) => row.tiles.map((tile) => tile.canvas.height)));
  const perRow = Math.max(...rows.map((row) => row.tiles.length));
  const legend = Math.max(0, ...rows.map((row) => (row.legend || []).length)) * line;
  const below = rows.some((row) => row.tiles.some((tile) => tile.scale)) ? line : 0;
  const cellWidth = perRow * (side + gap), cellHeight = band + tall + line + below + legend + gap;
  const target = canvas(columns * cellWidth + gap, Math.ceil(rows.length / columns) * cellHeight + gap);
  const context = target.getContext("2d");
  const write = (text, x, y, colour, width) => { context.fillStyle = colour; context.fillText(text, x, y, width); };
  context.fillStyle = "white";
  context.fillRect(0, 0, target.width, target.height);
  context.textBaseline = "middle";
  rows.forEach((row, index) => {
    const x = gap + (index % columns) * cellWidth, y = gap + Math.floor(index / columns) * cellHeight;
    context.font = `600 20px ${font}`;
    write(row.title, x, y + band / 2, "#1d1d26", cellWidth - gap);
    context.font = `15px ${font}`;
    row.tiles.forEach((tile, place) => {
      const left = x + place * (side + gap), bottom = y + band + tile.canvas.height;
      context.drawImage(tile.canvas, left, y + band);
      write(tile.caption, left, bottom + line / 2, "#5d5d6b", side);
      if (tile.scale) {
        const { low, high } = tile.scale;
        write(low, left, bottom + 1.5 * line, "#5d5d6b", 60);
        context.drawImage(tile.scale.ramp, left + 64, bottom + 1.5 * line - 6, Math.max(40, side - 128), 12);
        write(high, left + side - 56, bottom + 1.5 * line, "#5d5d6b", 56);
      }
    });
    (row.legend || []).forEach((entry, place) => {
      const top = y + band + tall + line + below + (place + 0.5) * line;
      context.fillStyle = entry.colour;
      context.fillRect(x, top - 8, 16, 16);
      write(entry.name, x + 26, top, "#1d1d26", cellWidth - gap - 26);
    });
  });
  return target;
}
