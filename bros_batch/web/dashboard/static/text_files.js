// Text files that a message is about.

const MAX_BYTES = 500_000; // of all files of a message

const size = (bytes) => (bytes < 1000 ? `${bytes} bytes` : bytes < 1e6 ? `${Math.round(bytes / 1000)} KB` : `${(bytes / 1e6).toFixed(1)} MB`);

export const label = (file) => `${file.name} · ${size(file.bytes)}`;

// The name, size and text of a file that comes after `others`. Throws an Error that says what is wrong with it.
export async function readTextFile(file, others) {
  const bytes = others.reduce((sum, each) => sum + each.bytes, file.size);
  if (bytes > MAX_BYTES) {
    const what = others.length ? `With ${file.name}, the files of this message have` : `${file.name} has`;
    throw new Error(`${what} ${size(bytes)}. At most ${size(MAX_BYTES)} fit into a message: take a part, or submit a job.`);
  }
  const content = new Uint8Array(await file.arrayBuffer());
  const isUtf16 = (content[0] === 0xff && content[1] === 0xfe) || (content[0] === 0xfe && content[1] === 0xff);
  const encoding = isUtf16 ? (content[0] === 0xff ? "utf-16le" : "utf-16be") : "utf-8";
  let text = "\0";
  try {
    text = new TextDecoder(encoding, { fatal: true }).decode(content);
  } catch {
    // It is reported below.
  }
  if (text.includes("\0")) throw new Error(`${file.name} is not a text file in UTF-8. Add text, such as .txt, .md, .csv, .json or code.`);
  if (!text.trim()) throw new Error(`${file.name} is empty.`);
  return { name: file.name, bytes: file.size, text };
}

// What the model reads: the files, then the question.
export function contentOf({ content, files = [] }) {
  return [...files.map(({ name, text }) => `File ${name}:\n\n${text.trimEnd()}`), content].filter(Boolean).join("\n\n");
}
