// A tiny policy: every prefix with what both engines say of it, and the exact numbers of every method and replay.
(() => {
  const { $, data, REPLAYS, make, said, chosen, choose, part, slider, select, chart, start } = explorer;
  const { noises, staleness, methods, replays, nodes, measured, numbers, prompt, settings } = data.policy;
  const METHODS = {
    minirl: "MiniRL: θ/μ, its clip", "minirl-no-clip": "MiniRL without a clip: θ/μ", "minirl-no-is": "MiniRL without importance sampling: θ/old",
    grpo: "GRPO", gspo: "GSPO",
  };
  const WORDS = {
    j_seq: ["J(π)", "expected reward of the policy under this replay"],
    j_seq_natural: ["J(π), experts live", "the same policy without replay"],
    j_mu: ["J(μ)", "expected reward of what samples"],
    value_error: ["value error", "how far the first-order expansion misses J(π) − J(μ)"],
    replay_bias: ["replay bias", "J(π, experts live) − J(π)"],
    gradient_error: ["gradient error, own target", "of the expected update, relative to ∇J of this replay's policy"],
    gradient_error_natural: ["gradient error, natural target", "relative to ∇J with experts live"],
    cosine: ["cosine, own target", "of the expected update and ∇J of this replay's policy"],
    cosine_natural: ["cosine, natural target", "of the expected update and ∇J with experts live"],
    variance: ["variance", "of the update of one mini-batch, trace"],
    kl_mu_old: ["KL(μ ‖ π_old)", "nats a token, experts live"],
    kl_mu_old_replayed: ["KL under replay", "nats a token"],
    flip_rate: ["flips", "share of (token, layer)"],
    tokens_flipped: ["tokens flipped", "share with another expert in any layer"],
    entropy: ["entropy", "of π, nats a token"],
  };
  const CURVES = ["gradient_error_natural", "gradient_error", "cosine_natural", "value_error", "replay_bias", "variance"];
  const SPELLED = { disabled: "none" };

  const place = (at) => noises.indexOf(at.noise) * staleness.length + staleness.indexOf(at.stale);
  const row = (at, replay) => measured[place(at)][methods.indexOf(at.method) * replays.length + replays.indexOf(replay)];
  const tokens = (list) => (list.length ? list.join(" ") : "the prompt alone");
  const label = (replay) => REPLAYS.find(([name]) => name === (SPELLED[replay] ?? replay))[1];
  const experts = (ids) => ids.join(", ");

  // ---- the tree
  function tree() {
    const focused = $("tree").contains(document.activeElement);
    const all = nodes[place(chosen)];
    const boxes = all.map((node, i) => {
      const box = make("button", {
        type: "button", class: `node depth${node.tokens.length}`, "data-node": i, "aria-pressed": String(i === chosen.node),
      }, make("b", {}, i ? node.tokens.join(" ") : "start"), flag(node), ...node.logp.mu.map((_, token) => pair(node, token)));
      box.addEventListener("click", () => choose({ node: i }));
      return box;
    });
    $("tree").replaceChildren(...boxes, document.createElementNS("http://www.w3.org/2000/svg", "svg"));
    lines(all);
    if (focused) boxes[chosen.node].focus();
  }

  function flag(node) {
    const layers = node.flipped.flatMap((flipped, layer) => (flipped ? [layer + 1] : []));
    return layers.length ? make("span", { class: "flip" }, `flip: ${layers.length > 1 ? "layers" : "layer"} ${layers.join(", ")}`) : make("span", { class: "noflip" }, "same experts");
  }

  function pair(node, token) {
    const bars = ["pi", "mu"].map((name) => {
      const bar = make("span", { class: `bar ${name}` });
      bar.style.width = `${100 * Math.exp(node.logp[name === "pi" ? chosen.replay : "mu"][token])}%`;
      return bar;
    });
    return make("span", { class: "pair" }, make("span", { class: "token" }, String(token)), make("span", { class: "two" }, ...bars));
  }

  // Lines from each box to those of the prefixes one token longer, as wide as π makes them likely.
  function lines(all) {
    const svg = $("tree").querySelector("svg");
    const base = $("tree").getBoundingClientRect();
    const boxes = [...$("tree").querySelectorAll(".node")].map((box) => box.getBoundingClientRect());
    svg.setAttribute("aria-hidden", "true");
    all.forEach((node, i) => {
      if (!node.tokens.length) return;
      const parent = all.findIndex((other) => other.tokens.join() === node.tokens.slice(0, -1).join());
      const line = document.createElementNS(svg.namespaceURI, "line");
      const [from, to, p] = [boxes[parent], boxes[i], Math.exp(all[parent].logp[chosen.replay][node.tokens.at(-1)])];
      const ends = { x1: from.right - base.left, y1: (from.top + from.bottom) / 2 - base.top, x2: to.left - base.left, y2: (to.top + to.bottom) / 2 - base.top };
      for (const [name, at] of Object.entries(ends)) line.setAttribute(name, at);
      line.setAttribute("stroke-width", 1 + 5 * p);
      svg.append(line);
    });
  }

  $("tree").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const next = chosen.node + by;
    if (next < 0 || next >= nodes[0].length) return;
    choose({ node: next });
    $("tree").querySelector(`[data-node="${next}"]`).focus();
  });

  // ---- a prefix
  function detail() {
    const node = nodes[place(chosen)][chosen.node];
    const { logp } = node;
    const p = (name, token) => make("td", { class: "number", "data-of": `${name}-${token}` }, said(Math.exp(logp[name][token])));
    const moved = (to, from, token) => make("td", { class: "number" }, said(logp[to][token] - logp[from][token]));
    const heads = ["token", "μ", "π_old", "π live", "π under R2", "π under R3", "log π/μ, live", "log π/μ, under R3", "what μ’s experts move"];
    const ends = (token) => (node.rewards[token] === null ? "" : `, ends: reward ${node.rewards[token]}`);
    const rows = logp.mu.map((_, token) => make("tr", {}, make("th", { scope: "row" }, `${token}${ends(token)}`),
      ...["mu", "old", "disabled", "R2", "R3"].map((name) => p(name, token)),
      moved("disabled", "mu", token), moved("R3", "mu", token), moved("R3", "disabled", token)));
    const title = make("h3", {}, `After ${tokens(node.tokens)}`);
    const flipped = node.flipped.some(Boolean);
    const note = flipped
      ? "The engines choose other experts here. R2 and R3 replace the experts of the whole prefix, prompt included."
      : "Both engines choose the same experts at this token; what replay changes here comes from tokens before it.";
    $("node").replaceChildren(title, make("p", { class: "note" }, `A response of μ comes here with probability ${said(node.reached)}. ${note}`),
      scrolled("probabilities of the next token", heads, rows), scrolled("experts", ...routes(node)));
  }

  function routes(node) {
    const { mu, old, theta } = node.experts;
    const heads = ["layer", "μ", "π_old", "π", "", `π under ${label(chosen.replay)} uses`];
    const used = { disabled: theta, R2: old, R3: mu }[chosen.replay];
    const rows = mu.map((ids, layer) => {
      const notes = [node.flipped[layer] && "flip", experts(theta[layer]) !== experts(old[layer]) && "moved since the rollout"];
      return make("tr", { class: node.flipped[layer] ? "flipped" : null }, make("th", { scope: "row" }, String(layer + 1)),
        ...[ids, old[layer], theta[layer]].map((each) => make("td", { class: "number" }, experts(each))),
        make("td", {}, notes.filter(Boolean).join(", ")), make("td", { class: "number" }, experts(used[layer])));
    });
    return [heads, rows];
  }

  function scrolled(name, heads, rows) {
    const head = make("tr", {}, ...heads.map((words) => make("th", { scope: "col" }, words)));
    return make("div", { class: "wide", role: "region", tabindex: "0", "aria-label": name },
      make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  }

  // ---- the whole policy
  function whole() {
    const head = make("tr", {}, make("th", { scope: "col" }, ""), ...replays.map((replay) =>
      make("th", { scope: "col", class: replay === chosen.replay ? "mine" : null }, label(replay))));
    const rows = numbers.map((name, i) => {
      const [title, meaning] = WORDS[name];
      return make("tr", {}, make("th", { scope: "row" }, title, make("small", {}, ` ${meaning}`)), ...replays.map((replay) =>
        make("td", { class: `number${replay === chosen.replay ? " mine" : ""}`, "data-of": `${name}-${replay}` }, said(row(chosen, replay)[i]))));
    });
    $("numbers").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
    const inert = row(chosen, chosen.replay).at(-1);
    $("numbers-note").textContent = `${METHODS[chosen.method]}; summed over every response, no sampling. ` +
      (inert.length ? `Cannot act here: ${inert.join("; ")}.` : "");
  }

  function curve() {
    const at = numbers.indexOf(chosen["noise-curve"]);
    const series = REPLAYS.map(([, words, colour, dash], i) => ({
      label: words, colour, dash, values: noises.map((noise) => row({ ...chosen, noise }, replays[i])[at]),
    }));
    chart("noise-curve", { x: { label: "relative size of μ’s noise", values: noises, marks: noises, at: chosen.noise }, series, log: false });
    $("noise-curve").setAttribute("aria-label", `${WORDS[chosen["noise-curve"]][0]} over the noise: ${series.map((one) =>
      `${one.label} ${said(one.values[0])} to ${said(one.values.at(-1))}`).join(", ")}`);
    $("noise-of").value = chosen["noise-curve"];
  }

  function selects() {
    for (const name of ["stale", "replay", "method"]) $(name).value = chosen[name];
  }

  $("policy-about").textContent = `The prompt is ${prompt.join(" ")}, the response has up to ${settings.horizon} tokens of ` +
    `${settings.vocab}, and earns 1 if it sums to the prompt’s sum modulo ${settings.vocab}. Each of ${settings.layers} MoE layers ` +
    `sends a token to ${settings.top_k} of ${settings.experts} experts. It is one random policy, chosen because its experts flip; ` +
    "it shows how things hang together, not how large they are in a language model.";
  select("stale", staleness.map((s) => [s, s ? `${s} exact gradient steps` : "none: θ is θ_old"]), (v) => choose({ stale: Number(v) }));
  select("replay", replays.map((r) => [r, label(r)]), (v) => choose({ replay: v }));
  select("method", methods.map((m) => [m, METHODS[m]]), (v) => choose({ method: v }));
  select("noise-of", CURVES.map((name) => [name, WORDS[name][0]]), (v) => choose({ "noise-curve": v }));
  part({ noise: 0.4, stale: 0, replay: "R3", method: "minirl", node: 0, "noise-curve": "gradient_error_natural" },
    { noise: noises, stale: staleness, replay: replays, method: methods, node: [...nodes[0].keys()], "noise-curve": CURVES },
    () => [selects, tree, detail, whole, curve].forEach((f) => f()));
  slider("noise", noises);
  start();
})();
