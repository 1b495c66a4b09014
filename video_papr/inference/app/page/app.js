"use strict";

const $ = (id) => document.getElementById(id);
const plain = (name) => name.replaceAll("_", " ");
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.095 ? 1 : 0)} %`;
const time = (ms) => (ms < 1000 ? `${ms.toPrecision(3)} ms` : `${(ms / 1000).toFixed(1)} s`);
const clock = (s) => `${Math.floor(s / 60)}:${(s % 60).toFixed(1).padStart(4, "0")}`;
const wait = (ms) => new Promise((wake) => setTimeout(wake, ms));
const CLIP_SECONDS = 4; // of the camera
const COLORS = 6; // of classes, as in the film
let options = null;
let clip = null; // {file, example, url, job}; another object for each choice
let running = false, again = false;

// Texts go in as text, never as markup: names of files and classes may hold anything.
function make(tag, text = "", className = "") {
  const node = document.createElement(tag);
  node.append(text);
  if (className) node.className = className;
  return node;
}

function bar(share, className = "") {
  const track = make("div", "", "track");
  const filled = make("i", "", className);
  filled.style.width = `${Math.min(100, 100 * share)}%`;
  track.append(filled);
  return track;
}

async function fetched(url, request = {}) {
  const response = await fetch(url, request).catch(() => {
    throw new Error("The server does not answer. Is the command still running?");
  });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(body.error || `The server said ${response.status}.`), { status: response.status });
  return body;
}

async function finished(job, tell) {
  for (;;) {
    const found = await fetched(`/api/jobs/${job}`);
    if (found.state === "done") return found.result;
    if (found.state === "failed") throw new Error(found.error);
    tell(found.state === "waiting" ? `Waiting for a turn, ${found.ahead} before you` : found.doing || "Starting");
    await wait(300);
  }
}

function say(verdict, gain = "", state = "") {
  if ($("verdict").textContent !== verdict) $("verdict").textContent = verdict;
  $("gain").replaceChildren(...[gain].flat());
  $("stage").dataset.state = state;
}

function see(url, label) {
  const film = $("film"), at = film.currentTime;
  $("unplayable").hidden = true;
  film.hidden = false;
  if (film.getAttribute("src") !== url) {
    film.src = url;
    film.addEventListener("loadedmetadata", () => { film.currentTime = Math.min(at, film.duration || 0); }, { once: true });
  }
  film.ariaLabel = label;
  for (const id of ["see-film", "see-clip"]) $(id).setAttribute("aria-pressed", String((id === "see-clip") === (url === clip.url)));
}

function toStage() {
  const { top } = $("stage").getBoundingClientRect();
  if (top < 0 || top > 150) $("stage").scrollIntoView();
}

function choose(file, example) {
  if (clip?.file) URL.revokeObjectURL(clip.url);
  clip = { file, example, job: null, url: file ? URL.createObjectURL(file) : `/examples/${example}` };
  for (const [number, button] of [...$("examples").children].entries()) {
    button.setAttribute("aria-pressed", String(number === example));
  }
  $("empty").hidden = true;
  $("result").hidden = true;
  $("shown").hidden = false;
  $("source").textContent = file ? file.name : `Synthetic example of “${options.examples[example]}”`;
  see(clip.url, "The video");
  run();
  toStage();
}

// One question at a time; whatever is chosen meanwhile is asked next.
async function run() {
  again = true;
  if (running) return;
  running = true;
  while (again) {
    again = false;
    const asked = clip;
    await look(asked).catch((error) => { if (clip === asked) say("That did not work", error.message, "failed"); });
  }
  running = false;
}

async function look(asked) {
  const { file, example, job } = asked;
  const query = new URLSearchParams({ pruner: $("pruner").value, keep_ratio: $("keep").value / 100 });
  const request = { method: "POST" };
  if (!file) query.set("example", example);
  else if (job) query.set("again", job);
  else {
    const size = file.size / 2 ** 20;
    if (size > options.max_upload_mb) throw new Error(`${file.name} is ${size.toFixed(1)} MB large: at most ${options.max_upload_mb} MB are taken.`);
    query.set("name", file.name);
    request.body = file;
  }
  say(job ? "Reading it again" : "Reading the video", request.body ? "Sending it" : "", "busy");
  try {
    asked.job = (await fetched(`/api/jobs?${query}`, request)).job;
  } catch (error) {
    if (!job || error.status !== 404) throw error;
    asked.job = null; // the server has dropped it: send it once more
    return look(asked);
  }
  const found = await finished(asked.job, (doing) => { if (clip === asked) say($("verdict").textContent, doing, "busy"); });
  if (clip === asked && !again) report(found);
}

function card(title, part, { dense, named, video }) {
  const box = make("section", "", "answer");
  const [best] = part.top, isDense = part === dense;
  box.append(make("h3", title));
  if (named) {
    box.append(make("p", plain(best.name), "best"), make("p", `${percent(best.probability)} certain${video.windows > 1 ? ", on average" : ""}`, "hint"), bar(best.probability, "sure"));
  }
  const facts = make("dl");
  for (const [name, value, key] of [
    ["Blocks computed (tokens)", Math.round(part.tokens).toLocaleString("en"), "tokens"],
    ["Time to answer", time(part.milliseconds), "milliseconds"],
    ["Multiplications", `${part.gmacs.toPrecision(3)} billion`, "gmacs"],
  ]) {
    facts.append(make("dt", name), make("dd", value), bar(part[key] / dense[key], isDense ? "all" : ""));
  }
  box.append(facts);
  const rest = make("details"), list = make("ol");
  list.append(...part.top.map(({ name, probability }) => {
    const line = make("li", plain(name));
    line.append(make("b", percent(probability)));
    return line;
  }));
  rest.append(make("summary", named ? "Other guesses" : "Nearest classes it knows"), list);
  box.append(rest);
  return box;
}

// How many times less; it may well be more, when choosing costs what the transformer saves.
function gained(less, more, factor) {
  const said = factor >= 1 ? `${factor.toFixed(1)}× ${less}` : `${(1 / factor).toFixed(1)}× ${more}`;
  return make("span", said, factor >= 1 ? "good" : "bad");
}

function report(found) {
  const { dense, pruned, video, named, agree } = found, share = percent(pruned.tokens / dense.tokens);
  const [all, some] = [dense, pruned].map((part) => plain(part.top[0].name));
  const truth = clip.file ? null : options.examples[clip.example];
  const length = `${video.seconds.toFixed(1)} s`;
  $("source").textContent = clip.file ? `${clip.file.name} · ${length}` : `Synthetic example of “${truth}” · ${length}`;
  say(!named ? `It read ${share} of this video, but has no word for what happens in it`
    : video.windows > 1 ? `The same answer in ${agree} of ${video.windows} parts, from ${share} of the video`
    : all === some ? `“${some}”, from ${share} of the video as from all of it`
    : `“${some}” from ${share} of the video, “${all}” from all of it`,
  [...(named && truth ? [some === truth ? make("span", "the right answer", "good") : make("span", `wrong, it is “${truth}”`, "bad")] : []),
    gained("less computing", "more computing", dense.gmacs / pruned.gmacs), gained("faster", "slower", dense.milliseconds / pruned.milliseconds)]);
  $("cards").replaceChildren(card("Reads everything", dense, found), card(`Reads ${share}`, pruned, found));
  const notes = [];
  if (!named) notes.push(options.model.synthetic ? "The bundled weights know synthetic actions only. “What this model knows” has two ways to real ones." : "The synthetic examples belong to the bundled weights; choose a video of your own.");
  if (named && agree < video.windows) notes.push("Too little was kept for this video: move the slider to the right.");
  if (pruned.milliseconds > dense.milliseconds) notes.push("Choosing the blocks takes longer here than skipping the others saves: that is so with small models and short videos. Large ones gain.");
  $("caution").textContent = notes.join(" ");
  showTimeline(found);
  const file = `/files/${clip.job}`, name = video.name.replace(/\.[^.]*$/, "");
  for (const [id, path, end] of [["get-film", "film.mp4", "read.mp4"], ["get-table", "predictions.csv", "predictions.csv"]]) {
    Object.assign($(id), { href: `${file}/${path}`, download: `${name}_${end}` });
  }
  $("command").textContent = found.command;
  $("fine").textContent = `Time is that of the models on this machine (${options.model.device}), resizing and choosing included, decoding left out; of the first part `
    + `of a video the median of five runs. Of the multiplications ${found.scorer_gmacs.toPrecision(2)} billion choose the blocks. Certainty is the model's own and may be wrong.`;
  $("result").hidden = false;
  see(`${file}/film.mp4`, "The video: outlined blocks were read, faded ones skipped");
  toStage();
}

