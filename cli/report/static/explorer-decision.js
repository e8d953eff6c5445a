// The decision for a regime: everything is looked up on the grid of regimes that was computed beforehand.
(() => {
  const { $, data, REPLAYS, make, said, chosen, choose, part, slider, select, chart } = explorer;
  const { axes, options, columns, numbers, measured } = data.decision;
  const NAMES = Object.keys(axes);
  const WORDS = {
    kl: "KL", flips: "flips", updates: "N", n: "N", horizon: "T", group: "group size", entropy: "entropy", step: "step",
  };
  const UNITS = { kl: " nats a token", horizon: " tokens", entropy: " nats a token", step: " nats a token" };
  const SHOWN = [
    ["error", "gradient error", "relative to the natural gradient; smaller is better", true],
    ["cosine", "cosine of the expected update", "with the natural gradient; larger is better", false],
    ["score", "cosine of a sampled update", "of 64 groups: bias and variance in one; the advice goes by it", false],
    ["ess", "effective share of the tokens", "of token weights; larger is better", false],
    ["sequence_ess", "effective share of responses", "of whole responses' weights; larger is better", true],
  ];
  const CORRECTIONS = { "theta/mu": "θ/μ", truncated: "θ/μ truncated at 5", "theta/old": "no importance sampling" };

  // ---- looking up
  const place = (at) => NAMES.reduce((index, name) => index * axes[name].length + axes[name].indexOf(at[name]), 0);
  const get = (name, at) => columns[name].values[columns[name].at[place(at)]];
  const value = (option, number, at) => get("rows", at)[get("row_of", at)[option]][numbers.indexOf(number)];
  const named = (replay) => REPLAYS.find(([name]) => name === replay)?.[1] ?? replay;
  const advised = (at) => options[get("chosen", at)];
  const whole = (option) =>
    option.replay === null
      ? option.name
      : `${named(option.replay)}, ${CORRECTIONS[option.correction]}, ${option.clip === "clip" ? "MiniRL’s clip" : "no clip"}`;
  const family = (option) => (option.replay === null ? "other" : option.replay.split(" ")[0]);
  const known = (at) => get("sure", at).around && !Object.keys(get("sure", at).outside).length;

  // The options that differ from the advice in their replay alone.
  function beside(at) {
    const one = advised(at);
    const [correction, clip] = one.replay === null ? ["theta/mu", at.n > 1 ? "clip" : "no clip"] : [one.correction, one.clip];
    return [...options.keys()].filter((i) => options[i].correction === correction && options[i].clip === clip);
  }

  // ---- advice
  function advice() {
    const [one, sure, paper] = [advised(chosen), get("sure", chosen), get("paper", chosen)];
    $("answer").textContent = one.replay === null ? one.name : named(one.replay);
    $("answer").className = family(one);
    $("answer-said").textContent = get("said", chosen).replace("theta/mu", "θ/μ");
    const edges = Object.entries(sure.outside).map(([axis, edge]) => `${WORDS[axis]} ${said(edge)}`);
    const where = [
      edges.length && `Outside what was measured, which ends at ${edges.join(" and ")}: the answer there stands in.`,
      !sure.around && "No measured cell lies around this regime: the nearest stands in.",
    ].filter(Boolean);
    $("answer-where").textContent = where.length ? where.join(" ") : "Within what was measured.";
    $("answer-where").className = known(chosen) ? "" : "beyond";
    $("command").textContent = get("command", chosen);
    $("paper").hidden = paper === null;
    $("paper").textContent = paper === null ? "" : paper.said.replace("theta/mu", "θ/μ");
  }

  function sureness() {
    const { agree, lead, nearest } = get("sure", chosen);
    const mine = get("chosen", chosen);
    const tied = get("tied", chosen).filter((i) => i !== mine);
    const [kl, left, flips, horizon, step, entropy] = nearest.map((x) => said(x));
    const lines = [
      tied.length
        ? `Tied with ${tied.map((i) => whole(options[i])).join("; ")}: of those within one standard error or 1%, the simplest is taken.`
        : "No other option is within one standard error or 1% of it.",
    ];
    if (known(chosen)) lines.push(`Of the measured cells around it, ${said(100 * agree, 2)}% by weight ask for the same.`);
    if (lead !== null) {
      const [over, by, error] = lead;
      const side = by >= 0 ? "Ahead of" : "Simpler than, and behind,";
      lines.push(`${side} ${whole(options[over])} by ${said(Math.abs(by), 2)} ± ${said(error, 2)} in the cosine of a sampled ` +
        `update (one standard error over ${data.decision.policies} policies).`);
    }
    lines.push(`Nearest measured cell: KL ${kl}, of which R3 leaves ${left}, flips ${flips}, T ${horizon}, step ${step}, ` +
      `entropy ${entropy}.`);
    const alone = get("alone", chosen);
    if (alone !== mine) {
      lines.push(`A single update alone asks for ${whole(options[alone])}; what training found goes before it.`);
    }
    $("sure").replaceChildren(...lines.map((line) => make("li", {}, line)));
  }

  function changes() {
    const found = Object.entries(get("changes", chosen)).flatMap(([axis, sides]) =>
      Object.entries(sides).map(([side, [at, option]]) =>
        `${WORDS[axis]} ${side === "below" ? "down" : "up"} to ${said(at)}${UNITS[axis] ?? ""}: ${whole(options[option])}`));
    const lines = found.length ? found : ["Nowhere along a single axis of what was measured."];
    $("changes").replaceChildren(...lines.map((line) => make("li", {}, line)));
  }

  // ---- every option
  function bars() {
    const [mine, tied, among] = [get("chosen", chosen), get("tied", chosen), beside(chosen)];
    const block = ([number, title, meaning]) => {
      const longest = Math.max(...among.map((i) => Math.abs(value(i, number, chosen))));
      const row = (i) => {
        const [x, mark] = [value(i, number, chosen), i === mine ? " ★" : tied.includes(i) ? " =" : ""];
        const bar = make("span", { class: `bar ${family(options[i])}` });
        bar.style.width = `${longest ? (100 * Math.max(x, 0)) / longest : 0}%`;
        return make("tr", { class: i === mine ? "mine" : null },
          make("th", { scope: "row" }, named(options[i].replay) + mark), make("td", { class: "length" }, bar),
          make("td", { class: "number" }, said(x)));
      };
      return make("table", { "data-of": number },
        make("caption", {}, make("b", {}, title), ` ${meaning}`), make("tbody", {}, ...among.map(row)));
    };
    $("bars").replaceChildren(...SHOWN.map(block));
    const { correction, clip } = options[among[0]];
    $("beside-note").textContent =
      `With ${CORRECTIONS[correction]} and ${clip === "clip" ? "MiniRL’s clip" : "no clip"}, means over the N mini-batches of a ` +
      "rollout; ★ is the advice, = is tied with it.";
  }

  function table() {
    const [mine, tied, left] = [get("chosen", chosen), get("tied", chosen), get("allowed", chosen)];
    const order = [...options.keys()].sort((a, b) => value(b, "score", chosen) - value(a, "score", chosen));
    const state = (i) => (i === mine ? "advised" : tied.includes(i) ? "tied" : left.includes(i) ? "" : "left out");
    const head = ["option", "", ...SHOWN.map(([, title]) => title)].map((words) => make("th", { scope: "col" }, words));
    const rows = order.map((i) => make("tr", {}, make("th", { scope: "row" }, whole(options[i])), make("td", {}, state(i)),
      ...SHOWN.map(([number]) => make("td", { class: "number" }, said(value(i, number, chosen))))));
    $("options").replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
    $("training").replaceChildren(...get("training", chosen).map((line) => make("li", {}, `Training: ${line}.`)));
  }

  // ---- the map over KL and flips
  function map() {
    const focused = $("map").contains(document.activeElement);
    const flips = [...axes.flips].reverse();
    const head = make("tr", {}, make("th", { scope: "col" }, "flips"),
      ...axes.kl.map((x) => make("th", { scope: "col" }, said(x, 2))));
    const cell = (kl, share) => {
      const at = { ...chosen, kl, flips: share };
      const [one, here] = [advised(at), kl === chosen.kl && share === chosen.flips];
      const words = one.replay === null ? one.name : one.replay === "none" ? "–" : one.replay.split(" ")[0];
      const button = make("button", {
        type: "button", class: `${family(one)}${known(at) ? "" : " beyond"}`, tabindex: here ? "0" : "-1",
        "aria-pressed": String(here), "data-kl": kl, "data-flips": share,
        "aria-label": `KL ${said(kl)}, flips ${said(share)}: ${named(one.replay) ?? one.name}${known(at) ? "" : ", outside"}`,
      }, words);
      button.addEventListener("click", () => choose({ kl, flips: share }));
      return make("td", {}, button);
    };
    const rows = flips.map((share) =>
      make("tr", {}, make("th", { scope: "row" }, said(share, 2)), ...axes.kl.map((kl) => cell(kl, share))));
    $("map").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
    if (focused) $("map").querySelector("[tabindex='0']").focus();
  }

  $("map").addEventListener("keydown", (event) => {
    const [axis, by] = { ArrowLeft: ["kl", -1], ArrowRight: ["kl", 1], ArrowUp: ["flips", 1], ArrowDown: ["flips", -1] }[event.key] ?? [];
    if (axis === undefined) return;
    event.preventDefault();
    const next = axes[axis][axes[axis].indexOf(chosen[axis]) + by];
    if (next !== undefined) choose({ [axis]: next });
  });

  // ---- curves over the KL
  function curve() {
    const [number, title, , log] = SHOWN.find(([name]) => name === chosen.curve);
    const { correction, clip } = options[beside(chosen)[0]];
    const series = REPLAYS.map(([replay, label, colour, dash]) => {
      const option = options.findIndex((o) => o.replay === replay && o.correction === correction && o.clip === clip);
      return { label, colour, dash, values: axes.kl.map((kl) => value(option, number, { ...chosen, kl })) };
    });
    const [low, high] = [measured.kl[0], measured.kl.at(-1)];
    chart("curve", {
      x: { label: "KL, nats a token", values: axes.kl, marks: measured.kl, at: chosen.kl },
      series, log, beyond: [[null, low], [high, null]],
    });
    $("curve").setAttribute("aria-label", `${title} over the KL: ${series.map((one) =>
      `${one.label} ${said(one.values[0])} to ${said(one.values.at(-1))}`).join(", ")}`);
    $("curve-of").value = chosen.curve;
  }

  const { group, entropy } = data.decision.fixed;
  $("fixed").textContent = `Groups of ${group} responses, entropy ${entropy} nats a token. For others, and for any point ` +
    "between the steps of the sliders, ask firstorder recommend.";
  $("map-legend").replaceChildren(...REPLAYS.map(([name, words]) => make("li", { class: `key ${name}` }, words)),
    make("li", { class: "key hatched" }, "outside what was measured"));
  select("curve-of", SHOWN.map(([name, title]) => [name, title]), (of) => choose({ curve: of }));
  part({ kl: 1.5e-3, flips: 0.1, n: 4, horizon: 8192, step: 1e-4, curve: "error" },
    { ...axes, curve: SHOWN.map(([name]) => name) }, () => [advice, sureness, changes, bars, table, map, curve].forEach((f) => f()));
  for (const name of NAMES) slider(name, axes[name]);
})();
