// Plain JavaScript without dependencies. Shapes of the server's answers: tools/serving/answers.py.
const byId = id => document.getElementById(id);
const status = byId("status"), player = byId("player"), axis = byId("time-axis"), tokenCanvas = byId("tokens");
const COLOURS = [0, 1, 2, 3, 7].map(number => `var(--model-${number})`);
const LIVE_SECONDS = 10; // of a recording that are shown while it goes on
const LIVE_EVERY = 500; // milliseconds between two looks at it
const spell = name => name.replaceAll("_", " ");
const percent = score => `${(100 * score).toFixed(score < 0.0995 ? 1 : 0)} %`;

let models = [], answer = null, sounding = null, asked = 0;
const model = () => models.find(({name}) => name === byId("model").value);

function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
}
function element(tag, attributes = {}, ...children) {
  const node = tag === "path" ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// ---- asking the server
async function ask(blob, name) {
  const form = new FormData();
  form.append("file", blob, name);
  const address = `models/${encodeURIComponent(model().name)}/timeline?spectrogram=true&window=${byId("window").value}`;
  const response = await fetch(address, {method: "POST", body: form}).catch(() => { throw new Error("The server does not answer."); });
  const found = await response.json();
  if (!response.ok) throw new Error(found.message);
  return found;
}
let last = null; // the sound on the page: [blob, name]
async function analyse(blob, name) {
  if (blob.size > model().max_bytes) return say(`${name}: expected at most ${model().max_bytes / 1e6} MB, found ${(blob.size / 1e6).toFixed(1)} MB; choose a shorter sound.`, true);
  const number = ++asked;
  last = [blob, name];
  say(`${name} is analysed …`);
  try {
    const found = await ask(blob, name);
    if (number !== asked) return;
    say("");
    load(blob);
    show(found);
  } catch (error) {
    if (number === asked) say(error.message, true);
  }
}
function load(blob) {
  URL.revokeObjectURL(player.src);
  player.hidden = false;
  player.src = URL.createObjectURL(blob);
}
player.addEventListener("error", () => {
  if (!player.getAttribute("src")) return;
  player.hidden = true;
  say("This browser cannot play the file; move the position to read it.");
});

// ---- showing an answer
function show(found) {
  answer = found;
  byId("result").hidden = false;
  byId("source").textContent = `${found.source}, ${found.end.toFixed(2)} s`;
  const scores = Object.fromEntries(found.scores.map(({name, score}) => [name, score]));
  byId("labels").textContent = found.labels.map(name => `${spell(name)}${name in scores ? " " + percent(scores[name]) : ""}`).join(", ") || "No class reaches its threshold";
  byId("spectrogram").src = found.spectrogram;
  byId("position").max = found.end;
  drawTokens();
  drawScores();
  byId("bars").replaceChildren(...found.windows.classes.map((name, row) => element("li", {}, element("span", {class: "name", title: spell(name)}, spell(name)), element("span", {class: "track"}, element("span", {class: "fill"})), element("span", {class: "score"}))));
  byId("bars").querySelectorAll(".fill").forEach((bar, row) => { bar.style.background = COLOURS[row]; });
  move(0);
}
byId("spectrogram").addEventListener("load", event => {
  const image = event.target;
  image.style.width = `${Math.min(100, 100 * image.naturalWidth / answer.frame_rate / answer.end)}%`;
});
function drawTokens() {
  const found = answer.tokens;
  for (const part of [tokenCanvas, byId("tokens-title"), byId("tokens-here")]) part.hidden = !found;
  tokenCanvas.style.display = found ? "" : "none";
  if (!found) return;
  const books = found.tokens.length, count = found.tokens[0].length, colours = model().vocabulary.colours;
  tokenCanvas.width = count;
  tokenCanvas.height = books;
  tokenCanvas.style.width = `${Math.min(100, 100 * count / found.rate / answer.end)}%`;
  tokenCanvas.style.height = `${Math.max(28, Math.min(22 * books, 200))}px`;
  const brush = tokenCanvas.getContext("2d");
  found.tokens.forEach((book, row) => book.forEach((token, column) => {
    brush.fillStyle = colours[row][token];
    brush.fillRect(column, books - 1 - row, 1, 1); // the lowest band at the bottom, as in the spectrogram
  }));
}
function drawScores() {
  const {start, end, classes, scores} = answer.windows;
  const points = column => scores.map((row, i) => `${(1000 * (start[i] + end[i]) / 2 / answer.end).toFixed(1)} ${(99 - 98 * row[column]).toFixed(1)}`);
  byId("scores").replaceChildren(...classes.map((name, column) => {
    const path = points(column), [y] = path[0].split(" ").slice(1), [z] = path.at(-1).split(" ").slice(1);
    const line = element("path", {d: `M0 ${y}L${path.join("L")}L1000 ${z}`});
    line.style.stroke = COLOURS[column];
    return line;
  }).reverse());
}
function windowAt(time) {
  const {start, end} = answer.windows;
  let nearest = 0;
  start.forEach((from, i) => { if (Math.abs((from + end[i]) / 2 - time) < Math.abs((start[nearest] + end[nearest]) / 2 - time)) nearest = i; });
  return nearest;
}
function move(time) {
  byId("position").value = time;
  byId("time").textContent = `${time.toFixed(2)} of ${answer.end.toFixed(2)} s`;
  byId("playhead").style.left = `${100 * Math.min(1, time / answer.end)}%`;
  const row = answer.windows.scores[windowAt(time)];
  byId("bars").querySelectorAll("li").forEach((item, i) => {
    item.querySelector(".fill").style.width = `${100 * row[i]}%`;
    item.querySelector(".score").textContent = percent(row[i]);
  });
  if (answer.tokens) showButtons(Math.min(answer.tokens.tokens[0].length - 1, Math.floor(time * answer.tokens.rate)));
}

// ---- tokens: a button for each codebook's at the position, and the canvas
function showButtons(column) {
  const books = answer.tokens.tokens, box = byId("buttons");
  while (box.children.length > books.length) box.lastChild.remove();
  while (box.children.length < books.length) {
    const button = element("button", {type: "button", class: "button"}, element("span", {class: "chip"}), element("span"));
    button.addEventListener("click", () => hear(Number(button.dataset.book), Number(button.dataset.token)));
    box.append(button);
  }
  books.forEach((book, row) => {
    const button = box.children[row], token = book[column];
    if (button.dataset.token === String(token) && button.dataset.book === String(row)) return;
    button.dataset.book = row;
    button.dataset.token = token;
    button.lastChild.textContent = books.length > 1 ? `${row + 1} · ${token}` : token;
    button.firstChild.style.background = model().vocabulary.colours[row][token];
    button.setAttribute("aria-label", `Play token ${token}${books.length > 1 ? ` of codebook ${row + 1}` : ""}`);
  });
}
function hear(book, token) {
  if (sounding) sounding.pause();
  player.pause();
  sounding = new Audio(`models/${encodeURIComponent(model().name)}/tokens/${book}/${token}.wav`);
  const name = answer.tokens.tokens.length > 1 ? `Token ${token} of codebook ${book + 1}` : `Token ${token}`;
  sounding.addEventListener("playing", () => { byId("heard").textContent = `${name}: its centroid, resynthesised`; });
  sounding.play().catch(() => { byId("heard").textContent = `${name} cannot be played: the server does not answer.`; });
}
tokenCanvas.addEventListener("click", event => {
  const {left, top, width, height} = tokenCanvas.getBoundingClientRect(), books = answer.tokens.tokens;
  const column = Math.min(books[0].length - 1, Math.floor((event.clientX - left) / width * books[0].length));
  const row = books.length - 1 - Math.min(books.length - 1, Math.floor((event.clientY - top) / height * books.length));
  seek((column + 0.5) / answer.tokens.rate);
  hear(row, books[row][column]);
});

// ---- time
function seek(time) {
  if (Number.isFinite(player.duration)) player.currentTime = Math.min(time, player.duration);
  move(Math.min(time, answer.end));
}
byId("position").addEventListener("input", event => seek(Number(event.target.value)));
for (const plot of [byId("spectrogram"), byId("scores")]) plot.addEventListener("click", event => {
  const {left, width} = axis.getBoundingClientRect();
  seek((event.clientX - left) / width * answer.end);
});
function follow() {
  if (!answer || recording) return;
  move(Math.min(player.currentTime, answer.end));
  if (!player.paused && !player.ended) requestAnimationFrame(follow);
}
for (const event of ["play", "seeked", "ended"]) player.addEventListener(event, follow);

// ---- files
byId("file").addEventListener("change", event => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) analyse(file, file.name);
});
document.addEventListener("dragover", event => { event.preventDefault(); byId("drop").hidden = false; });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) byId("drop").hidden = true; });
document.addEventListener("drop", event => {
  event.preventDefault();
  byId("drop").hidden = true;
  const [file] = event.dataTransfer.files;
  if (file) analyse(file, file.name);
});
for (const choice of ["model", "window"]) byId(choice).addEventListener("change", () => { if (last && !recording) analyse(...last); });

