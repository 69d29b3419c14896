// Several files as one: a zip archive that stores them as they are. Their contents are not held in memory.

const MAX_FILES = 65_535;
const MAX_BYTES = 2 ** 32 - 1;
const UTF8 = 0x0800;
const VERSION = 20;

const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

// Returns a promise of the archive for a list of {path, file}, which must be different paths.
export async function zipOf(files, signal) {
  const total = files.reduce((sum, { path, file }) => sum + file.size + 2 * path.length + 100, 0);
  if (files.length > MAX_FILES || total > MAX_BYTES) {
    throw new Error("These are too many files for the browser. In a terminal, bros-batch submit takes the folder.");
  }
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { path, file } of files) {
    signal.throwIfAborted();
    const name = new TextEncoder().encode(path);
    const common = [VERSION, UTF8, 0, 0, 0x21, [await checksum(file)], [file.size], [file.size], name.length, 0];
    const head = record(0x04034b50, common);
    parts.push(head, name, file);
    directory.push(record(0x02014b50, [VERSION, ...common, 0, 0, 0, [0], [offset]]), name);
    offset += head.length + name.length + file.size;
  }
  const size = directory.reduce((sum, { length }) => sum + length, 0);
  const end = record(0x06054b50, [0, 0, files.length, files.length, [size], [offset], 0]);
  return new File([...parts, ...directory, end], `${files.length} documents.zip`);
}

// A signature of four bytes, then numbers of two bytes, or of four if they are in a list.
function record(signature, values) {
  const bytes = [[signature], ...values].flatMap((value) => {
    const [number, count] = Array.isArray(value) ? [value[0], 4] : [value, 2];
    return Array.from({ length: count }, (_, place) => (number >>> (8 * place)) & 0xff);
  });
  return Uint8Array.from(bytes);
}

async function checksum(file) {
  let value = 0xffffffff;
  const reader = file.stream().getReader();
  for (;;) {
    const { done, value: bytes } = await reader.read();
    if (done) return (value ^ 0xffffffff) >>> 0;
    for (const byte of bytes) value = TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  }
}
