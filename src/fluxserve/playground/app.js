// An ordinary client of the native API: /fluxserve/v1.
"use strict";

const API = "/fluxserve/v1";
const PATIENCE_MS = 60_000; // a server that is started again within it goes on with our picture
const PAUSE_MS = 1_000;
const $ = (id) => document.getElementById(id);
let running = null;
let cards = [];

function headers(more = {}) {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}`, ...more } : more;
}

// Nobody there, for now.
class Silence extends Error {}

async function call(path, options = {}) {
  const answer = await ask(API + path, { ...options, headers: headers(options.headers) });
  return answer.status === 204 ? null : answer.json();
}

// An answer that went well; everything else is an Error with a sentence for people.
async function ask(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch {
    throw new Silence("The server does not answer: is it still running?");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  const said = body && body.error ? body.error.message : `The server answered ${answer.status}.`;
  if (answer.status >= 502) throw new Silence(said);
  throw new Error(answer.status === 401 ? `${said} (see API key above)` : said);
}

async function loadModels() {
  const before = $("model").value;
  cards = (await call("/models")).results;
  const served = cards.filter((card) => card.engine).map((card) => card.id);
  const wanted = [before, "fluxserve/embedded", served[0]].find((id) => served.includes(id));
  $("model").replaceChildren(
    ...cards.map((card) => {
      const option = new Option(card.engine ? card.title : `${card.title} (nobody serves it)`, card.id);
      option.disabled = !card.engine;
      option.selected = card.id === wanted;
      return option;
    }),
  );
  tellServed();
}

function tellServed() {
  const card = cards.find((one) => one.id === $("model").value);
  $("served").textContent = !card
    ? cards.length ? "Nobody serves any model here: see “fluxserve doctor”." : ""
    : card.engine === "embedded"
      ? "Served by the small built-in model: simple named objects and simple edits. "
        + "Run “fluxserve doctor” to see how to get the real one."
      : card.engine === "simulator"
        ? "Served by the simulator: no model is at work."
        : `Served by ${card.engine}.`;
}

async function upload(file) {
  const form = new FormData();
  form.append("file", file);
  return (await call("/files", { method: "POST", body: form })).url;
}

async function make(event) {
  event.preventDefault();
  const body = { model: $("model").value, prompt: $("prompt").value, preview_steps: 1 };
  if ($("size").value) body.size = $("size").value;
  if ($("steps").value) body.num_steps = Number($("steps").value);
  if ($("seed").value) body.seed = Number($("seed").value);
  show("sending", 0);
  $("result").replaceChildren();
  $("submit").disabled = true;
  try {
    const file = $("image").files[0];
    if (file) body.images = [await upload(file)];
    const prediction = await call("/predictions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    await follow(prediction.id);
  } catch (error) {
    fail(error.message);
  } finally {
    running = null;
    $("submit").disabled = false;
    $("cancel").hidden = true;
    if (document.activeElement === document.body) $("submit").focus(); // it was lost with the button
  }
}

// Tells what happens to a prediction until it is finished, however often the stream breaks off.
async function follow(id) {
  running = id;
  $("cancel").hidden = false;
  for (let heardAt = Date.now(); ; await pause()) {
    try {
      if (await listen(id)) break;
      heardAt = Date.now();
      const fresh = await call(`/predictions/${id}`);
      if (fresh.finished_at) {
        finish(fresh);
        break;
      }
    } catch (error) {
      if (!(error instanceof Silence)) throw error;
      if (Date.now() - heardAt > PATIENCE_MS) throw error;
      show("the server does not answer, trying again", 0);
    }
  }
  await loadLatest();
}

const pause = () => new Promise((done) => { setTimeout(done, PAUSE_MS); });

// Whether the stream told of the end; Silence when it broke off.
async function listen(id) {
  const answer = await ask(`${API}/predictions/${id}/events`, { headers: headers() });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => { throw new Silence("The answer broke off."); });
    if (done) return false;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => !line.startsWith(":"));
      const kind = lines.find((line) => line.startsWith("event: "));
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      if (kind) hear(kind.slice(7), JSON.parse(data.join("\n")));
      if (kind === "event: finished") return true;
    }
  }
}

function hear(kind, data) {
  if (kind === "queued") show("waiting", 0);
  if (kind === "started") show("started", 0);
  if (kind === "progress") {
    const left = data.eta_s == null ? "" : `, about ${Math.max(0, data.eta_s).toFixed(1)} s left`;
    const place = data.queue_position ? `${data.queue_position} before this one` : `step ${data.step} of ${data.total}`;
    show(place + left, data.total ? data.step / data.total : 0);
  }
  if (kind === "preview") $("result").replaceChildren(picture(data.image, "preview", "preview"));
  if (kind === "finished") finish(data.prediction);
}

function finish(prediction) {
  if (prediction.status !== "succeeded") {
    $("result").replaceChildren();
    fail(prediction.error ? prediction.error.message : `The prediction was ${prediction.status}.`);
    return;
  }
  const seconds = prediction.metrics.predict_s;
  const time = typeof seconds === "number" ? ` in ${seconds.toFixed(1)} s` : "";
  show(`done${time}, seed ${prediction.request.seed}, by ${prediction.served_by || prediction.engine}`, 1);
  $("result").replaceChildren(...prediction.outputs.map((one) => picture(one.url, prediction.request.prompt)));
}

function picture(url, text, kind = "") {
  const image = new Image();
  image.src = url;
  image.alt = text;
  image.className = kind;
  return image;
}

function show(text, fraction) {
  $("work").hidden = false;
  $("trouble").textContent = "";
  $("status").textContent = text;
  $("bar").hidden = false;
  $("bar").value = fraction;
}

function fail(text) {
  $("work").hidden = false;
  $("status").textContent = "";
  $("bar").hidden = true;
  $("trouble").textContent = text;
}

async function cancel() {
  try {
    if (running) await call(`/predictions/${running}/cancel`, { method: "POST" });
  } catch (error) {
    $("trouble").textContent = error.message;
  }
}

// A picture that is dropped anywhere on the page, or pasted, is the picture to edit.
function take(event) {
  const carried = event.dataTransfer || event.clipboardData;
  if (!carried || ![...carried.types].includes("Files")) return;
  if (event.target === $("image")) return; // which takes files by itself
  if (event.type === "paste" && carried.types.includes("text/plain")) return; // words with a picture of them
  event.preventDefault(); // a browser would leave the page for a file that is dropped
  const file = [...carried.files].find((one) => one.type.startsWith("image/")) || carried.files[0];
  if (event.type === "dragover" || !file) return;
  const chosen = new DataTransfer();
  chosen.items.add(file);
  $("image").files = chosen.files;
  showChosen();
}

function showChosen() {
  const file = $("image").files[0];
  if ($("chosen").src) URL.revokeObjectURL($("chosen").src);
  $("chosen").hidden = !file;
  if (file) $("chosen").src = URL.createObjectURL(file);
  else $("chosen").removeAttribute("src");
}

async function loadLatest() {
  try {
    const rows = (await call("/predictions?status=succeeded&limit=12")).results;
    $("latest").replaceChildren(
      ...rows.filter((row) => row.outputs.length).map((row) => {
        const figure = document.createElement("figure");
        const link = document.createElement("a");
        link.href = row.outputs[0].url;
        const image = picture(row.outputs[0].url, row.request.prompt);
        image.loading = "lazy";
        link.append(image);
        const caption = document.createElement("figcaption");
        caption.textContent = row.request.prompt || row.model;
        figure.append(link, caption);
        return figure;
      }),
    );
    $("latest-note").textContent = rows.length ? "" : "None yet.";
  } catch (error) {
    $("latest-note").textContent = error.message;
  }
}

function listApis() {
  const origin = location.origin;
  const rows = [
    ["Replicate", `${origin} (Python), ${origin}/v1 (JavaScript)`, "POST /v1/models/black-forest-labs/flux-kontext-dev/predictions"],
    ["Black Forest Labs", origin, "POST /v1/flux-kontext-pro"],
    ["WaveSpeed", origin, "POST /api/v3/wavespeed-ai/flux-kontext-dev"],
    ["OpenAI Images", `${origin}/v1`, "POST /v1/images/generations"],
    ["fal", `${origin}/fal/queue`, "POST /fal/queue/fal-ai/flux/dev"],
    ["native", `${origin}${API}`, `POST ${API}/predictions`],
  ];
  $("apis").replaceChildren(
    ...rows.map((cells) => {
      const row = document.createElement("tr");
      row.append(...cells.map((text, place) => {
        const cell = document.createElement("td");
        const inner = place ? document.createElement("code") : cell;
        inner.textContent = text;
        if (place) cell.append(inner);
        return cell;
      }));
      return row;
    }),
  );
}

$("make").addEventListener("submit", make);
$("model").addEventListener("change", tellServed);
$("image").addEventListener("change", showChosen);
$("cancel").addEventListener("click", cancel);
for (const kind of ["dragover", "drop", "paste"]) document.addEventListener(kind, take);
$("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault(); // it would ask for a picture, and that may cost something
  $("key").blur();
  $("key").focus();
});
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value);
  start();
});

function start() {
  loadModels().catch((error) => { $("served").textContent = error.message; });
  $("trouble").textContent = "";
  loadLatest();
}

listApis();
start();
