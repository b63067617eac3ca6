"use strict";

const POLL_MILLISECONDS = 1500;
const COLORS = 6;
const VIEWS = ["runs", "run", "groups", "compare"];
const SETS = { held_out: "held-out prompts", samples: "sample prompts" };
const STATES = { training: "training", ended: "ended", quiet: "silent", waiting: "starting", gone: "gone", unreadable: "unreadable" };

const element = (id) => document.getElementById(id);
// A file that holds the page has its answers and pictures in it; else they come from this machine.
const stored = element("stored") ? JSON.parse(element("stored").textContent) : null;

const state = { view: "runs", run: 0, other: 1, set: "held_out", step: 0, follow: true, tag: "", score: "", worse: false, overlay: false, metric: "" };
let runs = []; // the summary of each run
const known = new Map(); // path of a request → { stamp, answer } of the run that it is about
let drawn = {}; // what the shown elements were made from
let cards = []; // the prompts that are shown
let unseen = new Set(); // requests for what the verifier saw that are under way

// Elements

function el(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") made.className = value;
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function drawing(name, options = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(options)) {
    // The style of an element may be set by its object; as an attribute the page's policy forbids it.
    if (key === "color") made.style[options.class && /curve|axis|edge/.test(options.class) ? "stroke" : "fill"] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const color = (i) => `var(--c${i % COLORS})`;

function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "none";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

const mean = (values) => {
  const numbers = values.filter((value) => Number.isFinite(value));
  return numbers.length ? numbers.reduce((sum, value) => sum + value, 0) / numbers.length : null;
};

// A name may be broken after a sign that joins words.
const breakable = (text) => text.split(/(?<=[_./])/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));

function fill(select, options, value) {
  const text = JSON.stringify(options);
  if (select.dataset.options !== text) {
    select.replaceChildren(...options.map(([key, words]) => el("option", { value: key }, words)));
    select.dataset.options = text;
  }
  select.value = String(value);
}

// Answers

async function request(path, names = []) {
  if (stored) return stored.answers[path] ?? null;
  const query = names.map((name) => `name=${encodeURIComponent(name)}`).join("&");
  const reply = await fetch(query ? `${path}?${query}` : path);
  if (!reply.ok) throw new Error((await reply.json()).error);
  return reply.json();
}

const pictureAddress = (path) => (stored ? stored.pictures[path] ?? "" : `picture/${path}`);
const answer = (path) => known.get(path)?.answer ?? null;

async function refresh(path, stamp, names = []) {
  const key = `${stamp} ${names.join(" ")}`;
  if (known.get(path)?.stamp === key) return;
  const content = await request(path, names);
  known.set(path, { stamp: key, answer: content });
  if (path.startsWith("set/")) for (const other of known.keys()) if (other.startsWith(path.replace("set/", "seen/"))) known.delete(other);
}

async function update() {
  runs = await request("runs");
  for (const index of shownRuns()) {
    const stamp = runs[index].stamp;
    await refresh(`run/${index}`, stamp);
    const details = answer(`run/${index}`);
    if (state.view === "run" || state.view === "compare") await refresh(`curves/${index}`, stamp, curveNames(details));
    for (const name of state.view === "groups" ? ["groups"] : Object.keys(SETS)) {
      if (state.view !== "runs" && details?.sets[name]) await refresh(`set/${index}/${name}`, stamp);
    }
  }
  show();
}

function shownRuns() {
  if (state.view === "runs" || !runs.length) return [];
  state.run = Math.min(state.run, runs.length - 1);
  state.other = Math.min(state.other, runs.length - 1);
  return state.view === "compare" ? [...new Set([state.run, state.other])] : [state.run];
}

function curveNames(details) {
  const names = details ? details.names : [];
  if (!state.metric || !names.includes(state.metric)) state.metric = ["kl", "grad_norm"].find((name) => names.includes(name)) || names[0] || "";
  return [...names.filter((name) => name === "reward" || name.startsWith("reward/")), state.metric].filter(Boolean);
}

// The two sides of a comparison share a slider: each shows its last stage that is not after it.
function setOf(index) {
  const details = answer(`run/${index}`);
  const name = state.view === "groups" ? "groups" : state.set;
  return details?.sets[name] ? answer(`set/${index}/${name}`) : null;
}

function stages() {
  const steps = new Set(shownRuns().flatMap((index) => (setOf(index)?.steps ?? []).map((step) => step.step)));
  return [...steps].sort((a, b) => a - b);
}

function stageOf(set, step) {
  return set.steps.filter((stage) => stage.step <= step).at(-1) ?? null;
}

const stageName = (step) => (step < 0 ? "base, untrained" : `after iteration ${step}`);

// Everything

function show() {
  if (!stored && !runs.length) say("No run is there yet.");
  else say(stored ? "A stored page of one run." : `${runs.length} ${runs.length === 1 ? "run" : "runs"}. ${describe(runs[state.run])}`);
  for (const button of document.querySelectorAll("nav [data-view]")) {
    if (button.dataset.view === state.view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
    button.disabled = button.dataset.view === "compare" && runs.length < 2;
  }
  choices();
  // Whether a run is silent or has ended shows in no file's stamp.
  const stamps = shownRuns().map((index) => [runs[index].stamp, runs[index].state, runs[index].health]);
  const content = JSON.stringify([state.view, state.run, state.other, state.metric, state.view === "runs" ? runs : stamps]);
  const pictures = JSON.stringify([state.view, state.run, state.other, state.set, shownRuns().map((index) => setOf(index)?.prompts)]);
  const isSame = content === drawn.content && pictures === drawn.pictures;
  if (content !== drawn.content) rebuild();
  if (pictures !== drawn.pictures) grid();
  drawn = { ...drawn, content, pictures };
  if (!isSame) stage();
}

const describe = (run) => (run ? `${run.name}: ${run.progress}` : "");

function say(words) {
  if (element("status").textContent !== words) element("status").textContent = words;
}

function choices() {
  const names = runs.map((run, i) => [i, run.name]);
  fill(element("run"), names, state.run);
  fill(element("other"), names, state.other);
  element("choices").hidden = state.view === "runs" || (runs.length < 2 && state.view !== "compare");
  element("other-choice").hidden = state.view !== "compare";
}

function rebuild() {
  const content = element("content");
  const make = { runs: overview, run: oneRun, groups: () => [], compare: comparison }[state.view];
  const focused = document.activeElement?.id;
  content.replaceChildren(...(runs.length ? make() : []));
  if (focused && content.contains(element(focused))) element(focused).focus();
  element("toolbar").hidden = state.view === "runs" || !stages().length;
}

// Overview

function badge(run) {
  return el("span", { class: `badge ${run.state}` }, STATES[run.state] ?? run.state);
}

function overview() {
  const list = el("div", { class: "cards" });
  runs.forEach((run, i) => {
    const open = el("button", { type: "button", id: `open-${i}` }, "Open");
    open.setAttribute("aria-label", `Open ${run.name}`);
    open.onclick = () => go("run", i);
    list.append(el("article", { class: "card" }, el("div", { class: "head" }, el("h2", {}, ...breakable(run.name)), badge(run)), ...progress(run), open));
  });
  return [list];
}

function progress(run) {
  const bar = el("progress", { class: "bar", max: 1, value: run.share });
  bar.setAttribute("aria-label", `Progress of ${run.name}`);
  const about = [run.method, run.recipe && run.recipe !== run.method ? `recipe ${run.recipe}` : ""].filter(Boolean).join(", ");
  const shown = run.rewards?.reward ? { reward: run.rewards.reward } : run.rewards ?? {};
  const rewards = Object.entries(shown).map(([name, [first, last]]) => `${name} ${number(first)} → ${number(last)}`);
  const health = run.health.length
    ? el("ul", { class: "warning" }, ...run.health.map((words) => el("li", {}, words)))
    : run.state === "waiting" ? null : el("p", { class: "quiet-text" }, "Health: no warning.");
  return [bar, el("p", {}, run.progress), el("p", { class: "quiet-text" }, about), el("p", { class: "quiet-text" }, rewards.join(", ")), health];
}

// One run

function oneRun() {
  const run = runs[state.run];
  const details = answer(`run/${state.run}`);
  const head = el("article", { class: "card" }, el("div", { class: "head" }, el("h2", {}, ...breakable(run.name)), badge(run)), ...progress(run));
  return details ? [head, charts([state.run])] : [head];
}

function charts(indices) {
  const box = el("div", { class: "charts" });
  const details = indices.map((index) => answer(`run/${index}`));
  const alarms = details.map((one, side) => ({ at: one?.alarms?.[0], name: indices.length > 1 ? `alarm ${side ? "B" : "A"}` : "alarm" })).filter(({ at }) => at !== undefined);
  const options = { alarms, now: stages()[state.step] }, plots = [];
  for (const [kind, title] of [["trained", "Held-out: trained rewards"], ["hidden", "Held-out: hidden evaluators"]]) {
    const lines = indices.flatMap((index, side) => heldOutLines(details[side], details[side]?.[kind] ?? [], indices, side));
    if (lines.length) plots.push([title, lines]);
  }
  const rewards = indices.flatMap((index, side) => metricLines(index, rewardNames(details[side]), indices, side));
  if (rewards.length) plots.push(["Rollouts: rewards", rewards]);
  const chosen = indices.flatMap((index, side) => metricLines(index, [state.metric], indices, side));
  fitCharts(plots.length + (chosen.length ? 1 : 0));
  box.append(...plots.map(([title, lines]) => chart(title, lines, options)));
  if (chosen.length) {
    const figure = chart(state.metric, chosen, options);
    const select = el("select", { id: "metric" });
    select.setAttribute("aria-label", "Metric that is plotted");
    fill(select, [...new Set(details.flatMap((one) => one?.names ?? []))].map((name) => [name, name]), state.metric);
    select.onchange = () => { state.metric = select.value; soon(); };
    figure.querySelector("figcaption").replaceChildren(select);
    box.append(figure);
  }
  return box;
}

const rewardNames = (details) => (details?.names ?? []).filter((name) => name === "reward" || name.startsWith("reward/"));
const lineName = (name, indices, side) => (indices.length > 1 ? `${side ? "B" : "A"}: ${name}` : name);

function heldOutLines(details, names, indices, side) {
  return names.map((name, i) => {
    const points = details.held_out.filter((point) => point.means[name]);
    return {
      name: lineName(name, indices, side), color: i, dashed: side === 1,
      points: points.map((point) => [point.step, point.means[name][0]]),
      band: points.map((point) => [point.step, point.means[name][1], point.means[name][2]]).filter((ends) => ends[1] !== null),
    };
  });
}

function metricLines(index, names, indices, side) {
  const curves = answer(`curves/${index}`) ?? {};
  return names.filter((name) => curves[name]).map((name, i) => ({ name: lineName(name, indices, side), color: i, dashed: side === 1, points: curves[name], band: [] }));
}

// Charts

const HEIGHT = 200, LEFT = 46, RIGHT = 10, TOP = 10, BOTTOM = 36, LEAST_REM = 17.5, GAP_REM = 0.8;
let WIDTH = 440; // of a drawing in pixels of the screen, so that its text is as large as other small text

// As many columns as page.css makes of them.
function fitCharts(count) {
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize), gap = GAP_REM * rem;
  const total = element("content").clientWidth;
  const columns = Math.max(1, Math.min(count, Math.floor((total + gap) / (LEAST_REM * rem + gap))));
  WIDTH = Math.max(200, Math.round((total - gap * (columns - 1)) / columns - 2 * GAP_REM * rem - 2));
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
  const list = [];
  for (let tick = Math.ceil(low / size) * size; tick <= high + size * 1e-9; tick += size) list.push(Math.abs(tick) < size * 1e-9 ? 0 : tick);
  return list;
}

function scales(lines) {
  const xs = lines.flatMap((line) => line.points.map((point) => point[0]));
  const ys = lines.flatMap((line) => [...line.points.map((point) => point[1]), ...line.band.flatMap((ends) => [ends[1], ends[2]])]).filter((y) => Number.isFinite(y));
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  let y0 = ys.length ? Math.min(...ys) : 0, y1 = ys.length ? Math.max(...ys) : 1;
  const pad = (y1 - y0) * 0.06 || Math.abs(y1) * 0.1 || 1;
  y0 -= pad;
  y1 += pad;
  return {
    x: (value) => LEFT + ((value - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT),
    y: (value) => HEIGHT - BOTTOM - ((value - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM),
    xTicks: ticks(x0, x1, Math.max(3, Math.round(WIDTH / 75))).filter((tick) => Number.isInteger(tick)), yTicks: ticks(y0, y1, 4),
  };
}

function path(points, scale) {
  let text = "", pen = "M";
  for (const [x, y] of points) {
    if (!Number.isFinite(y)) pen = "M"; // a gap
    else {
      text += `${pen}${scale.x(x).toFixed(1)} ${scale.y(y).toFixed(1)}`;
      pen = "L";
    }
  }
  return text;
}

function area(band, scale) {
  const at = (x, y) => `${scale.x(x).toFixed(1)} ${scale.y(y).toFixed(1)}`;
  return `M${[...band.map((ends) => at(ends[0], ends[2])), ...band.toReversed().map((ends) => at(ends[0], ends[1]))].join("L")}Z`;
}

function chart(title, lines, { alarms, now }) {
  const scale = scales(lines);
  const last = (line) => line.points.filter((point) => Number.isFinite(point[1])).at(-1)?.[1];
  const words = lines.map((line) => `${line.name} ${number(line.points[0]?.[1])} to ${number(last(line))}`).join(", ");
  const picture = drawing("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${words}${alarms.map(({ at, name }) => `, ${name} at iteration ${at}`).join("")}` });
  for (const tick of scale.yTicks) {
    picture.append(drawing("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: scale.y(tick), y2: scale.y(tick) }));
    picture.append(drawing("text", { x: LEFT - 5, y: scale.y(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  picture.append(drawing("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, "iteration"));
  for (const tick of scale.xTicks) picture.append(drawing("text", { x: scale.x(tick), y: HEIGHT - 20, "text-anchor": "middle" }, String(tick)));
  if (now !== undefined && now >= 0) picture.append(drawing("line", { class: "now", x1: scale.x(now), x2: scale.x(now), y1: TOP, y2: HEIGHT - BOTTOM }));
  alarms.forEach(({ at, name }, i) => {
    picture.append(drawing("line", { class: "alarm", x1: scale.x(at), x2: scale.x(at), y1: TOP, y2: HEIGHT - BOTTOM }));
    const isLate = scale.x(at) > WIDTH - 60;
    picture.append(drawing("text", { class: "alarm-text", x: scale.x(at) + (isLate ? -4 : 4), y: TOP + 9 + 12 * i, "text-anchor": isLate ? "end" : "start" }, name));
  });
  for (const line of lines) {
    if (line.band.length > 1) picture.append(drawing("path", { class: "band", d: area(line.band, scale), color: color(line.color) }));
    picture.append(drawing("path", { class: `curve${line.dashed ? " dashed" : ""}`, d: path(line.points, scale), color: color(line.color) }));
    if (line.points.length < 40) for (const [x, y] of line.points) if (Number.isFinite(y)) picture.append(drawing("circle", { class: "dot", cx: scale.x(x), cy: scale.y(y), r: 2.6, color: color(line.color) }));
  }
  const legend = el("ul", { class: "legend" }, ...lines.map((line) => el("li", {}, key(line), `${line.name} ${number(last(line))}`)));
  return el("figure", { class: "card" }, el("figcaption", {}, title), picture, legend);
}

function key(line) {
  const mark = drawing("path", { class: `curve${line.dashed ? " dashed" : ""}`, d: "M1 5H21", color: color(line.color) });
  return drawing("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" }, mark);
}

// Pictures at every stage

function grid() {
  cards = [];
  element("pictures").replaceChildren();
  if (state.view !== "run" && state.view !== "compare") return;
  const indices = shownRuns();
  const sets = indices.map(setOf);
  const prompts = sets[0]?.prompts ?? [];
  const single = Math.max(...sets.map((set) => set?.per_prompt ?? 1)) === 1;
  const box = el("div", { class: `grid${single ? " single" : ""}${indices.length > 1 ? " pairs" : ""}` });
  cards = prompts.map((prompt, p) => {
    const sides = indices.map((index, side) => {
      const row = side ? (sets[side]?.prompts ?? []).findIndex((other) => other.key === prompt.key) : p;
      return row < 0 || !sets[side] ? null : { index, set: sets[side], row, cells: [] };
    });
    return promptCard(prompt, sides);
  });
  box.append(...cards.map((card) => card.element));
  element("pictures").append(box);
}

function promptCard(prompt, sides) {
  const change = el("span", { class: "change" });
  const title = el("h3", { dir: "auto" }, prompt.prompt);
  const head = el("div", { class: "head" }, el("span", { class: "tag" }, prompt.tag || "no tag"), change);
  const made = el("article", { class: "card", tabIndex: -1 }, title, head);
  const boxes = sides.map((side, i) => {
    const cells = side ? cellsOf(side) : el("p", { class: "quiet-text" }, "This run does not show the prompt.");
    return sides.length > 1 ? el("div", {}, el("p", { class: "quiet-text" }, i ? "B" : "A"), cells) : cells;
  });
  made.append(...(sides.length > 1 ? [el("div", { class: "columns" }, ...boxes)] : boxes));
  return { element: made, prompt, sides, change };
}

function cellsOf(side) {
  const inputs = side.set.prompts[side.row].inputs;
  const box = el("div", { class: `cells${inputs.length ? " with-input" : ""}` });
  for (const name of inputs) box.append(inputFigure(`${side.index}/${state.set}/inputs/${name}`));
  for (let k = 0; k < side.set.per_prompt; k += 1) {
    const cell = pictureFigure();
    side.cells.push(cell);
    box.append(cell.figure);
  }
  return box;
}

function inputFigure(address) {
  const cell = pictureFigure();
  load(cell, pictureAddress(address), "The picture before the edit");
  cell.list.append(el("li", {}, "before"));
  return cell.figure;
}

function pictureFigure() {
  const image = el("img", { alt: "", decoding: "async", draggable: false });
  const frame = el("div", { class: "frame" }, image);
  const list = el("ul", { class: "scores" });
  image.onload = () => image.classList.toggle("small", image.naturalWidth < 200);
  return { figure: el("figure", {}, frame, list), frame, image, list };
}

function load(cell, address, words) {
  cell.image.alt = words;
  if (address && cell.image.getAttribute("src") !== address) cell.image.src = address;
  cell.image.hidden = !address;
}

function stage() {
  const list = stages();
  if (state.follow || state.step >= list.length) state.step = Math.max(0, list.length - 1);
  const slider = element("step");
  slider.max = String(Math.max(0, list.length - 1));
  slider.value = String(state.step);
  const step = list[state.step];
  const words = state.view === "groups" ? `iteration ${step}` : stageName(step);
  element("step-name").textContent = step === undefined ? "no picture yet" : words;
  slider.setAttribute("aria-valuetext", element("step-name").textContent);
  if (step === undefined) {
    if (state.view !== "runs" && runs.length) element("pictures").replaceChildren(el("p", { class: "quiet-text" }, missingWords()));
    return;
  }
  filters();
  if (state.view === "groups") groups(step);
  else for (const card of cards) turn(card, step);
  if (state.overlay) overlays(step);
}

function missingWords() {
  return state.view === "groups"
    ? "No group is stored: the run has no rollouts, or sample_every is 0, or it is of an earlier version."
    : "No picture is stored: sample_every is 0, or the run is of an earlier version.";
}

function filters() {
  const sets = shownRuns().map(setOf).filter(Boolean);
  const isGrid = state.view !== "groups";
  const tags = isGrid ? [...new Set(sets.flatMap((set) => set.prompts.map((prompt) => prompt.tag)).filter(Boolean))].sort() : [];
  if (!tags.includes(state.tag)) state.tag = "";
  fill(element("tag"), [["", "all"], ...tags.map((tag) => [tag, tag])], state.tag);
  const names = [...new Set(sets.flatMap((set) => set.steps.flatMap((stage) => Object.keys(stage.scores))))];
  if (!names.includes(state.score)) state.score = names[0] ?? "";
  fill(element("score"), names.map((name) => [name, name]), state.score);
  const available = Object.entries(SETS).filter(([name]) => shownRuns().some((index) => answer(`run/${index}`)?.sets[name]));
  fill(element("set"), available, state.set);
  element("set-choice").hidden = !isGrid || available.length < 2;
  element("tag-choice").hidden = !tags.length;
  element("score-choice").hidden = element("worse-choice").hidden = !isGrid || !names.length;
  element("worse-name").textContent = state.view === "compare" ? "worse in B" : "got worse";
  element("worse").checked = state.worse;
  element("overlay").checked = state.overlay;
}

function scoresOf(side, stageShown, name) {
  const values = stageShown?.scores[name];
  const first = side.row * side.set.per_prompt;
  return values ? values.slice(first, first + side.set.per_prompt) : [];
}

function earliest(side) {
  return side.set.steps.find((stageShown) => mean(scoresOf(side, stageShown, state.score)) !== null) ?? null;
}

function changeOf(card, step) {
  const [a, b] = card.sides;
  const now = (side) => (side ? mean(scoresOf(side, stageOf(side.set, step), state.score)) : null);
  const before = card.sides.length > 1 ? now(a) : a ? mean(scoresOf(a, earliest(a), state.score)) : null;
  return [before, card.sides.length > 1 ? now(b) : now(a)];
}

function turn(card, step) {
  for (const side of card.sides.filter(Boolean)) side.set = setOf(side.index) ?? side.set; // it may have grown
  const [before, after] = changeOf(card, step);
  const comparable = before !== null && after !== null;
  const isWorse = comparable && after < before - 1e-9;
  const isBetter = comparable && after > before + 1e-9;
  card.element.hidden = Boolean(state.tag && card.prompt.tag !== state.tag) || (state.worse && !isWorse);
  card.change.textContent = comparable ? `${number(before, 2)} → ${number(after, 2)} ${isWorse ? "worse" : isBetter ? "better" : "same"}` : "";
  card.change.className = `change${isWorse ? " down" : isBetter ? " up" : ""}`;
  if (card.element.hidden) return;
  for (const side of card.sides.filter(Boolean)) {
    const shown = stageOf(side.set, step);
    side.cells.forEach((cell, k) => turnCell(cell, side, shown, k, card.prompt.prompt));
  }
}

function turnCell(cell, side, shown, k, prompt) {
  const i = side.row * side.set.per_prompt + k;
  const name = shown?.pictures[i];
  const address = name ? pictureAddress(`${side.index}/${state.set}/${shown.name}/${name}`) : "";
  load(cell, address, name ? `${prompt}, picture ${k + 1}, ${stageName(shown.step)}` : "no picture at this stage");
  const values = shown ? [...Object.entries(shown.scores), ...Object.entries(shown.parts)] : [];
  cell.list.replaceChildren(...scoreItems(values.map(([label, of]) => [label, of[i]])));
  cell.seen = shown ? { path: `seen/${side.index}/${state.set}/${shown.name}`, i } : null;
  if (!state.overlay) uncover(cell);
}

function scoreItems(values) {
  return values.map(([label, value]) => el("li", {}, `${label} `, el("b", {}, number(value))));
}

// What the verifier saw

function uncover(cell) {
  cell.frame.querySelector("svg")?.remove();
  cell.figure.querySelector(".words")?.remove();
}

async function overlays(step) {
  const cells = state.view === "groups" ? cards : cards.filter((card) => !card.element.hidden).flatMap((card) => card.sides.filter(Boolean).flatMap((side) => side.cells));
  for (const cell of cells) {
    uncover(cell);
    if (!cell.seen) continue;
    if (known.has(cell.seen.path)) cover(cell, answer(cell.seen.path)?.[cell.seen.i]);
    else if (!unseen.has(cell.seen.path)) {
      unseen.add(cell.seen.path);
      request(cell.seen.path).then((content) => {
        known.set(cell.seen.path, { stamp: "", answer: content ?? [] });
      }, () => say("What the verifier saw cannot be read.")).finally(() => {
        unseen.delete(cell.seen.path);
        if (state.overlay && stages()[state.step] === step) overlays(step);
      });
    }
  }
}

function cover(cell, seen) {
  if (!seen) {
    cell.figure.append(el("ul", { class: "scores words" }, el("li", {}, "no verifier of the shapes world")));
    return;
  }
  const picture = drawing("svg", { viewBox: `0 0 ${seen.size} ${seen.size}`, "aria-hidden": "true" });
  const boxes = seen.letters ? [{ label: `"${seen.letters.text}"`, counts: true, ...seen.letters }] : seen.boxes;
  const size = Math.max(3, seen.size * 0.1), entries = [];
  boxes.forEach(({ label, score, counts, box }, i) => {
    const [x, y, width, height] = [box[0], box[1], Math.max(0, box[2] - box[0]), Math.max(0, box[3] - box[1])];
    picture.append(drawing("rect", { class: "seen-shade", x, y, width, height }), drawing("rect", { class: `seen-box${counts ? "" : " unsure"}`, x, y, width, height }));
    const text = drawing("text", { x: Math.min(x + width + size * 0.15, seen.size - size * 0.7), y: Math.max(size * 0.9, y + size * 0.5) }, String(i + 1));
    text.style.fontSize = `${size}px`;
    picture.append(text);
    entries.push(`${i + 1}: ${label} ${number(score, 2)}${counts ? "" : ", not sure"}`);
  });
  cell.frame.append(picture);
  cell.figure.append(el("ul", { class: "scores words" }, ...[...entries, ...seen.words].map((words) => el("li", {}, words))));
}

// Groups

function groups(step) {
  const set = setOf(state.run);
  const shown = set ? stageOf(set, step) : null;
  const text = JSON.stringify([state.run, step, shown]);
  if (drawn.groups === text && element("pictures").childElementCount) return cards.forEach(uncover);
  drawn.groups = text;
  cards = [];
  const box = el("div", { class: "grid" }, ...(shown?.groups ?? []).map((group, g) => groupCard(group, g, shown)));
  element("pictures").replaceChildren(el("h2", {}, `Groups of the rollout of iteration ${step}`), el("p", { class: "quiet-text" }, "A group is all images of one prompt. Their rewards are compared with each other."), box);
}

function groupCard(group, g, shown) {
  const made = el("article", { class: "card", tabIndex: -1 }, el("h3", { dir: "auto" }, group.prompt), el("span", { class: "tag" }, group.tag || "no tag"));
  const extremes = el("div", { class: "extremes" });
  ["best", "worst"].forEach((kind, side) => {
    const i = group[kind], cell = pictureFigure();
    const name = shown.pictures[2 * g + side];
    if (i === null || !name) return;
    load(cell, pictureAddress(`${state.run}/groups/${shown.name}/${name}`), `${group.prompt}: the ${kind} picture of the group`);
    const values = [["total", group.total[i]], ...Object.entries({ ...group.rewards, ...group.parts }).map(([label, of]) => [label, of[i]])];
    cell.list.append(el("li", {}, el("b", {}, kind)), ...scoreItems(values));
    cell.seen = { path: `seen/${state.run}/groups/${shown.name}`, i: 2 * g + side };
    cards.push(cell);
    extremes.append(cell.figure);
  });
  made.append(el("div", { class: "group" }, extremes, strip(group)));
  if (group.tree.length) made.append(tree(group.tree));
  return made;
}

function strip(group) {
  const known = group.total.filter((value) => Number.isFinite(value));
  const low = Math.min(...known), high = Math.max(...known);
  const at = (value) => (high > low ? 14 + ((value - low) / (high - low)) * 252 : 140);
  const stacks = new Map();
  const dots = group.total.flatMap((value, i) => {
    if (!Number.isFinite(value)) return [];
    const bin = Math.round(at(value) / 9);
    stacks.set(bin, (stacks.get(bin) ?? 0) + 1);
    return [{ x: at(value), row: stacks.get(bin), isBest: high > low && i === group.best, isWorst: high > low && i === group.worst }];
  });
  const tallest = Math.max(1, ...stacks.values()), gap = Math.min(9, 90 / tallest);
  const height = 26 + gap * tallest;
  const spread = Math.sqrt(mean(known.map((value) => (value - mean(known)) ** 2)) ?? 0);
  const same = `All ${known.length} images have the reward ${number(low)}: the group teaches nothing`;
  const words = high === low ? same : `${known.length} of ${group.total.length} images have a reward: lowest ${number(low)}, mean ${number(mean(known))}, highest ${number(high)}, standard deviation ${number(spread)}`;
  const picture = drawing("svg", { class: "strip", viewBox: `0 0 280 ${height}`, role: "img", "aria-label": words });
  picture.append(drawing("line", { class: "axis", x1: 8, x2: 272, y1: height - 16, y2: height - 16 }));
  for (const dot of dots) picture.append(drawing("circle", { class: "dot", cx: dot.x, cy: height - 16 - gap * (dot.row - 0.5), r: 4, color: dot.isBest ? "var(--good)" : dot.isWorst ? "var(--bad)" : "var(--c0)" }));
  const ends = high > low ? [[8, "start", low], [272, "end", high]] : [[140, "middle", low]];
  for (const [x, anchor, value] of ends) picture.append(drawing("text", { x, y: height - 3, "text-anchor": anchor }, number(value)));
  return el("figure", {}, picture, el("p", { class: "quiet-text" }, words + "."));
}

function shade(value, low, high) {
  const share = (value - low) / (high - low || 1);
  return `color-mix(in srgb, var(--good) ${Math.round(100 * share)}%, var(--bad))`;
}

function tree(levels) {
  const leaves = levels.at(-1).rewards.length, gap = 20;
  const across = Math.min(120, (Math.min(590, element("content").clientWidth - 40) - 70) / Math.max(1, levels.length - 1));
  const y = (level, i) => ((i + 0.5) * leaves * gap) / levels[level].rewards.length + 16;
  const width = across * (levels.length - 1) + 70, height = leaves * gap + 20;
  const values = levels.flatMap((level) => level.rewards).filter((value) => Number.isFinite(value));
  const low = Math.min(...values), high = Math.max(...values);
  const words = `A tree of ${leaves} images that branches ${levels.length - 1} times; the mean reward at its root is ${number(levels[0].rewards[0])}, the highest of an image is ${number(Math.max(...levels.at(-1).rewards))}`;
  const picture = drawing("svg", { class: "tree", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words });
  levels.forEach((level, depth) => {
    picture.append(drawing("text", { x: 8 + across * depth, y: 11 }, depth ? `step ${level.step}` : "noise"));
    level.parents.forEach((parent, i) => {
      if (depth) picture.append(drawing("line", { class: "edge", x1: 14 + across * (depth - 1), y1: y(depth - 1, parent), x2: 14 + across * depth, y2: y(depth, i) }));
    });
  });
  levels.forEach((level, depth) => level.rewards.forEach((value, i) => {
    picture.append(drawing("circle", { class: "node", cx: 14 + across * depth, cy: y(depth, i), r: 6, color: shade(value, low, high) }));
    picture.append(drawing("text", { class: "value", x: 24 + across * depth, y: y(depth, i) + 4 }, number(value, 2)));
  }));
  return el("figure", {}, picture, el("p", { class: "quiet-text" }, "The tree of the group: a node has the mean reward of the images below it."));
}

// Two runs

function comparison() {
  const head = el("div", { class: "columns" }, ...[state.run, state.other].map((index, side) => {
    const run = runs[index];
    return el("article", { class: "card" }, el("div", { class: "head" }, el("h2", {}, ...breakable(`${side ? "B" : "A"}: ${run.name}`)), badge(run)), el("p", {}, run.progress));
  }));
  return [head, charts([state.run, state.other])];
}

// What a person does

function go(view, run = state.run) {
  if (view === "compare" && runs.length < 2) return;
  if (run !== state.run || view !== state.view) state.follow = true;
  Object.assign(state, { view, run });
  if (view === "compare" && state.other === state.run) state.other = state.run ? 0 : 1;
  if (!SETS[state.set]) state.set = "held_out";
  soon().then(() => {
    const sets = answer(`run/${state.run}`)?.sets ?? {};
    if (!sets[state.set]) state.set = Object.keys(SETS).find((name) => sets[name]) ?? state.set;
    drawn = {};
    show();
    scrollTo(0, 0);
  });
}

function moveStep(by) {
  const last = stages().length - 1;
  setStep(Math.min(last, Math.max(0, state.step + by)));
}

function setStep(step) {
  state.step = step;
  state.follow = step === stages().length - 1;
  stage();
  markNow();
}

function markNow() {
  if (state.view === "run" || state.view === "compare") element("content").querySelector(".charts")?.replaceWith(charts(shownRuns()));
}

function movePrompt(by) {
  const list = [...element("pictures").querySelectorAll("article")].filter((card) => !card.hidden);
  const at = list.indexOf(document.activeElement?.closest?.("article"));
  const next = list[at < 0 ? 0 : Math.min(list.length - 1, Math.max(0, at + by))];
  next?.focus({ preventScroll: true });
  next?.scrollIntoView({ block: "center" });
}

function cycle(select, by = 1) {
  if (select.closest("[hidden]") || !select.options.length) return;
  select.selectedIndex = (select.selectedIndex + by + select.options.length) % select.options.length;
  select.dispatchEvent(new Event("change"));
}

const ACTIONS = {
  ArrowLeft: () => moveStep(-1), ArrowRight: () => moveStep(1), j: () => movePrompt(1), k: () => movePrompt(-1),
  t: () => cycle(element("tag")), p: () => cycle(element("set")), "[": () => cycle(element("run"), -1), "]": () => cycle(element("run")),
  o: () => element("overlay").click(), w: () => element("worse").click(), "?": () => element("help").showModal(),
  1: () => go("runs"), 2: () => go("run"), 3: () => go("groups"), 4: () => go("compare"),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || element("help").open) return;
  // In a list the arrows and letters choose, and on the slider the arrows move it.
  if (event.target.tagName === "SELECT" || (event.target.type === "range" && event.key.startsWith("Arrow"))) return;
  const action = ACTIONS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

for (const button of document.querySelectorAll("nav [data-view]")) button.onclick = () => go(button.dataset.view);
element("help-button").onclick = () => element("help").showModal();
element("close-help").onclick = () => element("help").close();
element("step").oninput = (event) => setStep(Number(event.target.value));
element("run").onchange = (event) => go(state.view, Number(event.target.value));
element("other").onchange = (event) => { state.other = Number(event.target.value); soon(); };
element("set").onchange = (event) => { Object.assign(state, { set: event.target.value, follow: true }); drawn = {}; show(); };
element("tag").onchange = (event) => { state.tag = event.target.value; stage(); };
element("score").onchange = (event) => { state.score = event.target.value; stage(); };
element("worse").onchange = (event) => { state.worse = event.target.checked; stage(); };
element("overlay").onchange = (event) => { state.overlay = event.target.checked; stage(); };

// Requests go one after another, so that no answer is older than the last.
let queue = Promise.resolve();
function soon() {
  queue = queue.then(update).catch((error) => say(error instanceof TypeError && !stored ? "The page cannot reach afterflow view. Start it again, and open the new address." : error.message));
  return queue;
}

soon().then(() => { if (runs.length === 1) go("run", 0); });
// A chart that has the focus, in its list of metrics, is left as it is.
addEventListener("resize", () => { if (!element("content").contains(document.activeElement)) markNow(); });
if (!stored) setInterval(() => { if (!document.hidden) soon(); }, POLL_MILLISECONDS);
