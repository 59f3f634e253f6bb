"use strict";
// The browser of samples. Everything in the library is untrusted text: it reaches the page through
// textContent alone, never as markup.
const library = JSON.parse(document.getElementById("library").textContent);
const PAGE = 20;
let limit = PAGE;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function control(id) {
  return document.getElementById(id);
}

function fill(select, options, chosen) {
  for (const [value, text] of options) {
    const option = element("option", "", text);
    option.value = value;
    option.selected = String(value) === String(chosen);
    select.append(option);
  }
}

function isCorrect(sample) {
  return sample !== null && sample.reason === "correct";
}

const VERDICTS = {
  any: ["any verdict", () => true],
  a: ["A correct, B not", (a, b) => isCorrect(a) && b !== null && !isCorrect(b)],
  b: ["B correct, A not", (a, b) => isCorrect(b) && a !== null && !isCorrect(a)],
  both: ["both correct", (a, b) => isCorrect(a) && isCorrect(b)],
  neither: ["neither correct", (a, b) => a && b && !isCorrect(a) && !isCorrect(b)],
};

const ORDERS = {
  file: ["as in the files", () => 0],
  deviation: ["farthest from the budget first", (s) => s.deviation],
  tokens: ["most tokens first", (s) => s.tokens],
};

function wantedReason(verdict) {
  return verdict.startsWith("reason ") ? verdict.slice(7) : null;
}

function matches(verdict, a, b) {
  const reason = wantedReason(verdict);
  if (reason === null) return VERDICTS[verdict][1](a, b);
  return [a, b].some((sample) => sample !== null && sample.reason === reason);
}

function holds(words, problem, samples) {
  const texts = [problem.question, problem.id, problem.data, problem.truth];
  for (const sample of samples) if (sample !== null) texts.push(sample.text, sample.answer || "");
  const all = texts.join("\n").toLowerCase();
  return words.every((word) => all.includes(word));
}

function samplesOf(problem, column) {
  const found = problem.samples.filter((sample) => sample.column === column);
  return found.length ? found : [null];
}

// The first pair of samples of a problem that passes the filters, as positions; null for none.
function firstPair(problem, state) {
  const a = samplesOf(problem, state.a);
  const b = samplesOf(problem, state.b);
  if (a[0] === null && b[0] === null) return null;
  for (let i = 0; i < a.length; i++) {
    for (let j = 0; j < b.length; j++) {
      const fits = matches(state.verdict, a[i], b[j]);
      if (fits && holds(state.words, problem, [a[i], b[j]])) return { problem, a, b, at: [i, j] };
    }
  }
  return null;
}

function tokensOf(sample) {
  if (sample.budget === null) return `${sample.tokens} tokens, no budget`;
  const share = (100 * (sample.tokens - sample.budget)) / sample.budget;
  const sign = share < 0 ? "−" : "+";
  return `${sample.tokens} tokens of ${sample.budget} (${sign}${Math.abs(share).toFixed(1)}%)`;
}

function textOf(sample) {
  const [thinking, start, end] = sample.parts;
  // Positions count characters as Python does; a character outside the BMP is two units here.
  const characters = Array.from(sample.text);
  const cut = (from, to) => characters.slice(from, to).join("");
  const shown = element("pre");
  shown.tabIndex = 0; // long ones scroll, also by keyboard
  shown.append(
    element("span", "thinking", cut(0, thinking)),
    cut(thinking, start),
    element("mark", "", cut(start, end)),
    cut(end),
  );
  return shown;
}

function sampleBox(name, samples, at) {
  const box = element("section", "sample");
  box.append(element("h3", "", name));
  const body = element("div");
  box.append(body);
  const draw = () => {
    const sample = samples[at];
    body.replaceChildren();
    if (sample === null) {
      body.append(element("p", "soft", "no sample of this problem"));
      return;
    }
    const ok = isCorrect(sample);
    const line = element("div");
    line.append(element("span", ok ? "right" : "wrong", `${ok ? "✔" : "✘"} ${sample.reason}`));
    const answer = sample.answer === null ? "nothing" : `“${sample.answer}”`;
    line.append(` · answered ${answer} · ${tokensOf(sample)}`);
    body.append(line);
    if (samples.length > 1) body.append(turner());
    body.append(textOf(sample));
  };
  const turner = () => {
    const row = element("div", "turn");
    for (const [label, name, step] of [["‹", "previous", -1], ["›", "next", 1]]) {
      const button = element("button", "", label);
      button.setAttribute("aria-label", `${name} sample`);
      button.disabled = at + step < 0 || at + step >= samples.length;
      button.onclick = () => { at += step; draw(); };
      row.append(button);
    }
    row.append(element("span", "soft", `sample ${at + 1} of ${samples.length}`));
    return row;
  };
  draw();
  return box;
}

function card(pair, state) {
  const made = element("article");
  made.append(element("div", "soft", `${pair.problem.data} · ${pair.problem.id}`));
  made.append(element("pre", "", pair.problem.question));
  made.append(element("div", "soft", `expected: ${pair.problem.truth}`));
  const sides = element("div", "pair");
  const columns = [[state.a, pair.a, 0], [state.b, pair.b, 1]];
  for (const [column, samples, side] of columns) {
    if (column >= 0) sides.append(sampleBox(library.columns[column], samples, pair.at[side]));
  }
  made.append(sides);
  return made;
}

function draw() {
  const state = {
    a: Number(control("a").value),
    b: Number(control("b").value),
    verdict: control("verdict").value,
    words: control("search").value.toLowerCase().split(/\s+/).filter(Boolean),
  };
  const data = control("data").value;
  const inData = library.problems.filter((problem) => data === "" || problem.data === data);
  const found = inData.map((problem) => firstPair(problem, state)).filter(Boolean);
  const value = ORDERS[control("order").value][1];
  const key = (pair) => Math.max(
    ...[pair.a[pair.at[0]], pair.b[pair.at[1]]].filter(Boolean).map(value));
  found.sort((one, other) => key(other) - key(one));
  control("cards").replaceChildren(...found.slice(0, limit).map((pair) => card(pair, state)));
  const shown = Math.min(limit, found.length);
  control("count").textContent =
    `${shown} of ${found.length} matching problems shown; ${inData.length} to choose from`;
  control("more").hidden = found.length <= limit;
}

function start() {
  const columns = library.columns.map((name, i) => [i, name]);
  fill(control("a"), columns, library.start[0]);
  fill(control("b"), [[-1, "nothing"], ...columns], library.start[1]);
  const sets = [...new Set(library.problems.map((problem) => problem.data))];
  fill(control("data"), [["", "all"], ...sets.map((name) => [name, name])], "");
  const samples = library.problems.flatMap((problem) => problem.samples);
  const reasons = [...new Set(samples.map((sample) => sample.reason))].sort();
  const named = Object.entries(VERDICTS).map(([value, [text]]) => [value, text]);
  named.push(...reasons.map((reason) => [`reason ${reason}`, `A or B: ${reason}`]));
  fill(control("verdict"), named, "any");
  fill(control("order"), Object.entries(ORDERS).map(([value, [text]]) => [value, text]), "file");
  for (const id of ["a", "b", "data", "verdict", "order", "search"]) {
    control(id).addEventListener("input", () => { limit = PAGE; draw(); });
  }
  control("more").onclick = () => { limit += PAGE; draw(); };
  draw();
}

start();
