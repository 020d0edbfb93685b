/** Plots of the samples of the last 15 minutes, one small plot for each figure. */

import { element, grouped } from "./page.js";

const KEPT_SECONDS = 900;
const WIDTH = 300;
const HEIGHT = 56;
const MARGIN = 3;
const SVG = "http://www.w3.org/2000/svg";

const PLOTS = [
  { title: "Received", unit: "/s", value: (sample) => sample.received_per_second },
  { title: "Sent", unit: "/s", value: (sample) => sample.sent_per_second },
  { title: "Conflated", unit: "/s", value: (sample) => sample.conflated_per_second },
  { title: "Dropped", unit: "/s", value: (sample) => sample.dropped_per_second },
  { title: "Connections", unit: "", value: (sample) => sample.connections },
  { title: "Blocked clients", unit: "", value: (sample) => sample.blocked_clients },
  { title: "Messages queued", unit: "", value: (sample) => sample.messages_queued },
  { title: "Wait for a flush", unit: " ms", value: (sample) => inMs(sample.flush_window_seconds) },
  { title: "Mean flush", unit: " ms", value: (sample) => inMs(sample.flush_seconds) },
  {
    title: "Loop pause, 1 min",
    unit: " ms",
    value: (sample) => inMs(sample.longest_pause_seconds_last_minute),
  },
  {
    title: "Redis round trip",
    unit: " ms",
    value: (sample) => inMs(sample.redis_round_trip_seconds),
    isOptional: true, // the bus inside a process has none
  },
];

export function inMs(seconds) {
  return seconds === null || seconds === undefined ? null : seconds * 1000;
}

/** Write a figure with two or three digits that count, or a dash where it is not known. */
export function inWords(value, unit = "") {
  if (value === null || value === undefined) return "–";
  const digits = value === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${grouped.format(Number(value.toFixed(digits)))}${unit}`;
}

/** All plots, in an element. */
export class Plots {
  #samples = [];
  #plots = [];

  constructor(parent) {
    for (const plot of PLOTS) {
      const { title, isOptional } = plot;
      const figure = element("figure");
      figure.hidden = Boolean(isOptional);
      const caption = element("figcaption", "", title);
      const now = caption.appendChild(element("output", "", "–"));
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", title);
      svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
      svg.setAttribute("preserveAspectRatio", "none");
      const line = svg.appendChild(document.createElementNS(SVG, "path"));
      const most = element("small", "", "no samples yet");
      figure.append(caption, svg, most);
      parent.append(figure);
      this.#plots.push({ ...plot, figure, now, svg, line, most });
    }
  }

  /** The time of the newest sample, in seconds since 1970. */
  get newestSeconds() {
    return this.#samples.at(-1)?.at ?? 0;
  }

  /** Take samples that are newer than those before, and draw all. */
  add(samples) {
    this.#samples.push(...samples);
    const newest = this.newestSeconds;
    this.#samples = this.#samples.filter(({ at }) => at > newest - KEPT_SECONDS);
    if (samples.length) for (const plot of this.#plots) this.#draw(plot);
  }

  #draw({ title, unit, value, isOptional, figure, now, svg, line, most }) {
    const points = this.#samples.map((sample) => ({ at: sample.at, value: value(sample) ?? null }));
    const known = points.filter((point) => point.value !== null).map((point) => point.value);
    const highest = known.reduce((a, b) => Math.max(a, b), 0);
    const newest = this.newestSeconds;
    let path = "";
    let isDrawing = false;
    for (const point of points) {
      if (point.value !== null) {
        const x = WIDTH * (1 - (newest - point.at) / KEPT_SECONDS);
        const y = HEIGHT - MARGIN - (point.value / (highest || 1)) * (HEIGHT - 2 * MARGIN);
        // A line of no length shows a point that has no neighbor.
        path += `${isDrawing ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}${isDrawing ? "" : "h0"}`;
      }
      isDrawing = point.value !== null;
    }
    line.setAttribute("d", path);
    figure.hidden = Boolean(isOptional) && known.length === 0;
    now.textContent = inWords(points.at(-1)?.value, unit);
    most.textContent = known.length ? `at most ${inWords(highest, unit)}` : "nothing known";
    svg.setAttribute("aria-label", `${title}: now ${now.textContent}, ${most.textContent}`);
  }
}
