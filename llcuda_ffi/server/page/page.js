"use strict";
const $ = (id) => document.getElementById(id);
const SETTINGS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
let messages = JSON.parse(localStorage.getItem("llcuda_ffi.chat") || "[]");
let running = null; // the AbortController of the answer that is being written
let images = []; // data: URLs that go with the next message
let sees = new Set(); // names of models that take images
const loads = []; // [share of the KV cache, requests that wait] of the last minutes

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function problem(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message || `${response.status} ${response.statusText}`;
}

async function listModels() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw new Error(await problem(response));
  const chosen = localStorage.getItem("llcuda_ffi.model");
  const models = (await response.json()).data.filter((m) => m.kind === "text");
  sees = new Set(models.filter((m) => m.modalities?.vision).map((m) => m.id));
  $("model").replaceChildren(...models.map(({ id }) => new Option(id, id, false, id === chosen)));
  $("attach").hidden = !sees.has($("model").value);
}

function text(content) {
  return typeof content === "string" ? content : content.map((part) => part.text || "").join("");
}

function pictures(content) {
  return typeof content === "string" ? [] : content.filter((part) => part.image_url).map((part) => part.image_url.url);
}

async function showLoad() {
  if (document.hidden) return;
  const response = await fetch("metrics", { headers: headers() }).catch(() => null);
  if (!response?.ok) return;
  const text = await response.text();
  const sum = (name) => [...text.matchAll(new RegExp(`^vllm:${name}\\{.*\\} (\\S+)$`, "gm"))].reduce((n, m) => n + +m[1], 0);
  const cache = sum("kv_cache_usage_perc"), waiting = sum("num_requests_waiting");
  $("load").textContent = `${sum("num_requests_running")} run, ${waiting} wait, KV ${Math.round(100 * cache)} %`;
  loads.push([cache, waiting]);
  if (loads.length > 120) loads.shift();
  const most = Math.max(1, ...loads.map(([, n]) => n));
  const line = (of) => loads.map((each, i) => `${i},${30 - 30 * of(each)}`).join(" ");
  $("kv").setAttribute("points", line(([kv]) => Math.min(1, kv)));
  $("queue").setAttribute("points", line(([, n]) => n / most));
}

function button(text, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.onclick = action;
  return made;
}

function show() {
  $("chat").replaceChildren(...messages.map(article));
  $("chat").scrollTop = $("chat").scrollHeight;
}

function article(message, i) {
  const box = document.createElement("article");
  box.className = message.error ? "error" : message.role;
  const thinking = document.createElement("pre");
  thinking.className = "thinking";
  thinking.textContent = message.reasoning || "";
  thinking.hidden = !message.reasoning;
  const shown = document.createElement("pre");
  shown.textContent = message.error || text(message.content);
  const foot = document.createElement("footer");
  foot.append(message.note || "");
  if (!running) {
    if (message.role === "user") foot.append(button("Edit", () => edit(i)));
    else foot.append(button("Regenerate", () => regenerate(i)));
    foot.append(button("Copy", () => navigator.clipboard?.writeText(text(message.content))));
  }
  const seen = pictures(message.content).map((url) => Object.assign(new Image(), { src: url, alt: "attached image" }));
  box.append(thinking, shown, ...seen, foot);
  return box;
}

function keep() {
  try {
    localStorage.setItem("llcuda_ffi.chat", JSON.stringify(messages));
  } catch {
    $("load").textContent = "this conversation is too large to be kept over a reload";
  }
}

function attach(urls) {
  images = urls;
  $("images").replaceChildren(...urls.map((url) => Object.assign(new Image(), { src: url, alt: "image to be sent" })));
}

function read(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
}

function edit(i) {
  $("text").value = text(messages[i].content);
  attach(pictures(messages[i].content));
  messages = messages.slice(0, i);
  keep();
  show();
  $("text").focus();
}

function regenerate(i) {
  messages = messages.slice(0, i);
  answer();
}

function asked() {
  const system = $("system").value.trim();
  const history = messages.filter((m) => !m.error).map(({ role, content }) => ({ role, content }));
  const body = { model: $("model").value || undefined, stream: true, stream_options: { include_usage: true } };
  for (const name of SETTINGS) if ($(name).value !== "") body[name] = Number($(name).value);
  return { ...body, messages: system ? [{ role: "system", content: system }, ...history] : history };
}

async function answer() {
  const body = JSON.stringify(asked());
  const message = { role: "assistant", content: "", reasoning: "" };
  messages.push(message);
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  show();
  try {
    await stream(body, message);
  } catch (error) {
    if (error.name === "AbortError") message.note = "stopped";
    else message.error = error.message;
  }
  running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  keep();
  show();
  $("text").focus();
}

async function stream(body, message) {
  const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body, signal: running.signal });
  if (!response.ok) throw new Error(await problem(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const box = $("chat").lastElementChild;
  const [thinking, text] = box.querySelectorAll("pre");
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices[0]?.delta || {};
      message.content += delta.content || "";
      message.reasoning += delta.reasoning_content || "";
      if (event.timings) message.note = `${event.timings.predicted_n} tokens, ${event.timings.predicted_per_second.toFixed(1)} a second`;
    }
    const atEnd = $("chat").scrollHeight - $("chat").scrollTop - $("chat").clientHeight < 60;
    text.textContent = message.content;
    thinking.textContent = message.reasoning;
    thinking.hidden = !message.reasoning;
    if (atEnd) $("chat").scrollTop = $("chat").scrollHeight;
  }
}

$("form").onsubmit = (event) => {
  event.preventDefault();
  const said = $("text").value.trim();
  if (!said || running) return;
  const shown = images.map((url) => ({ type: "image_url", image_url: { url } }));
  const content = shown.length ? [...shown, { type: "text", text: said }] : said;
  $("text").value = "";
  attach([]);
  messages.push({ role: "user", content });
  answer();
};
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
};
document.onkeydown = (event) => event.key === "Escape" && running?.abort();
$("stop").onclick = () => running?.abort();
$("new").onclick = () => {
  running?.abort();
  messages = [];
  keep();
  show();
};
$("file").onchange = async () => {
  attach([...images, ...(await Promise.all([...$("file").files].map(read)))]);
  $("file").value = "";
};
$("model").onchange = () => {
  localStorage.setItem("llcuda_ffi.model", $("model").value);
  $("attach").hidden = !sees.has($("model").value);
};
for (const name of [...SETTINGS, "system"]) {
  $(name).value = localStorage.getItem(`llcuda_ffi.${name}`) || "";
  $(name).onchange = () => localStorage.setItem(`llcuda_ffi.${name}`, $(name).value);
}
function start() {
  listModels().catch((error) => { $("load").textContent = error.message; });
}
// the key is kept for this tab only
$("key").value = sessionStorage.getItem("llcuda_ffi.key") || "";
$("key").onchange = () => { sessionStorage.setItem("llcuda_ffi.key", $("key").value); start(); };
start();
show();
showLoad();
setInterval(showLoad, 3000);
