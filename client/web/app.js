// The page: controls to commands, messages to picture and figures.

import { Connection, call } from "./connection.js";
import { Figures } from "./figures.js";
import { Peer } from "./peer.js";
import { Player } from "./player.js";
import { recent, remember } from "./prompts.js";
import { Recorder, save } from "./recorder.js";
import { Webcam, cameras } from "./webcam.js";

const FPS = 24;
const QUALITY = 85;

const $ = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

const watched = new URLSearchParams(location.search).get("watch");
const player = new Player($("view"), FPS);
const figures = new Figures(player, () => ({ webcam, sent: connection?.sent ?? 0 }));
let model, connection, webcam, recorder, sessionId, upload;
let state = { started: false, paused: false };
let resume = false; // a session that was dropped is started again

function show(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

function status(name, text) {
  $("status").dataset.state = name;
  $("status").textContent = text;
}

function opening() {
  return { type: "init", prompt: $("prompt").value.trim(), commands: true, layout: "pair", fps: FPS,
    realtime_output_format: "jpeg", output_compression: QUALITY };
}

const TRANSPORTS = {
  websocket: () => new Connection("/v1/realtime_video/generate", opening),
  webrtc: () => new Peer("/v1/realtime_video/webrtc", opening),
};

function connect() {
  sessionId = null;
  const watching = () => new Connection(`/v1/realtime_video/watch/${encodeURIComponent(watched)}`, null);
  connection?.close();
  player.unwatch();
  status("connecting", "connecting");
  setState({ started: false, paused: false });
  const link = (connection = watched ? watching() : TRANSPORTS[chosen("transport")]());
  for (const [name, handler] of Object.entries(HANDLERS)) {
    link.addEventListener(name, ({ detail }) => link === connection && handler(detail?.data ?? detail ?? {}));
  }
}

const HANDLERS = {
  open: () => watched && status("ready", "watching"),
  lost: ({ reason, again }) => {
    resume ||= state.started && !watched; // also when the first attempts fail
    status("lost", again ? "connection lost, trying again" : `closed ${reason}`);
    stopWebcam();
    sessionId = null;
    setState({ started: false, paused: false });
  },
  session: ({ session_id }) => {
    sessionId = session_id;
    status("ready", "ready");
    show("");
    if (resume) start();
    resume = false;
  },
  state: setState,
  waiting: ({ ahead }) => status("ready", `in line, ${ahead} ahead of you`),
  generation_started: () => show(""),
  generation_complete: ({ total_chunks }) => status("ready", `complete, ${total_chunks} chunks`),
  generation_reset: ({ reason }) => {
    player.clear();
    if (reason !== "reset") show(reason);
  },
  command_error: ({ command, reason }) => show(`${command}: ${reason}`),
  error: ({ content, detail }) => show(detail ? `${content}: ${detail}` : content),
  frame_batch: (batch) => {
    if (batch.payload_lengths) player.add(batch);
    else show(`this session sends ${batch.encoding} frames, and the page shows jpeg and webp ones`);
  },
  track: (track) => player.watch(track, () => (webcam ? connection.onTheWay : null)),
  chunk_stats: (stats) => figures.chunk(stats),
  chunk_complete: ({ active_prompt }) => ($("shown").textContent = $("shown").title = active_prompt),
};

function setState(next) {
  const was = state;
  state = next;
  const running = state.started && !state.paused;
  if (running) status("running", `running, chunk ${state.current_chunk}`);
  else if (state.started) status("ready", "paused");
  else if (was.started) stopWebcam();
  $("hint").hidden = state.started || player.shown > 0;
  $("start").disabled = state.started || !sessionId;
  $("pause").disabled = !state.started;
  $("pause").textContent = state.paused ? "Resume" : "Pause";
  $("reset").disabled = !state.started;
  $("record").disabled = !state.started && !recorder && !watched;
  $("share").disabled = !state.started;
  $("sources").disabled = $("transports").disabled = state.started;
}

async function start() {
  show("");
  if (!applyPrompt()) return;
  try {
    await SOURCES[chosen("source")]();
    player.clear();
    connection.command("start", { wait: true });
  } catch (error) {
    stopWebcam();
    show(error.message);
  }
}

function setVideo(video) {
  connection.command("set_mode", { mode: "file" });
  connection.command("set_video", { video });
}

const SOURCES = {
  webcam: async () => {
    connection.command("set_mode", { mode: "live" });
    stopWebcam();
    webcam = new Webcam(model, FPS);
    await webcam.open($("camera").value);
    await listCameras();
    connection.film(webcam, () => state.started && !state.paused);
  },
  file: async () => {
    const file = $("file").files[0];
    if (!file) throw new Error("choose a file first");
    if (upload?.file !== file) {
      status("ready", `uploading ${file.name}`);
      const options = { method: "POST", body: file };
      upload = { file, card: await call(`/v1/uploads?name=${encodeURIComponent(file.name)}`, options) };
    }
    setVideo({ uploadId: upload.card.uploadId });
  },
  sample: async () => setVideo({ name: $("sample").value }),
};

function stopWebcam() {
  webcam?.close();
  webcam = null;
}

function applyPrompt() {
  const prompt = $("prompt").value.trim();
  if (!prompt) {
    show("say what to do with the video first");
    $("prompt").focus();
    return false;
  }
  connection.command("set_prompt", { prompt });
  remember(prompt);
  listPrompts();
  return true;
}

function listPrompts() {
  const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text, value: text });
  $("recent").replaceChildren(...recent().map((prompt) => make("option", prompt)));
  $("chips").replaceChildren(...recent().map((prompt) => {
    const item = document.createElement("li");
    const button = Object.assign(make("button", prompt), { type: "button", title: prompt });
    button.onclick = () => {
      $("prompt").value = prompt;
      applyPrompt();
    };
    item.append(button);
    return item;
  }));
}