function showTimeline({ dense, pruned, video, named }) {
  $("timeline").hidden = video.windows < 2 || !named;
  if ($("timeline").hidden) return;
  const names = [...new Set([...pruned.segments, ...dense.segments].map((segment) => segment.name))];
  const strip = (title, { segments }) => {
    const row = make("div", "", "strip");
    for (const { start_seconds: start, end_seconds: end, name } of segments) {
      const piece = make("button", plain(name), `class${Math.min(names.indexOf(name), COLORS)}`);
      Object.assign(piece, { type: "button", title: `${plain(name)}, ${clock(start)} to ${clock(end)}`, ariaLabel: `${title}: ${plain(name)}, from ${clock(start)}` });
      piece.style.flexGrow = end - start;
      piece.addEventListener("click", () => seek(start));
      row.append(piece);
    }
    return [make("p", title, "hint"), row];
  };
  $("strips").replaceChildren(...strip("Reads everything", dense), ...strip("Reads the kept blocks", pruned));
  $("segments").replaceChildren(...pruned.segments.map((segment) => {
    const row = make("tr"), from = make("button", clock(segment.start_seconds));
    from.type = "button";
    from.addEventListener("click", () => seek(segment.start_seconds));
    const first = make("td");
    first.append(from);
    row.append(first, ...[clock(segment.end_seconds), plain(segment.name), percent(segment.probability)].map((text) => make("td", text)));
    return row;
  }));
}

