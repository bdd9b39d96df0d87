// Scores of patches become values of pixels. The arithmetic is that of the library's segment():
// bilinear, align_corners=False, softmax(scale * score), the best word or background of each pixel.

// One method's scores: rows of grid.height * grid.width floats, a row for each word.
export function decoded(base64, grid) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const values = new Float32Array(bytes.buffer), cells = grid.width * grid.height;
  return Array.from({ length: values.length / cells }, (_, row) => values.subarray(row * cells, (row + 1) * cells));
}

// For each of `size` pixels: the two cells it lies between, and how far it is on the way.
function places(size, cells) {
  const low = new Int32Array(size), high = new Int32Array(size), part = new Float64Array(size);
  for (let i = 0; i < size; i += 1) {
    const place = Math.max(0, ((i + 0.5) * cells) / size - 0.5);
    low[i] = Math.min(Math.floor(place), cells - 1);
    high[i] = Math.min(low[i] + 1, cells - 1);
    part[i] = place - low[i];
  }
  return { low, high, part };
}

// Calls row(y, values) for each row of pixels; values[k] holds the k-th map's pixels of that row.
function eachRow(maps, grid, size, row) {
  const across = places(size.width, grid.width), down = places(size.height, grid.height);
  const cells = new Float64Array(grid.width);
  const values = maps.map(() => new Float64Array(size.width));
  for (let y = 0; y < size.height; y += 1) {
    const above = down.low[y] * grid.width, below = down.high[y] * grid.width, part = down.part[y];
    maps.forEach((map, k) => {
      for (let x = 0; x < grid.width; x += 1) cells[x] = map[above + x] + part * (map[below + x] - map[above + x]);
      for (let x = 0; x < size.width; x += 1) {
        const left = cells[across.low[x]];
        values[k][x] = left + across.part[x] * (cells[across.high[x]] - left);
      }
    });
    row(y, values);
  }
}

export function upsampled(map, grid, size) {
  const all = new Float32Array(size.width * size.height);
  eachRow([map], grid, size, (y, [values]) => all.set(values, y * size.width));
  return all;
}

// The score at a point of the picture; x and y from 0 to 1.
export function at(map, grid, x, y) {
  const column = Math.min(Math.max(x * grid.width - 0.5, 0), grid.width - 1);
  const row = Math.min(Math.max(y * grid.height - 0.5, 0), grid.height - 1);
  const left = Math.floor(column), top = Math.floor(row);
  const right = Math.min(left + 1, grid.width - 1), bottom = Math.min(top + 1, grid.height - 1);
  const cell = (i, j) => map[j * grid.width + i];
  const upper = cell(left, top) + (column - left) * (cell(right, top) - cell(left, top));
  const lower = cell(left, bottom) + (column - left) * (cell(right, bottom) - cell(left, bottom));
  return upper + (row - top) * (lower - upper);
}

export function extent(values) {
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < values.length; i += 1) {
    if (values[i] < low) low = values[i];
    if (values[i] > high) high = values[i];
  }
  return { low, high };
}

// Labels of all pixels: 0 = background, k + 1 = the k-th of `words`; and how many each has.
export function labelled(words, background, grid, size, { scale, threshold }) {
  const labels = new Uint8Array(size.width * size.height);
  const counts = new Array(words.length + 1).fill(0);
  eachRow([...words, ...background], grid, size, (y, values) => {
    for (let x = 0; x < size.width; x += 1) {
      let best = 0;
      for (let k = 1; k < values.length; k += 1) if (values[k][x] > values[best][x]) best = k;
      let label = best < words.length ? best + 1 : 0;
      if (label && threshold > 0) {
        let sum = 0;
        for (let k = 0; k < values.length; k += 1) sum += Math.exp(scale * (values[k][x] - values[best][x]));
        if (1 / sum < threshold) label = 0;
      }
      labels[y * size.width + x] = label;
      counts[label] += 1;
    }
  });
  return { labels, counts };
}

// COCO's annotations of the words that have pixels; run lengths down the columns, as COCO counts.
export function annotations(labels, size, categories) {
  return categories.flatMap(({ id }) => {
    const counts = [];
    let run = 0, inside = false, area = 0, left = size.width, right = -1, top = size.height, bottom = -1;
    for (let x = 0; x < size.width; x += 1) {
      for (let y = 0; y < size.height; y += 1) {
        const mine = labels[y * size.width + x] === id;
        if (mine !== inside) { counts.push(run); run = 0; inside = mine; }
        run += 1;
        if (mine) {
          area += 1;
          left = Math.min(left, x); right = Math.max(right, x);
          top = Math.min(top, y); bottom = Math.max(bottom, y);
        }
      }
    }
    counts.push(run);
    return area ? [{
      id, image_id: 1, category_id: id, iscrowd: 0, area,
      bbox: [left, top, right - left + 1, bottom - top + 1],
      segmentation: { size: [size.height, size.width], counts },
    }] : [];
  });
}
