// What the page says to the gateway and hears from it, over a WebSocket; both transports come back after a drop.

import { decode, encode } from "./msgpack.js";

const QUEUED_BYTES = 1 << 20;
const RETRY_MS = [250, 500, 1000, 2000, 4000];

/** The token from the address (#token=...), kept for this tab only. */
export function readToken() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) {
    sessionStorage.setItem("token", found);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem("token") ?? "";
}

/** A request to the gateway; throws an Error with the sentence that it answers. */
export async function call(path, options = {}) {
  const token = readToken();
  const headers = { ...options.headers, ...(token && { authorization: `Bearer ${token}` }) };
  const answer = await fetch(path, { ...options, headers });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error?.message ?? found.reason ?? `the gateway answered ${answer.status}`);
  return found;
}

/** One session after another with the gateway; every message is an event, besides "open" and "lost". */
export class Link extends EventTarget {
  constructor() {
    super();
    this.failures = 0;
    this.wanted = true;
    this.sent = 0; // camera frames
  }

  heard(message) {
    this.failures = 0;
    this.tell(message.type, message);
  }

  lost(reason) {
    this.tell("lost", { reason, again: this.wanted });
    if (!this.wanted) return;
    const wait = RETRY_MS[Math.min(this.failures, RETRY_MS.length - 1)];
    this.failures += 1;
    this.timer = setTimeout(() => this.open(), wait);
  }

  tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  command(type, data = {}) {
    this.send({ type, data });
  }

  close() {
    this.wanted = false;
    clearTimeout(this.timer);
    this.hangUp();
  }
}

export class Connection extends Link {
  /** `opening` makes the first message; without one the connection only watches. */
  constructor(path, opening) {
    super();
    this.path = path;
    this.opening = opening;
    this.open();
  }

  get ready() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  open() {
    const token = readToken();
    const address = new URL(this.path, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = new WebSocket(address, token ? ["sana", `bearer.${token}`] : ["sana"]);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => {
      if (this.opening) this.send(this.opening());
      this.tell("open");
    };
    this.header = null;
    this.socket.onmessage = ({ data }) => this.take(data);
    this.socket.onclose = ({ reason }) => this.lost(reason);
  }

  // A gateway may send large frames as a header and then their bytes.
  take(data) {
    const header = this.header;
    this.header = null;
    const message = header ? { ...header, type: "frame_batch", payload: new Uint8Array(data) } : decode(data);
    if (message.type === "frame_batch_header") this.header = message;
    else this.heard(message);
  }

  send(message) {
    if (this.ready) this.socket.send(encode(message));
  }

  /** Send the camera's frames while they are `wanted`, with their capture times; what would only be late is skipped. */
  film(webcam, wanted) {
    webcam.onFrame = (frame) => {
      if (!wanted()) return;
      if (!this.ready || this.socket.bufferedAmount > QUEUED_BYTES) {
        webcam.skipped += 1;
        return;
      }
      this.sent += 1;
      this.command("frame", frame);
    };
    webcam.next();
  }

  hangUp() {
    this.socket.close();
  }
}
