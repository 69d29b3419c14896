// A table of which only the rows in view exist. Its rows have one height, and they keep the keyboard focus.

import { make } from "./dom.js";
import { TallScroll } from "./tall_scroll.js";
import { columnsOf, WHOLE } from "./row_source.js";

const ROW_HEIGHT = 40; // as in job.css
const MARGIN_ROWS = 8; // rendered above and below the view
const REST_MS = 150;
const STATUS_WORDS = { succeeded: "done", pending: "waiting" };

// The width of a column in rem, by the longest of its first texts.
function widthFor(texts) {
  const longest = Math.max(...texts.map((text) => text?.length ?? 0));
  return Math.min(Math.max(longest * 0.5 + 1.5, 5), 26);
}

export class RowsTable {
  // `wanted` are the columns that the job wants of answers, `address` makes the URL of a row's page, and `onRest` is called
  // with the first visible row when scrolling has ended.
  constructor(scroller, wanted, address, onRest) {
    Object.assign(this, { scroller, wanted, address, onRest, source: null, columns: null, lastRow: 0, current: -1, drawn: new Map(), marked: null });
    this.scroll = new TallScroll(scroller, ROW_HEIGHT);
    this.table = make("table", "rows");
    this.head = this.table.createTHead();
    this.body = this.table.createTBody();
    this.above = this.body.insertRow();
    this.below = this.body.insertRow();
    for (const space of [this.above, this.below]) {
      space.setAttribute("aria-hidden", "true");
      space.insertCell();
    }
    scroller.replaceChildren(this.table);
    let rest = 0;
    scroller.addEventListener("scroll", () => {
      this.scroll.moved();
      this.draw();
      clearTimeout(rest);
      rest = setTimeout(() => {
        this.scroll.settle();
        this.draw();
        this.onRest(this.source?.numberAt(Math.floor(this.scroll.top / ROW_HEIGHT)));
      }, REST_MS);
    });
    scroller.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.draw()).observe(scroller);
  }

  // Says how many rows the job has: a table of few is no higher than they are.
  setLastRow(number) {
    this.lastRow = number;
    this.scroller.style.setProperty("--rows", number);
    this.scroller.hidden = !number;
  }

  // Shows the rows of another source.
  show(source) {
    this.source?.close();
    this.source = source;
    this.columns = null;
    this.current = -1;
    for (const row of this.drawn.values()) row.remove();
    this.drawn.clear();
    this.scroll.rows = source.size;
    this.scroll.goTo(0);
    this.draw();
  }

  // Brings a row to the top of the view, and marks it.
  goTo(number) {
    this.marked = number;
    this.scroll.rows = this.source.size;
    this.draw();
    this.scroll.goTo(this.source.placeOf(number) * ROW_HEIGHT);
    this.draw();
  }

  draw() {
    const { source, scroll } = this;
    if (!source) return;
    scroll.rows = source.size;
    const first = Math.max(0, Math.floor(scroll.top / ROW_HEIGHT) - MARGIN_ROWS);
    const last = Math.min(source.size, Math.ceil((scroll.top + scroll.room) / ROW_HEIGHT) + MARGIN_ROWS);
    const rows = [];
    for (let place = first; place < last; place++) rows.push([place, source.at(place)]);
    this.nameColumns(rows.map(([, row]) => row).filter(Boolean));
    const wanted = new Set(rows.map(([place]) => place));
    for (const [place, element] of this.drawn) {
      if (wanted.has(place)) continue;
      if (element.contains(document.activeElement)) this.scroller.focus({ preventScroll: true });
      element.remove();
      this.drawn.delete(place);
    }
    const top = Math.max(0, first * ROW_HEIGHT - scroll.offset);
    this.above.firstChild.style.height = `${top}px`;
    this.below.firstChild.style.height = `${Math.max(0, scroll.height - top - rows.length * ROW_HEIGHT)}px`;
    let before = this.above;
    for (const [place, row] of rows) {
      let element = this.drawn.get(place);
      if (!element || element.row !== row) {
        const fresh = this.make(place, row);
        if (element) {
          const hadFocus = element.contains(document.activeElement);
          element.replaceWith(fresh);
          if (hadFocus) fresh.querySelector("a")?.focus({ preventScroll: true });
        }
        this.drawn.set(place, (element = fresh));
      }
      if (before.nextSibling !== element) before.after(element);
      element.classList.toggle("marked", row?.number === this.marked);
      before = element;
    }
    this.chooseTabStop();
  }

  // The Tab key reaches one row, that which had the focus last or else the first in view; the arrow keys reach the others.
  chooseTabStop() {
    const { scroll, drawn } = this;
    for (const [place, element] of drawn) if (element.contains(document.activeElement)) this.current = place;
    const first = Math.ceil(scroll.top / ROW_HEIGHT);
    const isInView = this.current >= first && (this.current + 1) * ROW_HEIGHT <= scroll.top + scroll.room;
    const stop = isInView || drawn.get(this.current)?.contains(document.activeElement) ? this.current : first;
    for (const [place, element] of drawn) {
      const link = element.querySelector("a");
      if (link) link.tabIndex = place === stop ? 0 : -1;
    }
  }

  // Names the columns by the first rows, and once more when there is a first answer.
  nameColumns(rows) {
    const hasAnswer = rows.some((row) => Object.keys(row.answer).length > 0);
    if (!rows.length || (this.columns && (this.columns.areKnown || !hasAnswer))) return;
    const found = columnsOf(rows, this.wanted);
    const hasId = rows.some((row) => row.id && row.id !== String(row.number) && !Object.values(row.document).includes(row.id));
    this.columns = { ...found, id: hasId, areKnown: hasAnswer };
    for (const element of this.drawn.values()) element.row = "old"; // drawn anew, with these columns
    const head = make("tr");
    let whole = 0;
    const add = (text, css, width) => {
      const cell = make("th", css, text);
      cell.scope = "col";
      cell.style.width = `${width}rem`;
      whole += width;
      head.append(cell);
    };
    add("Row", "number", 2 + 0.55 * Math.max(3, String(this.lastRow).length));
    add("Status", "", 6.5);
    if (hasId) add("Id", "", widthFor(rows.map((row) => row.id)));
    for (const kind of ["document", "answer"]) {
      for (const name of found[kind]) add(name === WHOLE ? kind : name, kind, widthFor([name, ...rows.map((row) => row[kind][name])]));
    }
    this.head.replaceChildren(head);
    this.table.style.minWidth = `${whole}rem`;
    for (const space of [this.above, this.below]) space.firstChild.colSpan = head.children.length;
  }

  make(place, row) {
    const element = make("tr", "row");
    element.row = row;
    element.setAttribute("aria-rowindex", place + 2);
    const number = row?.number ?? this.source.numberAt(place);
    const cell = element.insertCell();
    cell.className = "number";
    if (!row) {
      cell.textContent = number ?? "";
      const rest = element.insertCell();
      rest.colSpan = Math.max(1, this.head.querySelectorAll("th").length - 1);
      rest.className = "none";
      rest.textContent = row === null ? "blank line" : "…";
      return element;
    }
    const link = make("a", "", String(number));
    link.href = this.address(number);
    cell.append(link);
    const state = element.insertCell();
    state.append(make("span", `badge ${row.status}`, STATUS_WORDS[row.status] ?? row.status));
    if (this.columns.id) element.insertCell().textContent = row.id ?? "";
    for (const name of this.columns.document) element.insertCell().textContent = row.document[name] ?? "";
    const whole = row.error ?? (this.columns.answer.includes(WHOLE) ? null : row.answer[WHOLE]);
    if (whole) {
      const cell = element.insertCell();
      cell.colSpan = this.columns.answer.length;
      cell.className = row.error ? "wrong" : "answer";
      cell.textContent = whole;
      return element;
    }
    for (const name of this.columns.answer) {
      const answer = element.insertCell();
      answer.className = "answer";
      answer.textContent = row.answer[name] ?? "";
    }
    return element;
  }

  // Up and down go from row to row; everything else scrolls as in any other element.
  onKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const element = document.activeElement.closest("tr.row");
    if (!step || !element) return;
    const found = [...this.drawn].find(([, each]) => each === element);
    const place = found[0] + step;
    if (place < 0 || place >= this.source.size) return;
    event.preventDefault();
    const { scroll } = this;
    const head = this.head.offsetHeight;
    if (place * ROW_HEIGHT < scroll.top) scroll.goTo(place * ROW_HEIGHT);
    else if ((place + 1) * ROW_HEIGHT > scroll.top + scroll.room - head) {
      scroll.goTo((place + 1) * ROW_HEIGHT - scroll.room + head);
    }
    this.draw();
    this.drawn.get(place)?.querySelector("a")?.focus({ preventScroll: true });
    this.chooseTabStop();
  }
}