async function listCameras() {
  const current = $("camera").value;
  const options = (await cameras()).map((camera) => new Option(camera.label || "Camera", camera.deviceId));
  $("camera").replaceChildren(...options);
  if (current) $("camera").value = current;
  $("camera").hidden = options.length < 2 || chosen("source") !== "webcam";
}

function showSource() {
  const source = chosen("source");
  $("camera").hidden = source !== "webcam" || $("camera").options.length < 2;
  $("file").hidden = source !== "file";
  $("sample").hidden = source !== "sample";
}

function showLayout() {
  const layout = chosen("layout");
  $("split").hidden = layout !== "split";
  player.relayout(layout, $("split").value / 100);
}

async function record() {
  if (recorder) {
    const running = recorder;
    recorder = null;
    save(await running.stop());
  } else {
    recorder = new Recorder($("view"), FPS);
  }
  $("record").setAttribute("aria-pressed", String(Boolean(recorder)));
  $("record").textContent = recorder ? "Stop recording" : "Record";
}

async function share() {
  const address = `${location.origin}/?watch=${encodeURIComponent(sessionId)}`;
  try {
    await navigator.clipboard.writeText(address);
    status("running", "address for viewers copied");
  } catch {
    show(`viewers open ${address}`); // the browser keeps its clipboard to itself
  }
}

function pause() {
  connection.command(state.paused ? "resume" : "pause");
}

function nextLayout() {
  const options = [...document.querySelectorAll('input[name="layout"]')];
  options[(options.findIndex((option) => option.checked) + 1) % options.length].checked = true;
  showLayout();
}

const KEYS = {
  " ": () => (state.started ? pause() : $("start").click()),
  Escape: () => connection.command("reset"),
  p: () => $("prompt").focus(),
  v: nextLayout,
  r: () => $("record").disabled || record(),
  f: () => $("stage").requestFullscreen(),
};

function onKey(event) {
  const typing = event.target.matches("input:not([type=radio]):not([type=range]), select");
  if (event.key === "Escape" && typing) event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("button")) return;
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

async function prepare() {
  model = (await call("/v1/models")).data[0];
  Object.assign($("view"), { width: model.width * 2, height: model.height });
  player.aspect = model.width / model.height;
  const samples = (await call("/v1/media")).data;
  $("sample").replaceChildren(...samples.map(({ name }) => new Option(name)));
  document.querySelector('input[value="sample"]').disabled = !samples.length;
}

function wire() {
  $("start").onclick = start;
  $("pause").onclick = pause;
  $("reset").onclick = KEYS.Escape;
  $("record").onclick = record;
  $("share").onclick = share;
  $("full").onclick = KEYS.f;
  $("split").oninput = showLayout;
  $("edit").onsubmit = (event) => {
    event.preventDefault();
    applyPrompt();
    $("prompt").blur();
  };
  document.querySelectorAll('input[name="source"]').forEach((option) => (option.onchange = showSource));
  document.querySelectorAll('input[name="layout"]').forEach((option) => (option.onchange = showLayout));
  document.querySelectorAll('input[name="transport"]').forEach((option) => (option.onchange = connect));
  document.addEventListener("keydown", onKey);
  if (watched) for (const id of ["edit", "sources", "transports", "chips"]) $(id).hidden = true;
}

async function main() {
  $("prompt").value = recent()[0];
  listPrompts();
  showSource();
  wire();
  for (;;) {
    try {
      await prepare();
      break;
    } catch (error) {
      status("lost", "not ready");
      show(error.message);
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
  show("");
  connect();
}

main();
