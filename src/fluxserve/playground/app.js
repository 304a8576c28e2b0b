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
  const answer = await fetch(API + path, { ...options, headers: headers(options.headers) });
  if (answer.status === 204) return null;
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ? body.error.message : answer.statusText);
  return body;
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
        + "`fluxserve doctor` tells how to get the real one."
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
    show(error.message, 0);
  } finally {
    running = null;
    $("cancel").hidden = true;
  }
}

async function follow(id) {
  running = id;
  $("cancel").hidden = false;
  const answer = await fetch(`${API}/predictions/${id}/events`, { headers: headers() });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
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
    show(prediction.error ? prediction.error.message : prediction.status, 0);
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
  $("status").textContent = text;
  $("bar").value = fraction;
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
$("cancel").addEventListener("click", () => running && call(`/predictions/${running}/cancel`, { method: "POST" }));
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value);
  start();
});

function start() {
  loadModels().catch((error) => { $("served").textContent = error.message; });
  loadLatest();
}

listApis();
start();
