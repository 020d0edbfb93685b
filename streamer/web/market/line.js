/** Lines on canvases, which never ask for a layout while they draw. */

/** The digits that the scale shows; the prices in the table have all of theirs. */
const rounded = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 7 });
const COLORS = ["--up", "--down", "--quiet"];
const colors = {};
const lines = new Map(); // canvas -> its Line

/** Read the colors of the page, which depend on its theme, and draw all lines again. */
export function readColors() {
  const probe = document.body.appendChild(document.createElement("i"));
  for (const name of COLORS) {
    probe.style.color = `var(${name})`;
    colors[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  for (const line of lines.values()) line.redraw();
}

const sizes = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) lines.get(target).resize(contentRect);
});

/** The line of a series of numbers; a hidden canvas has no size, and nothing is drawn on it. */
export class Line {
  #canvas;
  #context;
  #isFilled;
  #series = [];
  #width = 0;
  #height = 0;

  /** `isFilled`: with the area below it, and the highest and lowest number. */
  constructor(canvas, { isFilled = false } = {}) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#isFilled = isFilled;
    lines.set(canvas, this);
    sizes.observe(canvas);
  }

  resize({ width, height }) {
    const ratio = devicePixelRatio || 1;
    this.#width = width;
    this.#height = height;
    this.#canvas.width = Math.round(width * ratio);
    this.#canvas.height = Math.round(height * ratio);
    this.#context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.redraw();
  }

  draw(series) {
    this.#series = series;
    this.redraw();
  }

  redraw() {
    const series = this.#series;
    const context = this.#context;
    const width = this.#width;
    const height = this.#height;
    context.clearRect(0, 0, width, height);
    if (!width || series.length < 2) return;
    const low = series.reduce((a, b) => Math.min(a, b));
    const high = series.reduce((a, b) => Math.max(a, b));
    const margin = this.#isFilled ? 18 : 3;
    const scale = (height - 2 * margin) / (high - low || 1);
    context.beginPath();
    series.forEach((value, at) => {
      context.lineTo((at / (series.length - 1)) * width, height - margin - (value - low) * scale);
    });
    context.strokeStyle = colors[series.at(-1) >= series[0] ? "--up" : "--down"];
    context.lineWidth = 1.5;
    context.stroke();
    if (!this.#isFilled) return;
    context.lineTo(width, height);
    context.lineTo(0, height);
    context.globalAlpha = 0.1;
    context.fillStyle = context.strokeStyle;
    context.fill();
    context.globalAlpha = 1;
    context.fillStyle = colors["--quiet"];
    context.font = "12px system-ui, sans-serif";
    context.fillText(rounded.format(high), 8, 14);
    context.fillText(rounded.format(low), 8, height - 5);
  }
}
