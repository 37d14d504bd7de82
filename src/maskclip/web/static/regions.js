/* Connected regions of one class in a label image, and their outlines. */

/** Number the 4-connected regions of labels: {numbers, regions: [{label, size, start}]}, from 0. */
export function connected(labels, width, height) {
  const numbers = new Int32Array(labels.length).fill(-1);
  const stack = new Int32Array(labels.length);
  const regions = [];
  for (let start = 0; start < labels.length; start++) {
    if (numbers[start] >= 0) continue;
    const number = regions.length;
    const label = labels[start];
    let size = 0;
    let top = 0;
    stack[top++] = start;
    numbers[start] = number;
    while (top > 0) {
      const at = stack[--top];
      size++;
      const x = at % width;
      if (x > 0 && numbers[at - 1] < 0 && labels[at - 1] === label) {
        numbers[at - 1] = number;
        stack[top++] = at - 1;
      }
      if (x < width - 1 && numbers[at + 1] < 0 && labels[at + 1] === label) {
        numbers[at + 1] = number;
        stack[top++] = at + 1;
      }
      if (at >= width && numbers[at - width] < 0 && labels[at - width] === label) {
        numbers[at - width] = number;
        stack[top++] = at - width;
      }
      if (at + width < labels.length && numbers[at + width] < 0 && labels[at + width] === label) {
        numbers[at + width] = number;
        stack[top++] = at + width;
      }
    }
    regions.push({ number, label, size, start });
  }
  return { numbers, regions };
}

/** Return the image data of labels in their colours; ignored pixels are clear. */
export function painted(labels, width, height, colors) {
  const data = new ImageData(width, height);
  const pixels = new Uint32Array(data.data.buffer);
  for (let at = 0; at < labels.length; at++) pixels[at] = colors.get(labels[at]) ?? 0;
  return data;
}

/** Return the image data of the borders of what `inside(x, y)` says, light within dark. */
export function outlined(width, height, inside, thickness) {
  const data = new ImageData(width, height);
  const pixels = new Uint32Array(data.data.buffer);
  const within = (x, y) => x >= 0 && y >= 0 && x < width && y < height && inside(x, y);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!inside(x, y)) continue;
      let near = thickness + 1;
      for (let step = 1; step <= thickness && near > thickness; step++) {
        const all =
          within(x - step, y) && within(x + step, y) && within(x, y - step) && within(x, y + step);
        if (!all) near = step;
      }
      if (near <= thickness) pixels[y * width + x] = near > thickness / 2 ? 0xff000000 : 0xffffffff;
    }
  }
  return data;
}
