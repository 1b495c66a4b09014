"use strict";

const $ = (id) => document.getElementById(id);
const plain = (name) => name.replaceAll("_", " ");
const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
const clip = { file: null, example: null };
let options = null;
let asked = 0; // only the newest question may answer

// Texts go in as text, never as markup: names of files and classes may hold anything.
function make(tag, text = "", className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}

function bar(share, className = "track") {
  const track = make("div", "", className);
  const filled = make("i");
  filled.style.width = `${Math.min(100, 100 * share)}%`;
  track.append(filled);
  return track;
}

function show(part) {
  for (const id of ["empty", "busy", "problem", "result"]) $(id).hidden = id !== part;
}

function fail(reason) {
  $("reason").textContent = reason;
  show("problem");
}

async function fetched(url, request = {}) {
  let response;
  try {
    response = await fetch(url, request);
  } catch {
    throw new Error("The server does not answer. Is the command still running?");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error || `The server said ${response.status}.`);
  return body;
}

function choose(file, example) {
  clip.file = file;
  clip.example = example;
  $("chosen").textContent = file ? file.name : "Drop a video, or choose a file";
  $("drop").classList.toggle("filled", Boolean(file));
  for (const [number, button] of [...$("examples").children].entries()) {
    button.setAttribute("aria-pressed", String(number === example));
  }
  $("go").disabled = !file && example === null;
}

function offerExamples(titles) {
  titles.forEach((title, number) => {
    const button = make("button");
    const video = make("video");
    Object.assign(video, { src: `/examples/${number}`, muted: true, loop: true, playsInline: true, preload: "auto" });
    button.type = "button";
    button.append(video, title);
    button.addEventListener("mouseenter", () => video.play().catch(() => {}));
    button.addEventListener("mouseleave", () => video.pause());
    button.addEventListener("click", () => { $("file").value = ""; choose(null, number); });
    $("examples").append(button);
  });
}

function describePruner() {
  const chosen = options.pruners.find((pruner) => pruner.name === $("pruner").value);
  $("about").textContent = chosen ? chosen.about : "";
}

function showRatio() {
  const { value, min, max } = $("keep");
  $("ratio").textContent = `${value} %`;
  $("keep").style.setProperty("--at", `${100 * (value - min) / (max - min)}%`);
}

async function start() {
  for (let cell = 0; cell < 72; cell += 1) {
    const x = cell % 12, y = Math.floor(cell / 12);
    $("pattern").append(make("i", "", Math.hypot((x - 5.5) / 3.2, (y - 2.5) / 2.2) < 1 ? "kept" : ""));
  }
  options = await fetched("/api/options");
  for (const { name } of options.pruners) $("pruner").append(new Option(name, name, false, name === options.pruner));
  $("keep").value = Math.round(100 * options.keep_ratio);
  $("model").textContent = `${options.model.backbone} · ${options.model.device}`;
  $("model").title = $("model").textContent;
  $("limits").textContent = `up to ${options.max_seconds} s and ${options.max_upload_mb} MB`;
  offerExamples(options.examples);
  describePruner();
  showRatio();
}

async function look() {
  const ticket = ++asked;
  const query = new URLSearchParams({ pruner: $("pruner").value, keep_ratio: $("keep").value / 100 });
  const request = { method: "POST" };
  if (clip.file) {
    if (clip.file.size > options.max_upload_mb * 2 ** 20) {
      return fail(`${clip.file.name} is ${(clip.file.size / 2 ** 20).toFixed(1)} MB large: at most ${options.max_upload_mb} MB are taken.`);
    }
    query.set("name", clip.file.name);
    request.body = clip.file;
  } else {
    query.set("example", clip.example);
  }
  $("doing").textContent = clip.file ? "Sending the video" : "Looking";
  $("queue").textContent = "";
  show("busy");
  const { job } = await fetched(`/api/jobs?${query}`, request);
  while (ticket === asked) {
    const state = await fetched(`/api/jobs/${job}`);
    if (ticket !== asked) return;
    if (state.state === "done") return report(state.result, job);
    if (state.state === "failed") return fail(state.error);
    const waiting = state.state === "waiting";
    $("doing").textContent = waiting ? "Waiting for a turn" : "Looking";
    $("queue").textContent = waiting ? `${state.ahead} before you` : "Decoding, choosing tubelets, answering twice";
    await new Promise((wake) => setTimeout(wake, 300));
  }
}

