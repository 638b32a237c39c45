// What is on the canvas, as a file to download.

const KINDS = ["video/mp4;codecs=avc1", "video/webm;codecs=vp9", "video/webm"];

export class Recorder {
  constructor(canvas, fps) {
    const mimeType = KINDS.find((kind) => MediaRecorder.isTypeSupported(kind));
    this.parts = [];
    this.recorder = new MediaRecorder(canvas.captureStream(fps), { mimeType, videoBitsPerSecond: 8e6 });
    this.recorder.ondataavailable = ({ data }) => this.parts.push(data);
    this.recorder.start(1000);
  }

  /** End the recording; its bytes and a name for them. */
  async stop() {
    await new Promise((resolve) => {
      this.recorder.onstop = resolve;
      this.recorder.stop();
    });
    const type = this.recorder.mimeType.split(";")[0];
    const time = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
    return { blob: new Blob(this.parts, { type }), name: `sana-${time}.${type.split("/")[1]}` };
  }
}

/** Have the browser save a file. */
export function save({ blob, name }) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
