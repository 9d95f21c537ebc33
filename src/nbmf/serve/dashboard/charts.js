// Lines over time, drawn by uPlot. A chart can be read with the arrow keys too.

import { $, el } from "./dom.js";
import { clock } from "./text.js";

/** The colour that a variable of the style sheet has now. */
function colour(name) {
  const probe = el("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export class Chart {
  /** `series`: [name, colour, filled] of each line; `show` tells a value. */
  constructor(host, readout, series, show) {
    this.host = $(host);
    this.readout = $(readout);
    this.series = series;
    this.show = show;
    this.plot = null;
    this.data = null;
    this.at = null;
    new ResizeObserver(() => this.fit()).observe(this.host);
    this.host.addEventListener("keydown", (event) => this.key(event));
    this.host.addEventListener("blur", () => this.point(null));
  }

  /** Draws columns: times, then a list for each line, null where there is nothing. */
  draw(data) {
    this.data = data;
    if (data[0].length < 2) {
      this.clear();
      this.host.replaceChildren(el("p.empty", {}, "Nothing yet"));
      this.tell(null);
      return;
    }
    if (this.plot === null) this.make();
    else this.plot.setData(data);
    if (this.at === null) this.tell(null);
  }

  /** Draws anew, in the colours of now. */
  again() {
    this.clear();
    if (this.data !== null) this.draw(this.data);
  }

  clear() {
    if (this.plot !== null) this.plot.destroy();
    this.plot = null;
    this.host.replaceChildren();
  }

  /** Draws nothing from now on. */
  forget() {
    this.data = this.at = null;
    this.clear();
    this.readout.replaceChildren();
  }

  make() {
    const [dim, line] = [colour("dim"), colour("line")];
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: dim, font, grid: { stroke: line, width: 1 }, ticks: { show: false } };
    const exact = () => this.data[0].at(-1) - this.data[0][0] < 300;
    this.host.replaceChildren();
    this.plot = new uPlot(
      {
        width: this.host.clientWidth,
        height: this.host.clientHeight,
        padding: [10, 14, 0, 0],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
        scales: { y: { range: (_, low, high) => [Math.min(0, low), high > 0 ? high * 1.08 : 1] } },
        axes: [
          { ...axis, size: 26, gap: 6, space: 76, values: (_, places) => places.map((place) => clock(place, exact())) },
          { ...axis, size: 66, gap: 6, space: 34, values: (_, places) => places.map((place) => (place === 0 ? "0" : this.show(place))) },
        ],
        series: [
          {},
          ...this.series.map(([name, stroke, filled]) => ({
            label: name,
            stroke: colour(stroke),
            width: 1.6,
            fill: filled ? colour("wash") : undefined,
            points: { show: (plot, _, first, last) => last - first < 30, size: 4, fill: colour(stroke) },
          })),
        ],
        hooks: { setCursor: [(plot) => this.tell(plot.cursor.idx ?? null)] },
      },
      this.data,
      this.host,
    );
  }

  fit() {
    if (this.plot !== null) this.plot.setSize({ width: this.host.clientWidth, height: this.host.clientHeight });
  }

  /** What the lines are at a place, else at the last one. */
  tell(place) {
    if (this.data === null || !this.data[0].length) {
      this.readout.replaceChildren();
      return;
    }
    let at = place ?? this.data[0].length - 1;
    // Between two slots there is nothing to tell: the one before is.
    while (at > 0 && this.data[1][at] === null) at -= 1;
    this.readout.replaceChildren(
      clock(this.data[0][at]),
      ...this.series.map(([name, stroke], line) => {
        const value = this.data[line + 1][at];
        return el(`span.key.${stroke}`, {}, `${name} ${value === null ? "–" : this.show(value)}`);
      }),
    );
  }

  key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (this.plot === null || !(event.key in steps)) return;
    event.preventDefault();
    const last = this.data[0].length - 1;
    const step = steps[event.key];
    let at = Math.min(last, Math.max(0, (this.at ?? last) + step));
    while (this.data[1][at] === null && at > 0 && at < last) at += step;
    this.point(at);
  }

  point(at) {
    this.at = at;
    if (this.plot === null) return;
    const left = at === null ? -10 : this.plot.valToPos(this.data[0][at], "x");
    this.plot.setCursor({ left, top: at === null ? -10 : 1 });
  }
}