function tile(name, value, unit, share, notes) {
  const box = make("dl", "", "tile");
  const figure = make("dd", value);
  figure.append(" ", make("small", unit));
  box.append(make("dt", name), figure, bar(share, share > 1 ? "track over" : "track"));
  const note = make("p");
  note.append(...notes);
  box.append(note);
  return box;
}

// How much less the pruned model takes; it may well be more, when the scorer costs what the backbone saves.
function saving(part, whole) {
  const share = 1 - part / whole;
  return share >= 0 ? make("span", `${percent(share)} saved`, "good") : make("span", `${percent(-share)} more`, "bad");
}

function list(id, top) {
  $(id).replaceChildren(...top.map(({ name, probability }) => {
    const line = make("li");
    line.append(make("span", plain(name)), make("b", percent(probability, 1)), bar(probability));
    return line;
  }));
}

function report(found, job) {
  const { dense, pruned, scorer, tokens, video } = found;
  const [first, second] = [plain(dense.top[0].name), plain(pruned.top[0].name)];
  const example = clip.file ? null : options.examples[clip.example];
  $("source").textContent = `${video.name} · ${video.seconds.toFixed(1)} s${example ? ` · an example of “${example}”` : ""}`;
  const strange = options.model.synthetic && !example;  // no class of theirs is in it
  $("verdict").textContent = strange ? `Read ${percent(tokens.kept / tokens.all)} of it, but has no word for it`
    : first === second ? `Both say “${first}”` : `Dense says “${first}”, pruned says “${second}”`;
  $("tiles").replaceChildren(
    tile("Tubelets read", String(tokens.kept), `of ${tokens.all}`, tokens.kept / tokens.all,
      [saving(tokens.kept, tokens.all), ` by ${found.pruner}`]),
    tile("GMACs", pruned.gmacs.toFixed(2), `of ${dense.gmacs.toFixed(2)}`, pruned.gmacs / dense.gmacs,
      [saving(pruned.gmacs, dense.gmacs), `, ${scorer.gmacs.toFixed(2)} to choose`]),
    tile("Time", pruned.milliseconds.toFixed(1), `of ${dense.milliseconds.toFixed(1)} ms`, pruned.milliseconds / dense.milliseconds,
      [saving(pruned.milliseconds, dense.milliseconds), `, ${scorer.milliseconds.toFixed(1)} ms to choose`]),
  );
  $("dense-note").textContent = "reads every tubelet";
  $("pruned-note").textContent = `reads ${percent(tokens.kept / tokens.all)}`;
  list("dense", dense.top);
  list("pruned", pruned.top);
  const notes = [];
  if (options.model.synthetic) notes.push(`These weights know ${options.model.classes.length} synthetic actions only, and call any video one of them. `
    + "For real actions start it with dataset=k400 (downloads weights once), or with a probe on your own folder: backbone=probe backbone.weights=FILE.");
  if (pruned.gmacs > dense.gmacs) notes.push("To choose costs more here than so small a transformer saves; larger ones can gain.");
  $("caution").textContent = notes.join(" ");
  $("film").src = `/films/${job}`;
  $("fine").textContent = `The pruned model read what has a line round it, in ${video.frames} frames; what is faded was dropped. Time is `
    + `that of one view, the median of ${found.runs} runs after one to warm up, without decoding. GMACs are billions of multiply-accumulates.`;
  show("result");
}

$("file").addEventListener("change", () => { if ($("file").files[0]) choose($("file").files[0], null); });
$("pruner").addEventListener("change", describePruner);
$("keep").addEventListener("input", showRatio);
$("ask").addEventListener("submit", (event) => { event.preventDefault(); look().catch((error) => fail(error.message)); });
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) choose(event.dataTransfer.files[0], null);
  });
}
start().catch((error) => fail(error.message));
