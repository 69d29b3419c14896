// The rows of a job as a table shows them: fetched in pieces, kept up to a limit, and found by place or by a filter.

const BLOCK = 60;
const MAX_BLOCKS = 40;
const MAX_FOUND = 20_000;
const RETRY_MS = 2000;
const MAX_CELL_CHARS = 300;
const MAX_COLUMNS = 10; // of the document, and of the answer

// The name of the one column of values that have no fields, such as an answer in plain text.
export const WHOLE = "";

// A row cut to what fits into its cells.
function preview(row) {
  const { document: sent, answer, raw_answer: raw } = row;
  return {
    number: row.row,
    id: row.id,
    status: row.status,
    error: row.error && `${row.error.code}${row.error.message ? `: ${row.error.message}` : ""}`.slice(0, MAX_CELL_CHARS),
    document: cells(sent),
    answer: cells(parsed(answer ?? raw)),
  };
}

// A text that is an object in JSON has columns, too, although no schema asked for them.
function parsed(answer) {
  if (typeof answer !== "string" || !answer.trimStart().startsWith("{")) return answer;
  try {
    return JSON.parse(answer);
  } catch {
    return answer;
  }
}

function cells(value) {
  if (value === null || value === undefined) return {};
  if (typeof value !== "object" || Array.isArray(value)) return { [WHOLE]: textOf(value) };
  const entries = Object.entries(value).slice(0, 5 * MAX_COLUMNS);
  return Object.fromEntries(entries.map(([key, each]) => [key, textOf(each)]));
}

function textOf(value) {
  if (value === null) return "";
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.slice(0, MAX_CELL_CHARS);
}

// The columns of documents and answers, as the first rows have them. Answers have at least those that are `wanted`.
export function columnsOf(rows, wanted) {
  const names = (key, known = []) => {
    const all = [...new Set([...known, ...rows.flatMap((row) => Object.keys(row[key]))])];
    const named = all.filter((name) => name !== WHOLE); // a text between objects spreads over their columns
    return (named.length ? named : [WHOLE]).slice(0, MAX_COLUMNS);
  };
  return { document: names("document"), answer: names("answer", wanted) };
}

async function fetchRows(job, query, signal) {
  const address = `/v1/batches/${encodeURIComponent(job)}/rows?${new URLSearchParams(query)}`;
  const answer = await fetch(address, { headers: { Accept: "application/json" }, signal });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error?.message ?? `The server answered ${answer.status}.`);
  return { rows: body.data.map(preview), next: body.next_after };
}

// All rows: place `n` is row `n + 1`, so that any part can be fetched at once. Numbers without a row are blank lines.
export class AllRows {
  constructor(job, last, onChange) {
    Object.assign(this, { job, last, onChange, blocks: new Map(), abort: new AbortController() });
  }

  get size() {
    return this.last;
  }

  numberAt(place) {
    return place + 1;
  }

  placeOf(number) {
    return number - 1;
  }

  // The row at a place, null if there is none, undefined while it is being fetched.
  at(place) {
    const number = Math.floor(place / BLOCK);
    const block = this.blocks.get(number);
    if (!block || (block.isOld && Date.now() > block.retryAt)) this.fetch(number, block);
    if (!block?.rows) return undefined;
    return block.rows.get(place + 1) ?? null;
  }

  async fetch(number, old) {
    const block = { rows: old?.rows, isOld: false, retryAt: 0 };
    this.blocks.delete(number); // the order of a Map is that of insertion: the latest used are at its end
    this.blocks.set(number, block);
    if (this.blocks.size > MAX_BLOCKS) this.blocks.delete(this.blocks.keys().next().value);
    try {
      const rows = new Map();
      const end = (number + 1) * BLOCK;
      for (let after = number * BLOCK; after !== null && after < end; ) {
        const page = await fetchRows(this.job, { after, limit: end - after }, this.abort.signal);
        for (const row of page.rows) rows.set(row.number, row);
        after = page.next;
      }
      block.rows = rows;
      this.onChange();
    } catch (error) {
      Object.assign(block, { isOld: true, retryAt: Date.now() + RETRY_MS });
      if (error.name !== "AbortError") this.onChange(error);
    }
  }

  // Fetches again what is shown next, since rows may have changed. Until it has come, the old rows stay.
  refresh(last) {
    this.last = last;
    for (const block of this.blocks.values()) block.isOld = true;
    this.onChange();
  }

  close() {
    this.abort.abort();
  }
}

// The rows that a filter finds, in order of their numbers; more of them are looked for when the last known one is shown.
export class FoundRows {
  constructor(job, filter, onChange) {
    Object.assign(this, { job, filter, onChange, found: [], next: 0, abort: new AbortController(), isBusy: false, retryAt: 0 });
    this.more();
  }

  get size() {
    return this.found.length;
  }

  get isComplete() {
    return this.next === null || this.found.length >= MAX_FOUND;
  }

  get isCut() {
    return this.next !== null && this.found.length >= MAX_FOUND;
  }

  numberAt(place) {
    return this.found[place]?.number;
  }

  placeOf(number) {
    const place = this.found.findIndex((row) => row.number >= number);
    return place < 0 ? this.found.length : place;
  }

  at(place) {
    if (place > this.found.length - BLOCK) this.more();
    return this.found[place];
  }

  async more() {
    if (this.isBusy || this.isComplete || Date.now() < this.retryAt) return;
    this.isBusy = true;
    try {
      const wanted = this.found.length + BLOCK;
      while (this.found.length < wanted && !this.isComplete) {
        const page = await fetchRows(this.job, { ...this.filter, after: this.next, limit: BLOCK }, this.abort.signal);
        this.found.push(...page.rows);
        this.next = page.next;
        this.isBusy = !this.isComplete && this.found.length < wanted;
        this.onChange();
      }
    } catch (error) {
      this.retryAt = Date.now() + RETRY_MS;
      if (error.name !== "AbortError") this.onChange(error);
    } finally {
      this.isBusy = false;
    }
  }

  close() {
    this.abort.abort();
  }
}
