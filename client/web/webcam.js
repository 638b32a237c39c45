// The webcam as a stream of JPEG frames at the model's size and rate, each with the time it was captured.

const QUALITY = 0.9;
const ENCODING_AT_ONCE = 3;

/** Cameras that can be chosen; their names are known only after one was allowed. */
export async function cameras() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices.filter((device) => device.kind === "videoinput");
}

export class Webcam {
  constructor(model, fps) {
    Object.assign(this, { model, fps, skipped: 0, number: 0, encoding: 0, due: 0 });
    this.canvas = new OffscreenCanvas(model.width, model.height);
    this.video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
    this.order = Promise.resolve();
  }

  async open(deviceId) {
    if (!navigator.mediaDevices) throw new Error("browsers give cameras to pages from https or this machine only");
    const { width, height } = this.model;
    const frameRate = { ideal: this.fps, max: this.fps };
    const video = { width: { ideal: width * 2 }, height: { ideal: height * 2 }, frameRate };
    if (deviceId) video.deviceId = { exact: deviceId };
    this.stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    this.track.contentHint = "detail";
    this.video.srcObject = this.stream;
    await this.video.play();
  }

  get track() {
    return this.stream.getVideoTracks()[0];
  }

  /** Hand frames to `onFrame` from now on. */
  next() {
    this.pending = this.video.requestVideoFrameCallback((now, about) => {
      this.next();
      this.take(now, about.captureTime ?? now);
    });
  }

  // Cameras deliver 30 or 60 frames a second whatever they are asked for.
  take(now, captured) {
    if (now < this.due) return;
    this.due = Math.max(this.due + 1000 / this.fps, now - 1000 / this.fps);
    if (this.encoding >= ENCODING_AT_ONCE) {
      this.skipped += 1;
      return;
    }
    this.draw();
    const about = { number: this.number, captured_ms: performance.timeOrigin + captured };
    this.number += 1;
    this.encode(about);
  }

  draw() {
    const { videoWidth, videoHeight } = this.video;
    const { width, height } = this.canvas;
    const scale = Math.max(width / videoWidth, height / videoHeight);
    const [w, h] = [videoWidth * scale, videoHeight * scale];
    this.canvas.getContext("2d").drawImage(this.video, (width - w) / 2, (height - h) / 2, w, h);
  }

  encode(about) {
    this.encoding += 1;
    const picture = this.canvas.convertToBlob({ type: "image/jpeg", quality: QUALITY });
    this.order = this.order.then(async () => {
      const data = new Uint8Array(await (await picture).arrayBuffer());
      this.encoding -= 1;
      this.onFrame({ ...about, data });
    });
  }

  close() {
    if (this.pending) this.video.cancelVideoFrameCallback(this.pending);
    this.stream?.getTracks().forEach((track) => track.stop());
  }
}