function seek(seconds) {
  $("film").currentTime = seconds + 0.01;
  $("film").scrollIntoView({ block: "nearest" });
}

async function openCamera() {
  try {
    $("live").srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } } });
    $("camera").showModal();
  } catch (error) {
    $("empty").hidden = true;
    $("shown").hidden = false;
    say("The camera cannot be used", navigator.mediaDevices ? error.message : "Browsers allow it on this machine (127.0.0.1) or over https only.", "failed");
    toStage();
  }
}

async function record() {
  const recorder = new MediaRecorder($("live").srcObject), chunks = [];
  recorder.addEventListener("dataavailable", ({ data }) => chunks.push(data));
  recorder.addEventListener("stop", () => {
    const [type] = recorder.mimeType.split(";");
    if ($("camera").open) choose(new File(chunks, `camera.${type.endsWith("mp4") ? "mp4" : "webm"}`, { type }), null);
    $("camera").close();
  });
  $("record").disabled = true;
  recorder.start();
  for (let left = CLIP_SECONDS; left > 0 && $("camera").open; left -= 1) {
    $("camera-said").textContent = `Recording, ${left} …`;
    await wait(1000);
  }
  if (recorder.state !== "inactive") recorder.stop();
}

function closeCamera() {
  for (const track of $("live").srcObject.getTracks()) track.stop();
  $("record").disabled = false;
  $("camera-said").textContent = "Four seconds, without sound. The recording goes to this server only.";
}

async function changeModel() {
  $("k400").disabled = true;
  const tell = (text) => { $("k400-said").textContent = text; };
  try {
    await finished((await fetched("/api/models/k400", { method: "POST" })).job, tell);
    await describe();
    if (clip) run();
  } catch (error) {
    tell(error.message);
  }
  $("k400").disabled = false;
}