// ---- microphone
let recording = null;
function wav(parts, rate) {
  const count = parts.reduce((sum, part) => sum + part.length, 0), view = new DataView(new ArrayBuffer(44 + 2 * count));
  const write = (at, text) => [...text].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  write(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); write(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true); view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true); write(36, "data"); view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const part of parts) for (const sample of part) view.setInt16(at, 32767 * Math.max(-1, Math.min(1, sample)), true), at += 2;
  return new Blob([view], {type: "audio/wav"});
}
async function record() {
  if (!navigator.mediaDevices) return say("The microphone needs https, or this machine's own address (http://127.0.0.1).", true);
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({audio: {echoCancellation: false, noiseSuppression: false, autoGainControl: false}});
  } catch (error) {
    return say(`The microphone cannot be used: ${error.message}`, true);
  }
  const context = new AudioContext(), parts = [];
  await context.audioWorklet.addModule("recorder.js");
  const node = new AudioWorkletNode(context, "recorder");
  recording = {stream, context, parts, seconds: () => 2048 * parts.length / context.sampleRate};
  node.port.onmessage = ({data}) => {
    parts.push(data);
    if (recording && recording.seconds() + 0.1 > model().max_seconds) stop();
  };
  context.createMediaStreamSource(stream).connect(node).connect(context.destination);
  player.pause();
  player.hidden = true;
  setRecording(true);
  watch(recording);
}
async function watch(of) {
  while (recording === of) {
    await new Promise(done => setTimeout(done, LIVE_EVERY));
    if (recording !== of || of.seconds() < 0.5) continue;
    say(`Recording: ${of.seconds().toFixed(1)} s of at most ${model().max_seconds} s`);
    try {
      const found = await ask(wav(of.parts.slice(-Math.ceil(LIVE_SECONDS * of.context.sampleRate / 2048)), of.context.sampleRate), "microphone");
      if (recording === of) show(found), move(found.end);
    } catch (error) {
      if (recording === of) say(error.message, true);
    }
  }
}
function stop() {
  const {stream, context, parts, seconds} = recording, rate = context.sampleRate, long = seconds() > 0;
  recording = null;
  stream.getTracks().forEach(track => track.stop());
  context.close();
  setRecording(false);
  if (long) analyse(wav(parts, rate), "recording.wav"); else say("Nothing was recorded.", true);
}
function setRecording(on) {
  byId("record").setAttribute("aria-pressed", on);
  byId("record").textContent = on ? "Stop" : "Record";
  byId("file").disabled = byId("model").disabled = on;
}
byId("record").addEventListener("click", () => recording ? stop() : record());

// ---- start
try {
  models = await (await fetch("models")).json();
  byId("model").replaceChildren(...models.map(({name}) => element("option", {value: name}, name)));
} catch {
  say("The server does not answer; start it again and reload the page.", true);
}
