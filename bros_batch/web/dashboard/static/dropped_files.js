// The files of a drop, with those in dropped folders.

const isHidden = ({ name }) => name.startsWith(".");

// Returns a promise of {path, file} for each file, by path. Hidden files are left out.
export async function droppedFiles({ items }) {
  // They are gone after the first wait.
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  const found = (await Promise.all(entries.map(filesOf))).flat();
  return found.toSorted((one, other) => (one.path < other.path ? -1 : 1));
}

async function filesOf(entry) {
  if (isHidden(entry)) return [];
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ path: entry.fullPath.replace(/^\//, ""), file }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // It returns some of them at a time, and at last none.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return (await Promise.all(found.map(filesOf))).flat();
    found.push(...some);
  }
}