function showTraining() {
  const folder = `'${($("folder").value || "my_videos").replaceAll("'", "'\\''")}'`;
  $("train").textContent = `video-papr train experiment=probe dataset.root=${folder} output_dir=outputs/probe backbone.model=vit_base_patch16_clip_quickgelu_224.openai backbone.weights=pretrained\n`
    + "video-papr demo backbone=probe backbone.weights=outputs/probe/probe.safetensors";
}

function showPruner() {
  $("about").textContent = options.pruners.find(({ name }) => name === $("pruner").value)?.about ?? "";
}

function showRatio() {
  const { value, min, max } = $("keep");
  $("ratio").textContent = `${value} %`;
  $("keep").style.setProperty("--at", `${100 * (value - min) / (max - min)}%`);
}

async function describe() {
  options = await fetched("/api/options");
  const { model } = options, count = model.classes.length;
  $("pruner").replaceChildren(...options.pruners.map(({ name }) => new Option(name, name, false, name === options.pruner)));
  $("keep").value = Math.round(100 * options.keep_ratio);
  $("knows").textContent = model.synthetic
    ? `${count} actions of drawn figures, nothing else. It can show you what it would read of a video of yours, but it cannot name what happens there.`
    : count ? `${count} classes, and calls any video one of them.` : "It was given no names of classes.";
  $("classes").textContent = model.classes.map(plain).join(", ");
  $("classes-part").hidden = !count;
  $("offers").hidden = !options.models.length || !model.synthetic;
  $("model").textContent = `${model.backbone} on ${model.device}`;
  $("limits").textContent = `up to ${Math.round(options.max_seconds / 6) / 10} min and ${options.max_upload_mb} MB; it stays on this server`;
  showPruner();
  showRatio();
}

async function start() {
  for (let cell = 0; cell < 72; cell += 1) {
    $("pattern").append(make("i", "", Math.hypot((cell % 12 - 5.5) / 3.2, (Math.floor(cell / 12) - 2.5) / 2.2) < 1 ? "kept" : ""));
  }
  showTraining();
  await describe();
  $("examples-part").hidden = !options.examples.length;
  options.examples.forEach((title, number) => {
    const button = make("button"), video = make("video");
    Object.assign(video, { src: `/examples/${number}`, muted: true, loop: true, playsInline: true, preload: "auto" });
    Object.assign(button, { type: "button", ariaPressed: "false" });
    button.append(video, title);
    button.addEventListener("mouseenter", () => video.play().catch(() => {}));
    button.addEventListener("mouseleave", () => video.pause());
    button.addEventListener("click", () => choose(null, number));
    $("examples").append(button);
  });
  $("try").hidden = !options.examples.length;
  $("try").addEventListener("click", () => choose(null, 0));
}

$("file").addEventListener("change", ({ target }) => { if (target.files[0]) choose(target.files[0], null); target.value = ""; });
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) choose(event.dataTransfer.files[0], null);
  });
}
$("pruner").addEventListener("change", () => { showPruner(); run(); });
$("keep").addEventListener("input", showRatio);
$("keep").addEventListener("change", run);
$("film").addEventListener("error", () => { $("film").hidden = true; $("unplayable").hidden = false; });
$("see-film").addEventListener("click", () => see(new URL($("get-film").href).pathname, "The video: outlined blocks were read, faded ones skipped"));
$("see-clip").addEventListener("click", () => see(clip.url, "The video"));
$("open-camera").addEventListener("click", openCamera);
$("record").addEventListener("click", record);
$("close-camera").addEventListener("click", () => $("camera").close());
$("camera").addEventListener("close", closeCamera);
$("k400").addEventListener("click", changeModel);
$("folder").addEventListener("input", showTraining);
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren($(button.dataset.copies));
    await navigator.clipboard?.writeText($(button.dataset.copies).textContent).catch(() => {});
    button.textContent = navigator.clipboard ? "Copied" : "Selected";
  });
}
start().catch((error) => { $("empty").hidden = true; $("shown").hidden = false; say("That did not work", error.message, "failed"); });
