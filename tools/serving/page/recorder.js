"use strict";
// Audio worklet: hands the microphone's samples to the page, 2,048 at a time.
class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.samples = new Float32Array(2048);
    this.filled = 0;
  }
  process([channels]) {
    if (!channels.length) return true;
    this.samples.set(channels[0], this.filled);
    this.filled += channels[0].length;
    if (this.filled === this.samples.length) {
      this.port.postMessage(this.samples.slice());
      this.filled = 0;
    }
    return true;
  }
}
registerProcessor("recorder", Recorder);
