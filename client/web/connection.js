// The WebSocket: opens a session, sends commands and frames, and comes back after a drop.

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

export class Connection extends EventTarget {
  /** `opening` makes the first message; without one the connection only watches. */
  constructor(path, opening) {
    super();
    this.path = path;
    this.opening = opening;
    this.failures = 0;
    this.wanted = true;
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
    this.socket.onmessage = ({ data }) => this.receive(decode(data));
    this.socket.onclose = ({ code, reason }) => this.lost(code, reason);
  }

  receive(message) {
    this.failures = 0;
    this.tell(message.type, message);
  }

  lost(code, reason) {
    this.tell("lost", { code, reason, again: this.wanted });
    if (!this.wanted) return;
    const wait = RETRY_MS[Math.min(this.failures, RETRY_MS.length - 1)];
    this.failures += 1;
    this.timer = setTimeout(() => this.open(), wait);
  }

  tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  send(message) {
    if (this.ready) this.socket.send(encode(message));
  }

  command(type, data = {}) {
    this.send({ type, data });
  }

  /** Whether so much waits to be sent that another frame would only be late. */
  get congested() {
    return !this.ready || this.socket.bufferedAmount > QUEUED_BYTES;
  }

  close() {
    this.wanted = false;
    clearTimeout(this.timer);
    this.socket.close();
  }
}
