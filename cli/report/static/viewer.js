"use strict";
// Responses token by token. Data come from a dump: every text goes in as text, never as HTML.
(() => {
  const LEVELS = [0.03, 0.1, 0.3, 1]; // nats: the ratio is off by 3 %, 11 %, 35 %, a factor of e
  const $ = (name) => document.getElementById(`view-${name}`); // other ids of the page are names of tables
  const views = JSON.parse($("data").textContent);
  let shown = -1; // index of the response
  let at = -1; // index of the chosen token in it
  let spans = []; // its tokens on the page
  let sorted = { column: 0, up: true };

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {})) if (value !== null) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // What a character that has no shape of its own, or turns others around, is shown as.
  const visible = (text) =>
    text === "" ? "∅" : text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) =>
      `\\u{${c.codePointAt(0).toString(16)}}`);

  const number = (x, digits = 4) =>
    typeof x !== "number" || Number.isNaN(x) ? "–" : String(Number(x.toPrecision(digits))).replace("-", "−");
  const sum = (xs) => xs.reduce((a, b) => a + b, 0);

  // D = log π_old - log μ of token i; null where it is masked, missing, or no log-prob
  function prepared(view, index) {
    const n = view.tokens.length;
    view.D = Array(n).fill(null);
    view.bad = Array(n).fill(false);
    const kinds = [view.mu, view.old].filter((x) => x !== null);
    for (let i = 0; i < n; i++) {
      if (view.mask[i] !== "1") continue;
      const usable = view.first + i > 0 && kinds.every((x) => typeof x[i] === "number" && x[i] <= 0);
      if (!usable) view.bad[i] = true;
      else if (kinds.length === 2) view.D[i] = view.old[i] - view.mu[i];
    }
    const known = view.D.filter((d) => d !== null);
    const sizes = known.map(Math.abs);
    const sampled = [...view.mask].filter((m) => m === "1").length;
    view.number = index + 1;
    view.sum = known.length ? sum(known) : null;
    view.largest = known.length ? Math.max(...sizes) : null;
    view.mean = known.length ? sum(sizes) / known.length : null;
    view.unusable = view.bad.filter(Boolean).length;
    view.flipped = view.flips ? sum(view.flips.filter((_, i) => view.mask[i] === "1")) : null;
    view.share = view.flips && sampled ? view.flipped / (sampled * view.rollout.layers) : null;
    view.weight = view.D.map((d, i) =>
      view.bad[i] ? Infinity : view.why === "most flips" ? (view.mask[i] === "1" ? view.flips[i] : 0) : Math.abs(d ?? 0));
    view.worst = [...view.tokens.keys()].sort((a, b) => view.weight[b] - view.weight[a] || a - b);
  }
  views.forEach(prepared);

  // ---- list of responses
  const COLUMNS = [
    ["#", (v) => v.number, String],
    ["why", (v) => v.why, visible],
    ["step", (v) => v.step, String],
    ["response", (v) => v.source, visible],
    ["tokens", (v) => v.tokens.length, String],
    ["Σ D", (v) => v.sum, number],
    ["max |D|", (v) => v.largest, number],
    ["mean |D|", (v) => v.mean, (x) => number(x, 3)],
    ["flips", (v) => v.share, (x) => (x === null ? "–" : `${number(100 * x, 3)} %`)],
    ["unusable", (v) => v.unusable, String],
  ];

  function heads() {
    COLUMNS.forEach(([title], column) => {
      const button = make("button", { type: "button" }, title);
      button.addEventListener("click", () => {
        const first = typeof COLUMNS[column][1](views[0]) === "string" || column === 0; // numbers: the largest first
        sorted = { column, up: sorted.column === column ? !sorted.up : first };
        list();
      });
      $("list").tHead.rows[0].append(make("th", { scope: "col" }, button));
    });
  }

  function order(a, b) {
    const of = COLUMNS[sorted.column][1];
    const [x, y] = [of(a), of(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a.number - b.number; // nothing comes last
    const way = typeof x === "string" ? x.localeCompare(y) : x - y;
    return (sorted.up ? way : -way) || a.number - b.number;
  }

  function chosen() {
    const [step, why] = [$("step").value, $("why").value];
    return views.filter((v) => (step === "" || String(v.step) === step) && (why === "" || v.why === why)).sort(order);
  }

  function list() {
    const rows = chosen();
    [...$("list").tHead.rows[0].cells].forEach((cell, column) =>
      column === sorted.column ? cell.setAttribute("aria-sort", sorted.up ? "ascending" : "descending")
        : cell.removeAttribute("aria-sort"));
    $("list").tBodies[0].replaceChildren(...rows.map(row));
    $("count").textContent = `${rows.length} of ${views.length} responses`;
  }

  function row(view) {
    const cells = COLUMNS.map(([title, of, text], column) => {
      if (column === 0) {
        const link = make("a", { href: `#response-${view.number}` }, String(view.number));
        return make("th", { scope: "row" }, link);
      }
      return make("td", { class: title === "response" ? "name" : "number" }, text(of(view)));
    });
    const current = view.number === shown + 1 ? "true" : null;
    return make("tr", { "data-number": view.number, "aria-current": current }, ...cells);
  }

  function filters() {
    for (const [id, of] of [["step", (v) => String(v.step)], ["why", (v) => v.why]]) {
      const values = [...new Set(views.map(of))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      $(id).append(make("option", { value: "" }, "all"),
        ...values.map((value) => make("option", { value }, visible(value))));
      $(id).addEventListener("change", list);
    }
  }

  // ---- tokens of one response
  function look(view, i) {
    if (view.bad[i]) return "bad";
    if (view.mask[i] !== "1") return "off";
    const d = view.D[i];
    if (d === null) return "none";
    const depth = LEVELS.filter((level) => Math.abs(d) >= level).length;
    return depth ? `${d > 0 ? "p" : "m"} d${depth}` : "near";
  }

  const label = (view, i) => (view.texts === null ? String(view.tokens[i]) : visible(view.texts[i]));

  function token(view, i) {
    const said = view.bad[i] ? "unusable" : view.mask[i] !== "1" ? "masked" : `D ${number(view.D[i])}`;
    return make("span", { class: `t ${look(view, i)}`, role: "option", tabindex: "-1", "data-i": i,
      "aria-selected": "false", "aria-label": `token ${view.first + i}, ${label(view, i)}, ${said}` }, label(view, i));
  }

  function show(index) {
    shown = index;
    at = -1;
    const view = views[index];
    $("shown").textContent = `Response ${view.number}: ${visible(view.source)}`;
    $("about").textContent = `Shown for ${visible(view.why)}; step ${view.step}, tokens ${view.first} to ` +
      `${view.first + view.tokens.length - 1}. The numbers of the list are those of the tokens shown.`;
    $("tokens").className = view.texts === null ? "ids" : "";
    spans = view.tokens.map((_, i) => token(view, i));
    $("tokens").replaceChildren(...spans.flatMap((span, i) =>
      view.texts?.[i].includes("\n") ? [span, make("br")] : [span]));
    list();
  }

  // ---- routes: unpacked when a response is first looked at
  async function unpacked(part, base) {
    const bytes = Uint8Array.from(atob(part.data), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const raw = await new Response(stream).arrayBuffer();
    const ids = part.bytes === 1 ? Int32Array.from(new Uint8Array(raw)) : Int32Array.from(new Uint16Array(raw));
    for (let start = 0; start < ids.length; start += part.k) {
      if (part.beside && ids[start] === 0) {
        for (let j = start; j < start + part.k; j++) ids[j] = base[j];
        continue;
      }
      let id = part.beside ? -2 : -1;
      for (let j = start; j < start + part.k; j++) ids[j] = id += ids[j];
    }
    return ids;
  }

  function routesOf(view) {
    view.routes ??= (async () => {
      const ours = view.rollout && (await unpacked(view.rollout));
      return [ours, view.trainer && (await unpacked(view.trainer, ours))];
    })();
    return view.routes;
  }

  function grid(view, i, routes) {
    const engines = [["rollout", view.rollout, routes[0]], ["trainer", view.trainer, routes[1]]].filter((e) => e[1]);
    const head = make("tr", {}, make("th", { scope: "col" }, "layer"),
      ...engines.map(([name, part]) => make("th", { scope: "colgroup", colspan: part.k, class: "first" }, name)));
    const body = make("tbody", {});
    for (let layer = 0; layer < Math.max(...engines.map((e) => e[1].layers)); layer++) {
      const rows = engines.map(([, part, ids]) =>
        layer < part.layers ? [...ids.subarray((i * part.layers + layer) * part.k).subarray(0, part.k)] : []);
      const sent = rows.length === 2 && rows.every((ids) => ids.length && ids.every((id) => id >= 0));
      const cells = rows.flatMap((ids, engine) => ids.map((id, place) => {
        const other = sent && !rows[1 - engine].includes(id);
        return make("td", { class: `${place ? "" : "first"} ${other ? "other" : ""}`.trim() || null },
          id < 0 ? "–" : String(id));
      }));
      const same = cells.every((cell) => !cell.classList.contains("other"));
      body.append(make("tr", { class: same ? "same" : null }, make("th", { scope: "row" }, String(layer)), ...cells));
    }
    const words = view.flips
      ? `The expert sets differ in ${view.flips[i]} of ${view.rollout.layers} MoE layers; experts that only one engine chose are framed.`
      : "The experts of each MoE layer, in the order of their ids.";
    const table = make("table", { "aria-label": "routes" }, make("thead", {}, head), body);
    return make("div", { id: "view-routes" }, make("p", {}, words), table);
  }

  // ---- the numbers of a token
  function facts(view, i) {
    const d = view.D[i];
    const [mu, old] = [view.mu?.[i], view.old?.[i]].map((x) => (view.mask[i] === "1" ? x : undefined));
    const said = (x) => (x === null ? "no number" : typeof x === "string" ? x : number(x, 6));
    const rows = [["position", String(view.first + i)], ["token", String(view.tokens[i])]];
    if (view.texts !== null) rows.push(["text", visible(view.texts[i])]);
    if (view.mask[i] !== "1") rows.push(["", "masked: not sampled, or not in the loss"]);
    if (view.bad[i]) rows.push(["", "unusable: no ratio can be made of it"]);
    if (view.mu) rows.push(["log μ, rollout", said(mu)], ["p under μ", number(Math.exp(mu ?? NaN))]);
    if (view.old) rows.push(["log π_old, trainer", said(old)], ["p under π_old", number(Math.exp(old ?? NaN))]);
    if (d !== null) rows.push(["D", `${number(d)} nats`], ["ρ = exp D", number(Math.exp(d))]);
    const place = view.worst.indexOf(i) + 1;
    if (view.weight[i] > 0) rows.push(["place among the worst", String(place)]);
    return make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  }

  async function detail(i) {
    const [index, view] = [shown, views[shown]];
    const panel = $("detail");
    panel.dataset.token = i;
    panel.replaceChildren(facts(view, i), ...panel.querySelectorAll("#view-routes"));
    if (!view.rollout && !view.trainer) return void panel.querySelector("#view-routes")?.remove();
    const routes = await routesOf(view);
    if (index === shown && panel.dataset.token === String(i)) panel.replaceChildren(facts(view, i), grid(view, i, routes));
  }

  // ---- moving about
  function choose(i, move, block = "nearest") {
    const mark = (span, on) => {
      span.classList.toggle("at", on);
      span.setAttribute("aria-selected", String(on));
      span.tabIndex = on ? 0 : -1;
    };
    if (at >= 0) mark(spans[at], false);
    at = i;
    mark(spans[at], true);
    detail(at);
    if (!move) return;
    history.replaceState(null, "", `#response-${shown + 1}-token-${views[shown].first + at}`);
    spans[at].focus({ preventScroll: true });
    spans[at].scrollIntoView({ block });
  }

  function open(index, position, move) {
    if (index !== shown) show(index);
    const view = views[index];
    const i = position === undefined ? view.worst[0] : position - view.first;
    choose(Math.min(Math.max(i, 0), view.tokens.length - 1), move, "center");
  }

  function step(by) { // the response after or before in the list as it stands
    const numbers = chosen().map((v) => v.number);
    const place = numbers.indexOf(shown + 1);
    const next = place < 0 ? numbers[0] : numbers[place + by];
    if (next !== undefined) open(next - 1, undefined, true);
  }

  function linked() {
    const found = /^#response-(\d+)(?:-token-(\d+))?$/.exec(location.hash);
    const index = found ? Number(found[1]) - 1 : -1;
    if (!views[index]) return false;
    open(index, found[2] === undefined ? undefined : Number(found[2]), true);
    return true;
  }

  const MOVES = {
    ArrowRight: () => choose(Math.min(at + 1, views[shown].tokens.length - 1), true),
    ArrowLeft: () => choose(Math.max(at - 1, 0), true),
    Home: () => choose(0, true),
    End: () => choose(views[shown].tokens.length - 1, true),
    n: () => worst(1),
    p: () => worst(-1),
    j: () => step(1),
    k: () => step(-1),
  };

  function worst(by) {
    const { worst: ranked } = views[shown];
    choose(ranked[Math.min(Math.max(ranked.indexOf(at) + by, 0), ranked.length - 1)], true);
  }

  function pressed(event) {
    const typing = event.target.closest?.("select, input, textarea");
    const among = event.target.closest?.("#view-tokens");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(MOVES, event.key)) return;
    if (event.key.length > 1 && !among) return; // arrows scroll the page elsewhere
    event.preventDefault();
    MOVES[event.key]();
  }

  function legend() {
    const entry = (look, words) => make("li", {}, make("span", { class: `t ${look}` }, words));
    const range = (i) => (i + 1 < LEVELS.length ? `${LEVELS[i]}–${LEVELS[i + 1]}` : `≥ ${LEVELS[i]}`);
    $("legend").append(make("li", {}, "D = log π_old − log μ, nats:"),
      ...[3, 2, 1, 0].map((i) => entry(`m d${i + 1}`, `D < 0, ${range(i)}`)),
      entry("near", `|D| < ${LEVELS[0]}`),
      ...[0, 1, 2, 3].map((i) => entry(`p d${i + 1}`, `D > 0, ${range(i)}`)),
      entry("off", "masked"), entry("bad", "unusable"));
  }

  const hovered = (event) => event.target.closest(".t");
  $("tokens").addEventListener("mouseover", (event) => hovered(event) && detail(Number(hovered(event).dataset.i)));
  $("tokens").addEventListener("mouseleave", () => detail(at));
  $("tokens").addEventListener("click", (event) => hovered(event) && choose(Number(hovered(event).dataset.i), true));
  document.addEventListener("keydown", pressed);
  addEventListener("hashchange", linked);
  heads();
  filters();
  legend();
  if (!linked()) open(0, undefined, false);
})();
