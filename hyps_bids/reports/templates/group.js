"use strict";
(async () => {
  const read = async (id) => JSON.parse(new TextDecoder().decode(await unpack(id)));
  const byId = (id) => document.getElementById(id);
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const specs = await read("charts");
  const facts = byId("group-data") ? await read("group-data") : null;
  const STATES = ["failed", "absent", "flagged", "outlier", "done"];
  const SIDES = { L: "left", R: "right" };
  const shown = (value) => value === null ? "n/a" : value.toLocaleString("en",
    Math.abs(value) >= 100 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 3 });

  // ---- table of scans, one page of rows at a time, so that 10,000 scans cost no more than 100
  function scanTable() {
    const PAGE = 25;
    const number = (label, values, digits) => ({
      label, number: true, sort: values,
      text: (i) => (digits === undefined || values[i] === null ? shown(values[i]) : values[i].toFixed(digits)),
    });
    const states = facts.state.map((s) => STATES[s]);
    const columns = [
      { label: "Scan", sort: facts.scan, text: (i) => facts.scan[i], link: true, kind: "name" },
      { label: "State", kind: "state-of", sort: facts.state, text: (i) => states[i] },
      { label: "Why", kind: "why", sort: facts.notes.map((n) => -n.length), text: (i) => facts.notes[i].map((n) => n[0]).join(" ") },
      number("Left, mm³", facts.left),
      number("Right, mm³", facts.right),
      number("ICV, ml", facts.icv),
      number("Asymmetry, %", facts.asymmetry, 1),
      ...(facts.contrasts.levels.length > 1 ? [facts.contrasts] : []).map((c) => ({
        label: "Images", sort: c.codes.map((k) => c.levels[k]), text: (i) => c.levels[c.codes[i]], kind: "images",
      })),
      ...[...new Set([facts.defaults.group, facts.defaults.color])].filter((k) => k >= 0).map((k) => facts.categories[k]).map((c) => ({
        label: c.label, sort: c.codes.map((k) => (k < 0 ? null : k)), text: (i) => c.levels[c.codes[i]] ?? "n/a",
      })),
      ...(facts.defaults.age >= 0 ? [facts.numbers[facts.defaults.age]] : []).map((n) => number(n.label, n.values)),
    ];
    const order = new Intl.Collator("en", { numeric: true });
    const haystack = facts.scan.map((_, i) =>
      [...columns.filter((c) => c.kind).map((c) => c.text(i)), ...facts.categories.map((c) => c.levels[c.codes[i]] ?? "n/a"), facts.remarks[i] ?? ""].join(" ").toLowerCase());
    let rows = [], page = 0, column = null, ascending = true;
    const headings = columns.map((c) => {
      const button = make("button", { type: "button", textContent: c.label });
      const heading = make("th", { scope: "col", className: c.number ? "number" : "" }, button);
      button.addEventListener("click", () => {
        ascending = column === c ? !ascending : true;
        column = c;
        headings.forEach((h) => h.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        update();
      });
      return heading;
    });
    byId("table").tHead.append(make("tr", {}, ...headings));
    const compare = (a, b) => {
      const [x, y] = [column.sort[a], column.sort[b]];
      // Unknown values come last in both directions.
      if (x === null || y === null) return (x === null) - (y === null);
      return (typeof x === "string" ? order.compare(x, y) : x - y) * (ascending ? 1 : -1);
    };
    function update() {
      const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
      const state = byId("state").value;
      rows = facts.scan.map((_, i) => i).filter((i) =>
        (!state || (state === "look" ? states[i] !== "done" : states[i] === state)) &&
        words.every((word) => haystack[i].includes(word)));
      if (column) rows.sort(compare);
      page = 0;
      draw();
    }
    function cell(c, i) {
      const element = make(c.link ? "th" : "td", { className: c.number ? "number" : c.kind ?? "" });
      if (c.link) {
        element.scope = "row";
        element.append(facts.href[i] ? make("a", { href: facts.href[i], textContent: c.text(i) }) : c.text(i));
      } else if (c.kind === "state-of") {
        element.append(make("span", { className: `state ${states[i]}`, textContent: states[i] }));
      } else if (c.kind === "why") {
        for (const [short, finding, advice] of facts.notes[i]) {
          const note = make("span", { className: "note", textContent: short });
          if (finding) {
            note.tabIndex = 0;
            note.append(make("span", { className: "words", textContent: `${finding} ${advice}` }));
          }
          element.append(note);
        }
        if (facts.remarks[i]) element.append(make("span", { className: "muted", textContent: facts.remarks[i] }));
      } else element.textContent = c.text(i);
      return element;
    }
    function draw() {
      const pages = Math.max(1, Math.ceil(rows.length / PAGE));
      const visible = rows.slice(page * PAGE, (page + 1) * PAGE);
      byId("table").tBodies[0].replaceChildren(
        ...visible.map((i) => make("tr", {}, ...columns.map((c) => cell(c, i)))));
      byId("found").textContent =
        `${rows.length.toLocaleString("en")} of ${facts.scan.length.toLocaleString("en")} scans`;
      byId("page").textContent = `Page ${page + 1} of ${pages}`;
      byId("previous").disabled = page === 0;
      byId("next").disabled = page >= pages - 1;
    }
    byId("find").addEventListener("input", update);
    byId("state").addEventListener("change", update);
    byId("previous").addEventListener("click", () => { page -= 1; draw(); });
    byId("next").addEventListener("click", () => { page += 1; draw(); });
    document.querySelectorAll("a[data-state]").forEach((link) => link.addEventListener("click", () => {
      byId("state").value = link.dataset.state;
      byId("find").value = "";
      update();
    }));
    update();
  }

  // ---- choices of the reader
  const chosen = (id) => Number(byId(id).value);
  const everybody = { label: "all scans", levels: ["all scans"], codes: null };
  const category = (id) => facts.categories[chosen(id)] ?? everybody;
  // Volumes of different contrasts are not comparable: charts have one of them unless the reader wants all.
  const isShown = (i) => {
    const which = byId("contrast") ? chosen("contrast") : -1;
    return which < 0 || facts.contrasts.codes[i] === which;
  };
  const levelOf = (c, i) => (c.codes ? c.levels[c.codes[i]] ?? "n/a" : c.levels[0]);
  const levelsOf = (c) => (c.codes?.includes(-1) ? [...c.levels, "n/a"] : c.levels);
  // A point has the same place whenever it is drawn.
  const jitter = (i) => (((i + 1) * 2654435761) % 4294967296) / 2147483648 - 1;

  function fillChoices() {
    const fill = (id, labels, value, affects) => {
      const select = byId(id);
      select.append(...labels.map(([number, label]) => make("option", { value: number, textContent: label })));
      select.value = value;
      select.addEventListener("change", () => redraw((name) => affects.test(name)));
    };
    const labels = (list) => list.map((one, i) => [i, one.label]);
    const groups = [[-1, "nothing"], ...labels(facts.categories)];
    if (byId("contrast")) {
      const several = facts.contrasts.levels.map((level, i) => [i, level]);
      fill("contrast", [...several, [-1, "all contrasts"]], 0, /^(distribution|relation|change|annual|quality)-|^asymmetry/);
    }
    const volume = facts.measures.findIndex((m) => m.kind === "icv_residual_mm3");
    fill("measure", labels(facts.measures), Math.max(0, volume >= 0 && facts.measures[0]?.kind === "volume_mm3" ? 0 : volume), /^(distribution|relation|change)-/);
    fill("group", groups, facts.defaults.group, /^(distribution-|annual-|asymmetry)/);
    fill("color", groups, facts.defaults.color, /^(distribution|relation|change|annual)-|^asymmetry/);
    fill("number", labels(facts.numbers), facts.defaults.number, /^relation-/);
    const at = (name) => Math.max(0, facts.quality.findIndex((q) => q.name === name));
    const first = facts.quality.some((q) => q.name === "expected_dice_low") ? "expected_dice_low" : "confidence";
    [["x0", first], ["y0", "agreement"], ["x1", "volume_mm3"], ["y1", "entropy"]].forEach(([id, name]) =>
      fill(id, labels(facts.quality), at(name), new RegExp(`^quality-${id[1]}$`)));
  }

  const counted = (values) => {
    const often = new Map();
    values.forEach((v) => often.set(v, (often.get(v) ?? 0) + 1));
    return often;
  };
  const range = (values) => {
    let low = Infinity, high = -Infinity;
    for (const v of values) if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); }
    const margin = (high - low || Math.abs(high) || 1) * 0.04;
    return [low - margin, high + margin];
  };

  // More lines than these hide each other.
  const MOST_LINES = 60;
  /** Keep all scans of some subjects of each color. */
  function someOf(rows) {
    const first = new Map();
    rows.forEach((r) => { if (!first.has(r.subject)) first.set(r.subject, r); });
    const byColor = new Map();
    for (const r of first.values()) byColor.set(r.color, [...(byColor.get(r.color) ?? []), r]);
    const kept = new Set([...byColor.values()].flatMap((list) =>
      list.sort((a, b) => jitter(a.i) - jitter(b.i)).slice(0, MOST_LINES).map((r) => r.subject)));
    return rows.filter((r) => kept.has(r.subject));
  }
  /** Return the longitudinal form of a measure, if there is one. */
  const longitudinal = (measure) => {
    const kind = measure?.kind.replace(/^(volume|icv_residual)_mm3$/, "$1_longitudinal_mm3").replace(/^icv_fraction$/, "icv_fraction_longitudinal");
    return facts.measures.find((m) => m.kind === kind && m.part === measure.part) ?? measure;
  };
  /** Change per year of each participant, by group and method. */
  function annual(which, base, place, result) {
    if (!facts.annual) return null;
    const group = category("group");
    const { methods, short, t } = facts.annual;
    const found = facts.annual.rows.filter((r) => isShown(r.i)).flatMap((r) =>
      r[which].map((v, m) => v && { ...base(r.i), value: v[0], low: v[1], high: v[2], level: levelOf(group, r.i), m }).filter(Boolean));
    const pairs = methods.flatMap((method, m) => levelsOf(group).map((level) => ({
      level, method, m, rows: found.filter((r) => r.level === level && r.m === m),
    }))).filter((pair) => pair.rows.length);
    const alone = group === everybody;
    const groups = pairs.map((p) => (alone ? p.method : methods.length > 1 ? `${p.level}, ${short[p.m]}` : p.level));
    const rows = pairs.flatMap((p, k) => p.rows.map((r) => ({ ...r, group: groups[k], x: k + 0.3 * jitter(r.i) })));
    const boxes = pairs.map((p, k) => {
      const v = Float64Array.from(p.rows, (r) => r.value).sort();
      const mean = v.reduce((a, b) => a + b, 0) / v.length;
      const variance = v.reduce((a, b) => a + (b - mean) ** 2, 0) / (v.length - 1);
      const half = v.length > 1 ? (t[v.length - 2] ?? 1.96) * Math.sqrt(variance / v.length) : 0;
      return {
        from: k - 0.4, to: k + 0.4, at: k, low: quantile(v, 0.25), middle: quantile(v, 0.5), high: quantile(v, 0.75),
        mean, mean_low: mean - half, mean_high: mean + half,
        cells: [alone ? "all" : p.level, p.method, v.length, `${shown(mean)}${half ? ` [${shown(mean - half)}, ${shown(mean + half)}]` : ""}`,
          shown(quantile(v, 0.5)), `${shown(quantile(v, 0.25))} to ${shown(quantile(v, 0.75))}`],
      };
    });
    place({
      name: `${{ L: "Left", R: "Right" }[which]}, change per year by ${alone ? "method" : group.label}`, group_title: alone ? null : group.label,
      groups, boxes, places: groups.map((_, k) => k), sides: [-0.5, groups.length - 0.5], angle: groups.length > 2 ? -40 : 0,
    });
    return result(rows, "change per year, %", rows.map((r) => r.value),
      `Change per year in percent, ${SIDES[which]}: ` + boxes.map((b) => `${b.cells[0]}, ${b.cells[1]}: n ${b.cells[2]}, mean ${b.cells[3]}`).join("; "));
  }

  /** Return rows and placeholders of a chart of all scans; null if there is nothing to show. */
  function filled(name) {
    const [kind, which] = name.split("-");
    const color = category("color");
    const base = (i) => ({ i, color: levelOf(color, i), ringed: ["flagged", "outlier"].includes(STATES[facts.state[i]]) });
    const style = (n) => ({
      size: n > 3000 ? 12 : n > 500 ? 25 : 55, opacity: n > 3000 ? 0.45 : n > 500 ? 0.65 : 0.85,
      ring_size: n > 3000 ? 25 : n > 500 ? 80 : 160, ring_opacity: n > 3000 ? 0.4 : 0.9, ring_strokeWidth: n > 3000 ? 0.8 : 1.6,
    });
    const result = (rows, title, values, description) => rows.length && {
      rows,
      values: {
        description, value_title: title, domain: range(values), ...style(rows.length),
        color_title: color === everybody ? null : color.label, colors: levelsOf(color),
        legend: color === everybody ? null : {}, ...placeholders,
      },
    };
    let placeholders = {};
    if (kind === "quality") {
      const [x, y] = [facts.quality[chosen(`x${which}`)], facts.quality[chosen(`y${which}`)]];
      if (!x || !y) return null;
      const rows = facts.scan.map((_, i) => i).filter(isShown).flatMap((i) => (x.R || y.R ? ["L", "R"] : ["L"]).map((side) => ({
        i, side: x.R || y.R ? side : null, x: (x[side] ?? x.L)[i], value: (y[side] ?? y.L)[i],
        state: STATES[facts.state[i]] === "flagged" ? "flagged" : "no flag",
      }))).filter((row) => row.x !== null && row.value !== null);
      const bounds = (figure) => figure.bounds.map((bound) => ({ bound }));
      placeholders = {
        name: `${y.label} against ${x.label}`, x_title: x.label, x_bounds: bounds(x), y_bounds: bounds(y), x_domain: range([...rows.map((r) => r.x), ...x.bounds]),
      };
      return result(rows, y.label, [...rows.map((r) => r.value), ...y.bounds],
        `${y.label} against ${x.label}, ${rows.length} points, ${rows.filter((r) => r.state === "flagged").length} of them from flagged scans.`);
    }
    if (kind === "annual") return annual(which, base, (found) => { placeholders = found; }, result);
    const chosenMeasure = kind === "asymmetry" ? null : facts.measures[chosen("measure")];
    const measure = kind === "change" ? longitudinal(chosenMeasure) : chosenMeasure;
    if (kind !== "asymmetry" && !measure) return null;
    const values = measure ? measure[which] : facts.asymmetry;
    const title = measure ? `${measure.label}, ${measure.unit}` : "asymmetry, %";
    const both = measure ? [...measure.L, ...measure.R] : [...values, -25, 25];
    const Side = { L: "Left", R: "Right" }[which];
    const known = facts.scan.map((_, i) => i).filter((i) => values[i] !== null && isShown(i));
    if (kind === "relation") {
      const x = facts.numbers[chosen("number")];
      if (!x) return null;
      const rows = known.filter((i) => x.values[i] !== null).map((i) => ({ ...base(i), x: x.values[i], value: values[i] }));
      const often = counted(rows.map((r) => r.color));
      // A line through a few points would show mostly chance.
      const lines = [...often.keys()].filter((level) => often.get(level) >= 20);
      placeholders = { name: `${Side}, against ${x.label}`, x_title: x.label, x_domain: range(rows.map((r) => r.x)), lines };
      return result(rows, title, both, `${title}, ${SIDES[which]}, against ${x.label}: ${rows.length} scans.`);
    }
    if (kind === "change") {
      if (!facts.years) return null;
      const rows = known.filter((i) => facts.years[i] !== null).map((i) => ({
        ...base(i), x: facts.years[i], value: values[i], subject: `${facts.subject[i]} ${facts.contrasts.codes[i]}` }));
      const often = counted(rows.map((r) => r.subject));
      const several = rows.filter((r) => often.get(r.subject) > 1);
      const drawn = someOf(several);
      const limited = drawn.length < several.length ? `, ${MOST_LINES} subjects of each color drawn by lot` : "";
      placeholders = { x_title: "years since the first scan", name: `${Side}, over time${limited}` };
      return result(drawn, title, both, `${title}, ${SIDES[which]}, over years: ${drawn.length} scans${limited}.`);
    }
    const group = category("group");
    const present = new Set(known.map((i) => levelOf(group, i)));
    const groups = levelsOf(group).filter((g) => present.has(g));
    const place = new Map(groups.map((g, k) => [g, k]));
    const rows = known.map((i) => {
      const level = levelOf(group, i);
      return { ...base(i), value: values[i], group: level, x: place.get(level) + 0.3 * jitter(i) };
    });
    const boxes = groups.map((g, k) => {
      const v = sorted(rows, g);
      return { from: k - 0.4, to: k + 0.4, low: quantile(v, 0.25), middle: quantile(v, 0.5), high: quantile(v, 0.75) };
    });
    placeholders = {
      name: `${measure ? Side : "Asymmetry"}, by ${group.label}`, group_title: group === everybody ? null : group.label, groups, boxes, places: groups.map((_, k) => k),
      sides: [-0.5, groups.length - 0.5], angle: groups.length > 5 ? -40 : 0,
    };
    return result(rows, title, both, `${title}${which ? `, ${SIDES[which]}` : ""}, by ${group.label}: ` +
      summary(rows, groups).map((s) => `${s[0]} n ${s[1]}, median ${s[2]}`).join("; "));
  }

  // ---- the charts in numbers
  const quantile = (v, q) => {
    const at = (v.length - 1) * q, low = Math.floor(at);
    return v[low] + (at - low) * ((v[low + 1] ?? v[low]) - v[low]);
  };
  const sorted = (rows, group) => Float64Array.from(rows.filter((r) => r.group === group), (r) => r.value).sort();
  const summary = (rows, groups) => groups.map((group) => {
    const v = sorted(rows, group);
    const [low, middle, high] = [0.25, 0.5, 0.75].map((q) => quantile(v, q));
    return [group, v.length, shown(middle), `${shown(low)} to ${shown(high)}`];
  });
  function summaries() {
    document.querySelectorAll("[data-summary]").forEach((table) => {
      const name = table.dataset.summary;
      const sides = name === "asymmetry" ? [""] : ["L", "R"];
      const found = sides.map((s) => [s, filled(s ? `${name}-${s}` : name)]).filter(([, f]) => f);
      const caption = found.length ? `${found[0][1].values.value_title}: numbers behind the points` : "";
      if (name === "annual") {
        const head = [category("group").label, "Method", "Side", "Participants", "Mean, 95 % interval", "Median", "Middle half"];
        table.replaceChildren(
          make("caption", { textContent: caption }),
          make("thead", {}, make("tr", {}, ...head.map((n) => make("th", { scope: "col", textContent: n })))),
          make("tbody", {}, ...found.flatMap(([side, { values }]) => values.boxes.map(({ cells: [group, method, ...cells] }) =>
            make("tr", {}, make("th", { scope: "row", textContent: group }),
              ...[method, SIDES[side], ...cells].map((c) => make("td", { textContent: c })))))));
        return;
      }
      const names = [category("group").label, ...(sides[0] ? ["Side"] : []), "Scans", "Median", "Middle half"];
      table.replaceChildren(
        make("caption", { textContent: caption }),
        make("thead", {}, make("tr", {}, ...names.map((n) => make("th", { scope: "col", textContent: n })))),
        make("tbody", {}, ...found.flatMap(([side, { rows, values }]) => summary(rows, values.groups).map(([group, ...cells]) =>
          make("tr", {}, make("th", { scope: "row", textContent: group }),
            ...[...(side ? [SIDES[side]] : []), ...cells].map((c) => make("td", { textContent: c })))))));
    });
  }

  // ---- charts
  const dark = matchMedia("(prefers-color-scheme: dark)");
  function theme() {
    const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    const [text, muted, line, bad] = ["text", "muted", "line", "bad"].map(css);
    const font = getComputedStyle(document.body).fontFamily;
    // The palette of Okabe and Ito, lighter or darker where the contrast would be too low.
    const colors = dark.matches
      ? ["#56B4E9", "#E69F00", "#2fc79b", "#e58ebf", "#F0E442", "#f0793a", "#a9b2bb", "#4f9fe0"]
      : ["#0072B2", "#D55E00", "#009E73", "#b8568f", "#9a6a00", "#2b8cc4", "#555555", "#7a7000"];
    return {
      background: null, font, view: { stroke: line },
      axis: { labelColor: text, titleColor: text, domainColor: muted, tickColor: muted, gridColor: line, gridOpacity: 0.45, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelLimit: 150 },
      legend: { orient: "top", labelColor: text, titleColor: text, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", symbolOpacity: 1, columns: 3, labelLimit: 160 },
      range: { category: colors },
      mark: { color: colors[0] },
      style: {
        bound: { color: bad, strokeDash: [5, 4], strokeWidth: 1.3 },
        middle: { color: text, strokeWidth: 2 },
        reference: { color: muted, strokeDash: [2, 3] },
        whisker: { color: text, strokeWidth: 1.3 },
        box: { color: muted, opacity: 0.25 },
        ring: { color: bad },
      },
    };
  }

  const tip = make("div", { className: "tip", hidden: true });
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
  function words(datum, titles) {
    if (datum.i === undefined) return datum.tip ?? "";
    const i = datum.i;
    const lines = [facts.scan[i] + (datum.side ? `, ${SIDES[datum.side]}` : "")];
    lines.push(`${titles.value_title}: ${shown(datum.value)}`);
    if (datum.group === undefined) lines.push(`${titles.x_title}: ${shown(datum.x)}`);
    if (typeof datum.low === "number") lines.push(`95 % interval: ${shown(datum.low)} to ${shown(datum.high)}`);
    lines.push(...facts.categories.slice(0, 3).map((c) => `${c.label}: ${levelOf(c, i)}`));
    lines.push(...facts.notes[i].map(([short, finding]) => finding || short));
    return lines.join("\n");
  }
  function tooltip(event, item, titles) {
    const text = item?.datum ? words(item.datum, titles) : "";
    tip.hidden = !text || event.type === "mouseout";
    if (tip.hidden) return;
    tip.textContent = text;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 8))}px`;
  }

  const libraries = ["vega", "vega-lite", "vega-embed"].reduce((done, name) => done.then(() => library(name)), Promise.resolve());
  const views = new Map();
  async function draw(plot) {
    if (views.has(plot)) return;
    // Drawing a plot again cancels the previous attempt.
    const turn = { finalize() {} };
    views.set(plot, turn);
    try {
      await libraries;
      if (views.get(plot) === turn) await fillPlot(plot, turn);
    } catch (error) {
      plot.replaceChildren(make("p", { className: "muted", textContent: `This chart could not be drawn (${error.message}).` }));
    }
  }
  async function fillPlot(plot, turn) {
    const name = plot.dataset.chart;
    const template = specs[name] ?? specs[name.split("-")[0]];
    const found = specs[name] && name !== "asymmetry" ? { values: {} } : filled(name);
    plot.replaceChildren();
    if (!found) {
      plot.append(make("p", { className: "muted", textContent: "Nothing to show." }));
      return;
    }
    const spec = JSON.parse(JSON.stringify(template), (_, v) => (v && typeof v === "object" && "$" in v ? found.values[v.$] : v));
    if (found.rows) spec.datasets = { rows: found.rows };
    if (found.values.name) plot.previousElementSibling.firstElementChild.textContent = found.values.name;
    const canvas = make("div");
    canvas.style.width = "100%";
    plot.append(canvas);
    plot.toggleAttribute("data-dark", dark.matches);
    const { view, finalize } = await vegaEmbed(canvas, spec, {
      // The abstract syntax tree needs no eval, which the page's policy forbids.
      ast: true, mode: "vega-lite", actions: false, renderer: "canvas", config: theme(), defaultStyle: false,
      tooltip: (_, event, item) => tooltip(event, item, found.values),
    });
    if (views.get(plot) !== turn) {
      finalize();
      canvas.remove();
      return;
    }
    turn.finalize = finalize;
    view.addEventListener("click", (_, item) => {
      const href = facts?.href[item?.datum?.i];
      if (href) location.href = href;
    });
    const save = make("button", { type: "button", className: "save interactive", textContent: "Save as SVG" });
    save.setAttribute("aria-label", `Save as SVG: ${plot.previousElementSibling.textContent.trim()}`);
    save.addEventListener("click", async () => {
      const blob = new Blob([await view.toSVG()], { type: "image/svg+xml" });
      const link = make("a", { href: URL.createObjectURL(blob), download: `${name}.svg` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    plot.append(save);
    plot.dataset.drawn = "";
  }
  function redraw(concerns) {
    if (facts) summaries();
    document.querySelectorAll(".plot").forEach((plot) => {
      if (!concerns(plot.dataset.chart) || !views.has(plot)) return;
      views.get(plot).finalize();
      views.delete(plot);
      delete plot.dataset.drawn;
      plot.style.minHeight = `${plot.offsetHeight}px`;
      draw(plot);
    });
  }

  if (facts) {
    fillChoices();
    scanTable();
    summaries();
  }
  const plots = [...document.querySelectorAll(".plot")];
  const watch = new IntersectionObserver((entries) => entries.filter((e) => e.isIntersecting).forEach((e) => {
    watch.unobserve(e.target);
    draw(e.target);
  }), { rootMargin: "300px" });
  plots.forEach((plot) => watch.observe(plot));
  // Draw the plots that are out of sight when the page is idle, so that a print has all of them.
  const later = () => {
    const next = plots.find((plot) => !views.has(plot));
    if (next) draw(next).then(() => (window.requestIdleCallback ?? setTimeout)(later));
  };
  setTimeout(later, 500);
  addEventListener("beforeprint", () => plots.forEach(draw));
  dark.addEventListener("change", () => redraw(() => true));
})();
