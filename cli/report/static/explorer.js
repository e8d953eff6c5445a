"use strict";
// What both parts of the explorer stand on: the data, the state in the address, numbers as text, charts.
const explorer = (() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("explorer-data").textContent);
  const REPLAYS = [
    ["none", "no replay", "#0072b2", []],
    ["R2", "R2", "#d55e00", [8, 4]],
    ["R3", "R3", "#009e73", [2, 3]],
  ];

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }

  // A number as one writes it: three digits, thousands apart, powers of ten where it is small.
  function said(x, digits = 3) {
    if (x === null || x === undefined) return "not formed";
    if (x === 0) return "0";
    const size = Math.abs(x);
    if (size >= 1000) return String(Math.round(x)).replace(/\B(?=(\d{3})+$)/g, ",");
    const short = Number(x.toPrecision(digits));
    return (size < 1e-3 ? short.toExponential() : String(short)).replace("-", "−").replace("e-", "e−");
  }

  // ---- what is chosen, kept in the address
  const chosen = {};
  const watching = [];

  function choose(changes) {
    Object.assign(chosen, changes);
    const hash = Object.entries(chosen).map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
    history.replaceState(null, "", `#${hash}`);
    for (const draw of watching) draw();
  }

  // What an address asks for, as far as it can be had: of a number the nearest that is there.
  function asked(defaults, values) {
    const given = new URLSearchParams(location.hash.slice(1));
    const found = {};
    for (const [name, fallback] of Object.entries(defaults)) {
      const text = given.get(name);
      if (text === null || text.trim() === "") found[name] = fallback;
      else if (typeof fallback === "string") found[name] = values[name].includes(text) ? text : fallback;
      else found[name] = Number.isFinite(Number(text)) ? nearest(values[name], Number(text)) : fallback;
    }
    return found;
  }

  const nearest = (values, x) =>
    values.reduce((best, value) => (Math.abs(apart(value, x)) < Math.abs(apart(best, x)) ? value : best));
  const apart = (a, b) => (a > 0 && b > 0 ? Math.log(a / b) : a - b);

  // A part of the page: what can be chosen in it, with what it is to begin with, and what draws it.
  const parts = [];

  function part(defaults, values, draw) {
    parts.push([defaults, values]);
    Object.assign(chosen, asked(defaults, values));
    watching.push(draw);
  }

  addEventListener("hashchange", () => choose(Object.assign({}, ...parts.map((one) => asked(...one)))));

  function slider(name, values, words = said) {
    const input = $(name);
    input.max = values.length - 1;
    input.addEventListener("input", () => choose({ [name]: values[Number(input.value)] }));
    watching.push(() => {
      const text = words(chosen[name]);
      input.value = values.indexOf(chosen[name]);
      input.setAttribute("aria-valuetext", text);
      $(`${name}-said`).textContent = text;
    });
  }

  function select(id, options, changed) {
    const element = $(id);
    element.append(...options.map(([value, words]) => make("option", { value }, words)));
    element.addEventListener("change", () => changed(element.value));
    return element;
  }

  // ---- charts
  const charts = new Map();
  const tick = (x) => (x === null || x === undefined ? "" : said(x, 2));

  function chart(id, curves) {
    charts.get(id)?.destroy();
    const place = $(id);
    const style = getComputedStyle(document.documentElement);
    const [ink, rule] = [style.getPropertyValue("--soft"), style.getPropertyValue("--line")];
    const axis = { stroke: ink, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 } };
    const y = curves.series.flatMap((one) => one.values).filter((v) => v !== null);
    const log = curves.log && Math.min(...y) > 0;
    const options = {
      width: Math.max(place.clientWidth, 200),
      height: 280,
      scales: { x: { time: false, distr: 3 }, y: log ? { distr: 3 } : {} },
      axes: [
        { ...axis, label: curves.x.label, splits: () => curves.x.marks, filter: (u, at) => at, values: (u, at) => at.map(tick) },
        { ...axis, size: 62, values: (u, at) => at.map(tick) },
      ],
      series: [
        { label: curves.x.label, value: (u, v) => tick(v) },
        ...curves.series.map((one) => ({
          label: one.label, stroke: one.colour, width: 2, dash: one.dash, points: { show: true, size: 6 },
          value: (u, v) => (v === null || v === undefined ? "" : said(v)),
        })),
      ],
      hooks: {
        drawClear: [(u) => shade(u, curves.beyond ?? [])],
        draw: [(u) => mark(u, curves.x.at, ink)],
        ready: [(u) => u.setLegend({ idx: curves.x.values.indexOf(curves.x.at) })], // what is read off until one hovers
      },
    };
    charts.set(id, new uPlot(options, [curves.x.values, ...curves.series.map((one) => one.values)], place));
  }

  function shade(u, beyond) {
    u.ctx.save();
    u.ctx.fillStyle = "rgb(128 128 128 / 0.18)";
    const { left, top, width, height } = u.bbox;
    for (const [low, high] of beyond) {
      const from = low === null ? left : u.valToPos(low, "x", true);
      const to = high === null ? left + width : u.valToPos(high, "x", true);
      u.ctx.fillRect(from, top, to - from, height);
    }
    u.ctx.restore();
  }

  function mark(u, at, ink) {
    u.ctx.save();
    u.ctx.strokeStyle = ink;
    u.ctx.lineWidth = devicePixelRatio;
    const x = u.valToPos(at, "x", true);
    u.ctx.beginPath();
    u.ctx.moveTo(x, u.bbox.top);
    u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
    u.ctx.stroke();
    u.ctx.restore();
  }

  function start() {
    for (const draw of watching) draw();
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth !== width) for (const draw of watching) draw();
      width = innerWidth;
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => watching.forEach((draw) => draw()));
  }

  return { $, data, REPLAYS, make, said, chosen, choose, part, slider, select, chart, start };
})();
