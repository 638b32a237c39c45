// The statistics below the picture: what the gateway says of each chunk, and what is counted here.

const EVERY_MS = 1000;
const SAMPLES = 4;

const set = (id, text) => (document.getElementById(id).textContent = text);

export class Figures {
  /** `source` gives the webcam, if one runs, and the number of frames sent of it. */
  constructor(player, source) {
    Object.assign(this, { player, source, samples: [] });
    setInterval(() => this.count(), EVERY_MS);
  }

  /** Show the chunk_stats message of a chunk. */
  chunk(stats) {
    this.player.chunkFrames = stats.num_frames;
    set("chunk", `${stats.scheduler_forward_ms} ms`);
    set("dropped", stats.frames_dropped + (this.source().webcam?.skipped ?? 0));
    set("queue", `${stats.queue_depth} in, ${this.player.queue.length} out`);
    set("chunks", stats.chunk_index + 1);
  }

  // Over some seconds, since a server that is slower than the camera shows chunk after chunk with pauses.
  count() {
    const { webcam, sent } = this.source();
    const { shown, lag } = this.player;
    const now = { sent, shown, at: performance.now() };
    this.samples.push(now);
    const before = this.samples.length > SAMPLES ? this.samples.shift() : this.samples[0];
    const perSecond = (name) => (Math.max(0, now[name] - before[name]) * 1000) / Math.max(now.at - before.at, 1);
    set("fps-in", webcam ? perSecond("sent").toFixed(1) : "–");
    set("fps-out", shown ? perSecond("shown").toFixed(1) : "–");
    set("lag", webcam && lag !== null ? `${Math.round(lag)} ms` : "–");
  }
}
