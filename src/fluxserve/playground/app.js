// An ordinary client of the native API: /fluxserve/v1.
"use strict";

const API = "/fluxserve/v1";
const $ = (id) => document.getElementById(id);
let running = null;
let cards = [];

function headers(more = {}) {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}`, ...more } : more;
}

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
    throw new Error("The server does not answer: is it still running?");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  const said = body && body.error ? body.error.message : `The server answered ${answer.status}.`;
  throw new Error(answer.status === 401 ? `${said} (see API key above)` : said);
}

async function loadModels() {
  cards = (await call("/models")).results;
  $("model").replaceChildren(
    ...cards.map((card) => {
      const option = new Option(card.engine ? card.title : `${card.title} (nobody serves it)`, card.id);
      option.disabled = !card.engine;
      option.selected = card.id === "fluxserve/embedded";
      return option;
    }),
  );
  tellServed();
}

function tellServed() {
  const card = cards.find((one) => one.id === $("model").value);
  $("served").textContent = !card
    ? ""
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
  }
}

async function follow(id) {
  running = id;
  $("cancel").hidden = false;
  const answer = await ask(`${API}/predictions/${id}/events`, { headers: headers() });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => !line.startsWith(":"));
      const kind = lines.find((line) => line.startsWith("event: "));
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      if (kind) hear(kind.slice(7), JSON.parse(data.join("\n")));
    }
  }
  await loadLatest();
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
$("cancel").addEventListener("click", () => running && call(`/predictions/${running}/cancel`, { method: "POST" }));
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
