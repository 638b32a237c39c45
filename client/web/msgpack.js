// MessagePack, as much of it as the protocol uses: maps, arrays, text, bytes, numbers, booleans, null.

const encoder = new TextEncoder();
const decoder = new TextDecoder();

class Writer {
  constructor() {
    this.parts = [];
  }

  bytes(values) {
    this.parts.push(Uint8Array.from(values));
  }

  number(marker, size, write) {
    const view = new DataView(new ArrayBuffer(1 + size));
    view.setUint8(0, marker);
    write(view);
    this.parts.push(new Uint8Array(view.buffer));
  }

  // A length after the markers for 8, 16 and 32 bits; maps and arrays have no 8.
  length(size, markers) {
    if (size < 0x100 && markers[0]) this.number(markers[0], 1, (view) => view.setUint8(1, size));
    else if (size < 0x10000) this.number(markers[1], 2, (view) => view.setUint16(1, size));
    else this.number(markers[2], 4, (view) => view.setUint32(1, size));
  }

  value(value) {
    if (value === null || value === undefined) this.bytes([0xc0]);
    else if (typeof value === "boolean") this.bytes([value ? 0xc3 : 0xc2]);
    else if (typeof value === "number") this.numeric(value);
    else if (typeof value === "string") this.text(value);
    else if (value instanceof Uint8Array) this.binary(value);
    else if (Array.isArray(value)) this.array(value);
    else this.map(Object.entries(value));
  }

  numeric(value) {
    if (Number.isInteger(value) && value >= 0 && value < 0x80) this.bytes([value]);
    else if (Number.isInteger(value) && value >= 0 && value < 2 ** 32) this.number(0xce, 4, (view) => view.setUint32(1, value));
    else if (Number.isSafeInteger(value)) this.number(0xd3, 8, (view) => view.setBigInt64(1, BigInt(value)));
    else this.number(0xcb, 8, (view) => view.setFloat64(1, value));
  }

  text(value) {
    const data = encoder.encode(value);
    if (data.length < 32) this.bytes([0xa0 | data.length]);
    else this.length(data.length, [0xd9, 0xda, 0xdb]);
    this.parts.push(data);
  }

  binary(value) {
    this.length(value.length, [0xc4, 0xc5, 0xc6]);
    this.parts.push(value);
  }

  array(values) {
    if (values.length < 16) this.bytes([0x90 | values.length]);
    else this.length(values.length, [0, 0xdc, 0xdd]);
    values.forEach((value) => this.value(value));
  }

  map(entries) {
    if (entries.length < 16) this.bytes([0x80 | entries.length]);
    else this.length(entries.length, [0, 0xde, 0xdf]);
    for (const [key, value] of entries) {
      this.text(key);
      this.value(value);
    }
  }
}

/** The MessagePack form of `value`, as a Blob. */
export function encode(value) {
  const writer = new Writer();
  writer.value(value);
  return new Blob(writer.parts);
}

class Reader {
  constructor(buffer) {
    this.data = new Uint8Array(buffer);
    this.view = new DataView(buffer);
    this.at = 0;
  }

  take(size) {
    this.at += size;
    return this.at - size;
  }

  sized(marker, first) {
    const width = 1 << (marker - first);
    const at = this.take(width);
    if (width === 1) return this.view.getUint8(at);
    return width === 2 ? this.view.getUint16(at) : this.view.getUint32(at);
  }

  text(size) {
    const at = this.take(size);
    return decoder.decode(this.data.subarray(at, at + size));
  }

  binary(size) {
    const at = this.take(size);
    return this.data.subarray(at, at + size);
  }

  array(size) {
    return Array.from({ length: size }, () => this.value());
  }

  map(size) {
    return Object.fromEntries(Array.from({ length: size }, () => [this.value(), this.value()]));
  }

  value() {
    const marker = this.data[this.take(1)];
    if (marker < 0x80) return marker;
    if (marker < 0x90) return this.map(marker & 0x0f);
    if (marker < 0xa0) return this.array(marker & 0x0f);
    if (marker < 0xc0) return this.text(marker & 0x1f);
    if (marker >= 0xe0) return marker - 0x100;
    if (marker >= 0xc4 && marker <= 0xc6) return this.binary(this.sized(marker, 0xc4));
    if (marker >= 0xd9 && marker <= 0xdb) return this.text(this.sized(marker, 0xd9));
    if (marker === 0xdc || marker === 0xdd) return this.array(this.sized(marker + 1, 0xdc));
    if (marker === 0xde || marker === 0xdf) return this.map(this.sized(marker + 1, 0xde));
    return this.scalar(marker);
  }

  scalar(marker) {
    const view = this.view;
    switch (marker) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xca: return view.getFloat32(this.take(4));
      case 0xcb: return view.getFloat64(this.take(8));
      case 0xcc: return view.getUint8(this.take(1));
      case 0xcd: return view.getUint16(this.take(2));
      case 0xce: return view.getUint32(this.take(4));
      case 0xcf: return Number(view.getBigUint64(this.take(8)));
      case 0xd0: return view.getInt8(this.take(1));
      case 0xd1: return view.getInt16(this.take(2));
      case 0xd2: return view.getInt32(this.take(4));
      case 0xd3: return Number(view.getBigInt64(this.take(8)));
      default: throw new Error(`the server sent a MessagePack value of an unknown kind (${marker})`);
    }
  }
}

/** The value in an ArrayBuffer. */
export function decode(buffer) {
  return new Reader(buffer).value();
}
