// WebRTC instead of the WebSocket: the camera and the edit as tracks, everything else over a data channel.

import { Link, call } from "./connection.js";

const STATS_MS = 1000;
const SILENT_MS = 3000;

export class Peer extends Link {
  constructor(path, opening) {
    super();
    this.path = path;
    this.opening = opening;
    this.timing = setInterval(() => this.measure(), STATS_MS);
    this.open();
  }

  async open() {
    const peer = (this.peer = new RTCPeerConnection());
    this.onTheWay = this.held = null;
    this.channel = peer.createDataChannel("commands");
    this.camera = peer.addTransceiver("video", { direction: "sendrecv" }).sender;
    peer.ontrack = ({ track }) => this.tell("track", track);
    peer.onconnectionstatechange = () => peer.connectionState === "failed" && this.gone(peer);
    this.channel.onopen = () => this.tell("open");
    this.channel.onclose = () => this.gone(peer);
    this.channel.onmessage = ({ data }) => this.take(JSON.parse(data));
    try {
      await this.meet(peer);
    } catch (error) {
      if (this.peer === peer) this.tell("error", { content: error.message });
      this.gone(peer);
    }
  }

  async meet(peer) {
    await peer.setLocalDescription();
    while (peer.iceGatheringState !== "complete") {
      await new Promise((resolve) => peer.addEventListener("icegatheringstatechange", resolve, { once: true }));
    }
    const body = JSON.stringify({ sdp: peer.localDescription.sdp, init: this.opening() });
    const headers = { "content-type": "application/json" };
    await peer.setRemoteDescription(await call(this.path, { method: "POST", headers, body }));
  }

  take(message) {
    clearTimeout(this.silence);
    this.silence = setTimeout((peer) => this.gone(peer), SILENT_MS, this.peer);
    if (message.type === "ping") this.held = message.held_ms;
    this.heard(message);
  }

  /** The end of one connection, whatever notices it first. */
  gone(peer) {
    if (this.peer !== peer) return;
    this.hangUp();
    this.lost("");
  }

  send(message) {
    if (this.channel.readyState === "open") this.channel.send(JSON.stringify(message));
  }

  film(webcam) {
    this.camera.replaceTrack(webcam.track);
  }

  // What a frame spends in the encoder, on the network both ways and in the gateway. The rest of its time, from its
  // arrival here to the screen, is known for each frame.
  async measure() {
    const found = [...((await this.peer?.getStats()) ?? new Map()).values()];
    const camera = found.find(({ type }) => type === "outbound-rtp");
    const path = found.find(({ type, nominated }) => type === "candidate-pair" && nominated);
    this.sent = camera?.framesSent ?? this.sent;
    if (!camera?.framesEncoded || path?.currentRoundTripTime === undefined) return;
    const encoding = camera.totalEncodeTime / camera.framesEncoded;
    this.onTheWay = this.held === null ? null : (encoding + path.currentRoundTripTime) * 1000 + this.held;
  }

  hangUp() {
    const peer = this.peer;
    this.peer = null;
    clearTimeout(this.silence);
    if (!this.wanted) clearInterval(this.timing);
    peer?.close();
  }
}
