// The two charts of the live page: two minutes of rates by XDP action.
"use strict";
const TidegateChart = (() => {
  const seconds = 120;
  // What an action's packets had in common is told in one line; each XDP action is in one of them.
  const lines = [
    { name: "seen", text: "all seen", of: ["seen"] },
    { name: "drop", text: "dropped", of: ["drop"] },
    { name: "limit", text: "over a rate limit", of: ["rate_limited"] },
    { name: "pass", text: "passed in the driver", of: ["pass", "forward"] },
    { name: "up", text: "to the sensor", of: ["redirect"] },
    { name: "lost", text: "without a reader", of: ["no_reader"] },
  ];

  function si(v) {
    if (v == null || !isFinite(v)) return "–";
    let i = 0;
    while (Math.abs(v) >= 999.5 && i < 5) { v /= 1000; i++; }
    const digits = i === 0 ? 0 : Math.max(0, 2 - Math.floor(Math.log10(Math.max(Math.abs(v), 1))));
    return v.toFixed(digits) + ["", " k", " M", " G", " T", " P"][i];
  }

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
        scales: { x: { time: true, range: () => { const n = Date.now() / 1000; return [n - seconds, n]; } }, y: { range: (_, __, max) => [0, Math.max(max * 1.1, 10)] } },
        axes: [{ ...axis, space: 70 }, { ...axis, size: 56, values: (_, v) => v.map(si) }],
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
      this.cells = lines.map((l) => {
        const tr = document.getElementById(id).insertRow();
        const th = document.createElement("th");
        th.scope = "row";
        const key = document.createElement("span");
        key.className = "key " + l.name;
        th.append(key, l.text);
        tr.append(th);
        return [tr.insertCell(), tr.insertCell()].map((c) => { c.className = "num"; c.textContent = "–"; return c; });
      });
    }
    show(pps, bps) {
      lines.forEach((l, i) => {
        this.cells[i][0].textContent = si(sum(pps, l.of));
        this.cells[i][1].textContent = si(sum(bps, l.of));
      });
    }
  }

  const pps = () => new Chart("pps"), bps = () => new Chart("bps");
  return { start() { return { pps: pps(), bps: bps(), legend: new Legend("legend") }; } };
})();
