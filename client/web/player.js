// Edited frames onto the canvas, single pictures at the rate of the media or a track as it comes. A frame holds the
// source to the left of its edit, or the edit alone in a session that somebody else opened that way.

const CATCH_UP = 0.8;

export class Player {
  constructor(canvas, fps) {
    Object.assign(this, { canvas, fps, layout: "side", split: 0.5, queue: [], due: 0, underruns: 0, shown: 0, lag: null });
    this.chunkFrames = fps;
    this.decoding = Promise.resolve();
    requestAnimationFrame((now) => this.tick(now));
  }

  /** Queue the frames of one frame_batch message. */
  add(batch) {
    let at = 0;
    const pictures = batch.payload_lengths.map((length, index) => {
      const blob = new Blob([batch.payload.subarray(at, at + length)], { type: batch.content_type });
      at += length;
      return { bitmap: createImageBitmap(blob), captured: batch.captured_ms[index] };
    });
    this.decoding = this.decoding.then(async () => {
      for (const { bitmap, captured } of pictures) this.queue.push({ bitmap: await bitmap, captured });
    });
  }

  /** Show a track; `onTheWay` gives the milliseconds from the camera to here, if they are known. */
  watch(track, onTheWay) {
    this.unwatch();
    const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });
    video.srcObject = new MediaStream([track]);
    video.play();
    const next = () => {
      this.pending = video.requestVideoFrameCallback((now, { receiveTime }) => {
        next();
        const before = onTheWay();
        const known = before !== null && receiveTime !== undefined;
        this.show(video, known ? before + performance.now() - receiveTime : null);
      });
    };
    next();
    this.video = video;
  }

  unwatch() {
    this.video?.cancelVideoFrameCallback(this.pending);
    if (this.last === this.video) this.last = null;
    this.video = null;
  }

  clear() {
    this.queue.forEach(({ bitmap }) => bitmap.close());
    this.queue = [];
  }

  tick(now) {
    requestAnimationFrame((next) => this.tick(next));
    if (now < this.due || !this.queue.length) return;
    // What waits beyond a chunk, and a little for jitter, is lag that can be played away.
    const behind = this.queue.length > this.chunkFrames * 1.2;
    const interval = (1000 / this.fps) * (behind ? CATCH_UP : 1);
    if (this.due && now - this.due > interval * 2) this.underruns += 1;
    this.due = Math.max(this.due + interval, now);
    const { bitmap, captured } = this.queue.shift();
    this.show(bitmap, captured === null ? null : performance.timeOrigin + performance.now() - captured);
  }

  show(picture, lag) {
    this.lag = lag;
    this.shown += 1;
    if (this.last !== picture) this.last?.close?.();
    this.last = picture;
    this.draw();
  }

  draw() {
    const picture = this.last;
    if (!picture) return;
    const [whole, height] = [picture.videoWidth ?? picture.width, picture.videoHeight ?? picture.height];
    const paired = whole / height > this.aspect * 1.5;
    const width = paired ? whole / 2 : whole;
    const wide = this.layout === "side" ? whole : width;
    if (this.canvas.width !== wide || this.canvas.height !== height) this.resize(wide, height);
    const context = this.canvas.getContext("2d");
    if (this.layout === "side" || !paired) {
      context.drawImage(picture, 0, 0);
      return;
    }
    context.drawImage(picture, width, 0, width, height, 0, 0, width, height);
    if (this.layout === "split") this.drawSplit(context, picture, width, height);
  }

  // The picture may fill the width of the page, but not so much that the controls are out of sight.
  resize(width, height) {
    Object.assign(this.canvas, { width, height });
    this.canvas.parentElement.style.maxWidth = `${(62 * width) / height}vh`;
  }

  drawSplit(context, picture, width, height) {
    const edge = Math.round(width * this.split);
    if (edge) context.drawImage(picture, 0, 0, edge, height, 0, 0, edge, height);
    context.fillStyle = "#fff";
    context.fillRect(edge - 1, 0, 2, height);
  }

  relayout(layout, split) {
    Object.assign(this, { layout, split });
    this.draw();
  }
}
