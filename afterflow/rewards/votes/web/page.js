"use strict";

const POLL_MILLISECONDS = 3000;
const KEYS = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", "=": "tie", 0: "tie", s: "skip", S: "skip" };

const element = (id) => document.getElementById(id);
const sides = [element("left"), element("right")];
let pair = null; // what is shown
let loaded = 0; // how many of its pictures can be seen
let missing = false; // whether one of them could not be loaded
let acting = false; // whether a verdict, or a step back, is on its way
let queue = Promise.resolve(); // requests go one after another, so that no answer is older than the last

function session() {
  let name = sessionStorage.getItem("session");
  if (!name) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    name = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("session", name);
  }
  return name;
}

async function ask(what, fields) {
  const body = JSON.stringify({ session: session(), ...fields });
  const reply = await fetch(what, { method: "POST", headers: { "Content-Type": "application/json" }, body });
  const answer = await reply.json();
  if (!reply.ok) throw Object.assign(new Error(answer.error), { fromServer: true });
  return answer;
}

function say(words) {
  element("status").textContent = words;
}

function allows(verdict) {
  return Boolean(pair) && !acting && (loaded === sides.length || (missing && verdict === "skip"));
}

function enable() {
  for (const button of document.querySelectorAll("[data-verdict]")) button.disabled = !allows(button.dataset.verdict);
}

function counts(answer) {
  const words = [`${answer.judged} judged`, `${answer.open} open`];
  if (answer.waiting) words.unshift(`a run waits for ${answer.waiting}`);
  if (answer.gone) words.push(`${answer.gone} left out, because a picture is gone`);
  return words.join(", ");
}

function show(answer) {
  element("undo").disabled = !answer.undo;
  if (!answer.pair) {
    pair = null;
    const elsewhere = answer.open > 0 ? "The pairs that are left are shown on other pages." : "No pair is left to judge.";
    element("prompt").textContent = elsewhere;
    element("pictures").hidden = true;
    say(`${counts(answer)}. New pairs of a run appear by themselves.`);
  } else {
    say(counts(answer));
    if (!pair || pair.id !== answer.pair.id) load(answer.pair);
  }
  enable();
}

function load(next) {
  pair = next;
  loaded = 0;
  missing = false;
  element("prompt").textContent = pair.prompt;
  element("pictures").hidden = false;
  for (const image of sides) {
    image.parentElement.classList.remove("chosen");
    image.onload = () => {
      image.classList.toggle("small", image.naturalWidth < 200);
      loaded += 1;
      enable();
    };
    image.onerror = () => {
      missing = true;
      say("A picture of this pair is gone. Skip it.");
      enable();
    };
    image.src = `picture/${pair.id}/${image.id}`;
  }
}

async function request(what, fields) {
  try {
    show(await ask(what, fields));
  } catch (error) {
    if (!error.fromServer) {
      say("The page cannot reach afterflow vote. Start it again, and open the new address.");
    } else {
      if (what !== "next") await request("next", {});
      say(error.message);
    }
  }
}

function act(what, fields) {
  acting = true;
  enable();
  queue = queue.then(() => request(what, fields)).then(() => {
    acting = false;
    enable();
  });
}

function vote(verdict) {
  if (!allows(verdict)) return;
  for (const image of sides) image.parentElement.classList.toggle("chosen", image.id === verdict);
  act("vote", { pair: pair.id, verdict });
}

function undo() {
  if (!acting && !element("undo").disabled) act("undo", {});
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || button.disabled) return;
  if (button.id === "undo") undo();
  else vote(button.dataset.verdict);
});

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "u" || event.key === "U") undo();
  else if (KEYS[event.key]) {
    event.preventDefault();
    vote(KEYS[event.key]);
  }
});

addEventListener("pagehide", () => {
  navigator.sendBeacon("leave", JSON.stringify({ session: session() })); // so that others get its pair at once
});

setInterval(() => {
  if (!acting && !(document.hidden && pair)) queue = queue.then(() => request("next", {}));
}, POLL_MILLISECONDS);
act("next", {});
