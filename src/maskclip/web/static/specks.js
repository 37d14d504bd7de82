// Regions so small that a line around each would be all that is seen of them: the rule of
// maskclip.core.specks, by the lines of saved overlays, so that both draw the same outlines.

const SPECK = 15;

/**
 * Return which pixels are in a speck, 1 or 0 each: a connected region of fewer pixels than 15
 * squares as wide as a line, and less than 15 lines tall.
 *
 * @param {object} labels {width, height, data} of `decode`.
 */
export function specks({ width, height, data }) {
  const line = 1 + 2 * Math.min(4, Math.round(Math.sqrt(data.length) / 1200));
  const [least, tall] = [SPECK * line * line, SPECK * line];
  const runs = []; // pixels of one label beside each other in a row; a tree of them is a region
  let above = 0; // the first run of the row above that may touch
  for (let y = 0; y < height; y += 1) {
    const first = runs.length;
    for (let x = y * width, end = x + width; x < end; ) {
      const start = x;
      while (x < end && data[x] === data[start]) x += 1;
      const run = { start, end: x, area: x - start, top: y, bottom: y, parent: null };
      while (above < first && runs[above].end + width <= start) above += 1;
      for (let at = above; at < first && runs[at].start + width < x; at += 1) {
        if (data[runs[at].start] === data[start]) join(runs[at], run);
      }
      runs.push(run);
    }
    above = first;
  }
  const found = new Uint8Array(data.length);
  for (const run of runs) {
    const { area, top, bottom } = rootOf(run);
    if (area < least && bottom - top + 1 < tall) found.fill(1, run.start, run.end);
  }
  return found;
}

function rootOf(run) {
  let root = run;
  while (root.parent) root = root.parent;
  for (let one = run; one !== root; ) {
    const next = one.parent;
    one.parent = root;
    one = next;
  }
  return root;
}

function join(one, other) {
  const [root, branch] = [rootOf(one), rootOf(other)];
  if (root === branch) return;
  branch.parent = root;
  root.area += branch.area;
  root.top = Math.min(root.top, branch.top);
  root.bottom = Math.max(root.bottom, branch.bottom);
}
