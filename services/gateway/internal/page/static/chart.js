// The two charts of the live page: two minutes of rates by XDP action.
"use strict";
const TidegateChart = (() => {
  const seconds = 120;
  // Each XDP action is in one line; the names are those of the table of newest rates.
  const lines = [
    { name: "seen", of: ["seen"] },
    { name: "drop", of: ["drop"] },
    { name: "limit", of: ["rate_limited"] },
    { name: "pass", of: ["pass", "forward"] },
    { name: "up", of: ["redirect"] },
    { name: "lost", of: ["no_reader"] },
  ];

  function si(v) {
    if (v == null || !isFinite(v)) return "–";
    let i = 0;
    while (Math.abs(v) >= 999.5 && i < 5) { v /= 1000; i++; }
    const digits = i === 0 ? 0 : Math.max(0, 2 - Math.floor(Math.log10(Math.max(Math.abs(v), 1))));
    return v.toFixed(digits) + ["", " k", " M", " G", " T", " P"][i];
  }

  const clock = (s) => new Date(s * 1000).toTimeString().slice(0, 8);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const sum = (rates, keys) => keys.reduce((s, k) => s + (rates[k] || 0), 0);

  class Chart {
    constructor(id) {
      this.box = document.getElementById(id);
      this.now = document.getElementById(id + "-now");
      this.data = [[], ...lines.map(() => [])];
      new ResizeObserver(() => this.plot && this.plot.setSize(this.size())).observe(this.box);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
      this.draw();
    }
    size() { return { width: Math.max(this.box.clientWidth, 100), height: this.box.clientHeight }; }
    draw() {
      if (this.plot) this.plot.destroy();
      const axis = { stroke: css("--muted"), grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
      this.plot = new uPlot({
        ...this.size(), legend: { show: false }, cursor: { show: false },
        padding: [8, 8, 0, 0],
        scales: { x: { time: true, range: () => { const n = this.data[0].at(-1) ?? Date.now() / 1000; return [n - seconds, n]; } }, y: { range: (_, __, max) => [0, Math.max(max * 1.1, 10)] } },
        axes: [{ ...axis, space: 70, size: 26, values: (_, v) => v.map(clock) }, { ...axis, size: 56, values: (_, v) => v.map(si) }],
        series: [{}, ...lines.map((l) => ({ stroke: css("--" + l.name), width: l.name === "seen" ? 1 : 1.8, points: { show: false },
          fill: l.name === "drop" ? css("--drop") + "22" : undefined }))],
      }, this.data, this.box);
    }
    add(time, rates) {
      const row = [time, ...lines.map((l) => sum(rates, l.of))];
      row.forEach((v, i) => {
        this.data[i].push(v);
        if (this.data[i].length > seconds + 5) this.data[i].shift();
      });
      this.now.textContent = si(row[1]);
      this.plot.setData(this.data);
    }
  }

  class Legend {
    constructor(id) {
      const rows = document.getElementById(id);
      this.cells = lines.map((l) => rows.querySelector(`[data-line=${l.name}]`).cells);
    }
    show(pps, bps) {
      lines.forEach((l, i) => {
        this.cells[i][1].textContent = si(sum(pps, l.of));
        this.cells[i][2].textContent = si(sum(bps, l.of));
      });
    }
  }

  return { start: () => ({ pps: new Chart("pps"), bps: new Chart("bps"), legend: new Legend("legend") }) };
})();
